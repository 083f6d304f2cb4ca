"""How long until the first training step is done, with and without kept compiled programs; and compiling by depth.

  python benchmarks/startup.py --dataset=DIR --size=base --batch=8 --length=128

The clock runs from the start of the process `albert-jax train` until the first step's line is in metrics.jsonl, so it
includes Python's imports, the data, fresh weights, compiling (or finding what was compiled) and the step itself. Also
printed is when the step began: when JAX said that it had compiled, or found, its program.
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
import threading
import time

import jax
import numpy as np

from albert_jax import VARIANTS, model
from albert_jax.data import datasets
from albert_jax.tasks import pretrain


def first_step(args, folder, cache) -> tuple[float, float]:
  """Seconds from the start of a new process until its first step begins, and until its numbers are written down."""
  workdir = pathlib.Path(tempfile.mkdtemp(dir=folder))
  root = pathlib.Path(__file__).resolve().parents[1]
  overrides = {
    "steps": 2, "log_every": 1, "eval_every": 1000, "eval_batches": 1, "checkpoint_every": 1000,
    "batch_size": args.batch, "optimizer.warmup_steps": 1, "data.dataset": args.dataset, "data.seq_length": args.length,
    "model.vocab_size": datasets.tokenizer(args.dataset, "").vocab_size,
  }  # fmt: skip
  command = [sys.executable, "-m", "albert_jax", "train", f"--config={root}/configs/pretrain.py:{args.size}",
             f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in overrides.items())]  # fmt: skip
  environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_LOG_COMPILES": "1"}
  log, lines, began = workdir / "metrics.jsonl", [], []
  start = time.perf_counter()
  process = subprocess.Popen(
    command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=root
  )

  def listen():
    for line in process.stderr:
      lines.append(line)
      if "XLA compilation of jit(train_step)" in line:
        began.append(time.perf_counter() - start)

  listener = threading.Thread(target=listen)
  listener.start()
  while not (log.exists() and "\n" in log.read_text()) and process.poll() is None:
    time.sleep(0.005)
  done = time.perf_counter() - start
  process.kill()
  listener.join()
  if not began or not log.exists():
    raise SystemExit(f"the run ended before its first step:\n{''.join(lines)[-2000:]}")
  return began[0], done


def compile_seconds(cfg, batch) -> float:
  """Seconds to trace and compile loss and gradient."""

  def loss(params):
    sums = pretrain.sums(cfg, params, batch, None)
    return sums["mlm_loss"][0] + sums["sop_loss"][0]

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
  numbers = {"size": args.size, "batch": args.batch, "length": args.length}
  with tempfile.TemporaryDirectory() as folder:
    cache = pathlib.Path(folder) / "cache"
    numbers["cold_begins_s"], numbers["cold_s"] = first_step(args, folder, cache)
    begins, done = zip(*(first_step(args, folder, cache) for _ in range(args.repeats)), strict=True)
  for name, seconds in {"warm_begins_s": begins, "warm_s": done}.items():
    numbers |= {name: statistics.median(seconds), f"{name}_min": min(seconds), f"{name}_max": max(seconds)}
  print("process start until the first step begins, and until it is done:")
  print(f"cold  {numbers['cold_begins_s']:.2f} s  {numbers['cold_s']:.2f} s")
  for name, until in {"begins_s": "begins", "s": "is done"}.items():
    low, middle, high = (numbers[f"warm_{name}{end}"] for end in ("_min", "", "_max"))
    print(f"warm  {middle:.2f} s until it {until} ({low:.2f} to {high:.2f}, {args.repeats} times)")
  batch = {
    **{name: np.ones((args.batch, args.length), np.int32) for name in ("input_ids", "attention_mask")},
    "token_type_ids": np.zeros((args.batch, args.length), np.int32),
    **{name: np.ones((args.batch, 19), np.int32) for name in ("mlm_positions", "mlm_labels")},
    "mlm_weights": np.ones((args.batch, 19), np.float32),
    "sop_label": np.ones(args.batch, np.int32), "sop_weight": np.ones(args.batch, np.float32),
  }  # fmt: skip
  for layers in (12, 24, 48):
    cfg = dataclasses.replace(VARIANTS[args.size], num_hidden_layers=layers)
    numbers[f"compile_s_{layers}_layers"] = compile_seconds(cfg, batch)
    print(f"compiling loss and gradient of {layers} layers: {numbers[f'compile_s_{layers}_layers']:.2f} s")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
