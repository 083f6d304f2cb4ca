"""`albert-jax predict`: runs a trained model on texts, lines in, JSON lines out."""

import contextlib
import json
import os
import pathlib
import queue
import stat
import sys
import threading
import time
from typing import Any

import tqdm

from albert_jax import evaluation, files, pipelines, strict_json
from albert_jax.commands import common
from albert_jax.data import encodings
from albert_jax.data.finetuning import tables
from albert_jax.errors import UserError

CHUNK = 1024  # lines that are sorted by length together
CHUNK_BYTES = 1 << 26  # the size at which a chunk is complete
MAX_LINE_BYTES = strict_json.MAX_VALUE_BYTES
FORMATS = ("auto", "text", "pairs", "json", "table")
TABLES = (".csv", ".tsv", ".parquet")


def main(argv: list[str]) -> None:
  parser = common.parser(
    "predict",
    "Reads texts, a line each, and writes a JSON line for each. A line that begins with { is a JSON object with the "
    'fields of the task: "text"; "text" and "pair"; "question" and "context"; …; its "id" is copied to the answer. If '
    "the model is for pairs of texts, a line may also be both with a tab between. A file that ends in .csv, .tsv or "
    ".parquet is a table: its columns are those that the run was trained on, or --fields.",
    'albert-jax predict --checkpoint=RUN --task=fill-mask "The [MASK] statement ends a loop."',
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a Hugging Face directory, or a run's workdir")
  parser.add_argument("--task", help=f"one of {', '.join(pipelines.TASKS)} (default: what the checkpoint is for)")
  parser.add_argument(
    "--input", metavar="FILE", action="append", default=[], help="read there, not standard input; may be repeated"
  )
  parser.add_argument("--output", metavar="FILE", help="write there, once all is done, not to standard output")
  parser.add_argument("--format", choices=FORMATS, default="auto", help="of the lines (default: as each one looks)")
  parser.add_argument("--fields", metavar="A,B", help="the fields of JSON objects, or columns, with the texts")
  parser.add_argument("--skip_bad", action="store_true", help="report lines that cannot be read, and go on")
  parser.add_argument("--batch_size", type=int, help="the most texts run together (default: by the machine)")
  parser.add_argument("--top_k", type=int, help="how many answers, where there are several")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="", help="what to compute in")
  parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts, instead of a file")
  args = parser.parse_args(argv)
  for name in ("batch_size", "top_k"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      raise UserError(f"--{name}={getattr(args, name)} must be 1 or more")
  if args.fields and args.format in ("text", "pairs"):
    raise UserError(
      f"--fields names fields of JSON objects or columns of a table, and --format={args.format} reads none; leave one "
      "out"
    )
  if args.format == "table" and not args.input:
    raise UserError("--format=table needs a file; give one with --input=FILE")
  if args.texts and args.input:
    raise UserError("give texts, or files with --input, not both")
  missing = [file for file in args.input if not os.path.exists(file) or os.path.isdir(file)]
  if missing:
    raise UserError(f"no file {missing[0]!r}; give a text file with a text a line")

  options = {name: getattr(args, name) for name in ("batch_size", "top_k") if getattr(args, name) is not None}
  model = pipelines.pipeline(args.task, args.checkpoint, dtype=args.dtype, **options)
  fields = [field.strip() for field in args.fields.split(",")] if args.fields else None
  skipped = blank = 0
  try:
    with contextlib.ExitStack() as stack:
      write = stack.enter_context(_output(args.output))
      sources: list[tuple[str, Any]] = []  # (what names it in messages, its chunks)
      for file in args.input:
        sources.append((f"{file} ", _chunks_of(file, fields, args, model, stack)))
      texts = [text.encode("utf-8", "surrogateescape") for text in args.texts]
      sources = sources or [("", _chunks(texts or _stdin()))]
      # On a terminal the bar would mix with the answers.
      bar = stack.enter_context(tqdm.tqdm(unit=" lines", mininterval=1, disable=_quiet(args.output)))
      for name, chunks in sources:
        for chunk in chunks:
          items = []
          for number, line in chunk:
            if isinstance(line, bytes) and not line.strip():
              blank += 1
              continue
            items.append((f"{name}line {number}", _read(model, line, args.format, fields)))
          for where, id, result in _answers(model, items):
            if isinstance(result, UserError):
              if not args.skip_bad:
                raise UserError(f"{where}: {result}; --skip_bad leaves such lines out")
              print(f"{where} skipped: {result}", file=sys.stderr)
              skipped += 1
            else:
              write(json.dumps({**id, **result}, ensure_ascii=False) + "\n")
          bar.update(len(chunk))
  except BrokenPipeError:  # The reader, such as `head`, has closed the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return
  for count, what in ((skipped, "lines could not be read and were skipped"), (blank, "blank lines were passed over")):
    if count:
      print(f"{count:,} {what}", file=sys.stderr)


def _chunks_of(file, fields, args, model, stack):
  """Returns the chunks of a file, as `_chunks` does: of a table (line number, ({} or {"id": …}, its texts))."""
  suffix = pathlib.Path(file).suffix.lower()
  if args.format == "table" or (args.format == "auto" and suffix in TABLES):
    # A .tsv for a model of pairs may also have a pair a line, without a header.
    rows = _table(file, fields, args, model, may_be_lines=suffix == ".tsv" and model.takes_pairs and not fields)
    if rows is not None:
      return (rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK))
  return _chunks(stack.enter_context(open(file, "rb")))


def _table(file, fields, args, model, may_be_lines):
  """Returns the rows of a table by `fields`, or by the columns that the run was trained on."""
  columns, quotes = fields, "auto"
  with contextlib.suppress(UserError):  # A checkpoint of another program has no config.
    data = evaluation.recorded_config(args.checkpoint).data
    columns = columns or [field.strip() for field in data.get("text_fields", "").split(",") if field.strip()]
    quotes = data.get("quotes", quotes)
  columns = columns or (["text", "pair"] if model.takes_pairs else ["text"])
  try:
    rows = tables.read_file(file, columns, optional=[] if "id" in columns else ["id"], quotes=quotes)
  except UserError as error:
    if may_be_lines and "has no column" in str(error) and args.format == "auto":
      return None
    if "UTF-" in str(error):  # Other columns do not help.
      raise
    message = str(error).split(" (choose with")[0]
    raise UserError(f"{message}; name the columns of the texts with --fields=A or A,B, or add --format=text") from None
  ids = [{} if id is None else {"id": id} for id in rows.columns.get("id", [None] * len(rows))]
  texts = [["" if cell is None else cell for cell in rows.columns[name]] for name in columns]
  values = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
  return list(zip(rows.lines, zip(ids, values, strict=True), strict=True))


def _stdin():
  """Returns standard input with a separate buffer: Python aborts if `_chunks` waits on that of sys.stdin at exit."""
  if sys.stdin.isatty():
    print("reading texts from the terminal, a line each; Ctrl-D ends", file=sys.stderr)
  return open(sys.stdin.fileno(), "rb", closefd=False)


def _quiet(output):
  return not sys.stderr.isatty() or (not output and sys.stdout.isatty())


@contextlib.contextmanager
def _output(path):
  """Yields a function that writes a line to standard output, or to a file that is written atomically."""
  if not path:
    yield lambda line: print(line, end="", flush=True)
    return
  path = pathlib.Path(path)
  if not path.absolute().parent.is_dir():
    raise UserError(f"--output={path}: there is no folder {str(path.parent)!r}")
  with files.writing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
    yield file.write


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
    except OSError as error:
      waiting.put(error)

  threading.Thread(target=read, daemon=True).start()  # A daemon, as nothing can end its wait for a line.
  end: list[OSError | None] = []

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
  while line := file.readline(MAX_LINE_BYTES + 1):
    yield line
    if len(line) > MAX_LINE_BYTES:
      while not line.endswith(b"\n") and (line := file.readline(CHUNK_BYTES)):
        pass


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


def _answers(model, items):
  """Yields (where, id, result or UserError) of each (where, (id, item or UserError)), in order."""
  good = [item for _, (_, item) in items if not isinstance(item, UserError)]
  results = iter(pipelines.by_halves(model.run, good))
  for where, (id, item) in items:
    yield where, id, item if isinstance(item, UserError) else next(results)
