"""Quality against speed: one shared layer, turned fewer times than it was trained for.

  ALBERT_DATA=DIR python benchmarks/depth.py --checkpoint=RUN --depth=8 --out=FOLDER

Fine-tunes a checkpoint of one shared layer on SST-2 at `--depth` layers, once plainly and once with
distill.least_layers=1 (the answers after fewer layers imitate those after all). Both are then read at every depth:
accuracy, and time of the development set, batch by batch and text by text, all depths in turns.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from albert_jax import convert, model
from albert_jax.commands.common import load_config
from albert_jax.evaluation import for_checkpoint
from albert_jax.tasks import heads

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = f"{ROOT}/configs/glue.py:sst-2-tiny"
SETTINGS = {
  "optimizer.learning_rate": 5e-4, "optimizer.textbook": True, "optimizer.warmup_steps": 50, "batch_size": 32,
  "data.seq_length": 64, "log_every": 50, "model.hidden_dropout_prob": 0.0, "model.attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def train(start, least, steps, data, folder):
  """Returns the export of a run that begins with `start`."""
  workdir = folder / f"least-{least}"
  overrides = {**SETTINGS, "steps": steps, "eval_every": steps, "checkpoint_every": steps, "init_from": start,
               "distill.least_layers": least, "data.dataset": data}  # fmt: skip
  command = [sys.executable, "-m", "albert_jax", "train", f"--config={CONFIG}", f"--workdir={workdir}",
             *(f"--config.{key}={value}" for key, value in overrides.items())]  # fmt: skip
  subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
  return workdir / "export"


def readers(task, params, depth):
  """Returns {name: batch -> (logits, layers of each row)}, compiled once for each shape."""

  def readout(outputs):
    return heads.affine(params["classifier"], outputs["pooled_output"])

  def at_depth(layers):
    cfg = dataclasses.replace(task.model, num_hidden_layers=layers)

    @jax.jit
    def read(batch):
      return readout(model.apply(cfg, params, model.inputs(batch))), np.full(len(batch["row"]), layers)

    return read

  return {f"{n} layers": at_depth(n) for n in range(1, depth + 1)}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--checkpoint", required=True, metavar="DIR")
  parser.add_argument("--depth", type=int, default=8)
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--rounds", type=int, default=5, help="turns of the timing")
  parser.add_argument("--out", required=True, metavar="DIR", help="where the runs go")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  folder, data = pathlib.Path(args.out).absolute(), pathlib.Path(os.environ["ALBERT_DATA"]) / "glue"
  folder.mkdir(parents=True, exist_ok=True)
  cfg, params = convert.load(args.checkpoint)
  start = folder / "start"
  deep = dataclasses.replace(cfg, num_hidden_layers=args.depth)
  convert.save(start, deep, params, vocabulary=convert.load_tokenizer(args.checkpoint), overwrite=True)

  rows, readings = [], {}
  for least in (0, 1):
    config = load_config(CONFIG)
    config.data.update({"dataset": str(data), "seq_length": SETTINGS["data.seq_length"]})
    task, params = for_checkpoint(config, train(start, least, args.steps, data, folder))
    batches = list(task.eval_batches(0, 1))
    singles = [{k: v[i : i + 1] for k, v in batches[len(batches) // 2].items()} for i in range(16)]
    for name, read in readers(task, params, args.depth).items():
      hits, layers, count = 0, 0, 0
      for batch in batches:
        logits, used = jax.device_get(read(batch))
        real = batch["weight"] > 0
        hits += np.sum((logits.argmax(axis=1) == batch["label"])[real])
        layers, count = layers + np.sum(used[real]), count + np.sum(real)
      readings[least, name] = read, batches, singles
      rows.append({"least_layers": least, "name": name, "accuracy": hits / count, "layers": layers / count})
  times = {key: ([], []) for key in readings}
  for turn in range(args.rounds + 1):
    for key, (read, batches, singles) in readings.items():
      for inputs, seconds in zip((batches, singles), times[key], strict=True):
        begin = time.perf_counter()
        for batch in inputs:
          jax.block_until_ready(read(batch))
        if turn:  # The first compiles.
          seconds.append(time.perf_counter() - begin)
  print(f"{'':<26}{'accuracy':>9}{'layers':>8}{'ms, all rows':>14}{'ms a text':>11}")
  for row in rows:
    in_batches, alone = times[row["least_layers"], row["name"]]
    row |= {"ms": 1e3 * statistics.median(in_batches), "ms_single": 1e3 / 16 * statistics.median(alone)}
    name = f"{'imitated' if row['least_layers'] else 'plain'}, {row['name']}"
    print(f"{name:<26}{row['accuracy']:>9.4f}{row['layers']:>8.2f}{row['ms']:>14.0f}{row['ms_single']:>11.2f}")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(rows, indent=2, default=float) + "\n")


if __name__ == "__main__":
  main()
