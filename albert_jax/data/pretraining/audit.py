"""Measures pre-training batches before a training run (`albert-jax audit`)."""

import collections
import dataclasses
import math
import os
from typing import Any

import numpy as np

from albert_jax import files
from albert_jax.data import datasets, records
from albert_jax.data.pretraining import batching, masking
from albert_jax.data.pretraining.examples import DataConfig, Details
from albert_jax.data.tokenizer import Tokenizer

_BATCH = 256
_READ = 500_000  # records of a split that are checked for duplicates


@dataclasses.dataclass(frozen=True)
class Check:
  """A number and the range it should be in."""

  name: str
  value: float
  low: float
  high: float
  advice: str

  @property
  def is_fine(self) -> bool:
    return self.low <= self.value <= self.high


def restore(batch: dict[str, np.ndarray]) -> np.ndarray:
  """Returns the ids of a batch before masking: int32 array [B, L]."""
  ids = batch["input_ids"].copy()
  rows, slots = np.nonzero(batch["mlm_weights"])
  ids[rows, batch["mlm_positions"][rows, slots]] = batch["mlm_labels"][rows, slots]
  return ids


def mask_runs(is_masked: np.ndarray, is_start: np.ndarray, is_special: np.ndarray) -> dict[int, int]:
  """Returns how long the runs of masked words are: {words: count}. All arguments are bool arrays [B, L]."""
  begins_word = is_start & ~is_special
  word = begins_word & is_masked
  # A run ends at a word that is not masked, or at a special token.
  breaks = (is_start & ~is_masked).ravel()
  run = np.cumsum(breaks)[word.ravel()]
  lengths = np.bincount(np.unique(run, return_counts=True)[1]) if len(run) else np.zeros(1, int)
  return {n: int(count) for n, count in enumerate(lengths.tolist()) if count}


def measure(
  cfg: DataConfig, examples: int, seed: int = 0
) -> tuple[dict[str, Any], tuple[dict[str, np.ndarray], Details]]:
  """Makes examples and measures their properties.

  Args:
    cfg: DataConfig.
    examples: int, about how many.
    seed: int.

  Returns:
    A dict of plain numbers, and the first batch with its examples.Details.
  """
  make = batching.batch_maker(cfg, batch_size=_BATCH, seed=seed)
  tokenizer = datasets.tokenizer(cfg.dataset, cfg.spm)
  total, drawn, words, runs, orders = (collections.Counter() for _ in range(5))
  row_lengths, filled, pieces = [], [], np.zeros(tokenizer.vocab_size, np.int64)
  first = None
  for step in range(max(1, math.ceil(examples / _BATCH))):
    rows, details = make.explain(step)
    batch = details.examples
    first = first or (batch, details)
    filled.append(rows["attention_mask"].mean(axis=1))
    used = batch["mlm_weights"] == 1
    at = np.nonzero(used)[0], batch["mlm_positions"][used]
    label, shown = batch["mlm_labels"][used], batch["input_ids"][at]
    is_masked = np.zeros(batch["input_ids"].shape, bool)
    is_masked[at] = True
    ids = restore(batch)
    text = ids[~details.rows.is_special]
    is_pair = batch["sop_weight"] == 1
    longer = np.sign(details.pairs.first_size - details.pairs.second_size)[is_pair]
    orders.update(zip(longer.tolist(), batch["sop_label"][is_pair].tolist(), strict=True))
    documents = details.records.document
    document_a, document_b = documents[: len(is_pair)], documents[details.pairs.second_record]
    row_lengths.append(batch["attention_mask"].sum(axis=1))
    pieces += np.bincount(text, minlength=len(pieces))
    drawn.update(details.spans.drawn.tolist())
    words.update(details.spans.words.tolist())
    runs.update(mask_runs(is_masked, details.rows.starts_word, details.rows.is_special))
    total.update(
      examples=len(is_pair),
      text=len(text),
      masked=len(label),
      masked_special=int(details.rows.is_special[at].sum()),
      shown_as_mask=int((shown == tokenizer.mask_id).sum()),
      shown_random=int(((shown != tokenizer.mask_id) & (shown != label)).sum()),
      pairs=int(is_pair.sum()),
      labelled=int(batch["sop_label"][is_pair].sum()),
      short=int(details.pairs.is_short.sum()),
      across=int((is_pair & (document_a != document_b)).sum()),
      unknown=int((text == tokenizer.unk_id).sum()),
    )
  assert first is not None  # There is at least one step.
  lengths = np.concatenate(row_lengths)
  masked, spans = max(1, total["masked"]), max(1, sum(drawn.values()))
  top = np.argsort(-pieces)[:20]
  numbers = {
    "examples": total["examples"],
    "seq_length": cfg.seq_length,
    "max_predictions": cfg.slots,
    "mask_rate": total["masked"] / total["text"],
    "masked_tokens_mean": total["masked"] / total["examples"],
    "masked_special_tokens": total["masked_special"],
    "mask_share": total["shown_as_mask"] / masked,
    "random_share": total["shown_random"] / masked,
    "kept_share": 1 - (total["shown_as_mask"] + total["shown_random"]) / masked,
    "ngram_shares": [drawn[n] / spans for n in range(1, cfg.ngram + 1)],
    "masked_ngram_shares": [words[n] / spans for n in range(1, cfg.ngram + 1)],
    "mask_run_shares": {str(n): runs[n] / max(1, sum(runs.values())) for n in sorted(runs)},
    "pair_rate": total["pairs"] / total["examples"],
    "swap_rate": total["labelled"] / max(1, total["pairs"]),
    "order_from_lengths": sum(max(orders[n, 0], orders[n, 1]) for n in (-1, 0, 1)) / max(1, total["pairs"]),
    "short_rate": total["short"] / total["examples"],
    "cross_document_pairs": total["across"],
    "padding_share": 1 - float(np.concatenate(filled).mean()),
    "examples_per_row": total["examples"] / sum(map(len, filled)),
    "tokens_mean": float(lengths.mean()),
    "length_histogram": np.histogram(lengths, bins=16, range=(0, cfg.seq_length))[0].tolist(),
    "unknown_rate": total["unknown"] / total["text"],
    "top_pieces": {tokenizer.pieces[i]: float(pieces[i] / total["text"]) for i in top.tolist()},
  }
  return numbers, first


def count_duplicates(cfg: DataConfig) -> dict[str, Any]:
  """Counts `documents_in_both_splits` and the share of `duplicate_segments` over the records of both splits."""
  documents, segments, repeated = collections.defaultdict(set), set(), 0
  for folder in datasets.folders(cfg.dataset):
    for split in datasets.describe(folder)["splits"]:
      data = datasets.open_split(folder, split)
      size = min(len(data), _READ)
      for i in range(0, size, 1024):
        packed = datasets.fetch(data, list(range(i, min(i + 1024, size))))
        documents[split].update(records.unpack(packed).document.tolist())
        hashes = [hash(record[8:]) for record in packed]  # without the document
        repeated += len(hashes) - len(set(hashes) - segments)
        segments.update(hashes)
  shared = set.intersection(*documents.values()) if len(documents) > 1 else set()
  return {
    "documents_in_both_splits": len(shared),
    "duplicate_segments": repeated / max(1, repeated + len(segments)),
  }


def checks(numbers: dict[str, Any], cfg: DataConfig) -> list[Check]:
  """Returns the checks of the numbers of `measure` and `count_duplicates`."""
  expected = masking.ngram_probabilities(cfg.ngram, cfg.favor_shorter_ngram)
  masked = numbers["mask_rate"] * numbers["tokens_mean"] * numbers["examples"]

  def share(name, value, expected, count, advice):
    # A share deviates by chance; four standard deviations are practically never exceeded.
    slack = max(0.01, 4 * math.sqrt(expected * (1 - expected) / max(1, count)))
    return Check(name, value, expected - slack, expected + slack, advice)

  random = cfg.random_share
  rate = cfg.mask_rate
  spans = masked / 2
  pairs = numbers["pair_rate"] * numbers["examples"]
  result = [
    Check(
      "mask_rate", numbers["mask_rate"], 0.95 * rate, 1.05 * rate,
      "more slots: --config.data.max_predictions=0 takes as many as mask_rate needs",
    ),
    Check("masked_special_tokens", numbers["masked_special_tokens"], 0, 0, "a bug: please report it"),
    share("mask_share", numbers["mask_share"], cfg.mask_share, masked, "a bug: please report it"),
    share("random_share", numbers["random_share"], random, masked, "a bug: please report it"),
    share("short_rate", numbers["short_rate"], cfg.short_seq_rate, numbers["examples"], "a bug: please report it"),
    Check(
      "padding_share", numbers["padding_share"], 0, 0.5,
      "documents are short: was --layout right? If so, a smaller --config.data.seq_length, or --config.data.packing",
    ),
    Check("unknown_rate", numbers["unknown_rate"], 0, 0.05, "another vocabulary: albert-jax vocab on this corpus"),
    Check("duplicate_segments", numbers["duplicate_segments"], 0, 0.02, "clean the corpus: text repeats in it"),
    Check("documents_in_both_splits", numbers["documents_in_both_splits"], 0, 0, "make the dataset again"),
  ]  # fmt: skip
  for n, (got, p) in enumerate(zip(numbers["ngram_shares"], expected.tolist(), strict=True), 1):
    result.append(share(f"ngram_shares[{n}]", got, p, spans, "texts are too short for runs of words"))
  if cfg.objective != "none":
    advice = "few rows have two sentences: check --layout and --sentences of albert-jax prepare"
    result.append(Check("pair_rate", numbers["pair_rate"], 0.5, 1, advice))
    result.append(share("swap_rate", numbers["swap_rate"], 0.5, pairs, "a bug: please report it"))
  if cfg.objective == "sop":
    # Chance alone gives 0.5 and a little; whole sentences make the part at the end of a run somewhat longer.
    slack = 2 / math.sqrt(max(1, pairs))
    advice = "which text is longer tells their order: check --sentences of albert-jax prepare, or that texts are whole"
    result.append(Check("order_from_lengths", numbers["order_from_lengths"], 0, 0.65 + slack, advice))
    result.append(Check("cross_document_pairs", numbers["cross_document_pairs"], 0, 0, "a bug: please report it"))
  return result


def show_example(batch: dict[str, np.ndarray], details: Details, row: int, tokenizer: Tokenizer) -> str:
  """Returns an example as text: `{mask:original}`, `{random:original}`, `{original}` for a kept masked token."""
  labels = dict(
    zip(
      batch["mlm_positions"][row][batch["mlm_weights"][row] == 1].tolist(),
      batch["mlm_labels"][row][batch["mlm_weights"][row] == 1].tolist(),
      strict=True,
    )
  )
  pieces = []
  for i, token in enumerate(batch["input_ids"][row][: batch["attention_mask"][row].sum()].tolist()):
    piece = tokenizer.pieces[labels.get(i, token)]
    if i in labels:
      shown = "" if token == labels[i] else "_:" if token == tokenizer.mask_id else f"{tokenizer.pieces[token]}:"
      piece = ("▁" if piece.startswith("▁") else "") + "{" + (shown + piece).replace("▁", "") + "}"
    elif details.rows.is_special[row, i]:
      piece = f"▁{piece}▁"
    pieces.append(piece)
  order = "no pair" if not batch["sop_weight"][row] else f"label {batch['sop_label'][row]}"
  return f"[{order}] " + " ".join("".join(pieces).replace("▁", " ").split())


def draw(numbers: dict[str, Any], path: str | os.PathLike) -> None:
  """Draws the numbers as a figure."""
  from matplotlib.figure import Figure  # takes a second to import

  figure = Figure(figsize=(13, 7), layout="constrained")
  axes = figure.subplots(2, 2).ravel()
  width = numbers["seq_length"] / 16
  axes[0].bar((np.arange(16) + 0.5) * width, numbers["length_histogram"], width=0.9 * width)
  axes[0].set(title=f"tokens in a row ({numbers['padding_share']:.1%} padding)", xlabel="tokens", ylabel="rows")
  runs = {n: share for n, share in numbers["mask_run_shares"].items() if int(n) <= 8}
  axes[1].bar(list(runs), list(runs.values()))
  axes[1].set(title=f"masked words in a run ({numbers['mask_rate']:.2%} of tokens masked)", xlabel="words")
  kinds = ["mask_share", "random_share", "kept_share", "swap_rate", "short_rate", "pair_rate"]
  axes[2].barh(kinds[::-1], [numbers[kind] for kind in kinds[::-1]])
  axes[2].set(title="shares", xlim=(0, 1))
  top = list(numbers["top_pieces"].items())[::-1]
  axes[3].barh([ascii(piece)[1:-1].replace("\\u2581", "_") for piece, _ in top], [share for _, share in top])
  axes[3].tick_params(axis="y", labelsize=7)
  axes[3].set(title=f"most frequent pieces ({numbers['unknown_rate']:.2%} unknown)")
  files.write_figure(path, figure, dpi=100)
