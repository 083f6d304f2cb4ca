"""What each lever of the model does to a training step: memory and estimated cycles where it is compiled, time here.

  JAX_PLATFORMS=cpu python benchmarks/levers.py --topology=v5e:2x4 --rows=32          # compiled for a chip not here
  python benchmarks/levers.py --here --rows=8 --length=128 --dtype=float32            # timed on this machine

Timed steps are loss and gradients, variants taking turns, in seconds of processor time on a CPU (which holds whatever
else the machine does) and of the clock elsewhere.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from albert_jax import VARIANTS, init
from albert_jax.commands import common
from albert_jax.planning import plan
from albert_jax.tasks import pretrain

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEVERS = {
  "default": {},
  "attention=xla": {"attention": "xla"},
  "remat=none": {"remat": "none"},
  "remat=attention": {"remat": "attention"},
  "remat=full": {"remat": "full"},
  "scan_unroll=2": {"scan_unroll": 2},
  "scan_unroll=all": {"scan_unroll": 100},
  "dropout=0.1": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
}


def compiled(args, fields):
  config = common.load_config(f"{ROOT / 'configs' / 'pretrain.py'}:{args.size}")
  data = {"data.max_predictions": args.slots, "data.seq_length": args.length}
  config.update_from_flattened_dict({"model.dtype": args.dtype, **data, **{f"model.{k}": v for k, v in fields.items()}})
  chips = np.prod([int(n) for n in args.topology.split(":")[1].split("x")])
  config.batch_size = int(args.rows * chips)
  numbers = plan(config, args.topology)
  return {name: numbers.get(name) for name in ("fits", "needed_gib", "temp_gib", "estimated_cycles", "compile_s")}


def timed(args, names):
  """Returns {name: seconds of a step}, the median of `--rounds` turns."""
  base = dataclasses.replace(VARIANTS[args.size], dtype=args.dtype)
  rng = np.random.default_rng(0)
  B, L, M = args.rows, args.length, args.slots
  batch = {
    "input_ids": rng.integers(5, base.vocab_size, (B, L), np.int32),
    "mlm_positions": rng.integers(0, L, (B, M), np.int32),
    "mlm_labels": rng.integers(5, base.vocab_size, (B, M), np.int32),
    "mlm_weights": np.ones((B, M), np.float32),
    "sop_label": np.zeros(B, np.int32),
    "sop_weight": np.ones(B, np.float32),
  }
  params, key = init(base, jax.random.key(0)), jax.random.key(1)

  def step(cfg):
    def loss(params):
      sums = pretrain.sums(cfg, params, batch, key)
      return sum(c * sums[name][0] for name, c in pretrain.terms(1.0, 1.0, batch).items())

    return jax.jit(jax.value_and_grad(loss)).lower(params).compile()

  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  steps = {name: step(dataclasses.replace(base, **LEVERS[name])) for name in names}
  seconds = {name: [] for name in names}
  for _ in range(args.rounds + 1):
    for name, run in steps.items():
      start = clock()
      jax.block_until_ready(run(params))
      seconds[name].append(clock() - start)
  return {
    name: {
      "step_s": statistics.median(seconds[name][1:]),
      "temp_gib": run.memory_analysis().temp_size_in_bytes / 2**30,
    }
    for name, run in steps.items()
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  where = parser.add_mutually_exclusive_group(required=True)
  where.add_argument("--topology", metavar="KIND:SHAPE", help="compile for it, as v5e:2x4 or h200:1")
  where.add_argument("--here", action="store_true", help="time on this machine")
  parser.add_argument("--size", default="base", choices=VARIANTS)
  parser.add_argument("--rows", type=int, default=32, help="rows a device")
  parser.add_argument("--length", type=int, default=512)
  parser.add_argument("--slots", type=int, default=20, help="masked slots a row")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--only", nargs="*", choices=LEVERS, default=list(LEVERS))
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  if args.here:
    times = timed(args, args.only)
  else:
    times = {}
    for name in args.only:
      times[name] = compiled(args, LEVERS[name])
      print(name, times[name], flush=True)
  width = max(map(len, times))
  for name, numbers in times.items():
    print(f"{name:{width}}", *(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(times, indent=2) + "\n")


if __name__ == "__main__":
  main()
