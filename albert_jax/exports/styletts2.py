"""Exports a PL-BERT as the folder that StyleTTS2 reads (`PLBERT_dir` of its config)."""

import os
import pathlib

import numpy as np

from albert_jax import convert, files, paths, strict_json
from albert_jax.convert import styletts2
from albert_jax.exports.folder import Differs


def export(checkpoint: str | os.PathLike, out: str | os.PathLike, *, overwrite: bool = False) -> dict:
  """Writes the folder, reads it again and compares every weight bit by bit.

  Args:
    checkpoint: anything `albert_jax.load` reads; the step of a run's workdir becomes the N of `step_N.t7`.
    out: the new folder; it is written atomically.
    overwrite: replace what is at `out`.

  Returns:
    {"files": {name: bytes}}.

  Raises:
    UserError: the checkpoint cannot be read, or `out` is taken.
    Differs: a written weight differs from the model's.
  """
  cfg, params = convert.load(checkpoint)
  with files.writing_folder(out, overwrite=overwrite) as folder:
    styletts2.save(
      folder, cfg, params, step=_step(checkpoint), symbols=convert.load_symbols(checkpoint), overwrite=True
    )
    _, back = convert.load(folder)
    flat = paths.flatten(params)
    for path, value in paths.flatten(back).items():
      if not np.array_equal(value, flat[path]):
        raise Differs(f"{out}: {path} differs after writing, so nothing is written")
  return {"files": {file.name: file.stat().st_size for file in sorted(pathlib.Path(out).iterdir())}}


def _step(checkpoint) -> int:
  """Returns the last step of a run; 1 for any other checkpoint."""
  file = pathlib.Path(checkpoint) / "metrics.jsonl"
  lines = strict_json.sound_objects(file.read_text("utf-8", "replace") if file.is_file() else "")
  steps = [line["step"] for line in lines if isinstance(line.get("step"), int)]
  return steps[-1] if steps else 1
