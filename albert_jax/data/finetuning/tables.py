"""Labelled files to rows: CSV, TSV, JSON lines, JSON, Parquet, and TFDS datasets; and their texts to ids.

What a user's file has wrong is an error that names the file and the line, or it is skipped, counted and said.
"""

import csv
import hashlib
import io
import json
import pathlib
import re
import sys
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from albert_jax import files
from albert_jax.data import datasets
from albert_jax.errors import UserError, message_lines

# Which names of files a split goes by, in a folder. The first is TFDS' name of it.
SPLITS = {"train": ("train", "training"), "validation": ("validation", "dev", "valid", "val"), "test": ("test",)}
TABLES = {".csv": (",", ";", "\t"), ".tsv": ("\t",), ".txt": ("\t",)}  # and what may be between their columns
SUFFIXES = (*TABLES, ".jsonl", ".ndjson", ".json", ".parquet")
QUOTES = ("auto", "csv", "none")


@dataclass(frozen=True)
class Examples:
  """The rows of a split, as they were written.

  columns: {field: list of a value a row}; str in tables of text, else what the format has; None where there is none.
  lines: for each row its line in the file, from 1, for messages.
  source: the file, or the name of the dataset and its split.
  """

  columns: dict[str, list]
  lines: list[int]
  source: str

  def __len__(self):
    return len(self.lines)

  def where(self, row) -> str:
    """'FILE line N' of a row."""
    return f"{self.source} line {self.lines[row]}"

  def select(self, keep) -> "Examples":
    """The rows for which `keep` (bool [n]) is true."""
    index = np.flatnonzero(keep)
    columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
    return Examples(columns, [self.lines[i] for i in index], self.source)


def read(dataset, split, fields, *, optional=(), quotes="auto", tfds_dir="", skip_ragged=False) -> Examples:
  """The rows of a split.

  Args:
    dataset: a file, a folder with a file a split, a TFDS folder, or a TFDS name.
    split: the split's name, or the path of a file, alone or in the folder.
    fields: list of str, the columns; all of them numbers, from 0, for a table without a header.
    optional: further columns, all None where there are none.
    quotes: whether quotes in a table are CSV quotes: csv | none | auto, which is by the file's own look.
    skip_ragged: skip and count table lines with another number of columns than the header, instead of the error.

  Raises:
    UserError: nothing is there, a column is missing, or a line cannot be read.
  """
  path = find(dataset, split)
  if path is not None:
    return read_file(path, fields, optional=optional, quotes=quotes, skip_ragged=skip_ragged)
  return _read_tfds(dataset, split, fields, optional, tfds_dir)


def find(dataset, split, names=None):
  """The file of a split; None where `dataset` is no file or folder of files, so that it is for TFDS.

  Args: names: the names of its files, without or with an ending; None: as in SPLITS.
  """
  folder = pathlib.Path(dataset).expanduser()
  if pathlib.Path(split).suffix and (split_file := pathlib.Path(split).expanduser()).is_file():
    return split_file
  if not dataset:
    raise UserError("data.dataset is not set; give a file, a folder or a TFDS name with --config.data.dataset=…")
  if folder.is_file():
    if split in SPLITS["train"]:
      return folder
    raise UserError(
      f"{folder} is one file, so there is no split {split!r}; give another file with --config.data.validation_split="
      "FILE, or keep a share of this one with --config.data.validation_fraction=0.1"
    )
  if not folder.is_dir():
    if folder.suffix in SUFFIXES or str(dataset).startswith((".", "/", "~")):
      raise UserError(f"data.dataset={dataset}: nothing is there; expected a file, a folder or a TFDS name")
    return None
  if _tfds_folder(folder):
    return None
  names = names or next((names for names in SPLITS.values() if split in names), (split,))
  for name in names:
    found = [folder / name] if pathlib.Path(name).suffix else [folder / (name + suffix) for suffix in SUFFIXES]
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
      raise UserError(f"{folder} has several files of the split {split!r}: {_names(found)}; name one as the split")
    if found:
      return found[0]
  raise UserError(
    f"{folder} has no file of the split {split!r}: expected {', '.join(names)} (with one of {' '.join(SUFFIXES)}), and "
    f"there is {_names(sorted(folder.iterdir())) or 'nothing'}; name the file with --config.data.split=FILE or "
    "--config.data.validation_split=FILE"
  )


def _names(paths):
  shown = [path.name for path in paths[:8]]
  return ", ".join(shown) + (", …" if len(paths) > 8 else "")


# Files.


def read_file(path, fields, *, optional=(), quotes="auto", skip_ragged=False) -> Examples:
  """The rows of one file, in the format its ending says; see `read`."""
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


def read_text(path) -> str:
  """A file's text, without a byte order mark; NUL characters are dropped and counted.

  Raises: UserError where it is not UTF-8, with the line.
  """
  data = files.read(path)
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    raise UserError(
      f"{path} is not UTF-8 text: the byte {data[error.start]:#04x} in line {line}; convert it, as with: "
      "iconv -f latin1 -t utf-8"
    ) from None
  if nuls := text.count("\0"):
    say(path, nuls, "NUL characters were dropped")
    text = text.replace("\0", "")
  return text


def _read_table(path, fields, optional, separators, quotes, skip_ragged):
  text = read_text(path)
  first = next((line.rstrip("\r") for line in text.split("\n") if line.strip()), None)
  if first is None:
    raise UserError(f"{path} is empty; expected a table with the columns {', '.join(fields)}")
  has_header = not all(field.isdigit() for field in fields)
  headers = {separator: _header(first, separator, quotes, has_header) for separator in separators}
  fitting = [separator for separator, header in headers.items() if not set(fields) - set(header)]
  if not fitting:
    header = max(headers.values(), key=len)
    missing = ", ".join(repr(field) for field in fields if field not in header)
    raise UserError(
      f"{path} has no column {missing}; expected {'one of ' if has_header else 'a number of '}{', '.join(header)} "
      "(choose with the config's data.*_field, as --config.data.label_field=…; numbers where there is no header)"
    )
  header = headers[fitting[0]]
  if twice := [field for field in (*fields, *optional) if header.count(field) > 1]:
    raise UserError(f"{path} has several columns {twice[0]!r}; give each a name of its own")
  rows = _cells(path, text, fitting[0], quotes)[has_header:]
  ragged = [line for line, cells in rows if len(cells) != len(header)]
  if ragged:
    what = f"have another number of columns than the {len(header)} of the first line (the first is line {ragged[0]})"
    if not skip_ragged or len(ragged) == len(rows):
      raise UserError(
        f"{path}: {len(ragged):,} of {len(rows):,} lines {what}; mend or remove them (a held-out number is of all "
        "lines), or say with --config.data.quotes=csv or none what quotes are there"
      )
    say(path, len(ragged), f"lines {what}, and were skipped")
    rows = [(line, cells) for line, cells in rows if len(cells) == len(header)]
  place = {name: header.index(name) if name in header else None for name in (*fields, *optional)}
  columns = {name: [None if i is None else cells[i] for _, cells in rows] for name, i in place.items()}
  return Examples(columns, [line for line, _ in rows], str(path))


def _header(line, separator, quotes, has_header):
  """The names of the columns; their numbers where the first line is a row like the others."""
  cells = line.split(separator) if quotes == "none" else next(csv.reader([line], delimiter=separator))
  return [cell.strip() for cell in cells] if has_header else [str(i) for i in range(len(cells))]


def _cells(path, text, separator, quotes):
  """[(line number, its cells)] of a table, without blank lines."""
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
      and len({len(cells) for _, cells in rows}) == 1
      and not any("\t" in cell and "\n" in cell for _, cells in rows for cell in cells)
    ):
      return rows
  lines = ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1))
  return [(number, line.split(separator)) for number, line in lines if line.strip()]


def _quoted(text, separator):
  # The limit is the module's, and exists against memory being used up; the text is in memory already.
  csv.field_size_limit(max(csv.field_size_limit(), len(text)))
  reader, rows, line = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [], 1
  try:
    for cells in reader:
      if any(cell.strip() for cell in cells):
        rows.append((line, cells))
      line = reader.line_num + 1
  except csv.Error as error:
    raise csv.Error(f"in the row at line {line}: {error}") from None
  return rows


def json_rows(path) -> list[tuple]:
  """[(number, value)] of a JSON file: a list's items, an object's objects, or the lines of JSON lines.

  Raises: UserError for what is not JSON, or holds nothing.
  """
  text, rows = read_text(path), None
  if str(path).endswith((".json", ".txt")):
    try:
      whole = json.loads(text)
    except ValueError:
      whole = None  # Lines, by another name.
    if isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
      whole = list(whole.values())
    if isinstance(whole, list):
      rows = list(enumerate(whole, 1))
  if rows is None:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
      if line.strip():
        try:
          rows.append((number, json.loads(line)))
        except ValueError as error:
          raise UserError(f"{path} line {number} is not JSON: {error}") from None
  if not rows:
    raise UserError(f"{path} is empty; expected JSON objects, one a line")
  return rows


def _read_json(path, fields, optional):
  rows = json_rows(path)
  columns = {name: [] for name in (*fields, *optional)}
  for number, row in rows:
    if not isinstance(row, dict) or any(field not in row for field in fields):
      there = ", ".join(row) if isinstance(row, dict) else f"{str(row)[:40]!r}"
      raise UserError(
        f"{path} line {number}: expected an object with the fields {', '.join(fields)}, and there is {there}; choose "
        "with the config's data.*_field, as --config.data.label_field=…"
      )
    for name, values in columns.items():
      values.append(row.get(name))
  return Examples(columns, [number for number, _ in rows], str(path))


def _read_parquet(path, fields, optional):
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise UserError(f"reading {path} needs a library: pip install pyarrow") from None
  try:
    there = pyarrow.parquet.read_schema(path).names
    _check_columns(path, there, fields)
    table = pyarrow.parquet.read_table(path, columns=[name for name in (*fields, *optional) if name in there])
  except (pyarrow.ArrowInvalid, OSError) as error:
    raise UserError(f"{path} is no whole Parquet file: {message_lines(error)[0]}") from None
  columns = {name: table[name].to_pylist() if name in there else [None] * len(table) for name in (*fields, *optional)}
  return Examples(columns, list(range(1, len(table) + 1)), str(path))


def _check_columns(source, there, fields):
  if missing := [field for field in fields if field not in there]:
    raise UserError(
      f"{source} has no column {', '.join(map(repr, missing))}; expected one of {', '.join(there)} (choose with "
      "the config's data.*_field, as --config.data.label_field=…)"
    )


# TFDS.


def _tfds_folder(folder):
  """The folder of a prepared TFDS dataset: `folder`, or the only version in it; None where it is none."""
  found = [
    path.parent for path in (folder / "dataset_info.json", *folder.glob("*/dataset_info.json")) if path.is_file()
  ]
  return found[-1] if found else None


def _read_tfds(dataset, split, fields, optional, tfds_dir):
  import tensorflow_datasets as tfds

  folder = _tfds_folder(pathlib.Path(dataset).expanduser())
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
  """A value of TFDS as Python's: labels by their names, and none where TFDS says -1 for it."""
  if hasattr(feature, "int2str"):
    return feature.int2str(int(value)) if value >= 0 else None
  value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
  return value.decode("utf-8") if isinstance(value, bytes) else value


# Rows.


def texts(examples, field) -> list[str]:
  """A column as texts. Raises: UserError for what is neither text nor a number. Empty ones are counted and said."""
  values, empty = [], 0
  for row, value in enumerate(examples.columns[field]):
    if value is None or isinstance(value, str):
      value = value or ""
    elif isinstance(value, bool) or not isinstance(value, int | float):
      raise UserError(f"{examples.where(row)}: {field!r} holds {str(value)[:40]!r}, expected a text")
    values.append(str(value))
    empty += not values[-1].strip()
  if empty:
    say(examples.source, empty, f"of {len(values):,} rows have an empty {field!r}; they are kept as they are")
  return values


def held_out(examples, fields, fraction):
  """Which rows to keep for validation: bool [n], decided by a row's texts alone.

  So the same row is held out whatever else is in the file, and no row is on both sides.
  """
  if not 0 < fraction < 1:
    raise UserError(f"data.validation_fraction={fraction} must be above 0 and below 1, such as 0.1")
  below = int(fraction * 2**64)
  keys = zip(*(examples.columns[field] for field in fields), strict=True)
  hashes = (hashlib.blake2b("\0".join(map(str, key)).encode(errors="replace"), digest_size=8).digest() for key in keys)
  return np.array([int.from_bytes(digest, "little") < below for digest in hashes], bool)


def say(source, count, what):
  """One line on stderr about what a file has wrong."""
  print(f"{source}: {count:,} {what}", file=sys.stderr)


# Ids.


def encode(vocabulary, first, second, seq_length, source):
  """Texts to the inputs of the original's run_classifier.py: [CLS] first [SEP], or [CLS] first [SEP] second [SEP].

  Args: first: list of n texts. second: as many, or None. seq_length: what is longer is cut, the longer text first;
    how many were is said. source: where the texts are from, for that.
  Returns: {"input_ids", "token_type_ids"}: lists of n int32 arrays.
  """
  ids_a = encode_texts(vocabulary, first)
  ids_b = encode_texts(vocabulary, second) if second is not None else [[]] * len(first)
  specials = 2 if second is None else 3
  tokens, cut = {"input_ids": [], "token_type_ids": []}, 0
  for a, b in zip(ids_a, ids_b, strict=True):
    kept_a, kept_b = shares(len(a), len(b), seq_length - specials)
    cut += kept_a + kept_b < len(a) + len(b)
    end = [] if second is None else [*b[:kept_b], vocabulary.sep_id]
    tokens["input_ids"].append(np.array([vocabulary.cls_id, *a[:kept_a], vocabulary.sep_id, *end], np.int32))
    tokens["token_type_ids"].append(np.repeat(np.int32([0, 1]), [kept_a + 2, len(end)]))
  if cut:
    say(source, cut, f"of {len(first):,} rows are longer than {seq_length} tokens and were cut (data.seq_length)")
  return tokens


def encode_texts(vocabulary, texts):
  """The ids of texts, list of int32 arrays, without special ones; of many with progress on a terminal."""
  ids = []
  for start in tqdm(range(0, len(texts), 1024), desc="encoding", disable=None, leave=False):
    ids += [np.array(x, np.int32) for x in vocabulary.encode_batch(texts[start : start + 1024])]
  return ids


def shares(a, b, total):
  """How many tokens are left of a pair of `a` and `b` that may have `total`, if the longer loses its last at a time.

  _truncate_seq_pair of the original; of two equally long ones the second loses.
  """
  over = max(a + b - total, 0)
  level = min(over, abs(a - b))
  a, b = (a - level, b) if a > b else (a, b - level)
  return a - (over - level) // 2, b - (over - level + 1) // 2


def numbered(names) -> list[str]:
  """Labels in the order of the head's outputs: by number where all are whole numbers, else by the alphabet."""
  names = set(names)
  if all(re.fullmatch(r"-?\d+", name) for name in names):
    return sorted(names, key=lambda name: (int(name), name))
  return sorted(names)
