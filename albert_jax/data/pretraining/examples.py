"""Makes pre-training examples of segments, a batch at a time; a pure function of records, seed and example numbers."""

import dataclasses
import typing
from typing import Any

import numpy as np

from albert_jax.data import records, rng
from albert_jax.data.pretraining import masking, packing, pairs
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

OBJECTIVES = ("sop", "nsp", "none")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The data settings of pre-training: `config.data` of configs/pretrain.py.

  Attributes:
    dataset: a folder made by `albert-jax prepare`; or several to mix, with commas between.
    weights: the shares of several datasets, with commas between; '' goes by their sizes.
    split: the name of the split to train on.
    validation_split: the name of the split to evaluate on.
    spm: the vocabulary; '' is the one inside the folder. Another file must be equal to it.
    seq_length: L.
    max_predictions: M, the slots for masked tokens; 0 takes as many as `mask_rate` needs.
    mask_rate: the share of the tokens (special ones not counted) that are masked.
    ngram: the most words that are masked in a row; 1 masks single words.
    favor_shorter_ngram: the paper's: a run of n words is drawn with probability in proportion to 1/n; False: reversed.
    whole_word: mask words, not pieces of words.
    mask_share: of the masked tokens, the share shown as [MASK].
    random_share: of the masked tokens, the share shown as a random token; the rest is shown unchanged.
    short_seq_rate: the share of rows that are cut to a random shorter length.
    packing: the most examples in a row. More than 1 fills rows of short documents, and needs short_seq_rate=0: in
      training, the remaining room is filled with short sequences.
    objective: `sop` (are the two texts in order?), `nsp` (is the second from another document?; BERT's, for
      comparison) or `none` (one text a row).
    workers: processes that make batches; 0 makes them in a thread of this one.
  """

  dataset: str
  weights: str = ""
  split: str = "train"
  validation_split: str = "validation"
  spm: str = ""
  seq_length: int = 512
  max_predictions: int = 0
  mask_rate: float = 0.15
  ngram: int = 3
  favor_shorter_ngram: bool = True
  whole_word: bool = True
  mask_share: float = 0.8
  random_share: float = 0.1
  short_seq_rate: float = 0.1
  packing: int = 1
  objective: str = "sop"
  workers: int = 0

  def __post_init__(self):
    check_ranges(self, short_seq_rate=(0, 1), max_predictions=(0, 65535), ngram=(1, 100))
    if not self.mask_rate:
      raise UserError("data.mask_rate=0 masks nothing to learn from; expected above 0, as --config.data.mask_rate=0.15")
    if self.packing > 1 and self.short_seq_rate:
      raise UserError(
        f"data.packing={self.packing} fills rows and data.short_seq_rate={self.short_seq_rate} leaves them empty; "
        "expected one of them: add --config.data.short_seq_rate=0.0"
      )
    if self.packing > 1 and self.objective == "nsp":
      raise UserError(
        f"data.packing={self.packing} plans rows by the lengths of records, and a pair of data.objective=nsp has two; "
        "expected one of them: add --config.data.packing=1"
      )
    if self.objective not in OBJECTIVES:
      raise UserError(f"data.objective={self.objective!r} is unknown; expected one of {', '.join(OBJECTIVES)}")

  @property
  def slots(self) -> int:
    """Returns M, the slots for masked tokens: 77 at length 512 and a mask rate of 15 %."""
    return self.max_predictions or max(1, round(self.mask_rate * self.seq_length))


def check_ranges(data: Any, **ranges: tuple[int, int]) -> None:
  """Checks the numbers of `config.data` for text or phonemes: those that both have, and `ranges`, ends included."""
  ranges |= dict.fromkeys(("mask_rate", "mask_share", "random_share"), (0, 1))
  ranges |= {"seq_length": (8, 65535), "packing": (1, 256), "workers": (0, 1024)}
  for name, (low, high) in ranges.items():
    if not low <= getattr(data, name) <= high:
      raise UserError(
        f"data.{name}={getattr(data, name)} is out of range; expected {low} to {high}: --config.data.{name}=…"
      )
  if data.mask_share + data.random_share > 1:
    raise UserError(
      f"data.mask_share={data.mask_share} and data.random_share={data.random_share} add up to more than 1; expected, "
      "as in the paper, 0.8 and 0.1"
    )


class Vocabulary(typing.NamedTuple):
  """The ids of a vocabulary that making examples needs."""

  pad_id: int
  cls_id: int
  sep_id: int
  mask_id: int
  ordinary_ids: np.ndarray

  @classmethod
  def from_tokenizer(cls, tokenizer: Tokenizer) -> typing.Self:
    return cls(tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.ordinary_ids)


class Rows(typing.NamedTuple):
  """Rows before masking: `[CLS] first [SEP]` or `[CLS] first [SEP] second [SEP]`, then padding; all arrays [B, L].

  Attributes:
    ids: int32.
    is_token: bool, all but padding.
    is_second: bool, `second [SEP]`.
    is_special: bool, [CLS], [SEP] and padding.
    starts_word: bool, see masking.choose_spans.
  """

  ids: np.ndarray
  is_token: np.ndarray
  is_second: np.ndarray
  is_special: np.ndarray
  starts_word: np.ndarray


def lay_out(
  batch: records.Records, chosen: pairs.Pairs, vocabulary: Vocabulary, length: int, whole_word: bool = True
) -> Rows:
  """Copies the chosen tokens into rows.

  Args:
    batch: records.Records of B segments.
    chosen: pairs.Pairs.
    vocabulary: Vocabulary.
    length: L.
    whole_word: False makes every token a word.

  Returns:
    Rows.
  """
  rows = np.arange(len(chosen.first_size))
  has_second = chosen.second_size > 0
  middle = chosen.first_size + 1  # the first [SEP]
  end = middle + np.where(has_second, chosen.second_size + 1, 0)  # the last [SEP]
  column = np.arange(length)

  is_token = column <= end[:, None]
  is_second = column > middle[:, None]

  def take(values, base):
    """Returns the rows' tokens from an array in which record r begins at base[r]; arbitrary at special tokens."""
    shift = np.where(
      is_second,
      (base[chosen.second_record] + chosen.second_start - middle - 1)[:, None],
      (base[rows] + chosen.first_start - 1)[:, None],
    )
    shift += column
    return np.take(values, shift, mode="clip")

  ids = take(batch.ids, batch.id_base).astype(np.int32)
  if whole_word:
    width = (int(batch.tokens.max()) + 7) // 8
    words = np.take(batch.data, batch.word_base[:, None] + np.arange(width), mode="clip")
    words = np.unpackbits(words, axis=1, bitorder="little")
    starts_word = take(words.ravel(), np.arange(len(words)) * words.shape[1]).astype(bool)
  else:
    starts_word = np.ones_like(is_token)
  is_second &= is_token
  starts_word[rows, 1] = True  # A trimmed text may begin inside a word.
  starts_word[rows, np.minimum(middle + 1, length - 1)] = True

  is_special = ~is_token
  ids[is_special] = vocabulary.pad_id
  for at, special in ((0 * rows, vocabulary.cls_id), (middle, vocabulary.sep_id), (end, vocabulary.sep_id)):
    ids[rows, at] = special
    is_special[rows, at] = True
    starts_word[rows, at] = True
  starts_word &= is_token
  starts_word[rows, np.minimum(end + 1, length - 1)] = True  # the first padding, which ends the last word
  return Rows(ids=ids, is_token=is_token, is_second=is_second, is_special=is_special, starts_word=starts_word)


class Details(typing.NamedTuple):
  """The intermediate results of a batch, for audit.py and tests.

  Attributes:
    examples: dict, the examples as make_batch returns them, before any packing; E of them, and so of all below.
    records: what they are made of.
    pairs, rows, spans: see there.
  """

  examples: dict
  records: records.Records
  pairs: pairs.Pairs
  rows: Rows
  spans: masking.Spans


def make_batch(
  packed: list[bytes], numbers: np.ndarray, seed: int, cfg: DataConfig, vocabulary: Vocabulary
) -> dict[str, np.ndarray]:
  """Makes a batch of examples of segments.

  Args:
    packed: B packed records, see records.pack; 2 B for `nsp`, the second B for texts of other documents.
    numbers: int64 array [B], the global example numbers, which determine the random draws.
    seed: the seed of the random draws.
    cfg: the data settings.
    vocabulary: the ids of the vocabulary.

  Returns:
    dict of arrays: input_ids, attention_mask (1 = token), token_type_ids [B, L] int32; mlm_positions, mlm_labels
    [B, M] int32, mlm_weights [B, M] float32; sop_label [B] int32 (1 = swapped; under `nsp` 1 = from another document),
    sop_weight [B] float32 (0 = no pair).
  """
  return explain_batch(packed, numbers, seed, cfg, vocabulary)[0]


def explain_batch(
  packed: list[bytes],
  numbers: np.ndarray,
  seed: int,
  cfg: DataConfig,
  vocabulary: Vocabulary,
  is_used: np.ndarray | None = None,
  max_tokens: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], Details]:
  """Makes a batch as `make_batch`, and returns its Details too.

  Args:
    packed, numbers, seed, cfg, vocabulary: as for make_batch.
    is_used: bool array [B, S], the places of the examples in rows, if they are to be packed (see packing.py).
    max_tokens: int64 array [B], the most tokens of each example, special ones not counted; None is what a row takes.

  Returns:
    (dict as from make_batch or packing.pack_examples, Details).
  """
  batch = records.unpack(packed)
  chosen = pairs.choose(
    batch,
    rng.keys(seed, "pairs", numbers),
    max_tokens=cfg.seq_length - 3 if max_tokens is None else max_tokens,
    short_seq_rate=cfg.short_seq_rate,
    objective=cfg.objective,
  )
  rows = lay_out(batch, chosen, vocabulary, cfg.seq_length, cfg.whole_word)
  tokens = chosen.first_size + chosen.second_size
  budget = np.clip(np.rint(cfg.mask_rate * tokens).astype(np.int64), 1, cfg.slots)
  if is_used is not None:
    budget = packing.share_budget(budget, is_used, cfg.slots)
  spans = masking.choose_spans(
    rows.starts_word,
    rows.is_special,
    budget,
    rng.keys(seed, "spans", numbers),
    ngram=cfg.ngram,
    favor_shorter=cfg.favor_shorter_ngram,
  )
  masked = masking.mask_tokens(
    rows.ids,
    spans,
    rng.keys(seed, "tokens", numbers),
    slots=cfg.slots,
    mask_id=vocabulary.mask_id,
    ordinary_ids=vocabulary.ordinary_ids,
    mask_share=cfg.mask_share,
    random_share=cfg.random_share,
  )
  examples = {
    "input_ids": masked.ids,
    "attention_mask": rows.is_token.astype(np.int32),
    "token_type_ids": rows.is_second.astype(np.int32),
    "mlm_positions": masked.positions,
    "mlm_labels": masked.labels,
    "mlm_weights": masked.weights,
    "sop_label": chosen.label.astype(np.int32),
    "sop_weight": chosen.is_pair.astype(np.float32),
  }
  details = Details(examples, batch, chosen, rows, spans)
  if is_used is None:
    return examples, details
  return packing.pack_examples(examples, is_used, cfg.slots, vocabulary.pad_id), details
