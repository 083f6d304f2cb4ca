"""Which evaluation was the best, and whether there have been enough."""

from albert_jax.errors import UserError
from albert_jax.training.writer import read


class Best:
  """The best evaluation of a run by one metric; losses are better when lower."""

  def __init__(self, metric: str, patience: int, workdir, start: int):
    """Args: metric: '' for none. patience: evaluations without a new best that are `enough`; 0: never."""
    self.metric, self.patience, self.step, self.value = metric, patience, 0, None
    self.scores, self.evaluations = {}, []
    for line in read(workdir):  # What a run that was cut off had found.
      if line["split"] == "eval" and line["step"] <= start:
        self.improved(line["step"], line)

  def improved(self, step, numbers) -> bool:
    """Takes the numbers of an evaluation, and says whether they are the best so far."""
    self.evaluations.append(step)
    if not self.metric:
      return False
    if self.metric not in numbers:
      raise UserError(f"best={self.metric!r} is not among the held-out numbers: {', '.join(sorted(numbers))}")
    value = -numbers[self.metric] if self.metric.endswith("loss") else numbers[self.metric]
    better = self.value is None or value > self.value
    if better:  # Only these are scored, so that of two equally good checkpoints the one named here is kept.
      self.step, self.value, self.scores[step] = step, value, value
    return better

  def enough(self) -> bool:
    """Whether so many evaluations brought nothing better that the run may end."""
    return bool(self.patience) and sum(at > self.step for at in self.evaluations) >= self.patience
