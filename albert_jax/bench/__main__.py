"""Runs one stage: `python -m albert_jax.bench FOLDER STAGE UNTIL full|toy`. `albert_jax.bench.bench` starts this."""

import pathlib
import sys

from albert_jax.bench import STAGES, checks, plan, real_runs, speed
from albert_jax.bench.rows import Rows

SIZES = {"full": plan.FULL, "toy": plan.TOY}
FUNCTIONS = {
  function.__name__: function
  for function in (
    speed.machine, checks.correctness, real_runs.resume, speed.train_steps, speed.peers, speed.levers,
    speed.compiler_flags, speed.inference, real_runs.real_run,
  )
}  # fmt: skip


def main(argv: list[str]) -> None:
  """Runs a stage.

  Args:
    argv: the folder, the name of the stage, the time until which rows begin, and the name of the sizes.
  """
  folder, name, until, sizes = argv
  FUNCTIONS[STAGES[name].function](Rows(pathlib.Path(folder), name, float(until)), SIZES[sizes])


if __name__ == "__main__":
  main(sys.argv[1:])
