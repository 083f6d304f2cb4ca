"""From one device to eight: what the compiled step sends between devices, and what is estimated to be lost by it.

  JAX_PLATFORMS=cpu python benchmarks/scaling.py --size=base --rows=32 --topologies v5e:2x4 v5e:4x4 h200:8

Rows a device stay the same (weak scaling). TPUs need the extra [plan], GPUs the CUDA plugin; neither needs a device.
The efficiency is that of compute at `--mfu` against compute and the bytes over the links, not overlapped: an estimate.
On one CPU, `train_step.py --virtual 2 4 8 --only=albert_jax` times the sharded step on virtual devices.
"""

import argparse
import json
import pathlib

from albert_jax.commands import common
from albert_jax.planning import machine, plan

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topologies", nargs="+", required=True, metavar="KIND:SHAPE")
  parser.add_argument("--size", default="base")
  parser.add_argument("--rows", type=int, default=32, help="rows a device")
  parser.add_argument("--mfu", type=float, default=0.5)
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  plans = {}
  for topology in args.topologies:
    config = common.load_config(f"{ROOT / 'configs' / 'pretrain.py'}:{args.size}")
    overrides = {"model.dtype": "bfloat16", "data.max_predictions": 20}
    config.update_from_flattened_dict({**overrides, "batch_size": args.rows * len(machine(topology)[2])})
    n = plan(config, topology, args.mfu)
    n["efficiency_estimate"] = n["step_s_at_least"] / args.mfu / n["step_s_estimate"]
    plans[topology] = n
    print(
      f"{topology}: {n['devices']} devices, {n['all_reduce_count']} all-reduce, {n['collective_bytes'] / 1e6:.1f} MB, "
      f"{n['temp_gib']:.2f} GiB, {n['estimated_cycles'] / 1e6:.1f} Mcycles a device, {n['efficiency_estimate']:.1%}",
      flush=True,
    )
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(plans, indent=2) + "\n")


if __name__ == "__main__":
  main()
