"""The plan's arithmetic, and, where libtpu is installed, real compilations for TPUs that are not there."""

import importlib.util
import pathlib

import made_up
import pytest

from albert_jax import VARIANTS, convert, planning, run, tasks
from albert_jax.commands import common
from albert_jax.commands import plan as command
from albert_jax.errors import UserError
from albert_jax.planning import advice, cycles, describe, flops_per_step, largest_batch, machine, plan

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "pretrain.py"
needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu: the extra [plan]")


@pytest.mark.parametrize(("size", "tera"), [("base", 0.291), ("large", 1.006), ("xlarge", 3.867), ("xxlarge", 7.579)])
def test_operations_of_a_step_are_those_of_the_formula(size, tera):
  assert flops_per_step(VARIANTS[size], 1, 512, 20) / 1e12 == pytest.approx(tera, abs=6e-4)


def config(size, **values):
  result = common.load_config(f"{CONFIG}:{size}")
  result.update_from_flattened_dict({"model.dtype": "bfloat16", "data.max_predictions": 20, **values})
  return result


def test_an_unknown_machine_is_an_error():
  for topology in ("b200:8", "v5e", "v5e:huge", "v5e:8", "h100:", "h100:2x2x2", "h200:0", "v5e:0x4"):
    with pytest.raises(UserError, match="use KIND:SHAPE"):
      plan(config("base"), topology)


@pytest.mark.parametrize("flag", ["--mfu=0", "--mfu=nan", "--price_per_chip_hour=-1", "--json=/proc/none/plan.json"])
def test_a_wrong_flag_is_found_before_the_compiler_starts(flag, monkeypatch):
  monkeypatch.setattr(planning, "plan", lambda *arguments: pytest.fail("compiled"))
  with pytest.raises((UserError, OSError), match=flag.split("=")[0] if "json" not in flag else "/proc/none"):
    command.main(["--config=pretrain:tiny", "--topology=v5e:2x2", flag])


def test_the_shape_of_the_checkpoint_is_planned(monkeypatch):
  monkeypatch.setattr(convert, "load", lambda path: (VARIANTS["tiny"], {}))
  wide = config("base", **{"init_from": "checkpoint", "init_structure": True})
  assert run.sketch(wide).model.hidden_size == VARIANTS["tiny"].hidden_size
  assert wide.model.hidden_size == VARIANTS["base"].hidden_size


def test_what_does_not_fit_comes_with_advice():
  numbers = {
    "topology": "v5e:2x4", "devices": 8, "batch_size": 512, "rows_per_device": 64, "accumulate": 1, "remat": "dots",
    "dtype": "float32", "memory_gib": 16, "fits": False, "needed_gib": 21.5,
  }  # fmt: skip
  text = describe(numbers, None)
  assert "NO, 21.50 of 16 GiB" in text
  assert "--config.accumulate=2" in text
  assert advice({**numbers, "fits": True}) == []


@pytest.mark.skipif(bool(importlib.util.find_spec("jax_cuda12_plugin")), reason="the CUDA plugin is here")
def test_gpus_need_the_cuda_plugin_and_the_error_says_so():
  with pytest.raises(UserError, match=r"albert-jax\[gpu\]"):
    plan(config("base"), "h200:8")


@pytest.mark.parametrize(("memory", "rows", "most"), [(16.0, 32, 72), (16.0, 128, 72), (2.9, 32, 9), (0.9, 8, 0)])
def test_the_largest_batch_is_found_and_each_claim_was_compiled(monkeypatch, memory, rows, most):
  """A stand-in for the compiler: a row needs 0.2 GiB, all else 1, and what does not fit may come without a number."""
  tried = []

  def compile_(config, topology, mfu=0.5):
    row_count = config.batch_size // 8
    tried.append(row_count)
    needed = 1 + 0.2 * row_count
    memory_numbers = {"needed_gib": needed} if needed < 2 * memory else {}
    return {"batch_size": 8 * row_count, "rows_per_device": row_count, "accumulate": 1, "memory_gib": memory,
            "fits": needed <= memory, **memory_numbers}  # fmt: skip

  monkeypatch.setattr(planning, "plan", compile_)
  start = config("base", batch_size=8 * rows)
  first = compile_(start, "")
  largest = largest_batch(start, "v5e:2x4", first)
  assert largest == {"largest_micro_batch": most, "largest_batch_size": 8 * most}
  assert most in (0, *tried)
  assert len(tried) <= 9


def test_advice_names_the_accumulation_that_was_compiled():
  numbers = {"fits": False, "rows_per_device": 512, "accumulate": 1, "dtype": "bfloat16", "remat": "dots",
             "largest_micro_batch": 72}  # fmt: skip
  assert "--config.accumulate=8: 64 rows at a time, the same result; 72 were compiled, and fit" in advice(numbers)[0]


def test_cycles_count_loops_as_often_as_they_turn():
  hlo = """HloModule step
%body.1 (p: f32[]) -> f32[] {
  %a = f32[] fusion(%p), backend_config={"window_config":{"estimated_cycles":"10"}}
}
%condition.1 (p: f32[]) -> pred[] {
  %c = s32[] constant(12)
}
ENTRY %main (p: f32[]) -> f32[] {
  %b = f32[] fusion(%p), backend_config={"window_config":{"estimated_cycles":"7"}}
  %w = f32[] while(%b), condition=%condition.1, body=%body.1
}
"""
  assert cycles(hlo) == 127


@needs_libtpu
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v5e:2x2", "v6e:2x2"])
def test_a_chip_is_one_device(topology):
  _, chips, devices = machine(topology)
  assert len(devices) == chips == 4


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
  ("size", "topology", "rows", "gib"), [("base", "v5e:2x4", 32, 5.0), ("xxlarge", "v6e:2x4", 8, 9.0)]
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


@pytest.mark.parametrize("packing", [1, 4])
def test_the_planned_batch_is_the_batch_that_training_makes(packing, tmp_path):
  dataset = made_up.dataset(tmp_path, made_up.documents(60))
  values = {"data.dataset": str(dataset), "data.packing": packing, "data.short_seq_rate": 0.0, "data.seq_length": 64,
            "batch_size": 4, "data.max_predictions": 0}  # fmt: skip
  plan_config = config("tiny", **values)
  batch = next(iter(tasks.make(plan_config).train_batches(0, 0, 1)))
  arrays = tasks.sketch(plan_config).arrays
  assert {name: (value.shape, value.dtype) for name, value in batch.items()} == arrays
  assert ("segment_ids" in arrays) == (packing > 1)


def test_a_plan_checks_the_config_first():
  with pytest.raises(UserError, match="cannot be planned without its data"):
    plan(common.load_config("classify:base"), "v5e:2x2")
  with pytest.raises(UserError, match=r"steps=0, epochs=0, .* expected one of them above 0"):
    planning._steps(config("base", steps=0))
  assert planning._steps(config("base", steps=0, tokens=4096 * 512 * 10.0)) == 10
