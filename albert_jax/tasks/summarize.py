"""Extractive summaries: a score for every sentence of a document, of which the best ones are the summary.

As BertSum (arXiv 1903.10318) with its plain classifier: each sentence stands between a [CLS] and a [SEP] of its own,
token types alternate, and a dense layer on the encoder's output at a sentence's [CLS] says whether it belongs into the
summary. Documents that are longer than a row are cut between sentences into overlapping rows.
"""

import functools
import json
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from albert_jax import model
from albert_jax.data.corpus.sentences import split_sentences
from albert_jax.data.finetuning import tables, windows
from albert_jax.data.finetuning.config import SummarizeData
from albert_jax.errors import UserError
from albert_jax.model.layers import dropout
from albert_jax.tasks import heads, rouge
from albert_jax.tasks.base import Task, about, batches, model_and_vocabulary
from albert_jax.tasks.ner import label_weights, terms


@dataclass(frozen=True)
class Split:
  """documents: lists of sentences. references: the summaries to be. labels: for each sentence 1 if it belongs there."""

  documents: list[list[str]]
  references: list[str]
  labels: list[list[int]]


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task of configs/summarize.py."""
  cfg, vocabulary = model_and_vocabulary(config, vocabulary)
  data, most, blocking = SummarizeData.of(config.data), config.task.sentences, config.task.trigram_blocking
  if most < 1:
    raise UserError(f"task.sentences={most}: a summary has one sentence at least; try --config.task.sentences=3")

  def encode(name, split):
    encoded, cut = _encode(split.documents, vocabulary, data.seq_length, split.labels)
    if cut:
      _say(f"{name}: {cut:,} sentences cut to {windows.longest_item(data.seq_length)} pieces")
    return encoded

  train_rows = functools.cache(lambda: encode(data.split, read(data, data.split, most)).rows)
  dev = read(data, data.validation_split, most)
  dev_rows = encode(data.validation_split, dev)
  lead = _mean_scores(dev, [document[:most] for document in dev.documents])
  best = _mean_scores(
    dev, [[s for s, y in zip(d, labels, strict=True) if y] for d, labels in zip(dev.documents, dev.labels, strict=True)]
  )
  _say(f"{data.validation_split}: {len(dev.documents):,} documents; the labelled sentences themselves have "
       + ", ".join(f"{name} {value:.4f}" for name, value in best.items()))  # fmt: skip
  return Task(
    model=cfg,
    init=functools.partial(init, cfg),
    sums=functools.partial(sums, cfg),
    terms=terms,
    **batches(config, train_rows, lambda: dev_rows.rows, first_row),
    baselines={name: (value, f"the first {most} of each document (lead-{most})") for name, value in lead.items()},
    vocabulary=vocabulary,
    outputs=lambda params, batch: {"score": jax.nn.sigmoid(logits_BL(cfg, params, batch))},
    score=functools.partial(score, dev, dev_rows, most, blocking),
    train_rows=len(train_rows()) if config.epochs else 0,
    new=("^sentence/",),
    unused=("^mlm/", "^sop/", "^pooler/", heads.FINE_TUNED),
    about=about("summarize", sentences=most, trigram_blocking=blocking, seq_length=data.seq_length),
    architecture="AlbertModel",
  )  # fmt: skip


# Data.


def read(data, split, most) -> Split:
  """The documents of a split.

  Args: data: config.data, for the fields. most: how many sentences to label where the file does not say which.
  Raises: UserError where a row has neither a summary nor labels, or not a label a sentence.
  """
  rows = tables.read(
    data.dataset, split, [data.document_field], optional=[data.summary_field, data.labels_field], quotes=data.quotes
  )
  documents, references, labels, chosen = [], [], [], 0
  columns = (rows.columns[name] for name in (data.document_field, data.summary_field, data.labels_field))
  bar = tqdm(zip(*columns, strict=True), f"reading {split}", len(rows), disable=None, leave=False)
  for i, (document, summary, given) in enumerate(bar):
    sentences = sentences_of(document) if isinstance(document, str | list) else None
    if sentences is None or not all(isinstance(sentence, str) for sentence in sentences):
      raise UserError(f"{rows.where(i)}: {data.document_field!r} is neither a text nor a list of sentences")
    reference = "\n".join(summary) if isinstance(summary, list) else summary
    if given is not None:
      if not isinstance(given, list) or len(given) != len(sentences) or not all(y in (0, 1) for y in given):
        raise UserError(
          f"{rows.where(i)}: {data.labels_field!r} must be a list of 0 and 1, one for each of the document's "
          f"{len(sentences)} sentences; give the document as a list of sentences, so that they are the ones you mean"
        )
      reference = reference or "\n".join(s for s, y in zip(sentences, given, strict=True) if y)
    if not isinstance(reference, str) or (given is None and not reference.strip()):
      raise UserError(
        f"{rows.where(i)} has no summary in {data.summary_field!r} and no labels in {data.labels_field!r}; name the "
        "fields with --config.data.summary_field=NAME or --config.data.labels_field=NAME"
      )
    if given is None:
      oracle = set(rouge.oracle(sentences, reference, most))
      given, chosen = [int(n in oracle) for n in range(len(sentences))], chosen + 1
    documents.append(sentences)
    references.append(reference)
    labels.append([int(y) for y in given])
  notes = {
    "documents are empty, and so is their summary": sum(not sentences for sentences in documents),
    "documents have no sentence that belongs into the summary": sum(1 not in given for given in labels),
    "summaries have no word of a-z or 0-9, of which alone ROUGE speaks": sum(not rouge.words(r) for r in references),
  }
  for what, number in notes.items():
    if number:
      _say(f"{split}: {number:,} of {len(documents):,} {what}")
  return Split(documents, references, labels)


def sentences_of(document):
  """The sentences of a text (its lines are split, and what remains is), or of a list, which are its sentences."""
  if isinstance(document, str):
    return [sentence for line in document.splitlines() for sentence in split_sentences(line)]
  return document


def _encode(documents, tokenizer, seq_length, labels):
  """windows.Encoded of documents, and how many sentences were cut."""
  longest = windows.longest_item(seq_length)
  if longest < 3:
    raise UserError(f"data.seq_length={seq_length} leaves no room for sentences; give 512 or so")
  ids, cut = [], 0
  for sentences in tqdm(documents, "encoding", disable=None, leave=False):
    pieces = tokenizer.encode_batch(sentences)
    cut += sum(len(piece) > longest - 2 for piece in pieces)
    ids.append([[tokenizer.cls_id, *piece[: longest - 2], tokenizer.sep_id] for piece in pieces])
  return windows.encode(ids, labels, seq_length, begin=[], end=[], pad_id=tokenizer.pad_id, alternate=True), cut


def _say(line):
  if jax.process_index() == 0:
    print(line, file=sys.stderr)


# The model.


def init(cfg, key) -> dict:
  """Fresh parameters: the encoder without pooler, and "sentence" [D, 1]."""
  key_encoder, key_head = jax.random.split(key)
  return {**heads.encoder(cfg, key_encoder, pooler=False), "sentence": heads.dense(cfg, key_head, cfg.hidden_size, 1)}


def logits_BL(cfg, params, batch, key=None):
  """At every position whether the sentence that begins there belongs into the summary, float32 log odds."""
  x_BLD = model.apply(cfg, params, batch, key)["sequence_output"]
  return heads.affine(params["sentence"], dropout(x_BLD, cfg.classifier_dropout_prob, heads.head_keys(key, 0)))[..., 0]


def sums(cfg, params, batch, key) -> dict:
  """{"loss": (total, weight)}: binary cross entropy over sentences."""
  logits, weights = logits_BL(cfg, params, batch, key), label_weights(batch)
  losses = jax.nn.softplus(logits) - logits * (batch["labels"] == 1)
  return {"loss": (jnp.sum(weights * losses), jnp.sum(weights))}


# Summaries.


def select(sentences, scores, most, trigram_blocking):
  """The best sentences, in the order of the text.

  Args: sentences: list of str. scores: as many numbers. most: how many. trigram_blocking: pass over a sentence that
    repeats three words in a row of a better one (Paulus et al., 2017).
  Returns: indices; of equal scores the first in the text wins.
  """
  chosen, seen = [], set()
  for i in np.argsort(-np.asarray(scores), kind="stable"):
    trigrams = set(rouge.ngrams(rouge.words(sentences[i]), 3))
    if len(chosen) < most and not (trigram_blocking and trigrams & seen):
      chosen.append(int(i))
      seen |= trigrams
  return sorted(chosen)


def score(dev, encoded, most, trigram_blocking, found):
  """Mean ROUGE of the summaries, and `summaries.jsonl`."""
  chosen = [
    select(sentences, scores, most, trigram_blocking)
    for sentences, scores in zip(dev.documents, encoded.by_item(found["score"]), strict=True)
  ]
  summaries = [[d[i] for i in indices] for d, indices in zip(dev.documents, chosen, strict=True)]
  lines = [
    json.dumps({"summary": " ".join(summary), "sentences": indices, "reference": reference}
               | {name: round(value, 6) for name, value in rouge.scores(reference, "\n".join(summary)).items()},
               ensure_ascii=False)
    for summary, indices, reference in zip(summaries, chosen, dev.references, strict=True)
  ]  # fmt: skip
  return _mean_scores(dev, summaries), {
    "summaries.jsonl": "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
  }


def _mean_scores(split, summaries):
  """{name: mean over documents}. Args: summaries: for each document its sentences."""
  found = [rouge.scores(r, "\n".join(s)) for r, s in zip(split.references, summaries, strict=True)]
  return {name: float(np.mean([one[name] for one in found])) for name in found[0]} if found else {}


# For albert_jax.pipeline and albert-jax predict.


def summarize(
  cfg, params, tokenizer, texts, *, sentences=3, trigram_blocking=True, seq_length=512, batch_size=heads.BATCH
):
  """Summaries of texts.

  Args: texts: list of str, or of lists of sentences. sentences: how many a summary has at most. batch_size: how many
    rows are run together.
  Returns: for each text {"summary", "sentences": list of {"index", "text", "score"}}, in the order of the text; score
    is the probability that the sentence belongs into the summary.
  """
  seq_length = min(seq_length, cfg.max_position_embeddings)
  documents = [sentences_of(text) for text in texts]
  encoded, _ = _encode(documents, tokenizer, seq_length, None)
  found = heads.by_row(functools.partial(_probabilities, cfg), params, encoded.rows, batch_size)
  results = []
  for document, scores in zip(documents, encoded.by_item(found.get("score", ())), strict=True):
    chosen = select(document, scores, sentences, trigram_blocking)
    parts = [{"index": i, "text": document[i], "score": float(scores[i])} for i in chosen]
    results.append({"summary": " ".join(part["text"] for part in parts), "sentences": parts})
  return results


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(cfg, params, batch):
  return {"score": jax.nn.sigmoid(logits_BL(cfg, params, batch))}
