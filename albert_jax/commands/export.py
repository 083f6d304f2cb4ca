"""`albert-jax export`: one folder that every runtime opens."""

import pathlib
import shlex
import sys

from albert_jax import files
from albert_jax.commands import common
from albert_jax.errors import UserError
from albert_jax.exports import folder, onnx, styletts2


def main(argv: list[str]) -> None:
  parser = common.parser(
    "export",
    "Writes one folder that transformers, sentence-transformers, ONNX Runtime and JAX (StableHLO) open, with a model "
    "card. Every file is opened again and compared with the model before the command ends.",
    "albert-jax export --checkpoint=RUN --out=DIR",
  )
  parser.add_argument("--checkpoint", required=True, metavar="PATH", help="a run's workdir, or any checkpoint")
  parser.add_argument("--out", required=True, metavar="DIR", help="the new folder")
  parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
  parser.add_argument(
    "--formats", default=",".join(folder.FORMATS), metavar="A,B",
    help="what to write besides the Hugging Face directory: onnx, stablehlo, or '' for neither (default: both)",
  )  # fmt: skip
  parser.add_argument(
    "--pooling", choices=onnx.POOLING, default="",
    help="write the files of sentence-transformers for this pooling (default: what the checkpoint was trained with)",
  )  # fmt: skip
  parser.add_argument("--no_tokenizer", action="store_true", help="export a checkpoint that has no vocabulary")
  for name, what in {
    "name": "the model's name on its card (default: that of the folder)",
    "license": "its license, as apache-2.0",
    "language": "its language, as en",
    "base_model": "the model it was fine-tuned from (default: the run's init_from)",
    "datasets": "the data it was trained on (default: the run's dataset)",
  }.items():
    parser.add_argument(f"--{name}", default="", metavar="TEXT", help=f"for the card: {what}")
  parser.add_argument("--quantize", choices=("int8",), default="", help="also write onnx/model_int8.onnx")
  parser.add_argument(
    "--calibration", default="", metavar="FILE",
    help="for --quantize: texts like those the model will see, .txt, .csv, .tsv or .jsonl, best with labels; for a "
    "tagger also .conll, for questions a file of questions with answers as training reads it, such as SQuAD's .json; "
    "for multiple choice a file with answers",
  )  # fmt: skip
  parser.add_argument(
    "--max_loss", type=float, default=0.5, metavar="POINTS",
    help="for --quantize: how many points of 100 the int8 model may lose on held-out rows of FILE (default 0.5)",
  )  # fmt: skip
  parser.add_argument(
    "--fields", default="text", metavar="A[,B]", help="the columns of FILE with the text (default text)"
  )
  parser.add_argument("--label", default="label", metavar="COLUMN", help="and with the label (default label)")
  parser.add_argument(
    "--page", default="", metavar="DIR",
    help="also write a page that runs the ONNX file in the browser, for any static file server; needs npm once",
  )  # fmt: skip
  parser.add_argument("--json", metavar="FILE", help="write the sizes and measurements there")
  parser.add_argument(
    "--to",
    choices=("styletts2",),
    help="write only the folder that StyleTTS2 reads as its PL-BERT, none of the above",
  )
  for flag in ("--calibration", "--max_loss", "--fields", "--label"):
    parser.needs(flag, "--quantize")
  args = parser.parse_args(argv)
  if args.json and not pathlib.Path(args.json).absolute().parent.is_dir():
    raise UserError(f"--json={args.json}: there is no folder {str(pathlib.Path(args.json).parent)!r}")
  checkpoint = pathlib.Path(args.checkpoint).expanduser() if "://" not in args.checkpoint else args.checkpoint
  out = pathlib.Path(args.out).expanduser()
  if args.to:
    shared = ("checkpoint", "out", "overwrite", "json", "to")
    unshared = {name: value for name, value in vars(args).items() if name not in shared}
    extra = [name for name, value in unshared.items() if value not in ("", parser.get_default(name))]
    if extra:
      raise UserError(f"--to={args.to} writes one format, without a card; leave --{', --'.join(extra)} out")
    report = styletts2.export(checkpoint, out, overwrite=args.overwrite)
    for name, size in report["files"].items():
      print(f"{size / 1e6:10.2f} MB  {name}")
    print("Read again, all weights are bit for bit the model's.")
    if args.json:
      files.write_json(args.json, report)
    return
  report = folder.export(
    checkpoint,
    out,
    formats=[name for name in args.formats.split(",") if name],
    pooling=args.pooling,
    tokenizer=not args.no_tokenizer,
    **{name: getattr(args, name) for name in ("name", "license", "language", "base_model", "datasets")},
    **{name: getattr(args, name) for name in ("quantize", "calibration", "max_loss", "fields", "label", "page")},
    overwrite=args.overwrite,
    say=lambda line: print(line, file=sys.stderr),
  )
  for name, size in report["files"].items():
    print(f"{size / 1e6:10.2f} MB  {name}")
  if args.page:
    size = sum(report["page"].values()) / 1e6
    print(
      f"{size:10.2f} MB  {args.page}, the page; show it with: python -m http.server "
      f"--directory={shlex.quote(args.page)}"
    )
  if "int8" in report:
    int8 = report["int8"]
    print(
      f"{int8['recipe']}: {int8['metric']} {int8['float32']:.2f} -> {int8['int8']:.2f} "
      f"({_change(int8['loss'])}) on {int8['rows']:,} held-out rows"
    )
  print(f"All float32 outputs equal the model's; the largest difference is {report['difference']:.1g}.")
  if args.json:
    files.write_json(args.json, report)
  print(f"made {args.out}; to share it: albert-jax push {shlex.quote(args.out)} --to=OWNER/NAME")


def _change(loss):
  """Returns what int8 does to a score, in words."""
  points = f"{abs(loss):.2f} points"
  return (
    "no difference" if points == "0.00 points" else f"int8 loses {points}" if loss > 0 else f"int8 is {points} better"
  )
