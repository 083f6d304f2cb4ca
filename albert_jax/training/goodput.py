"""Goodput: the share of a run's time in which it trained, from its `run.json` and `metrics.jsonl`.

Productive is the time of the training steps that count, without waits for batches. All else is not: compiling, loading,
evaluating, saving, steps that were lost or rolled back, and the time between a preemption and the next start.
"""

import datetime
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Goodput(NamedTuple):
  """Seconds of a run so far."""

  productive: float
  total: float
  starts: int  # of processes: 1 for a run that was never resumed

  @property
  def share(self) -> float:
    """The share of the total that was productive."""
    return self.productive / self.total if self.total > 0 else 0.0


def measure(
  card: Mapping[str, Any], lines: Iterable[Mapping[str, Any]], end: datetime.datetime | None = None
) -> tuple[Goodput, Goodput]:
  """Measures a run and its newest process.

  Args:
    card: the contents of run.json.
    lines: those of metrics.jsonl, see writer.read.
    end: the time at which the total ends, with a time zone; None for the current time.

  Returns:
    (from the run's first start on, from the newest start on).
  """
  end = end or datetime.datetime.now(datetime.UTC)
  starts = [{"step": 0, "time": card["started"]}, *card["resumed"]]
  timed = [
    (line["step"], line["tokens"] / line["tokens_per_s"] * (1 - line.get("input_stall", 0.0)))
    for line in lines
    if line["split"] == "train" and line.get("tokens") and line.get("tokens_per_s")
  ]
  return (
    _since(starts[0]["time"], end, sum(seconds for _, seconds in timed), len(starts)),
    _since(starts[-1]["time"], end, sum(seconds for step, seconds in timed if step > starts[-1]["step"]), 1),
  )


def _since(start, end, productive, starts):
  # The card has whole seconds, so a short run may seem to have trained for longer than it took.
  total = (end - datetime.datetime.fromisoformat(start)).total_seconds()
  return Goodput(productive, max(total, productive), starts)


def text(run: Goodput, process: Goodput) -> str:
  """One line for the end of a process."""
  line = f"Goodput: {process.share:.1%} of {_duration(process.total)} went into training steps"
  if run.starts > 1:
    line += f"; since the run began, {run.share:.1%} of {_duration(run.total)} in {run.starts} starts"
  return line + "."


def _duration(seconds):
  return str(datetime.timedelta(seconds=round(seconds)))
