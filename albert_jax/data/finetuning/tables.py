"""Labelled files to rows: CSV, TSV, JSON lines, JSON, Parquet, and TFDS datasets; and their texts to ids.

A fault of a user's file is an error that names the file and the line, or the row is skipped and counted.
"""

import csv
import dataclasses
import hashlib
import io
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from albert_jax import strict_json
from albert_jax.data import datasets
from albert_jax.data.finetuning import cells, splits
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError, message_lines

TABLES = {".csv": (",", ";", "\t"), ".tsv": ("\t",), ".txt": ("\t",)}  # the separators that each may have
SUFFIXES = (*TABLES, ".jsonl", ".ndjson", ".json", ".parquet")
QUOTES = ("auto", "csv", "none")
MAX_JSON_BYTES = 1 << 30  # of a file that is one JSON value
# Of the values of a Parquet file: as many times its size, but no less than this many bytes may always be there.
MAX_PARQUET_RATIO, MAX_PARQUET_BYTES = 32, 1 << 28


@dataclasses.dataclass(frozen=True)
class Examples:
  """The rows of a split, as they were written.

  Attributes:
    columns: for each field a list of n values: texts in tables, else the format's own types; None where there is none.
    lines: the line of each row in its file, from 1, for messages.
    source: the file, or the dataset and its split.
    classes: {column: the names of its labels in their order}, where the format has them.
    files: the file of each row; [] where `source` is the file.
  """

  columns: dict[str, list]
  lines: list[int]
  source: str
  classes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  files: list[str] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return len(self.lines)

  def where(self, row: int) -> str:
    """Returns the place of a row as "FILE line N"."""
    return f"{self.files[row] if self.files else self.source} line {self.lines[row]}"

  def records(self) -> Iterator[dict[str, Any]]:
    """Yields each row as {field: value}."""
    return (dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True))

  def select(self, keep: np.ndarray) -> "Examples":
    """Returns the rows for which `keep` (bool [n]) is true."""
    index = np.flatnonzero(keep)
    columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
    files = [self.files[i] for i in index] if self.files else []
    return Examples(columns, [self.lines[i] for i in index], self.source, self.classes, files)


def read(
  dataset: str | pathlib.Path,
  split: str,
  fields: Sequence[str],
  *,
  optional: Sequence[str] = (),
  quotes: str = "auto",
  tfds_dir: str = "",
  skip_ragged: bool = False,
  settings: Sequence[str] = (),
) -> Examples:
  """Reads the rows of a split.

  Args:
    dataset: a file, a folder with the files of each split, a TFDS folder, or a TFDS name.
    split: the split's name, or paths of files, also relative to the folder.
    fields: the columns; all of them numbers, from 0, for a table without a header.
    optional: columns that may be missing, and are then all None.
    quotes: whether quotes in a table are CSV quotes: csv, none, or auto, which decides by the file's contents.
    tfds_dir: the folder of TFDS datasets; '' for TFDS' default.
    skip_ragged: whether to skip and count lines of a table with another number of columns than the header.
    settings: the fields of config.data that name the columns, for messages.

  Raises:
    UserError: there is no such split, it has no rows, a column is missing, or a line cannot be read.
  """
  paths = find(dataset, split)
  try:
    if paths:
      rows = read_files(paths, fields, optional=optional, quotes=quotes, skip_ragged=skip_ragged)
    else:
      rows = _read_tfds(dataset, split, fields, optional, tfds_dir)
  except NoColumn as error:
    if not settings:
      raise
    choice = " or ".join(f"--config.data.{name}=…" for name in settings)
    numbers = "; numbers where there is no header" if paths and paths[0].suffix.lower() in TABLES else ""
    raise NoColumn(f"{error} (choose with {choice}{numbers})") from None
  return filled(rows, split)


def filled(rows: Examples, split: str) -> Examples:
  """Returns the rows of a split. Raises UserError if there are none."""
  if not len(rows):
    raise UserError(f"{rows.source} has no rows; expected one for each example of the split {split!r}")
  return rows


# Files.


def find(dataset: str | pathlib.Path, split: str) -> list[pathlib.Path] | None:
  """Finds the files of a split, see `splits.find`."""
  return splits.find(dataset, split, SUFFIXES)


class NoColumn(UserError):
  """A table lacks a column."""


def read_files(paths: Sequence[str | pathlib.Path], fields: Sequence[str], **options: Any) -> Examples:
  """Reads the rows of several files, such as the shards of a split, one after the other; see `read_file`."""
  parts = [read_file(path, fields, **options) for path in paths]
  if len(parts) == 1:
    return parts[0]
  columns = {name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns}
  lines = [line for part in parts for line in part.lines]
  files = [part.source for part in parts for _ in part.lines]
  return Examples(columns, lines, splits.named(paths), parts[0].classes, files)


def read_file(
  path: str | pathlib.Path,
  fields: Sequence[str],
  *,
  optional: Sequence[str] = (),
  quotes: str = "auto",
  skip_ragged: bool = False,
) -> Examples:
  """Reads the rows of one file, in the format of its ending; see `read`."""
  if quotes not in QUOTES:
    raise UserError(f"data.quotes={quotes!r} is unknown; use one of {', '.join(QUOTES)}")
  suffix = pathlib.Path(path).suffix.lower()
  if suffix == ".parquet":
    return _read_parquet(path, fields, optional)
  if suffix in TABLES:
    return _read_table(path, fields, optional, TABLES[suffix], quotes, skip_ragged)
  if suffix in SUFFIXES:
    return _read_json(path, fields, optional)
  raise UserError(f"{path}: expected a file that ends in one of {' '.join(SUFFIXES)}")


def _read_table(path, fields, optional, separators, quotes, skip_ragged):
  text = splits.read_text(path)
  first = next((line for line in text.split("\n") if line.strip()), None)
  if first is None:
    raise UserError(f"{path} is empty; expected a table with the columns {', '.join(fields)}")
  has_header = not all(field.isdigit() for field in fields)
  headers = {separator: _header(first, separator, quotes, has_header) for separator in separators}
  fitting = [separator for separator, header in headers.items() if not set(fields) - set(header)]
  if not fitting:
    header = max(headers.values(), key=len)
    missing = ", ".join(repr(field) for field in fields if field not in header)
    raise NoColumn(
      f"{path} has no column {missing}; expected {'one of ' if has_header else 'a number of '}{', '.join(header)}"
    )
  header = headers[fitting[0]]
  if twice := [field for field in (*fields, *optional) if header.count(field) > 1]:
    raise UserError(f"{path} has several columns {twice[0]!r}; give each a name of its own")
  rows = _cells(path, text, fitting[0], quotes)[has_header:]
  ragged = [line for line, row in rows if len(row) != len(header)]
  if ragged:
    what = f"have another number of columns than the {len(header)} of the first line (the first is line {ragged[0]})"
    if not skip_ragged or len(ragged) == len(rows):
      raise UserError(
        f"{path}: {len(ragged):,} of {len(rows):,} lines {what}; mend or remove them (a held-out number is of all "
        "lines), or set --config.data.quotes to csv or none"
      )
    splits.warn_count(path, len(ragged), f"lines {what}, and were skipped")
    rows = [(line, row) for line, row in rows if len(row) == len(header)]
  place = {name: header.index(name) if name in header else None for name in (*fields, *optional)}
  columns = {name: [None if i is None else row[i] for _, row in rows] for name, i in place.items()}
  return Examples(columns, [line for line, _ in rows], str(path))


def _header(line, separator, quotes, has_header):
  """Returns the names of the columns; their numbers where the first line is a row like the others."""
  try:
    names = line.split(separator) if quotes == "none" else next(csv.reader([line], delimiter=separator))
  except csv.Error:
    names = line.split(separator)
  return [name.strip() for name in names] if has_header else [str(i) for i in range(len(names))]


def _cells(path, text, separator, quotes):
  """Returns [(line number, its cells)] of a table, without lines of which every cell is blank."""
  if quotes == "auto":
    quotes = "csv" if separator != "\t" else "auto"
  if quotes != "none" and '"' in text:
    try:
      rows = _quoted(text, separator)
    except csv.Error as error:
      if quotes == "csv":
        raise UserError(
          f"{path}: {error}; mend the quotes there, or read them as plain characters with --config.data.quotes=none"
        ) from None
      rows = None
    # A TSV is taken to have CSV quotes where that makes sense of every line. A quoted cell with both a line's end and
    # a tab in it makes none: that is two plain quotes, lines apart.
    if quotes == "csv" or (
      rows
      and len({len(row) for _, row in rows}) == 1
      and not any("\t" in cell and "\n" in cell for _, row in rows for cell in row)
    ):
      return rows
  rows = [(number, line.split(separator)) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
  return [(number, row) for number, row in rows if any(cell.strip() for cell in row)]


def _quoted(text, separator):
  # The limit is the module's, and exists against memory being used up; the text is in memory already.
  csv.field_size_limit(max(csv.field_size_limit(), len(text)))
  reader, rows, line = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [], 1
  try:
    for row in reader:
      if any(cell.strip() for cell in row):
        rows.append((line, row))
      line = reader.line_num + 1
  except csv.Error as error:
    raise csv.Error(f"in the row at line {line}: {error}") from None
  return rows


def read_values(path: str | pathlib.Path) -> list[tuple[int, Any]]:
  """Reads the values of a JSON file: the items of a list, the objects in an object, or the lines of JSON lines.

  Args:
    path: the file; only .json and .txt may be one value. The values of .parquet are its rows.

  Returns:
    (number, value) of each, numbered from 1. NaN, which pandas writes for a missing value, is None.

  Raises:
    UserError: the file is not of its format, exceeds a limit, or holds nothing.
  """
  if pathlib.Path(path).suffix.lower() == ".parquet":
    return list(enumerate(_read_parquet(path, None, ()).records(), 1))
  text, fault = splits.read_text(path), None
  if pathlib.Path(path).suffix.lower() in (".json", ".txt"):
    try:
      whole = strict_json.loads(text, str(path), nan_as_null=True, max_bytes=MAX_JSON_BYTES)
      if isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
        whole = list(whole.values())
      if whole:
        return list(enumerate(whole if isinstance(whole, list) else [whole], 1))
    except UserError as error:
      fault = error  # unless the file is JSON lines
  rows: list[tuple[int, Any]] = []
  for number, line in enumerate(text.split("\n"), 1):
    if line.strip():
      try:
        rows.append((number, strict_json.loads(line, f"{path} line {number}", nan_as_null=True)))
      except UserError as error:
        # The first line of a value over several lines is no JSON by itself.
        raise fault if fault and not rows and "is not JSON" in str(error) else error from None
  if not rows:
    raise UserError(f"{path} is empty; expected JSON objects, one a line")
  return rows


def _read_json(path, fields, optional):
  rows = read_values(path)
  columns = {name: [] for name in (*fields, *optional)}
  for number, row in rows:
    if not isinstance(row, dict) or any(field not in row for field in fields):
      contents = ", ".join(row)[:200] if isinstance(row, dict) else strict_json.show(row, 40)
      raise NoColumn(
        f"{path} line {number}: expected an object with the fields {', '.join(fields)}, but it is {contents}"
      )
    for name, values in columns.items():
      values.append(row.get(name))
  return Examples(columns, [number for number, _ in rows], str(path))


def _read_parquet(path, fields, optional):
  """Reads columns of a Parquet file; all of them where `fields` is None."""
  import pyarrow
  import pyarrow.parquet

  limit = max(MAX_PARQUET_BYTES, MAX_PARQUET_RATIO * pathlib.Path(path).stat().st_size)
  try:
    schema = pyarrow.parquet.read_schema(path)
    fields = schema.names if fields is None else fields
    _check_columns(path, schema.names, fields)
    names = [name for name in (*fields, *optional) if name in schema.names]
    if twice := [name for name in names if schema.names.count(name) > 1]:
      raise UserError(f"{path} has several columns {twice[0]!r}; give each a name of its own")
    classes = _classes(path, schema.metadata or {})
    # A text that many rows share, also within lists, is read once, so that its size is known before it is copied.
    leaves = pyarrow.parquet.read_metadata(path).schema
    texts = [leaf.path for leaf in map(leaves.column, range(len(leaves))) if leaf.physical_type == "BYTE_ARRAY"]
    file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
    packed = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
    columns, size = {name: [] for name in (*fields, *optional)}, packed if packed > limit else 0
    for batch in file.iter_batches(1024, columns=names) if not size else ():
      size += sum(map(_bytes, batch.columns))
      if size > limit:
        break
      for name in names:
        values = batch[name].to_pylist()
        columns[name] += _class_names(path, name, values, classes[name]) if name in classes else values
  except UserError:
    raise
  except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError) as error:
    raise UserError(f"{path} is no whole Parquet file: {message_lines(error)[0][:200]}") from None
  if size > limit:
    raise UserError(f"{path} expands to more than {limit:,} bytes; write it as JSON lines, or split it")
  rows = file.metadata.num_rows
  columns |= {name: [None] * rows for name in optional if name not in names}
  return Examples(columns, list(range(1, rows + 1)), str(path), classes)


def _classes(path, metadata):
  """Returns {column: the names of its classes} of a file of the Hugging Face Hub; its cells are their numbers."""
  about = strict_json.loads(metadata.get(b"huggingface", b"{}"), f"{path}: its metadata 'huggingface'", dict)
  info, classes = about.get("info"), {}
  features = info.get("features") if isinstance(info, dict) else None
  for column, feature in features.items() if isinstance(features, dict) else ():
    # A list of a feature; older files have it as a list.
    while (isinstance(feature, list) and len(feature) == 1) or (isinstance(feature, dict) and "feature" in feature):
      feature = feature[0] if isinstance(feature, list) else feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
      classes[column] = names
  return classes


def _class_names(path, column, values, names):
  """Returns numbers of classes, or lists of them, as their names; None for -1, which hides the class."""
  named = []
  for value in values:
    if isinstance(value, list):
      value = _class_names(path, column, value, names)
    elif isinstance(value, int):
      if not -1 <= value < len(names):
        raise UserError(f"{path}: {column!r} holds the class {value}, of {len(names)} that its metadata names")
      value = None if value == -1 else names[value]
    named.append(value)
  return named


def _bytes(array):
  """Returns the bytes of an Arrow array's values, counting each repetition of a text."""
  import pyarrow.compute

  if pyarrow.types.is_nested(array.type):
    return array.nbytes + sum(
      map(_bytes, array.flatten() if isinstance(array, pyarrow.StructArray) else [array.values])
    )
  if hasattr(array, "dictionary"):
    sizes = pyarrow.compute.binary_length(array.dictionary)
    return pyarrow.compute.sum(sizes.take(array.indices)).as_py() or 0
  return array.nbytes


def _check_columns(source, columns, fields):
  if missing := [field for field in fields if field not in columns]:
    raise NoColumn(f"{source} has no column {', '.join(map(repr, missing))}; expected one of {', '.join(columns)}")


# TFDS.


def _read_tfds(dataset, split, fields, optional, tfds_dir):
  import tensorflow_datasets as tfds

  folder = splits.tfds_folder(pathlib.Path(dataset).expanduser())
  if folder:
    datasets.check_features(folder)
  try:
    builder = tfds.builder_from_directory(folder) if folder else datasets.tfds_builder(dataset, tfds_dir)
    source = builder.as_data_source(split)
  except Exception as error:  # TFDS raises many kinds here, all of which mean the same to the user.
    reason = str(error).strip().split("\n")[0].removeprefix(f"--input={dataset} ")
    raise UserError(
      f"data.dataset={dataset}, split {split!r}, cannot be read ({reason}); give a file, a folder, or a TFDS dataset "
      f"prepared with: tfds build {dataset} --file_format=array_record"
    ) from None
  features = builder.info.features
  _check_columns(dataset, list(features), fields)
  names = [name for name in (*fields, *optional) if name in features]
  columns = {name: [] for name in names}
  for start in tqdm(range(0, len(source), 1024), desc=f"reading {dataset}", disable=None, leave=False):
    for row in source.__getitems__(range(start, min(start + 1024, len(source)))):
      for name in names:
        columns[name].append(_plain(row[name], features[name]))
  columns |= {name: [None] * len(source) for name in optional if name not in names}
  return Examples(columns, list(range(1, len(source) + 1)), f"{dataset} ({split})")


def _plain(value, feature):
  """Returns a value of TFDS as Python's own: a label as its name, None where TFDS has -1 for it; bytes as text."""
  if hasattr(feature, "int2str"):
    return feature.int2str(int(value)) if value >= 0 else None
  if isinstance(value, dict):
    return {name: _plain(item, None) for name, item in value.items()}
  if isinstance(value, np.ndarray | list):
    return [_plain(item, None) for item in value]
  value = value.item() if isinstance(value, np.generic) else value
  return value.decode("utf-8") if isinstance(value, bytes) else value


# Rows.


def texts(examples: Examples, field: str) -> list[str]:
  """Returns a column as texts; missing ones are empty, and empty ones are counted.

  Raises:
    UserError: a cell holds neither a text nor a number.
  """
  values, empty = [], 0
  for row, value in enumerate(examples.columns[field]):
    text = cells.text_of(value)
    if text is None:
      raise UserError(f"{examples.where(row)}: {field!r} holds {strict_json.show(value, 40)}, expected a text")
    values.append(text)
    empty += not text
  if empty:
    splits.warn_count(
      examples.source, empty, f"of {len(values):,} rows have an empty {field!r}; they are kept as they are"
    )
  return values


def held_out(examples: Examples, fields: Sequence[str], fraction: float) -> np.ndarray:
  """Chooses rows to keep for validation, by the texts of a row alone.

  The same row is held out whatever else the file holds, and no text is on both sides.

  Args:
    examples: the rows.
    fields: the columns with the texts.
    fraction: the share to keep, between 0 and 1.

  Returns:
    bool [n].

  Raises:
    UserError: the fraction is out of range.
  """
  if not 0 < fraction < 1:
    raise UserError(f"data.validation_fraction={fraction} must be above 0 and below 1, such as 0.1")
  below = int(fraction * 2**64)
  keys = zip(*(examples.columns[field] for field in fields), strict=True)
  hashes = (hashlib.blake2b("\0".join(map(str, key)).encode(errors="replace"), digest_size=8).digest() for key in keys)
  return np.array([int.from_bytes(digest, "little") < below for digest in hashes], bool)


# Ids.


def encode(
  vocabulary: Tokenizer, first: list[str], second: list[str] | None, seq_length: int, source: str
) -> dict[str, list[np.ndarray]]:
  """Encodes texts as the original's run_classifier.py: [CLS] first [SEP], or [CLS] first [SEP] second [SEP].

  Args:
    vocabulary: the tokenizer.
    first: n texts.
    second: as many, or None.
    seq_length: the longest row; of a longer pair the longer text is cut first, and the rows that were cut are counted.
    source: where the texts are from, for that message.

  Returns:
    "input_ids" and "token_type_ids": lists of n int32 arrays.
  """
  ids_a = encode_texts(vocabulary, first)
  ids_b = encode_texts(vocabulary, second) if second is not None else [np.zeros(0, np.int32)] * len(first)
  specials = 2 if second is None else 3
  tokens: dict[str, list[np.ndarray]] = {"input_ids": [], "token_type_ids": []}
  cut = 0
  for a, b in zip(ids_a, ids_b, strict=True):
    kept_a, kept_b = shares(len(a), len(b), seq_length - specials)
    cut += kept_a + kept_b < len(a) + len(b)
    end = [] if second is None else [*b[:kept_b], vocabulary.sep_id]
    tokens["input_ids"].append(np.array([vocabulary.cls_id, *a[:kept_a], vocabulary.sep_id, *end], np.int32))
    tokens["token_type_ids"].append(np.repeat(np.array([0, 1], np.int32), [kept_a + 2, len(end)]))
  if cut:
    splits.warn_count(source, cut, f"of {len(first):,} rows exceed data.seq_length={seq_length} tokens and were cut")
  return tokens


def encode_texts(vocabulary: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
  """Encodes texts without special tokens, as int32 arrays; shows progress on a terminal."""
  ids = []
  for start in tqdm(range(0, len(texts), 1024), desc="encoding", disable=None, leave=False):
    ids += [np.array(x, np.int32) for x in vocabulary.encode_batch(texts[start : start + 1024])]
  return ids


def shares(a: int, b: int, total: int) -> tuple[int, int]:
  """Returns the numbers of tokens that a pair keeps if the longer text loses its last token until the pair fits.

  _truncate_seq_pair of the original; of two equally long texts the second loses one.

  Args:
    a: tokens of the first text.
    b: tokens of the second text.
    total: tokens that both may have.
  """
  over = max(a + b - total, 0)
  level = min(over, abs(a - b))
  a, b = (a - level, b) if a > b else (a, b - level)
  return a - (over - level) // 2, b - (over - level + 1) // 2


def numbered(names: Iterable[str]) -> list[str]:
  """Labels in the order of the head's outputs: by value if all are whole numbers, else alphabetically."""
  names = set(names)
  if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)
