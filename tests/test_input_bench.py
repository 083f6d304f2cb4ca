"""The benchmark of the input runs, and its numbers have plain names."""

import importlib.util
import json
import pathlib

import made_up

PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "input.py"


def test_it_measures_batches_and_steps(tmp_path):
  spec = importlib.util.spec_from_file_location("input_bench", PATH)
  bench = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(bench)
  folder = made_up.dataset(tmp_path, made_up.documents(40), segment_tokens=32)
  args = [f"--dataset={folder}", "--seq_length=32", "--batch_size=8", "--seconds=0.1", f"--json={tmp_path / 'n.json'}"]
  args += ["--step_batch_size=4", "--step_seq_length=32", "--steps=2", "--rounds=2", "--workers=0"]
  assert bench.main(args) == 0
  numbers = json.loads((tmp_path / "n.json").read_text())
  assert numbers["examples_per_second_per_core"] > 0 and numbers["timed_steps"] == 4
  assert numbers["step_ms_real"] > 0 and numbers["step_ms_synthetic"] > 0
  assert 0 < numbers["input_wait_ms"] < numbers["step_ms_real"] and numbers["input_loss"] > -1
