"""Operations of a training step and the peak of a chip, for the model FLOPs utilisation (MFU)."""

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chip:
  """Datasheet values of one chip, from the vendor's system-architecture pages."""

  teraflops: float  # dense bfloat16
  gib: float  # memory
  link_gb_per_s: float  # to its neighbours, one way


CHIPS = {
  "v4": Chip(275, 32, 150),
  "v5e": Chip(197, 16, 200),
  "v5p": Chip(459, 95, 300),
  "v6e": Chip(918, 32, 400),
  "a100": Chip(312, 80, 300),
  "h100": Chip(989, 80, 450),
  "h200": Chip(989, 139, 450),
}
# What JAX calls a device, and its dense bfloat16 teraflops. A TPU from v4 on is one device to JAX.
PEAKS = (
  (r"^TPU v4$", CHIPS["v4"].teraflops),
  (r"^TPU v5( lite|e)", CHIPS["v5e"].teraflops),
  (r"^TPU v5p?$", CHIPS["v5p"].teraflops),
  (r"^TPU v6( lite|e)", CHIPS["v6e"].teraflops),
  (r"A100", CHIPS["a100"].teraflops),
  (r"H100 PCIe", 756),
  (r"H100|H200|GH200", CHIPS["h100"].teraflops),
)


def peak(device_kind: str, devices: int) -> float | None:
  """Returns the peak of devices in dense bfloat16, operations a second; None for a kind that is not in the table."""
  teraflops = next((value for pattern, value in PEAKS if re.search(pattern, device_kind)), None)
  return None if teraflops is None else teraflops * 1e12 * devices


def flops_per_step(cfg: Any, batch_size: int, length: int, slots: int) -> float:
  """Matmul operations of a training step, a multiply-add being two; recomputation is not counted.

  That is 3 × (2·S·E·H + N·(24·S·H² + 4·S²·H) + P·(2·H·E + 2·E·V) + 2·H²) a sequence, with F = 4 H; here for any F.
  With arch=modern the feed-forward part has three matrices, and local layers attend to their window alone.

  Args:
    cfg: an AlbertConfig.
    batch_size: rows.
    length: tokens of a row.
    slots: positions of a row for which logits of the vocabulary are computed.
  """
  S, E, H, F, V = length, cfg.embedding_size, cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size
  projection = 2 * S * E * H if E != H else 0
  wide = 3 if cfg.arch == "modern" else 2  # matrices of the feed-forward part
  windows = [cfg.window_of(n) for n in range(cfg.num_hidden_layers)]
  seen = sum(S if window is None else min(S, 2 * window + 1) for window in windows) * cfg.inner_group_num
  layers = cfg.num_hidden_layers * cfg.inner_group_num
  matrices = 8 * S * H * H + 2 * wide * S * H * F + 2 * S * cfg.layer_rank * ((8 + wide) * H + wide * F)
  layer_sum = layers * matrices + 4 * S * seen * H
  return 3.0 * batch_size * (projection + layer_sum + slots * (2 * H * E + 2 * E * V) + 2 * H * H)


def work(cfg: Any, batch: dict[str, Any], row_flops: float = 0.0, teacher: Any = None) -> tuple[int, float]:
  """Returns (tokens, operations) of a training step on a batch of arrays, padding included.

  Args:
    cfg: an AlbertConfig.
    batch: {name: array}.
    row_flops: operations of a task's own heads for a row.
    teacher: the AlbertConfig of a model that computes on the same batch without gradients; None for none.
  """
  *_, length = batch["input_ids"].shape
  rows = batch["input_ids"].size // length
  slots = batch["mlm_positions"].shape[-1] if "mlm_positions" in batch else 0
  forward = flops_per_step(teacher, rows, length, slots) / 3 if teacher else 0.0
  return rows * length, flops_per_step(cfg, rows, length, slots) + rows * row_flops + forward
