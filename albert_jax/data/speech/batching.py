"""Records of words to batches for the task plbert: a pure function of (dataset, config, seed, step).

A row is a window of a record's symbols: the phonemes of each word and then a space. Whole words are chosen for masking;
their symbols are what the phoneme loss predicts. The word loss predicts at every position, or at a share of them, the
word that the symbol belongs to. As in PL-BERT (Li et al., arXiv 2301.08810), but with all randomness from the seed.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from albert_jax import files
from albert_jax.data import datasets, records, rng
from albert_jax.data.pretraining import batching, mixture, packing
from albert_jax.data.pretraining.examples import check_ranges
from albert_jax.data.records import ragged
from albert_jax.data.speech import lexicon as lexicons
from albert_jax.data.speech import symbols as symbol_tables
from albert_jax.data.speech.lexicon import Lexicon
from albert_jax.data.speech.symbols import Symbols
from albert_jax.errors import UserError

KIND = "phonemes"  # of a dataset, in its description


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
  """What the task plbert reads and what it makes of it.

  Attributes:
    dataset: a folder made by `albert-jax phonemes`.
    split, validation_split: names of its splits.
    seq_length: L, the symbols of a row.
    packing: the most examples in a row. More than 1 fills rows of short documents with several, which do not see each
      other, and the room that is left with windows of other documents.
    mask_rate: the chance of each word to be chosen.
    mask_share, random_share: of the chosen words, the share shown as the mask symbol, and as symbols of the same text.
    workers: processes that make batches; 0 makes them in a thread of this one.
  """

  dataset: str
  split: str = "train"
  validation_split: str = "validation"
  seq_length: int = 512
  packing: int = 1
  mask_rate: float = 0.15
  mask_share: float = 0.8
  random_share: float = 0.1
  workers: int = 0

  def __post_init__(self):
    check_ranges(self)


class Rows(NamedTuple):
  """Rows before and after masking; arrays [B, L].

  Attributes:
    ids, shown: int32, the symbols and what the model sees of them.
    is_token: bool, all but padding.
    is_space: bool, the space after a word.
    is_chosen: bool, the symbols of words that were chosen for masking.
    entry: int64, the entry of the lexicon that a position belongs to.
    segment_ids, position_ids: int32, see packing.pack_positions; None unless rows are packed.
  """

  ids: np.ndarray
  shown: np.ndarray
  is_token: np.ndarray
  is_space: np.ndarray
  is_chosen: np.ndarray
  entry: np.ndarray
  segment_ids: np.ndarray | None = None
  position_ids: np.ndarray | None = None


def make_rows(
  batch: records.Records,
  numbers: np.ndarray,
  seed: int,
  cfg: SpeechConfig,
  words: Lexicon,
  table: Symbols,
  max_symbols: np.ndarray | None = None,
) -> Rows:
  """Lays out records as rows and masks words.

  Args:
    batch: B records.
    numbers: int64 array [B], the global example numbers, which choose the random draws.
    seed: int.
    cfg: SpeechConfig.
    words: the lexicon that the records' ids are entries of.
    table: the symbol table.
    max_symbols: int64 array [B], the most symbols of each row; None is seq_length.
  """
  L, counts = cfg.seq_length, batch.tokens
  limit = np.full(len(counts), L) if max_symbols is None else max_symbols
  entries = batch.ids[ragged(batch.id_base, counts)].astype(np.int64)
  owner = np.repeat(np.arange(len(counts)), counts)
  sizes = words.sizes[entries]
  spans = sizes + 1  # and the space
  first = np.cumsum(spans) - spans  # where each word begins among the symbols of all records
  total = np.bincount(owner, weights=spans, minlength=len(counts)).astype(np.int64)
  base = np.cumsum(total) - total

  room = np.maximum(total - limit, 0) + 1
  start = rng.below(rng.bits(rng.keys(seed, "window", numbers), 1)[:, 0], room)
  column = np.arange(L)
  is_token = column < np.minimum(total, limit)[:, None]
  position = np.where(is_token, (base + start)[:, None] + column, 0)
  word = np.repeat(np.arange(len(entries)), spans)[position]
  offset = position - first[word]
  is_space = is_token & (offset == sizes[word])
  symbol_at = words.start[entries[word]] + np.minimum(offset, sizes[word] - 1)
  ids = np.where(is_space, table.space_id, words.symbols[symbol_at]).astype(np.int32)
  ids[~is_token] = table.pad_id

  # Draws are by the word's place in its record, so the choice of a word does not depend on the window.
  word_number = np.arange(len(entries)) - np.repeat(np.cumsum(counts) - counts, counts)
  most = int(counts.max(initial=1))
  is_picked = rng.chance(rng.bits(rng.keys(seed, "words", numbers), most), cfg.mask_rate)[owner, word_number]
  action = rng.bits(rng.keys(seed, "actions", numbers), most)[owner, word_number]
  is_masked = rng.chance(action, cfg.mask_share)
  is_random = ~is_masked & rng.chance(action, cfg.mask_share + cfg.random_share)

  is_chosen = is_picked[word] & is_token & ~is_space
  # Random symbols are drawn from the same text, by their frequency in it.
  characters = words.symbols[ragged(words.start[entries], sizes)]
  character_count = np.bincount(owner, weights=sizes, minlength=len(counts)).astype(np.int64)
  character_base = np.cumsum(character_count) - character_count
  draw = rng.below(rng.bits(rng.keys(seed, "symbols", numbers), L), character_count[:, None])
  replacement = characters[character_base[:, None] + draw]
  shown = np.where(is_chosen & is_masked[word], table.mask_id, np.where(is_chosen & is_random[word], replacement, ids))
  return Rows(ids, shown.astype(np.int32), is_token, is_space, is_chosen, entries[word])


def pack_rows(rows: Rows, is_used: np.ndarray, table: Symbols) -> Rows:
  """Puts several examples into each row.

  Args:
    rows: Rows of E examples.
    is_used: bool array [B, S] with E True, see packing.rows_to_records.
    table: the symbol table.

  Returns:
    Rows of B rows.
  """
  arrays = {name: values for name, values in rows._asdict().items() if values is not None}
  return Rows(**packing.pack_positions(arrays, rows.is_token, is_used, dict.fromkeys(("ids", "shown"), table.pad_id)))


def make_batch(rows: Rows, numbers: np.ndarray, seed: int, words: Lexicon, word_slots: int = 0) -> dict:
  """Returns the arrays of the task plbert.

  Args:
    rows: from make_rows.
    numbers, seed: as there.
    words: the lexicon.
    word_slots: W, at how many positions the word loss is computed, drawn at random; 0 is all L.

  Returns:
    dict: input_ids, attention_mask [B, L] int32; phoneme_labels [B, L] int32, phoneme_weights [B, L] float32: 1 / the
    example's masked positions there, else 0; word_labels [B, W] int32, word_weights [B, W] float32: 1 / the example's
    counted positions at those, else 0, and the more, the fewer of the row's are drawn; word_positions [B, W] int32
    unless W is L; weight [B] float32, the examples of a row; segment_ids, position_ids [B, L] int32 of packed rows. An
    example is a row, or one of those packed into it.
  """
  label = np.where(rows.is_space, lexicons.SPACE, words.target[rows.entry]).astype(np.int32)
  is_counted = rows.is_token & (label != lexicons.UNKNOWN)
  batch = {
    "input_ids": rows.shown,
    "attention_mask": rows.is_token.astype(np.int32),
    "phoneme_labels": rows.ids,
    "phoneme_weights": _means(rows.is_chosen, rows.segment_ids),
    "weight": np.ones(len(label), np.float32),
  }
  if rows.segment_ids is not None:
    batch |= {"segment_ids": rows.segment_ids, "position_ids": rows.position_ids}
    batch["weight"] = rows.segment_ids.max(axis=1).astype(np.float32)
  if word_slots:
    draw = rng.bits(rng.keys(seed, "positions", numbers), label.shape[1])
    draw[~is_counted] = np.iinfo(np.uint64).max
    position = np.sort(np.argpartition(draw, word_slots - 1, axis=1)[:, :word_slots], axis=1)
    batch["word_positions"] = position.astype(np.int32)
  weights = _means(is_counted, rows.segment_ids, word_slots)
  if word_slots:
    label, weights = (np.take_along_axis(x, position, axis=1) for x in (label, weights))
  return batch | {"word_labels": label, "word_weights": weights}


def _means(is_used, segments, draws=0):
  """Returns weights by which a sum over a row is that of the means over the used positions of its examples.

  With `draws`, the sum is over as many of the row's used positions, and its expectation is that of the means.
  """
  total = is_used.sum(axis=1, keepdims=True)
  count = total
  if segments is not None:
    group = np.arange(len(is_used))[:, None] * (segments.max() + 1) + segments
    count = np.bincount(group[is_used], minlength=group.max() + 1)[group]
  drawn = np.minimum(total, draws) if draws else total
  return (is_used * total / np.maximum(count * drawn, 1)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Maker(batching.Maker):
  word_slots: int = 0

  def explain(self, step):
    """Returns the batch, and the Rows it was made of."""
    cfg = self.cfg
    source = datasets.open_split(cfg.dataset, self.split)
    total = _count_rows(cfg, self.split)
    numbers, numbers_or_last, is_real = self.numbers(step, total)
    examples, is_used, max_symbols = numbers, None, None
    if cfg.packing > 1:
      plan = _plan(cfg.dataset, self.split, cfg.seq_length, cfg.packing)
      indices, is_used, max_symbols = packing.place(
        plan, numbers_or_last, self.seed if self.is_training else None, cfg.seq_length, special=0
      )
      examples = packing.example_numbers(numbers, is_used)
    elif self.is_training:
      _, indices = mixture.locate(numbers, mixture.block_slots("", [total]), [total], self.seed)
    else:
      indices = numbers_or_last
    batch = records.unpack(datasets.fetch(source, indices.tolist()))
    words, table = lexicons.load(cfg.dataset), symbols(cfg.dataset)
    laid_out = make_rows(batch, examples, self.seed, cfg, words, table, max_symbols)
    if is_used is not None:
      laid_out = pack_rows(laid_out, is_used, table)
    made = make_batch(laid_out, numbers, self.seed, words, self.word_slots)
    for name in ("phoneme_weights", "word_weights", "weight"):
      made[name][~is_real] = 0
    return made, laid_out


@functools.lru_cache(maxsize=16)
def _plan(dataset, split, length, most):
  """Returns the packing plan of a split, made once a process.

  Raises:
    UserError: the dataset has no sizes in symbols.
  """
  sizes = datasets.lengths(dataset, split)[:, 1]
  if (sizes < 2).any():  # A word and its space are two symbols.
    raise UserError(
      f"data.dataset={dataset} was made before data.packing could read it; make it again with albert-jax phonemes, or "
      "add --config.data.packing=1"
    )
  return packing.make_plan(np.minimum(sizes.astype(np.int64), length), length, most)


def _count_rows(cfg, split):
  """Returns the number of rows of one epoch of a split."""
  if cfg.packing > 1:
    return _plan(cfg.dataset, split, cfg.seq_length, cfg.packing).rows
  return len(datasets.open_split(cfg.dataset, split))


@functools.lru_cache(maxsize=8)
def symbols(dataset: str) -> Symbols:
  """Returns the symbol table of a dataset, read once a process."""
  return symbol_tables.load(dataset)


def describe(dataset: str) -> dict:
  """What `albert-jax phonemes` wrote about a dataset.

  Raises:
    UserError: it is not a dataset of phonemes, or several.
  """
  if "," in dataset:
    raise UserError(f"data.dataset={dataset}: phonemes are read from one dataset; give both corpora to one --input")
  if not dataset:
    raise UserError(
      "data.dataset is not set; make one with: albert-jax phonemes --input=… --language=en-us --out=DIR, and give "
      "--config.data.dataset=DIR"
    )
  if not files.exists(f"{files.user_path(dataset)}/{datasets.DESCRIPTION_FILE}"):
    raise UserError(
      f"data.dataset={dataset} is no dataset; make one with: albert-jax phonemes --input=… --language=en-us --out="
      f"{dataset}"
    )
  description = datasets.describe(dataset)
  if description.get("kind") != KIND:
    raise UserError(
      f"data.dataset={dataset} holds text, not phonemes; make one with: albert-jax phonemes --input=… --language=en-us "
      "--out=DIR"
    )
  return description


def _check(cfg, split, batch_size, host, hosts):
  describe(cfg.dataset)
  batching.check_hosts(batch_size, host, hosts)
  return _count_rows(cfg, split)


def batch_maker(
  cfg: SpeechConfig,
  *,
  batch_size: int,
  seed: int,
  host: int = 0,
  hosts: int = 1,
  first_row: int = 0,
  word_slots: int = 0,
) -> _Maker:
  """What makes the training batches: a function of the step; its method `explain` also returns the Rows.

  Args:
    word_slots: see `make_batch`; all others as in pretraining.batching.train_batches.
  """
  _check(cfg, cfg.split, batch_size, host, hosts)
  return _Maker(cfg, cfg.split, batch_size, seed, host, hosts, True, first_row, word_slots)


def train_batches(cfg: SpeechConfig, *, start_step: int = 0, **options: Any) -> Iterator[dict[str, np.ndarray]]:
  """Endless training batches, shuffled anew each epoch, from number `start_step` on.

  Args:
    start_step: the number of the first batch; all others as in `batch_maker`.
  """
  return batching.iterate(batch_maker(cfg, **options), start_step, batching.FOREVER, cfg.workers)


def eval_batches(
  cfg: SpeechConfig, *, batch_size: int, seed: int, host: int = 0, hosts: int = 1, max_batches: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
  """One pass over the validation split, in order, with the same windows and masks every time for the same seed.

  Returns:
    iterator of as many dicts on every host, with all positions for the word loss. Rows that fill the last batch up
      weigh 0.
  """
  total = _check(cfg, cfg.validation_split, batch_size, host, hosts)
  maker = _Maker(cfg, cfg.validation_split, batch_size, seed, host, hosts, False)
  count = -(-total // batch_size)
  return batching.iterate(maker, 0, min(count, max_batches or count), 0)
