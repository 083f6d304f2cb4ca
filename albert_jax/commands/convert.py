"""`albert-jax convert`: converts weights between formats, inspects them, or adapts them to another model."""

import re
import sys
from typing import Any

import numpy as np

from albert_jax import model
from albert_jax.commands import common
from albert_jax.convert import google_tf1, hf, surgery
from albert_jax.convert.load import find, load, load_symbols, load_tokenizer
from albert_jax.data.speech import symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.types import Params

ARCHITECTURES = (
  "AlbertModel", "AlbertForPreTraining", "AlbertForMaskedLM", "AlbertForSequenceClassification",
  "AlbertForTokenClassification", "AlbertForQuestionAnswering", "AlbertForMultipleChoice",
)  # fmt: skip


def main(argv: list[str]) -> None:
  parser = common.parser(
    "convert",
    "Converts weights: a checkpoint of google-research/albert, a Hugging Face directory, the folder of a run, or a\n"
    "PL-BERT of StyleTTS2 or Kokoro, to a Hugging Face directory or to Google's names. An error lists all tensors\n"
    "that do not fit.",
    "albert-jax convert --checkpoint=albert_base_v2 --out=albert-base-v2 --to=hf",
  )
  parser.add_argument("--checkpoint", metavar="PATH", help="what to read")
  parser.add_argument("--out", metavar="DIR", help="the folder to write; it is written atomically")
  parser.add_argument("--to", choices=("hf", "google"), default="hf", help="the format to write (default hf)")
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
    "--architecture", choices=ARCHITECTURES, help="the transformers class of the result, if not plain"
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
  start.add_argument("--max_position_embeddings", type=int, metavar="N", help="another number of positions")
  start.add_argument("--positions", choices=("tile", "interpolate"), default="tile", help="how (default tile)")
  start.add_argument("--num_hidden_layers", type=int, metavar="N", help="deeper or shallower")
  start.add_argument("--num_hidden_groups", type=int, metavar="G", help="more groups")
  start.add_argument("--share", choices=("all", "attention", "ffn", "none"), help="share less")
  start.add_argument("--init_from_group0", action="store_true", help="all groups from group 0, as the original's flag")
  parser.needs("--positions", "--max_position_embeddings")
  parser.needs("--init_from_group0", "--num_hidden_groups", "--num_hidden_layers", "--share")
  args = parser.parse_args(argv)
  for pattern in (*args.allow_missing, *args.allow_unused):
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f"{pattern!r} is no regular expression ({error}); a plain name such as sop/ is one") from None

  if args.inspect:
    print(inspect(args.inspect))
    return
  if not args.checkpoint or not args.out:
    raise UserError("give --checkpoint=PATH --out=DIR to convert, or --inspect=PATH to inspect")
  format, place = find(args.checkpoint)
  cfg, params = load(
    args.checkpoint, allow_missing=args.allow_missing, allow_unused=args.allow_unused, keep_config=args.keep_config
  )
  _say(f"read {describe(cfg, params)} from {args.checkpoint}")

  if args.spm and args.symbols:
    raise UserError("give --spm for a model of text or --symbols for a PL-BERT, not both")
  rules: dict[str, Any] = {"lower": False if args.cased else None, "keep_accents": args.keep_accents or None}
  new_tokenizer: Tokenizer | symbols.Symbols | None = Tokenizer(args.spm, **rules) if args.spm else None
  old = load_symbols(args.checkpoint) or load_tokenizer(args.checkpoint, optional=True)
  if args.symbols:
    new_tokenizer = symbols.load(args.symbols)
    if params.pop("word", None) is not None:
      _say("left out the head that predicts words: its words belong to its training data")
  if new_tokenizer is None and any(value is not None for value in rules.values()):
    if not isinstance(old, Tokenizer):
      raise UserError("--cased and --keep_accents are for a vocabulary of text; give one with --spm=FILE")
    lower, keep_accents = not args.cased and old.lower, args.keep_accents or old.keep_accents
    old = Tokenizer(old.path, lower, keep_accents, old.hf_quotes, old.digit_comma)
  tokenizer = new_tokenizer or old
  if args.keep_pieces:
    if new_tokenizer is None:
      raise UserError("--keep_pieces needs the new vocabulary: --spm=FILE, or --symbols=FILE")
    if old is None:
      raise UserError(f"--keep_pieces needs the vocabulary of the weights: copy it into {args.checkpoint}")
    cfg, params, kept = surgery.new_vocabulary(cfg, params, old, new_tokenizer)
    _say(f"kept the rows of {kept:,} of {new_tokenizer.vocab_size:,} pieces; the others are fresh")
  if args.max_position_embeddings is not None:
    cfg, params = surgery.longer(cfg, params, args.max_position_embeddings, args.positions)
  fields = {name: getattr(args, name) for name in ("num_hidden_layers", "num_hidden_groups", "share")}
  fields = {name: value for name, value in fields.items() if value is not None}
  if fields:
    cfg, params = surgery.restructured(cfg, params, from_group0=args.init_from_group0, **fields)

  if args.to == "google":
    if isinstance(tokenizer, symbols.Symbols):
      raise UserError("--to=google: google-research/albert reads text, and this model reads phonemes; leave --to out")
    google_tf1.save(args.out, cfg, params, vocabulary=tokenizer, overwrite=args.overwrite)
  else:
    fields = hf.read_fields(place) if format is hf else {}
    named = next(iter(fields.get("architectures") or []), None)
    hf.save(
      args.out,
      cfg,
      params,
      vocabulary=tokenizer,
      architecture=args.architecture or (named if named in ARCHITECTURES else None),
      extra=hf.extra_fields(fields),
      overwrite=args.overwrite,
    )
  _say(
    f"wrote {describe(cfg, params)} to {args.out}" + ("" if tokenizer else ", without a vocabulary: give --spm=FILE")
  )


def describe(cfg: AlbertConfig, params: Params) -> str:
  """Returns one line about a model."""
  extra = sorted(params.keys() - {"embeddings", "projection", "attention", "ffn", "norm"})
  return (
    f"{model.param_count(params):,} parameters ({cfg.num_hidden_layers} layers of {cfg.hidden_size}, "
    f"{cfg.num_hidden_groups} group{'s' * (cfg.num_hidden_groups > 1)}, share={cfg.share}"
    f"{', arch=modern' * (cfg.arch == 'modern')}; "
    f"with {', '.join(extra) or 'no head'})"
  )


def inspect(path: str) -> str:
  """Returns a table of every variable at `path`, what is missing, and what is not used, as text."""
  format, place = find(path)
  cfg, tensors, names, table, notes = format.survey(place)
  entries = {entry.name: entry for entry in table}
  rows = [("name there", "name here", "shape", "type", "mean", "std")]
  unused = []
  for name, tensor in tensors.items():
    entry = entries.get(names[name])
    if entry is None or name in notes:
      target = f"({notes.get(name, 'NOT USED')})"
      unused += [] if name in notes else [name]
    else:
      target = entry.path + (f"[{', '.join(map(str, entry.index))}]" if entry.index else "")
      if tensor.shape != entry.file_shape:
        target += f" EXPECTED {list(entry.file_shape)}"
    value = np.asarray(tensor, np.float64)
    numbers = (f"{value.mean():.4g}", f"{value.std():.4g}") if value.size else ("", "")
    rows.append((name, target, "x".join(map(str, tensor.shape)) or "scalar", str(tensor.dtype), *numbers))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
  missing = [entry.name for entry in table if entry.name not in names.values()]
  lines += ["", f"{place}: {format.__name__.rpartition('.')[2]}, {cfg}"]
  lines += [f"missing: {', '.join(missing) or 'nothing'}", f"not used: {', '.join(unused) or 'nothing'}"]
  parts = {entry.path.split("/")[0] for entry in table}
  absent = [part for part in model.OPTIONAL if part not in parts]
  lines += [f"parts that are not there: {', '.join(absent)}"] if absent else []
  return "\n".join(lines)


def _say(line):
  print(line, file=sys.stderr)
