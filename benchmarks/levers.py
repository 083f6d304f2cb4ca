"""Memory and estimated cycles of a training step with each lever of the model, compiled for a chip that is not here.

  JAX_PLATFORMS=cpu python benchmarks/levers.py --topology=v5e:2x4 --rows=32

`albert-jax bench --only=levers` measures their time on the device of this machine.
"""

import argparse
import json
import pathlib

import numpy as np

from albert_jax import VARIANTS
from albert_jax.bench import plan as bench
from albert_jax.commands import common
from albert_jax.planning import plan

ROOT = pathlib.Path(__file__).resolve().parents[1]
LEVERS = bench.LEVERS | {"dropout=0.1": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}}


def compiled(args, fields):
  config = common.load_config(f"{ROOT / 'configs' / 'pretrain.py'}:{args.size}")
  data = {"data.max_predictions": args.slots, "data.seq_length": args.length}
  config.update_from_flattened_dict({"model.dtype": args.dtype, **data, **{f"model.{k}": v for k, v in fields.items()}})
  chips = np.prod([int(n) for n in args.topology.split(":")[1].split("x")])
  config.batch_size = int(args.rows * chips)
  numbers = plan(config, args.topology)
  return {name: numbers.get(name) for name in ("fits", "needed_gib", "temp_gib", "estimated_cycles", "compile_s")}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="compile for it, as v5e:2x4 or h200:1")
  parser.add_argument("--size", default="base", choices=VARIANTS)
  parser.add_argument("--rows", type=int, default=32, help="rows a device")
  parser.add_argument("--length", type=int, default=512)
  parser.add_argument("--slots", type=int, default=20, help="masked slots a row")
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--only", nargs="*", choices=LEVERS, default=list(LEVERS))
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  plans = {}
  for name in args.only:
    plans[name] = compiled(args, LEVERS[name])
    print(name, plans[name], flush=True)
  width = max(map(len, plans))
  for name, numbers in plans.items():
    print(f"{name:{width}}", *(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(plans, indent=2) + "\n")


if __name__ == "__main__":
  main()
