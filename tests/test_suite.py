"""The suite: what is run in which order and from what, what its table says, and that it goes on when stopped."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import made_up
import pytest

import albert_jax
from albert_jax import suites
from albert_jax.__main__ import main
from albert_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return made_up.checkpoint(tmp_path_factory.mktemp("checkpoint"))


class Runs:
  """A stand-in for the runs: notes what each would begin with, and gives numbers by seed."""

  def __init__(self):
    self.begun, self.fail = [], set()

  def __call__(self, name, seed, flags, workdir):
    flags = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)
    self.begun.append((name, seed, flags))
    if (name, seed) in self.fail:
      return "ended with 1: no longer a number"
    (workdir / "export").mkdir(parents=True, exist_ok=True)
    accuracy = [0.5, 0.9, 0.7][seed % 3]
    return {"accuracy": accuracy, "accuracy_mismatched": accuracy, "f1": accuracy, "loss": 1.0}


@pytest.fixture
def runs(monkeypatch):
  runs = Runs()
  monkeypatch.setattr(suites, "_run", runs)
  return runs


def test_mnli_comes_first_and_others_begin_with_its_best_run(runs, checkpoint, tmp_path):
  summary = suites.suite(["rte", "sst-2", "mnli"], checkpoint, tmp_path / "out", seeds=3)
  assert [name for name, _, _ in runs.begun] == ["mnli"] * 3 + ["rte"] * 3 + ["sst-2"] * 3
  starts = {name: flags["init_from"] for name, _, flags in runs.begun}
  assert starts == {"mnli": str(checkpoint), "rte": str(tmp_path / "out/mnli/seed-1"), "sst-2": str(checkpoint)}
  assert [flags["seed"] for _, _, flags in runs.begun] == ["0", "1", "2"] * 3
  assert [(row["task"], row["median"], row["best"]) for row in summary["rows"]][-2:] == [
    ("rte", pytest.approx(70), pytest.approx(90)), ("sst-2", pytest.approx(70), pytest.approx(90)),
  ]  # fmt: skip
  assert json.loads((tmp_path / "out/suite.json").read_text())["rows"][0]["values"] == {"0": 50.0, "1": 90.0, "2": 70.0}


def test_without_mnli_everything_begins_with_the_checkpoint_or_with_a_run_that_is_given(runs, checkpoint, tmp_path):
  suites.suite(["rte"], checkpoint, tmp_path / "out", seeds=1)
  suites.suite(["rte", "cola"], checkpoint, tmp_path / "other", seeds=1, mnli="/runs/mnli")
  suites.suite(["rte"], checkpoint, tmp_path / "third", seeds=1, mnli="gs://runs/mnli")
  assert [flags["init_from"] for _, _, flags in runs.begun] == [
    str(checkpoint), "/runs/mnli", str(checkpoint), "gs://runs/mnli",
  ]  # fmt: skip


def test_a_failed_run_is_said_and_costs_no_other(runs, checkpoint, tmp_path, capsys):
  runs.fail = {("mnli", 0), ("mnli", 1), ("sst-2", 1)}
  args = [f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}", "--seeds=2"]
  assert main(["suite", "--tasks=mnli,rte,sst-2", *args]) == 1
  out = capsys.readouterr().out
  assert "| sst-2 | accuracy | 50.00 | 50.00 | 1 |" in out
  assert "Failed: rte, seed 1: no run of MNLI to start from" in out
  assert "Failed: sst-2, seed 1: ended with 1: no longer a number" in out


def test_the_table_says_what_was_published_and_where(tmp_path):
  rows = suites.rows(
    {"sst-2": {0: {"accuracy": 0.929}, 1: {"accuracy": 0.939}}, "wnli": {0: {"accuracy": 0.56}}}, "base", "v2"
  )
  assert rows[0]["difference"] == pytest.approx(0.5)
  assert (rows[1]["published"], rows[1]["difference"]) == (None, None)
  text = suites.table({"checkpoint": "X", "size": "base", "rows": rows, "failed": []})
  assert "| sst-2 | accuracy | 93.40 | 93.90 | 2 | 92.9 [1] | +0.50 |" in text
  assert "| wnli | accuracy | 56.00 | 56.00 | 1 |  |  |" in text
  assert "[1] google-research/albert, README, base v2" in text
  # v2 has no published CoLA: the number of v1 is shown, and said to be that.
  [row] = suites.rows({"cola": {0: {"mcc": 0.7}}}, "xxlarge", "v2")
  assert (row["published"], row["source"]) == (71.4, "google-research/albert, README, xxlarge v1")


def test_published_numbers_are_of_tasks_and_metrics_that_there_are():
  for size, version, source, numbers in suites.PUBLISHED:
    assert source
    assert size in {name.removesuffix("_v1") for name in albert_jax.VARIANTS}
    assert all(metric in suites.TASKS[task].metrics and 30 < value < 100 for (task, metric), value in numbers.items())
    assert version in ("v1", "v2", "")
  # The paper's average of five tasks, F1 and exact match counting half each, is printed beside them: 82.3 for base v2.
  base = suites.PUBLISHED[0][3]
  squad = [(base[task, f1] + base[task, exact]) / 2 for task, f1, exact in
           (("squad1.1", "f1", "exact"), ("squad2.0", "best_f1", "best_exact"))]  # fmt: skip
  five = [*squad, base["mnli", "accuracy"], base["sst-2", "accuracy"], base["race", "accuracy"]]
  assert sum(five) / 5 == pytest.approx(82.3, abs=0.06)


def test_every_task_has_a_config_and_its_metrics_are_the_configs(checkpoint):
  from albert_jax.commands.common import load_config

  for name, row in suites.TASKS.items():
    config = load_config(str(suites.CONFIGS / row.config))
    assert config.best in row.metrics, name


@pytest.mark.parametrize("size", ["base", "large", "xlarge", "xxlarge", "bert_base"])
def test_sizes_are_known_by_their_shape(size):
  assert suites.size_of(albert_jax.VARIANTS[size]) == size


def test_data(tmp_path, checkpoint, runs):
  (tmp_path / "data/glue/RTE").mkdir(parents=True)
  (tmp_path / "data/squad_v2").mkdir()
  suites.suite(["rte", "squad2.0"], checkpoint, tmp_path / "a", seeds=1, data=[str(tmp_path / "data")])
  suites.suite(["rte"], checkpoint, tmp_path / "b", seeds=1, data=[f"rte={tmp_path}", str(tmp_path)])
  assert [flags["data.dataset"] for _, _, flags in runs.begun] == [
    str(tmp_path / "data/glue/RTE"), str(tmp_path / "data/squad_v2"), str(tmp_path),
  ]  # fmt: skip
  with pytest.raises(UserError, match=r"race is in TFDS only in part; give the folder"):
    suites.suite(["race"], checkpoint, tmp_path / "c")
  suites.suite(["squad2.0", "cola"], checkpoint, tmp_path / "d", seeds=1)
  assert [flags.get("data.dataset") for _, _, flags in runs.begun[-2:]] == ["squad/v2.0", None]
  with pytest.raises(UserError, match=r"no data of race; expected .*data/race or .*data/RACE, or name its folder"):
    suites.suite(["race"], checkpoint, tmp_path / "c", data=[str(tmp_path / "data")])


def test_mistakes(checkpoint, tmp_path, capsys):
  good = {"tasks": "rte", "checkpoint": str(checkpoint), "out": str(tmp_path / "out")}
  for change, message in (
    ({"tasks": "rte,sst"}, "no task sst; use glue, squad, race, mnli"), ({"seeds": "0"}, "--seeds=0 must be 1 or more"),
    ({"out": "gs://b/out"}, "--out=gs://b/out must be a folder of this machine"),
    ({"tasks": "rte, sst"}, "no task sst; use"), ({"data": "RTE=/"}, "--data=RTE=…: no task 'RTE'; expected one of mn"),
    ({"data": "rte=/nowhere"}, "--data=rte=/nowhere: there is no such folder"),
    ({"tasks": "cola", "mnli": "runs/mnli"}, "--mnli=runs/mnli is the start of rte, mrpc, sts-b, and --tasks=cola has"),
    ({"config.seed": "3"}, "is set by the suite"), ({"checkpoint": str(tmp_path)}, "holds no checkpoint"),
  ):  # fmt: skip
    assert main(["suite", *(f"--{name}={value}" for name, value in (good | change).items())]) == 2
    assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def write_glue(folder):
  """A little MNLI and RTE, of made-up words."""
  rng = random.Random(0)
  words = ["badu", "mola", "gine", "toro", "kiki"]
  for name, files, labels, column in (
    ("MNLI", ("train", "dev_matched", "dev_mismatched"), ("entailment", "neutral", "contradiction"), "gold_label"),
    ("RTE", ("train", "dev"), ("entailment", "not_entailment"), "label"),
  ):
    (folder / name).mkdir(parents=True)
    for file in files:
      lines = [f"index\tsentence1\tsentence2\t{column}"]
      lines += [
        f"{i}\t{' '.join(rng.choices(words, k=4))}\t{rng.choice(words)}\t{labels[i % len(labels)]}" for i in range(24)
      ]
      (folder / name / f"{file}.tsv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_two_tasks_stopped_and_gone_on_with(checkpoint, tmp_path, capsys):
  write_glue(tmp_path / "data/glue")
  out = tmp_path / "out"
  arguments = [
    "suite", "--tasks=rte,mnli", f"--checkpoint={checkpoint}",
    "--seeds=1", f"--data={tmp_path / 'data'}", f"--out={out}", f"--json={tmp_path / 'numbers.json'}",
    "--config.steps=4", "--config.eval_every=2", "--config.checkpoint_every=1", "--config.batch_size=8",
    "--config.data.seq_length=32", "--config.optimizer.warmup_steps=1", "--config.log_every=1",
  ]  # fmt: skip
  environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}

  def start():
    command = [sys.executable, "-W", "error", "-m", "albert_jax", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

  first = start()
  while first.poll() is None and not (out / "rte/seed-0/config.json").is_file():
    time.sleep(0.05)
  first.send_signal(signal.SIGTERM)
  _, err = first.communicate(timeout=300)
  assert first.returncode == 143, err
  assert "mnli, seed 0: accuracy, matched" in err
  ended = {path.parent: path.stat().st_mtime_ns for path in out.glob("*/*/finished.json")}
  assert out / "mnli/seed-0" in ended
  assert not (out / "rte/seed-0/finished.json").exists()

  second = start()
  table, err = second.communicate(timeout=600)
  assert second.returncode == 0, err
  assert "mnli, seed 0" not in err, "it had ended, and is not repeated"
  assert all((path / "finished.json").stat().st_mtime_ns == when for path, when in ended.items())
  numbers = json.loads((tmp_path / "numbers.json").read_text())
  assert numbers == json.loads((out / "suite.json").read_text())
  assert table == (out / "suite.md").read_text()
  assert [(row["task"], len(row["values"])) for row in numbers["rows"]] == [("mnli", 1), ("mnli", 1), ("rte", 1)]
  for name in ("mnli", "rte"):
    run = out / name / "seed-0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["accuracy"] for line in lines if line["split"] == "eval")
    assert numbers["rows"][0 if name == "mnli" else 2]["values"]["0"] == pytest.approx(100 * best)
    assert albert_jax.pipeline(None, run).task == "classify"
    assert not (run / "checkpoints").exists()
  begun = (out / "rte/seed-0/train.log").read_text()
  assert f"From {out / 'mnli'}" in begun

  # More seeds go on too; other values do not mix with what is there.
  assert main([*arguments, "--config.steps=5"]) == 2
  assert "holds a run with other values (--config.steps=" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"flags": [], "numbers": 3}', "[" * 100_000])
def test_a_damaged_note_of_a_finished_run_is_said_and_passed_over(tmp_path, caplog, text):
  for seed, note in ((0, text), (1, '{"flags": [], "numbers": {"f1": 0.5}}')):
    (tmp_path / f"seed-{seed}").mkdir()
    (tmp_path / f"seed-{seed}" / "finished.json").write_text(note)
  assert suites._finished(tmp_path) == {1: {"f1": 0.5}}
  assert "seed-0/finished.json" in caplog.text
