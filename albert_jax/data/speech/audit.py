"""What a model will see of a dataset of phonemes: shares, word targets, words with phonemes, the strangest words."""

import collections
import itertools
import math

import numpy as np

from albert_jax.data.pretraining.audit import Check
from albert_jax.data.speech import batching, lexicon
from albert_jax.data.speech.batching import SpeechConfig

_BATCH = 256
# Of a healthy corpus. If nearly all targets are equal, the word loss is near 0 without learning.
LEAST_COVERAGE, LEAST_ENTROPY, MOST_UNKNOWN, MOST_PADDING = 0.8, 3.0, 0.01, 0.5


def measure(cfg: SpeechConfig, examples: int, seed: int = 0) -> tuple[dict, batching.Rows]:
  """Makes examples and counts.

  Args:
    cfg: SpeechConfig.
    examples: about how many.
    seed: int.

  Returns:
    ({name: plain number}, the first batch's Rows).
  """
  maker = batching.batch_maker(cfg, batch_size=_BATCH, seed=seed)
  words, table = lexicon.load(cfg.dataset), batching.symbols(cfg.dataset)
  total: collections.Counter[str] = collections.Counter()
  first = maker.explain(0)
  targets = np.zeros(batching.describe(cfg.dataset)["vocabulary"]["words"], np.int64)
  for batch, rows in itertools.chain([first], map(maker.explain, range(1, math.ceil(examples / _BATCH)))):
    chosen = rows.is_chosen
    kept = chosen & (rows.shown == rows.ids)
    masked = chosen & (rows.shown == table.mask_id)
    targets += np.bincount(batch["word_labels"][rows.is_token], minlength=len(targets))
    total.update(
      rows=len(rows.ids), positions=rows.ids.size, symbols=int(rows.is_token.sum()), chosen=int(chosen.sum()),
      spaces=int(rows.is_space.sum()), masked=int(masked.sum()), kept=int(kept.sum()),
      unknown=int((rows.ids == table.unk_id).sum()),
    )  # fmt: skip
  known = targets[lexicon.FIRST_WORD :]
  p = known[known > 0] / max(1, known.sum())
  top = np.argsort(-known)[:20]
  names = lexicon.load_targets(cfg.dataset)
  numbers = {
    "examples": total["rows"],
    "seq_length": cfg.seq_length,
    "symbols_mean": total["symbols"] / total["rows"],
    "padding_share": 1 - total["symbols"] / total["positions"],
    "mask_rate": total["chosen"] / max(1, total["symbols"] - total["spaces"]),
    "mask_share": total["masked"] / max(1, total["chosen"]),
    "kept_share": total["kept"] / max(1, total["chosen"]),
    "unknown_symbol_rate": total["unknown"] / max(1, total["symbols"]),
    "word_coverage": float(known.sum() / max(1, known.sum() + targets[lexicon.UNKNOWN])),
    "word_entropy": float(-(p * np.log(p)).sum()),
    "space_share": total["spaces"] / total["symbols"],
    "top_words": {names[lexicon.FIRST_WORD + i]: float(known[i] / max(1, known.sum())) for i in top.tolist()},
    "distinct_words": len(words.words),
  }
  return numbers, first[1]


def checks(numbers: dict, cfg: SpeechConfig) -> list[Check]:
  """Returns the checks of the numbers of `measure`."""
  masked = numbers["mask_rate"] * numbers["symbols_mean"] * numbers["examples"]
  slack = max(0.02, 4 / math.sqrt(max(1, masked / 8)))  # Words are drawn, of about eight symbols at most.
  space = "documents are shorter than rows: --config.data.packing=8, or a smaller --config.data.seq_length"
  return [
    Check(name, numbers[name], low, high, advice) for name, low, high, advice in (
      ("mask_rate", cfg.mask_rate - slack, cfg.mask_rate + slack, "more --examples"),
      ("mask_share", cfg.mask_share - slack, cfg.mask_share + slack, "more --examples"),
      ("padding_share", 0, MOST_PADDING, space),
      ("unknown_symbol_rate", 0, MOST_UNKNOWN,
       "characters outside the symbol table: albert-jax phonemes --add_symbols=100"),
      ("word_coverage", LEAST_COVERAGE, 1, "more targets: albert-jax phonemes --words=50000"),
      ("word_entropy", LEAST_ENTROPY, 100,
       "word targets are nearly all the same, so the word loss says nothing: was the text split into words?"),
    )
  ]  # fmt: skip


def show_row(rows: batching.Rows, row: int, dataset: str) -> str:
  """One row as text: words as `word/phonemes`, a chosen word's phonemes as `{what the model sees}`.

  An ellipsis stands for the phonemes of a word that are outside the row's window.
  """
  words, table = lexicon.load(dataset), batching.symbols(dataset)
  parts, begin = [], 0
  ends = [*np.flatnonzero(rows.is_space[row]).tolist(), int(rows.is_token[row].sum())]
  for end in ends:
    if end > begin:
      shown = "".join(table.pieces[i] or "·" for i in rows.shown[row, begin:end])
      entry = rows.entry[row, begin]
      if end - begin < words.sizes[entry]:
        shown = f"…{shown}" if end < ends[-1] else f"{shown}…"
      parts.append(f"{words.words[entry]}/" + (f"{{{shown}}}" if rows.is_chosen[row, begin] else shown))
    begin = end + 1
  return " ".join(parts)


def strangest(dataset: str, count: int = 20) -> list[tuple[str, str, float]]:
  """The words whose phonemes are least like those of the other words, without punctuation: [(word, phonemes, score)].

  The score is the mean surprise of a symbol after the one before it, in nats, by how often pairs of symbols occur in
  the lexicon. Words of other scripts, abbreviations that are spelled, and mistakes of a phonemiser score high.
  """
  words = lexicon.load(dataset)
  size = int(words.symbols.max(initial=0)) + 2  # and the edge of a word
  edge = size - 1
  after = words.symbols.astype(np.int64)
  before = np.append(edge, after[:-1])
  starts = words.start[:-1]
  before[starts] = edge
  pairs = np.zeros((size, size))
  np.add.at(pairs, (before, after), 1)
  surprise = -np.log((pairs[before, after] + 0.01) / (pairs[before].sum(axis=1) + 0.01 * size))
  scores = np.add.reduceat(surprise, starts) / words.sizes
  is_word = np.array([word[:1].isalnum() for word in words.words])
  order = np.argsort(-np.where(is_word, scores, -1), kind="stable")[:count].tolist()
  return [(words.words[i], words.phonemes[i], float(scores[i])) for i in order]
