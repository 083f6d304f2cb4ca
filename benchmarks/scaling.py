"""Weak scaling: what a step sends between devices, and what is estimated to be lost by it; rows a device stay the same.

  JAX_PLATFORMS=cpu python benchmarks/scaling.py --size=base --rows=32 --topologies v5e:2x4 v5e:4x4 h200:8
  JAX_PLATFORMS=cpu python benchmarks/scaling.py --size=base --rows=32 --chips 8 64 256 --kinds v5e v5p v6e

The first form compiles the step: TPUs need the extra [plan], GPUs the CUDA plugin; neither needs a device. The second
is arithmetic: the model's operations at `--mfu` of the peak, and float32 gradients through a ring. Both are estimates:
nothing overlaps, links have the datasheet's bandwidth, and their latency is left out.
On one CPU, `train_step.py --virtual 2 4 8 --only=albert_jax` times the sharded step on virtual devices.
"""

import argparse
import json
import pathlib

import jax

from albert_jax import model, tasks
from albert_jax.commands import common
from albert_jax.planning import machine, plan
from albert_jax.training.flops import CHIPS, flops_per_step

ROOT = pathlib.Path(__file__).resolve().parents[1]


def config_of(size: str, batch_size: int):
  """The pre-training config of a size, in bfloat16 with 20 predictions."""
  config = common.load_config(f"{ROOT / 'configs' / 'pretrain.py'}:{size}")
  config.update_from_flattened_dict({
    "model.dtype": "bfloat16", "data.max_predictions": 20, "batch_size": batch_size,
  })  # fmt: skip
  return config


def arithmetic(size: str, rows: int, kind: str, chips: int, mfu: float) -> dict[str, float]:
  """Seconds of compute and of communication of a step, and the share of the time that is compute."""
  config = config_of(size, rows)
  sketch = tasks.sketch(config)
  params = model.param_count(jax.eval_shape(lambda: model.init(sketch.model, jax.random.key(0))))
  operations = flops_per_step(sketch.model, rows, config.data.seq_length, sketch.slots)
  compute = operations / (CHIPS[kind].teraflops * 1e12) / mfu
  # A ring of n sends each byte 2 (n - 1) / n times.
  send = 2 * (chips - 1) / chips * 4 * params / (CHIPS[kind].link_gb_per_s * 1e9)
  return {"compute_s": compute, "send_s": send, "efficiency_estimate": compute / (compute + send)}


def compiled(size: str, rows: int, topology: str, mfu: float) -> dict:
  """What `plan` says about the step on a machine, and the share of its time that is compute."""
  numbers = plan(config_of(size, rows * len(machine(topology)[2])), topology, mfu)
  numbers["efficiency_estimate"] = numbers["step_s_at_least"] / mfu / numbers["step_s_estimate"]
  return numbers


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topologies", nargs="+", default=[], metavar="KIND:SHAPE", help="machines to compile for")
  parser.add_argument("--chips", nargs="+", type=int, default=[], help="numbers of chips, for the arithmetic")
  parser.add_argument("--kinds", nargs="+", default=["v5e", "v5p", "v6e"], choices=CHIPS, help="for the arithmetic")
  parser.add_argument("--size", default="base")
  parser.add_argument("--rows", type=int, default=32, help="rows a device")
  parser.add_argument("--mfu", type=float, default=0.5)
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  if not args.topologies and not args.chips:
    parser.error("give machines to compile for, as --topologies v5e:2x4, or numbers of chips, as --chips 8 64 256")
  results = {}
  for topology in args.topologies:
    n = results[topology] = compiled(args.size, args.rows, topology, args.mfu)
    print(
      f"{topology}: {n['devices']} devices, {n['all_reduce_count']} all-reduce, {n['collective_bytes'] / 1e6:.1f} MB, "
      f"{n['temp_gib']:.2f} GiB, {n['estimated_cycles'] / 1e6:.1f} Mcycles a device, {n['efficiency_estimate']:.1%}",
      flush=True,
    )
  for kind in args.kinds if args.chips else ():
    for chips in args.chips:
      n = results[f"{kind} x {chips}"] = arithmetic(args.size, args.rows, kind, chips, args.mfu)
      print(
        f"{args.size}, {args.rows} rows a chip, {chips} x {kind}: {n['compute_s'] * 1e3:.1f} ms of compute, "
        f"{n['send_s'] * 1e3:.2f} ms of sending, {n['efficiency_estimate']:.1%}"
      )
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
