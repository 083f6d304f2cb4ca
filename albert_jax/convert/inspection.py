"""Shows every variable of a checkpoint: what `albert-jax convert --inspect` prints."""

import os

import numpy as np

from albert_jax import model
from albert_jax.convert.load import find


def inspect(path: str | os.PathLike) -> str:
  """Returns a table of every variable at `path`, what is missing, and what is not used, as text."""
  format, place = find(path)
  cfg, tensors, names, table, notes = format.survey(place)
  entries = {entry.name: entry for entry in table}
  rows = [("name there", "name here", "shape", "type", "mean", "std")]
  unused = []
  for name, tensor in tensors.items():
    entry = entries.get(names[name])
    if entry is None or name in notes:
      target = f"({notes.get(name, 'NOT USED')})"
      unused += [] if name in notes else [name]
    else:
      target = entry.path + (f"[{', '.join(map(str, entry.index))}]" if entry.index else "")
      if tensor.shape != entry.file_shape:
        target += f" EXPECTED {list(entry.file_shape)}"
    value = np.asarray(tensor, np.float64)
    numbers = (f"{value.mean():.4g}", f"{value.std():.4g}") if value.size else ("", "")
    rows.append((name, target, "x".join(map(str, tensor.shape)) or "scalar", str(tensor.dtype), *numbers))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  missing = [entry.name for entry in table if entry.name not in names.values()]
  lines += ["", f"{place}: {format.__name__.rpartition('.')[2]}, {cfg}"]
  lines += [f"missing: {', '.join(missing) or 'nothing'}", f"not used: {', '.join(unused) or 'nothing'}"]
  parts = {entry.path.split("/")[0] for entry in table}
  absent = [part for part in model.OPTIONAL if part not in parts]
  lines += [f"parts that are not there: {', '.join(absent)}"] if absent else []
  return "\n".join(lines)
