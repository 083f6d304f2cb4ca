"""What a repeated layer is worth: a grid of small pre-training runs, and the exponent that fits their held-out losses.

  python benchmarks/sharing.py --dataset=DIR --out=FOLDER

The grid: 1, 2, 4 and 8 layers of one width, in each way of sharing (FORMS), with the positions of all runs equal, and
again with the operations of all runs equal to those of 2 layers; each with several seeds. The losses are fitted by

  L = E + A (N_once + r^phi N_looped)^-alpha + B D^-beta

N_looped: parameters that r layers use; N_once: all others but the tables of embeddings; D: positions. phi = 0: using a
layer again is worth nothing; phi = 1: it is worth as much as new parameters. E, A, B, alpha and beta are common to all
forms, and each form has its own phi; its interval comes from drawing the seeds of each cell anew. Each finished run is
a line of FOLDER/runs.jsonl, and is not done again. A run of 1e6 positions takes two minutes of a core of Zen 3 with one
layer, seven with eight that share all, and eleven with eight that share nothing: five hours for the 66 runs of four
forms.

A GPU needs longer to start the kernels of so small a model than to run them, and a processor longer to make the
batches. There use `--workers=8 --seeds_at_once=3 --input_workers=7`: eight processes, in each of which one program
trains all seeds of a cell, and seven that make the batches, which are the same for all cells, once.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil
import time

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import optimize

from albert_jax import VARIANTS, AlbertConfig, curves, files, model, paths, run
from albert_jax.commands import common
from albert_jax.data import datasets
from albert_jax.data.workers import exit_with_parent
from albert_jax.training import flops, held_out, sharding

BASIC = {
  "shared": {"share": "all"},
  "matrices": {"share": "matrices"},
  "unshared": {"share": "none"},
}
# A switch of the model is one row more here.
SWITCHES = {
  "ends": {"share": "all", "unshared_ends": 1},
  "ends+matrices": {"share": "matrices", "unshared_ends": 1},
  "rank 8": {"share": "matrices", "layer_rank": 8},
}
FORMS = {**BASIC, **SWITCHES}
LAYERS = (1, 2, 4, 8)
REFERENCE = 2  # its operations are those of all runs of equal compute
# The layer of pretrain:small, in short rows: the paper's layer in longer rows spends millions of positions on the
# plateau of token frequencies, where all forms have the same loss (docs/background/sharing.md).
LAYER = {"arch": "modern", "intermediate_size": 344}
LENGTH, ROWS, MASK_RATE, SLOTS = 32, 32, 0.3, 10
SETTINGS = {
  "batch_size": ROWS, "data.seq_length": LENGTH, "data.mask_rate": MASK_RATE, "data.max_predictions": SLOTS,
  "data.ngram": 1, "loss.sop_weight": 0.3, "optimizer.name": "muon", "optimizer.learning_rate": 4e-3,
  "optimizer.schedule": "wsd", "optimizer.decay_share": 0.25, "optimizer.b1": 0.95, "optimizer.b2": 0.98,
  "optimizer.weight_decay": 0.1, "eval_batches": 80, "model.remat": "none", "model.attention": "xla",
}  # fmt: skip
CHUNK = 100  # steps whose batches are in one file


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of the grid but for its seed."""

  form: str
  layers: int
  steps: int
  vocab_size: int

  @property
  def model(self) -> AlbertConfig:
    fields = {"num_hidden_layers": self.layers, "vocab_size": self.vocab_size, **LAYER, **FORMS[self.form]}
    return dataclasses.replace(VARIANTS["tiny"], **fields)

  @property
  def positions(self) -> int:
    return self.steps * ROWS * LENGTH

  @property
  def operations(self) -> float:
    return self.steps * flops.flops_per_step(self.model, ROWS, LENGTH, SLOTS)


def grid(positions: float, forms, vocab_size: int) -> list[Cell]:
  """Lists the cells, those with equal positions first; a single layer is the same in all forms, so it stands once."""
  steps = max(1, round(positions / ROWS / LENGTH))
  cells = {Cell("shared", 1, steps, vocab_size): None}
  for form in forms:
    depths = [layers for layers in LAYERS[1:] if layers > 2 * FORMS[form].get("unshared_ends", 0)]
    cells |= {Cell(form, layers, steps, vocab_size): None for layers in depths}
  operations = Cell("shared", REFERENCE, steps, vocab_size).operations
  for cell in list(cells):
    equal = max(1, round(steps * operations / cell.operations))
    cells[dataclasses.replace(cell, steps=equal)] = None
  return list(cells)


def counts(cfg: AlbertConfig) -> tuple[float, float, int]:
  """Counts parameters, without embeddings: (used by one layer, used by several, how many layers use the latter)."""
  once = looped = 0.0
  ends, layers = 2 * cfg.unshared_ends, cfg.num_hidden_layers
  for path, leaf in paths.flatten(model.shapes(cfg)).items():
    part, name = path.split("/")[0], path.rsplit("/", 1)[-1]
    size = int(np.prod(leaf.shape))
    if part in ("attention", "ffn") and (copies := cfg.copies(part, name)) < layers:
      looped += size * (copies - ends) / copies
      once += size * ends / copies
    elif part != "embeddings" and path != "mlm/bias":
      once += size
  return once, looped, layers - ends


def fit(cells: list[Cell], losses: np.ndarray) -> dict[str, float]:
  """Fits the law to one loss a cell.

  Args:
    cells: of the grid.
    losses: [cells], nats a masked token.

  Returns:
    {"phi_FORM": its exponent, …, "E": …, "alpha": …, "beta": …, "rms": of what is left, in nats}.
  """
  once, looped, loops = np.array([counts(cell.model) for cell in cells], float).T
  positions = np.array([cell.positions for cell in cells], float)
  looped_forms = sorted({cell.form for cell, size in zip(cells, looped, strict=True) if size})
  which = np.array([looped_forms.index(cell.form) if size else 0 for cell, size in zip(cells, looped, strict=True)])
  scale = (once + looped).mean(), positions.mean()

  def left(values):
    floor, a, alpha, b, beta, *phi = values
    size = once + loops ** np.array([*phi, 0.0])[which] * looped
    return floor + a * (size / scale[0]) ** -alpha + b * (positions / scale[1]) ** -beta - losses

  start = [losses.min() / 2, losses.min() / 4, 0.3, losses.min() / 4, 0.3, *[0.5] * len(looped_forms)]
  low = [0, 0, 0.01, 0, 0.01, *[-1] * len(looped_forms)]
  high = [losses.min(), 20, 3, 20, 3, *[2] * len(looped_forms)]
  best = optimize.least_squares(left, start, bounds=(low, high), max_nfev=5000)
  result = {f"phi_{form}": phi for form, phi in zip(looped_forms, best.x[5:], strict=True)}
  return {**result, "E": best.x[0], "alpha": best.x[2], "beta": best.x[4], "rms": float(np.sqrt(np.mean(best.fun**2)))}


def interval(cells: list[Cell], losses: list[list[float]], draws: int = 200) -> dict[str, tuple[float, float]]:
  """Returns the middle 90 % of each fitted number when each cell's seeds are drawn anew.

  Args:
    cells: of the grid.
    losses: for each cell, one a seed.
    draws: how often.

  Returns:
    {name: (5th percentile, 95th percentile)}.
  """
  rng = np.random.default_rng(0)
  fits = [fit(cells, np.array([rng.choice(row, len(row)).mean() for row in losses])) for _ in range(draws)]
  return {name: tuple(np.percentile([sample[name] for sample in fits], (5, 95))) for name in fits[0]}


def configure(cell: Cell, seed: int, dataset: str) -> ConfigDict:
  """Returns the config of one run."""
  config = common.load_config("pretrain:tiny")
  config.update_from_flattened_dict({
    **SETTINGS, **{f"model.{name}": value for name, value in {**LAYER, **FORMS[cell.form]}.items()},
    "model.num_hidden_layers": cell.layers, "steps": cell.steps, "optimizer.warmup_steps": min(100, cell.steps // 10),
    "seed": seed, "data.dataset": dataset,
  })  # fmt: skip
  return config


def _chunk(folder: pathlib.Path, seed: int, number: int) -> pathlib.Path:
  return folder / f"seed_{seed}" / f"{number}.npz"


@functools.cache
def _task(cell, seed, dataset):
  return run.settle(configure(cell, seed, dataset), "").task


def write_batches(cell: Cell, seed: int, number: int, dataset: str, folder: pathlib.Path) -> None:
  """Writes the batches of CHUNK steps, stacked, to a file; all cells of a seed read the same ones."""
  path = _chunk(folder, seed, number)
  if path.exists():
    return
  batches = list(itertools.islice(_task(cell, seed, dataset).train_batches(number * CHUNK, 0, 1), CHUNK))
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.writing(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, **{name: np.stack([batch[name] for batch in batches]) for name in batches[0]})


def _start() -> None:
  """Prepares a worker: it ends with its parent, and keeps the memory of a step as `albert-jax train` does."""
  exit_with_parent()
  common.keep_memory()


def _on_the_host() -> None:
  exit_with_parent()
  jax.config.update("jax_platforms", "cpu")  # Batches need no accelerator.


def read_batches(seed: int, folder: pathlib.Path):
  """Yields the batches that other processes write, and waits for them."""
  for number in itertools.count():
    path = _chunk(folder, seed, number)
    while not path.exists():
      time.sleep(0.02)
    with np.load(path) as file:
      stacked = dict(file)
    for i in range(CHUNK):
      yield {name: array[i] for name, array in stacked.items()}


def train(cell: Cell, seeds: tuple[int, ...], dataset: str, batches: pathlib.Path | None = None) -> list[dict]:
  """Trains one cell with some seeds, in one program, and evaluates it at the end.

  Args:
    cell: of the grid.
    seeds: of the parameters and of the order of the data.
    dataset: made by albert-jax prepare.
    batches: the folder in which other processes write the batches; None: this process makes them.

  Returns:
    For each seed, the line of runs.jsonl.
  """
  begin = time.perf_counter()
  settled = [run.settle(configure(cell, seed, dataset), "") for seed in seeds]
  mesh, stage = settled[0].mesh, settled[0].stages[0]
  several = len(seeds) > 1

  def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if several else trees[0]

  step = stage.train_step
  if several:
    step = jax.jit(jax.vmap(step.__wrapped__, (0, 0, None)), donate_argnums=0)
  with jax.set_mesh(mesh):
    state = jax.device_put(stack([jax.device_get(each.create_state()) for each in settled]))
    streams = [
      read_batches(seed, batches) if batches else iter(each.task.train_batches(0, 0, 1))
      for seed, each in zip(seeds, settled, strict=True)
    ]
    first = 0.0
    for number in range(cell.steps):
      batch = stack([next(stream) for stream in streams])
      batch = jax.device_put(batch) if several else sharding.global_batch(mesh, batch)
      state, _ = step(state, batch, sharding.everywhere(mesh, stage.rate(number)))
      if number == min(10, cell.steps - 1):
        jax.block_until_ready(state)
        first = time.perf_counter()
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - first) / max(1, cell.steps - 11)
    lines = []
    for i, seed in enumerate(seeds):
      params = settled[i].eval_params(jax.tree.map(lambda x, i=i: x[i], state) if several else state)
      metrics, _ = held_out.evaluate(stage.eval_step, settled[i].task.eval_batches(0, 1), params, mesh)
      about = {**dataclasses.asdict(cell), "seed": seed, "device": jax.devices()[0].device_kind}
      about |= {"step_seconds": seconds, "seconds": time.perf_counter() - begin, "seeds_at_once": len(seeds)}
      lines.append({**about, **{name: float(value) for name, value in metrics.items()}})
  return lines


def read_runs(folder: pathlib.Path) -> dict[tuple[Cell, int], dict]:
  """Reads the finished runs: {(cell, seed): line}."""
  path = folder / "runs.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  names = [field.name for field in dataclasses.fields(Cell)]
  return {(Cell(*(line[name] for name in names)), line["seed"]): line for line in lines}


def run_all(
  cells: list[Cell], seeds: int, at_once: int, workers: int, input_workers: int, dataset: str, folder: pathlib.Path
) -> None:
  """Does the runs that are not done yet, the seeds of all cells one after the other, and writes a line for each."""
  done = read_runs(folder)
  groups = [tuple(range(first, min(first + at_once, seeds))) for first in range(0, seeds, at_once)]
  # Long runs first, so that all processes end at about the same time; the switches when all else is done.
  order = sorted(cells, key=lambda cell: -cell.steps * (cell.layers + 2))
  jobs = [
    (cell, left)
    for is_switch in (False, True) for group in groups for cell in order if (cell.form in SWITCHES) == is_switch
    if (left := tuple(seed for seed in group if (cell, seed) not in done))
  ]  # fmt: skip
  if not jobs:
    return
  count, total, begin = len(done), len(done) + sum(len(left) for _, left in jobs), time.perf_counter()
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # The processes share the accelerator's memory.
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), context, _start)
  failures = 0
  batches, makers, written = None, contextlib.nullcontext(), []
  if input_workers:
    batches = folder / "batches"
    shutil.rmtree(batches, ignore_errors=True)
    makers = concurrent.futures.ProcessPoolExecutor(input_workers, context, _on_the_host)
    longest = max(cell.steps for cell, _ in jobs)
    needed = sorted({seed for _, left in jobs for seed in left})
    written = [
      makers.submit(write_batches, cells[0], seed, number, dataset, batches)
      for number in range(-(-longest // CHUNK)) for seed in needed
    ]  # fmt: skip
  with makers, pool, (folder / "runs.jsonl").open("a") as file:
    futures = {pool.submit(train, cell, left, dataset, batches): cell for cell, left in jobs}
    try:
      for future in concurrent.futures.as_completed([*futures, *written]):
        if future not in futures:
          future.result()  # The runs wait for what a failed one would have made.
          continue
        if future.exception():
          print(f"failed: {futures[future]}: {future.exception()!r:.2000}", flush=True)
          failures += 1
          if failures > count - len(done):  # More than succeeded so far: no chance failure.
            raise SystemExit(1)
          continue
        for line in future.result():
          print(json.dumps(line), file=file, flush=True)
          count += 1
          name = f"{line['form']}, {line['layers']} layers, {line['steps']} steps, seed {line['seed']}"
          seconds = f"{line['seconds']:.0f} s, {time.perf_counter() - begin:.0f} s since the start"
          print(f"{count:>4}/{total}  {name}: {line['mlm_loss']:.3f}  ({seconds})", flush=True)
    except BaseException:
      for process in multiprocessing.active_children():
        process.terminate()
      raise
    finally:
      if batches:
        shutil.rmtree(batches, ignore_errors=True)


def comparable(losses: dict[tuple[Cell, int], float], cells: list[Cell]) -> dict[Cell, list[float]]:
  """Takes the difference between seeds out of the losses, so that a cell without some seeds can be compared.

  Each seed has its own data and its own masks in evaluation, the same for all cells. Its difference is the mean over
  those cells of equal positions that all seeds have.

  Args:
    losses: {(cell, seed): held-out loss}.
    cells: of the grid.

  Returns:
    {cell: [the loss of each seed, in the order of the seeds]}.
  """
  seeds = sorted({seed for _, seed in losses})
  common = [cell for cell in cells if cell.steps == cells[0].steps and all((cell, seed) in losses for seed in seeds)]
  table = np.array([[losses[cell, seed] for seed in seeds] for cell in common]).reshape(-1, len(seeds))
  difference = table.mean(axis=0) - table.mean() if common else np.zeros(len(seeds))
  return {
    cell: [losses[cell, seed] - shift for seed, shift in zip(seeds, difference, strict=True) if (cell, seed) in losses]
    for cell in cells
  }


def draw(cells, losses, path):
  """Two pictures: held-out loss against parameters and against operations, a line a form."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 4), layout="constrained")
  axes = figure.subplots(1, 2, sharey=True)
  steps = cells[0].steps
  for i, form in enumerate(dict.fromkeys(cell.form for cell in cells)):
    for axis, value in zip(axes, (lambda cell: sum(counts(cell.model)[:2]), lambda cell: cell.operations), strict=True):
      points = [(value(cell), np.mean(row)) for cell, row in zip(cells, losses, strict=True)
             if cell.steps == steps and (cell.form == form or cell.layers == 1)]  # fmt: skip
      axis.plot(*zip(*sorted(points), strict=True), "o-", label=form, color=curves.COLOURS[i % len(curves.COLOURS)])
      axis.set_xscale("log")
    axis.tick_params(axis="x", which="both", labelsize=7)
  axes[0].set(xlabel="parameters", ylabel="held-out loss, nats")
  axes[1].set(xlabel="operations of training")
  axes[1].legend()
  figure.savefig(path)


def report(cells: list[Cell], runs: dict[tuple[Cell, int], dict], folder: pathlib.Path) -> None:
  """Prints the table of the finished runs, made `comparable`, and the fit; writes sharing.json and sharing.svg."""
  rows = comparable({key: line["mlm_loss"] for key, line in runs.items() if key[0] in cells}, cells)
  missing = [cell for cell in cells if not rows[cell]]
  cells, losses = [cell for cell in cells if rows[cell]], [row for row in rows.values() if row]
  print(
    f"\n{'form':<14}{'layers':>7}{'steps':>8}{'parameters':>12}{'PFLOP':>8}{'loss':>8}{'least':>8}{'most':>8}{'runs':>6}"
  )
  for cell, row in zip(cells, losses, strict=True):
    print(f"{cell.form:<14}{cell.layers:>7}{cell.steps:>8}{sum(counts(cell.model)[:2]):>12,.0f}", end="")
    print(f"{cell.operations / 1e15:>8.2f}{np.mean(row):>8.3f}{min(row):>8.3f}{max(row):>8.3f}{len(row):>6}")
  if missing:
    print(f"without runs, and so not in the fit: {len(missing)} cells")
  record = {"cells": [dataclasses.asdict(cell) for cell in cells], "losses": losses}
  # Without the runs of other lengths the law has less to explain, and B D^-beta is a constant.
  for title, chosen in {
    "all cells": list(range(len(cells))),
    "cells of equal positions": [i for i, cell in enumerate(cells) if cell.steps == cells[0].steps],
  }.items():
    of_fit = [cells[i] for i in chosen], [losses[i] for i in chosen]
    fitted, ranges = fit(of_fit[0], np.array([np.mean(row) for row in of_fit[1]])), interval(*of_fit)
    record[title] = {"fit": fitted, "intervals": ranges}
    print(f"\n{title}")
    for name, value in fitted.items():
      print(f"{name:<14}{value:>8.3f}   90 %: {ranges[name][0]:.3f} to {ranges[name][1]:.3f}")
  files.write(folder / "sharing.json", json.dumps(record, indent=2).encode())
  draw(cells, losses, folder / "sharing.svg")


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dataset", required=True, metavar="DIR", help="made by albert-jax prepare")
  parser.add_argument("--out", required=True, metavar="DIR", help="where runs.jsonl, sharing.json and sharing.svg go")
  parser.add_argument("--positions", type=float, default=1e6, help="of a run of equal positions (default 1e6)")
  parser.add_argument("--forms", default=",".join(FORMS), help=f"of {', '.join(FORMS)} (default all)")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--workers", type=int, default=1, help="processes side by side (default 1)")
  parser.add_argument("--seeds_at_once", type=int, default=1, help="seeds that one program trains (default 1)")
  parser.add_argument("--input_workers", type=int, default=0, help="processes that make the batches of all runs once, "
                      "in DIR/batches (default 0: each run makes its own)")  # fmt: skip
  parser.add_argument("--report", action="store_true", help="train nothing: report the runs that are there")
  args = parser.parse_args()
  forms = args.forms.split(",")
  if unknown := [form for form in forms if form not in FORMS]:
    parser.error(f"--forms={unknown[0]} is unknown; use of {', '.join(FORMS)}")
  folder = pathlib.Path(args.out).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  cells = grid(args.positions, forms, datasets.tokenizer(args.dataset).vocab_size)
  print(f"{len(cells) * args.seeds} runs: {len(cells)} cells of {args.seeds} seeds", flush=True)
  if not args.report:
    run_all(cells, args.seeds, args.seeds_at_once, args.workers, args.input_workers, args.dataset, folder)
  report(cells, read_runs(folder), folder)


if __name__ == "__main__":
  main()
