"""`albert-jax predict`: runs a trained model on texts, lines in, JSON lines out."""

import contextlib
import json
import os
import pathlib
import sys

import tqdm

from albert_jax import files, pipelines, predictions
from albert_jax.commands import common
from albert_jax.errors import UserError


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
  parser.add_argument(
    "--format", choices=predictions.FORMATS, default="auto", help="of the lines (default: as each one looks)"
  )
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
    # On a terminal the bar would mix with the answers.
    with _output(args.output) as write, tqdm.tqdm(unit=" lines", mininterval=1, disable=_quiet(args.output)) as bar:
      sources = args.input or [args.texts or _stdin()]
      for where, id, result in predictions.answers(
        model, sources, format=args.format, fields=fields, checkpoint=args.checkpoint
      ):
        if result is None:
          blank += 1
        elif isinstance(result, UserError):
          if not args.skip_bad:
            raise UserError(f"{where}: {result}; --skip_bad leaves such lines out")
          print(f"{where} skipped: {result}", file=sys.stderr)
          skipped += 1
        else:
          # A date, as an id of a Parquet file, is written as text.
          write(json.dumps({**id, **result}, ensure_ascii=False, default=str) + "\n")
        bar.update()
  except BrokenPipeError:  # The reader, such as `head`, has closed the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return
  for count, what in ((skipped, "lines could not be read and were skipped"), (blank, "blank lines were passed over")):
    if count:
      print(f"{count:,} {what}", file=sys.stderr)


def _stdin():
  """Returns standard input with a separate buffer: Python aborts if a thread waits on that of sys.stdin at exit."""
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
