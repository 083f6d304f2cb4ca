"""What a step computes and a chip could."""

import numpy as np
import pytest

from albert_jax import VARIANTS
from albert_jax.training import flops


@pytest.mark.parametrize(
  ("kind", "teraflops"),
  [
    ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
  ],
)  # fmt: skip
def test_known_devices_have_a_peak(kind, teraflops):
  assert flops.peak(kind, 4) == teraflops * 4e12


@pytest.mark.parametrize("kind", ["cpu", "TPU v2", "TPU v99", "NVIDIA GeForce"])
def test_unknown_devices_have_none(kind):
  assert flops.peak(kind, 4) is None


def test_work_is_counted_by_the_shapes_of_a_batch():
  ids, slots = np.zeros((8, 64)), np.zeros((8, 10))
  cfg = VARIANTS["base"]
  assert flops.work(cfg, {"input_ids": ids}) == (512, flops.flops_per_step(cfg, 8, 64, 0))
  assert flops.work(cfg, {"input_ids": ids, "mlm_positions": slots}) == (512, flops.flops_per_step(cfg, 8, 64, 10))
  assert flops.work(cfg, {"input_ids": ids.reshape(2, 4, 64)}) == (512, flops.flops_per_step(cfg, 8, 64, 0))
