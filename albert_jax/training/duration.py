"""How long a run is, computed once: epochs, tokens and hours become steps, curricula become stages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from albert_jax.errors import UserError

LIMITS = ("steps", "epochs", "tokens", "hours")  # the fields of a config of which one limits the run


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


def parts(curriculum: Mapping[str, str], batch_size: int, seq_length: int, num_hidden_layers: int) -> list[Part]:
  """Returns the parts of a run.

  Args:
    curriculum: {name: text}, see `parse`.
    batch_size, seq_length, num_hidden_layers: the values after the curriculum.
  """
  final = {"batch_size": batch_size, "seq_length": seq_length, "num_hidden_layers": num_hidden_layers}
  parsed = {name: [*parse(name, curriculum[name]), (1.0, value)] for name, value in final.items()}
  ends = sorted({end for pairs in parsed.values() for end, _ in pairs})
  return [
    Part(begin, end, **{name: next(v for until, v in pairs if end <= until) for name, pairs in parsed.items()})
    for begin, end in zip([0.0, *ends], ends, strict=False)
  ]


def check(steps: int, epochs: float, tokens: float, hours: float) -> None:
  """Refuses a run whose length is given twice, or not at all.

  Raises:
    UserError: not exactly one of the four is above 0.
  """
  limits = {"steps": steps, "epochs": epochs, "tokens": tokens, "hours": hours}
  positive = [f"{name}={value:g}" for name, value in limits.items() if value > 0]
  if len(positive) > 1:
    raise UserError(f"{' and '.join(positive)} both limit the run; set all but one of them to 0")
  if not positive or min(limits.values()) < 0:
    text = ", ".join(f"{name}={value:g}" for name, value in limits.items())
    raise UserError(f"{text}: expected one of them above 0 and the others 0; try --config.steps=1000")


def chosen(explicit: Mapping[str, float]) -> dict[str, float]:
  """What a duration given on the command line sets besides: the config's other durations become 0.

  Args:
    explicit: {name: value} of the LIMITS given there.

  Returns:
    {name: 0} for those that were not given, {} where none above 0 was given.

  Raises:
    UserError: two of them are above 0.
  """
  positive = [f"{name}={value:g}" for name, value in explicit.items() if value > 0]
  if len(positive) > 1:
    raise UserError(f"{' and '.join(positive)} both limit the run; give one of them")
  return dict.fromkeys([name for name in LIMITS if name not in explicit], 0) if positive else {}


def total_steps(
  *, steps: int, epochs: float, tokens: float, hours: float, train_rows: int, parts: Sequence[Part]
) -> int:
  """Returns the steps of a run limited by steps, epochs or tokens; 0 for one that is limited by hours.

  Args:
    steps, epochs, tokens, hours: the limits, see `check`.
    train_rows: rows of an epoch.
    parts: see `parts`; a batch that grows makes the run shorter.

  Raises:
    UserError: the length of an epoch is not known.
  """
  check(steps, epochs, tokens, hours)
  if epochs:
    if not train_rows:
      raise UserError(
        f"epochs={epochs}: this task does not know the length of an epoch; give --config.steps, or --config.tokens"
      )
    return max(1, math.ceil(epochs * train_rows / sum((p.end - p.begin) * p.batch_size for p in parts)))
  if tokens:
    return max(1, math.ceil(tokens / sum((p.end - p.begin) * p.batch_size * p.seq_length for p in parts)))
  return steps


def steps_in(
  seconds: float, parts: Sequence[Part], seconds_a_step: Sequence[float], seconds_an_evaluation: float, eval_every: int
) -> int:
  """Returns how many steps fit into a time, evaluations included.

  Args:
    seconds: the time.
    parts: see `parts`.
    seconds_a_step: one for each of `parts`.
    seconds_an_evaluation: of one pass over the held-out split.
    eval_every: steps between evaluations.

  Raises:
    UserError: not even one step fits.
  """
  step = sum((p.end - p.begin) * cost for p, cost in zip(parts, seconds_a_step, strict=True))
  steps = int((seconds - seconds_an_evaluation) / (step + seconds_an_evaluation / eval_every))
  if steps < 1:
    raise UserError(
      f"hours: after the compiler {max(seconds, 0):.0f} seconds are left, a step takes {step:.2f} and an evaluation "
      f"{seconds_an_evaluation:.1f}; give more --config.hours"
    )
  return steps


def stages(parts: Sequence[Part], steps: int) -> list[Stage]:
  """Returns the stages of a run of `steps` steps; parts too short for a step are left out."""
  result: list[Stage] = []
  rows = 0
  for i, part in enumerate(parts):
    first, last = round(part.begin * steps), round(part.end * steps)
    if last > first:
      result.append(Stage(first, last, i, rows - first * part.batch_size))
      rows += (last - first) * part.batch_size
  return result
