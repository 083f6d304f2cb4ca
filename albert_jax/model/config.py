"""The configuration of an ALBERT, and the named sizes."""

import dataclasses
from dataclasses import dataclass

from albert_jax.errors import UserError

# Names as in Hugging Face. Google's own albert_config.json says "gelu" for the tanh form ("gelu_new" here).
ACTIVATIONS = ("gelu", "gelu_new", "relu")
SHARE = ("all", "matrices", "attention", "ffn", "none")
ARCH = ("albert", "modern")
# arch=modern: how far to each side a local layer attends, and every how many layers there is a global one.
WINDOW, GLOBAL_EVERY = 64, 3
DTYPES = ("float32", "bfloat16")
LOW_RANK = ("a", "b")  # the parameters of layer_rank beside a kernel
REMAT = ("none", "dots", "attention", "full")
ATTENTION = ("auto", "xla", "pallas", "cudnn")
# The fields that the weights of a checkpoint depend on; the others are settings of the computation and dropout.
STRUCTURE = (
  "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_hidden_groups", "inner_group_num",
  "num_attention_heads", "intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size",
  "layer_norm_eps", "share", "unshared_ends", "layer_rank", "square_projection", "arch",
)  # fmt: skip
# Larger values are mistakes (a count of bytes, a misplaced digit), which would otherwise crash the compiler.
LIMITS = {
  "vocab_size": 1 << 24, "embedding_size": 1 << 16, "hidden_size": 1 << 16, "num_hidden_layers": 1024,
  "num_hidden_groups": 1024, "inner_group_num": 64, "num_attention_heads": 1024, "intermediate_size": 1 << 18,
  "max_position_embeddings": 1 << 20, "type_vocab_size": 1 << 16, "unshared_ends": 512, "layer_rank": 4096,
  "scan_unroll": 1024,
}  # fmt: skip
LARGEST = 1e6  # of rates, deviations and shares
SMALLEST = 1e-30  # Smaller numbers are 0 in float32.
# Settings of the computation, which are not properties of the model.
COMPUTING = ("dtype", "remat", "scan_unroll", "attention", "quantization_noise")


@dataclass(frozen=True)
class AlbertConfig:
  """The shape of a model and how it computes. Field names are those of `albert_config.json` and HF's `config.json`.

  Defaults are ALBERT-base v2. Raises UserError where the values contradict each other.
  """

  vocab_size: int = 30000
  embedding_size: int = 128
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_hidden_groups: int = 1
  inner_group_num: int = 1
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = "gelu_new"  # gelu: exact (erf); gelu_new: tanh form; relu
  hidden_dropout_prob: float = 0.0
  attention_probs_dropout_prob: float = 0.0
  classifier_dropout_prob: float = 0.1
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  initializer_range: float = 0.02
  layer_norm_eps: float = 1e-12
  # Ours.
  # In training, round the factors of the layers' matrix products as an int8 export does, so that the model learns to
  # bear it (model/quantization.py).
  quantization_noise: bool = False
  # What the layers of a group share: all | attention | ffn | none (paper, table 4) | matrices: the weight matrices, and
  # each layer has its own biases and layer norms.
  share: str = "all"
  # So many layers at each end have weights of their own, and only those between are shared; 0: the paper's model.
  unshared_ends: int = 0
  # The rank of what each layer adds to the weight matrices that it shares, W + A B with its own A and B; 0: nothing.
  layer_rank: int = 0
  # A projection between embeddings and layers also where both have one size. The original has none, transformers has.
  square_projection: bool = False
  # albert: the paper's layer | modern: rotary positions, layer norms before attention and feed-forward, gated
  # feed-forward, no biases, and local attention in two layers of three (model/modern.py).
  arch: str = "albert"
  dtype: str = "float32"  # of activations and matmul inputs; parameters, norms, softmax and losses stay float32
  # What the backward pass computes again: none; dots: all but results of matrix products and of attention;
  # attention: all but attention's inputs and result, so the feed-forward part too; full: all but a layer's input.
  remat: str = "dots"
  # Layers a turn of the loop; 0: all on NVIDIA GPUs, else one. More need longer to compile and more memory.
  scan_unroll: int = 0
  # The kernel: xla; pallas (TPU); cudnn (NVIDIA GPU); auto: the machine's own where it can be used, else xla.
  attention: str = "auto"

  def __post_init__(self):
    def check(ok, message):
      if not ok:
        raise UserError(message)

    def one_of(name, choices):
      value = getattr(self, name)
      check(value in choices, f"{name}={_short(value)} is unknown; use one of {', '.join(choices)}")

    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int:
        least = 0 if field.name in ("unshared_ends", "layer_rank", "scan_unroll") else 1
        most = LIMITS[field.name]
        check(
          type(value) is int and least <= value <= most,
          f"{field.name}={_short(value)} must be a whole number from {least} to {most:,}",
        )
      elif field.type is float:
        check(
          type(value) in (int, float) and 0 <= value <= LARGEST,
          f"{field.name}={_short(value)} must be a number from 0 to {LARGEST:g}",
        )
      if field.name == "layer_norm_eps":  # It keeps a row of equal values from a division of 0 by 0, in float32.
        check(value >= SMALLEST, f"layer_norm_eps={value} must be {SMALLEST:g} or more; the original has 1e-12")
      if field.name.endswith("_prob"):
        check(value < 1, f"{field.name}={value} must be below 1: it is the share of values set to zero")
    square = self.square_projection
    for name in ("square_projection", "quantization_noise"):
      check(type(getattr(self, name)) is bool, f"{name}={_short(getattr(self, name))} must be true or false")
    check(
      not square or self.embedding_size == self.hidden_size,
      f"square_projection=True is for embedding_size={self.embedding_size} equal to hidden_size={self.hidden_size}; "
      "otherwise there is a projection anyway: leave it False",
    )
    one_of("hidden_act", ACTIVATIONS)
    one_of("share", SHARE)
    one_of("arch", ARCH)
    one_of("dtype", DTYPES)
    one_of("remat", REMAT)
    one_of("attention", ATTENTION)
    d, h, n, g = self.hidden_size, self.num_attention_heads, self.num_hidden_layers, self.num_hidden_groups
    check(
      d % h == 0,
      f"hidden_size={d} must be divisible by num_attention_heads={h}; try num_attention_heads={_divisor(d, h)}",
    )
    check(
      self.arch != "modern" or d // h % 2 == 0,
      f"arch=modern rotates pairs of a head's columns, and hidden_size={d} over num_attention_heads={h} is an odd "
      f"{d // h}; use another num_attention_heads",
    )
    check(g <= n, f"num_hidden_groups={g} must not exceed num_hidden_layers={n}: every group needs a layer")
    ends = self.unshared_ends
    check(
      g + 2 * ends <= n or not ends,
      f"unshared_ends={ends} leaves {n - 2 * ends} of num_hidden_layers={n} between the ends, for "
      f"num_hidden_groups={g}: every group needs a layer",
    )
    check(
      not ends or self.share != "none",
      f"unshared_ends={ends} has no effect with share=none, where no layer shares weights; leave it 0",
    )
    check(
      not self.layer_rank or self.share != "none",
      f"layer_rank={self.layer_rank} has no effect with share=none, where no layer shares matrices; leave it 0",
    )

  @property
  def head_size(self) -> int:
    return self.hidden_size // self.num_attention_heads

  @property
  def groups(self) -> int:
    """The number of groups of layers that share weights, with each unshared layer as a group."""
    return self.num_hidden_groups + 2 * self.unshared_ends

  def copies(self, part: str, leaf: str = "kernel") -> int:
    """Returns the number of copies of a parameter: one for each layer if it is not shared, else one for each group.

    Args:
      part: "attention" or "ffn", each with its layer norm.
      leaf: the last name of the parameter's path: "kernel" for a weight matrix, else "bias" or "scale", or "a" or
        "b" of LOW_RANK.

    Returns:
      The number. With as many groups as layers, nothing is shared.
    """
    if leaf in LOW_RANK:
      return self.num_hidden_layers
    is_shared = self.share in ("all", part) or (self.share == "matrices" and leaf == "kernel")
    return self.groups if is_shared else self.num_hidden_layers

  def window_of(self, layer: int) -> int | None:
    """Returns how many positions to each side `layer` attends to; None: all."""
    return WINDOW if self.arch == "modern" and layer % GLOBAL_EVERY else None

  def group_of(self, layer: int) -> int:
    """Returns the group whose shared weights `layer` uses (modeling.py of the original, transformer_model)."""
    ends, between = self.unshared_ends, self.num_hidden_layers - 2 * self.unshared_ends
    if layer < ends:
      return layer
    if layer >= ends + between:
      return self.groups - self.num_hidden_layers + layer
    return ends + int((layer - ends) / between * self.num_hidden_groups)


def _short(value) -> str:
  """Returns a short text of a value of a user's file, for a message."""
  if type(value) is int and abs(value) > 1 << 64:
    return f"(a number of {value.bit_length()} bits)"
  return f"{value!r:.60}"


def _divisor(width: int, heads: int) -> int:
  return max(k for k in range(1, heads + 1) if width % k == 0)


def _albert(layers, hidden, heads, **fields):
  return AlbertConfig(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads,
                      intermediate_size=4 * hidden, **fields)  # fmt: skip


_V1 = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_ZH = {"vocab_size": 21128, "hidden_act": "relu"}
_BERT = {"share": "none", "vocab_size": 30522, "hidden_act": "gelu", **_V1}

# A plain name is v2: trained without dropout. v1 of xxlarge had none either.
VARIANTS = {
  "tiny": _albert(4, 128, 4, embedding_size=64),
  "base": _albert(12, 768, 12),
  "large": _albert(24, 1024, 16),
  # 16 heads as in the released config; the paper's rule hidden_size/64 would give 32.
  "xlarge": _albert(24, 2048, 16),
  "xxlarge": _albert(12, 4096, 64),
  "base_v1": _albert(12, 768, 12, **_V1),
  "large_v1": _albert(24, 1024, 16, **_V1),
  "xlarge_v1": _albert(24, 2048, 16, **_V1),
  "xxlarge_v1": _albert(12, 4096, 64),
  "base_zh": _albert(12, 768, 12, **_ZH),
  "large_zh": _albert(24, 1024, 16, **_ZH),
  "xlarge_zh": _albert(24, 2048, 16, initializer_range=0.014, **_ZH),
  "xxlarge_zh": _albert(12, 4096, 16, initializer_range=0.01, **_ZH),
  # The baselines the paper compares with: embeddings as wide as the layers, nothing shared.
  "bert_base": _albert(12, 768, 12, embedding_size=768, **_BERT),
  "bert_large": _albert(24, 1024, 16, embedding_size=1024, **_BERT),
}
