"""How long a save stops the loop, and how long after a kill the next step is done.

python benchmarks/checkpoint.py --size=base
python benchmarks/checkpoint.py --size=base --dataset=DIR    # also kills a real run, and starts it again
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from albert_jax import VARIANTS, model
from albert_jax.training import optimizer, sharding, state
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.writer import read

STEPS = 20  # of a loop that does nothing but go through the state, which is longer than a save takes to be written


def blocking(size: str, saves: int, folder) -> dict:
  """Saves the state of a model, LAMB's moments included, and measures how long the loop would stand still."""
  mesh = sharding.make_mesh(MeshConfig(), jax.device_count())
  init, key = functools.partial(model.init, VARIANTS[size]), jax.random.key(0)
  tx = optimizer.make(OptimizerConfig(), model.layer_axes(VARIANTS[size], jax.eval_shape(init, key)))
  abstract = state.abstract(init, tx, key)
  shardings = sharding.shardings(mesh, abstract)
  saved, blocked, busy, whole = Checkpoints(folder, 2), [], [], []
  with jax.set_mesh(mesh):
    train_state = jax.block_until_ready(state.create(init, tx, key, shardings))
    saved.open()  # As the loop does.
    for step in range(saves):
      begin, processor = time.perf_counter(), time.thread_time()
      saved.save(step, train_state)
      blocked.append(time.perf_counter() - begin)
      busy.append(time.thread_time() - processor)
      saved.steps()  # Waits until it is written.
      whole.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    jax.block_until_ready(saved.restore(abstract, shardings))
    restored = time.perf_counter() - begin
    costs = _costs(saved, saves, train_state)
  saved.close()
  return {
    "size": size,
    "device": jax.devices()[0].device_kind,
    "state_mb": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)) / 1e6,
    "save_blocks_ms": 1e3 * statistics.median(blocked),
    "save_blocks_ms_first": 1e3 * blocked[0],
    "save_blocks_ms_max": 1e3 * max(blocked[1:]),
    "save_blocks_cpu_ms": 1e3 * statistics.median(busy),  # of the loop's thread: what a crowded machine does not change
    "save_written_ms": 1e3 * statistics.median(whole),
    "save_costs_ms": 1e3 * costs,  # in all: where the device is the host's cores, writing takes them from steps
    "restore_ms": 1e3 * restored,
  }


def _costs(saved, saves, train_state) -> float:
  """How much later, in seconds, a loop is done that begins with a save: the median of as many pairs, in turns."""
  step = jax.jit(lambda state: jax.tree.map(lambda x: -x, state), donate_argnums=0)
  differences = []
  for at in range(saves, 2 * saves):
    seconds = []
    for saving in (False, True):
      begin = time.perf_counter()
      if saving:
        saved.save(at, train_state)
      for _ in range(STEPS):
        train_state = jax.block_until_ready(step(train_state))
      seconds.append(time.perf_counter() - begin)
      saved.steps()  # Waits until it is written.
    differences.append(seconds[1] - seconds[0])
  return statistics.median(differences)


def killed(dataset: str, folder) -> dict:
  """Kills a small run in the middle; measures from its second start until the next step is done."""
  command = [
    sys.executable, "-m", "albert_jax", "train", "--config=configs/pretrain.py:quickstart", f"--workdir={folder}",
    f"--config.data.dataset={dataset}", "--config.log_every=1", "--config.checkpoint_every=5",
  ]  # fmt: skip
  settings = json.loads((pathlib.Path(dataset) / "prepare.json").read_text())
  command.append(f"--config.model.vocab_size={settings['vocabulary']['size']}")
  root = pathlib.Path(__file__).parents[1]
  times = []
  for _ in range(2):
    before, begin = len(_lines(folder)), time.perf_counter()
    with subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL) as process:
      while len(_lines(folder)) <= before and process.poll() is None:
        time.sleep(0.01)
      times.append(time.perf_counter() - begin)
      while max((line["step"] for line in _lines(folder)), default=0) < 12 and process.poll() is None:
        time.sleep(0.01)
      process.kill()
  return {"start_to_first_step_s": times[0], "kill_to_next_step_s": times[1]}


def _lines(folder):
  try:
    return read(folder)
  except ValueError:  # Half written.
    return []


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="base", choices=sorted(VARIANTS))
  parser.add_argument("--saves", type=int, default=8)
  parser.add_argument("--dataset", help="a prepared dataset, to kill a run on it too")
  parser.add_argument("--json", metavar="FILE", help="write the numbers there")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    numbers = blocking(args.size, args.saves, pathlib.Path(folder) / "checkpoints")
    if args.dataset:
      numbers |= killed(args.dataset, pathlib.Path(folder) / "run")
  for name, value in numbers.items():
    print(f"{name:<24}{value:,.1f}" if isinstance(value, float) else f"{name:<24}{value}")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
