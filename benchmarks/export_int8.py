"""Processor time of ONNX files of the base model: float32 against the int8 recipes, in turns within one run.

  python benchmarks/export_int8.py --json=FILE

Weights are random: they change no time. One thread; the median of `--repeats` runs for each shape.
"""

import argparse
import collections
import json
import pathlib
import time

import jax
import numpy as np
import onnxruntime

import albert_jax
from albert_jax import onnx_runtime
from albert_jax.exports import onnx, quantize

SHAPES = ((1, 12), (1, 24), (16, 24))  # batch, tokens; SST-2's sentences have about 24 tokens


def batch(cfg, rows, length):
  ids = np.random.default_rng(0).integers(5, cfg.vocab_size, (rows, length))
  return {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}


def session(graph):
  settings = onnxruntime.SessionOptions()
  settings.intra_op_num_threads = 1
  return onnxruntime.InferenceSession(graph.SerializeToString(), settings, providers=["CPUExecutionProvider"])


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--variant", default="base", choices=albert_jax.VARIANTS)
  parser.add_argument("--repeats", type=int, default=6)
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  cfg = albert_jax.VARIANTS[args.variant]
  params = jax.tree.map(np.asarray, albert_jax.init(cfg, jax.random.key(0)))
  params = {name: part for name, part in params.items() if name not in ("mlm", "sop")}
  params["classifier"] = {"kernel": np.ones((cfg.hidden_size, 2), np.float32), "bias": np.zeros(2, np.float32)}
  uses = quantize.calibrate(cfg, params, [batch(cfg, 1, 20)], task="classify")
  graphs = {"float32": onnx.build(cfg, params, task="classify")} | {
    name: onnx.build(cfg, params, task="classify", arithmetic=quantize.Int8(recipe, uses))
    for name, recipe in quantize.RECIPES.items()
  }
  sessions = {name: session(graph) for name, graph in graphs.items()}
  numbers = {"megabytes": {name: graph.ByteSize() / 1e6 for name, graph in graphs.items()}}
  for shape in SHAPES:
    inputs, times = batch(cfg, *shape), collections.defaultdict(list)
    for _ in range(args.repeats):
      for name, opened in sessions.items():
        start = time.process_time()
        onnx_runtime.run(opened, inputs)
        times[name].append(1000 * (time.process_time() - start))
    numbers["x".join(map(str, shape))] = {name: float(np.median(values)) for name, values in times.items()}
  print(json.dumps(numbers, indent=2))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
  main()
