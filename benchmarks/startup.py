"""How long until the first training step is done, with and without kept compiled programs; and compiling by depth.

  python benchmarks/startup.py --dataset=DIR --size=base --batch=8 --length=128

The clock runs from the start of the process `albert-jax train` until the first step's line is in metrics.jsonl, so it
includes Python's imports, the data, fresh weights, compiling (or finding what was compiled) and the step itself. What
a step takes, which is the time from the first line to the second, is printed beside it.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from albert_jax import VARIANTS, model
from albert_jax.data import source
from albert_jax.tasks import pretrain


def first_steps(args, folder, cache) -> tuple[float, float]:
  """Seconds from the start of a new process until its first step is written down, and from then to its second."""
  workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))
  root = pathlib.Path(__file__).resolve().parents[1]
  overrides = {
    "steps": 3, "log_every": 1, "eval_every": 1000, "eval_batches": 1, "checkpoint_every": 1000,
    "batch_size": args.batch, "optimizer.warmup_steps": 1, "data.dataset": args.dataset, "data.seq_length": args.length,
    "model.vocab_size": source.tokenizer(args.dataset, "").vocab_size,
  }  # fmt: skip
  command = [sys.executable, "-m", "albert_jax", "train", f"--config={root}/configs/pretrain.py:{args.size}",
             f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in overrides.items())]  # fmt: skip
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
  log = workdir / "metrics.jsonl"
  with open(os.devnull, "w") as nowhere:
    times = [time.perf_counter()]
    process = subprocess.Popen(command, env=environment, stdout=nowhere, stderr=subprocess.PIPE, text=True, cwd=root)
    while len(times) < 3:
      if log.exists() and log.read_text().count("\n") >= len(times):
        times.append(time.perf_counter())
      elif process.poll() is not None:
        raise SystemExit(f"the run ended before its second step:\n{process.stderr.read()[-2000:]}")
      time.sleep(0.005)
    process.kill()
    process.wait()
  return times[1] - times[0], times[2] - times[1]


def compile_seconds(cfg, batch) -> float:
  """Seconds to trace and compile loss and gradient."""

  def loss(params):
    found = pretrain.sums(cfg, params, batch, None)
    return found["mlm_loss"][0] + found["sop_loss"][0]

  abstract = jax.eval_shape(functools.partial(model.init, cfg), jax.random.key(0))
  begin = time.perf_counter()
  jax.jit(jax.value_and_grad(loss)).lower(abstract).compile()
  return time.perf_counter() - begin


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dataset", required=True, metavar="DIR", help="made by albert-jax prepare")
  parser.add_argument("--size", default="base", choices=VARIANTS)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--repeats", type=int, default=5, help="warm starts (default 5)")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  found = {"size": args.size, "batch": args.batch, "length": args.length}
  with tempfile.TemporaryDirectory() as folder:
    cache = pathlib.Path(folder) / "cache"
    found["cold_s"], _ = first_steps(args, folder, cache)
    warm, step = zip(*(first_steps(args, folder, cache) for _ in range(args.repeats)), strict=True)
    found |= {"warm_s": statistics.median(warm), "warm_s_min": min(warm), "warm_s_max": max(warm)}
    found["step_s"] = statistics.median(step)
  print(f"process start to first step: {found['cold_s']:.2f} s cold, {found['warm_s']:.2f} s warm "
        f"({found['warm_s_min']:.2f} to {found['warm_s_max']:.2f}, {args.repeats} times); of which the step itself "
        f"{found['step_s']:.2f} s")  # fmt: skip
  batch = {
    **{name: np.ones((args.batch, args.length), np.int32) for name in ("input_ids", "attention_mask")},
    "token_type_ids": np.zeros((args.batch, args.length), np.int32),
    **{name: np.ones((args.batch, 19), np.int32) for name in ("mlm_positions", "mlm_labels")},
    "mlm_weights": np.ones((args.batch, 19), np.float32),
    "sop_label": np.ones(args.batch, np.int32), "sop_weight": np.ones(args.batch, np.float32),
  }  # fmt: skip
  for layers in (12, 24, 48):
    cfg = dataclasses.replace(VARIANTS[args.size], num_hidden_layers=layers)
    found[f"compile_s_{layers}_layers"] = compile_seconds(cfg, batch)
    print(f"compiling loss and gradient of {layers} layers: {found[f'compile_s_{layers}_layers']:.2f} s")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
