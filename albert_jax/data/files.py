"""Files that appear only when they are whole, on this machine or in any store that fsspec knows (gs://, s3://)."""

import contextlib
import os
import pathlib
import tempfile

import fsspec.core
from fsspec.implementations.local import LocalFileSystem


def filesystem(path):
  """The file system of a path and the path's name in it."""
  return fsspec.core.url_to_fs(os.path.expanduser(str(path)))


def is_local(path):
  """Whether a path is on this machine."""
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
      fs.put_file(local, name)


def write(path, data):
  """Writes bytes."""
  with writing(path) as local:
    pathlib.Path(local).write_bytes(data)


def read(path):
  """The bytes of a file."""
  fs, name = filesystem(path)
  return fs.cat_file(name)


def exists(path):
  """Whether a file or folder is there."""
  fs, name = filesystem(path)
  return fs.exists(name)


def sizes(folder):
  """{name: bytes} of the files in a folder, by name."""
  fs, name = filesystem(folder)
  return {
    entry["name"].rsplit("/", 1)[-1]: entry["size"]
    for entry in sorted(fs.ls(name, detail=True), key=lambda e: e["name"])
  }


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
