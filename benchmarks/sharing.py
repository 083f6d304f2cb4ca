"""What a repeated layer is worth: a grid of small pre-training runs, and the exponent that fits their held-out losses.

  python benchmarks/sharing.py --dataset=DIR --out=FOLDER

The grid: 1, 2, 4 and 8 layers of one width, in each way of sharing (FORMS), with the positions of all runs equal, and
again with the operations of all runs equal to those of 4 layers; each with several seeds. The losses are fitted by

  L = E + A (N_once + r^phi N_looped)^-alpha + B D^-beta

N_looped: parameters that r layers use; N_once: all others but the tables of embeddings; D: positions. phi = 0: using a
layer again is worth nothing; phi = 1: it is worth as much as new parameters. E, A, B, alpha and beta are common to all
forms, and each form has its own phi; its interval comes from drawing the seeds of each cell anew. Every run is an
`albert-jax train` of its own, and what is done is not done again. With the defaults there are 51 runs; at the 9,700
positions a second that one core of a Zen 4 took for 4 layers they need about 6 hours of one core.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
from scipy import optimize

from albert_jax import VARIANTS, AlbertConfig, curves, files, model, paths
from albert_jax.data import datasets
from albert_jax.training import flops, writer

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A switch of the model is one row more here.
FORMS = {
  "shared": {"share": "all"},
  "matrices": {"share": "matrices"},
  "unshared": {"share": "none"},
}
LAYERS = (1, 2, 4, 8)
REFERENCE = 4  # its operations are those of all runs of equal compute
LENGTH, ROWS, MASK_RATE, SLOTS = 128, 32, 0.3, 40
SETTINGS = {
  "batch_size": ROWS, "data.seq_length": LENGTH, "data.mask_rate": MASK_RATE, "data.max_predictions": SLOTS,
  "optimizer.name": "muon", "optimizer.learning_rate": 3e-3, "optimizer.schedule": "wsd", "optimizer.decay_share": 0.25,
  "optimizer.weight_decay": 0.01, "eval_batches": 40, "log_every": 100,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of the grid but for its seed."""

  form: str
  layers: int
  steps: int
  vocab_size: int

  @property
  def model(self) -> AlbertConfig:
    fields = {"num_hidden_layers": self.layers, "vocab_size": self.vocab_size, **FORMS[self.form]}
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
  cells |= {Cell(form, layers, steps, vocab_size): None for form in forms for layers in LAYERS[1:]}
  operations = Cell("shared", REFERENCE, steps, vocab_size).operations
  for cell in list(cells):
    equal = max(1, round(steps * operations / cell.operations))
    cells[dataclasses.replace(cell, steps=equal)] = None
  return list(cells)


def counts(cfg: AlbertConfig) -> tuple[int, int, int]:
  """Counts parameters, without embeddings: (used once, used by several layers, how many layers use the latter)."""
  once = looped = 0
  for path, leaf in paths.flatten(model.shapes(cfg)).items():
    part, name = path.split("/")[0], path.rsplit("/", 1)[-1]
    if part in ("attention", "ffn") and cfg.copies(part, name) < cfg.num_hidden_layers:
      looped += int(np.prod(leaf.shape))
    elif part != "embeddings" and path != "mlm/bias":
      once += int(np.prod(leaf.shape))
  return once, looped, cfg.num_hidden_layers


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


def interval(cells: list[Cell], losses: np.ndarray, draws: int = 200) -> dict[str, tuple[float, float]]:
  """Returns the middle 90 % of each fitted number when each cell's seeds are drawn anew.

  Args:
    cells: of the grid.
    losses: [cells, seeds].
    draws: how often.

  Returns:
    {name: (5th percentile, 95th percentile)}.
  """
  rng = np.random.default_rng(0)
  picks = rng.integers(0, losses.shape[1], (draws, *losses.shape))
  fits = [fit(cells, np.take_along_axis(losses, pick, 1).mean(1)) for pick in picks]
  return {name: tuple(np.percentile([sample[name] for sample in fits], (5, 95))) for name in fits[0]}


def train(cell: Cell, seed: int, dataset: str, folder: pathlib.Path) -> float:
  """Trains one cell with one seed, unless that was done before; returns its held-out loss."""
  workdir = folder / f"{cell.form}-{cell.layers}-{cell.steps}-seed{seed}"
  settings = {
    **SETTINGS, **{f"model.{name}": value for name, value in FORMS[cell.form].items()},
    "model.num_hidden_layers": cell.layers, "steps": cell.steps, "optimizer.warmup_steps": min(100, cell.steps // 10),
    "eval_every": cell.steps, "checkpoint_every": cell.steps, "seed": seed, "data.dataset": dataset,
  }  # fmt: skip
  if not (workdir / "export").exists():
    command = [sys.executable, "-m", "albert_jax", "train", "--config=pretrain:tiny", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    log = folder / f"{workdir.name}.log"
    with log.open("w") as file:
      if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-2000:]}")
  return [line["mlm_loss"] for line in writer.read(workdir) if line["split"] == "eval"][-1]


def draw(cells, losses, path):
  """Two pictures: held-out loss against parameters and against operations, a line a form."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 4), layout="constrained")
  axes = figure.subplots(1, 2, sharey=True)
  steps = cells[0].steps
  for i, form in enumerate(dict.fromkeys(cell.form for cell in cells)):
    for axis, value in zip(axes, (lambda cell: sum(counts(cell.model)[:2]), lambda cell: cell.operations), strict=True):
      points = [(value(cell), rows.mean()) for cell, rows in zip(cells, losses, strict=True)
             if cell.steps == steps and (cell.form == form or cell.layers == 1)]  # fmt: skip
      axis.plot(*zip(*sorted(points), strict=True), "o-", label=form, color=curves.COLOURS[i % len(curves.COLOURS)])
      axis.set_xscale("log")
  axes[0].set(xlabel="parameters", ylabel="held-out loss, nats")
  axes[1].set(xlabel="operations of training")
  axes[1].legend()
  figure.savefig(path)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dataset", required=True, metavar="DIR", help="made by albert-jax prepare")
  parser.add_argument("--out", required=True, metavar="DIR", help="where the runs, sharing.json and sharing.svg go")
  parser.add_argument("--positions", type=float, default=4e6, help="of a run of equal positions (default 4e6)")
  parser.add_argument("--forms", default=",".join(FORMS), help=f"of {', '.join(FORMS)} (default all)")
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  forms = args.forms.split(",")
  if unknown := [form for form in forms if form not in FORMS]:
    parser.error(f"--forms={unknown[0]} is unknown; use of {', '.join(FORMS)}")
  folder = pathlib.Path(args.out).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  cells = grid(args.positions, forms, datasets.tokenizer(args.dataset).vocab_size)
  print(f"{len(cells) * args.seeds} runs: {len(cells)} cells of {args.seeds} seeds\n")
  print(f"{'form':<10}{'layers':>7}{'steps':>8}{'parameters':>12}{'PFLOP':>8}{'loss':>8}{'least':>8}{'most':>8}")
  losses = np.zeros((len(cells), args.seeds))
  for i, cell in enumerate(cells):
    losses[i] = [train(cell, seed, args.dataset, folder) for seed in range(args.seeds)]
    row = losses[i]
    print(f"{cell.form:<10}{cell.layers:>7}{cell.steps:>8}{sum(counts(cell.model)[:2]):>12,}", end="")
    print(f"{cell.operations / 1e15:>8.2f}{row.mean():>8.3f}{row.min():>8.3f}{row.max():>8.3f}", flush=True)
  fitted, ranges = fit(cells, losses.mean(1)), interval(cells, losses)
  print()
  for name, value in fitted.items():
    print(f"{name:<14}{value:>8.3f}   90 %: {ranges[name][0]:.3f} to {ranges[name][1]:.3f}")
  record = {"cells": [dataclasses.asdict(cell) for cell in cells], "losses": losses.tolist(), "fit": fitted}
  files.write(folder / "sharing.json", json.dumps({**record, "intervals": ranges}, indent=2).encode())
  draw(cells, losses, folder / "sharing.svg")


if __name__ == "__main__":
  main()
