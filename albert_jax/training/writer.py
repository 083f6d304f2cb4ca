"""Numbers of a run on their way out: JSON lines, TensorBoard and a progress bar."""

import json
import math
import pathlib
import sys
import time

import jax
import tensorboardX
from tqdm import tqdm

BAR = "{percentage:3.0f}% {bar:20} {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {postfix}"


class Writer:
  """Writes `metrics.jsonl` and TensorBoard events in a folder, and shows progress on stderr.

  Only the first host writes. On a terminal progress is one moving bar, in a log file one line every `log_every` steps.
  """

  def __init__(self, workdir, start: int, steps: int, log_every: int):
    """Args: start: the step the run goes on from; lines of later steps, written before it was killed, are dropped."""
    self.active = jax.process_index() == 0
    self.steps, self.log_every = steps, log_every
    self.sums, self.clock, self.tokens = {}, None, 0
    self.begin, self.begin_step = time.perf_counter(), start
    if self.active:
      self.path = pathlib.Path(workdir) / "metrics.jsonl"
      _drop_after(self.path, start)
      self.file = self.path.open("a")
      self.board = tensorboardX.SummaryWriter(str(workdir), purge_step=start + 1)
      self.bar = tqdm(initial=start, total=steps, bar_format=BAR, disable=not sys.stderr.isatty())

  def train(self, step: int, tokens: int, sums, scalars):
    """Takes what step `step` (counted from 1) computed; waits for it, so give it one step behind the device.

    Args: tokens: how many it read. sums: {"name": (total, weight)}, averaged since the last line. scalars:
      {"name": value}, the newest counts.
    """
    sums, scalars = jax.device_get((sums, scalars))
    for name, (total, weight) in sums.items():
      so_far = self.sums.get(name, (0.0, 0.0))
      self.sums[name] = (so_far[0] + float(total), so_far[1] + float(weight))
    values = {**{name: total for name, (total, _) in sums.items()}, **scalars}
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
      raise FloatingPointError(
        f"{', '.join(broken)} is not a finite number at step {step}; the last checkpoint is sound. "
        "Usually the learning rate is too high for the batch: lower optimizer.learning_rate or lengthen the warm-up."
      )
    if self.active:
      self.bar.update()
    self.tokens += tokens
    if self.clock is None:  # The first step's time is mostly the compiler's.
      self.clock, self.tokens = time.perf_counter(), 0
    if step % self.log_every == 0 or step == self.steps:
      now = time.perf_counter()
      speed = {"tokens_per_s": self.tokens / (now - self.clock)} if self.tokens else {}
      self.clock, self.tokens = now, 0
      scalars = {name: float(value) for name, value in scalars.items()}
      self.write(step, "train", {**ratios(self.sums), **scalars, **speed})
      self.sums = {}

  def write(self, step: int, split: str, metrics):
    """One line of `metrics.jsonl` and its TensorBoard scalars. `metrics`: {"name": float}."""
    if not self.active:
      return
    self.file.write(json.dumps({"step": step, "split": split, **{k: _short(v) for k, v in metrics.items()}}) + "\n")
    self.file.flush()
    for name, value in metrics.items():
      self.board.add_scalar(f"{split}/{name}", value, step)
    shown = " ".join(f"{k}={_brief(v)}" for k, v in metrics.items() if k not in ("grad_norm", "learning_rate"))
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

  def close(self):
    if self.active:
      self.bar.close()
      self.board.close()
      self.file.close()


def ratios(sums) -> dict:
  """{"name": (total, weight)} -> {"name": total / weight}, without those that had nothing to count."""
  return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}


def read(workdir) -> list[dict]:
  """The lines of a run's `metrics.jsonl`."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
  temporary = path.with_suffix(".tmp")
  temporary.write_text("".join(kept))
  temporary.replace(path)


def _short(value):
  # Nine digits hold any float32 exactly, and keep a line readable.
  return float(f"{value:.9g}")


def _brief(value):
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
