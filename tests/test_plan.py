"""The plan's arithmetic, and, where libtpu is installed, real compilations for TPUs that are not there."""

import importlib.util
import pathlib

import pytest

from albert_jax import VARIANTS, cli
from albert_jax.errors import UserError
from albert_jax.plan import advice, describe, flops_per_step, plan

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "pretrain.py"
needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu: the extra [plan]")


@pytest.mark.parametrize(("size", "tera"), [("base", 0.291), ("large", 1.006), ("xlarge", 3.867), ("xxlarge", 7.579)])
def test_operations_of_a_step_are_those_of_the_formula(size, tera):
  assert flops_per_step(VARIANTS[size], 1, 512, 20) / 1e12 == pytest.approx(tera, abs=6e-4)


def config(size, **values):
  found = cli.load_config(f"{CONFIG}:{size}")
  found.update_from_flattened_dict({"model.dtype": "bfloat16", "data.max_predictions": 20, **values})
  return found


def test_an_unknown_machine_is_an_error():
  for topology in ("h100:8", "v5e", "v5e:huge"):
    with pytest.raises(UserError, match="use KIND:SHAPE"):
      plan(config("base"), topology)


def test_what_does_not_fit_comes_with_advice():
  numbers = {
    "topology": "v5e:2x4", "devices": 8, "batch_size": 512, "rows_per_device": 64, "accumulate": 1, "remat": "dots",
    "dtype": "float32", "memory_gib": 16, "fits": False, "needed_gib": 21.5,
  }  # fmt: skip
  text = describe(numbers, None)
  assert "NO, 21.50 of 16 GiB" in text
  assert "--config.accumulate=2" in text
  assert advice({**numbers, "fits": True}) == []


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
  ("size", "topology", "rows", "gib"), [("base", "v5e:2x4", 32, 5.5), ("xxlarge", "v6e:2x4", 8, 9.0)]
)
def test_the_step_fits_and_sends_its_gradients_once(size, topology, rows, gib):
  numbers = plan(config(size, batch_size=8 * rows), topology)
  assert numbers["fits"]
  assert numbers["temp_gib"] <= gib
  # Each gradient once, in float32. The compiler sends no more than about 128 MB at a time.
  assert numbers["all_reduce_bytes"] == pytest.approx(4 * numbers["parameters"], abs=1000)
  assert numbers["all_reduce_count"] <= 1 + numbers["all_reduce_bytes"] // 128e6


@needs_libtpu
@pytest.mark.slow
def test_what_is_too_large_is_said_and_not_raised():
  numbers = plan(config("base", batch_size=8 * 512), "v5e:2x4")
  assert not numbers["fits"]
  assert numbers["needed_gib"] > 16
