"""Prepared datasets: opened once a process, checked, and read a batch at a time."""

import contextlib
import functools
import hashlib
import importlib
import pathlib
import shlex
from typing import Any

import numpy as np

from albert_jax import copies, files, strict_json
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError, message_lines

DESCRIPTION_FILE = "prepare.json"
_RULES = ("lower", "keep_accents")  # settings that belong to the vocabulary


def sha256(path: str | pathlib.Path) -> str:
  """Returns the SHA-256 of a file, as hexadecimal digits."""
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def lengths_file(split: str) -> str:
  """Returns the name of the file with the sizes of each record of a split, see `lengths`."""
  return f"lengths-{split}.npy"


def local_copies(dataset: str) -> str:
  """What `data.dataset` names, with each folder in a store replaced by its copy on this machine, see copies.local."""
  return ",".join(map(copies.local, files.split_list(dataset))) if files.is_url(dataset) else dataset


def folders(dataset: str) -> list[str]:
  """Returns the folders that `data.dataset` names, with commas between: list of str."""
  return files.split_list(dataset, "data.dataset") or [dataset]


def describe(dataset: str) -> dict[str, Any]:
  """What `albert-jax prepare` wrote about a dataset, or about several that are to be mixed.

  Args:
    dataset: str, its folder; or several with commas between.

  Returns:
    dict: `settings`, `vocabulary`, `splits`, `baselines` and, for a single folder, all else that prepare.json holds.
    For several, the splits are added up and the baselines are averaged over their validation tokens.

  Raises:
    UserError: this is no such folder, its files are not those that were written, or the vocabularies differ.
  """
  every = {folder: _describe_folder(folder) for folder in folders(dataset)}
  first, *remaining = every.values()
  if not remaining:
    return first
  for folder, description in every.items():
    if description["vocabulary"] != first["vocabulary"] or any(
      description["settings"][k] != first["settings"][k] for k in _RULES
    ):
      raise UserError(
        f"{folder} was prepared with another vocabulary than {next(iter(every))}, so they cannot be mixed; make them "
        "with the same --spm, --lower and --keep_accents of albert-jax prepare"
      )
  splits = {}
  for name in first["splits"]:
    parts = [other["splits"][name] for other in every.values() if name in other["splits"]]
    splits[name] = {key: sum(part[key] for part in parts) for key in ("documents", "segments", "sentences", "tokens")}
  held = [
    (other["splits"]["validation"]["tokens"], other["baselines"]) for other in every.values() if other["baselines"]
  ]
  total = sum(tokens for tokens, _ in held)
  baselines = {key: sum(n * values[key] for n, values in held) / total for key in (held[0][1] if held else ())}
  return {key: first[key] for key in ("settings", "vocabulary")} | {"splits": splits, "baselines": baselines}


@functools.lru_cache(maxsize=64)
def _describe_folder(dataset):
  """`describe` for one folder."""
  folder = pathlib.Path(dataset).expanduser()
  path = folder / DESCRIPTION_FILE
  if not path.is_file():
    what = f"={dataset} is a folder without prepare.json" if folder.is_dir() else f"={dataset}: nothing is there"
    what = what if str(dataset) else " is not set"
    near = files.near_path(dataset) if str(dataset) and not folder.exists() else ""
    is_source = folder.exists() or ("/" not in str(dataset) and not near)  # A corpus, or the name of one of TFDS.
    source = shlex.quote(str(dataset)) if str(dataset) and is_source else "GLOB"
    raise UserError(
      f"data.dataset{what}; expected a folder made by: albert-jax prepare --input={source} --spm=FILE --out=DIR, and "
      f"then --config.data.dataset=DIR{near}"
    )
  description = strict_json.read_object(path, "what albert-jax prepare wrote")
  _check_description(path, description)
  for name, size in description["files"].items():
    actual = (folder / name).stat().st_size if (folder / name).is_file() else None
    if actual != size:
      state = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
      raise UserError(f"{folder / name} {state}; {_MAKE_AGAIN}")
  vocabulary = description["vocabulary"]
  if "sha256" in vocabulary and sha256(folder / vocabulary["file"]) != vocabulary["sha256"]:
    raise UserError(
      f"{folder / vocabulary['file']} is not the vocabulary that the dataset was made with (its SHA-256 is in "
      f"{DESCRIPTION_FILE}); {_MAKE_AGAIN}"
    )
  return description


_MAKE_AGAIN = "copy the dataset again, or make it again with: albert-jax prepare, or phonemes"
_SECTIONS = ("settings", "vocabulary", "splits", "baselines", "files")
_COUNTS = ("documents", "segments")


def _check_description(path, description):
  """Checks the parts of prepare.json that are used, and that the names in it stay inside the folder."""
  for name in _SECTIONS:
    strict_json.expect(description.get(name), f"{path}: {name}", dict)
  vocabulary = description["vocabulary"]
  names = [strict_json.expect(vocabulary.get("file"), f"{path}: vocabulary.file", str), *description["files"]]
  for name in names:
    if name != pathlib.PurePosixPath(name).name or name in ("", ".", ".."):
      raise UserError(f"{path}: {name!r:.60} is no name of a file in the folder; {_MAKE_AGAIN}")
  for name, size in description["files"].items():
    strict_json.expect(size, f"{path}: the size of {name}", int)
  for name, counts in description["splits"].items():
    strict_json.expect(counts, f"{path}: split {name}", dict)
    for key in _COUNTS:
      strict_json.expect(counts.get(key), f"{path}: {key} of split {name}", int)
  for name, value in description["baselines"].items():
    if not isinstance(value, dict):  # PL-BERT's are nested
      strict_json.expect(value, f"{path}: baselines.{name}", float)
  if "kind" not in description:
    for key in _RULES:
      strict_json.expect(description["settings"].get(key), f"{path}: settings.{key}", bool)
    strict_json.expect(vocabulary.get("sha256"), f"{path}: vocabulary.sha256", str)
    strict_json.expect(vocabulary.get("size"), f"{path}: vocabulary.size", int)


def tokenizer(dataset: str, spm: str = "") -> Tokenizer:
  """Returns the tokenizer a dataset was made with.

  Args:
    dataset: str, its folder, or several.
    spm: path of a vocabulary that must be the same one; '' takes the dataset's own.

  Raises:
    UserError: `spm` is another vocabulary.
  """
  description = describe(dataset)
  if "kind" in description:
    raise UserError(
      f"{dataset} holds {description['kind']}, not text; train on it with --config=configs/plbert.py:base"
    )
  vocabulary, settings = description["vocabulary"], description["settings"]
  copy = pathlib.Path(folders(dataset)[0]).expanduser() / vocabulary["file"]
  result = Tokenizer(spm or copy, lower=settings["lower"], keep_accents=settings["keep_accents"])
  if spm and sha256(result.path) != vocabulary["sha256"]:
    raise UserError(
      f"data.spm={spm} is not the vocabulary that {dataset} was made with (its copy is {copy}); leave data.spm empty, "
      f"or make the dataset again with: albert-jax prepare --spm={shlex.quote(str(spm))}"
    )
  return result


def check_features(folder: pathlib.Path, prefix: str = "tensorflow_datasets.core.features.") -> None:
  """Checks the classes that the features.json files of TFDS datasets name: TFDS imports them, which runs their code.

  Args:
    folder: the dataset's folder, or one above it.
    prefix: the beginning that the name of every class must have.

  Raises:
    UserError: a file names another class, or cannot be read.
  """
  for path in sorted(folder.glob("**/features.json")):
    nodes: list[Any] = [strict_json.read_object(path, "the features of a TFDS dataset")]
    while nodes:
      node = nodes.pop()
      for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list):
          nodes.append(value)
        # The last two are the names of old versions, and of protocol buffers.
        elif key in ("pythonClassName", "type", "python_class_name") and not str(value).startswith(prefix):
          raise UserError(
            f"{path} names the class {strict_json.show(value)}, and TFDS would run its code; expected classes of "
            f"{prefix}*; make the dataset again, or export it as JSON lines"
          )


@functools.lru_cache(maxsize=64)
def open_split(dataset: str, split: str) -> Any:
  """Returns the records of a split, by index.

  Args:
    dataset: one folder.
    split: the name of the split.

  Returns:
    A TFDS data source, for `len` and `fetch`.

  Raises:
    UserError: there is no such split.
  """
  import tensorflow_datasets as tfds

  splits = describe(dataset)["splits"]
  if split not in splits:
    raise UserError(f"{dataset} has no split {split!r}; expected one of {', '.join(splits)}")
  folder = pathlib.Path(dataset).expanduser()
  check_features(folder)
  try:
    source = tfds.builder_from_directory(str(folder)).as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    size = len(source)
  except Exception as error:  # TFDS raises many kinds of errors, with the same meaning for the user.
    raise UserError(f"{folder}, split {split!r}, cannot be read ({message_lines(error)[0]}); {_MAKE_AGAIN}") from None
  if size != splits[split]["segments"]:
    raise UserError(
      f"{folder}, split {split!r}, has {size} records instead of {splits[split]['segments']}; {_MAKE_AGAIN}"
    )
  return source


@functools.lru_cache(maxsize=64)
def lengths(dataset: str, split: str) -> np.ndarray:
  """Returns the sizes of each record of a split, over all folders in order: uint16 array [n, 2].

  Args:
    dataset: its folder, or several.
    split: the name of the split.

  Returns:
    The tokens and sentences of each record; of a dataset of phonemes, its words and symbols.

  Raises:
    UserError: the file of the lengths is damaged.
  """
  arrays = []
  for folder in folders(dataset):
    size = len(open_split(folder, split))  # says so if there is none
    path = pathlib.Path(folder).expanduser() / lengths_file(split)
    try:
      array = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, which fails in many ways.
      raise UserError(f"{path} is no array of numbers ({message_lines(error)[0]}); {_MAKE_AGAIN}") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.uint16 or array.shape != (size, 2):
      raise UserError(f"{path} is no table of {size} records; {_MAKE_AGAIN}")
    arrays.append(array)
  return np.concatenate(arrays)


def fetch(source: Any, indices: list[int]) -> list[bytes]:
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
      f"a shard of the dataset cannot be read ({message_lines(error)[0]}); copy the dataset again, or make it again "
      "with: albert-jax prepare"
    ) from error


def fetch_from(sources: list, source_of: np.ndarray, indices: np.ndarray) -> list[bytes]:
  """Reads records of several sources: record `indices[i]` of `sources[source_of[i]]`, as a list of bytes."""
  if len(sources) == 1:
    return fetch(sources[0], indices.tolist())
  packed = [b""] * len(source_of)
  for k, source in enumerate(sources):
    rows = (source_of == k).nonzero()[0]
    for row, record in zip(rows.tolist(), fetch(source, indices[rows].tolist()), strict=True):
      packed[row] = record
  return packed


@functools.cache
def tfds_builder(name: str, data_dir: str) -> Any:
  """Finds a TFDS dataset by name, also if TFDS does not import its module by itself.

  Raises:
    UserError: no such dataset, or it is not on this machine in a format with random access.
  """
  import tensorflow_datasets as tfds

  base = name.split("/")[0].split(":")[0]
  modules = ["albert_jax.data.corpus.python_docs"] if base == "python_docs" else []
  modules += [f"tensorflow_datasets.{kind}.{base}" for kind in ("text", "translate", "question_answering")]
  for module in modules:
    with contextlib.suppress(ImportError):
      importlib.import_module(module)
  check_features(pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / base)
  try:
    return tfds.builder(name, data_dir=data_dir or None, file_format="array_record")
  except Exception as error:  # TFDS raises many kinds of errors, with the same meaning for the user.
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"--input={name} is neither a file nor a TFDS dataset that can be read here ({reason}); expected files, a quoted "
      "glob such as 'corpus/*.txt', or a TFDS name such as wikipedia/20230601.en (--tfds_dir says where it is)"
    ) from None
