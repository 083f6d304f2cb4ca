"""How long a run is, computed once: epochs, tokens and hours become steps, curricula become stages."""

import math
from dataclasses import dataclass

from albert_jax.errors import UserError


@dataclass(frozen=True)
class Part:
  """A share of a run, from `begin` to `end`, both within 0 and 1, in which nothing changes."""

  begin: float
  end: float
  batch_size: int
  seq_length: int
  num_hidden_layers: int


@dataclass(frozen=True)
class Stage:
  """Steps [first, last) of a run, its part by number, and the row of the data with which batch 0 would begin."""

  first: int
  last: int
  part: int
  first_row: int


def parse(name: str, text: str) -> list[tuple[float, int]]:
  """A curriculum "128:0.5,256:0.9" as [(0.5, 128), (0.9, 256)]: a value, and until which share of the run it holds."""
  try:
    pairs = [(float(until), int(value)) for value, until in (part.split(":") for part in text.split(",") if part)]
  except ValueError:
    pairs = [(0.0, 0)]
  ends = [until for until, _ in pairs]
  if any(not 0 < end < 1 for end in ends) or ends != sorted(set(ends)) or any(value < 1 for _, value in pairs):
    raise UserError(
      f"curriculum.{name}={text!r} must be VALUE:UNTIL pairs, until being growing shares of the run below 1, "
      f"as --config.curriculum.{name}=128:0.9; the rest of the run has the config's own value"
    )
  return pairs


def parts(curriculum, batch_size: int, seq_length: int, num_hidden_layers: int) -> list[Part]:
  """The parts of a run. Args: curriculum: {name: text}, see `parse`. The others: the config's own values."""
  own = {"batch_size": batch_size, "seq_length": seq_length, "num_hidden_layers": num_hidden_layers}
  parsed = {name: [*parse(name, curriculum[name]), (1.0, value)] for name, value in own.items()}
  ends = sorted({end for pairs in parsed.values() for end, _ in pairs})
  return [
    Part(begin, end, **{name: next(v for until, v in pairs if end <= until) for name, pairs in parsed.items()})
    for begin, end in zip([0.0, *ends], ends, strict=False)
  ]


def total_steps(*, steps: int, epochs: float, tokens: float, hours: float, train_rows: int, parts) -> int:
  """The steps of a run limited by at most one of epochs, tokens and hours; without any, and for hours, it is `steps`.

  Args: train_rows: rows of an epoch. parts: see `parts`; a batch that grows makes the run shorter.
  """
  limits = {"epochs": epochs, "tokens": tokens, "hours": hours}
  if len(given := [f"{name}={value}" for name, value in limits.items() if value]) > 1:
    raise UserError(f"{' and '.join(given)} both limit the run; set one of them to 0")
  if min(*limits.values(), steps - 1) < 0:
    raise UserError(
      f"steps={steps}, epochs={epochs}, tokens={tokens}, hours={hours}: expected steps of 1 or more, the others not "
      "below 0"
    )
  if epochs:
    if not train_rows:
      raise UserError(f"epochs={epochs}: how long an epoch is, is not known for this task; give --config.steps")
    return max(1, math.ceil(epochs * train_rows / sum((p.end - p.begin) * p.batch_size for p in parts)))
  if tokens:
    return max(1, math.ceil(tokens / sum((p.end - p.begin) * p.batch_size * p.seq_length for p in parts)))
  return steps


def steps_in(seconds: float, parts, seconds_a_step: list[float], seconds_an_evaluation: float, eval_every: int) -> int:
  """How many steps fit into a time, evaluations included. Args: seconds_a_step: one for each of `parts`.

  Raises: UserError where not even one does.
  """
  step = sum((p.end - p.begin) * cost for p, cost in zip(parts, seconds_a_step, strict=True))
  steps = int((seconds - seconds_an_evaluation) / (step + seconds_an_evaluation / eval_every))
  if steps < 1:
    raise UserError(
      f"hours: after the compiler {max(seconds, 0):.0f} seconds are left, a step takes {step:.2f} and an evaluation "
      f"{seconds_an_evaluation:.1f}; give more --config.hours"
    )
  return steps


def stages(parts, steps: int) -> list[Stage]:
  """The stages of a run of `steps` steps; parts too short for a step are left out."""
  found, rows = [], 0
  for i, part in enumerate(parts):
    first, last = round(part.begin * steps), round(part.end * steps)
    if last > first:
      found.append(Stage(first, last, i, rows - first * part.batch_size))
      rows += (last - first) * part.batch_size
  return found
