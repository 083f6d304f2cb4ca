"""Files on this machine or in any store that fsspec knows (gs://, s3://): each appears only when it is whole."""

import concurrent.futures
import contextlib
import fcntl
import fnmatch
import functools
import glob
import hashlib
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

from albert_jax.errors import UserError, message_lines

BLOCK = 1 << 24  # bytes read at a time
AT_ONCE = 8  # files fetched at the same time
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "hf": "hub"}  # which extra installs the client of a store


class Unreachable(OSError):
  """A store, or the way to it, does not work at the moment; says nothing of what is in it."""


def is_url(path) -> bool:
  """Whether a path names a store, as gs://BUCKET/FOLDER."""
  return "://" in str(path)


def user_path(path: str | os.PathLike, name: str = "a path") -> str:
  """A path as a user gave it, with `~` replaced; URLs stay as they are.

  Args:
    path: what the user gave.
    name: the argument it was given for, such as "--out", for the messages.

  Raises:
    UserError: the path is empty (most often an unset variable of a shell), or `~NAME` is no user's folder.
  """
  text = os.fspath(path)
  if not text.strip():
    raise UserError(f"{name} is empty; give a path (is a variable of the shell not set?)")
  if "\0" in text:
    raise UserError(f"{name}={text!r} has a NUL character; give another path")
  if is_url(text) or not text.startswith("~"):
    return text
  expanded = os.path.expanduser(text)
  if expanded.startswith("~") and not os.path.lexists(expanded):
    user = text.split("/")[0]
    raise UserError(f"{name}={text}: there is no user {user[1:]!r}; write ./{text} for a name that begins with ~")
  return expanded


def split_list(text: str, name: str = "a path") -> list[str]:
  """The paths in a list with commas. A file or folder that exists may have commas in its name."""
  parts = text.split(",")
  items, first = [], 0
  while first < len(parts):
    for last in range(len(parts), first, -1):
      item = ",".join(parts[first:last]).strip()
      if last == first + 1 or (item and not is_url(item) and matching(item)):
        break
    if item:
      items.append(user_path(item, name))
    first = last
  return items


def is_pattern(path: str) -> bool:
  """Whether a path has wildcards and no file of exactly that name exists."""
  return any(c in path for c in "*?[") and (is_url(path) or not os.path.lexists(os.path.expanduser(path)))


def matching(path: str) -> list[str]:
  """The files and folders that a path names, sorted: itself if it exists, else what its wildcards match.

  A leading part of the path that exists is taken literally, so that `run [a]/*.txt` finds files in a folder `run [a]`.
  """
  if is_url(path):
    fs, name = filesystem(path)
    with reaching(path):
      names = sorted(fs.glob(name)) if is_pattern(path) else [name] if fs.exists(name) else []
    return [str(fs.unstrip_protocol(each)) for each in names]
  path = user_path(path)
  if os.path.lexists(path):
    return [path]
  literal, rest = path, []
  while literal and not os.path.lexists(literal):
    literal, last = os.path.split(literal)
    rest.insert(0, last)
  pattern = os.path.join(glob.escape(literal), *rest)
  return sorted(glob.glob(pattern, recursive=True)) if is_pattern(path) else []


def inside(folder: str | os.PathLike, name: str) -> str:
  """The path of a file in a folder, for names that come from a file, a store or an archive.

  Raises:
    UserError: the name is absolute, or leads out of the folder by `..`.
  """
  parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
  if not parts or ".." in parts or parts[0] == "/" or "\0" in name or pathlib.PureWindowsPath(name).drive:
    raise UserError(f"{folder} names a file {name!r}, which is outside of it; expected a name inside the folder")
  return os.path.join(folder, name)


def filesystem(path):
  """The file system of a path and the path's name in it.

  Raises: UserError where it takes a package that is not installed, or no store is called so.
  """
  import fsspec  # Here, as most commands never need it.

  if not is_url(path):  # fsspec gives some characters of a path a meaning, such as "::".
    return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(str(path)))
  # What was listed a moment ago may be wrong by now: TensorStore and other hosts write there too.
  fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
  for log in map(logging.getLogger, ("fsspec", "gcsfs")):  # They log with all their frames what they raise too.
    if log.level == logging.NOTSET:  # Else somebody wants to hear it.
      log.setLevel(logging.CRITICAL)
  try:
    return fsspec.core.url_to_fs(str(path))
  except ImportError as error:
    extra = _EXTRAS.get(str(path).split("://")[0])
    how = f"pip install 'albert-jax[{extra}]'" if extra else str(error)
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
def writing(path: str | os.PathLike) -> Iterator[str]:
  """Yields a temporary local path to write to. The file gets its name when the block ends without an error.

  The temporary file has a random name in the same folder; it and the folders made for it are removed after an error.
  A link at `path` is replaced, not followed. A device or pipe, such as /dev/null, is written to. The file's mode is
  what the umask gives. A path in a store is uploaded.

  Raises:
    UserError: `path` is empty or a folder.
  """
  path = user_path(path)
  if is_url(path):
    with tempfile.TemporaryDirectory(prefix="albert_jax.") as folder:
      temporary = os.path.join(folder, path.rsplit("/", 1)[-1])
      yield temporary
      upload(temporary, path)
    return
  target = os.path.abspath(path)
  # Links in /dev and /proc, such as /dev/stdout, belong to the system: what they lead to is written to.
  of_system = os.path.islink(target) and os.path.realpath(os.path.dirname(target)).startswith(("/dev", "/proc"))
  special = os.path.exists(target) and (of_system or not os.path.isfile(target))
  if os.path.isdir(target) or path.endswith("/"):
    raise UserError(f"{path} is a folder; give the name of a file")
  with (
    _made_folders(None if special else os.path.dirname(target)) as beside,
    tempfile.TemporaryDirectory(prefix=".writing.", dir=beside) as folder,
  ):
    temporary = os.path.join(folder, os.path.basename(target))
    yield temporary
    if special:
      with open(temporary, "rb") as source, open(target, "wb") as device:
        shutil.copyfileobj(source, device)
    else:
      os.chmod(temporary, _default_mode(folder))
      os.replace(temporary, target)


@contextlib.contextmanager
def writing_folder(
  path: str | os.PathLike, *, overwrite: bool = False, keep_others: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a temporary folder beside `path`, which takes its place when the block ends, and vanishes after an error.

  Args:
    path: the folder to make.
    overwrite: replace a folder that is there already, if all that it holds was made by this project.
    keep_others: replace it in any case, and keep the files in it that this project did not make, unless the new folder
      has one of the same name.

  Raises:
    UserError: `path` is in a store, or is taken and may not be replaced.
  """
  if is_url(path):
    raise UserError(f"{path} is not on this machine; write to a folder here, and copy it: gcloud storage cp -r DIR URL")
  path = pathlib.Path(user_path(path))
  if not (keep_others and path.is_dir() and not path.is_symlink()):
    check_new_folder(path, overwrite=overwrite)
  with _made_folders(path.parent):
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
      yield temporary
      mode = _default_mode(temporary)
      for each in (temporary, *temporary.rglob("*")):  # Some libraries write files that only their owner can read.
        if not each.is_symlink():
          each.chmod(mode | (mode & 0o444) >> 2 if each.is_dir() else mode)
      for name in foreign_files(path) if keep_others and path.is_dir() else ():
        _link(path / name, temporary / name)
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


def _link(source, target):
  """Gives a file a second name, or copies it where the file system has no hard links. Keeps a target that exists."""
  if os.path.lexists(target):
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.link(source, target, follow_symlinks=False)
  except OSError:
    shutil.copy2(source, target, follow_symlinks=False)


# The folders that this project makes: a file by which each is known, and all files that may be in it.
_VOCABULARY = ("spiece.model", "vocab.txt", "*.model", "symbols.*")
_FOLDERS = {
  "model.safetensors": (
    "config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "README.md", "curves.png", "*.jax", "*.onnx",
    "*.onnx.data", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "symbols.json", "words.txt", *_VOCABULARY,
  ),
  "albert_config.json": ("albert_config.json", "model.ckpt-*", "checkpoint", "vocab_chinese.txt", *_VOCABULARY),
  "page.mjs": ("index.html", "*.mjs", "*.wasm", "model.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
               "LICENSE*"),
  "config.yml": ("config.yml", "step_*.t7", *_VOCABULARY),
  "prepare.json": (
    "prepare.json", "dataset_info.json", "features.json", "*.array_record*", "lengths-*.npy", "audit.png", "*.npz",
    "words.txt", "tokenizer_config.json", *_VOCABULARY,
  ),
}  # fmt: skip


def check_new_folder(path: str | os.PathLike, *, overwrite: bool = False) -> None:
  """Checks that a folder may be made at a path, here or in a store.

  Raises:
    UserError: something is there, and `overwrite` is not set or would delete what this project did not make.
  """
  path = user_path(path)
  if is_url(path):
    contents = list(everything(path))
  elif os.path.islink(path.rstrip("/")):
    raise UserError(f"{path} is a link; give the folder itself, or another place")
  elif os.path.exists(path) and not os.path.isdir(path):
    raise UserError(f"{path} exists already and is no folder; choose another place")
  else:
    contents = _contents(path)
  if not contents:
    return
  if not overwrite:
    raise UserError(f"{path} exists already; choose another place or say --overwrite")
  if foreign := _foreign(contents):
    listed = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
    raise UserError(
      f"{path} holds files that albert-jax did not make ({listed}), which --overwrite does not delete; choose another "
      "place, or remove them"
    )


def foreign_files(folder: str | os.PathLike) -> list[str]:
  """The names of the files in a folder of this machine that this project did not make, relative to the folder."""
  return _foreign(_contents(folder))


def _contents(folder):
  folder = pathlib.Path(folder)
  inner = [each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir()]
  return [each.relative_to(folder).as_posix() for each in inner]


def _foreign(contents):
  patterns = next((patterns for mark, patterns in _FOLDERS.items() if mark in contents), ())
  return [name for name in contents if not any(fnmatch.fnmatch(name.split("/")[-1], each) for each in patterns)]


@contextlib.contextmanager
def _made_folders(folder):
  """Makes a folder and those above it; after an error, removes those it made that are empty."""
  made, missing = [], os.path.abspath(folder) if folder else ""
  while missing and not os.path.isdir(missing):
    made.append(missing)
    missing = os.path.dirname(missing)
  if folder:
    os.makedirs(folder, exist_ok=True)
  try:
    yield folder
  except BaseException:
    for each in made:
      with contextlib.suppress(OSError):
        os.rmdir(each)
    raise


def _default_mode(folder) -> int:
  """The mode that a new file in a folder gets; to ask for the umask is to change it, for all threads."""
  path = os.path.join(folder, ".mode")
  number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
  try:
    return os.fstat(number).st_mode & 0o777
  finally:
    os.close(number)
    os.unlink(path)


def upload(file, path):
  """Copies a file of this machine to a store, where it appears whole."""
  fs, name = filesystem(path)
  with reaching(path):
    fs.put_file(str(file), name)


def write(path: str | os.PathLike, data: bytes | str) -> None:
  """Writes a file that appears whole, see `writing`; text as UTF-8."""
  with writing(path) as local:
    pathlib.Path(local).write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: str | os.PathLike, value: object, indent: int | None = 2) -> None:
  """Writes a value as JSON in a file that appears whole, see `writing`."""
  write(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


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
  if is_url(path):
    if fs.exists(name):
      fs.rm(name, recursive=True)
  elif os.path.isdir(name) and not os.path.islink(name):
    shutil.rmtree(name)
  elif os.path.lexists(name):
    os.unlink(name)


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
    return user_path(path)
  path = str(path).rstrip("/")
  found = everything(path)
  if not found:
    raise UserError(f"nothing at {path}; check its name")
  for name in filter(None, found):
    inside(path, name)
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
    with writing(place / name) as part:
      with reaching(path):
        fs.get_file(f"{root}/{name}" if name else root, part)
      if not _has_size(pathlib.Path(part), wanted[name]):
        raise OSError(f"{name or path} came with {os.path.getsize(part)} bytes instead of {wanted[name]}")
    bar.update(wanted[name])

  with contextlib.closing(bar), concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
    list(pool.map(fetch, wanted))


def _has_size(path, size):
  return path.is_file() and path.stat().st_size == size
