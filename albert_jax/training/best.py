"""The best evaluation of a run, and early stopping."""

import math
import pathlib
from collections.abc import Mapping

from albert_jax.errors import UserError
from albert_jax.training.writer import read


class Best:
  """The best evaluation of a run by one metric; losses are better when lower.

  Attributes:
    step: that of the best evaluation, 0 before the first.
    value: its metric, negated for losses; None before the first.
    scores: {step: value} of each evaluation that was the best so far.
  """

  def __init__(self, metric: str, patience: int, workdir: pathlib.Path, start: int):
    """Reads the evaluations of the run so far.

    Args:
      metric: its name; '' for none.
      patience: evaluations without a new best that are `enough`; 0: never.
      workdir: the local folder of the run.
      start: the step of the state; later evaluations are ignored.
    """
    self.metric, self.patience = metric, patience
    self.step = 0
    self.value: float | None = None
    self.scores: dict[int, float] = {}
    self.evaluations: list[int] = []
    for line in read(workdir):
      if line["split"] == "eval" and line["step"] <= start:
        self.improved(line["step"], line)

  def improved(self, step: int, metrics: Mapping[str, float]) -> bool:
    """Takes the metrics of an evaluation, and returns whether they are the best so far; NaN never is.

    Raises:
      UserError: the metric is not among them.
    """
    self.evaluations.append(step)
    if not self.metric:
      return False
    if self.metric not in metrics:
      raise UserError(f"best={self.metric!r} is not among the held-out numbers: {', '.join(sorted(metrics))}")
    value = -metrics[self.metric] if self.metric.endswith("loss") else metrics[self.metric]
    better = not math.isnan(value) and (self.value is None or value > self.value)
    if better:  # Only these have a score, so that of two equally good checkpoints the first one is kept.
      self.step, self.value, self.scores[step] = step, value, value
    return better

  def enough(self) -> bool:
    """Returns whether `patience` evaluations in a row were no better than the best."""
    return bool(self.patience) and sum(at > self.step for at in self.evaluations) >= self.patience
