"""The flags of all commands that read a corpus."""

import argparse
import dataclasses
import shlex
from collections.abc import Callable
from typing import Any

from albert_jax.data.corpus import runners
from albert_jax.data.corpus.work_units import LAYOUTS, Reading
from albert_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser, default: Any = None) -> None:
  """Adds the options that every command with `--input` shares; without a default the input is required."""
  parser.add_argument(
    "--input",
    required=default is None,
    default=default,
    help="files (.txt, .jsonl, .parquet, each also .gz, .xz or .zst), a folder, a quoted glob, or a TFDS name; several "
    "with commas between",
  )
  for field in dataclasses.fields(Reading):
    choices = ("auto", *LAYOUTS) if field.name == "layout" else None
    parser.add_argument(f"--{field.name}", default=field.default, choices=choices, help=_READING_HELP[field.name])


KEEP_ACCENTS_HELP = (
  "keep accents, vowel signs and other combining marks. Without the flag, the rules beside the vocabulary decide; "
  "for a new one they are kept outside Latin script, and Latin text that would lose many is refused until you choose"
)

_READING_HELP = {
  "layout": "what separates documents in plain text: a blank line; a file each, with paragraphs wrapped over lines "
  "(book); WikiExtractor's <doc> tags; or what each file looks like (auto, the default)",
  "text_field": "the field with the text in JSON lines, Parquet and TFDS (default: text)",
  "tfds_split": "the split of a TFDS dataset (default: train)",
  "tfds_dir": "where the TFDS datasets are (default: TFDS' own)",
  "encoding": "of the text and JSON files that are not UTF-8, such as cp1252, or several with commas between; "
  "utf-8 replaces invalid characters (default: such files are refused)",
}


def reading(args: argparse.Namespace) -> Reading:
  """Returns the Reading of what `add_arguments` parsed."""
  return Reading(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Reading)})


def runner(args: argparse.Namespace) -> Callable:
  """Returns who does the work, by --runner, --workers and --beam_options."""
  if args.workers < 1:
    raise UserError(f"--workers={args.workers}: expected 1 or more")
  if args.runner == "beam":
    return runners.beam(args.beam_options)
  if args.beam_options:
    raise UserError(f"--beam_options={args.beam_options} has no effect without --runner=beam; add it")
  return runners.local(args.workers)


def flags(args: argparse.Namespace) -> str:
  """Returns the flags of `add_arguments` as they were given, for a command that reads the same corpus."""
  values = {"input": args.input} | {
    field.name: getattr(args, field.name)
    for field in dataclasses.fields(Reading)
    if getattr(args, field.name) != field.default
  }
  return " ".join(f"--{name}={shlex.quote(value)}" for name, value in values.items())
