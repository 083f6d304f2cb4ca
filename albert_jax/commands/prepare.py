"""`albert-jax prepare`: converts a corpus to a dataset of token segments."""

import argparse
import dataclasses
import json
import os
import shlex

from albert_jax.commands import common, corpus
from albert_jax.data.corpus import prepare
from albert_jax.data.corpus.segments import Settings


def main(argv: list[str]) -> int:
  parser = common.parser(
    "prepare",
    "Converts a corpus to a TFDS dataset of token segments; training makes examples of them.",
    "albert-jax prepare --input='corpus/*.txt' --spm=vocab/spiece.model --out=data/corpus",
  )
  corpus.add_arguments(parser)
  parser.add_argument(
    "--spm", required=True, metavar="FILE", help="the vocabulary: spiece.model, or vocab.txt (WordPiece)"
  )
  parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
  parser.add_argument("--segment_tokens", type=int, default=512, help="the longest length to train at (default: 512)")
  parser.add_argument(
    "--sentences", choices=("split", "line"), default="split", help="split lines into sentences, or take each as one"
  )
  parser.add_argument(
    "--lower", action=argparse.BooleanOptionalAction, help="lower-case (default: as the vocabulary was trained)"
  )
  parser.add_argument("--keep_accents", action=argparse.BooleanOptionalAction, help=corpus.KEEP_ACCENTS_HELP)
  parser.add_argument(
    "--validation_fraction", type=float, default=0.05, help="the share of documents to hold out (default: 0.05)"
  )
  parser.add_argument(
    "--near_duplicates", type=float, default=0.0, help="drop documents this similar to an earlier one (default: 0, off)"
  )
  parser.add_argument(
    "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)"
  )
  parser.add_argument("--runner", choices=("local", "beam"), default="local", help="this machine, or Apache Beam")
  parser.add_argument(
    "--beam_options", default="", help="Beam's flags in quotes, such as '--runner=DataflowRunner --project=NAME …'"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
  parser.add_argument("--mlm_only", action="store_true", help="accept a corpus in which no document has two sentences")
  args = parser.parse_args(argv)
  settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
  description = prepare.prepare(
    args.input,
    args.spm,
    args.out,
    settings,
    corpus.reading(args),
    run=corpus.runner(args),
    overwrite=args.overwrite,
    mlm_only=args.mlm_only,
  )
  print(json.dumps({key: description[key] for key in ("input", "splits", "baselines")}, indent=2))
  for note in prepare.notes(description):
    print(f"note: {note}")
  print(f"made {args.out}; look at it with: albert-jax audit {shlex.quote(args.out)} --config=pretrain:tiny")
  return 0
