"""Local copies of files and folders in a store."""

import concurrent.futures
import contextlib
import fcntl
import functools
import logging
import os
import pathlib
import shutil
import sys

from albert_jax import files
from albert_jax.errors import UserError

AT_ONCE = 8  # files fetched at the same time

log = logging.getLogger(__name__)


@functools.lru_cache(maxsize=64)
def local(path: str | os.PathLike) -> str:
  """Returns the path of a local copy of a file or folder in a store; local paths are returned as they are.

  The copy stays under `files.cache()` until the source changes; a process checks the source once. Processes that need
  the same copy wait for each other. A process that is killed leaves its complete files for the next one.

  Returns:
    the local path, a str.

  Raises:
    UserError: the path does not exist, or the disk has no room for it.
    files.Unreachable: the store cannot be reached.
  """
  if not files.is_url(path):
    return files.user_path(path)
  path = str(path).rstrip("/")
  facts_of = files.everything(path)
  if not facts_of:
    raise UserError(f"nothing at {path}; check its name")
  for name in filter(None, facts_of):
    files.inside(path, name)
  version = repr([(name, _version(facts)) for name, facts in facts_of.items()])
  place = files.cache() / "copies" / files.named_after(path + version) / path.rsplit("/", 1)[-1]
  place.parent.mkdir(parents=True, exist_ok=True)
  with open(place.parent / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    _fetch(path, facts_of, place)
  return str(place)


def _version(facts):
  """Returns the fields of a file's info that change with its contents."""
  names = ("size", "generation", "crc32c", "md5Hash", "ETag", "created", "mtime", "LastModified")
  return [str(facts.get(name)) for name in names]


def _fetch(path, facts_of, folder):
  """Copies the files in `facts_of` from `path` to `folder`, except those already there."""
  from tqdm import tqdm  # Here, as only this function needs it, and only for a store.

  fs, root = files.filesystem(path)
  missing = {name: facts["size"] for name, facts in facts_of.items() if not _has_size(folder / name, facts["size"])}
  total = sum(missing.values())
  if not missing:
    return
  if total > (free := shutil.disk_usage(folder.parent).free):
    raise UserError(
      f"{path} takes {total / 2**30:.1f} GiB, but {folder.parent} has {free / 2**30:.1f} GiB free; free some space, or "
      "name a folder on another disk in the environment variable XDG_CACHE_HOME"
    )
  log.info("Fetching %s (%d files, %.1f MiB) to %s", path, len(missing), total / 2**20, folder)
  bar = tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty())

  def fetch(name):
    with files.writing(folder / name) as part:
      with files.reaching(path):
        fs.get_file(f"{root}/{name}" if name else root, part)
      if not _has_size(pathlib.Path(part), missing[name]):
        raise OSError(f"{name or path} came with {os.path.getsize(part)} bytes instead of {missing[name]}")
    bar.update(missing[name])

  with contextlib.closing(bar), concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    list(pool.map(fetch, missing))


def _has_size(path, size):
  return path.is_file() and path.stat().st_size == size
