"""How long a training step takes: ours, a plain JAX version of the same model, and Hugging Face's in PyTorch.

  pip install -e '.[parity]'
  python benchmarks/train_step.py --size=base --batch=8 --length=128

All begin with the same weights and batch, dropout 0, AdamW with clipping; their losses must agree over three steps
before anything is timed. Each has a process of its own, as its user would start it: ours as `albert-jax train` does,
with memory kept between steps (keep_memory), which the best of the others are also shown with. They take turns, one
step each, so that a machine that slows down slows all of them.

  python benchmarks/train_step.py --dtypes=float32 --virtual 2 4 8 --only=albert_jax

What sharding costs: the same batch on one CPU device and on several virtual ones, which share its cores.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from albert_jax import VARIANTS, convert, model
from albert_jax.bench.contestants import TORCH, Ours, make_batch, plain, temporaries_gib, torch_step
from albert_jax.planning import flops_per_step

KEPT = ", memory kept"
VIRTUAL = " on virtual devices: "


def contestants(dtypes, peers, virtual) -> list[str]:
  """Returns their names, which say what they are: see `made`."""
  names = []
  for dtype in dtypes:
    names += [f"albert_jax {dtype}", *(f"albert_jax {dtype}{VIRTUAL}{n}" for n in virtual)]
    names += [f"plain JAX {dtype}", f"plain JAX {dtype}{KEPT}"]
    names += [*(f"PyTorch {name} {dtype}" for name in TORCH), f"PyTorch compile {dtype}{KEPT}"] if peers else []
  return names


def made(name, folder, batch):
  """Returns the contestant's (run, GiB of temporaries or None): `run` takes a step and gives the loss."""
  dtype = dtype_of(name)
  if name.startswith("PyTorch "):
    kind = name.removeprefix("PyTorch ").removesuffix(KEPT).removesuffix(f" {dtype}")
    return torch_step(folder, batch, dtype, *TORCH[kind]), None
  devices = int(name.partition(VIRTUAL)[2] or 1)
  if devices > 1:
    jax.config.update("jax_num_cpu_devices", devices)
  cfg, params = convert.load(folder)
  # transformers drops out before the SOP head too, which the original does not.
  cfg = dataclasses.replace(cfg, dtype=dtype)
  if name.startswith("albert_jax"):
    step = Ours(cfg, params, batch, devices=jax.devices()[:devices])
    return step, temporaries_gib(step.compiled)
  step, compiled = plain(cfg, params, batch)
  return step, temporaries_gib(compiled)


def dtype_of(name) -> str:
  return "bfloat16" if "bfloat16" in name else "float32"


class Worker:
  """A contestant in a process of its own."""

  def __init__(self, name, folder, argv):
    start = (
      "from albert_jax.commands import common; common.keep_memory(); "
      if name.startswith("albert_jax") or KEPT in name
      else ""
    )
    start += "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", start, __file__, *argv, f"--worker={name}", f"--folder={folder}"]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.about = self._read()

  def step(self) -> float:
    """Seconds of one step."""
    return self._ask("step")

  def peak_gib(self) -> float:
    """Returns the most memory the process has had: libraries, weights and all."""
    return self._ask("peak")

  def close(self):
    self._process.communicate()

  def _ask(self, what):
    print(what, file=self._process.stdin, flush=True)
    return self._read()

  def _read(self):
    while line := self._process.stdout.readline():
      if line.startswith("> "):  # Libraries may print too.
        return json.loads(line[2:])
    raise SystemExit(f"a contestant ended with {self._process.wait()}: see above")


def serve(name, folder, batch):
  """What a worker does: gets ready, then a step for each line it reads."""

  def answer(value):
    print(f"> {json.dumps(value)}", flush=True)

  run, gib = made(name, folder, batch)
  answer({"losses": [run() for _ in range(3)], "temp_gib": gib})
  for line in sys.stdin:
    if line.strip() == "peak":
      answer(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    else:
      start = time.perf_counter()
      run()
      answer(time.perf_counter() - start)


def matmul_ceiling(dtype, size=2048) -> float:
  """FLOP/s of one large matrix product, the best of JAX and, if it is there, PyTorch."""
  x = jnp.ones((size, size), dtype)
  product = jax.jit(lambda x: x @ x)
  runs = [lambda: product(x).block_until_ready()]
  try:
    import torch

    if not torch.cuda.is_available():
      y = torch.ones(size, size, dtype=getattr(torch, dtype))
      runs.append(lambda: y @ y)
  except ImportError:
    pass
  best = 0.0
  for run in runs:
    run()
    for _ in range(5):
      start = time.perf_counter()
      run()
      best = max(best, 2 * size**3 / (time.perf_counter() - start))
  return best


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="base", choices=VARIANTS)
  parser.add_argument("--batch", type=int, default=8, help="rows (default 8)")
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--slots", type=int, help="masked slots a row (default 15 %% of the length)")
  parser.add_argument("--steps", type=int, default=20, help="timed steps of each (default 20)")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--only", default="", metavar="REGEX", help="those in whose name it is found (default all)")
  parser.add_argument("--virtual", type=int, nargs="+", default=[], metavar="N", help="ours on N CPU devices too")
  parser.add_argument("--no-peers", action="store_true", help="without PyTorch")
  parser.add_argument("--json", metavar="FILE")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  args = parser.parse_args()
  # On a GPU, where JAX would else take most of the memory for whichever process comes first.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  slots = args.slots or round(0.15 * args.length)
  cfg = dataclasses.replace(VARIANTS[args.size], classifier_dropout_prob=0.0)
  batch = make_batch(cfg, args.batch, args.length, slots)
  if args.worker:
    serve(args.worker, args.folder, batch)
    return
  flops = flops_per_step(cfg, args.batch, args.length, slots)
  if args.virtual and jax.default_backend() != "cpu":
    parser.error(f"--virtual is for CPUs, and this is a {jax.default_backend()}; set JAX_PLATFORMS=cpu")
  everyone = contestants(args.dtypes.split(","), not args.no_peers, args.virtual)
  names = [name for name in everyone if re.search(args.only, name)]
  if not names:
    parser.error(f"--only={args.only} is found in none of: {', '.join(everyone)}")

  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    convert.save(pathlib.Path(folder) / "model", cfg, jax.device_get(model.init(cfg, jax.random.key(0))))
    workers = {}
    for name in names:
      start = time.perf_counter()
      workers[name] = Worker(name, f"{folder}/model", sys.argv[1:])
      stack.callback(workers[name].close)
      print(f"{name}: ready in {time.perf_counter() - start:.1f} s, losses {workers[name].about['losses']}", flush=True)
    for name, worker in workers.items():
      dtype = dtype_of(name)
      reference = next(w.about["losses"] for other, w in workers.items() if dtype_of(other) == dtype)
      rtol = 1e-4 if dtype == "float32" else 1e-2
      np.testing.assert_allclose(worker.about["losses"], reference, rtol=rtol, err_msg=name)
    times = {name: [] for name in workers}
    for _ in tqdm.trange(args.steps, desc="steps of each"):
      for name, worker in workers.items():
        times[name].append(worker.step())
    peaks = {name: worker.peak_gib() for name, worker in workers.items()}
  ceiling = {dtype: matmul_ceiling(dtype) for dtype in args.dtypes.split(",")}
  base = np.median(next(iter(times.values())))
  rows = [
    {
      "name": name, "ms": 1e3 * np.median(seconds), "ms_p10": 1e3 * np.quantile(seconds, 0.1),
      "ms_p90": 1e3 * np.quantile(seconds, 0.9), "rows_per_s": args.batch / np.median(seconds),
      "share_of_matmul_ceiling": flops / np.median(seconds) / ceiling[dtype_of(name)],
      "temp_gib": workers[name].about["temp_gib"], "peak_gib": peaks[name], "times_first": np.median(seconds) / base,
    }
    for name, seconds in times.items()
  ]  # fmt: skip
  print(f"\n{args.size}, {args.batch} rows of {args.length}, {slots} masked, {args.steps} steps each, in turns")
  print(f"{'':<44}{'ms':>9}{'p10':>9}{'p90':>9}{'rows/s':>8}{'ceiling':>9}{'GiB':>7}{'peak':>7}{'x first':>9}")
  for row in rows:
    gib = "" if row["temp_gib"] is None else f"{row['temp_gib']:.2f}"
    print(
      f"{row['name']:<44}{row['ms']:>9.1f}{row['ms_p10']:>9.1f}{row['ms_p90']:>9.1f}{row['rows_per_s']:>8.2f}"
      f"{row['share_of_matmul_ceiling']:>9.1%}{gib:>7}{row['peak_gib']:>7.2f}{row['times_first']:>9.2f}"
    )
  if args.json:
    about = {"size": args.size, "batch": args.batch, "length": args.length, "slots": slots, "flops": flops,
             "matmul_ceiling": ceiling, "device": jax.devices()[0].device_kind}  # fmt: skip
    pathlib.Path(args.json).write_text(json.dumps({**about, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
  main()
