"""Prepared datasets: opened once a process, checked, and read a batch at a time."""

import functools
import hashlib
import json
import pathlib

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

DESCRIPTION_FILE = "prepare.json"


def sha256(path):
  """The SHA-256 of a file, as hexadecimal digits."""
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


@functools.lru_cache(maxsize=64)
def describe(dataset):
  """What `albert-jax prepare` wrote about a dataset.

  Args:
    dataset: str, its folder.

  Returns:
    dict: `settings`, `vocabulary`, `input`, `splits`, `baselines`, `files` (see prepare.py).

  Raises:
    UserError: this is no such folder, or its files are not those that were written.
  """
  folder = pathlib.Path(dataset).expanduser()
  path = folder / DESCRIPTION_FILE
  if not path.is_file():
    what = "is a folder without prepare.json" if folder.is_dir() else "is no folder"
    raise UserError(
      f"data.dataset={dataset} {what}; expected one made by: albert-jax prepare --input={dataset or 'GLOB'} "
      "--spm=FILE --out=DIR, and then --config.data.dataset=DIR"
    )
  description = json.loads(path.read_text())
  for name, size in description["files"].items():
    found = (folder / name).stat().st_size if (folder / name).is_file() else None
    if found != size:
      state = "is missing" if found is None else f"has {found} bytes instead of {size}"
      raise UserError(f"{folder / name} {state}; copy the dataset again, or make it again with: albert-jax prepare")
  return description


def tokenizer(dataset, spm=""):
  """The tokenizer a dataset was made with.

  Args:
    dataset: str, its folder.
    spm: path of a vocabulary that must be the same one; '' takes the dataset's own.

  Raises:
    UserError: `spm` is another vocabulary.
  """
  description = describe(dataset)
  vocabulary, settings = description["vocabulary"], description["settings"]
  own = pathlib.Path(dataset).expanduser() / vocabulary["file"]
  result = Tokenizer(spm or own, lower=settings["lower"], keep_accents=settings["keep_accents"])
  if spm and sha256(result.path) != vocabulary["sha256"]:
    raise UserError(
      f"data.spm={spm} is not the vocabulary that {dataset} was made with (its copy is {own}); leave data.spm empty, "
      f"or make the dataset again with: albert-jax prepare --spm={spm}"
    )
  return result


@functools.lru_cache(maxsize=64)
def open_split(dataset, split):
  """The records of a split, by index.

  Args:
    dataset: str, the folder.
    split: str.

  Returns:
    A TFDS data source with `len`, and for `fetch`.

  Raises:
    UserError: there is no such split.
  """
  import tensorflow_datasets as tfds

  splits = describe(dataset)["splits"]
  if split not in splits:
    raise UserError(f"{dataset} has no split {split!r}; expected one of {', '.join(splits)}")
  return tfds.builder_from_directory(str(pathlib.Path(dataset).expanduser())).as_data_source(
    split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
  )


def fetch(source, indices):
  """Reads records of `open_split`: list of bytes, as they were packed.

  Raises:
    UserError: a shard cannot be read.
  """
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    raw = source.__getitems__(indices)
    parse = tf_example_pb2.Example.FromString
    return [parse(example).features.feature["record"].bytes_list.value[0] for example in raw]
  except Exception as error:
    raise UserError(
      f"a shard of the dataset cannot be read ({str(error).splitlines()[0]}); copy the dataset again, or make it again "
      "with: albert-jax prepare"
    ) from error
