"""How fast the input is, per core: corpus to dataset, dataset to batches; and what training loses by waiting for it.

  python benchmarks/input.py --input='corpus/*.txt' --spm=vocab/spiece.model --json=input.json

Without `--input` it measures on the documentation of Python with a vocabulary of its own. Speeds are per second of
processor time, so they hold for one core whatever else the machine does; the wall clock is measured beside them.

Steps fed by the pipeline and steps that get the same batch again and again, which waits on the device, take turns, so
that a machine that slows down slows both; `input_loss` is how much longer the former take than those around them.
"""

import argparse
import collections
import dataclasses
import functools
import importlib
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
import time

import sentencepiece

from albert_jax.commands import corpus
from albert_jax.commands import vocab as vocab_command
from albert_jax.data import datasets
from albert_jax.data.corpus import prepare, readers, segments
from albert_jax.data.pretraining import batching
from albert_jax.data.pretraining.examples import DataConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


class Clock:
  """Processor and wall seconds since it was made."""

  def __init__(self):
    self.start = time.process_time(), time.perf_counter()

  def seconds(self):
    return time.process_time() - self.start[0], time.perf_counter() - self.start[1]


def corpus_bytes(spec, reading):
  """Returns the bytes of text in a corpus, read once to warm the cache up."""
  tally = collections.Counter()
  for unit in readers.plan(spec, reading):
    collections.deque(readers.documents(unit, reading, tally), maxlen=0)
  return tally["bytes"]


def measure_prepare(spec, spm, reading, folder):
  """Prepares the corpus in one process: {name: MB/s of raw text}; the dataset is `folder/dataset`."""
  size = corpus_bytes(spec, reading)
  importlib.import_module("tensorflow_datasets.core.folder_dataset")  # its second is not the corpus'
  clock = Clock()
  prepare.prepare(spec, spm, folder / "dataset", segments.Settings(), reading)
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
  maker = batching.batch_maker(cfg, batch_size=batch_size, seed=0)
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


def training(dataset, size, batch_size, seq_length):
  """Returns a model of a size and its training.

  Returns:
    function that takes an iterator and trains a step with each batch.
  """
  import jax  # here, because all else in this file is measured without it

  from albert_jax import VARIANTS, model
  from albert_jax.tasks import pretrain
  from albert_jax.training import optimizer, sharding, state
  from albert_jax.training.step import make_train_step

  vocab_size = datasets.describe(dataset)["vocabulary"]["size"]
  cfg = dataclasses.replace(VARIANTS[size], vocab_size=vocab_size, max_position_embeddings=max(512, seq_length))
  init, key = functools.partial(model.init, cfg), jax.random.key(0)
  mesh = sharding.make_mesh(sharding.MeshConfig(), batch_size, jax.devices()[:1])
  tx = optimizer.make(optimizer.OptimizerConfig(), model.layer_axes(cfg, jax.eval_shape(init, key)))
  shardings = sharding.shardings(mesh, state.abstract(init, tx, key))
  sums, terms = functools.partial(pretrain.sums, cfg), functools.partial(pretrain.terms, 1.0, 1.0)
  step = make_train_step(sums, terms, tx, key, mesh, shardings)
  with jax.set_mesh(mesh):
    train_state, rate = state.create(init, tx, key, shardings), sharding.everywhere(mesh, 1e-4)

  def run(batches):
    nonlocal train_state
    before = None
    with jax.set_mesh(mesh):
      for batch in batches:
        # A batch that waits on the device is passed on as it is.
        ready = batch if isinstance(batch["input_ids"], jax.Array) else sharding.global_batch(mesh, batch)
        train_state, (sums_of, _) = step(train_state, ready, rate)
        if before is not None:
          float(before)  # one step behind, as the loop does
        before = sums_of["loss"][0]
      float(before)

  return run, functools.partial(sharding.global_batch, mesh)


def measure_steps(dataset, *, size, batch_size, seq_length, workers, steps, rounds):
  """Trains with the pipeline and with one batch held ready, in turns: {name: milliseconds a step, or a share}."""
  train, place = training(dataset, size, batch_size, seq_length)
  cfg = DataConfig(str(dataset), seq_length=seq_length, workers=workers)
  batches = batching.train_batches(cfg, batch_size=batch_size, seed=0)
  waited = 0.0

  def real():
    nonlocal waited
    for _ in range(steps):
      start = time.perf_counter()
      batch = next(batches)
      waited += time.perf_counter() - start
      yield batch

  held = place(next(batches))
  turns = {"synthetic": lambda: itertools.repeat(held, steps), "real": real}

  def turn(kind):
    start = time.perf_counter()
    train(turns[kind]())
    return (time.perf_counter() - start) / steps

  turn("synthetic"), turn("real")
  waited, synthetic, fed = 0.0, [turn("synthetic")], []
  for _ in range(rounds):
    fed.append(turn("real"))
    synthetic.append(turn("synthetic"))
  losses = [2 * a / (before + after) - 1 for a, (before, after) in zip(fed, itertools.pairwise(synthetic), strict=True)]
  return {
    "step_size": size,
    "step_batch_size": batch_size,
    "step_seq_length": seq_length,
    "step_workers": workers,
    "timed_steps": rounds * steps,
    "step_ms_synthetic": 1e3 * statistics.median(synthetic),
    "step_ms_real": 1e3 * statistics.median(fed),
    "input_wait_ms": 1e3 * waited / (rounds * steps),
    "input_loss": statistics.median(losses),
    "input_loss_quartiles": [float(q) for q in statistics.quantiles(losses, n=4)[::2]] if rounds > 1 else losses,
  }


def main(argv):
  """Returns the command; see the top of the file."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  corpus.add_arguments(parser, default="python_docs")
  parser.add_argument("--spm", default="", help="the vocabulary (default: one of 8,000 pieces made from the corpus)")
  parser.add_argument("--dataset", default="", help="measure batches only, from this folder made by prepare")
  parser.add_argument("--seq_length", type=int, default=512)
  parser.add_argument("--batch_size", type=int, default=256)
  parser.add_argument("--seconds", type=float, default=5.0, help="how long batches are made")
  parser.add_argument("--size", default="tiny", help="the model of the training steps (default: tiny)")
  parser.add_argument("--step_batch_size", type=int, default=32, help="rows of a training step")
  parser.add_argument("--step_seq_length", type=int, default=128, help="and their length")
  parser.add_argument("--workers", type=int, default=1, help="processes that make the batches of training steps")
  parser.add_argument("--steps", type=int, default=10, help="training steps in a turn; 0 leaves them out")
  parser.add_argument("--rounds", type=int, default=10, help="turns of each kind")
  parser.add_argument("--json", default="", help="write the numbers to this file")
  args = parser.parse_args(argv)
  reading = corpus.reading(args)
  numbers = {}
  with tempfile.TemporaryDirectory() as folder:
    folder, dataset = pathlib.Path(folder), args.dataset
    if not dataset:
      spm = args.spm
      if not spm:
        vocab_command.main([f"--input={args.input}", f"--out={folder}", "--vocab_size=8000"])
        spm = str(folder / "spiece.model")
      numbers |= measure_prepare(args.input, spm, reading, folder)
      numbers |= measure_sentencepiece(args.input, spm, reading)
      dataset = folder / "dataset"
    numbers |= measure_batches(dataset, batch_size=args.batch_size, seconds=args.seconds, seq_length=args.seq_length)
    if args.steps:
      numbers |= measure_steps(
        str(dataset),
        size=args.size,
        batch_size=args.step_batch_size,
        seq_length=args.step_seq_length,
        workers=args.workers,
        steps=args.steps,
        rounds=args.rounds,
      )
  for name, value in numbers.items():
    print(f"{name:32} {value:>14,.4f}" if isinstance(value, float) else f"{name:32} {value!s:>14}")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    sys.exit(f"error: {error}")
