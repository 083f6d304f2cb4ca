"""`albert-jax vocab`: trains a SentencePiece vocabulary on a corpus."""

import argparse
import collections
import json
import os

from albert_jax import files
from albert_jax.commands import common, corpus
from albert_jax.data.corpus import readers, vocab
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


def main(argv):
  parser = common.parser(
    "vocab",
    "Trains a SentencePiece unigram vocabulary by the ALBERT rules and writes DIR/spiece.model.",
    "albert-jax vocab --input='corpus/*.txt' --out=vocab --vocab_size=30000",
  )
  corpus.add_arguments(parser)
  parser.add_argument("--out", required=True, help="the folder for spiece.model")
  parser.add_argument("--vocab_size", type=int, default=30000, help="pieces, special ones included (default: 30000)")
  parser.add_argument("--lower", action=argparse.BooleanOptionalAction, default=True, help="lower-case (default)")
  parser.add_argument("--keep_accents", action=argparse.BooleanOptionalAction, default=False, help="keep accents")
  parser.add_argument("--character_coverage", type=float, default=0.99995, help="(default: 0.99995)")
  parser.add_argument(
    "--input_sentence_size", type=int, default=10_000_000, help="sample this many sentences (default: 10 million)"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace the vocabulary if it is there")
  args = parser.parse_args(argv)

  path = f"{os.path.expanduser(args.out).rstrip('/')}/spiece.model"
  if files.exists(path) and not args.overwrite:
    raise UserError(f"{path} is already there; choose another --out, or add --overwrite to replace it")
  reading = corpus.reading(args)
  sample, tally = [], collections.Counter()
  sentences = vocab.sentences_of(
    readers.plan(args.input, reading),
    reading,
    lower=args.lower,
    keep_accents=args.keep_accents,
    sample=sample,
    tally=tally,
  )
  model = vocab.train_vocabulary(
    sentences,
    vocab_size=args.vocab_size,
    character_coverage=args.character_coverage,
    input_sentence_size=args.input_sentence_size,
  )
  files.write(path, model)
  tokenizer = Tokenizer(path, lower=args.lower, keep_accents=args.keep_accents)
  result = {"input": dict(sorted(tally.items())), "vocab_size": tokenizer.vocab_size, **vocab.report(tokenizer, sample)}
  print(json.dumps(result, indent=2, ensure_ascii=False))
  print(f"made {path}")
  return 0
