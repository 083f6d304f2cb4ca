"""The paper's claim, measured: BERT-large beside ALBERT's sizes on the same batch, all of them ours, without dropout.

  OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu taskset -c 0 python benchmarks/efficiency.py --rows=1 --length=128
  JAX_PLATFORMS=cpu python benchmarks/efficiency.py --topology=v5e:2x4 --rows=8

Without --topology each size takes training steps here (LAMB, update included), in turns in one process. A step's time
is processor time on a CPU, where other programs may run, and that of the clock elsewhere. With it the real step is
compiled for that machine, which need not be there (TPUs need the extra [plan]); rows are then those of a device.
"""

import argparse
import dataclasses
import gc
import json
import math
import pathlib
import statistics
import time

import jax

from albert_jax import VARIANTS, model
from albert_jax.bench.contestants import Ours, make_batch, temporaries_gib
from albert_jax.commands import common
from albert_jax.planning import machine, plan
from albert_jax.training.optimizer import OptimizerConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = ("bert_large", "large", "xlarge", "xxlarge")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def parameters(cfg: model.AlbertConfig) -> int:
  """Returns how many parameters a model has; nothing is computed."""
  return model.param_count(jax.eval_shape(lambda: model.init(cfg, jax.random.key(0))))


def timed(sizes: list[str], rows: int, length: int, rounds: int) -> dict[str, dict]:
  """Returns {size: seconds of a step and GiB of temporaries}, steps in turns."""
  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  steps, seconds = {}, {size: [] for size in sizes}
  for size in sizes:
    cfg = dataclasses.replace(VARIANTS[size], dtype="float32", **NO_DROPOUT)
    batch = make_batch(cfg, rows, length, round(0.15 * length))
    steps[size] = Ours(cfg, model.init(cfg, jax.random.key(0)), batch, OptimizerConfig())
    steps[size]()  # The first step also asks the system for memory.
    gc.collect()
    print(f"{size}: ready", flush=True)
  for _ in range(rounds):
    for size, step in steps.items():
      start = clock()
      step()
      seconds[size].append(clock() - start)
  return {
    size: {"step_s": statistics.median(seconds[size]), "temp_gib": temporaries_gib(steps[size].compiled)}
    for size in sizes
  }


def compiled(size: str, topology: str, rows: int) -> dict:
  """What `plan` says about a size's step on a machine."""
  config = common.load_config(f"{ROOT / 'configs' / 'pretrain.py'}:{size}")
  fields = {f"model.{name}": value for name, value in NO_DROPOUT.items()}
  fields |= {"model.dtype": "bfloat16", "data.max_predictions": 20, "batch_size": rows * len(machine(topology)[2])}
  config.update_from_flattened_dict(fields)
  numbers = plan(config, topology)
  numbers["step_s"] = numbers.get("step_s_estimate", math.nan)
  return numbers


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sizes", nargs="+", default=SIZES, choices=VARIANTS, metavar="SIZE")
  parser.add_argument("--rows", type=int, default=1, help="of the batch; with --topology, of a device (default 1)")
  parser.add_argument("--length", type=int, default=128, help="of a row, without --topology (default 128)")
  parser.add_argument("--rounds", type=int, default=3, help="timed steps of each (default 3)")
  parser.add_argument("--topology", metavar="KIND:SHAPE", help="compile for this machine, as v5e:2x4")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  if args.topology:
    results = {}
    for size in args.sizes:
      results[size] = compiled(size, args.topology, args.rows)
      print(f"{size}: {results[size]}", flush=True)
  else:
    results = timed(args.sizes, args.rows, args.length, args.rounds)
  first = args.sizes[0]
  for size, numbers in results.items():
    numbers["parameters"] = parameters(VARIANTS[size])
    numbers["gradient_bytes"] = 4 * numbers["parameters"]  # They are summed in float32.
    numbers["times_fewer_parameters"] = results[first]["parameters"] / numbers["parameters"]
    numbers["times_faster"] = results[first]["step_s"] / numbers["step_s"]
  columns = ["parameters", "times fewer", "gradients MB", "step s", "times faster", "temporaries GiB"]
  columns += ["sent MB", "state GiB", "Mcycles"] if args.topology else []
  print(f"\n| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
  for size, n in results.items():
    cells = [
      f"{n['parameters']:,}", f"{n['times_fewer_parameters']:.1f}", f"{n['gradient_bytes'] / 1e6:,.0f}",
      f"{n['step_s']:.4g}", f"{n['times_faster']:.2f}", f"{n.get('temp_gib', math.nan):.2f}",
    ]  # fmt: skip
    if args.topology:
      cells += [f"{n.get('collective_bytes', math.nan) / 1e6:,.0f}", f"{n.get('argument_gib', math.nan):.2f}",
                f"{n.get('estimated_cycles', math.nan) / 1e6:,.0f}"]  # fmt: skip
    print(f"| {size} | {' | '.join(cells)} |")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
