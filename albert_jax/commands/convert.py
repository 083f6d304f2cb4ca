"""`albert-jax convert`: converts weights between formats, inspects them, or adapts them to another model."""

from albert_jax.commands import common
from albert_jax.convert import conversion, inspection
from albert_jax.errors import UserError


def main(argv: list[str]) -> None:
  parser = common.parser(
    "convert",
    "Converts weights: a checkpoint of google-research/albert, a Hugging Face directory, the folder of a run, or a "
    "PL-BERT of StyleTTS2 or Kokoro, to a Hugging Face directory or to Google's names. An error lists all tensors "
    "that do not fit.",
    "albert-jax convert --checkpoint=albert_base_v2 --out=albert-base-v2 --to=hf",
  )
  parser.add_argument("--checkpoint", metavar="PATH", help="what to read")
  parser.add_argument("--out", metavar="DIR", help="the folder to write; it is written atomically")
  parser.add_argument("--to", choices=conversion.FORMATS, default="hf", help="the format to write (default hf)")
  parser.add_argument(
    "--inspect", metavar="PATH", help="only show every variable at PATH: names, shape, mean, deviation"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")

  strict = parser.add_argument_group("what may differ from the config beside the weights")
  strict.add_argument(
    "--allow_missing",
    metavar="PATTERN",
    action="append",
    default=[],
    help="parameters that may be missing; they are fresh",
  )
  strict.add_argument(
    "--allow_unused", metavar="PATTERN", action="append", default=[], help="tensors that may stay unused"
  )
  strict.add_argument("--keep_config", action="store_true", help="keep the config of a known model even if it is wrong")
  strict.add_argument(
    "--architecture",
    choices=conversion.ARCHITECTURES,
    metavar="CLASS",
    help=f"the transformers class to name in config.json: {', '.join(conversion.ARCHITECTURES)}",
  )

  vocabulary = parser.add_argument_group("vocabulary (by default the one beside the weights)")
  vocabulary.add_argument(
    "--spm", metavar="FILE", help="the vocabulary to write: spiece.model, or vocab.txt (WordPiece)"
  )
  vocabulary.add_argument(
    "--symbols", metavar="FILE", help="the symbol table of a PL-BERT to write: symbols.json, styletts2 or kokoro"
  )
  vocabulary.add_argument(
    "--cased", action="store_true", help="the vocabulary is cased, and has no tokenizer_config.json that says so"
  )
  vocabulary.add_argument(
    "--keep_accents", action="store_true", help="the vocabulary keeps accents, and has no such file"
  )
  vocabulary.add_argument(
    "--keep_pieces", action="store_true", help="--spm or --symbols is new: keep the rows of pieces both share"
  )

  start = parser.add_argument_group("a start for another model")
  start.add_argument("--max_position_embeddings", type=int, metavar="N", help="the longest text, in tokens")
  start.add_argument(
    "--positions",
    choices=("tile", "interpolate"),
    default="tile",
    help="repeat the rows of positions, or interpolate them (default tile)",
  )
  start.add_argument("--num_hidden_layers", type=int, metavar="N", help="another number of layers")
  start.add_argument(
    "--num_hidden_groups", type=int, metavar="G", help="more groups of layers, each from the group it replaces"
  )
  start.add_argument(
    "--share",
    choices=("all", "matrices", "attention", "ffn", "none"),
    help="what the layers share; less than the checkpoint's, unless there is --layer_rank",
  )
  start.add_argument(
    "--layer_rank",
    type=int,
    metavar="R",
    help="of layers that share nothing: one matrix, and differences of rank R between layers",
  )
  start.add_argument("--init_from_group0", action="store_true", help="all groups from group 0, as the original's flag")
  parser.needs("--positions", "--max_position_embeddings")
  parser.needs("--init_from_group0", "--num_hidden_groups", "--num_hidden_layers", "--share")
  args = parser.parse_args(argv)
  if args.inspect:
    print(inspection.inspect(args.inspect))
    return
  if not args.checkpoint or not args.out:
    raise UserError("give --checkpoint=PATH --out=DIR to convert, or --inspect=PATH to inspect")
  options = vars(args)
  del options["inspect"]
  fields = {name: options.pop(name) for name in ("num_hidden_layers", "num_hidden_groups", "share", "layer_rank")}
  conversion.convert(**options, fields={name: value for name, value in fields.items() if value is not None})
