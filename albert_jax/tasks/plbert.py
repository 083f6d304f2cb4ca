"""PL-BERT: an ALBERT that reads phonemes and predicts masked phonemes and the words they belong to.

Li et al., "Phoneme-Level BERT for Enhanced Prosody of Text-to-Speech with Grapheme Predictions" (arXiv 2301.08810).
Both heads are dense layers on the encoder's output at every position. Phoneme targets are the symbols of masked words;
word targets are all positions, or a share of them drawn anew for each row (loss.word_positions).
"""

import functools
import pathlib
import shlex
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from albert_jax import convert, model
from albert_jax.data import datasets
from albert_jax.data.speech import batching, lexicon
from albert_jax.data.speech.batching import SpeechConfig
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.heads import at_positions
from albert_jax.tasks import heads
from albert_jax.tasks.base import Sketch, Spec, Task, about, unused
from albert_jax.types import Batch, Params

METRICS = ("word_loss", "word_accuracy", "phoneme_loss", "phoneme_accuracy")
USUAL_WORDS = 30_000 + lexicon.FIRST_WORD  # what albert-jax phonemes makes


def make(config: ConfigDict, vocabulary: Any = None, first_row: int = 0) -> Task:
  """Makes the task of configs/plbert.py. Symbols and words are those of the dataset; `vocabulary` is ignored."""
  cfg = model.AlbertConfig(**config.model)
  data = SpeechConfig(**config.data)
  slots = word_slots(config)
  description = batching.describe(data.dataset)
  symbols, words = batching.symbols(data.dataset), description["vocabulary"]["words"]
  if symbols.vocab_size != cfg.vocab_size:
    raise UserError(
      f"{data.dataset} was made with {symbols.vocab_size} symbols, the model has {cfg.vocab_size}; try "
      f"--config.model.vocab_size={symbols.vocab_size}"
    )
  if data.seq_length > cfg.max_position_embeddings:
    raise UserError(
      f"data.seq_length={data.seq_length} exceeds model.max_position_embeddings={cfg.max_position_embeddings}; "
      f"try --config.data.seq_length={cfg.max_position_embeddings}"
    )
  baselines = description["baselines"]
  if not baselines:
    raise UserError(
      f"{data.dataset} has no held-out documents; make it again with albert-jax phonemes --validation_fraction=0.05"
    )
  for split in (data.split, data.validation_split):  # Here, so that a mistake is found before the run has a folder.
    datasets.open_split(data.dataset, split)
  common = {"batch_size": config.batch_size, "seed": config.seed}
  return Task(
    model=cfg,
    init=functools.partial(init, cfg, words),
    sums=functools.partial(sums, cfg, config.loss.word_chunk),
    terms=functools.partial(terms, config.loss.phoneme_weight, config.loss.word_weight),
    train_batches=lambda start_step, host, hosts: batching.train_batches(
      data, **common, start_step=start_step, host=host, hosts=hosts, first_row=first_row, word_slots=slots
    ),
    eval_batches=lambda host, hosts: batching.eval_batches(
      data, **common, host=host, hosts=hosts, max_batches=config.eval_batches or None
    ),
    baselines={
      "phoneme_loss": (baselines["phoneme_loss"], "symbol frequencies alone"),
      "phoneme_accuracy": (baselines["phoneme_accuracy"], "always the most frequent symbol"),
      "word_loss": (baselines["word_loss"], "word frequencies alone"),
      "word_accuracy": (baselines["word_accuracy"], "always the most frequent word"),
    },
    vocabulary=symbols,
    new=("^(phoneme|word)/",),
    unused=(*unused("phoneme", "word", keep=True), *_other_heads(config.init_from, data.dataset)),
    about=about("plbert", words=words, seq_length=data.seq_length),
    architecture="AlbertModel",
    row_flops=head_flops(cfg, words, data.seq_length, slots or data.seq_length),
  )


def sketch(config: ConfigDict) -> Sketch:
  """Makes the train step of a config; without a dataset, the number of words is USUAL_WORDS."""
  cfg, slots = model.AlbertConfig(**config.model), word_slots(config)
  words = batching.describe(config.data.dataset)["vocabulary"]["words"] if config.data.dataset else USUAL_WORDS
  B, L = config.batch_size, config.data.seq_length
  W = slots or L
  integers = {"input_ids": (B, L), "attention_mask": (B, L), "phoneme_labels": (B, L), "word_labels": (B, W)}
  integers |= {"word_positions": (B, W)} if slots else {}
  integers |= {"segment_ids": (B, L), "position_ids": (B, L)} if config.data.packing > 1 else {}
  numbers = {"phoneme_weights": (B, L), "word_weights": (B, W), "weight": (B,)}
  return Sketch(
    model=cfg,
    init=functools.partial(init, cfg, words),
    sums=functools.partial(sums, cfg, config.loss.word_chunk),
    terms=functools.partial(terms, config.loss.phoneme_weight, config.loss.word_weight),
    arrays={name: (shape, np.int32) for name, shape in integers.items()}
    | {name: (shape, np.float32) for name, shape in numbers.items()},
    slots=0,
    row_flops=head_flops(cfg, words, L, W),
  )


def word_slots(config: ConfigDict) -> int:
  """Returns the number of positions of a row at which the word loss is computed; 0 for all.

  Raises:
    UserError: a field of `config.loss` is out of range.
  """
  if config.loss.phoneme_weight and not config.data.mask_rate:
    raise UserError(
      "data.mask_rate=0 leaves no phoneme to learn; try --config.data.mask_rate=0.15, or for words alone "
      "--config.loss.phoneme_weight=0"
    )
  share, length = config.loss.word_positions, config.data.seq_length
  if not 0 < share <= 1:
    raise UserError(f"loss.word_positions={share} must be a share of the positions, above 0 and up to 1, such as 0.25")
  if config.loss.word_chunk < 1:
    raise UserError(f"loss.word_chunk={config.loss.word_chunk} must be 1 or more positions")
  return 0 if share == 1 else max(1, round(share * length))


def init(cfg: AlbertConfig, words: int, key: Any) -> dict:
  """Makes fresh parameters: the encoder without a pooler, and the heads "phoneme" [D, V] and "word" [D, words]."""
  params = heads.encoder(cfg, key, pooler=False)
  key_phoneme, key_word = jax.random.split(jax.random.fold_in(key, 1))
  params["phoneme"] = heads.dense(cfg, key_phoneme, cfg.hidden_size, cfg.vocab_size)
  params["word"] = heads.dense(cfg, key_word, cfg.hidden_size, words)
  return params


def sums(cfg: AlbertConfig, chunk: int, params: Params, batch: Batch, key: Any) -> dict:
  """Sums over examples of each one's mean loss, and over positions of correct answers: {name: (total, weight)}.

  `word_accuracy` counts the positions of words, not the spaces between them.

  Args:
    chunk: positions whose word logits are made at a time.
    batch: see data/speech/batching.py, make_batch.
    key: for dropout (one, or one a row), or None.
  """
  x_BLD = model.apply(cfg, params, model.inputs(batch), key)["sequence_output"]
  is_masked = batch["phoneme_weights"] > 0
  losses, is_hit = heads.losses_and_hits(heads.affine(params["phoneme"], x_BLD), batch["phoneme_labels"])
  x_BWD = at_positions(x_BLD, batch["word_positions"]) if "word_positions" in batch else x_BLD
  word_loss, is_word_hit = heads.chunked_cross_entropy(
    x_BWD, params["word"]["kernel"], params["word"]["bias"], batch["word_labels"], batch["word_weights"], chunk
  )
  is_word = (batch["word_weights"] > 0) & (batch["word_labels"] != lexicon.SPACE)
  return {
    "phoneme_loss": (jnp.sum(batch["phoneme_weights"] * losses), jnp.sum(batch["phoneme_weights"])),
    "phoneme_accuracy": (jnp.sum(is_masked * is_hit, dtype=jnp.float32), jnp.sum(is_masked, dtype=jnp.float32)),
    "word_loss": (word_loss, jnp.sum(batch["word_weights"])),
    "word_accuracy": (jnp.sum(is_word * is_word_hit, dtype=jnp.float32), jnp.sum(is_word, dtype=jnp.float32)),
  }


def terms(phoneme_weight: float, word_weight: float, batch: Batch) -> dict:
  """Returns the loss as coefficients of the totals, as in PL-BERT's loop.

  Words: the mean over examples, each a row or one of those packed into it. Phonemes: the sum over examples with masked
  positions, divided by one more than how many those are.
  """
  examples_with_masks = jnp.round(jnp.sum(batch["phoneme_weights"]))  # The weights of each sum to 1.
  return {
    "phoneme_loss": phoneme_weight / (examples_with_masks + 1),
    "word_loss": word_weight / jnp.maximum(jnp.sum(batch["weight"]), 1),
  }


def head_flops(cfg: AlbertConfig, words: int, length: int, slots: int) -> float:
  """Returns the operations of the two heads for a row of a training step."""
  return 3.0 * 2 * cfg.hidden_size * (length * cfg.vocab_size + slots * words)


def _other_heads(init_from, dataset):
  """Returns patterns of the heads of `init_from` that predict other symbols or words than those of the dataset.

  Raises:
    UserError: the checkpoint has another symbol table, so its embeddings belong to other symbols.
  """
  if not init_from:
    return ()
  theirs = convert.load_symbols(init_from)
  if theirs is None:
    return ("^(phoneme|word)/",)
  if theirs.pieces != batching.symbols(dataset).pieces:
    raise UserError(
      f"{init_from} has another symbol table than {dataset}; give it this one: albert-jax convert "
      f"--checkpoint={shlex.quote(init_from)} --symbols={shlex.quote(f'{dataset}/symbols.json')} --keep_pieces "
      "--out=DIR, and begin with DIR"
    )
  folders = (pathlib.Path(theirs.path).parent, pathlib.Path(dataset).expanduser())
  names = [folder / lexicon.TARGETS_FILE for folder in folders]
  same = all(name.is_file() for name in names) and names[0].read_bytes() == names[1].read_bytes()
  return () if same else ("^word/",)


SPEC = Spec(
  make=make,
  settings=None,
  metrics=lambda config: METRICS if config.data.mask_rate else METRICS[:2],
  heads=("phoneme", "word"),
  sketch=sketch,
)
