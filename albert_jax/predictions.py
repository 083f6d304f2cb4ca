"""Answers to the lines of files and pipes and the rows of tables; `albert-jax predict` writes them."""

import codecs
import contextlib
import json
import math
import os
import pathlib
import queue
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from albert_jax import evaluation, pipelines, strict_json
from albert_jax.data import encodings
from albert_jax.data.finetuning import cells, tables
from albert_jax.errors import UserError

CHUNK = 1024  # lines that are sorted by length together
CHUNK_BYTES = 1 << 26  # the size at which a chunk is complete
MAX_LINE_BYTES = strict_json.MAX_VALUE_BYTES
_HEAD_BYTES = 1 << 16  # of a .json file, which show whether it is a list
FORMATS = ("auto", "text", "pairs", "json", "table")
TABLES = (".csv", ".tsv", ".parquet")  # a .txt may be a table in training, and is lines here


class Answer(NamedTuple):
  """The answer to one line.

  Attributes:
    where: "FILE line N", or "line N".
    id: {"id": …} if the line has one, or {}.
    result: the answer of the pipeline; a UserError if the line cannot be read or answered; None if the line is blank.
  """

  where: str
  id: dict[str, Any]
  result: dict[str, Any] | UserError | None


def answers(
  model: pipelines.Pipeline,
  sources: Sequence[str | os.PathLike | BinaryIO | Sequence[str]],
  *,
  format: str = "auto",
  fields: Sequence[str] | None = None,
  checkpoint: str | os.PathLike = "",
) -> Iterator[Answer]:
  """Answers every line of some sources, in order.

  Lines are read in chunks, and those of a chunk are sorted by length and run together. A chunk is a fixed number of
  lines of a file, or all lines that a pipe holds by now, so that a program may write a line and wait for its answer.
  All tables are read before the first answer.

  Args:
    model: made by albert_jax.pipeline.
    sources: paths of files, binary streams, and lists of texts.
    format: of the lines, in FORMATS; auto is as each line looks, or a table for a file that ends as TABLES do.
    fields: the fields of JSON objects, or the columns of tables, with the texts.
    checkpoint: the run whose config names the columns where `fields` does not.

  Yields:
    An Answer for each line.

  Raises:
    UserError: a table lacks a column or cannot be read, or a stream fails.
  """
  with contextlib.ExitStack() as stack:
    chunked: list[tuple[str, Iterable]] = []  # (what names it in messages, its chunks)
    for source in sources:
      if isinstance(source, str | os.PathLike):
        chunks = _chunks_of(os.fspath(source), fields, format, checkpoint, model, stack)
        chunked.append((f"{os.fspath(source)} ", chunks))
      elif isinstance(source, list | tuple):
        chunked.append(("", _chunks([text.encode("utf-8", "surrogateescape") for text in source])))
      else:
        chunked.append(("", _chunks(source)))
    for name, chunks in chunked:
      for chunk in chunks:
        items = []  # of the lines that are not blank
        for number, line in chunk:
          where = f"{name}line {number}"
          if isinstance(line, bytes) and not line.strip():
            items.append(Answer(where, {}, None))
          else:
            items.append(Answer(where, *_read(model, line, format, fields)))
        good = [item for _, _, item in items if not (item is None or isinstance(item, UserError))]
        results = iter(pipelines.by_halves(model.run, good))
        for where, id, item in items:
          yield Answer(where, id, item if item is None or isinstance(item, UserError) else next(results))


def _chunks_of(file, fields, format, checkpoint, model, stack):
  """Returns the chunks of a file, as `_chunks` does: of a table (line number, ({} or {"id": …}, its texts))."""
  suffix = pathlib.Path(file).suffix.lower()
  if format == "table" or (format == "auto" and suffix in TABLES):
    # A .tsv for a model of pairs may also have a pair a line, without a header.
    rows = _table(
      file, fields, format, checkpoint, model, may_be_lines=suffix == ".tsv" and model.takes_pairs and not fields
    )
    if rows is not None:
      return (rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK))
  if suffix == ".json" and format in ("auto", "json") and _is_list(file):
    return _chunks(_items(file))
  return _chunks(stack.enter_context(open(file, "rb")))


def _is_list(file):
  """Returns whether a file is one JSON list; a pipe is not looked into."""
  if not os.path.isfile(file):
    return False
  with open(file, "rb") as opened:
    return opened.read(_HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _items(file):
  """Returns the items of a file that is one JSON list, as lines."""
  rows = [strict_json.expect(row, f"{file} line {number}", (dict, str)) for number, row in tables.read_values(file)]
  return [(row if isinstance(row, str) else json.dumps(row)).encode() for row in rows]


def _table(file, fields, format, checkpoint, model, may_be_lines):
  """Returns the rows of a table by `fields`, or by the columns that the run was trained on."""
  columns, quotes = fields, "auto"
  with contextlib.suppress(UserError):  # A checkpoint of another program has no config.
    data = evaluation.recorded_config(checkpoint).data
    columns = columns or [field.strip() for field in data.get("text_fields", "").split(",") if field.strip()]
    quotes = data.get("quotes", quotes)
  columns = columns or (["text", "pair"] if model.takes_pairs else ["text"])
  try:
    rows = tables.read_file(file, columns, optional=[] if "id" in columns else ["id"], quotes=quotes)
  except UserError as error:
    if may_be_lines and "has no column" in str(error) and format == "auto":
      return None
    if "UTF-" in str(error):  # Other columns do not help.
      raise
    raise UserError(f"{error}; name the columns of the texts with --fields=A or A,B, or add --format=text") from None
  ids = rows.columns.get("id", [None] * len(rows))
  ids = [{} if id is None or (isinstance(id, float) and math.isnan(id)) else {"id": id} for id in ids]
  texts = [[cell if (text := cells.text_of(cell)) is None else text for cell in rows.columns[name]] for name in columns]
  values = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
  return list(zip(rows.lines, zip(ids, values, strict=True), strict=True))


def _chunks(lines):
  """Yields lists of (number from 1, line): a fixed number of lines of a file, the available lines of a pipe.

  So a program that writes a line to the pipe and waits for the answer receives it.
  """
  is_file = hasattr(lines, "fileno")
  numbered = enumerate(_lines(lines) if is_file else lines, 1)
  if not is_file or stat.S_ISREG(os.fstat(lines.fileno()).st_mode):
    while chunk := _next_chunk(numbered):
      yield chunk
    return
  waiting = queue.Queue(2 * CHUNK)

  def read():
    try:
      for entry in numbered:
        while len(entry[1]) > CHUNK_BYTES // CHUNK and not waiting.empty():
          time.sleep(0.01)  # So that few long lines are in memory at a time.
        waiting.put(entry)
      waiting.put(None)
    except (OSError, UserError) as error:
      waiting.put(error)

  threading.Thread(target=read, daemon=True).start()  # A daemon, as nothing can end its wait for a line.
  end: list[OSError | UserError | None] = []

  def arrived():
    """Yields the available lines, and waits for at least one."""
    is_first = True
    while is_first or not waiting.empty():
      each = waiting.get()
      if not isinstance(each, tuple):
        end.append(each)
        return
      yield each
      is_first = False

  while not end:
    if chunk := _next_chunk(arrived()):
      yield chunk
  if isinstance(end[0], UserError):
    raise end[0]
  if end[0]:
    raise UserError(f"standard input cannot be read: {end[0].strerror}; give texts by --input=FILE, or through a pipe")


def _next_chunk(lines):
  """Returns the next lines, up to CHUNK of them or CHUNK_BYTES."""
  chunk, size = [], 0
  for number, line in lines:
    chunk.append((number, line))
    size += len(line)
    if len(chunk) >= CHUNK or size > CHUNK_BYTES:
      break
  return chunk


def _lines(file):
  """Yields the lines of a binary file. A line over the limit is cut, and `_read` refuses it."""
  line, name = file.readline(MAX_LINE_BYTES + 1), getattr(file, "name", 0)
  encodings.refuse_marked("standard input" if isinstance(name, int) else name, line)
  if b"\r" in line and b"\n" not in line:  # CR alone ends the lines.
    yield from (line + file.read()).removesuffix(b"\r").split(b"\r")
    return
  while line:
    yield line
    if len(line) > MAX_LINE_BYTES:
      while not line.endswith(b"\n") and (line := file.readline(CHUNK_BYTES)):
        pass
    line = file.readline(MAX_LINE_BYTES + 1)


def _read(model, line, format, fields):
  """Parses a line, or the row of a table; returns ({} or {"id": …} for the answer, the task's item or a UserError)."""
  if isinstance(line, tuple):
    id, value = line
    try:
      return id, model.item(value)
    except UserError as error:
      return id, error
  id = {}
  if len(line) > MAX_LINE_BYTES:
    return id, UserError(f"it is over the limit of {MAX_LINE_BYTES:,} bytes; split the text")
  try:
    value = line.decode("utf-8-sig").rstrip("\r\n")
    if format == "json" or (format == "auto" and value.lstrip().startswith("{")):
      try:
        value = strict_json.loads(value, "the line")
      except UserError as error:
        return id, UserError(f"{error}; --format=text takes it as text")
      if isinstance(value, dict):
        id = {"id": value["id"]} if "id" in value else {}
        if fields:
          lacking = [field for field in fields if field not in value]
          if lacking:
            raise UserError(f"no field {lacking[0]!r}; there are {', '.join(value)}")
          value = tuple(value[field] for field in fields) if len(fields) > 1 else value[fields[0]]
    elif format == "pairs" or (format == "auto" and model.takes_pairs):
      value = tuple(value.split("\t"))
      value = value if len(value) > 1 else value[0]
    return id, model.item(value)
  except UnicodeDecodeError as error:
    return id, UserError(f"it is not UTF-8 ({error.reason}){encodings.advice(line)}")
  except UserError as error:
    return id, error
