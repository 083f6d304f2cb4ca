"""Real runs of `albert-jax train` on a made-up corpus: killed and resumed, and timed with their input."""

import pathlib
import random
import subprocess
import sys
import time
from typing import Any

from albert_jax.bench.plan import Plan
from albert_jax.bench.rows import Rows, Skip, checked, read
from albert_jax.data.corpus import prepare, segments, vocab, work_units
from albert_jax.training.writer import read as read_metrics

VOCAB_SIZE, DOCUMENTS = 1000, 200
RESUME_STEPS, RESUME_EVERY = 12, 5


def resume(rows: Rows, sizes: Plan) -> None:
  """Compares the losses of a run that was killed with those of one that was not."""
  rows.measure("albert-jax train, kill -9, the same command again: losses that differ", killed, rows, sizes)


def real_run(rows: Rows, sizes: Plan) -> None:
  """Times `albert-jax train` with its input, beside the bare step."""
  rows.measure("albert-jax train, input included", timed, rows, sizes)


def killed(rows: Rows, sizes: Plan) -> dict[str, Any]:
  """Runs a small model twice, once killed after its first checkpoint; counts the steps whose losses differ."""
  fields = {
    **sizes.train, "batch_size": 8, "data.seq_length": 64, "steps": RESUME_STEPS, "checkpoint_every": RESUME_EVERY,
    "log_every": 1, "eval_every": RESUME_STEPS, "eval_batches": 1, "model.num_hidden_layers": 2,
  }  # fmt: skip
  whole, workdir = rows.folder / "runs" / "whole", rows.folder / "runs" / "killed"
  _finish(_start(rows, "tiny", whole, fields), rows)
  process = _start(rows, "tiny", workdir, fields)
  try:
    while process.poll() is None and not _has_checkpoint(workdir):
      if rows.left() < 0:
        raise Skip("no time left to wait for the first checkpoint")
      time.sleep(0.02)
    was_running = process.poll() is None
  finally:
    _kill(process)
  _finish(_start(rows, "tiny", workdir, fields), rows)
  losses, expected = ({line["step"]: line["loss"] for line in _train_lines(run)} for run in (workdir, whole))
  differing = [step for step in range(1, RESUME_STEPS + 1) if losses.get(step) != expected.get(step)]
  return checked(len(differing), 0) | {"steps": len(expected), "killed_while_running": was_running}


def timed(rows: Rows, sizes: Plan) -> dict[str, Any]:
  """Runs the first size of `steps` on a prepared corpus; its numbers are those of the last line of metrics.jsonl."""
  steps = sizes.train_steps
  fields = {**sizes.train, "steps": steps, "log_every": max(1, steps // 3), "eval_every": steps, "eval_batches": 1,
            "checkpoint_every": steps}  # fmt: skip
  size, count, length = sizes.steps[0]
  workdir = rows.folder / "runs" / "timed"
  _finish(_start(rows, "tiny" if size == "toy" else size, workdir, fields), rows)
  last = _train_lines(workdir)[-1]
  numbers = {"tokens_per_s": last["tokens_per_s"], "input_stall": last["input_stall"]}
  numbers |= {"of_datasheet": last["mfu"]} if "mfu" in last else {}
  bare = [row for row in read(rows.folder) if row["row"] == f"{size}, {count} x {length}" and "tokens_per_s" in row]
  return numbers | ({"of_bare_step": last["tokens_per_s"] / bare[0]["tokens_per_s"]} if bare and size != "toy" else {})


def _start(rows, size, workdir, fields):
  """Starts `albert-jax train`, with its messages in a file beside the run's folder.

  The run stays in the process group of the stage, and so ends when the stage is stopped.
  """
  fields = {
    "data.dataset": _dataset(rows.folder),
    "model.vocab_size": VOCAB_SIZE,
    "optimizer.warmup_steps": 2,
    **fields,
  }
  command = [
    sys.executable, "-m", "albert_jax", "train", f"--config=pretrain:{size}", f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]  # fmt: skip
  workdir.parent.mkdir(exist_ok=True)
  with workdir.with_suffix(".log").open("a") as log:
    process = subprocess.Popen(command, stdout=log, stderr=log)
  process.log = workdir.with_suffix(".log")
  return process


def _finish(process, rows):
  """Waits for a run.

  Raises:
    Skip: it did not end in time.
    OSError: it failed.
  """
  try:
    code = process.wait(max(0, rows.left()))
  except subprocess.TimeoutExpired:
    raise Skip("albert-jax train did not end in the time left") from None
  finally:
    _kill(process)
  if code:
    last = [line for line in process.log.read_text("utf-8", "replace").splitlines() if line.strip()][-1:]
    raise OSError(f"albert-jax train ended with {code}: {' '.join(last)}")


def _kill(process):
  process.kill()
  process.wait()


def _has_checkpoint(workdir):
  return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def _train_lines(workdir):
  return [line for line in read_metrics(workdir) if line["split"] == "train"]


def _dataset(folder: pathlib.Path) -> pathlib.Path:
  """Prepares a made-up corpus, once."""
  out = folder / "runs" / "dataset"
  if out.exists():
    return out
  out.parent.mkdir(exist_ok=True)
  draw = random.Random(0)
  words = ["".join(draw.choices("abcdefghijklmnoprstu", k=draw.randint(2, 8))) for _ in range(2000)]
  documents = [
    [" ".join(draw.choices(words, k=draw.randint(5, 15))) + "." for _ in range(draw.randint(5, 80))]
    for _ in range(DOCUMENTS)
  ]
  text, spm = out.with_suffix(".txt"), out.with_name("spiece.model")
  text.write_text("\n\n".join("\n".join(lines) for lines in documents))
  spm.write_bytes(vocab.train_model([line for lines in documents for line in lines], vocab_size=VOCAB_SIZE))
  prepare.prepare(str(text), spm, out, segments.Settings(sentences="line"), work_units.Reading(layout="blank"))
  return out
