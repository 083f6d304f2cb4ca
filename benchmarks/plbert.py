"""How long a training step of PL-BERT takes: ours beside the loop of the reference, restated in PyTorch.

  pip install -e '.[parity]'
  python benchmarks/plbert.py --batch=2 --turns=3 --json=plbert.json

All begin with the same weights and take the same batch, in float32. The reference is transformers' AlbertModel, two
linear heads at every position, a cross-entropy a row and torch.optim.AdamW. Its loss and ours must agree in the first
step. Each contestant is a process, as in use: in one process PyTorch's arrays divided the memory that XLA's next step
needs in one piece, and the system cleared new pages in each step. All keep freed memory. They take turns, one step
each, so that a machine that slows down slows all of them; what counts is the median of the ratios of a turn.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import pathlib
import resource
import statistics
import tempfile
import time

import jax
import numpy as np

from albert_jax import convert, model
from albert_jax.commands import common
from albert_jax.configs import plbert as configs
from albert_jax.data.speech import lexicon
from albert_jax.tasks import plbert
from albert_jax.training import optimizer, sharding, state
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.step import make_train_step

MASK_ID, SPACE_ID = 29, 16
SHARE = 0.25  # of the positions, in the second contestant
NAMES = PYTORCH, ALL, PART = "PyTorch", "all positions", f"{SHARE:.0%} of the positions"
WARM_UP = 3  # The heap may grow in the second step, because the first one's arrays are still where it begins.
PAUSE = 0.5  # s: PyTorch's threads wait busily for a while, and would cost the next contestant a core.


def make_batch(cfg, rows, length, words, seed=0) -> dict:
  """Rows of words of one to ten symbols without padding, 15 % of the words masked; word targets are random."""
  rng = np.random.default_rng(seed)
  shape = (rows, length)
  is_space = rng.random(shape) < 0.16
  word = np.cumsum(is_space, axis=1) - is_space
  chosen = rng.random((rows, length + 1)) < 0.15
  target = rng.integers(lexicon.FIRST_WORD, words, (rows, length + 1))
  is_chosen = np.take_along_axis(chosen, word, axis=1) & ~is_space
  ids = np.where(is_space, SPACE_ID, rng.integers(43, cfg.vocab_size, shape)).astype(np.int32)
  labels = np.where(is_space, lexicon.SPACE, np.take_along_axis(target, word, axis=1)).astype(np.int32)
  return {
    "input_ids": np.where(is_chosen, MASK_ID, ids).astype(np.int32),
    "attention_mask": np.ones(shape, np.int32),
    "phoneme_labels": ids,
    "phoneme_weights": (is_chosen / is_chosen.sum(axis=1, keepdims=True)).astype(np.float32),
    "word_labels": labels,
    "word_weights": np.full(shape, 1 / length, np.float32),
    "weight": np.ones(rows, np.float32),
  }


def at_share(batch, share, seed=0) -> dict:
  """Returns the batch with the word loss at a share of the positions of each row."""
  rng = np.random.default_rng(seed)
  rows, length = batch["input_ids"].shape
  size = round(share * length)
  positions = np.stack([np.sort(rng.choice(length, size, replace=False)) for _ in range(rows)]).astype(np.int32)
  return batch | {
    "word_positions": positions,
    "word_labels": np.take_along_axis(batch["word_labels"], positions, axis=1),
    "word_weights": np.full(positions.shape, 1 / size, np.float32),
  }


def ours(cfg, params, batch, chunk):
  """Returns a function that takes a training step as `albert-jax train` does, and returns its loss."""
  opt = OptimizerConfig(**configs.get_config("base").optimizer)
  mesh = sharding.make_mesh(sharding.MeshConfig(), len(batch["input_ids"]), jax.devices()[:1])
  tx = optimizer.make(opt, model.layer_axes(cfg, params))
  shardings = sharding.shardings(mesh, jax.eval_shape(lambda: state.from_params(params, tx, None)))
  sums, terms = functools.partial(plbert.sums, cfg, chunk), functools.partial(plbert.terms, 1.0, 1.0)
  step = make_train_step(sums, terms, tx, jax.random.key(0), mesh, shardings)
  with jax.set_mesh(mesh):
    arrays, rate = sharding.global_batch(mesh, batch), sharding.everywhere(mesh, opt.learning_rate)
    current = state.from_params(params, tx, shardings)
    compiled = step.lower(current, arrays, rate).compile()

  def run():
    nonlocal current
    current, (sums, _) = compiled(current, arrays, rate)
    return float(sums["loss"][0])

  return run


def reference(folder, cfg, params, batch):
  """Returns a function that takes a step of PL-BERT's loop in PyTorch, and returns its loss."""
  import torch
  import transformers

  class MultiTask(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.encoder = transformers.AlbertModel.from_pretrained(folder, add_pooling_layer=False)
      self.heads = torch.nn.ModuleDict()
      for name in ("phoneme", "word"):
        kernel, bias = (torch.tensor(np.array(params[name][key])) for key in ("kernel", "bias"))
        self.heads[name] = torch.nn.Linear(*kernel.shape)
        self.heads[name].weight.data, self.heads[name].bias.data = kernel.T.contiguous(), bias

    def forward(self, ids, mask):
      hidden = self.encoder(ids, attention_mask=mask).last_hidden_state
      return self.heads["phoneme"](hidden), self.heads["word"](hidden)

  net, entropy = MultiTask().train(), torch.nn.CrossEntropyLoss()
  adam = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
  arrays = {name: torch.tensor(value) for name, value in batch.items()}
  ids, mask, phonemes, words = (
    arrays[name].long() for name in ("input_ids", "attention_mask", "phoneme_labels", "word_labels")
  )
  masked = [torch.nonzero(row)[:, 0] for row in arrays["phoneme_weights"]]
  lengths = mask.sum(dim=1).tolist()

  def run():
    phoneme_logits, word_logits = net(ids, mask)
    loss_words, loss_phonemes, sizes = 0.0, 0.0, 1
    for row, (length, at) in enumerate(zip(lengths, masked, strict=True)):
      loss_words += entropy(word_logits[row, :length], words[row, :length])
      if len(at):
        loss_phonemes += entropy(phoneme_logits[row, :length][at], phonemes[row, :length][at])
        sizes += 1
    loss = loss_words / len(lengths) + loss_phonemes / sizes
    adam.zero_grad()
    loss.backward()
    adam.step()
    return loss.item()

  return run


class Contestant:
  """A process that takes a step when it is called, and returns (loss, seconds, new pages of memory)."""

  def __init__(self, context, name, args):
    self._pipe, theirs = context.Pipe()
    context.Process(target=serve, args=(theirs, name, args), daemon=True).start()
    theirs.close()
    self._pipe.recv()

  def __call__(self):
    self._pipe.send(None)
    return self._pipe.recv()


def serve(pipe, name, args):
  """Makes a contestant, and takes a step for each message until the pipe is closed."""
  common.keep_memory()  # As `albert-jax train` does, before JAX starts its threads; here PyTorch has it too.
  fields = configs.get_config("base").model.to_dict() | {"num_hidden_layers": args.layers}
  cfg = model.AlbertConfig(**fields)
  params = jax.device_get(plbert.init(cfg, args.words, jax.random.key(0)))
  batch = make_batch(cfg, args.batch, args.length, args.words)
  if name == PYTORCH:
    with tempfile.TemporaryDirectory() as folder:
      encoder = {part: values for part, values in params.items() if part not in ("phoneme", "word")}
      convert.save(pathlib.Path(folder) / "encoder", cfg, encoder)
      run = reference(pathlib.Path(folder) / "encoder", cfg, params, batch)
  else:
    run = ours(cfg, params, at_share(batch, SHARE) if name == PART else batch, args.chunk)
  del params
  pipe.send("ready")
  with contextlib.suppress(EOFError):
    while True:
      pipe.recv()
      faults, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
      loss = run()
      seconds = time.perf_counter() - begin
      pipe.send((loss, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=int, default=2)
  parser.add_argument("--length", type=int, default=512)
  parser.add_argument("--words", type=int, default=84_827, help="targets of the word loss (default: the reference's)")
  parser.add_argument("--layers", type=int, default=12)
  parser.add_argument("--chunk", type=int, default=configs.get_config("base").loss.word_chunk)
  parser.add_argument("--turns", type=int, default=3, help=f"steps that are timed, after {WARM_UP} that are not")
  parser.add_argument("--json", default="", help="write the numbers to this file")
  args = parser.parse_args()
  context = multiprocessing.get_context("spawn")
  runs = {name: Contestant(context, name, args) for name in NAMES}
  losses = {name: run()[0] for name, run in runs.items()}
  if abs(losses[PYTORCH] - losses[ALL]) > 1e-3:
    raise SystemExit(f"the losses of the first step differ: {losses}")
  for _ in range(WARM_UP - 1):
    for run in runs.values():
      run()
  times = {name: [] for name in runs}
  faults = {name: [] for name in runs}
  for _ in range(args.turns):
    for name, run in runs.items():
      time.sleep(PAUSE)
      _, seconds, pages = run()
      times[name].append(seconds)
      faults[name].append(pages)
  numbers = {"first_losses": losses}
  for name, seconds in times.items():
    ratios = [theirs / our_time for theirs, our_time in zip(times[PYTORCH], seconds, strict=True)]
    numbers[name] = {
      "median_s": statistics.median(seconds), "speedup": statistics.median(ratios), "page_faults": faults[name],
    }  # fmt: skip
    print(f"{name:24}{numbers[name]['median_s']:9.2f} s a step  {numbers[name]['speedup']:6.2f} x")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
