"""Prints what a speedrun reached as a row of docs/leaderboard.md. launch/speedrun.sh calls it.

python benchmarks/leaderboard_row.py runs/speedrun --prepare_seconds=60 --train_seconds=600
"""

import argparse
import json
import os
import pathlib
import shlex

from albert_jax.training import duration

COLUMNS = (
  "date", "revision", "hardware", "minutes: data, training", "parameters", "positions", "held-out loss", "nats an hour",
  "sentence order", "seed", "flags",
)  # fmt: skip


def row(card: dict, heldout: dict, baseline: float, parameters: int, prepare: float, train: float) -> list[str]:
  """Returns the cells of a run's row.

  Args:
    card: the contents of run.json.
    heldout: what `albert-jax evaluate` printed.
    baseline: held-out loss of token frequencies alone, nats.
    parameters: of the model.
    prepare, train: seconds for vocabulary and dataset, and for the training from its start, compiling included.
  """
  config = card["config"]
  parts = duration.parts(
    config["curriculum"], config["batch_size"], config["data"]["seq_length"], config["model"]["num_hidden_layers"]
  )
  positions = config["steps"] * sum((p.end - p.begin) * p.batch_size * p.seq_length for p in parts)
  hardware = ", ".join(f"{count} x {kind}" for kind, count in card["devices"].items())
  if "cpu" in card["devices"]:
    hardware = f"{len(os.sched_getaffinity(0))} cores"
  flags = [flag for flag in card["command"] if flag.startswith("--config.") and "data.dataset=" not in flag]
  return [
    card["started"][:10], (card["code"].get("revision") or card["code"]["version"])[:7], hardware,
    f"{prepare / 60:.1f}, {train / 60:.1f}", f"{parameters:,}", f"{positions / 1e6:.1f} M",
    f"{heldout['mlm_loss']:.3f}", f"{(baseline - heldout['mlm_loss']) / (train / 3600):.2f}",
    f"{heldout['sop_accuracy']:.3f}", str(config["seed"]), shlex.join(flags),
  ]  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("out", type=pathlib.Path, help="the --out of launch/speedrun.sh")
  parser.add_argument("--prepare_seconds", type=float, required=True)
  parser.add_argument("--train_seconds", type=float, required=True)
  args = parser.parse_args()

  def read(name):
    return json.loads((args.out / name).read_text())

  baseline = read("data/prepare.json")["baselines"]["unigram_loss"]
  cells = row(read("run/run.json"), read("heldout.json"), baseline, parameters(args.out / "run"), args.prepare_seconds,
              args.train_seconds)  # fmt: skip
  print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n| {' | '.join(cells)} |")
  print(f"\nToken frequencies alone: {baseline:.3f}. To add a row, see docs/leaderboard.md.")


def parameters(run: pathlib.Path) -> int:
  """Returns how many parameters a run's exported model has."""
  from albert_jax import convert, model

  return model.param_count(convert.load(run / "export")[1])


if __name__ == "__main__":
  main()
