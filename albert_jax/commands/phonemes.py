"""`albert-jax phonemes`: a corpus to a dataset of words with phonemes, for PL-BERT."""

import dataclasses
import os
import shlex

from albert_jax import files
from albert_jax.commands import common, corpus
from albert_jax.data.speech.prepare import make_dataset
from albert_jax.data.speech.units import Settings
from albert_jax.errors import UserError


def main(argv: list[str]) -> int:
  """Runs the command, see `albert-jax phonemes --help`."""
  parser = common.parser(
    "phonemes",
    "Converts a corpus to a dataset of words with phonemes, on which configs/plbert.py trains a PL-BERT. espeak-ng "
    "makes the phonemes (pip install 'albert-jax[speech]'), unless the corpus has them.",
    "albert-jax phonemes --input='corpus/*.txt' --language=en-us --out=data/phonemes",
  )
  corpus.add_arguments(parser)
  parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
  parser.add_argument("--language", default="", help="espeak's code of the language, as en-us, de or hi")
  parser.add_argument(
    "--phonemised", action="store_true",
    help='the input is JSON lines with phonemes: {"document": 1, "words": ["hello"], "phonemes": ["həlˈoʊ"]}',
  )  # fmt: skip
  parser.add_argument(
    "--symbols", default="styletts2",
    help="the symbol table: styletts2 (default), kokoro, or a file with a symbol a line or Kokoro's JSON",
  )  # fmt: skip
  parser.add_argument(
    "--add_symbols", type=int, default=0, metavar="N",
    help="add the characters outside the table that occur at least N times to its end (default: 0, add none)",
  )  # fmt: skip
  targets = parser.add_mutually_exclusive_group()
  targets.add_argument(
    "--words", type=int, default=30_000, help="how many of the most frequent words the word loss knows (default: 30000)"
  )
  targets.add_argument(
    "--words_from", default="", metavar="PATH",
    help="the words that the word loss knows are those of another dataset or PL-BERT (words.txt), or the pieces of a "
    "tokenizer that are whole words",
  )  # fmt: skip
  parser.add_argument(
    "--numbers", choices=("words", "keep"), default="words",
    help="write numbers out with num2words (default), or keep the digits for the phonemiser",
  )  # fmt: skip
  parser.add_argument(
    "--segment_symbols", type=int, default=1024,
    help="the most symbols of a record, of which training takes a random window (default: 1024)",
  )  # fmt: skip
  parser.add_argument(
    "--validation_fraction", type=float, default=0.05, help="the share of documents to hold out (default: 0.05)"
  )
  parser.add_argument(
    "--cache", default=str(files.cache() / "phonemes"), metavar="DIR",
    help="where phonemised words are kept between runs (default: %(default)s)",
  )  # fmt: skip
  parser.add_argument(
    "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)"
  )
  parser.add_argument("--runner", choices=("local", "beam"), default="local", help="this machine, or Apache Beam")
  parser.add_argument("--beam_options", default="", help="Beam's flags in quotes, such as '--runner=DataflowRunner …'")
  parser.add_argument("--no_cache", action="store_true", help="keep no phonemised words between runs")
  parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is there")
  for flag in ("--numbers", "--layout", "--text_field", "--cache", "--no_cache"):
    parser.needs(flag, "--language")
  args = parser.parse_args(argv)
  if bool(args.language) == args.phonemised:
    raise UserError("give either --language=CODE, such as en-us, or --phonemised for a corpus that has phonemes")
  if args.add_symbols < 0:
    raise UserError(f"--add_symbols={args.add_symbols}: expected 0 or more")
  settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
  description = make_dataset(
    args.input, args.out, settings, corpus.reading(args), symbols=args.symbols, add_symbols=args.add_symbols,
    run=corpus.runner(args),
    cache=None if args.no_cache else args.cache, overwrite=args.overwrite,
  )  # fmt: skip
  print(describe(description))
  print(f"made {args.out}; look at it with: albert-jax audit {shlex.quote(args.out)}")
  return 0


def describe(description: dict) -> str:
  """Returns the counts of a dataset as text, with examples."""
  words, vocabulary = description["words"], description["vocabulary"]
  lines = []
  for split, counts in description["splits"].items():
    lines.append(
      f"{split:<20}{counts['documents']:,} documents, {counts['words']:,} words, {counts['symbols']:,} symbols in "
      f"{counts['segments']:,} segments"
    )
  lines += [f"{name.replace('_', ' '):<19} {count:,}" for name, count in description["input"].items()]
  lines.append(f"{'distinct words':<20}{words['distinct']:,}; {vocabulary['size']} symbols")
  lines.append(
    f"{'word targets':<20}{vocabulary['words']:,}; {words['coverage']:.2%} of the words have one; entropy "
    f"{words['target_entropy']:.2f} of at most {words['target_entropy_at_most']:.2f} nats"
  )
  for name in ("without_phonemes", "too_long", "language_switches", "numbers_as_digits"):
    group = words[name]
    shown = ", ".join(f"{word} {value}" for word, value in group["examples"].items())
    lines.append(
      f"{name.replace('_', ' '):<20}{group['distinct']:,} distinct, {group['occurrences']:,} in all "
      f"({group['share']:.3%})" + (f": {shown}" if shown else "")
    )
  outside = words["outside_the_table"]
  shown = ", ".join(f"{c!r} {x['occurrences']:,} (as in {x['in']})" for c, x in outside["examples"].items())
  lines.append(
    f"{'outside the table':<20}{outside['occurrences']:,} characters ({outside['share']:.3%})"
    + (f": {shown}; --add_symbols=N adds them" if shown else "")
  )
  return "\n".join(lines)
