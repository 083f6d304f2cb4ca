"""Numbers of a run on their way out: JSON lines, TensorBoard and a progress bar."""

import json
import pathlib
import sys
import time

import jax
from tqdm import tqdm

from albert_jax import files

# Written, but not shown on each line of progress.
QUIET = ("grad_norm", "learning_rate", "update_ratio", "trust_ratio_min", "trust_ratio_mean", "trust_ratio_max",
         "input_stall", "memory_gib")  # fmt: skip
BAR = "{percentage:3.0f}% {bar:20} {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {postfix}"


class Writer:
  """Writes `metrics.jsonl` and TensorBoard events in a folder, and shows progress on stderr.

  Only the first host writes. On a terminal progress is one moving bar, in a log file one line every `log_every` steps.
  """

  def __init__(self, workdir, start: int, steps: int, log_every: int, peak: float | None = None, trackers=()):
    """Args: start: the step the run goes on from. peak: operations a second all devices could do, for `mfu`.
    trackers: more places for the numbers, see training/trackers.py."""
    self.active = jax.process_index() == 0
    self.workdir, self.steps, self.log_every, self.peak = pathlib.Path(workdir), steps, log_every, peak
    self.bar = tqdm(total=steps, bar_format=BAR, disable=not (self.active and sys.stderr.isatty()))
    self.file, self.trackers = None, trackers
    self.rewind(start)

  def rewind(self, start: int):
    """Goes on from step `start`: lines of later steps are dropped."""
    self.sums, self.clock = {}, None
    self.begin, self.begin_step = time.perf_counter(), start
    if self.active:
      self._close()
      path = self.workdir / "metrics.jsonl"
      _drop_after(path, start)
      self.file = path.open("a")
      self.board, self.purge_step = None, start + 1
      self.bar.reset()
      self.bar.update(start)

  def train(self, step: int, work, sums, scalars):
    """Takes what step `step` (counted from 1) computed, on the host.

    Args: work: (tokens, operations, seconds the loop waited for the batch). sums: {"name": (total, weight)}, averaged
      since the last line. scalars: {"name": value}, the newest counts.
    """
    for name, (total, weight) in sums.items():
      so_far = self.sums.get(name, (0.0, 0.0))
      self.sums[name] = (so_far[0] + float(total), so_far[1] + float(weight))
    self.bar.update()
    if self.clock is None:  # The first step's time is mostly the compiler's.
      self.clock, self.work, self.has_batch = time.perf_counter(), (0, 0, 0), True
    else:
      tokens, operations, waited = work
      # The step after the first had its batch before the clock began.
      work = (tokens, operations, 0 if self.has_batch else waited)
      self.work, self.has_batch = tuple(a + b for a, b in zip(self.work, work, strict=True)), False
    if step % self.log_every == 0 or step == self.steps:
      scalars = {name: float(value) for name, value in scalars.items()}
      self.write(step, "train", {**ratios(self.sums), **scalars, **self._speed(), **_memory()})
      self.sums = {}

  def _speed(self) -> dict:
    """How fast it went since the last line."""
    now, (tokens, operations, waited) = time.perf_counter(), self.work
    seconds, self.clock, self.work = now - self.clock, now, (0, 0, 0)
    if not tokens:
      return {}
    speed = {"tokens_per_s": tokens / seconds, "input_stall": waited / seconds}
    return speed | ({"mfu": operations / seconds / self.peak} if self.peak else {})

  def write(self, step: int, split: str, metrics):
    """One line of `metrics.jsonl` and its TensorBoard scalars. `metrics`: {"name": float}."""
    if not self.active:
      return
    self.file.write(json.dumps({"step": step, "split": split, **{k: _short(v) for k, v in metrics.items()}}) + "\n")
    self.file.flush()
    if self.board is None:
      # Imported here, while the device is at work: with PyTorch or Google's clients installed it takes seconds.
      import tensorboardX

      self.board = tensorboardX.SummaryWriter(str(self.workdir), purge_step=self.purge_step)
    for name, value in metrics.items():
      self.board.add_scalar(f"{split}/{name}", value, step)
    for tracker in self.trackers:
      tracker.write(step, split, metrics)
    shown = " ".join(f"{k}={_brief(v)}" for k, v in metrics.items() if k not in QUIET)
    if split != "train":
      tqdm.write(f"step {step} {split}: {shown}", file=sys.stderr)
    elif self.bar.disable:
      done = max(step - self.begin_step, 1)
      left = (self.steps - step) * (time.perf_counter() - self.begin) / done
      print(f"step {step}/{self.steps} {shown} left={tqdm.format_interval(left)}", file=sys.stderr, flush=True)
    else:
      self.bar.set_postfix_str(shown)

  def pause(self):
    """Stops the clock until the next step is done, so that time spent on something else is not counted as training."""
    self.clock = None

  def finish(self):
    """Ends the progress bar, so that what is printed next has a line of its own."""
    self.bar.close()

  def close(self):
    self.finish()
    self._close()
    for tracker in self.trackers:
      tracker.close()

  def _close(self):
    if self.file:
      self.file.close()
      if self.board:
        self.board.close()


def ratios(sums) -> dict:
  """{"name": (total, weight)} -> {"name": total / weight}, without those that had nothing to count."""
  return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}


def read(workdir) -> list[dict]:
  """The lines of a run's `metrics.jsonl`."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_evaluation(workdir, step: int) -> dict:
  """The newest held-out metrics of a run up to `step`, {} if there are none."""
  lines = [line for line in read(workdir) if line["split"] == "eval" and line["step"] <= step]
  return {k: v for k, v in lines[-1].items() if k not in ("step", "split")} if lines else {}


def _memory() -> dict:
  """The most memory that one of this host's devices has had in use so far; {} where the backend does not tell."""
  found = [device.memory_stats() for device in jax.local_devices()]
  peaks = [stats["peak_bytes_in_use"] for stats in found if stats and "peak_bytes_in_use" in stats]
  return {"memory_gib": max(peaks) / 2**30} if peaks else {}


def _drop_after(path, step):
  """Removes lines of steps after `step`, and a last line cut short by a kill."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except ValueError:
      break
  files.write(path, "".join(kept))


def _short(value):
  # Nine digits hold any float32 exactly, and keep a line readable.
  return float(f"{value:.9g}")


def _brief(value):
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
