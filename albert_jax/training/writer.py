"""The numbers of a run on their way out: JSON lines, TensorBoard events, trackers and progress on stderr."""

import contextlib
import json
import logging
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from albert_jax import files, strict_json

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
FIRST = ("loss", "tokens_per_s")  # shown before all others
# Written, but not shown on each line of progress.
QUIET = ("grad_norm", "learning_rate", "update_ratio", "trust_ratio_min", "trust_ratio_mean", "trust_ratio_max",
         "tokens", "input_stall", "memory_gib")  # fmt: skip
BAR = "step {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}]"
BAR_METRICS = 41  # columns of 80 that the metrics may take
MAX_COPY_BYTES = 1 << 23  # of metrics.jsonl, up to which a copy is kept with each checkpoint


class Writer:
  """Writes `metrics.jsonl` and TensorBoard events in a folder, and shows progress on stderr.

  Only the first host writes. On a terminal progress is one line that is redrawn, in a log file one line every
  `log_every` steps.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    start: int,
    steps: int,
    log_every: int,
    peak: float | None = None,
    trackers: Iterable = (),
    copy: str | None = None,
  ):
    """Opens the files of a run.

    Args:
      workdir: the local folder of the run.
      start: the step of the state.
      steps: the steps of the run.
      log_every: steps between two lines.
      peak: operations a second that all devices could do, for `mfu`; None if unknown.
      trackers: more places for the numbers, see training/trackers.py.
      copy: see `rewind`.
    """
    self.active = jax.process_index() == 0
    self.workdir, self.steps, self.log_every, self.peak = pathlib.Path(workdir), steps, log_every, peak
    self.bar = tqdm(
      total=steps, bar_format=BAR, dynamic_ncols=True, disable=not (self.active and sys.stderr.isatty())
    )  # fmt: skip
    self.file: Any = None
    self.events: _Events | None = None
    self.trackers = list(trackers)
    self.rewind(start, copy)

  def rewind(self, start: int, copy: str | None = None) -> None:
    """Continues at step `start`: lines of later steps are dropped.

    Args:
      start: the step of the state.
      copy: the text of metrics.jsonl that was saved with the checkpoint. Lines that the file lost are restored from it.
    """
    self.sums: dict[str, tuple[float, float]] = {}
    self.tokens = 0
    self.clock: float | None = None
    self.begin, self.begin_step = time.perf_counter(), start
    if not self.active:
      return
    self._close()
    path = self.workdir / METRICS
    lines = _lines_until(path.read_text("utf-8", "replace"), start) if path.exists() else []
    saved = _lines_until(copy or "", start)
    if not set(saved) <= set(lines):
      lost = len(set(saved) - set(lines))
      log.warning("%s had lost %d lines up to step %d; they are restored from the checkpoint.", path, lost, start)
      lines = saved
    elif start and not lines:
      log.warning("%s has no line up to step %d, which the checkpoint is of; they are lost.", path, start)
    if lines or path.exists():
      files.write(path, "".join(line + "\n" for line in lines))
    self.file = path.open("a")
    self.purge_step = start + 1
    self.bar.reset()
    self.bar.update(start)
    self.bar.set_postfix_str("compiling…")

  def copy(self) -> str | None:
    """Returns the text of metrics.jsonl, to be saved with a checkpoint; None if it is too long for that."""
    path = self.workdir / METRICS
    if not self.active or path.stat().st_size > MAX_COPY_BYTES:
      return None
    return path.read_text("utf-8")

  def train(
    self, step: int, work: tuple[int, float, float], sums: Mapping[str, tuple], scalars: Mapping[str, Any]
  ) -> None:
    """Takes the numbers of a step, on the host.

    Args:
      step: counted from 1.
      work: (tokens, operations, seconds the loop waited for the batch).
      sums: {name: (total, weight)}, averaged since the last line.
      scalars: {name: value}, of which a line has the newest.
    """
    for name, (total, weight) in sums.items():
      so_far = self.sums.get(name, (0.0, 0.0))
      self.sums[name] = (so_far[0] + float(total), so_far[1] + float(weight))
    tokens, operations, waited = work
    self.tokens += tokens
    self.bar.update()
    if self.clock is None:  # The first step's time is mostly the compiler's.
      self.clock, self.work, self.has_batch = time.perf_counter(), (0, 0.0, 0.0), True
      self.bar.set_postfix_str("")
    else:
      # The step after the first had its batch before the clock began.
      waited = 0.0 if self.has_batch else waited
      self.work = (self.work[0] + tokens, self.work[1] + operations, self.work[2] + waited)
      self.has_batch = False
    if step % self.log_every == 0 or step == self.steps:
      values = {name: float(value) for name, value in scalars.items()}
      self.write(
        step, "train", {**ratios(self.sums), **values, "tokens": self.tokens, **self._speed(), **_memory()}
      )  # fmt: skip
      self.sums, self.tokens = {}, 0

  def _speed(self) -> dict[str, float]:
    """Throughput since the last line, and the share of the time that the loop waited for batches."""
    time_, (tokens, operations, waited) = time.perf_counter(), self.work
    seconds, self.clock, self.work = time_ - (self.clock or time_), time_, (0, 0.0, 0.0)
    if not tokens:
      return {}
    speed = {"tokens_per_s": tokens / seconds, "input_stall": waited / seconds}
    return speed | ({"mfu": operations / seconds / self.peak} if self.peak else {})

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Writes one line of `metrics.jsonl`, its TensorBoard scalars and its line of progress.

    Args:
      step: counted from 1.
      split: train, eval or guard.
      metrics: {name: value}.

    Raises:
      OSError: the line could not be written. Failing events and trackers are only reported.
    """
    if not self.active:
      return
    self.file.write(json.dumps({"step": step, "split": split, **{k: _short(v) for k, v in metrics.items()}}) + "\n")
    self.file.flush()
    if self.events is None:
      self.events = _Events(self.workdir, self.purge_step)
    self.events.write(step, split, metrics)
    for tracker in self.trackers:
      tracker.write(step, split, metrics)
    self._show(step, split, metrics)

  def _show(self, step, split, metrics):
    names = [*(name for name in FIRST if name in metrics), *(name for name in metrics if name not in FIRST)]
    texts = [f"{name}={_brief(metrics[name])}" for name in names if name not in QUIET]
    if split != "train":
      tqdm.write(f"step {step} {split}: {' '.join(texts)}", file=sys.stderr)
    elif self.bar.disable:
      done = max(step - self.begin_step, 1)
      left = tqdm.format_interval((self.steps - step) * (time.perf_counter() - self.begin) / done)
      log.info("step %d/%d %s left=%s", step, self.steps, " ".join(texts), left)
    else:
      while len(texts) > 1 and len(" ".join(texts)) > BAR_METRICS:
        texts.pop()
      self.bar.set_postfix_str(" ".join(texts))

  def pause(self) -> None:
    """Stops the clock until the next step is done, so that time spent on something else is not counted as training."""
    self.clock = None

  def finish(self) -> None:
    """Ends the progress line, so that what is printed next has a line of its own."""
    self.bar.close()

  def close(self) -> None:
    """Closes the files and the trackers."""
    self.finish()
    self._close()
    for tracker in self.trackers:
      tracker.close()

  def _close(self):
    if self.file:
      self.file.close()
    if self.events:
      self.events.close()
    self.file = self.events = None


class _Events:
  """TensorBoard events, written in the loop's own thread. A failure is reported once, and ends them.

  tensorboardX.SummaryWriter has a thread of its own. Once that has died, for want of disk space or because the clock
  was set back, its queue fills up and blocks the loop for ever.
  """

  def __init__(self, folder, purge_step):
    self._file = None
    self._try(lambda: self._open(folder, purge_step))

  def _open(self, folder, purge_step):
    # Imported here, while the device computes: with PyTorch or Google's clients installed it takes seconds.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._event, self._scalar = event_pb2.Event, summary.scalar
    self._file = event_file_writer.EventsWriter(str(folder / "events"))
    session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._file.write_event(event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=session))
    self._file.flush()

  def write(self, step, split, metrics) -> None:
    if self._file:
      self._try(lambda: self._write(step, split, metrics))

  def _write(self, step, split, metrics):
    summary = self._event().summary
    for name, value in metrics.items():
      summary.MergeFrom(self._scalar(f"{split}/{name}", value))
    self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
    self._file.flush()

  def close(self) -> None:
    if self._file:
      self._try(self._file.close)

  def _try(self, action):
    try:
      action()
    except Exception as error:  # Whatever a full disk makes of it; training is worth more.
      log.warning("No more TensorBoard events are written: %s: %s", type(error).__name__, str(error)[:200])
      file, self._file = self._file, None
      with contextlib.suppress(Exception):
        if file:
          file.close()


def ratios(sums: Mapping[str, tuple]) -> dict[str, float]:
  """Returns {name: (total, weight)} -> {name: total / weight}, without those of weight 0."""
  return {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}


def read(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a run's `metrics.jsonl`, up to the first that is cut off or damaged."""
  path = pathlib.Path(workdir) / METRICS
  return parse(path.read_text("utf-8", "replace")) if path.exists() else []


def parse(text: str) -> list[dict[str, Any]]:
  """Returns the lines of the text of a `metrics.jsonl`, see `read`."""
  return [json.loads(line) for line in _lines_until(text)]


def is_evaluated(lines: Iterable[Mapping[str, Any]], step: int) -> bool:
  """Returns whether lines of `metrics.jsonl` have an evaluation of this very step."""
  return any(line["split"] == "eval" and line["step"] == step for line in lines)


def last_evaluation(workdir: str | pathlib.Path, step: int) -> dict[str, float]:
  """Returns the newest held-out metrics of a run up to `step`, {} if there are none."""
  lines = [line for line in read(workdir) if line["split"] == "eval" and line["step"] <= step]
  return {k: v for k, v in lines[-1].items() if k not in ("step", "split")} if lines else {}


def _memory() -> dict[str, float]:
  """Returns the peak memory of this host's fullest device; {} where the backend does not tell."""
  devices = [device.memory_stats() for device in jax.local_devices()]
  peaks = [stats["peak_bytes_in_use"] for stats in devices if stats and "peak_bytes_in_use" in stats]
  return {"memory_gib": max(peaks) / 2**30} if peaks else {}


def _lines_until(text, step=None) -> list[str]:
  """The lines of metrics.jsonl of steps up to `step` (None: all), up to the first that is cut off or damaged."""
  lines = []
  for line in text.splitlines():
    values = strict_json.loads_or_none(line)
    if not _is_line(values):
      break
    if step is None or values["step"] <= step:
      lines.append(line)
  return lines


def _is_line(values) -> bool:
  """Returns whether a JSON value is one that `Writer.write` writes: a step, a split and numbers."""
  return (
    isinstance(values, dict)
    and {"step", "split"} <= values.keys()
    and isinstance(values["split"], str)
    and all(isinstance(value, int | float) for name, value in values.items() if name != "split")
  )


def _short(value):
  # Nine digits hold any float32 exactly, and keep a line readable.
  return float(f"{value:.9g}")


def _brief(value):
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
