"""The promises of a run: it resumes bit for bit, on any number of devices, and its result opens elsewhere."""

import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import time

import numpy as np
import pytest
from conftest import end, flags, run, start

import albert_jax
from albert_jax import copies, files, paths
from albert_jax.__main__ import main
from albert_jax.training.writer import read

pytestmark = pytest.mark.slow
TIMES = ("tokens_per_s", "input_stall", "mfu", "memory_gib")


def numbers(workdir):
  """Returns {(step, split): metrics} of a run, without how long it took."""
  lines = read(workdir)
  by_step = {
    (line["step"], line["split"]): {k: v for k, v in line.items() if k not in ("step", "split", *TIMES)}
    for line in lines
  }
  assert len(by_step) == len(lines), "a step was written twice"
  return by_step


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
  """Returns a run that nobody disturbed: (workdir, its stdout)."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  code, out, err = run("train", *flags(dataset, workdir))
  assert code == 0, err
  return workdir, out


def test_a_run_leaves_everything_it_promises(whole, dataset):
  workdir, out = whole
  lines = numbers(workdir)
  assert set(lines) == {(step, "train") for step in range(1, 13)} | {(6, "eval"), (12, "eval")}
  expected = {"loss", "mlm_loss", "mlm_accuracy", "sop_loss", "sop_accuracy", "grad_norm", "learning_rate"}
  assert expected <= set(lines[12, "train"])
  assert {"curves.png", "config.json", "metrics.jsonl", "checkpoints", "export"} <= {p.name for p in workdir.iterdir()}
  assert list(workdir.glob("events.out.tfevents.*"))
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["10", "12", "5"]
  assert json.loads((workdir / "config.json").read_text())["data"]["dataset"] == str(dataset)
  assert "mlm_loss" in out
  assert f"{lines[12, 'eval']['mlm_loss']:.4f}" in out

  cfg, params = albert_jax.load(workdir / "export")
  assert cfg.vocab_size == 1000
  assert cfg.hidden_dropout_prob == 0.1
  assert set(params) == {"embeddings", "projection", "attention", "ffn", "pooler", "mlm", "sop"}
  card = (workdir / "export" / "README.md").read_text("utf-8")
  assert "# run\n" in card and f"| mlm_loss | {lines[12, 'eval']['mlm_loss']:.4f} |" in card


def test_run_again_a_finished_run_says_so(whole, dataset, quick_runs, capsys):
  workdir, out = whole
  before = numbers(workdir)
  (workdir / "export" / "notes.txt").write_text("of the user")
  assert main(["train", *flags(dataset, workdir)]) == 0
  assert capsys.readouterr().out == out
  assert (workdir / "export" / "notes.txt").read_text() == "of the user"
  assert numbers(workdir) == before


def test_killed_at_any_moment_a_run_goes_on_bit_for_bit(whole, dataset, tmp_path):
  expected = numbers(whole[0])
  workdir, kills = tmp_path / "run", 0
  while kills < 2:
    process = start("train", *flags(dataset, workdir))
    at = random.randint(1, 11)  # A kill that comes too late, or before the first checkpoint, is a case too.
    while process.poll() is None and max([line["step"] for line in read_while_written(workdir)], default=0) < at:
      time.sleep(0.01)
    process.kill()
    process.communicate()
    kills += 1
  code, _, err = run("train", *flags(dataset, workdir))
  assert code == 0, err
  assert numbers(workdir) == expected
  same_weights(workdir, whole[0])


def test_asked_to_stop_a_run_saves_and_goes_on(whole, dataset, tmp_path):
  workdir = tmp_path / "run"
  process = start("train", *flags(dataset, workdir))
  while process.poll() is None and not read_while_written(workdir):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=600)
  assert process.returncode == 0
  assert "Stopped at step" in err or "SIGTERM" not in err  # It may have been done already.
  assert "Goodput: " in err
  code, _, err = run("train", *flags(dataset, workdir), "--config.data.workers=2")  # The same batches.
  assert code == 0, err
  assert "leaked" not in err  # shared memory
  assert "in 2 starts." in err or "complete at step" in err
  assert numbers(workdir) == numbers(whole[0])


def test_on_four_devices_it_is_the_same_run(whole, dataset, tmp_path):
  """Going on from a checkpoint that one device wrote: the first five steps are the same bits, the rest is close."""
  workdir = tmp_path / "run"
  shutil.copytree(whole[0], workdir)
  shutil.rmtree(workdir / "checkpoints" / "12")
  shutil.rmtree(workdir / "checkpoints" / "10")
  code, _, err = run("train", *flags(dataset, workdir), devices=4)
  assert code == 0, err
  assert "4 cpu, resuming from step 5" in err
  expected, actual = numbers(whole[0]), numbers(workdir)
  assert expected.keys() == actual.keys()
  for step, split in expected:
    tolerance = 0 if step <= 5 else 1e-5
    assert actual[step, split] == pytest.approx(expected[step, split], rel=tolerance, abs=0), (step, split)


def test_two_processes_of_four_devices_are_one_run(whole, dataset, tmp_path):
  workdir = tmp_path / "run"
  for code, _, err in end(two(dataset, workdir, devices=4)):
    assert code == 0, err
  expected, actual = numbers(whole[0]), numbers(workdir)
  assert expected.keys() == actual.keys()
  for key in expected:
    assert actual[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-6), key


def two(dataset, workdir, devices=1, program=("-m", "albert_jax"), **overrides):
  """Starts two processes of one run on a dataset, or on a list of one dataset each; returns the processes."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    several = [f"--coordinator=127.0.0.1:{s.getsockname()[1]}", "--processes=2"]
  datasets = dataset if isinstance(dataset, list) else [dataset] * 2
  return [
    start("train", *flags(path, workdir, **overrides), *several, f"--process={i}", devices=devices, program=program)
    for i, path in enumerate(datasets)
  ]


def test_hosts_that_would_compute_the_same_rows_are_an_error_on_each(dataset, tmp_path):
  for code, _, err in end(two(dataset, tmp_path / "run", mesh__tensor=2), seconds=300):
    assert code == 2, err
    assert "mesh.tensor=2 would put the same rows on several hosts" in err
    assert "Traceback" not in err


IMPATIENT = """
import sys
from albert_jax import __main__
from albert_jax.training import watch

watch.LEAVE_SECONDS = 2.0
sys.exit(__main__.main())
"""


def test_a_host_with_an_error_of_its_own_does_not_wait_for_long(dataset, tmp_path):
  other, broken = two([dataset, tmp_path / "nowhere"], tmp_path / "run", program=("-c", IMPATIENT))
  try:
    ((code, _, err),) = end([broken], seconds=300)
  finally:
    other.kill()  # It would see within half a minute that nobody answers.
    other.communicate()
  assert code == 2, err
  assert "nowhere" in err and "(on this host, not on all)" in err
  assert "Traceback" not in err


def test_a_host_that_dies_takes_the_other_along_and_both_go_on(dataset, tmp_path):
  workdir = tmp_path / "run"
  processes = two(dataset, workdir, steps=100_000, eval_every=100_000)
  while not list(workdir.glob("checkpoints/*/checksums.json")) and all(p.poll() is None for p in processes):
    time.sleep(0.01)
  processes[1].kill()
  # A lost connection is seen at once, silence within a minute.
  (code, _, err), _ = end(processes, seconds=300)
  assert code > 0
  assert "host 0 of 2 ends" in err
  assert "Start all of them again" in err
  assert "Traceback" not in err
  steps = max(int(folder.parent.name) for folder in workdir.glob("checkpoints/*/checksums.json")) + 5
  for code, _, err in end(two(dataset, workdir, steps=steps, eval_every=100_000)):
    assert code == 0, err
  assert set(numbers(workdir)) == {(step, "train") for step in range(1, steps + 1)} | {(steps, "eval")}


BAD_BATCH = """
import sys
from albert_jax.data.pretraining import batching

def train_batches(*args, start_step, **kwargs):
  for number, batch in enumerate(whole(*args, start_step=start_step, **kwargs), start_step):
    yield {**batch, "mlm_weights": batch["mlm_weights"] * (float("nan") if number == 7 else 1)}

whole, batching.train_batches = batching.train_batches, train_batches
from albert_jax.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_two_hosts_go_back_alike(whole, dataset, tmp_path):
  for code, _, err in end(two(dataset, tmp_path / "run", program=("-c", BAD_BATCH))):
    assert code == 0, err
  expected, actual = numbers(whole[0]), numbers(tmp_path / "run")
  assert actual.keys() == {*expected, (5, "guard")}
  for step in range(1, 8):  # Batch 7 would have been that of step 8.
    assert actual[step, "train"] == pytest.approx(expected[step, "train"], rel=1e-5, abs=1e-6), step
  assert actual[8, "train"] != pytest.approx(expected[8, "train"], rel=1e-5)
  (alarm,) = json.loads((tmp_path / "run" / "guard.json").read_text())
  assert (alarm["step"], alarm["restored"], alarm["skipped"]) == (8, 5, [7])


def test_killed_in_the_middle_of_a_save_it_goes_on_from_the_one_before(whole, dataset, tmp_path):
  workdir = tmp_path / "run"
  process = start("train", *flags(dataset, workdir, checkpoint_every=1))
  complete = re.compile(r"\d+")
  while process.poll() is None:
    names = [path.name for path in workdir.glob("checkpoints/*")]
    if sum(map(bool, map(complete.fullmatch, names))) >= 2 and any("tmp" in name for name in names):
      break
  process.kill()
  process.communicate()
  code, _, err = run("train", *flags(dataset, workdir))
  assert code == 0, err
  assert numbers(workdir) == numbers(whole[0])
  same_weights(workdir, whole[0])
  assert not list(workdir.glob("checkpoints/*tmp*"))


def test_killed_and_without_its_disk_a_run_in_a_bucket_goes_on_bit_for_bit(whole, dataset, bucket):
  bucket.put(dataset, "data")
  command = ["train", *flags("gs://bucket/data", "gs://bucket/run")]
  bucket.refuse = r"POST .*checkpoints/10/.*manifest", 503  # So that it cannot finish before it is killed.
  process = start(*command)
  while process.poll() is None and not any("checkpoints/10/" in name for name in bucket.names()):
    time.sleep(0.01)
  process.kill()
  process.communicate()
  bucket.refuse = None
  shutil.rmtree(os.environ["XDG_CACHE_HOME"])
  ((code, out, err),) = end([start(*command)])
  assert code == 0, err
  assert "resuming from step 5 to 12, in gs://bucket/run" in err
  assert out == whole[1].replace(str(whole[0]), "gs://bucket/run")

  assert {name.split("/")[1].split(".tfevents")[0] for name in bucket.names("run/")} == {
    "baselines.json", "checkpoints", "config.json", "curves.png", "events.out", "export", "metrics.jsonl",
    "owner.json", "run.json",
  }  # fmt: skip
  assert numbers(copies.local("gs://bucket/run")) == numbers(whole[0])
  same_weights("gs://bucket/run", whole[0])
  mine, expected = json.loads(files.read("gs://bucket/run/run.json")), json.loads((whole[0] / "run.json").read_text())
  assert mine["dataset"] == {"gs://bucket/data": expected["dataset"][str(dataset)]}
  assert mine["resumed"] and mine["vocabulary"] == expected["vocabulary"]


def test_where_files_cannot_grow_it_is_one_line_and_it_goes_on_when_they_can(whole, dataset, tmp_path):
  """As on a full disk, which needs a disk to try."""
  workdir = tmp_path / "run"
  command = flags(dataset, workdir)
  process = start("train", *command)
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (30_000, 30_000))  # Long before it writes so much.
  ((code, _, err),) = end([process])
  assert code == 1
  assert "could not be written" in err.splitlines()[-1]
  assert "Traceback" not in err
  code, _, err = run("train", *command)
  assert code == 0, err
  assert numbers(workdir) == numbers(whole[0])


def read_while_written(workdir):
  try:
    return read(workdir)
  except ValueError:  # The last line is only half there yet.
    return []


def same_weights(a, b):
  a, b = (paths.flatten(albert_jax.load(x)[1]) for x in (a, b))
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_another_config_in_the_same_folder_is_refused(whole, dataset, capsys):
  assert main(["train", *flags(dataset, whole[0], optimizer__learning_rate=0.5)]) == 2
  assert "optimizer.learning_rate: 0.001 there, 0.5 here" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    ({"data__dataset": "nowhere"}, "nowhere"),
    ({"model__vocab_size": 999}, "--config.model.vocab_size=1000"),
    ({"data__seq_length": 512}, "max_position_embeddings=128"),
    ({"optimizer__warmup_steps": 12}, "optimizer.warmup_steps=12 must be below steps=12"),
    ({"optimizer__name": "adam"}, "optimizer.name='adam' is unknown"),
    ({"mesh__data": 3}, "--config.mesh.data=-1"),
    ({"optimizr__name": "adam"}, "did you mean optimizer.name"),
    ({"batch_size": "many"}, "batch_size"),
    ({"init_from": "nowhere"}, "nothing at 'nowhere'"),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(overrides, words, dataset, tmp_path, capsys):
  assert main(["train", *flags(dataset, tmp_path / "run", **overrides)]) == 2
  assert words in capsys.readouterr().err
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_begins_from_given_weights_and_says_what_is_new(whole, dataset, tmp_path, quick_runs, capsys):
  cfg, params = albert_jax.load(whole[0])
  del params["sop"]
  albert_jax.save(tmp_path / "weights", cfg, params)
  settings = {"init_from": tmp_path / "weights", "steps": 2, "optimizer__warmup_steps": 1, "eval_every": 1}
  assert main(["train", *flags(dataset, tmp_path / "run", **settings)]) == 2
  assert "missing: sop/dense/bias [2]" in capsys.readouterr().err
  assert main(["train", *flags(dataset, tmp_path / "run", **settings, init_missing="sop/")]) == 0
  assert "new: sop/dense/bias, sop/dense/kernel" in capsys.readouterr().err
  # The first step's rate is 0, so these are the numbers of the weights that were given.
  expected = numbers(whole[0])[12, "eval"]["mlm_loss"]
  assert numbers(tmp_path / "run")[1, "eval"]["mlm_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_folder_in_use_is_refused(dataset, tmp_path, capsys):
  with open(tmp_path / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert main(["train", *flags(dataset, tmp_path)]) == 2
  assert "in use by another run" in capsys.readouterr().err
  assert not (tmp_path / "config.json").exists()


def test_evaluate_gives_the_numbers_of_the_run(whole, dataset, tmp_path, quick_runs, capsys):
  config = [flag for flag in flags(dataset, "") if "workdir" not in flag]
  assert main(["evaluate", *config, f"--checkpoint={whole[0] / 'export'}", f"--json={tmp_path / 'x.json'}"]) == 0
  out = capsys.readouterr().out
  expected = numbers(whole[0])[12, "eval"]
  assert json.loads(out) == pytest.approx(expected, rel=1e-6)
  assert json.loads((tmp_path / "x.json").read_text()) == json.loads(out)


def test_predict_fills_masks(whole, tmp_path, capsys):
  (tmp_path / "texts").write_text('the [MASK] of [MASK]\n\n{"text": "a [MASK]"}\n')
  arguments = ["predict", f"--checkpoint={whole[0]}", "--task=fill-mask", f"--input={tmp_path / 'texts'}", "--top_k=2"]
  assert main(arguments) == 0
  first, second = map(json.loads, capsys.readouterr().out.splitlines())
  assert [len(mask) for mask in first["masks"]] == [2, 2]
  assert "[MASK]" not in first["filled"]
  assert second["text"] == "a [MASK]"
  scores = [answer["score"] for answer in second["masks"][0]]
  assert scores == sorted(scores, reverse=True)
  assert main(["predict", f"--checkpoint={whole[0]}", "--task=fill-mask", "no mask here"]) == 2
  assert "no [MASK]" in capsys.readouterr().err
