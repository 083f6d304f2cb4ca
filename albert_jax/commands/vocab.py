"""`albert-jax vocab`: trains a SentencePiece vocabulary on a corpus."""

import argparse
import json
import shlex

from albert_jax.commands import common, corpus
from albert_jax.data.corpus import vocab


def main(argv: list[str]) -> int:
  """Returns the command; see `albert-jax vocab --help`."""
  parser = common.parser(
    "vocab",
    "Trains a SentencePiece unigram vocabulary by the ALBERT rules and writes DIR/spiece.model.",
    "albert-jax vocab --input='corpus/*.txt' --out=vocab --vocab_size=30000",
  )
  corpus.add_arguments(parser)
  parser.add_argument("--out", required=True, metavar="DIR", help="the folder for spiece.model")
  parser.add_argument("--vocab_size", type=int, default=30000, help="pieces, special ones included (default: 30000)")
  parser.add_argument("--lower", action=argparse.BooleanOptionalAction, default=True, help="lower-case (default)")
  parser.add_argument(
    "--keep_accents", action=argparse.BooleanOptionalAction, default=None, help=corpus.KEEP_ACCENTS_HELP
  )
  parser.add_argument(
    "--character_coverage",
    type=float,
    default=0.99995,
    help="share of the characters that get a piece (default: 0.99995)",
  )
  parser.add_argument(
    "--input_sentence_size", type=int, default=10_000_000, help="sample this many sentences (default: 10 million)"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace the vocabulary if it is there")
  args = parser.parse_args(argv)

  report = vocab.train_vocabulary(
    args.input,
    args.out,
    vocab_size=args.vocab_size,
    lower=args.lower,
    keep_accents=args.keep_accents,
    character_coverage=args.character_coverage,
    input_sentence_size=args.input_sentence_size,
    reading=corpus.reading(args),
    overwrite=args.overwrite,
  )
  print(json.dumps(report, indent=2, ensure_ascii=False))
  spm = f"{args.out.rstrip('/')}/spiece.model"
  print(f"made {spm}; next: albert-jax prepare {corpus.flags(args)} --spm={shlex.quote(spm)} --out=DIR")
  return 0
