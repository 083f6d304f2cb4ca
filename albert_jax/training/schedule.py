"""The learning rate as a function of the step: plain numbers on the host, in double precision."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from albert_jax.errors import UserError

if TYPE_CHECKING:
  from albert_jax.training.optimizer import OptimizerConfig

WARMUP_SHARE = 0.1  # of the run, where warmup_steps=-1; as in BERT's fine-tuning

# The share of the peak after the warm-up, from 1 down to 0. Args: the config, the step, the steps of the run.
SHAPES = {
  # The original counts this decay from step 0, so that the rate falls at once from the peak to
  # peak * (1 - warmup / steps) when the warm-up ends; `textbook` counts from there.
  "polynomial": lambda cfg, n, steps: _ahead(n, cfg.warmup_steps if cfg.textbook else 0, steps) ** cfg.decay_power,
  "cosine": lambda cfg, n, steps: (1 - math.cos(math.pi * _ahead(n, cfg.warmup_steps, steps))) / 2,
  "wsd": lambda cfg, n, steps: _ahead(n, (1 - cfg.decay_share) * steps, steps) ** cfg.decay_power,
  "inverse_sqrt": lambda cfg, n, steps: math.sqrt(cfg.warmup_steps / n),
  "constant": lambda cfg, n, steps: 1.0,
}
ENDLESS = ("inverse_sqrt", "constant")  # They do not depend on how long the run is.
SCALES = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # The power of batch_size / reference_batch.


def peak(cfg: "OptimizerConfig", batch_size: int | None = None) -> float:
  """Returns the highest learning rate for batches of `batch_size` rows."""
  power = SCALES[cfg.scale_with_batch]
  if not power:
    return cfg.learning_rate
  if not batch_size:
    raise ValueError(f"scale_with_batch={cfg.scale_with_batch!r} needs the batch size")
  return cfg.learning_rate * (batch_size / cfg.reference_batch) ** power


def warmup_steps(cfg: "OptimizerConfig", steps: int) -> int:
  """Returns the steps of the warm-up in a run of `steps` steps: those of the config, or a share of the run for -1."""
  return int((steps - cfg.rewarm_from) * WARMUP_SHARE) if cfg.warmup_steps == -1 else cfg.warmup_steps


def schedule(cfg: "OptimizerConfig", steps: int, batch_size: int | None = None) -> Callable[[int], float]:
  """Returns the learning rate of a run: a function of the step, counted from 0.

  Linear warm-up to the peak, then `cfg.schedule` down to `cfg.final_rate` of it at the end. With `cfg.rewarm_from` all
  this begins at that step, for a run that goes on with the weights, optimizer and step of another.

  Args:
    cfg: the optimizer's config.
    steps: the steps of the run.
    batch_size: rows of a batch, see `peak`.

  Raises:
    UserError: the parts of the schedule do not fit into the run.
  """
  cfg = dataclasses.replace(cfg, warmup_steps=warmup_steps(cfg, steps))
  start, warmup, highest = cfg.rewarm_from, cfg.warmup_steps, peak(cfg, batch_size)
  length, shape = steps - start, SHAPES[cfg.schedule]
  if not 0 <= start < steps:
    raise UserError(f"optimizer.rewarm_from={start} must be a step of the run, below steps={steps}; 0 is its beginning")
  if not 0 <= warmup < length:
    span = f"steps={steps}" if not start else f"the {length} steps from optimizer.rewarm_from={start} to steps={steps}"
    raise UserError(
      f"optimizer.warmup_steps={warmup} must be below {span}; try --config.optimizer.warmup_steps={length // 10}"
    )
  if cfg.schedule == "wsd" and warmup > (1 - cfg.decay_share) * length:
    raise UserError(
      f"optimizer.warmup_steps={warmup} and the decay, optimizer.decay_share={cfg.decay_share} of {length} steps, "
      f"overlap; try --config.optimizer.warmup_steps={int((1 - cfg.decay_share) * length) // 2}"
    )
  if cfg.schedule == "inverse_sqrt" and not warmup:
    raise UserError(
      "optimizer.schedule='inverse_sqrt' is the peak times sqrt(warmup_steps / step), so it needs a warm-up; "
      f"try --config.optimizer.warmup_steps={max(1, length // 10)}"
    )
  lowest = 0.0 if cfg.schedule in ENDLESS else cfg.final_rate

  def rate(step: int) -> float:
    n = step - start
    if n < 0:
      raise UserError(
        f"optimizer.rewarm_from={start} is ahead of this run, which is at step {step}; it is for a run that begins "
        "there, with --config.init_from and --config.init_optimizer=True"
      )
    if n < warmup:
      return highest * n / warmup
    return highest * (lowest + (1 - lowest) * shape(cfg, n, length))

  return rate


def _ahead(n, begin, end) -> float:
  """Returns the share of [begin, end] that is after step `n`, within 0 and 1."""
  # `begin` may round to `end`, where the decay is a tiny share of the run.
  if not begin < n < end:
    return 1.0 if n <= begin else 0.0
  return 1 - (n - begin) / (end - begin)
