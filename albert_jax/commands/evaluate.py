"""`albert-jax evaluate`: computes the held-out metrics of a checkpoint, as JSON."""

import json

from albert_jax import evaluation, files, tasks
from albert_jax.commands import common
from albert_jax.errors import UserError


def score_predictions(argv: list[str]) -> None:
  """Runs `evaluate --task=… --predictions=FILE --gold=FILE`, without model and config."""
  parser = common.parser(
    "evaluate",
    "Scores answers of another program and prints the metrics as one JSON object.",
    "albert-jax evaluate --task=glue --predictions=SST-2.tsv --gold=glue_data/SST-2/dev.tsv",
  )
  parser.add_argument("--task", required=True, choices=tasks.scorers(), help="the task of the answers")
  parser.add_argument("--predictions", required=True, metavar="FILE", help="the answers")
  parser.add_argument(
    "--gold", required=True, metavar="FILE", help="the right answers, in the format of the task's data"
  )
  parser.add_argument("--null_odds", metavar="FILE", help="squad: how sure each question has no answer, by its id")
  parser.add_argument("--json", metavar="FILE", help="write the JSON there too")
  args = parser.parse_args(argv)
  if args.null_odds and args.task != "squad":
    raise UserError(f"--null_odds is for --task=squad, not {args.task}")
  more = {"null_odds": args.null_odds} if args.null_odds else {}
  _print(tasks.scorers()[args.task](args.predictions, args.gold, **more), args.json)


def _print(numbers, file):
  print(json.dumps(numbers))
  if file:
    files.write_json(file, numbers, indent=None)


def main(argv: list[str]) -> None:
  if any(arg.startswith("--predictions") for arg in argv):
    score_predictions(argv)
    return
  parser = common.parser(
    "evaluate",
    "Computes the held-out metrics of a checkpoint and prints them as one JSON object. To score answers of another "
    "program, give --task=TASK --predictions=FILE --gold=FILE, where TASK is one of "
    f"{', '.join(tasks.scorers())}.",
    "albert-jax evaluate --checkpoint=RUN",
  )
  parser.add_argument(
    "--checkpoint",
    required=True,
    metavar="DIR",
    help="a complete run, whose own config is used if there is no --config, or a checkpoint of any kind",
  )
  parser.add_argument("--json", metavar="FILE", help="write the JSON there too")
  parser.add_argument("--out", metavar="DIR", help="write the answers there, in the standard format of the task")
  args, config = common.parse_with_config(parser, argv, lambda args: evaluation.recorded_config(args.checkpoint))
  names = [arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")]
  common.refuse_structure(config, names, args.checkpoint, f"--checkpoint={args.checkpoint}")
  _print(evaluation.evaluate(config, args.checkpoint, args.out, overrides=names), args.json)
