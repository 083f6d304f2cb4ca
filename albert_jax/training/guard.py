"""Sick runs: what is noticed, and what is done about it. The loop goes back and leaves out the batches that did it."""

import collections
import json
import math
import statistics
import sys
from dataclasses import dataclass

import jax

from albert_jax import files
from albert_jax.errors import UserError

HISTORY = "guard.json"  # in a run's folder: the alarms; in a checkpoint's: the numbers of the steps before it


@dataclass(frozen=True)
class GuardConfig:
  """When a run is sick, and how often it may try again.

  A loss, gradient or update that is no finite number always is. A spike is a number far above its running median.
  """

  give_up: int = 3  # goes back so often without a new checkpoint between; 0: ends at the first alarm
  skip: int = 1  # batches that are left out, the sick step's and those before it; twice as many when it comes again
  cut_rate: float = 1.0  # factor on the learning rate from there on; 1.0: none
  loss_spike: float = 0.0  # the loss is this many times its median; 0: is not looked at
  grad_spike: float = 0.0  # and so for the norm of the gradient
  window: int = 100  # steps whose median it is, and before which nothing counts as a spike

  def __post_init__(self):
    for name in ("loss_spike", "grad_spike"):
      if getattr(self, name) and not getattr(self, name) > 1:
        raise UserError(f"guard.{name}={getattr(self, name)} must be above 1, or 0 to look at no spikes")
    if not 0 < self.cut_rate <= 1:
      raise UserError(f"guard.cut_rate={self.cut_rate} must be above 0 and up to 1, which cuts nothing")
    if self.give_up < 0 or min(self.skip, self.window) < 1:
      raise UserError(
        f"guard: give_up={self.give_up} must be 0 or more, skip={self.skip} and window={self.window} 1 or more"
      )


class Alarm(Exception):
  """Step `step` (counted from 1) is sick, and `why`."""

  def __init__(self, step: int, why: str):
    super().__init__(f"{why} at step {step}")
    self.step, self.why = step, why


class Guard:
  """Looks at every step, one behind the device; remembers in the run's folder which batches are left out.

  All hosts see the same numbers, so all decide alike; the first one writes.
  """

  def __init__(self, cfg: GuardConfig, workdir, is_new: bool):
    """Args: is_new: whether the run begins, so that what an earlier one in this folder left is forgotten."""
    self.cfg, self._path = cfg, workdir / HISTORY
    if is_new and jax.process_index() == 0:
      self._path.unlink(missing_ok=True)
    self.alarms = json.loads(self._path.read_text()) if not is_new and self._path.exists() else []
    self.recall(None)

  @property
  def skipped(self) -> set[int]:
    """Numbers of the batches that are left out."""
    return {number for alarm in self.alarms for number in alarm["skipped"]}

  def rate(self, step: int) -> float:
    """What the learning rate of a step (counted from 1) is multiplied with."""
    return self.cfg.cut_rate ** sum(alarm["restored"] < step for alarm in self.alarms)

  def look(self, step: int, sums, scalars):
    """Takes the numbers of a step, see training/step.py, on the host. Raises: Alarm."""
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

  def numbers(self) -> dict:
    """What is logged of the newest alarm."""
    last = self.alarms[-1]
    return {"sick_step": last["step"], "skipped_batches": len(self.skipped), "rate_factor": self.rate(last["step"])}

  def remember(self) -> str:
    """What `recall` needs to go on as if nothing had been; kept with each checkpoint."""
    return json.dumps({name: list(past) for name, past in self._past.items()})

  def recall(self, text: str | None):
    """Goes on from what was remembered; from nothing, if that is all there is."""
    past = json.loads(text) if text else {}
    self._past = {name: collections.deque(past.get(name, ()), maxlen=self.cfg.window) for name in ("loss", "grad_norm")}

  def go_back(self, alarm: Alarm, saved):
    """Decides what to leave out and where to go on, and writes it down; the newest checkpoint left is where.

    The newest checkpoint is sound as far as one can see: none is saved before its step was looked at. Where the run is
    sick at the same step again, it goes one checkpoint further back and leaves out twice as many batches.
    Args: saved: Checkpoints; those after the place are removed.
    Raises: FloatingPointError after cfg.give_up times.
    """
    there, last = saved.steps(), self.alarms[-1] if self.alarms else None
    stalled = last is not None and max(there, default=0) <= last["step"]
    again = stalled and alarm.step <= last["step"]
    alarms, times = (last["alarms"] + 1 if stalled else 1), (last["times"] + 1 if again else 1)
    older = [step for step in there if not again or step < last["restored"]]
    restored = max(older or there[:1], default=0)
    if alarms > self.cfg.give_up:
      raise FloatingPointError(_given_up(alarm, alarms - 1, restored))
    first = max(restored, alarm.step - self.cfg.skip * 2 ** (times - 1))
    numbers = [batch_number(step, self.skipped) for step in range(first, alarm.step)]
    saved.forget_after(restored)
    self.alarms.append({
      "step": alarm.step, "why": alarm.why, "skipped": numbers, "restored": restored, "alarms": alarms, "times": times,
    })  # fmt: skip
    if jax.process_index() == 0:
      files.write_json(self._path, self.alarms, indent=1)
      print(
        f"{alarm}: going on from step {restored} without batch {', '.join(map(str, numbers))} (alarm {alarms} of "
        f"{self.cfg.give_up} since the last new checkpoint)",
        file=sys.stderr,
      )


def batch_number(step: int, skipped: set[int]) -> int:
  """The number of the batch of a step, both counted from 0: batches that are left out move all later ones up."""
  for number in sorted(skipped):
    step += number <= step
  return step


def _given_up(alarm, times, restored):
  what = f"the checkpoint of step {restored} is sound" if restored else "there is no checkpoint yet"
  tried = f" again, after going back {times} times" if times else ""
  return (
    f"{alarm}{tried}; {what}. Usually the learning rate is too high for the batch: lower optimizer.learning_rate or "
    "lengthen the warm-up; guard.give_up is how often a run goes back by itself."
  )


def advice(held_out: dict, baselines: dict, learning_rate: float, is_finetuning: bool) -> str:
  """What to try where a run has learned nothing; '' where it has.

  Args: held_out: {metric: value}. baselines: {metric: (value, what it is)}, as in tasks.Task. learning_rate: one lower
    than this run's, to suggest.
  """
  known = {name: value for name, value in baselines.items() if name in held_out}
  if not known or any(_is_better(name, held_out[name], value) for name, (value, _) in known.items()):
    return ""
  found = ", ".join(f"{name} {held_out[name]:.3f} ({what}: {value:.3f})" for name, (value, what) in known.items())
  usual = "a degenerate run: lower the learning rate or take another seed" if is_finetuning else (
    "the learning rate of a large batch at a smaller one, or a warm-up that is too short"
  )  # fmt: skip
  more = " or --config.seed=…" if is_finetuning else ""
  return (
    f"This run has learned nothing yet: {found}. Usually that is {usual}; "
    f"try --config.optimizer.learning_rate={learning_rate:.2g}{more} in a new --workdir"
  )


def _is_better(name, value, baseline):
  """Whether a number is clearly better than what needs no learning."""
  return value < 0.98 * baseline if name.endswith("loss") else value > baseline + 0.02
