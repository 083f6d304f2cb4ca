"""The rows of a bench: each a JSON line as soon as it is measured, and the table of all of them."""

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

from albert_jax import files
from albert_jax.errors import one_line

RESULTS, REPORT = "results.jsonl", "report.md"
ROW_SECONDS = 10  # No row begins with less time left.
# The columns of the table: heading, field of a row, format.
COLUMNS = (
  ("tokens/s", "tokens_per_s", "{:,.0f}"), ("ms", "ms", "{:,.2f}"), ("TFLOP/s", "tflops", "{:,.2f}"),
  ("of the datasheet", "of_datasheet", "{:.1%}"), ("of the measured product", "of_measured", "{:.1%}"),
  ("GiB", "gib", "{:.2f}"), ("compile s", "compile_s", "{:.1f}"),
)  # fmt: skip
NOT_RUN = ("skipped", "error")


class Skip(Exception):
  """A row cannot be measured on this machine; the message is the reason."""


class Rows:
  """The rows of one stage."""

  def __init__(self, folder: pathlib.Path, stage: str, until: float):
    """Keeps where rows are written.

    Args:
      folder: the folder of the bench.
      stage: the stage whose rows are added.
      until: the time, as time.time() returns it, after which no row begins.
    """
    self.folder, self.stage, self.until = folder, stage, until

  def left(self) -> float:
    """Seconds in which a row may begin."""
    return self.until - time.time()

  def add(self, row: str, **values: Any) -> None:
    """Writes a row immediately: a line of results.jsonl, and one on stdout."""
    line = {"stage": self.stage, "row": row, **values}
    with (self.folder / RESULTS).open("a") as file:
      file.write(json.dumps({**line, "time": round(time.time(), 1)}, default=float) + "\n")
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in values.items()}
    print(f"{self.stage}: {row}:", *(f"{k} {v}" for k, v in shown.items()), flush=True)

  def measure(self, row: str, function: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> None:
    """Adds the row that a function returns; on failure, or if no time is left, a row with the reason."""
    if self.left() < ROW_SECONDS:
      return self.add(row, skipped=f"no time left ({max(0, self.left()):.0f} s)")
    try:
      values = function(*args, **kwargs)
    except Skip as reason:
      values = {"skipped": str(reason)}
    except Exception as error:  # Whatever a compiler or driver raises; the next row may still work.
      values = {"error": one_line(error)[:300]}
    self.add(row, **values)


def checked(value: float, limit: float) -> dict[str, Any]:
  """Returns the fields of a check: it passes if the value does not exceed the limit."""
  return {"value": float(value), "limit": limit, "passed": bool(value <= limit)}


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows so far; a line that was cut off is left out."""
  path = folder / RESULTS
  lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith("\n")]


def write_report(folder: pathlib.Path, command: str) -> None:
  """Writes report.md: one table of all rows, then what was not run and why.

  Args:
    folder: the folder of the bench.
    command: what was typed.
  """
  rows = read(folder)
  machine = next((row for row in rows if row["row"] == "machine" and "device" in row), {})
  day = time.strftime("%Y-%m-%d", time.gmtime())
  versions = ", ".join(
    f"{name} {machine[name]}" for name in ("albert_jax", "jax", "python", "cores") if name in machine
  )
  lines = [
    f"# {machine.get('device', 'A machine that could not be used')}", "",
    f"Measured {day} with `{command}`; {versions}.",
    "One device. Times are medians. GiB is what the compiled program needs; of PyTorch, the most it allocated.", "",
    f"| stage | row | {' | '.join(heading for heading, _, _ in COLUMNS)} | result |",
    "|---" * (len(COLUMNS) + 3) + "|",
  ]  # fmt: skip
  for row in rows:
    cells = [form.format(row[field]) if row.get(field) is not None else "" for _, field, form in COLUMNS]
    lines.append(f"| {' | '.join([row['stage'], row['row'], *cells, _result(row)])} |")
  missing = [f"- {row['stage']}, {row['row']}: {_result(row)}" for row in rows if any(name in row for name in NOT_RUN)]
  lines += ["", "Not run, or failed:" if missing else "Every row was run.", "", *missing]
  files.write(folder / REPORT, "\n".join(lines).rstrip() + "\n")


def _result(row) -> str:
  for name in NOT_RUN:
    if name in row:
      return f"{name}: {row[name]}".replace("|", "/")
  if "passed" in row:
    return f"{'passed' if row['passed'] else 'FAILED'}: {row['value']:.2g}, limit {row['limit']:.2g}"
  known = {"stage", "row", "time", *(field for _, field, _ in COLUMNS)}
  rest = {name: value for name, value in row.items() if name not in known}
  return ", ".join(
    f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in rest.items()
  )
