"""Recovery from NaN losses and loss spikes: roll back to a checkpoint and skip the batches that caused them."""

import collections
import json
import logging
import math
import pathlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from albert_jax import files, strict_json
from albert_jax.errors import UserError

log = logging.getLogger(__name__)

EARLY, EARLY_FINETUNING = 1000, 100  # before these steps it is unknown whether a run learns
HISTORY = "guard.json"  # in a run's folder: the alarms; in a checkpoint's: the numbers of the steps before it
LARGEST = 1_000_000  # of a number of steps, batches or rollbacks


@dataclass(frozen=True)
class GuardConfig:
  """What raises an alarm, and how often a run may roll back.

  A loss, gradient or update that is not finite always raises one. A spike is a value far above its running median.
  """

  give_up: int = 3  # rollbacks without a new checkpoint between them; 0: the run ends at the first alarm
  skip: int = 1  # batches to skip: the alarm's step and those before it; twice as many if the same step alarms again
  cut_rate: float = 1.0  # factor on the learning rate after an alarm; 1.0: none
  loss_spike: float = 0.0  # alarm if the loss is this many times its median; 0: off
  grad_spike: float = 0.0  # the same for the norm of the gradient
  window: int = 100  # steps of the running median, before which nothing counts as a spike

  def __post_init__(self):
    for name in ("loss_spike", "grad_spike"):
      if getattr(self, name) and not getattr(self, name) > 1:
        raise UserError(f"guard.{name}={getattr(self, name)} must be above 1, or 0 for no alarm")
    if not 0 < self.cut_rate <= 1:
      raise UserError(f"guard.cut_rate={self.cut_rate} must be above 0 and up to 1, which cuts nothing")
    for name, low in (("give_up", 0), ("skip", 1), ("window", 1)):
      if not low <= getattr(self, name) <= LARGEST:
        raise UserError(f"guard.{name}={getattr(self, name)} must be from {low} to {LARGEST:,}")
    for name, users in {"window": ("loss_spike", "grad_spike"), "skip": ("give_up",)}.items():
      if getattr(self, name) != getattr(GuardConfig, name) and not any(getattr(self, user) for user in users):
        raise UserError(
          f"guard.{name}={getattr(self, name)} has no effect with {' and '.join(f'guard.{user}=0' for user in users)}; "
          f"set {' or '.join(users)} above 0, or leave {name} out"
        )


class Alarm(Exception):
  """Step `step` (counted from 1) has bad numbers; `why` names them."""

  def __init__(self, step: int, why: str):
    super().__init__(f"{why} at step {step}")
    self.step, self.why = step, why


class Guard:
  """Checks the numbers of every step, one behind the device, and records in the run's folder which batches to skip.

  All hosts see the same numbers and so decide alike; the first one writes.

  Attributes:
    cfg: the GuardConfig.
    alarms: the alarms so far, each a dict, see `roll_back`.
  """

  def __init__(self, cfg: GuardConfig, workdir: pathlib.Path, is_new: bool):
    """Reads the alarms of the run.

    Args:
      cfg: what raises an alarm.
      workdir: the local folder of the run.
      is_new: whether the run begins; then the alarms of an earlier run in this folder are removed.
    """
    self.cfg, self._path = cfg, workdir / HISTORY
    if is_new and jax.process_index() == 0:
      self._path.unlink(missing_ok=True)
    self.alarms: list[dict] | None = []
    if not is_new and self._path.exists():
      self.alarms = strict_json.loads_or_none(self._path.read_bytes())
      if not _are_alarms(self.alarms):
        log.warning("%s is damaged; the copy in the checkpoint is used.", self._path)
        self.alarms = None
    self._past: dict[str, collections.deque] = {}
    self._reset({})

  @property
  def skipped(self) -> set[int]:
    """Numbers of the batches to skip."""
    return {number for alarm in self.alarms or () for number in alarm["skipped"]}

  def rate(self, step: int) -> float:
    """Returns the factor on the learning rate of a step (counted from 1)."""
    return self.cfg.cut_rate ** sum(alarm["restored"] < step for alarm in self.alarms or ())

  def check(self, step: int, sums: Mapping[str, tuple], scalars: Mapping[str, Any]) -> None:
    """Checks the numbers of a step, on the host.

    Args:
      step: counted from 1.
      sums: {name: (total, weight)}, see training/step.py.
      scalars: {name: value}.

    Raises:
      Alarm: a number is not finite, or a spike.
    """
    means = {name: float(total) / (float(weight) or 1.0) for name, (total, weight) in sums.items()}
    values = {**means, **{name: float(value) for name, value in scalars.items()}}
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
      raise Alarm(step, f"{', '.join(broken)} is not a finite number")
    for name, factor in (("loss", self.cfg.loss_spike), ("grad_norm", self.cfg.grad_spike)):
      if factor:
        past, value = self._past[name], values[name]
        if len(past) == self.cfg.window and value > factor * (median := statistics.median(past)):
          raise Alarm(step, f"{name}={value:.4g} is {value / median:.1f} times its median of {len(past)} steps")
        past.append(value)

  def _alarms(self) -> list[dict]:
    assert self.alarms is not None, "restore_history comes first where the file of alarms is damaged"
    return self.alarms

  def numbers(self) -> dict[str, float]:
    """Returns the metrics of the newest alarm."""
    last = self._alarms()[-1]
    return {"alarm_step": last["step"], "skipped_batches": len(self.skipped), "rate_factor": self.rate(last["step"])}

  def history(self) -> str:
    """Returns the numbers before this step and the alarms, as text that is saved with each checkpoint."""
    return json.dumps({**{name: list(past) for name, past in self._past.items()}, "alarms": self.alarms})

  def restore_history(self, text: str | None) -> None:
    """Restores the numbers before this step from `history`; None begins without any."""
    past = {} if text is None else strict_json.loads_or_none(text)
    if not _is_history(past):
      log.warning("The checkpoint's %s is damaged; the running medians begin anew.", HISTORY)
      past = {}
    self._reset(past)
    if self.alarms is None:
      self.alarms = past.get("alarms") or []

  def _reset(self, past):
    self._past = {name: collections.deque(past.get(name, ()), maxlen=self.cfg.window) for name in ("loss", "grad_norm")}

  def roll_back(self, alarm: Alarm, checkpoints: Any) -> None:
    """Decides which batches to skip and where to resume, and records it; the newest remaining checkpoint is where.

    The newest checkpoint is good as far as one can see: none is saved before its step was checked. If the same step
    alarms again, the run rolls back one checkpoint further and skips twice as many batches.

    Args:
      alarm: what happened.
      checkpoints: a Checkpoints; those after the step to resume at are removed.

    Raises:
      FloatingPointError: this is the alarm after `give_up` rollbacks.
    """
    steps, last = checkpoints.steps(), self._alarms()[-1] if self.alarms else None
    stalled = last is not None and max(steps, default=0) <= last["step"]
    again = last is not None and stalled and alarm.step <= last["step"]
    alarms = last["alarms"] + 1 if last and stalled else 1
    times = last["times"] + 1 if last and again else 1
    older = [step for step in steps if not (last and again) or step < last["restored"]]
    restored = max(older or steps[:1], default=0)
    if alarms > self.cfg.give_up:
      raise FloatingPointError(_given_up(alarm, alarms - 1, restored))
    first = max(restored, alarm.step - self.cfg.skip * 2 ** (times - 1))
    numbers = [batch_number(step, self.skipped) for step in range(first, alarm.step)]
    checkpoints.forget_after(restored)
    self._alarms().append({
      "step": alarm.step, "why": alarm.why, "skipped": numbers, "restored": restored, "alarms": alarms, "times": times,
    })  # fmt: skip
    if jax.process_index() == 0:
      files.write_json(self._path, self.alarms, indent=1)
      log.warning(
        "%s: resuming from step %d without batch %s (alarm %d of %d since the last new checkpoint)",
        alarm, restored, ", ".join(map(str, numbers)), alarms, self.cfg.give_up,
      )  # fmt: skip


def batch_number(step: int, skipped: set[int]) -> int:
  """Returns the number of the batch of a step, both counted from 0; each skipped batch moves the later ones up."""
  for number in sorted(skipped):
    step += number <= step
  return step


def _are_alarms(value):
  return isinstance(value, list) and all(isinstance(alarm, dict) and _is_alarm(alarm) for alarm in value)


def _is_alarm(alarm):
  skipped = alarm.get("skipped")
  numbers = [alarm.get(name) for name in ("step", "restored", "alarms", "times")]
  return isinstance(skipped, list) and all(type(number) is int for number in numbers + skipped)


def _is_history(value):
  """Returns whether a value is what `Guard.history` writes; older versions wrote fewer fields."""
  if not isinstance(value, dict) or not _are_alarms(value.get("alarms") or []):
    return False
  past = [value.get(name, []) for name in ("loss", "grad_norm")]
  return all(isinstance(numbers, list) and all(isinstance(x, int | float) for x in numbers) for numbers in past)


def _given_up(alarm, times, restored):
  what = f"the checkpoint of step {restored} is sound" if restored else "there is no checkpoint yet"
  tried = f" again, after {times} rollbacks" if times else ""
  return (
    f"{alarm}{tried}; {what}. Usually the learning rate is too high for the batch: lower optimizer.learning_rate or "
    "lengthen the warm-up; guard.give_up is how often a run rolls back."
  )


def advice(
  metrics: Mapping[str, float],
  baselines: Mapping[str, tuple[float, str]],
  step: int,
  learning_rate: float,
  is_finetuning: bool,
  small_model: str = "",
) -> str:
  """Returns advice if no held-out metric is better than its baseline, else ''.

  Args:
    metrics: the held-out metrics.
    baselines: {metric: (value, what it is)}, as in tasks.Task.
    step: the step of the metrics.
    learning_rate: one lower than this run's, to suggest.
    is_finetuning: whether the run began from a checkpoint.
    small_model: flags to suggest instead if the model is small and the optimizer is for larger ones; '' for none.
  """
  known = {name: value for name, value in baselines.items() if name in metrics}
  if not known or any(_is_better(name, metrics[name], value) for name, (value, _) in known.items()):
    return ""
  listed = ", ".join(f"{name} {metrics[name]:.3f} ({what}: {value:.3f})" for name, (value, what) in known.items())
  if step < (EARLY_FINETUNING if is_finetuning else EARLY):
    return (
      f"After {step} steps it is too early to tell whether this run learns: {listed}. Train longer, as "
      f"--config.steps={max(10 * step, 100)}"
    ) + (f"; this run's optimizer is for larger models: {small_model}, in a new --workdir" if small_model else "")
  if small_model:
    return (
      f"No held-out metric is better than its baseline after {step} steps: {listed}. This run's optimizer is for "
      f"larger models; try {small_model} in a new --workdir"
    )
  cause = "a degenerate run: lower the learning rate or take another seed" if is_finetuning else (
    "the learning rate of a large batch at a smaller one, or a warm-up that is too short"
  )  # fmt: skip
  more = " or --config.seed=…" if is_finetuning else ""
  return (
    f"No held-out metric is better than its baseline after {step} steps: {listed}. Usually that is {cause}; "
    f"try --config.optimizer.learning_rate={learning_rate:.2g}{more} in a new --workdir"
  )


def _is_better(name, value, baseline):
  """Returns whether a metric is better than its baseline by more than chance makes it."""
  return value < 0.99 * baseline if name.endswith("loss") else value > baseline + 0.01
