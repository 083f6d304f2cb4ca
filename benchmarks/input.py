"""How fast the input is, per core: corpus to dataset, and dataset to batches.

  python benchmarks/input.py --input='corpus/*.txt' --spm=vocab/spiece.model --json=input.json

Without `--input` it measures on the documentation of Python with a vocabulary of its own. Speeds are per second of
processor time, so they hold for one core whatever else the machine does; the wall clock is measured beside them.
"""

import argparse
import collections
import importlib
import json
import pathlib
import sys
import tempfile
import time

import sentencepiece

from albert_jax.data import pipeline, prepare, readers, vocab
from albert_jax.data.pretrain import DataConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


class Clock:
  """Processor and wall seconds since it was made."""

  def __init__(self):
    self.start = time.process_time(), time.perf_counter()

  def seconds(self):
    return time.process_time() - self.start[0], time.perf_counter() - self.start[1]


def corpus_bytes(spec, reading):
  """The bytes of text in a corpus, read once to warm the cache up."""
  tally = collections.Counter()
  for unit in readers.plan(spec, reading):
    collections.deque(readers.documents(unit, reading, tally), maxlen=0)
  return tally["bytes"]


def measure_prepare(spec, spm, reading, folder):
  """Prepares the corpus in one process: {name: MB/s of raw text}; the dataset is `folder/dataset`."""
  size = corpus_bytes(spec, reading)
  importlib.import_module("tensorflow_datasets.core.folder_dataset")  # its second is not the corpus'
  clock = Clock()
  prepare.prepare(spec, spm, folder / "dataset", prepare.Settings(), reading)
  cpu, wall = clock.seconds()
  return {
    "prepare_mb_per_second_per_core": size / cpu / 1e6,
    "prepare_mb_per_second_wall": size / wall / 1e6,
    "corpus_mb": size / 1e6,
  }


def measure_sentencepiece(spec, spm, reading):
  """SentencePiece alone on the corpus' paragraphs, the floor under `prepare`: {name: MB/s}."""
  tokenizer = Tokenizer(spm)
  processor = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)
  unit = readers.plan(spec, reading)[0]
  lines = [line for lines in readers.documents(unit, reading, collections.Counter()) for line in lines]
  texts = [tokenizer.normalize(line) for line in lines]
  clock = Clock()
  processor.encode(texts, out_type=int, num_threads=1)
  return {"sentencepiece_mb_per_second": sum(len(line.encode()) for line in lines) / clock.seconds()[0] / 1e6}


def measure_batches(dataset, *, batch_size, seconds, **config):
  """Makes batches one after the other in this thread: {name: examples/s}."""
  cfg = DataConfig(str(dataset), **config)
  maker = pipeline.batch_maker(cfg, batch_size=batch_size, seed=0)
  maker(0)
  clock, steps = Clock(), 0
  while clock.seconds()[0] < seconds:
    steps += 1
    maker(steps)
  cpu, wall = clock.seconds()
  return {
    "examples_per_second_per_core": steps * batch_size / cpu,
    "examples_per_second_wall": steps * batch_size / wall,
    "seq_length": cfg.seq_length,
    "max_predictions": cfg.slots,
    "batch_size": batch_size,
  }


def main(argv):
  """The command; see the top of the file."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  readers.add_arguments(parser, default="python_docs")
  parser.add_argument("--spm", default="", help="the vocabulary (default: one of 8,000 pieces made from the corpus)")
  parser.add_argument("--dataset", default="", help="measure batches only, from this folder made by prepare")
  parser.add_argument("--seq_length", type=int, default=512)
  parser.add_argument("--batch_size", type=int, default=256)
  parser.add_argument("--seconds", type=float, default=5.0, help="how long batches are made")
  parser.add_argument("--json", default="", help="write the numbers to this file")
  args = parser.parse_args(argv)
  reading = readers.from_arguments(args)
  numbers = {}
  with tempfile.TemporaryDirectory() as folder:
    folder, dataset = pathlib.Path(folder), args.dataset
    if not dataset:
      spm = args.spm
      if not spm:
        vocab.main([f"--input={args.input}", f"--out={folder}", "--vocab_size=8000"])
        spm = str(folder / "spiece.model")
      numbers |= measure_prepare(args.input, spm, reading, folder)
      numbers |= measure_sentencepiece(args.input, spm, reading)
      dataset = folder / "dataset"
    numbers |= measure_batches(dataset, batch_size=args.batch_size, seconds=args.seconds, seq_length=args.seq_length)
  print(json.dumps(numbers, indent=2))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    sys.exit(f"error: {error}")
