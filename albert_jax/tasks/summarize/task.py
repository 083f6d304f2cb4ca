"""Extractive summaries: a score for every sentence of a document, of which the best ones are the summary.

As BertSum (arXiv 1903.10318) with its plain classifier: each sentence stands between a [CLS] and a [SEP] of its own,
token types alternate, and a dense layer on the encoder's output at a sentence's [CLS] says whether it belongs into the
summary. Documents that are longer than a row are cut between sentences into overlapping rows.
"""

import functools
import itertools
import json
import logging
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from albert_jax.data.corpus.sentences import split_sentences
from albert_jax.data.finetuning import cells, tables, windows
from albert_jax.data.finetuning.config import SummarizeData
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, task_heads
from albert_jax.tasks import base, heads, inputs
from albert_jax.tasks.base import Prediction, Spec, Sums, Task
from albert_jax.tasks.summarize import rouge
from albert_jax.types import Batch, Params

log = logging.getLogger(__name__)

HEAD = "sentence"


@dataclass(frozen=True)
class Settings:
  """`config.task` of configs/summarize.py.

  Attributes:
    sentences: of a summary, and of what training takes for the best one.
    trigram_blocking: no sentence that repeats three words in a row of a better one.
  """

  sentences: int
  trigram_blocking: bool

  def __post_init__(self):
    if self.sentences < 1:
      raise UserError(f"task.sentences={self.sentences} must be 1 or more; try --config.task.sentences=3")


@dataclass(frozen=True)
class Split:
  """Documents with their summaries.

  Attributes:
    documents: for each its sentences.
    references: the summaries to be; None if the file hides them.
    labels: for each sentence 1 if it belongs to the summary; None if the file hides the summaries.
  """

  documents: list[list[str]]
  references: list[str] | None
  labels: list[list[int]] | None


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/summarize.py, see `tasks.make`."""
  settings, data = base.settings_of(Settings, config), SummarizeData.from_config(config.data)
  most, blocking = settings.sentences, settings.trigram_blocking
  cfg, vocabulary = base.model_and_vocabulary(config, vocabulary)

  def encode(name, split):
    encoded, cut = _encode(split.documents, vocabulary, data.seq_length, split.labels)
    if cut:
      _log(f"{name}: {cut:,} sentences cut to {windows.longest_item(data.seq_length)} pieces")
    return encoded

  train_rows = functools.cache(lambda: encode(data.split, read(data, data.split, most)).rows)
  dev = read(data, data.validation_split, most, may_hide=True)
  dev_rows = encode(data.validation_split, dev)
  lead = _mean_scores(dev, [document[:most] for document in dev.documents])
  line = f"{data.validation_split}: {len(dev.documents):,} documents"
  if dev.labels is not None:
    pairs = zip(dev.documents, dev.labels, strict=True)
    best = _mean_scores(dev, [[s for s, y in zip(d, labels, strict=True) if y] for d, labels in pairs])
    line += "; the labelled sentences themselves have "
    line += ", ".join(f"{name} {value:.4f}" for name, value in best.items())
  _log(line)
  return Task(
    model=cfg,
    init=lambda key: heads.with_head(cfg, key, HEAD, 1),
    sums=functools.partial(sums, cfg),
    terms=heads.mean_label_loss,
    **base.batches(config, train_rows, lambda: dev_rows.rows, first_row),
    baselines={name: (value, f"the first {most} of each document (lead-{most})") for name, value in lead.items()},
    vocabulary=vocabulary,
    has_labels=dev.labels is not None,
    outputs=lambda params, batch: {"score": jax.nn.sigmoid(logits_BL(cfg, params, batch))},
    score=functools.partial(score, dev, dev_rows, most, blocking),
    train_rows=len(train_rows()) if config.epochs else 0,
    new=(task_heads.pattern(HEAD),),
    unused=base.unused(HEAD),
    about=base.about("summarize", sentences=most, trigram_blocking=blocking, seq_length=data.seq_length),
    architecture="AlbertModel",
  )  # fmt: skip


# Data.


def read(data: SummarizeData, split: str, most: int, *, may_hide: bool = False) -> Split:
  """Reads the documents of a split.

  Args:
    data: config.data, for the fields.
    split: its name.
    most: how many sentences to label where the file does not say which.
    may_hide: whether no row may have a summary or labels, as in published test data.

  Returns:
    the documents.

  Raises:
    UserError: a row has neither a summary nor labels, or not a label a sentence.
  """
  rows = tables.read(
    data.dataset, split, [data.document_field], optional=[data.summary_field, data.labels_field], quotes=data.quotes,
    settings=("document_field",),
  )  # fmt: skip
  documents, references, labels = [], [], []
  columns = [rows.columns[name] for name in (data.document_field, data.summary_field, data.labels_field)]
  hidden = may_hide and all(map(cells.is_hidden, itertools.chain(*columns[1:])))
  bar = tqdm(zip(*columns, strict=True), f"reading {split}", len(rows), disable=None, leave=False)
  document: Any
  summary: Any
  chosen: Any
  for i, row in enumerate(bar):
    document, summary, chosen = (None if cells.is_missing(value) else cells.parsed(value) for value in row)
    sentences = sentences_of("" if document is None else document) if isinstance(document, str | list | None) else None
    if sentences is None or not all(isinstance(sentence, str) for sentence in sentences):
      raise UserError(f"{rows.where(i)}: {data.document_field!r} is neither a text nor a list of sentences")
    if hidden:
      documents.append(sentences)
      continue
    is_list = isinstance(summary, list) and all(isinstance(line, str) for line in summary)
    reference = "\n".join(summary) if is_list else summary
    if chosen is not None:
      if not isinstance(chosen, list) or len(chosen) != len(sentences) or not all(y in (0, 1) for y in chosen):
        raise UserError(
          f"{rows.where(i)}: {data.labels_field!r} must be a list of 0 and 1, one for each of the document's "
          f"{len(sentences)} sentences; give the document as a list of sentences, so that they are the ones you mean"
        )
      reference = reference or "\n".join(s for s, y in zip(sentences, chosen, strict=True) if y)
    if not isinstance(reference, str) or (chosen is None and not reference.strip()):
      raise UserError(
        f"{rows.where(i)} has no summary in {data.summary_field!r} and no labels in {data.labels_field!r}; name the "
        "fields with --config.data.summary_field=NAME or --config.data.labels_field=NAME"
      )
    if chosen is None:
      oracle = set(rouge.oracle(sentences, reference, most))
      chosen = [int(n in oracle) for n in range(len(sentences))]
    documents.append(sentences)
    references.append(reference)
    labels.append([int(y) for y in chosen])
  if hidden:
    return Split(documents, None, None)
  notes = {
    "documents are empty, and so is their summary": sum(not sentences for sentences in documents),
    "documents have no sentence that belongs into the summary": sum(1 not in row for row in labels),
    "summaries have no word of a-z or 0-9, of which alone ROUGE speaks": sum(not rouge.words(r) for r in references),
  }
  for what, number in notes.items():
    if number:
      _log(f"{split}: {number:,} of {len(documents):,} {what}")
  return Split(documents, references, labels)


def sentences_of(document: str | list[str]) -> list[str]:
  """Splits a text into sentences, each line separately; a list is returned unchanged."""
  if isinstance(document, str):
    return [sentence for line in document.splitlines() for sentence in split_sentences(line)]
  return document


def _encode(documents, tokenizer, seq_length, labels):
  """Returns the windows.Encoded of documents, and the number of sentences that were cut."""
  longest = windows.longest_item(seq_length)
  if longest < 3:
    raise UserError(f"data.seq_length={seq_length} leaves no room for sentences; give 512 or so")
  ids, cut = [], 0
  for sentences in tqdm(documents, "encoding", disable=None, leave=False):
    pieces = tokenizer.encode_batch(sentences)
    cut += sum(len(piece) > longest - 2 for piece in pieces)
    ids.append([[tokenizer.cls_id, *piece[: longest - 2], tokenizer.sep_id] for piece in pieces])
  return windows.encode(ids, labels, seq_length, begin=[], end=[], pad_id=tokenizer.pad_id, alternate=True), cut


def _log(line):
  """Logs a line on the first host."""
  if jax.process_index() == 0:
    log.info("%s", line)


# The model.


def logits_BL(cfg: AlbertConfig, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
  """Computes at every position the log odds that the sentence that begins there belongs to the summary.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    batch: input_ids and so on, [B, L].
    key: [B], for dropout, or None.

  Returns:
    float32 [B, L].
  """
  return heads.at_positions(cfg, HEAD, params, batch, key)[..., 0]


def sums(cfg: AlbertConfig, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
  """Implements `Task.sums`: {"loss": (total, weight)}, binary cross entropy over sentences."""
  logits, weights = logits_BL(cfg, params, batch, key), heads.label_weights(batch)
  losses = jax.nn.softplus(logits) - logits * (batch["labels"] == 1)
  return {"loss": (jnp.sum(weights * losses), jnp.sum(weights))}


# Summaries.


def select(sentences: list[str], scores: Any, most: int, trigram_blocking: bool) -> list[int]:
  """Selects the best sentences.

  Args:
    sentences: of a document.
    scores: a number for each sentence.
    most: how many at most.
    trigram_blocking: pass over a sentence that repeats three words in a row of a better one (Paulus et al., 2017).

  Returns:
    indices in the order of the text; of equal scores the first in the text wins.
  """
  chosen: list[int] = []
  seen: set[tuple] = set()
  for i in np.argsort(-np.asarray(scores), kind="stable"):
    trigrams = set(rouge.ngrams(rouge.words(sentences[i]), 3))
    if len(chosen) < most and not (trigram_blocking and trigrams & seen):
      chosen.append(int(i))
      seen |= trigrams
  return sorted(chosen)


def score(
  dev: Split, encoded: windows.Encoded, most: int, trigram_blocking: bool, outputs: dict[str, list]
) -> tuple[dict[str, float], dict[str, bytes]]:
  """Implements `Task.score`: mean ROUGE of the summaries, and `summaries.jsonl`."""
  chosen = [
    select(sentences, scores, most, trigram_blocking)
    for sentences, scores in zip(dev.documents, encoded.by_item(outputs["score"]), strict=True)
  ]
  summaries = [[d[i] for i in indices] for d, indices in zip(dev.documents, chosen, strict=True)]
  references = [None] * len(summaries) if dev.references is None else dev.references
  lines = [
    json.dumps({"summary": " ".join(summary), "sentences": indices} | _scored(summary, reference), ensure_ascii=False)
    for summary, indices, reference in zip(summaries, chosen, references, strict=True)
  ]
  return _mean_scores(dev, summaries), {
    "summaries.jsonl": "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
  }


def _scored(summary, reference):
  """Returns a reference and the scores of a summary against it; {} without a reference."""
  if reference is None:
    return {}
  scores = rouge.scores(reference, "\n".join(summary))
  return {"reference": reference} | {name: round(value, 6) for name, value in scores.items()}


def _mean_scores(split, summaries):
  """Returns {name: mean over documents}; {} without references.

  Args:
    summaries: for each document its sentences.
  """
  if split.references is None:
    return {}
  scores = [rouge.scores(r, "\n".join(s)) for r, s in zip(split.references, summaries, strict=True)]
  return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]} if scores else {}


# Prediction.


def summarize(
  cfg: AlbertConfig,
  params: Params,
  tokenizer: Tokenizer,
  texts: list,
  *,
  sentences: int = 3,
  trigram_blocking: bool = True,
  seq_length: int = 512,
  batch_size: int = heads.BATCH,
) -> list[dict[str, Any]]:
  """Summarizes texts.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    tokenizer: the model's.
    texts: texts, or lists of sentences.
    sentences: how many a summary has at most.
    trigram_blocking: see `select`.
    seq_length: the longest row; longer documents take several.
    batch_size: the most rows that are run in one batch.

  Returns:
    for each text {"summary", "sentences": list of {"index", "text", "score"}}, in the order of the text; score is the
    probability that the sentence belongs to the summary.
  """
  seq_length = min(seq_length, cfg.max_position_embeddings)
  documents = [sentences_of(text) for text in texts]
  encoded, _ = _encode(documents, tokenizer, seq_length, None)
  run = functools.partial(_probabilities, cfg)
  outputs = heads.by_row(run, params, encoded.rows, cfg.max_position_embeddings, batch_size)
  results = []
  for document, scores in zip(documents, encoded.by_item(outputs.get("score", ())), strict=True):
    chosen = select(document, scores, sentences, trigram_blocking)
    parts = [{"index": i, "text": document[i], "score": float(scores[i])} for i in chosen]
    results.append({"summary": " ".join(document[i] for i in chosen), "sentences": parts})
  return results


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(cfg, params, batch):
  return {"score": jax.nn.sigmoid(logits_BL(cfg, params, batch))}


def _files(config):
  data = SummarizeData.from_config(config.data)
  return base.files_of(functools.partial(tables.find, data.dataset), data.split, data.validation_split)


SPEC = Spec(
  make=make,
  settings=Settings,
  metrics=lambda config: ("loss", *rouge.NAMES),
  files=_files,
  heads=(HEAD,),
  prediction=Prediction(
    "summarize",
    summarize,
    lambda value: inputs.text_or_list(value, "sentences"),
    'a text, or {"sentences": [texts]}',
    "A first sentence. A second sentence. A third sentence.",
    (frozenset({HEAD}),),
  ),
)
