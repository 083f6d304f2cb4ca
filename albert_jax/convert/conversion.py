"""Converts a checkpoint between formats, or makes one the start of another model. What `albert-jax convert` runs."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from albert_jax import model
from albert_jax.convert import google_tf1, hf, surgery
from albert_jax.convert.load import find, load, load_symbols, load_tokenizer
from albert_jax.data.speech import symbols as symbol_tables
from albert_jax.data.speech.symbols import Symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.task_heads import CLASSES
from albert_jax.types import Params

log = logging.getLogger(__name__)

FORMATS = ("hf", "google")
ARCHITECTURES = ("AlbertModel", *CLASSES)


def convert(
  checkpoint: str | os.PathLike,
  out: str | os.PathLike,
  *,
  to: str = "hf",
  allow_missing: Sequence[str] = (),
  allow_unused: Sequence[str] = (),
  keep_config: bool = False,
  architecture: str | None = None,
  spm: str | None = None,
  symbols: str | None = None,
  cased: bool = False,
  keep_accents: bool = False,
  keep_pieces: bool = False,
  max_position_embeddings: int | None = None,
  positions: str = "tile",
  init_from_group0: bool = False,
  fields: dict[str, Any] | None = None,
  overwrite: bool = False,
) -> tuple[AlbertConfig, Params]:
  """Reads a checkpoint of any format, adapts it, and writes it.

  Args:
    checkpoint: see `load`.
    out: the folder to write; it is written atomically.
    to: one of FORMATS: a Hugging Face directory, or google-research/albert's names.
    allow_missing, allow_unused, keep_config: see `load`.
    architecture: one of ARCHITECTURES, the transformers class of the result; None for the checkpoint's, or the one
      that its heads belong to.
    spm: the vocabulary to write: spiece.model, or vocab.txt (WordPiece); None for the one beside the weights.
    symbols: instead of `spm`, the symbol table of a PL-BERT: symbols.json, "styletts2" or "kokoro".
    cased, keep_accents: rules of a vocabulary without a tokenizer_config.json.
    keep_pieces: keep the rows of the pieces that the old and the new vocabulary share; the others are fresh.
    max_position_embeddings: another number of positions, made as `positions` says, see `surgery.longer`.
    init_from_group0, fields: another depth or other groups, see `surgery.restructured`; with "layer_rank" see
      `surgery.with_low_rank_differences`.
    overwrite: replace an existing `out`.

  Returns:
    (cfg, params) as written.

  Raises:
    UserError: the checkpoint does not fit its config, or an argument does not fit the checkpoint.
  """
  for pattern in (*allow_missing, *allow_unused):
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f"{pattern!r} is no regular expression ({error}); a plain name such as sop/ is one") from None
  if to not in FORMATS:
    raise UserError(f"to={to!r} is unknown; use one of {', '.join(FORMATS)}")
  if architecture and to == "google":
    raise UserError("--architecture is a class of transformers, and --to=google has none; leave one of them out")
  if spm and symbols:
    raise UserError("give --spm for a model of text or --symbols for a PL-BERT, not both")
  cfg, params = load(checkpoint, allow_missing=allow_missing, allow_unused=allow_unused, keep_config=keep_config)
  log.info("read %s from %s", describe(cfg, params), checkpoint)
  if symbols and params.pop("word", None) is not None:
    log.info("left out the head that predicts words: its words belong to its training data")

  old, new = _vocabularies(checkpoint, spm, symbols, cased, keep_accents)
  if keep_pieces:
    if new is None:
      raise UserError("--keep_pieces needs the new vocabulary: --spm=FILE, or --symbols=FILE")
    if old is None:
      raise UserError(f"--keep_pieces needs the vocabulary of the weights: copy it into {checkpoint}")
    cfg, params, kept = surgery.new_vocabulary(cfg, params, old, new)
    log.info("kept the rows of %s of %s pieces; the others are fresh", f"{kept:,}", f"{new.vocab_size:,}")
  if max_position_embeddings is not None:
    cfg, params = surgery.longer(cfg, params, max_position_embeddings, positions)
  if fields and "layer_rank" in fields:
    if init_from_group0 or "num_hidden_layers" in fields:
      raise UserError("--layer_rank goes with --share and --num_hidden_groups; change the depth in a second conversion")
    cfg, params, retained = surgery.with_low_rank_differences(cfg, params, **fields)
    log.info(
      "differences of rank %d have %.1f%% of the squared norm of all differences", cfg.layer_rank, 100 * retained
    )
  elif fields:
    cfg, params = surgery.restructured(cfg, params, from_group0=init_from_group0, **fields)

  vocabulary = new or old
  if to == "google":
    if isinstance(vocabulary, Symbols):
      raise UserError("--to=google: google-research/albert reads text, and this model reads phonemes; leave --to out")
    google_tf1.save(out, cfg, params, vocabulary=vocabulary, overwrite=overwrite)
  else:
    format, folder = find(checkpoint)
    old_fields = hf.read_fields(folder) if format is hf else {}
    old_architecture = next((name for name in old_fields.get("architectures") or [] if name in ARCHITECTURES), None)
    hf.save(
      out, cfg, params, vocabulary=vocabulary, architecture=architecture or old_architecture,
      extra=hf.extra_fields(old_fields), overwrite=overwrite,
    )  # fmt: skip
  without = "" if vocabulary else ", without a vocabulary: give --spm=FILE"
  log.info("wrote %s to %s%s", describe(cfg, params), out, without)
  return cfg, params


def _vocabularies(checkpoint, spm, symbols, cased, keep_accents):
  """Returns (the vocabulary beside the weights, the new one), each a Tokenizer, a symbol table or None."""
  old: Tokenizer | Symbols | None = load_symbols(checkpoint) or load_tokenizer(checkpoint, optional=True)
  if spm:
    return old, Tokenizer(spm, lower=False if cased else None, keep_accents=keep_accents or None)
  if cased or keep_accents:
    if symbols or not isinstance(old, Tokenizer):
      raise UserError("--cased and --keep_accents are for a vocabulary of text; give one with --spm=FILE")
    lower = old.lower and not cased
    old = Tokenizer(old.path, lower, keep_accents or old.keep_accents, old.hf_quotes, old.digit_comma)
  return old, symbol_tables.load(symbols) if symbols else None


def describe(cfg: AlbertConfig, params: Params) -> str:
  """Returns one line about a model."""
  extra = sorted(params.keys() - {"embeddings", "projection", "attention", "ffn", "norm"})
  return (
    f"{model.param_count(params):,} parameters ({cfg.num_hidden_layers} layers of {cfg.hidden_size}, "
    f"{cfg.num_hidden_groups} group{'s' * (cfg.num_hidden_groups > 1)}, share={cfg.share}"
    f"{', arch=modern' * (cfg.arch == 'modern')}; "
    f"with {', '.join(extra) or 'no head'})"
  )
