"""Checks what a device computes and measures how fast, within a number of minutes.

The most important stages run first, each in a process of its own. A stage that fails, crashes or hangs is a row and
does not end the bench, and its memory is free for the next stage. This process never uses the device.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from albert_jax import files
from albert_jax.bench.plan import XLA_FLAGS
from albert_jax.bench.rows import RESULTS, ROW_SECONDS, Rows, read, write_report
from albert_jax.errors import UserError

FLAGS = "ALBERT_JAX_BENCH_FLAGS"  # the name of the set of compiler flags that a process was started with
TRAINS = ("resume", "real_run")  # They start `albert-jax train`; some devices admit only one process.
UNTIMED = ("correctness", *TRAINS)  # Their rows have no time to compile, so that they may read compiled programs.
LAST_ROW_SECONDS = 90  # A stage's last row may exceed the stage's share by this.


class Stage(NamedTuple):
  """A stage: the function of albert_jax.bench.__main__, and the share of all minutes by which no new row begins."""

  function: str
  until: float


STAGES = {
  "machine": Stage("machine", 0.08),
  "correctness": Stage("correctness", 0.28),
  "kill and resume": Stage("resume", 0.38),
  "train step": Stage("train_steps", 0.62),
  "peers": Stage("peers", 0.74),
  "levers": Stage("levers", 0.84),
  "compiler flags": Stage("compiler_flags", 0.89),
  "inference": Stage("inference", 0.94),
  "real run": Stage("real_run", 1.0),
}


def bench(folder: str | os.PathLike, minutes: float, toy: bool = False, only: tuple[str, ...] = ()) -> list[dict]:
  """Runs the stages and writes results.jsonl, row by row, and report.md.

  Args:
    folder: a folder without results; it is made if need be.
    minutes: after which everything has ended.
    toy: whether all sizes are toys; on a CPU they always are.
    only: names of STAGES, which share the minutes; () runs all. The first one always runs.

  Returns:
    the rows.

  Raises:
    UserError: the folder has results already, or is not a local folder.
  """
  if files.is_url(folder) or (os.path.exists(folder) and not os.path.isdir(folder)):
    raise UserError(f"--out={folder} must be a folder on this machine, as --out=bench-results")
  folder = pathlib.Path(folder)
  if (folder / RESULTS).exists():
    raise UserError(f"{folder} already has {RESULTS}; give a new folder, as --out={folder}-2")
  folder.mkdir(parents=True, exist_ok=True)
  files.write(folder / RESULTS, "")
  begin, command = time.time(), shlex.join(["albert-jax", "bench", *_flags(folder, minutes, toy, only)])
  try:
    _run_stages(folder, begin, 60 * minutes, toy, only, lambda: write_report(folder, command))
  finally:  # After Ctrl-C too.
    write_report(folder, command)
  return read(folder)


def _run_stages(folder, begin, seconds, toy, only, report):
  platform = ""
  for name, stage in STAGES.items():
    until = begin + seconds * (1 if only else stage.until)
    end = min(begin + seconds, until + LAST_ROW_SECONDS)
    if name == "machine":
      _run_stage(folder, name, until, end, "toy" if toy else "full")
      platform = next((row["platform"] for row in read(folder) if "platform" in row), "")
      toy = toy or platform == "cpu"
    elif why := _why_not(name, only, platform, until):
      Rows(folder, name, 0).add("all rows", skipped=why)
    elif name == "compiler flags":
      for label, (variable, flags) in XLA_FLAGS[platform].items():
        flags = f"{os.environ.get(variable, '')} {flags}".strip()
        _run_stage(folder, name, until, end, "toy" if toy else "full", {FLAGS: label, variable: flags})
    else:
      _run_stage(folder, name, until, end, "toy" if toy else "full")
    report()


def _why_not(name, only, platform, until):
  """Returns the reason why a stage is skipped, '' for none."""
  if only and name not in only:
    return "left out by --only"
  if not platform:
    return "JAX finds no device that works; see albert-jax doctor"
  if name == "compiler flags" and platform not in XLA_FLAGS:
    return f"no set of flags is known for {platform}"
  return "no time left for this stage" if until - time.time() < ROW_SECONDS else ""


def _run_stage(folder, name, until, end, sizes, environment=None):
  """Runs a stage in a process of its own, and kills what has not ended in time; adds a row for a failure."""
  environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, **(environment or {})}
  if STAGES[name].function not in UNTIMED:
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # The time to compile is one of the numbers.
  process = subprocess.Popen(_command(folder, name, until, sizes), env=environment, start_new_session=True)
  try:
    code = process.wait(max(1, end - time.time()))
    failure = f"the process ended with {code}" if code else ""
  except subprocess.TimeoutExpired:
    failure = "stopped: the time of this stage was over"
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  if failure:
    label = environment.get(FLAGS, "process")
    Rows(folder, name, 0).add(label, error=failure)


def _command(folder, name, until, sizes):
  return [sys.executable, "-m", "albert_jax.bench", str(folder), name, str(until), sizes]


def _flags(folder, minutes, toy, only):
  return [f"--minutes={minutes:g}", f"--out={folder}", *(["--toy"] if toy else []),
          *([f"--only={','.join(only)}"] if only else [])]  # fmt: skip


def failures(rows: list[dict]) -> list[str]:
  """Returns the rows that failed: checks that did not pass, and errors."""
  return [f"{row['stage']}, {row['row']}" for row in rows if "error" in row or row.get("passed") is False]
