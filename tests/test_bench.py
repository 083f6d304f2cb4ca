"""`albert-jax bench` measures every stage at toy size, and one that fails or does not fit is a row."""

import json
import os
import signal
import time

import pytest

from albert_jax import bench
from albert_jax.__main__ import main
from albert_jax.bench import contestants, plan, rows


def by_stage(folder):
  stages = {}
  for row in rows.read(folder):
    stages.setdefault(row["stage"], []).append(row)
  return stages


@pytest.mark.slow
def test_every_stage_of_speed_runs_at_toy_size(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  only = "train step,peers,levers,compiler flags,inference,real run"
  assert main(["bench", f"--out={tmp_path}/out", "--minutes=30", f"--only={only}"]) == 0
  stages = by_stage(tmp_path / "out")
  assert list(stages) == list(bench.STAGES)
  for name in only.split(","):
    assert any(row.get("tokens_per_s", 0) > 0 for row in stages[name]), name
  assert 0 <= stages["real run"][0]["input_stall"] < 1
  assert stages["train step"][0]["of_measured"] > 0
  report = (tmp_path / "out" / "report.md").read_text()
  assert "- correctness, all rows: skipped: left out by --only" in report
  assert "| train step | toy, 4 x 128 |" in report


@pytest.mark.slow
def test_this_device_passes_every_check(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert main(["bench", f"--out={tmp_path}/out", "--minutes=30", "--only=correctness,kill and resume"]) == 0
  stages = by_stage(tmp_path / "out")
  checks = [*stages["correctness"], *stages["kill and resume"]]
  assert all(row["passed"] for row in checks if "skipped" not in row)
  assert {row["row"].split()[0] for row in checks if "skipped" in row} <= {"attention=cudnn,", "bfloat16"}
  assert stages["kill and resume"][0]["steps"] == 12


def test_a_row_that_fails_does_not_end_its_stage(tmp_path):
  measured = rows.Rows(tmp_path, "a stage", time.time() + 60)

  def fails(kind):
    raise kind("out of memory")

  measured.measure("one", fails, ValueError)
  measured.measure("two", fails, rows.Skip)
  measured.measure("three", lambda: {"tokens_per_s": 1234.0})
  measured.until = 0
  measured.measure("four", lambda: {"tokens_per_s": 1.0})
  measured.add("five", **rows.checked(0.5, 0.1))
  first, second, third, fourth, *_ = rows.read(tmp_path)
  assert "out of memory" in first["error"]
  assert second["skipped"] == "out of memory"
  assert third["tokens_per_s"] == 1234
  assert fourth["skipped"].startswith("no time left")
  assert bench.failures(rows.read(tmp_path)) == ["a stage, one", "a stage, five"]
  rows.write_report(tmp_path, "albert-jax bench")
  report = (tmp_path / "report.md").read_text()
  assert "| a stage | three | 1,234 |" in report
  assert "FAILED: 0.5, limit 0.1" in report
  assert "- a stage, four: skipped: no time left" in report


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
  (tmp_path / rows.RESULTS).write_text(json.dumps({"stage": "a", "row": "b"}) + '\n{"stage": "a", "ro')
  assert rows.read(tmp_path) == [{"stage": "a", "row": "b"}]


def test_a_stage_that_hangs_is_stopped(tmp_path, monkeypatch):
  monkeypatch.setattr(bench, "_command", lambda *_: ["sleep", "600"])
  begin = time.monotonic()
  bench._run_stage(tmp_path, "levers", time.time(), time.time() + 1, "toy")
  assert time.monotonic() - begin < 300
  assert rows.read(tmp_path)[0]["error"] == "stopped: the time of this stage was over"


def test_mistakes_are_one_line(tmp_path, capsys):
  assert main(["bench", f"--out={tmp_path}", "--only=leevers"]) == 2
  assert "did you mean levers?" in capsys.readouterr().err
  assert main(["bench", f"--out={tmp_path}", "--minutes=0"]) == 2
  assert "--minutes=0" in capsys.readouterr().err
  (tmp_path / "file").write_text("")
  for out in (tmp_path / "file", "gs://bucket/out"):
    assert main(["bench", f"--out={out}"]) == 2
    assert "a folder on this machine" in capsys.readouterr().err
  (tmp_path / rows.RESULTS).write_text("")
  assert main(["bench", f"--out={tmp_path}"]) == 2
  assert "give a new folder" in capsys.readouterr().err


def test_packed_rows_hold_examples_of_one_length():
  batch = contestants.make_batch(plan.TOY_MODEL, 2, 8, 2, packing=4)
  assert batch["segment_ids"][1].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
  assert batch["position_ids"][0].tolist() == [0, 1] * 4
  assert batch["cls_positions"][0].tolist() == [0, 2, 4, 6]
  assert batch["sop_label"].shape == (2, 4)


def test_the_table_is_written_after_ctrl_c_too(tmp_path, monkeypatch):
  def interrupted(folder, name, *_):
    rows.Rows(folder, name, 0).add("machine", device="a device", platform="cpu")
    raise KeyboardInterrupt

  monkeypatch.setattr(bench, "_run_stage", interrupted)
  assert main(["bench", f"--out={tmp_path}/out"]) == 130
  assert (tmp_path / "out" / rows.REPORT).read_text().startswith("# a device")


def test_a_bench_told_to_stop_keeps_its_rows_prints_the_table_and_leaves_no_process(tmp_path, monkeypatch, capsys):
  stages = []

  def command(folder, name, *_):
    rows.Rows(folder, name, 0).add("machine", device="a device", platform="cpu")
    stages.append(name)
    # The stage's process tells the bench to stop, then never ends.
    return ["sh", "-c", f"echo $$ > {folder}/pid; sleep 0.5; kill -TERM {os.getpid()}; sleep 600"]

  monkeypatch.setattr(bench, "_command", command)
  assert main(["bench", f"--out={tmp_path}/out"]) == 128 + signal.SIGTERM
  assert stages == ["machine"]
  assert "| machine | machine |" in capsys.readouterr().out
  with pytest.raises(ProcessLookupError):
    os.kill(int((tmp_path / "out/pid").read_text()), 0)
