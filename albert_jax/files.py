"""Files on this machine or in any store that fsspec knows (gs://, s3://): each appears only when it is whole."""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import pathlib
import shutil
import sys
import tempfile

from albert_jax.errors import UserError, message_lines

BLOCK = 1 << 24  # bytes read at a time
AT_ONCE = 8  # files fetched at the same time


class Unreachable(OSError):
  """A store, or the way to it, does not work at the moment; says nothing of what is in it."""


def is_url(path) -> bool:
  """Whether a path names a store, as gs://BUCKET/FOLDER."""
  return "://" in str(path)


def filesystem(path):
  """The file system of a path and the path's name in it.

  Raises: UserError where it takes a package that is not installed, or no store is called so.
  """
  import fsspec  # Here, as most commands never need it.

  # What was listed a moment ago may be wrong by now: TensorStore and other hosts write there too.
  fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
  for log in map(logging.getLogger, ("fsspec", "gcsfs")):  # They log with all their frames what they raise too.
    if log.level == logging.NOTSET:  # Else somebody wants to hear it.
      log.setLevel(logging.CRITICAL)
  try:
    return fsspec.core.url_to_fs(os.path.expanduser(str(path)))
  except ImportError as error:
    how = "pip install 'albert-jax[gcs]'" if str(path).startswith(("gs://", "gcs://")) else str(error)
    raise UserError(f"{path} needs a package that is not installed; install it with: {how}") from None
  except ValueError as error:
    raise UserError(f"{path} is in no store that is known here ({error}); give gs://BUCKET/NAME, or a path") from None


@contextlib.contextmanager
def reaching(path):
  """Makes the many kinds of errors of a store two, each one line.

  Raises: UserError for what is not there or not allowed; Unreachable for what may be well the next time. Errors of
    files on this machine stay as they are.
  """
  try:
    yield
  except (UserError, Unreachable):
    raise
  except Exception as error:
    if not is_url(path):
      raise
    said = " ".join(message_lines(error))[:300]
    if isinstance(error, FileNotFoundError):
      raise UserError(f"{path}: not found ({said}); check its name") from error
    if isinstance(error, PermissionError) or "orbidden" in said or getattr(error, "code", None) in (401, 403):
      raise UserError(f"{path}: not allowed ({said}); check what this machine's account may do there") from error
    raise Unreachable(f"{path} could not be reached: {type(error).__name__}: {said}") from error


def is_local(path):
  """Whether a path is on this machine."""
  from fsspec.implementations.local import LocalFileSystem

  return isinstance(filesystem(path)[0], LocalFileSystem)


@contextlib.contextmanager
def writing(path):
  """Gives a local path to write to; the file gets its name, or is uploaded, when the block ends without an error."""
  fs, name = filesystem(path)
  fs.makedirs(name.rsplit("/", 1)[0], exist_ok=True)
  beside = os.path.dirname(name) if is_local(path) else None
  with tempfile.TemporaryDirectory(prefix=".writing.", dir=beside) as folder:
    local = os.path.join(folder, name.rsplit("/", 1)[-1])
    yield local
    if is_local(path):
      os.replace(local, name)
    else:
      upload(local, path)


def upload(file, path):
  """Copies a file of this machine to a store, where it appears whole."""
  fs, name = filesystem(path)
  with reaching(path):
    fs.put_file(str(file), name)


def write(path, data):
  """Writes bytes."""
  with writing(path) as local:
    pathlib.Path(local).write_bytes(data)


def read(path):
  """The bytes of a file."""
  fs, name = filesystem(path)
  with reaching(path):
    return fs.cat_file(name)


def blocks(path):
  """The bytes of a file, a part at a time."""
  fs, name = filesystem(path)
  with reaching(path), fs.open(name, "rb") as file:
    while block := file.read(BLOCK):
      yield block


def exists(path):
  """Whether a file or folder is there."""
  fs, name = filesystem(path)
  with reaching(path):
    return fs.exists(name)


def sizes(folder):
  """{name: bytes} of the files in a folder, by name."""
  fs, name = filesystem(folder)
  return {
    entry["name"].rsplit("/", 1)[-1]: entry["size"]
    for entry in sorted(fs.ls(name, detail=True), key=lambda e: e["name"])
  }


def everything(path):
  """{name: fsspec's facts} of all files in a folder and in those inside it, by name; {} if it is not there.

  Names begin at the folder. A path that is a file itself has the name ''.
  """
  fs, name = filesystem(path)
  with reaching(path):
    found = fs.find(name, detail=True)
    if list(found) == [name]:
      found = {name: fs.info(name)}
  return {each[len(name) :].lstrip("/"): found[each] for each in sorted(found) if not each.endswith("/")}


def remove(path):
  """Removes a file or folder with all that is in it, if it is there."""
  fs, name = filesystem(path)
  if fs.exists(name):
    fs.rm(name, recursive=True)


def move(folder, to):
  """Renames a folder."""
  fs, name = filesystem(folder)
  if is_local(folder):
    os.rename(name, filesystem(to)[1])
  else:
    fs.mv(name, filesystem(to)[1], recursive=True)


def cache() -> pathlib.Path:
  """The folder for what can be had again: albert_jax in ~/.cache, or in XDG_CACHE_HOME."""
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "albert_jax"


def named_after(text: str) -> str:
  """A name for a folder, different for each text."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=64)
def local(path):
  """A copy on this machine of a file or folder in a store; a path on this machine as it is.

  A copy is kept, under `cache`, until what is in the store is another; a process looks once. Processes that want the
  same one wait for each other, and what one of them had fetched when it was killed is not fetched again.
  Returns: str for what is in a store.
  Raises: UserError where there is nothing or no room; Unreachable.
  """
  if not is_url(path):
    return path
  path = str(path).rstrip("/")
  found = everything(path)
  if not found:
    raise UserError(f"nothing at {path}; check its name")
  version = repr([(name, _version(facts)) for name, facts in found.items()])
  place = cache() / "copies" / named_after(path + version) / path.rsplit("/", 1)[-1]
  place.parent.mkdir(parents=True, exist_ok=True)
  with open(place.parent / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    _fetch(path, found, place)
  return str(place)


def _version(facts):
  """What changes with a file's contents, of what a store tells of it."""
  names = ("size", "generation", "crc32c", "md5Hash", "ETag", "created", "mtime", "LastModified")
  return [str(facts.get(name)) for name in names]


def _fetch(path, found, place):
  """Copies the files `found` at `path` to `place`, but for those that are there already."""
  from tqdm import tqdm  # Here, as every command imports this file.

  fs, root = filesystem(path)
  wanted = {name: facts["size"] for name, facts in found.items() if not _has_size(place / name, facts["size"])}
  total = sum(wanted.values())
  if not wanted:
    return
  if total > (free := shutil.disk_usage(place.parent).free):
    raise UserError(
      f"{path} takes {total / 2**30:.1f} GiB, but {place.parent} has room for {free / 2**30:.1f}; make room, or name a "
      "folder on another disk by the environment variable XDG_CACHE_HOME"
    )
  print(f"Fetching {path} ({len(wanted)} files, {total / 2**20:.1f} MiB) to {place}", file=sys.stderr)
  bar = tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty())

  def fetch(name):
    to = place / name
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f".{to.name}.part")
    with reaching(path):
      fs.get_file(f"{root}/{name}" if name else root, str(part))
    if not _has_size(part, wanted[name]):
      raise OSError(f"{name or path} came with {part.stat().st_size} bytes instead of {wanted[name]}")
    part.replace(to)
    bar.update(wanted[name])

  with contextlib.closing(bar), concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    list(pool.map(fetch, wanted))


def _has_size(path, size):
  return path.is_file() and path.stat().st_size == size
