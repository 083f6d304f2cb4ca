"""Writing a folder so that nobody ever sees half of it."""

import contextlib
import os
import pathlib
import shutil
import tempfile

from albert_jax import files
from albert_jax.errors import UserError


@contextlib.contextmanager
def new_folder(path, *, overwrite=False):
  """Yields a temporary folder beside `path`, which takes its place when the block ends, and vanishes if it fails.

  Raises:
    UserError: something is at `path` already, and `overwrite` is not set.
  """
  if files.is_url(path):
    raise UserError(f"{path} is not on this machine; write to a folder here, and copy it: gcloud storage cp -r DIR URL")
  path = pathlib.Path(path)
  taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
  if taken and not overwrite:
    raise UserError(f"{path} exists already; choose another place or say --overwrite")
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
  try:
    yield temporary
    umask = os.umask(0)
    os.umask(umask)
    # mkdtemp makes a private folder, and safetensors private files; these are as readable as any of the user's.
    for each in (temporary, *temporary.rglob("*")):
      each.chmod((0o777 if each.is_dir() else 0o666) & ~umask)
    if path.exists():
      # A folder that holds something cannot be replaced in one step; for an instant there is none.
      old = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
      path.rename(old / "x")
      temporary.rename(path)
      shutil.rmtree(old)
    else:
      temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
