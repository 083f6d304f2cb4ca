"""One training step of each contestant: albert_jax, a plain JAX version of the model, and transformers in PyTorch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from albert_jax import model
from albert_jax.tasks import pretrain
from albert_jax.training import optimizer, sharding, state
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.step import make_train_step

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
ADAMW = OptimizerConfig(name="adamw", textbook=True, learning_rate=RATE, warmup_steps=0, weight_decay=DECAY)


def make_batch(cfg: model.AlbertConfig, rows: int, length: int, slots: int, packing: int = 1) -> dict[str, np.ndarray]:
  """Makes a batch of random tokens without padding, as pre-training sees it most of the time.

  Args:
    cfg: the model.
    rows: B.
    length: L.
    slots: M, the masked positions of each row.
    packing: the examples that share a row, all of one length; 1 gives each its own row.
  """
  rng = np.random.default_rng(0)
  positions = np.stack([np.sort(rng.choice(length, slots, replace=False)) for _ in range(rows)])
  pairs = (rows, packing) if packing > 1 else (rows,)
  batch = {
    "input_ids": rng.integers(5, cfg.vocab_size, (rows, length)).astype(np.int32),
    "attention_mask": np.ones((rows, length), np.int32),
    "token_type_ids": (np.arange(length)[None] >= rng.integers(1, length, (rows, 1))).astype(np.int32),
    "mlm_positions": positions.astype(np.int32),
    "mlm_labels": rng.integers(5, cfg.vocab_size, (rows, slots)).astype(np.int32),
    "mlm_weights": np.ones((rows, slots), np.float32),
    "sop_label": rng.integers(0, 2, pairs).astype(np.int32),
    "sop_weight": np.ones(pairs, np.float32),
  }
  if packing > 1:
    starts = np.arange(packing) * (length // packing)
    segments = np.searchsorted(starts, np.arange(length), side="right")
    batch["segment_ids"] = np.broadcast_to(segments, (rows, length)).astype(np.int32)
    batch["position_ids"] = np.broadcast_to(np.arange(length) - starts[segments - 1], (rows, length)).astype(np.int32)
    batch["cls_positions"] = np.broadcast_to(starts, pairs).astype(np.int32)
  return batch


class Ours:
  """A training step of albert_jax, as `albert-jax train` runs it; each call takes a step and returns the loss.

  Attributes:
    compiled: the compiled step.
    state: the state after the steps so far.
  """

  def __init__(
    self,
    cfg: model.AlbertConfig,
    params: Any,
    batch: dict[str, np.ndarray],
    opt: OptimizerConfig = ADAMW,
    devices: Sequence[Any] | None = None,
  ):
    """Compiles the step.

    Args:
      cfg: the model.
      params: the parameters to begin with.
      batch: the batch of every step.
      opt: the optimizer; its learning rate is constant.
      devices: over which the rows are split; None is the first one.
    """
    devices = jax.devices()[:1] if devices is None else devices
    self._mesh = sharding.make_mesh(MeshConfig(), len(batch["input_ids"]), devices)
    tx = optimizer.make(opt, model.layer_axes(cfg, params))
    shardings = sharding.shardings(self._mesh, jax.eval_shape(lambda: state.from_params(params, tx, None)))
    sums, terms = functools.partial(pretrain.sums, cfg), functools.partial(pretrain.terms, 1.0, 1.0)
    with jax.default_device(devices[0]):
      step: Any = make_train_step(sums, terms, tx, jax.random.key(0), self._mesh, shardings)
      with jax.set_mesh(self._mesh):
        self._batch = sharding.global_batch(self._mesh, batch)
        self._rate = sharding.everywhere(self._mesh, opt.learning_rate)
        self.state = state.from_params(params, tx, shardings)
        self.compiled = step.lower(self.state, self._batch, self._rate).compile()

  def __call__(self) -> float:
    self.state, (sums, _) = self.compiled(self.state, self._batch, self._rate)
    return float(sums["loss"][0])


def temporaries_gib(compiled: Any) -> float:
  """Memory in GiB that a compiled program needs beside its arguments and results."""
  return compiled.memory_analysis().temp_size_in_bytes / 2**30


def program_gib(compiled: Any) -> float:
  """Memory in GiB that a compiled program needs at most: arguments, results and temporaries."""
  sizes = compiled.memory_analysis()
  total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
  return (total - sizes.alias_size_in_bytes) / 2**30


def plain(cfg: model.AlbertConfig, params: Any, batch: dict[str, np.ndarray]) -> tuple[Callable[[], float], Any]:
  """Compiles the step one would write first: a Python loop over layers, attention as in the paper, optax, no remat.

  Returns:
    (function that takes a step and returns the loss, compiled step).
  """
  heads, width, eps = cfg.num_attention_heads, cfg.head_size, cfg.layer_norm_eps
  dtype = jnp.dtype(cfg.dtype)
  gelu = functools.partial(jax.nn.gelu, approximate=cfg.hidden_act == "gelu_new")

  def norm(p, x):
    x = x.astype(jnp.float32)
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + eps)
    return (x * p["scale"].reshape(1, 1, -1) + p["bias"].reshape(1, 1, -1)).astype(dtype)

  def dense(p, x):
    kernel = p["kernel"].reshape(x.shape[-1], -1).astype(dtype)
    return x @ kernel + p["bias"].reshape((1,) * (x.ndim - 1) + (-1,)).astype(dtype)

  def loss(params, batch):
    e = params["embeddings"]
    ids = batch["input_ids"]
    B, L = ids.shape
    x = e["word"]["embedding"][ids] + e["token_type"]["embedding"][batch["token_type_ids"]]
    x = norm(e["norm"], x + e["position"]["embedding"][None, :L])
    x = dense(params["projection"], x)
    mask = jnp.where(batch["attention_mask"][:, None, None, :] > 0, 0.0, -1e4)
    a, f = params["attention"], params["ffn"]
    for _ in range(cfg.num_hidden_layers):
      q, k, v = (dense(a[name], x).reshape(B, L, heads, width) for name in ("query", "key", "value"))
      scores = jnp.einsum("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32) / np.sqrt(width) + mask
      context = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores).astype(dtype), v).reshape(B, L, -1)
      output = {"kernel": a["output"]["kernel"].reshape(-1, cfg.hidden_size), "bias": a["output"]["bias"]}
      x = norm(a["norm"], x + dense(output, context))
      x = norm(f["norm"], x + dense(f["down"], gelu(dense(f["up"], x))))
    m = params["mlm"]
    h = jnp.take_along_axis(x, batch["mlm_positions"][:, :, None], 1)
    h = norm(m["norm"], gelu(dense(m["dense"], h)))
    logits = jnp.einsum("bme,ve->bmv", h, e["word"]["embedding"].astype(dtype), preferred_element_type=jnp.float32)
    mlm = optax.softmax_cross_entropy_with_integer_labels(logits + m["bias"][None, None], batch["mlm_labels"]).mean()
    pooled = jnp.tanh(dense(params["pooler"], x[:, 0])).astype(jnp.float32)
    sop = pooled @ params["sop"]["dense"]["kernel"] + params["sop"]["dense"]["bias"][None]
    return mlm + optax.softmax_cross_entropy_with_integer_labels(sop, batch["sop_label"]).mean()

  decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
  tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, eps=1e-6, weight_decay=DECAY, mask=decayed))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value

  params = jax.tree.map(jnp.array, params)
  opt, batch = jax.jit(tx.init)(params), jax.device_put(batch)
  compiled = step.lower(params, opt, batch).compile()

  def run():
    nonlocal params, opt
    params, opt, value = compiled(params, opt, batch)
    return float(value)

  return run, compiled


def torch_step(
  folder: str, batch: dict[str, np.ndarray], dtype: str, attention: str, compiled: bool, masked_only: bool
) -> Callable[[], float]:
  """Makes a training step of transformers' AlbertForPreTraining with torch.optim.AdamW.

  Args:
    folder: a Hugging Face directory.
    batch: as `make_batch` makes it, not packed.
    dtype: "bfloat16" runs under autocast.
    attention: transformers' attn_implementation.
    compiled: whether torch.compile compiles the forward pass.
    masked_only: the MLM head only at masked slots, which transformers does not do.

  Returns:
    function that takes a step and returns the loss.
  """
  import torch
  import transformers

  device = "cuda" if torch.cuda.is_available() else "cpu"
  net: Any = transformers.AlbertForPreTraining.from_pretrained(folder, attn_implementation=attention)
  net = net.to(device).train()
  decayed, rest = [], []
  for name, p in net.named_parameters():
    (rest if name.endswith("bias") or "layernorm" in name.lower().replace("_", "") else decayed).append(p)
  groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
  adam = torch.optim.AdamW(groups, lr=RATE, eps=1e-6)
  tensors = {k: torch.tensor(v, device=device) for k, v in batch.items()}
  positions, labels = tensors["mlm_positions"].long(), tensors["mlm_labels"].long()
  everywhere = torch.full(tensors["input_ids"].shape, -100, device=device).scatter(1, positions, labels)
  inputs = {k: tensors[k].long() for k in ("input_ids", "attention_mask", "token_type_ids")}

  def loss():
    if not masked_only:
      return net(**inputs, labels=everywhere, sentence_order_label=tensors["sop_label"].long()).loss
    hidden, pooled = net.albert(**inputs)[:2]
    picked = hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1]))
    entropy = torch.nn.functional.cross_entropy
    mlm = entropy(net.predictions(picked).flatten(0, 1).float(), labels.flatten())
    return mlm + entropy(net.sop_classifier(pooled).float(), tensors["sop_label"].long())

  forward = torch.compile(loss) if compiled else loss

  def run():
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
      value = forward()
    value.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    adam.step()
    adam.zero_grad(set_to_none=True)
    return value.item()

  return run


TORCH = {  # name: (attention, compiled, masked slots only)
  "eager": ("eager", False, False),
  "SDPA": ("sdpa", False, False),
  "SDPA, masked slots only": ("sdpa", False, True),
  "compile": ("sdpa", True, False),
  "compile, masked slots only": ("sdpa", True, True),
}
