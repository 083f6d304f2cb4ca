"""`albert-jax suite`: fine-tunes on several tasks and seeds, and writes one table."""

from albert_jax import files, suites
from albert_jax.commands import common
from albert_jax.errors import UserError


def main(argv: list[str]) -> int:
  parser = common.parser(
    "suite",
    "Fine-tunes a checkpoint on a set of tasks with several seeds, MNLI first, and writes suite.md and suite.json in "
    "the folder of the runs. A repeated command resumes. --config.x=y applies to every run.",
    "albert-jax suite --tasks=glue,squad,race --checkpoint=albert-base-v2 --seeds=5 --data=DIR --out=runs/suite",
  )
  parser.add_argument(
    "--tasks", required=True, help=f"with commas: {', '.join(dict.fromkeys([*suites.GROUPS, *suites.TASKS]))}"
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the checkpoint to fine-tune, of any kind")
  parser.add_argument("--out", required=True, metavar="DIR", help="the folder of all runs")
  parser.add_argument("--seeds", type=int, default=5, help="runs of each task (default 5)")
  official = "official files, in DIR/glue/CoLA …, DIR/squad1.1, DIR/squad2.0, DIR/race; or TASK=DIR, also several times"
  parser.add_argument("--data", action="append", default=[], metavar="DIR", help=f"{official} (default: TFDS)")
  parser.add_argument("--mnli", default="", metavar="DIR", help="a run of MNLI from which RTE, STS-B and MRPC start")
  parser.add_argument("--published", choices=("v1", "v2"), default="v2", help="which weights to compare with (v2)")
  parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
  parser.add_argument("--config.FIELD", metavar="VALUE", dest="override", help="a value for every run")
  overrides = [arg for arg in argv if arg.startswith("--config.")]
  args = parser.parse_args([arg for arg in argv if not arg.startswith("--config.")])
  for fixed in ("seed", "init_from", "data.dataset"):
    if any(arg.startswith(f"--config.{fixed}=") for arg in overrides):
      raise UserError(f"--config.{fixed} is set by the suite; see --seeds, --checkpoint and --data")
  names = [name.strip() for name in args.tasks.split(",") if name.strip()]
  results = suites.suite(names, args.checkpoint, args.out, seeds=args.seeds,
                data=args.data, overrides=overrides, version=args.published, mnli=args.mnli)  # fmt: skip
  print(suites.table(results), end="")
  if args.json:
    files.write_json(args.json, results)
  return 1 if results["failed"] else 0
