"""The table of docs/plan.md: every size on five machines, compiled ahead of time. Needs the extra [plan], no chip.

  JAX_PLATFORMS=cpu python benchmarks/plan_table.py --cache=plan.json

A compile takes a minute or two on an idle core; what is in the cache is not compiled again, so it can be stopped.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys

import jax

from albert_jax.commands import common
from albert_jax.planning import plan

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = ("base", "large", "xlarge", "xxlarge")
MACHINES = {
  "v5e-8": "v5e:2x4",
  "v5e-256": "v5e:16x16",
  "v5p-128": "v5p:4x4x4",
  "v6e-256": "v6e:16x16",
  "v4-128": "v4:4x4x4",
}
# Rows a device works on at a time. A batch of 4096 is more than that on the smaller machines, which accumulate.
AT_A_TIME = {"base": 32, "large": 16, "xlarge": 8, "xxlarge": 8}
BATCH = 4096

TEXT = """# What a run needs: memory, time, cost

After this page you know whether a run fits a machine, about how long it takes, and what it costs, before you rent it.

```sh
pip install 'albert-jax[plan]'
albert-jax plan --config=pretrain:base --config.model.dtype=bfloat16 --topology=v5e:2x4 --price_per_chip_hour=1.2
albert-jax plan --config=pretrain:base --config.batch_size=512 --topology=h200:8 --find_batch
```

`plan` compiles the real train step ahead of time for TPUs or GPUs that are not there. `--find_batch` finds the most
rows a device that fit.

## The paper's batch on five machines

`configs/pretrain.py`, batch 4096, length 512, 20 predictions, bfloat16 ({versions}). **Nothing here was run.**
Memory, state and bytes sent are the compiler's. "At least" is the model's operations at the datasheet's peak.
The estimate assumes an MFU of {mfu:.0%} and adds the bytes over the links; the hours are for 125,000 such steps. Rows
that do not fit at once are computed in micro-batches (`--config.accumulate`). Machine names
follow their vendor: a v4 or v5p counts two cores a chip, so v5p-128 and v4-128 are 64 chips.

`python benchmarks/plan_table.py --cache=plan.json` makes this table.

"""
COLUMNS = (
  "size", "machine", "chips", "rows a chip", "at a time", "fits", "temporaries GiB", "state GiB", "of GiB", "sent MB",
  "step at least ms", "step estimate ms", "run hours",
)  # fmt: skip


def row(name, size, n):
  chips = n["chips"]
  cells = [size, name, chips, n["batch_size"] // chips, n["rows_per_device"] // n["accumulate"]]
  if "temp_gib" not in n:
    return [*cells, "no", f"needs {n.get('needed_gib', float('nan')):.1f}", "", f"{n['memory_gib']:g}", "", "", "", ""]
  return [
    *cells, "yes" if n["fits"] else "no", f"{n['temp_gib']:.2f}", f"{n['argument_gib']:.2f}", f"{n['memory_gib']:g}",
    f"{n['collective_bytes'] / 1e6:,.0f}", f"{n['step_s_at_least'] * 1e3:,.0f}", f"{n['step_s_estimate'] * 1e3:,.0f}",
    f"{n['run_hours_estimate']:,.1f}",
  ]  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--cache", required=True, metavar="FILE", help="numbers by size and machine, read and written")
  parser.add_argument("--out", default=ROOT / "docs" / "plan.md", metavar="FILE")
  parser.add_argument("--json", metavar="FILE", help="write all numbers there too")
  args = parser.parse_args()
  cache = pathlib.Path(args.cache)
  cells = json.loads(cache.read_text()) if cache.exists() else {}
  for size in SIZES:
    for name, topology in MACHINES.items():
      key = f"{size} {name}"
      if key not in cells:
        cells[key] = compiled(size, topology)
        cache.write_text(json.dumps(cells, indent=1))
        print(key, cells[key], file=sys.stderr, flush=True)
  text = TEXT.format(versions=f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}", mfu=0.5)
  text += f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
  for size in SIZES:
    for name in MACHINES:
      text += "| " + " | ".join(map(str, row(name, size, cells[f"{size} {name}"]))) + " |\n"
  pathlib.Path(args.out).write_text(text)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(cells, indent=1) + "\n")


def compiled(size, topology):
  config = common.load_config(f"{ROOT / 'configs' / 'pretrain.py'}:{size}")
  chips = 1
  for n in topology.split(":")[1].split("x"):
    chips *= int(n)
  rows = BATCH // chips
  overrides = {"model.dtype": "bfloat16", "data.max_predictions": 20, "batch_size": BATCH}
  config.update_from_flattened_dict({**overrides, "accumulate": max(1, rows // AT_A_TIME[size])})
  return plan(config, topology)


if __name__ == "__main__":
  main()
