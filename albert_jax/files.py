"""Local files and files in any store that fsspec supports (gs://, s3://). Writes are atomic."""

import contextlib
import errno
import fnmatch
import glob
import hashlib
import io
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from albert_jax.errors import UserError, did_you_mean, message_lines

BLOCK = 1 << 24  # bytes read at a time
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "hf": "hub"}  # which extra installs the client of a store

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # A full disk, a full quota, a file over the shell's limit.


class Unreachable(OSError):
  """A store cannot be reached at the moment. The error says nothing about whether the path exists."""


def is_url(path: str | os.PathLike) -> bool:
  """Returns whether a path names a store, as gs://BUCKET/FOLDER."""
  return "://" in str(path)


def user_path(path: str | os.PathLike, name: str = "a path") -> str:
  """Returns a path as a user gave it, with `~` replaced; URLs stay as they are.

  Args:
    path: the path that the user typed.
    name: the argument's name for error messages, such as "--out".

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


def near_path(path: str | os.PathLike) -> str:
  """Returns '; did you mean …?' with an existing path whose last part is like that of `path`, or ''."""
  text = os.fspath(path).rstrip("/")
  folder, name = os.path.split(text)
  try:
    names = [entry for entry in os.listdir(folder or ".") if not entry.startswith(".")]
  except OSError:
    return ""
  near = did_you_mean(name, names)
  return near.replace("mean ", f"mean {folder}/", 1) if near and folder else near


def split_list(text: str, name: str = "a path") -> list[str]:
  """Splits a comma-separated list of paths. Names of existing files and folders may contain commas."""
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
  """Returns whether a path has wildcards and no file of exactly that name exists."""
  return any(c in path for c in "*?[") and (is_url(path) or not os.path.lexists(os.path.expanduser(path)))


def matching(path: str) -> list[str]:
  """Lists the files and folders that a path names, sorted: the path if it exists, else the matches of its wildcards.

  An existing leading part of the path is taken literally: `run [a]/*.txt` matches files in a folder named `run [a]`.
  """
  if is_url(path):
    fs, name = filesystem(path)
    with reaching(path):
      names = sorted(fs.glob(name)) if is_pattern(path) else [name] if fs.exists(name) else []
    return [str(fs.unstrip_protocol(name)) for name in names]
  path = user_path(path)
  if os.path.lexists(path):
    return [path]
  literal, remainder = path, []
  while literal and not os.path.lexists(literal):
    literal, last = os.path.split(literal)
    remainder.insert(0, last)
  pattern = os.path.join(glob.escape(literal), *remainder)
  return sorted(glob.glob(pattern, recursive=True)) if is_pattern(path) else []


def inside(folder: str | os.PathLike, name: str) -> str:
  """Joins a folder and a file name that comes from an untrusted file, store or archive.
  Raises:
    UserError: the name is absolute, or leads out of the folder by `..`.
  """
  parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
  if not parts or ".." in parts or parts[0] == "/" or "\0" in name or pathlib.PureWindowsPath(name).drive:
    raise UserError(f"{folder} names a file {name!r}, which is outside of it; expected a name inside the folder")
  return os.path.join(folder, name)


def filesystem(path: str | os.PathLike) -> tuple[Any, str]:
  """Returns the file system of a path and the path's name in it.

  Raises:
    UserError: the store needs a package that is not installed, or its kind is unknown.
  """
  import fsspec  # Here, as most commands never need it.

  if not is_url(path):  # fsspec gives some characters of a path a meaning, such as "::".
    return fsspec.filesystem("file"), os.path.abspath(os.path.expanduser(str(path)))
  # A cached listing may be outdated: TensorStore and other hosts write to the same store.
  fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
  for logger in map(logging.getLogger, ("fsspec", "gcsfs")):  # They log a traceback of each error that they also raise.
    if logger.level == logging.NOTSET:  # Any other level is the user's choice.
      logger.setLevel(logging.CRITICAL)
  try:
    return fsspec.core.url_to_fs(str(path))
  except ImportError as error:
    extra = _EXTRAS.get(str(path).split("://")[0])
    how = f"pip install 'albert-jax[{extra}]'" if extra else str(error)
    raise UserError(f"{path} needs a package that is not installed; install it with: {how}") from None
  except ValueError as error:
    raise UserError(f"{path} is in no store that is supported ({error}); give gs://BUCKET/NAME, or a path") from None


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
  """Converts the errors of a store into two kinds, each with a message of one line.

  Errors of local files pass unchanged.
  Raises:
    UserError: the path does not exist, or access is denied.
    Unreachable: any other failure; a later try may succeed.
  """
  try:
    yield
  except (UserError, Unreachable):
    raise
  except Exception as error:
    if not is_url(path):
      raise
    message = " ".join(message_lines(error))[:300]
    if isinstance(error, FileNotFoundError):
      raise UserError(f"{path}: not found ({message}); check its name") from error
    if isinstance(error, PermissionError) or "orbidden" in message or getattr(error, "code", None) in (401, 403):
      raise UserError(f"{path}: not allowed ({message}); check what this machine's account may do there") from error
    raise Unreachable(f"{path} could not be reached: {type(error).__name__}: {message}") from error


def is_local(path: str | os.PathLike) -> bool:
  """Returns whether a path is on this machine."""
  from fsspec.implementations.local import LocalFileSystem

  return isinstance(filesystem(path)[0], LocalFileSystem)


@contextlib.contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
  """Adds a path to the error of a full disk, which names no file. Libraries in C++ raise other kinds, with its text."""
  try:
    yield
  except OSError as error:
    if error.errno in FULL and error.filename is None:
      error.filename = os.fspath(path)
    raise
  except Exception as error:
    for number in FULL:
      if os.strerror(number) in str(error):
        raise OSError(number, os.strerror(number), os.fspath(path)) from error
    raise


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[str]:
  """Yields a temporary local path to write to. The file is renamed to `path` when the block ends without an error.

  The temporary file is in the same folder. After an error, the file and the folders made for it are removed.
  A link at `path` is replaced, not followed. A device or pipe, such as /dev/null, is written to directly. The file
  mode follows the umask. If `path` is in a store, the file is uploaded.

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
  # Links in /dev and /proc, such as /dev/stdout, belong to the system: their targets are written to.
  of_system = os.path.islink(target) and os.path.realpath(os.path.dirname(target)).startswith(("/dev", "/proc"))
  special = os.path.exists(target) and (of_system or not os.path.isfile(target))
  if os.path.isdir(target) or path.endswith("/"):
    raise UserError(f"{path} is a folder; give the name of a file")
  with (
    _naming(target),
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


class _NothingToWrite(Exception):
  """Ends `writing` without a file."""


def check_writable(path: str | os.PathLike) -> None:
  """Checks that a local file can be made at a path, before work that takes minutes. It leaves nothing there.

  Raises:
    OSError: the folder cannot be made or written to.
    UserError: see `writing`.
  """
  if not is_url(path):
    with contextlib.suppress(_NothingToWrite), writing(path):
      raise _NothingToWrite


@contextlib.contextmanager
def writing_folder(
  path: str | os.PathLike, *, overwrite: bool = False, keep_others: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a temporary folder. It is renamed to `path` when the block ends without an error, and removed after one.

  Args:
    path: the folder to make.
    overwrite: replace an existing folder if this project made all its files.
    keep_others: replace an existing folder in any case, and keep its files that this project did not make, unless the
      new folder has files of the same names.

  Raises:
    UserError: `path` is in a store, or exists and may not be replaced.
  """
  if is_url(path):
    raise UserError(f"{path} is not on this machine; write to a folder here, and copy it: gcloud storage cp -r DIR URL")
  path = pathlib.Path(user_path(path))
  if not (keep_others and path.is_dir() and not path.is_symlink()):
    check_new_folder(path, overwrite=overwrite)
  with _naming(path), _made_folders(path.parent):
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
      yield temporary
      mode = _default_mode(temporary)
      for entry in (temporary, *temporary.rglob("*")):  # Some libraries write files that only their owner can read.
        if not entry.is_symlink():
          entry.chmod(mode | (mode & 0o444) >> 2 if entry.is_dir() else mode)
      for name in foreign_files(path) if keep_others and path.is_dir() else ():
        _link(path / name, temporary / name)
      if path.exists():
        # A folder that is not empty cannot be replaced in one step; for an instant, `path` does not exist.
        old = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
        path.rename(old / "x")
        temporary.rename(path)
        shutil.rmtree(old)
      else:
        temporary.rename(path)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _link(source, target):
  """Makes a hard link to a file, or a copy if the file system has no hard links. Keeps an existing target."""
  if os.path.lexists(target):
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.link(source, target, follow_symlinks=False)
  except OSError:
    shutil.copy2(source, target, follow_symlinks=False)


# The kinds of folders that this project makes: {a file that identifies the kind: all files that it may have}.
_VOCABULARY = ("spiece.model", "vocab.txt", "*.model", "symbols.*")
_FOLDERS = {
  "model.safetensors": (
    "config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "README.md", "curves.png", "*.jax", "*.onnx",
    "*.onnx.data", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    "symbols.json", "words.txt", *_VOCABULARY,
  ),
  "albert_config.json": (
    "albert_config.json", "model.ckpt-*", "checkpoint", "vocab_chinese.txt", "tokenizer_config.json", *_VOCABULARY,
  ),
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
    UserError: `path` exists, and `overwrite` is not set or would delete files that this project did not make.
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
  """Returns the names of the files in a local folder that this project did not make, relative to the folder."""
  return _foreign(_contents(folder))


def _contents(folder):
  folder = pathlib.Path(folder)
  entries = [entry for entry in folder.rglob("*") if entry.is_symlink() or not entry.is_dir()]
  return [entry.relative_to(folder).as_posix() for entry in entries]


def _foreign(contents):
  patterns = next((patterns for mark, patterns in _FOLDERS.items() if mark in contents), ())
  return [name for name in contents if not any(fnmatch.fnmatch(name.split("/")[-1], each) for each in patterns)]


@contextlib.contextmanager
def _made_folders(folder):
  """Makes a folder and its parents; after an error, removes those of them that are empty."""
  made, missing = [], os.path.abspath(folder) if folder else ""
  while missing and not os.path.isdir(missing):
    made.append(missing)
    missing = os.path.dirname(missing)
  if folder:
    os.makedirs(folder, exist_ok=True)
  try:
    yield folder
  except BaseException:
    for directory in made:
      with contextlib.suppress(OSError):
        os.rmdir(directory)
    raise


def _default_mode(folder) -> int:
  """Returns the mode of a new file in a folder. Reading the umask would change it for all threads."""
  path = os.path.join(folder, ".mode")
  number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
  try:
    return os.fstat(number).st_mode & 0o777
  finally:
    os.close(number)
    os.unlink(path)


def upload(file: str | os.PathLike, path: str | os.PathLike) -> None:
  """Copies a local file to a store. The object appears only when it is complete."""
  fs, name = filesystem(path)
  with reaching(path):
    fs.put_file(str(file), name)


def write(path: str | os.PathLike, data: bytes | str) -> None:
  """Writes a file atomically, see `writing`; text as UTF-8."""
  write_all({os.fspath(path): data})


def write_figure(path: str | os.PathLike, figure: Any, dpi: int = 150) -> None:
  """Writes a figure of matplotlib atomically, in the format of the name's suffix.

  It is drawn in memory first, as some of matplotlib's formats report a full disk as an error of their own.
  """
  buffer = io.BytesIO()
  figure.savefig(buffer, format=pathlib.PurePath(path).suffix[1:].lower(), dpi=dpi)
  write(path, buffer.getvalue())


def write_all(contents: Mapping[str, bytes | str]) -> None:
  """Writes files that belong to each other. No file appears or is replaced before all of them have room on the disk.

  Args:
    contents: {path: what to write there}, in the order in which the files appear.
  """
  with contextlib.ExitStack() as stack:
    for path, data in reversed(list(contents.items())):  # A stack ends in reverse.
      local = stack.enter_context(writing(path))
      pathlib.Path(local).write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: str | os.PathLike, value: object, indent: int | None = 2) -> None:
  """Writes a value as JSON to a file atomically, see `writing`."""
  write(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read(path: str | os.PathLike) -> bytes:
  """Returns the bytes of a file."""
  fs, name = filesystem(path)
  with reaching(path):
    return fs.cat_file(name)


def blocks(path: str | os.PathLike) -> Iterator[bytes]:
  """Yields the bytes of a file in blocks of BLOCK bytes."""
  fs, name = filesystem(path)
  with reaching(path), fs.open(name, "rb") as file:
    while block := file.read(BLOCK):
      yield block


def exists(path: str | os.PathLike) -> bool:
  """Returns whether a file or folder exists."""
  fs, name = filesystem(path)
  with reaching(path):
    return fs.exists(name)


def sizes(folder: str | os.PathLike) -> dict[str, int]:
  """Returns {name: bytes} of the files in a folder, sorted by name."""
  fs, name = filesystem(folder)
  return {
    entry["name"].rsplit("/", 1)[-1]: entry["size"]
    for entry in sorted(fs.ls(name, detail=True), key=lambda e: e["name"])
  }


def everything(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """Returns {name: fsspec's info} of all files below a folder, sorted by name; {} if the folder does not exist.

  Names are relative to the folder. If the path is a file, its name is ''.
  """
  fs, name = filesystem(path)
  with reaching(path):
    facts = fs.find(name, detail=True)
    if list(facts) == [name]:
      facts = {name: fs.info(name)}
  return {file[len(name) :].lstrip("/"): facts[file] for file in sorted(facts) if not file.endswith("/")}


def remove(path: str | os.PathLike) -> None:
  """Removes a file, or a folder and its contents, if it exists."""
  fs, name = filesystem(path)
  if is_url(path):
    if fs.exists(name):
      fs.rm(name, recursive=True)
  elif os.path.isdir(name) and not os.path.islink(name):
    shutil.rmtree(name)
  elif os.path.lexists(name):
    os.unlink(name)


def move(folder: str | os.PathLike, to: str | os.PathLike) -> None:
  """Renames a folder."""
  fs, name = filesystem(folder)
  if is_local(folder):
    os.rename(name, filesystem(to)[1])
  else:
    fs.mv(name, filesystem(to)[1], recursive=True)


def cache() -> pathlib.Path:
  """Returns the cache folder: albert_jax in ~/.cache, or in XDG_CACHE_HOME."""
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "albert_jax"


def named_after(text: str) -> str:
  """Returns a folder name that is unique to a text."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]
