"""Reads the documents of a corpus: plain text, JSON lines, Parquet, each also compressed, and TFDS names.

A corpus is planned as units of work. The list of units depends on the corpus alone, so the results are the same for any
number of processes. A document is a list of lines (str, no empty ones): its paragraphs or its sentences.

Bad input never ends a run: it is repaired or left out, and counted in a tally.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator

from albert_jax import files, strict_json
from albert_jax.data import datasets, encodings
from albert_jax.data.corpus.opening import (
  MAX_VALUE_BYTES,
  check_row_group,
  check_text,
  open_bytes,
  open_parquet,
  suffixes,
)
from albert_jax.data.corpus.sentences import split_sentences
from albert_jax.errors import UserError

UNIT_BYTES = 16 << 20  # a unit of work: small enough to distribute, large enough for a shard
# Longer lines and documents are cut, so that memory stays bounded.
MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_CHARS = 1 << 23
MAX_DOCUMENT_LINES = 1 << 18
LAYOUTS = ("blank", "book", "doc")
_READ_BYTES = 1 << 18
_HEAD_BYTES = 1 << 16  # of a file, from which its layout is guessed


@dataclasses.dataclass(frozen=True)
class Reading:
  """How to read a corpus; every field is an option of the commands that read one.

  Attributes:
    layout: what separates documents in plain text. `blank`: a blank line (one paragraph or sentence a line). `book`: a
      file is a document, a blank line separates its paragraphs, which are wrapped over lines. `doc`: WikiExtractor's
      `<doc …>` and `</doc>`. `auto`: looked up in each file.
    text_field: the field of a JSON line, Parquet row or TFDS record that holds the text.
    tfds_split: the split of a TFDS dataset.
    tfds_dir: where TFDS datasets are; '' is TFDS' own default.
    encoding: of the text and JSON files that are not UTF-8, such as cp1252, or several with commas between; ''
      refuses such files.
  """

  layout: str = "auto"
  text_field: str = "text"
  tfds_split: str = "train"
  tfds_dir: str = ""
  encoding: str = ""


@dataclasses.dataclass(frozen=True)
class Span:
  """A part of a source: bytes of a plain file, rows of a Parquet file, records of a TFDS split; stop -1 is its end.

  `encoding` is that of a file which is not UTF-8, and which is one span.
  """

  source: str
  kind: str
  start: int = 0
  stop: int = -1
  encoding: str = ""


@dataclasses.dataclass(frozen=True)
class Unit:
  """What one worker reads at a time: spans in the order of the corpus, and about how many bytes they are."""

  spans: tuple[Span, ...]
  size: int


KINDS = {".txt": "text", "": "text", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet"}


# Planning.


def _files(item):
  """Returns the files that one item of `--input` names: list of str, sorted; empty where it names none."""
  fs, path = files.filesystem(item)
  if files.is_pattern(item):
    matching = [files.filesystem(path)[1] for path in files.matching(item)]
    names = [name for name in matching if fs.isfile(name)]
  elif fs.isdir(path):
    names = [name for name in fs.find(path) if not re.search(r"/[._]", name[len(path.rstrip("/")) :])]  # no hidden ones
    names = [name for name in names if suffixes(name)[0] in KINDS]
  else:
    names = [path] if fs.isfile(path) else []
  return sorted(fs.unstrip_protocol(name) if "://" in item else name for name in names)


def plan(spec: str, reading: Reading, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
  """Lists a corpus as units of work.

  Args:
    spec: str, a file, folder, glob or TFDS name (`wikipedia/20230601.en`), or several with commas between.
    reading: Reading.
    unit_bytes: about how many bytes of text a unit holds.

  Returns:
    list[Unit] in the order of the corpus; it depends on nothing but the corpus and the arguments.

  Raises:
    UserError: an item is neither a file nor a dataset, or there is no text at all.
  """
  spans = []
  reading = dataclasses.replace(reading, encoding=encodings.checked(reading.encoding))
  for item in files.split_list(spec, "--input"):
    paths = _files(item)
    for path in paths:
      spans += _plan_file(path, reading, unit_bytes)
    if not paths:
      if (
        files.is_pattern(item)
        or ("/" not in item.strip("./") and "." in item)
        or item.startswith((".", "/", "~"))
        or files.is_url(item)
      ):
        raise UserError(
          f"--input={item} matches no file; expected a text, .jsonl or .parquet file (or .gz, .xz, .zst of one), a "
          "folder, a quoted glob such as 'corpus/*.txt', or the name of a TFDS dataset"
        )
      spans += _plan_tfds(item, reading, unit_bytes)
  units, pending, size = [], [], 0
  for span, span_size in spans:
    if pending and size + span_size > unit_bytes:
      units.append(Unit(tuple(pending), size))
      pending, size = [], 0
    pending.append(span)
    size += span_size
  units += [Unit(tuple(pending), size)] if pending else []
  if not sum(unit.size for unit in units):
    raise UserError(f"--input={spec} holds no text: {len(spans)} files, all empty")
  return units


def _plan_file(path, reading, unit_bytes):
  """One file as a list of (Span, bytes)."""
  suffix, compression = suffixes(path)
  kind = KINDS.get(suffix, "text")
  fs, name = files.filesystem(path)
  size = fs.size(name)
  if kind == "parquet":
    return _plan_parquet(path, size)
  encoding = ""
  if reading.encoding:
    with open_bytes(path) as file:
      encoding = encodings.of_file(path, file, reading.encoding)
  with open_bytes(path) as file:
    head = file.read(_HEAD_BYTES)
    check_text(path, head, encoding)
  if encoding:
    with open_bytes(path) as file:
      head = _as_utf8(file, encoding).read(_HEAD_BYTES)
  elif not reading.encoding:
    encodings.refuse_other(path, head)
  if kind == "text":
    kind = reading.layout if reading.layout != "auto" else _guess_layout(head, size)
  if compression or encoding or kind == "book" or size <= unit_bytes:
    return [(Span(path, kind, encoding=encoding), size)]
  starts = [0]
  with open_bytes(path) as file:
    for target in range(unit_bytes, size, unit_bytes):
      if target < starts[-1]:
        continue
      file.seek(target)
      _skip_line(file)  # the rest of some line
      while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
          _skip_line(file)
        position = file.tell()
        if kind == "json" or (kind == "blank" and not line.strip()):
          break
        if kind == "doc" and line.startswith(b"<doc "):
          position -= len(line)
          break
      if line and starts[-1] < position < size:
        starts.append(position)
  return [(Span(path, kind, a, b), b - a) for a, b in zip(starts, [*starts[1:], size], strict=True)]


def _skip_line(file):
  """Reads to the end of a line, which may be too long for memory."""
  while (part := file.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
    pass


def _as_utf8(file, encoding):
  return io.BufferedReader(encodings.Utf8Bytes(file, encoding), _READ_BYTES) if encoding else file


class _LineFeeds(io.RawIOBase):
  """The bytes of a file; where CR alone ends its first line, each CR becomes a line feed."""

  def __init__(self, file):
    self._file = file
    self._head = file.read(_HEAD_BYTES)
    self._has_cr = b"\r" in self._head and b"\n" not in self._head

  def readable(self):
    return True

  def readinto(self, buffer):
    data = self._head[: len(buffer)] or self._file.read(len(buffer))
    self._head = self._head[len(data) :]
    buffer[: len(data)] = data.replace(b"\r", b"\n") if self._has_cr else data
    return len(data)


def _guess_layout(head, size):
  """`doc`, `book` or `blank` (see Reading), from the first bytes of a file of so many bytes.

  A file is a book in three cases. Lines wrapped at a fixed width: the first word of the next line does not fit on the
  line before, and most lines with a following line end in the middle of a sentence. Verse: most lines end in the middle
  of a sentence, many with a comma. Paragraphs of one line, each followed by a blank line: many are a single sentence,
  speech or a heading, which would be poor documents.
  """
  head = (head if b"\n" in head else head.replace(b"\r", b"\n")).decode("utf-8", "replace")
  if re.match(r"\ufeff?\s*<doc ", head):
    return "doc"
  lines = [line.strip() for line in head.split("\n")[:-1]]
  pairs = [(a, b) for a, b in itertools.pairwise(lines) if a and b]
  if len(pairs) >= 20:
    width = sorted(len(a) for a, _ in pairs)[int(0.9 * len(pairs))]
    full = _share(len(a) + len(b.split(maxsplit=1)[0]) >= width - 4 for a, b in pairs)
    broken = _share(_breaks_off(a) for a, _ in pairs)
    comma = _share(a[-1] in ",;" for a, _ in pairs)
    if width <= 120 and broken > 0.6 and (full > 0.5 or comma > 0.1):
      return "book"
  blocks = [list(block) for is_text, block in itertools.groupby(lines, bool) if is_text]
  # Text that exceeds the limit of a document consists of many documents.
  if len(blocks) >= 20 and _share(len(block) == 1 for block in blocks) > 0.9 and size <= MAX_DOCUMENT_CHARS:
    single = _share(len(split_sentences(block[0])) == 1 for block in blocks)
    loose = _share(block[0][0] in _BEGINS_SPEECH or block[0][-1] not in _ENDS_SENTENCE for block in blocks)
    if single > 0.15 and loose > 0.15:
      return "book"
  return "blank"


def _breaks_off(line):
  """Returns whether a line ends in the middle of a sentence. Thai and Lao do not mark the ends of sentences."""
  return line[-1] in ",;-" or (line[-1].isalnum() and not "\u0e00" <= line[-1] <= "\u0eff")


_BEGINS_SPEECH = "\"'“”„‚‘’»«‹›–—-「『"
_ENDS_SENTENCE = ".!?…。！？｡\"'”“’‘»«›‹)]」』）】》"


def _share(values):
  values = list(values)
  return sum(values) / len(values)


def _plan_parquet(path, size):
  """Returns a Parquet file as a list of (Span, bytes): a row group is the smallest part that can be read alone."""
  with open_parquet(path) as file:
    groups = file.metadata.num_row_groups
  return [(Span(path, "parquet", i, i + 1), size // groups) for i in range(groups)]


@functools.cache
def _tfds_source(name, split, data_dir):
  builder = datasets.tfds_builder(name, data_dir)
  if name.split("/")[0] == "python_docs":
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # Standard output belongs to the command's JSON, and TFDS prints that it downloads, which is not so here.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()  # Made from the Python installation; does nothing the second time
  try:
    return builder.as_data_source(split)
  except Exception as error:
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"the TFDS dataset {name}, split {split}, cannot be read by index ({reason}); prepare it once with: "
      f"tfds build {name} --file_format=array_record"
    ) from None


def _plan_tfds(name, reading, unit_bytes):
  source = _tfds_source(name, reading.tfds_split, reading.tfds_dir)
  info = source.dataset_info
  if reading.text_field not in info.features:
    raise UserError(
      f"the TFDS dataset {name} has no field {reading.text_field!r}; expected one of {', '.join(info.features)}; "
      "choose with --text_field=NAME"
    )
  total = max(info.splits[reading.tfds_split].num_bytes, 1)
  step = max(1, unit_bytes * len(source) // total)
  ranges = [(i, min(i + step, len(source))) for i in range(0, len(source), step)]
  return [(Span(name, "tfds", a, b), total * (b - a) // len(source)) for a, b in ranges]


# Reading.


def documents(unit: Unit, reading: Reading, tally: collections.Counter) -> Iterator[list[str]]:
  """Reads a unit of work.

  Args:
    unit: Unit, from `plan`.
    reading: Reading, the same as there.
    tally: counts of defects of the input; updated.

  Yields:
    list[str], the lines of a document.
  """
  for span in unit.spans:
    if span.kind in LAYOUTS and span.start == 0:
      tally[f"files read as --layout={span.kind}"] += 1
    if span.encoding:
      tally[f"files read as {span.encoding}"] += 1
    for lines in _READERS[span.kind](span, reading, tally):
      lines = [line for line in lines if line]
      if lines:
        yield lines


def lines(span: Span, tally: collections.Counter) -> Iterator[str]:
  """Yields the lines of a part of a file: stripped str, '' for a blank line. Lines over MAX_LINE_BYTES are cut."""
  limit = MAX_LINE_BYTES
  with open_bytes(span.source) as file:
    file = _at(file, span)
    left = span.stop - span.start if span.stop >= 0 else sys.maxsize
    first, rest = span.start == 0, b""
    while data := file.read(min(_READ_BYTES, limit, left)):
      end = file.readline(min(limit, left - len(data)))  # the rest of the last line
      left -= len(data) + len(end)
      tally["bytes"] += len(data) + len(end)
      if first:
        data, first = data.removeprefix(b"\xef\xbb\xbf"), False
      data, rest = rest + data + end, b""
      if len(end) == limit and not end.endswith(b"\n"):
        # Cut an endless line after white space if it has some, otherwise between two characters.
        tally["overlong lines cut"] += 1
        cut = max(data.rfind(b" "), data.rfind(b"\t")) + 1 or len(data)
        while len(data) - cut < 4 and data[cut - 1] & 0xC0 == 0x80:
          cut -= 1
        if data[cut - 1] >= 0xC0:
          cut -= 1
        data, rest = data[:cut], data[cut:]
      yield from _decode_lines(data, tally)
    if rest:
      yield _decode(rest, tally)
    if first:
      tally["empty files"] += 1


def _at(file, span):
  """Returns the UTF-8 bytes of a file at the start of a span. Only files with line feeds have several spans."""
  if span.start:
    file.seek(span.start)
    return file
  return io.BufferedReader(_LineFeeds(_as_utf8(file, span.encoding)), _READ_BYTES)


def _decode_lines(data, tally):
  """Decodes lines of bytes to stripped str: all at once, or one by one if a line is invalid."""
  with contextlib.suppress(UnicodeDecodeError):
    text = data.decode()
    if "\0" not in text:
      return map(str.strip, text.removesuffix("\n").split("\n"))
  return [_decode(line, tally) for line in data.removesuffix(b"\n").split(b"\n")]


def _decode(line, tally):
  """Decodes a line of bytes to stripped str; invalid UTF-8 becomes U+FFFD, NUL a space; both are counted."""
  try:
    text = line.decode()
  except UnicodeDecodeError:
    tally["lines with invalid UTF-8"] += 1
    text = line.decode("utf-8", "replace")
  if "\0" in text:
    tally["lines with NUL"] += 1
    text = text.replace("\0", " ")
  return text.strip()


def _gather(lines, is_end, tally):
  """Groups lines into documents; a line for which `is_end` is true ends a document."""
  document, size = [], 0
  for line in lines:
    if is_end(line):
      yield document
      document, size = [], 0
      continue
    document.append(line)
    size += len(line)
    if size > MAX_DOCUMENT_CHARS or len(document) > MAX_DOCUMENT_LINES:
      tally["overlong documents cut"] += 1
      yield document
      document, size = [], 0
  yield document


def _read_blank(span, reading, tally):
  del reading
  return _gather(lines(span, tally), lambda line: not line, tally)


def _read_book(span, reading, tally):
  del reading
  return _gather(_unwrap(lines(span, tally), tally), lambda line: False, tally)


def _unwrap(lines, tally):
  """Joins the lines of each paragraph; a paragraph over the size limit is cut."""
  wrapped, size = [], 0
  for line in lines:
    if line:
      wrapped.append(line)
      size += len(line) + 1
    if size > MAX_LINE_BYTES:
      tally["overlong paragraphs cut"] += 1
    if wrapped and (not line or size > MAX_LINE_BYTES):
      yield " ".join(wrapped)
      wrapped, size = [], 0
  yield " ".join(wrapped)


def _read_doc(span, reading, tally):
  del reading
  return _gather(lines(span, tally), lambda line: line == "</doc>" or line.startswith("<doc "), tally)


def _records(span, tally):
  """Yields the non-empty lines of a JSON file, as bytes. Lines over the size limit are left out and counted."""
  with open_bytes(span.source) as file:
    file = _at(file, span)
    left, is_empty = span.stop - span.start if span.stop >= 0 else sys.maxsize, True
    while left > 0 and (line := file.readline(min(left, MAX_VALUE_BYTES))):
      left, is_empty = left - len(line), False
      tally["bytes"] += len(line)
      if len(line) == MAX_VALUE_BYTES and not line.endswith(b"\n"):
        tally[_TOO_LONG] += 1
        while left > 0 and (line := file.readline(min(left, MAX_VALUE_BYTES))):
          left -= len(line)
          tally["bytes"] += len(line)
          if line.endswith(b"\n"):
            break
      elif line.strip():
        yield line.removeprefix(b"\xef\xbb\xbf")
    if is_empty:
      tally["empty files"] += 1


_SURROGATE, _SURROGATES = re.compile(rb"\\u[dD][89a-fA-F]"), re.compile("[\ud800-\udfff]")
_TOO_LONG = f"records over {MAX_VALUE_BYTES >> 20} MiB left out"


def _read_json(span, reading, tally):
  has_text = False
  for number, line in enumerate(_records(span, tally)):
    if line.count(b"[") + line.count(b"{") > strict_json.MAX_CONTAINERS:  # They take a hundred times their bytes.
      tally[_TOO_LONG] += 1
      continue
    try:
      record = json.loads(_decode(line, tally))
    except (ValueError, RecursionError):
      tally["lines that are not JSON"] += 1
      continue
    text = record.get(reading.text_field) if isinstance(record, dict) else None
    if isinstance(text, str):
      has_text = True
      if _SURROGATE.search(line) and _SURROGATES.search(text):
        tally["records with half a surrogate pair"] += 1
        text = _SURROGATES.sub("\ufffd", text)
      yield from _gather(_text_lines(text, tally), lambda line: False, tally)
    elif not has_text and number == 0 and isinstance(record, dict):
      raise UserError(
        f"{span.source}: the first record has no text in the field {reading.text_field!r}; its fields are "
        f"{', '.join(record)[:300]}; choose with --text_field=NAME"
      )
    else:
      tally["records without text"] += 1


def _read_parquet(span, reading, tally):
  column = reading.text_field
  with open_parquet(span.source, column) as file:
    for group in range(span.start, span.stop):
      check_row_group(span.source, file, group, column)
      for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[column]):
        for value in batch.column(0):
          # A large value stays in Arrow's memory until its size is known.
          data = value.value.as_buffer() if _is_text(value) else None
          if data is None:
            tally["records without text"] += 1
          elif data.size > MAX_VALUE_BYTES:
            tally[_TOO_LONG] += 1
          else:
            tally["bytes"] += data.size
            text = _decode(data.to_pybytes(), tally)
            yield from _gather(_text_lines(text, tally), lambda line: False, tally)


def _is_text(value):
  """Returns whether a value of an Arrow column is a string, not null."""
  import pyarrow

  return (
    value.is_valid and isinstance(value, pyarrow.DictionaryScalar) and pyarrow.types.is_string(value.type.value_type)
  )


# wiki40b marks its structure with words.
_MARKUP = re.compile(r"_START_(?:ARTICLE|SECTION|PARAGRAPH)_|_NEWLINE_|\n")


def _read_tfds(span, reading, tally):
  source = _tfds_source(span.source, reading.tfds_split, reading.tfds_dir)
  for i in range(span.start, span.stop, 64):
    for record in source.__getitems__(list(range(i, min(i + 64, span.stop)))):
      text = record[reading.text_field]
      text = text.encode() if isinstance(text, str) else bytes(text)
      tally["bytes"] += len(text)
      yield from _gather(_text_lines(_decode(text, tally), tally), lambda line: False, tally)


def _text_lines(text, tally):
  """Returns the lines of a text that was one value."""
  if "\0" in text:
    tally["lines with NUL"] += 1
    text = text.replace("\0", " ")
  if "_START_" in text:
    return map(str.strip, _MARKUP.split(text))
  # Not `split`, whose list of a text of line ends alone takes many times the text's memory.
  return map(str.strip, io.StringIO(text, newline="\n"))


_READERS = {
  "blank": _read_blank,
  "book": _read_book,
  "doc": _read_doc,
  "json": _read_json,
  "parquet": _read_parquet,
  "tfds": _read_tfds,
}
