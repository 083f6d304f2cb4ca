"""`albert-jax audit`: shows what a model will see of a dataset, and what is out of range."""

import json
import pathlib
import sys

from albert_jax.commands import common
from albert_jax.data import datasets
from albert_jax.data.pretraining import audit
from albert_jax.data.pretraining.examples import DataConfig
from albert_jax.errors import UserError


def main(argv):
  """The command; see `albert-jax audit --help`. Returns 1 when a number is out of range."""
  parser = common.parser(
    "audit",
    "Makes examples as training would, counts what is in them, and says what is out of range.",
    "albert-jax audit data/corpus --config=configs/pretrain.py:base --json=audit.json",
  )
  parser.add_argument("dataset", help="a folder made by albert-jax prepare, or several with commas")
  parser.add_argument("--examples", type=int, default=20_000, help="how many to make (default: 20000)")
  parser.add_argument("--show", type=int, default=10, help="how many to print (default: 10)")
  parser.add_argument("--json", default="", help="write the numbers to this file, the picture beside it")
  if any(arg.startswith("--config") for arg in argv) or "--help" in argv or "-h" in argv:
    args, config = common.parse_with_config(parser, argv)
    cfg, seed = DataConfig(**config.data.to_dict() | {"dataset": datasets.here(args.dataset)}), config.seed
  else:
    args = parser.parse_args(argv)
    cfg, seed = DataConfig(datasets.here(args.dataset)), 0
  if args.examples < 1:
    raise UserError(f"--examples={args.examples}: expected at least 1")
  numbers, (batch, details) = audit.measure(cfg, args.examples, seed)
  numbers |= audit.look_for_duplicates(cfg)
  rows = len(batch["input_ids"])
  found = audit.checks(numbers, cfg)
  numbers["problems"] = [check.name for check in found if not check.is_fine]

  tokenizer = datasets.tokenizer(cfg.dataset, cfg.spm)
  for row in range(min(args.show, rows)):
    print(audit.show_example(batch, details, row, tokenizer), end="\n\n")
  print(f"{numbers['examples']} examples of {cfg.seq_length} tokens, {numbers['tokens_mean']:.1f} of them used")
  for check in found:
    state = "ok" if check.is_fine else f"OUT OF RANGE: {check.advice}"
    print(f"{check.name:26} {check.value:10.4f}   expected {check.low:.4f} to {check.high:.4f}   {state}")
  picture = (
    pathlib.Path(args.json).with_suffix(".png")
    if args.json
    else pathlib.Path(datasets.folders(cfg.dataset)[0]) / "audit.png"
  )
  audit.draw(numbers, picture)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")
  print(f"picture: {picture}")
  if numbers["problems"]:
    print(f"albert-jax audit: out of range: {', '.join(numbers['problems'])}", file=sys.stderr)
  return 1 if numbers["problems"] else 0
