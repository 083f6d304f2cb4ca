"""How long a run is, computed once: epochs, tokens and hours become steps, curricula become stages."""

import math
from dataclasses import dataclass

from albert_jax.errors import UserError

CURRICULA = ("batch_size", "seq_length", "num_hidden_layers")


@dataclass(frozen=True)
class Stage:
  """Steps [first, last) of a run, in which nothing changes. `rows_before`: how many rows the stages before it read."""

  first: int
  last: int
  batch_size: int
  seq_length: int
  num_hidden_layers: int
  rows_before: int


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


def shares(curriculum: dict, final: dict) -> list[tuple[float, float, dict]]:
  """[(begin, end, {name: value})] of a run, as shares of its steps. `final`: the config's own values."""
  parsed = {name: [*parse(name, curriculum[name]), (1.0, final[name])] for name in CURRICULA}
  ends = sorted({end for pairs in parsed.values() for end, _ in pairs})
  return [
    (begin, end, {name: next(v for until, v in pairs if end <= until) for name, pairs in parsed.items()})
    for begin, end in zip([0.0, *ends], ends, strict=False)
  ]


def total_steps(*, steps: int, epochs: float, tokens: float, train_rows: int, parts) -> int:
  """The steps of a run limited by at most one of epochs and tokens; without either it is `steps`.

  Args: train_rows: rows of an epoch. parts: see `shares`; a batch that grows makes the run shorter.
  """
  if epochs and tokens:
    raise UserError(f"epochs={epochs} and tokens={tokens} both limit the run; set one of them to 0")
  if min(epochs, tokens, steps - 1) < 0:
    raise UserError(
      f"steps={steps}, epochs={epochs}, tokens={tokens}: expected steps of 1 or more, the others not below 0"
    )
  if epochs:
    if not train_rows:
      raise UserError(f"epochs={epochs}: how long an epoch is, is not known for this task; give --config.steps")
    return max(1, math.ceil(epochs * train_rows / sum((end - begin) * v["batch_size"] for begin, end, v in parts)))
  if tokens:
    return max(1, math.ceil(tokens / sum((e - b) * v["batch_size"] * v["seq_length"] for b, e, v in parts)))
  return steps


def stages(parts, steps: int) -> list[Stage]:
  """The stages of a run of `steps` steps; those too short for a step are left out."""
  found, rows = [], 0
  for begin, end, values in parts:
    first, last = round(begin * steps), round(end * steps)
    if last > first:
      found.append(Stage(first, last, rows_before=rows, **values))
      rows += (last - first) * values["batch_size"]
  return found
