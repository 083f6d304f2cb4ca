"""`albert-jax audit`: measures the examples of a dataset, and flags numbers that are out of range."""

import pathlib
import shlex
import sys

from albert_jax import files
from albert_jax.commands import common
from albert_jax.data import datasets
from albert_jax.data.pretraining import audit
from albert_jax.data.pretraining.examples import DataConfig
from albert_jax.data.speech import audit as speech
from albert_jax.data.speech.batching import KIND, SpeechConfig
from albert_jax.errors import UserError

# What the printed examples mean.
LEGEND = (
  "Examples: {_:word} is masked, {word} is to be predicted too but shown, {other:word} is shown as another token."
)
LABELS = {  # by data.objective
  "sop": "\nlabel 1: the two segments are swapped; label 0: they are in order.",
  "nsp": "\nlabel 1: the second segment is from another document; label 0: it follows the first.",
  "none": "",
}


def main(argv: list[str]) -> int:
  """Runs the command, see `albert-jax audit --help`; returns 1 if a number is out of range."""
  parser = common.parser(
    "audit",
    "Makes examples as in training, measures them, and flags numbers that are out of range.",
    "albert-jax audit data/corpus --config=configs/pretrain.py:base --json=audit.json",
  )
  parser.add_argument("dataset", help="a folder made by albert-jax prepare or phonemes, or several with commas")
  parser.add_argument("--examples", type=int, default=20_000, help="how many to make (default: 20000)")
  parser.add_argument("--show", type=int, default=10, help="how many to print (default: 10)")
  parser.add_argument(
    "--json", default="", metavar="FILE", help="write the numbers to this file, the picture beside it"
  )
  if any(arg.startswith("--config") for arg in argv) or "--help" in argv or "-h" in argv:
    args, config = common.parse_with_config(parser, argv)
    fields, seed = config.data.to_dict(), config.seed
    if any(arg.startswith("--config.data.dataset=") for arg in argv) and fields["dataset"] != args.dataset:
      raise UserError(
        f"--config.data.dataset={fields['dataset']} has no effect beside {args.dataset}, which is audited; leave it out"
      )
  else:
    args = parser.parse_args(argv)
    fields, seed = {}, 0
  if args.examples < 1:
    raise UserError(f"--examples={args.examples}: expected at least 1")
  fields["dataset"] = datasets.local_copies(args.dataset)
  if datasets.describe(datasets.folders(fields["dataset"])[0]).get("kind") == KIND:
    if unknown := fields.keys() - SpeechConfig.__dataclass_fields__.keys():
      raise UserError(
        f"{args.dataset} holds phonemes, and --config is for text ({', '.join(sorted(unknown)[:3])}); use "
        "--config=configs/plbert.py:base"
      )
    return _phonemes(SpeechConfig(**fields), args, seed)
  return _text(DataConfig(**fields), args, seed)


def _text(cfg, args, seed):
  """Prints the audit of a dataset that `albert-jax prepare` made, and draws it; returns the exit code."""
  numbers, (batch, details) = audit.measure(cfg, args.examples, seed)
  numbers |= audit.count_duplicates(cfg)
  tokenizer = datasets.tokenizer(cfg.dataset, cfg.spm)
  if args.show > 0:
    print(LEGEND + LABELS[cfg.objective], end="\n\n")
  for row in range(min(args.show, len(batch["input_ids"]))):
    print(audit.show_example(batch, details, row, tokenizer), end="\n\n")
  print(f"{numbers['examples']} examples of {cfg.seq_length} tokens, {numbers['tokens_mean']:.1f} of them used")
  picture = (
    pathlib.Path(args.json).with_suffix(".png")
    if args.json and not args.json.startswith("/dev/")
    else pathlib.Path(datasets.folders(cfg.dataset)[0]) / "audit.png"
  )
  audit.draw(numbers, picture)
  print(f"picture: {picture}")
  code = _report(numbers, audit.checks(numbers, cfg), args.json)
  if not code:
    name = getattr(args, "config", "") or "pretrain:tiny"
    folder = shlex.quote(str(args.dataset))
    print(f"next: albert-jax train --config={name} --config.data.dataset={folder} --workdir=RUN")
  return code


def _phonemes(cfg, args, seed):
  """Prints the audit of a dataset that `albert-jax phonemes` made; returns the exit code."""
  numbers, rows = speech.measure(cfg, args.examples, seed)
  for row in range(min(args.show, len(rows.ids))):
    print(speech.show_row(rows, row, cfg.dataset), end="\n\n")
  print("strangest words: " + ", ".join(f"{word} {phonemes}" for word, phonemes, _ in speech.strangest(cfg.dataset)))
  top = ", ".join(f"{word} {share:.2%}" for word, share in list(numbers["top_words"].items())[:10])
  print(f"most frequent targets, by symbols: {top}")
  print(f"{numbers['examples']} examples of {cfg.seq_length} symbols, {numbers['symbols_mean']:.1f} of them used")
  return _report(numbers, speech.checks(numbers, cfg), args.json)


def _report(numbers, checks, file):
  """Prints each number with its range, and writes all numbers to a file if one is named; returns the exit code."""
  for check in checks:
    state = "ok" if check.is_fine else f"OUT OF RANGE: {check.advice}"
    print(f"{check.name:26} {check.value:10.4f}   expected {check.low:.4f} to {check.high:.4f}   {state}")
  numbers["problems"] = [check.name for check in checks if not check.is_fine]
  if file:
    files.write_json(file, numbers)
  if numbers["problems"]:
    print(f"albert-jax audit: out of range: {', '.join(numbers['problems'])}", file=sys.stderr)
  return 1 if numbers["problems"] else 0
