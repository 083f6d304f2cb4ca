"""Reads the documents of a unit of work: plain text, JSON lines, Parquet, each also compressed, and TFDS datasets.

A document is a list of lines (str, no empty ones): its paragraphs or its sentences. Bad input never ends a run: it is
repaired or left out, and counted in a tally.
"""

import collections
import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator

from albert_jax import strict_json
from albert_jax.data.corpus.opening import (
  MAX_VALUE_BYTES,
  as_utf8,
  check_row_group,
  open_bytes,
  open_parquet,
  tfds_source,
)
from albert_jax.data.corpus.work_units import LAYOUTS, MAX_DOCUMENT_CHARS, MAX_LINE_BYTES, Reading, Span, Unit
from albert_jax.errors import UserError

MAX_DOCUMENT_LINES = 1 << 18
_READ_BYTES = 1 << 18
_HEAD_BYTES = 1 << 16  # of a file, in which line feeds are looked for


def documents(unit: Unit, reading: Reading, tally: collections.Counter) -> Iterator[list[str]]:
  """Reads a unit of work.

  Args:
    unit: Unit, from `work_units.plan`.
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


def no_text(spec: str, tally: collections.Counter) -> UserError:
  """Returns the error for a corpus without any text.

  Args:
    spec: the corpus.
    tally: the counts of `documents`, which say why.
  """
  counts = ", ".join(f"{what}: {count:,}" for what, count in sorted((+tally).items()))
  return UserError(
    f"--input={spec} has no text ({counts}); expected text with blank lines between documents, or JSON lines with a "
    "text in each object"
  )


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


def _at(file, span):
  """Returns the UTF-8 bytes of a file at the start of a span. Only files with line feeds have several spans."""
  if span.start:
    file.seek(span.start)
    return file
  return io.BufferedReader(_LineFeeds(as_utf8(file, span.encoding)), _READ_BYTES)


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
      if _SURROGATE.search(line) and _SURROGATES.search(text):
        tally["records with half a surrogate pair"] += 1
        text = _SURROGATES.sub("\ufffd", text)
      yield from _gather(_text_lines(text, tally), lambda line: False, tally)
    elif span.start == number == 0 and isinstance(record, dict) and record.get(reading.text_field, "") is not None:
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
  source = tfds_source(span.source, reading.tfds_split, reading.tfds_dir)
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
