"""What a bench measures: sizes, rows and lengths, for an accelerator and, as a toy, for a CPU."""

import dataclasses
from typing import Any

import jax

from albert_jax import nvidia
from albert_jax.model import VARIANTS, AlbertConfig

TOY_MODEL = AlbertConfig(
  vocab_size=1000, embedding_size=32, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
  intermediate_size=256, max_position_embeddings=128,
)  # fmt: skip
# Sets of compiler flags by platform: {name: (environment variable, flags)}.
XLA_FLAGS = {
  "gpu": {
    "latency hiding": ("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=true"),
    "no Triton GEMM": ("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false"),
    "no command buffers": ("XLA_FLAGS", "--xla_gpu_enable_command_buffer="),
  },
  "tpu": {"64 MiB of VMEM": ("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=65536")},
  "cpu": {"fast math": ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")},
}
LEVERS: dict[str, dict[str, Any]] = {
  "default": {}, "attention=xla": {"attention": "xla"}, "remat=none": {"remat": "none"},
  "remat=attention": {"remat": "attention"}, "remat=full": {"remat": "full"}, "scan_unroll=2": {"scan_unroll": 2},
  "scan_unroll=all": {"scan_unroll": 1024},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
  """The rows of each stage.

  Attributes:
    square: the width of the largest matrix product.
    product_tokens: the rows of the products at each size's shapes.
    copy_floats: the length of the array that is copied.
    check: (size, rows, length) of the correctness checks.
    steps: (size, rows, length) of each training step; the first also of the peers and levers.
    rows: other numbers of rows a device.
    levers: names of LEVERS.
    forward: (rows, length) of each forward pass, of the first size of `steps`.
    texts: lengths of single texts.
    compiles_peers: whether torch.compile is measured too.
    times: how often each program is timed.
    train: fields of the real runs' config.
    train_steps: of the run that measures the input.
  """

  square: int
  product_tokens: int
  copy_floats: int
  check: tuple[str, int, int]
  steps: tuple[tuple[str, int, int], ...]
  rows: tuple[int, ...]
  levers: tuple[str, ...]
  forward: tuple[tuple[int, int], ...]
  texts: tuple[int, ...]
  compiles_peers: bool
  times: int
  train: dict[str, object]
  train_steps: int


FULL = Plan(
  square=8192,
  product_tokens=16384,
  copy_floats=2**28,
  check=("base", 4, 512),
  steps=(
    ("base", 64, 512), ("base", 256, 128), ("large", 32, 512), ("xlarge", 16, 512), ("xxlarge", 8, 512),
    ("large", 128, 128), ("xlarge", 64, 128), ("xxlarge", 32, 128),
  ),
  rows=(32, 128, 256),
  levers=tuple(LEVERS),
  forward=((128, 512), (512, 32)),
  texts=(32, 512),
  compiles_peers=True,
  times=10,
  train={"batch_size": 64, "data.seq_length": 512, "model.dtype": "bfloat16"},
  train_steps=60,
)  # fmt: skip
TOY = Plan(
  square=128,
  product_tokens=64,
  copy_floats=2**16,
  check=("toy", 2, 128),
  steps=(("toy", 4, 128),),
  rows=(),
  levers=("remat=full",),
  forward=((4, 64),),
  texts=(32,),
  compiles_peers=False,
  times=2,
  train={
    "batch_size": 8, "data.seq_length": 32, "model.num_hidden_layers": 2, "model.hidden_size": 32,
    "model.num_attention_heads": 4, "model.intermediate_size": 64, "model.embedding_size": 16,
  },
  train_steps=6,
)  # fmt: skip


def model_of(size: str, **fields: object) -> AlbertConfig:
  """Returns the model of a size, in bfloat16 and without dropout; `fields` replace others."""
  cfg = TOY_MODEL if size == "toy" else VARIANTS[size]
  fields = {"dtype": "bfloat16", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "classifier_dropout_prob": 0.0} | fields  # fmt: skip
  return dataclasses.replace(cfg, **fields)


def masked_slots(length: int) -> int:
  """Returns the masked positions of a row: 15 % of its tokens."""
  return round(0.15 * length)


def platform() -> str:
  """Returns the platform of the first device: cpu, gpu or tpu."""
  name = jax.devices()[0].platform
  return "gpu" if name in nvidia.PLATFORMS else name
