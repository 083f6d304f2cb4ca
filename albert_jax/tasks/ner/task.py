"""Tagging: predicts a label for every word, such as the type of a name."""

import collections
import functools
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from albert_jax.data import words as word_rule
from albert_jax.data.finetuning import tagged
from albert_jax.data.finetuning.config import TaggingData
from albert_jax.data.finetuning.windows import Encoded
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, task_heads
from albert_jax.tasks import base, heads, inputs
from albert_jax.tasks.base import Answer, Prediction, Spec, Sums, Task
from albert_jax.tasks.ner import entities
from albert_jax.types import Batch, Params

log = logging.getLogger(__name__)

HEAD = "classifier"


@dataclass(frozen=True)
class Settings:
  """`config.task` of configs/ner.py.

  Attributes:
    labels: names in the order of the outputs, see base.named; "" for those of the training data.
    keep_head: continue with the checkpoint's classifier, which must have the same labels.
    label_smoothing: from 0 to below 1.
  """

  labels: str
  keep_head: bool
  label_smoothing: float

  def __post_init__(self):
    base.named(self.labels)
    base.check_share("label_smoothing", self.label_smoothing)


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/ner.py: a dense layer on the encoder's output labels the first piece of each word.

  The labels are those of the training split, sorted, or `task.labels`. Held-out words with another tag count as wrong.
  """
  settings = base.settings_of(Settings, config)
  cfg, vocabulary = base.model_and_vocabulary(config, vocabulary)
  data = TaggingData.from_config(config.data)

  def read(split, **options):
    files = tagged.split_files(data.dataset, split)
    return tagged.read(files, data.token_column, data.tag_column, data.token_field, data.tag_field, **options)

  def encode(split, sentences, notes):
    encoded, odd = tagged.encode(sentences.words, vocabulary, data.seq_length, sentences.tags, labels)
    _log_counts(split, sentences, notes | odd)
    return encoded

  # The training data is read when needed: evaluating a checkpoint with labels needs none.
  train = functools.cache(lambda: read(data.split))

  @functools.cache
  def train_rows():
    if lacking := sorted(set(train().labels()) - set(labels)):
      raise UserError(f"task.labels lacks {', '.join(lacking)}, which the training data has; name all of its tags")
    return encode(data.split, train(), {}).rows

  labels = list(base.named(settings.labels)) or train().labels()
  if len(labels) < 2:
    raise UserError(
      f"every tag is {labels[0]!r}, so there is nothing to learn; expected two different tags at least: check "
      "data.split and data.tag_column, or name all tags with --config.task.labels=…"
    )
  dev = read(data.validation_split, may_hide=True)
  tags = collections.Counter(itertools.chain(*(dev.tags or ())))
  unseen = {f"words with the tag {tag}, which is not in training, so they count as wrong": tags[tag]
            for tag in sorted(tags) if tag not in labels}  # fmt: skip
  dev_rows = encode(data.validation_split, dev, unseen)
  return Task(
    model=cfg,
    init=lambda key: heads.with_head(cfg, key, HEAD, len(labels)),
    sums=functools.partial(sums, cfg, settings.label_smoothing),
    terms=heads.mean_label_loss,
    **base.batches(config, train_rows, lambda: dev_rows.rows, first_row),
    baselines=_baselines(dev, tags),
    vocabulary=vocabulary,
    has_labels=dev.tags is not None,
    outputs=functools.partial(outputs, cfg),
    score=functools.partial(score, dev, dev_rows, labels),
    train_rows=len(train_rows()) if config.epochs else 0,
    new=(task_heads.pattern(HEAD),),
    unused=base.unused(HEAD, keep=settings.keep_head),
    about=base.about("tag", labels, seq_length=data.seq_length),
    architecture=task_heads.class_for("tag"),
    answers={"answer": Answer("classes", (HEAD,), _answer, heads.label_weights)},
  )  # fmt: skip


def _answer(params, out, batch):
  del batch
  return heads.affine(params[HEAD], out["sequence_output"])


def _baselines(dev, tags):
  """Returns the metrics of a model that always predicts the most frequent tag; {} if the tags are hidden."""
  if dev.tags is None:
    return {}
  [(most, count)] = tags.most_common(1)
  f1 = entities.scores(dev.tags, [[most] * len(words) for words in dev.words])["f1"]
  return {"f1": (f1, f"always {most}"), "token_accuracy": (count / tags.total(), f"always {most}")}


def _log_counts(split, sentences, notes):
  """Logs the size of a split, and the counts of repaired and unusual sentences."""
  parts = [f"{split}: {len(sentences):,} sentences, {sum(map(len, sentences.words)):,} words"]
  parts += [f"{number:,} {note}" for note, number in (sentences.notes | notes).items()]
  if jax.process_index() == 0:
    log.info("%s", "; ".join(parts))


def sums(cfg: AlbertConfig, smoothing: float, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
  """Implements `Task.sums`: {"loss", "token_accuracy": (total, weight)} over labelled words.

  Args:
    cfg: the sizes of the model.
    smoothing: of labels, in training only.
    params: the parameters.
    batch: token ids and "labels" [B, L], -1 for none.
    key: see Task.

  Returns:
    the sums.
  """
  smoothing = 0.0 if key is None else smoothing
  logits_BLC = heads.at_positions(cfg, HEAD, params, batch, key)
  labels_BL = jnp.maximum(batch["labels"], 0)
  loss, hits = heads.cross_entropy(logits_BLC, labels_BL, heads.label_weights(batch), smoothing)
  return {"loss": loss, "token_accuracy": hits}


def outputs(cfg: AlbertConfig, params: Params, batch: Batch) -> dict[str, jax.Array]:
  """Implements `Task.outputs`: {"label": int32 [B, L], the best label at every position}."""
  return {"label": jnp.argmax(heads.at_positions(cfg, HEAD, params, batch), axis=-1)}


def score(
  dev: tagged.Sentences, encoded: Encoded, labels: list[str], outputs: dict[str, list]
) -> tuple[dict[str, float], dict[str, bytes]]:
  """Implements `Task.score`: entity scores, and `predictions.conll` with word, tag and predicted tag, tab-separated.

  Where the tags are hidden there are no scores, and no column of tags.
  """
  predicted = [[labels[i] for i in tags] for tags in encoded.by_item(outputs["label"])]
  columns = [dev.words, *([] if dev.tags is None else [dev.tags]), predicted]
  lines = [
    "".join("\t".join(row) + "\n" for row in zip(*sentence, strict=True)) for sentence in zip(*columns, strict=True)
  ]
  numbers = {} if dev.tags is None else entities.scores(dev.tags, predicted)
  return numbers, {"predictions.conll": "\n".join(lines).encode("utf-8", "replace")}


def score_files(predictions: str, gold: str, token_column: int = 0, tag_column: int = -1) -> dict[str, float]:
  """Scores tags of another program.

  Args:
    predictions: a file of the same sentences as `gold`, in any format that `tagged.read` takes, with the predicted tag
      in its last column, as in predictions.conll.
    gold: the file of the right tags.
    token_column: the column of the words of `gold`.
    tag_column: that of its tags.

  Returns:
    see entities.scores.

  Raises:
    UserError: the words of the two files differ.
  """
  ours, theirs = tagged.read((gold,), token_column, tag_column), tagged.read((predictions,))
  if len(ours) != len(theirs):
    raise UserError(f"{predictions} has {len(theirs)} sentences, {gold} has {len(ours)}; both need the same ones")
  for number, (a, b) in enumerate(zip(ours.words, theirs.words, strict=True), 1):
    if a != b:
      at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
      raise UserError(
        f"sentence {number} differs from word {at + 1} on: {' '.join(b[at : at + 3])!r} in {predictions}, "
        f"{' '.join(a[at : at + 3])!r} in {gold}; both need the same words"
      )
  assert ours.tags is not None and theirs.tags is not None  # `read` hides tags only with may_hide.
  return entities.scores(ours.tags, theirs.tags)


# Prediction.


def tag(
  cfg: AlbertConfig,
  params: Params,
  tokenizer: Tokenizer,
  texts: list,
  *,
  labels: Sequence[str],
  seq_length: int = 512,
  batch_size: int = heads.BATCH,
) -> list[dict[str, Any]]:
  """Predicts the entities of texts.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    tokenizer: the model's.
    texts: texts, which data/words.py splits into words, or lists of words.
    labels: names, in the order of the classifier's outputs.
    seq_length: the longest row; longer texts take several.
    batch_size: the most rows that are run in one batch.

  Returns:
    for each text {"text", "entities": list of {"type", "text", "start", "end", "score"}}, so that text[start:end] is
    the entity (of a list, in its words joined by spaces); score is the mean over its words of the probability of their
    labels.
  """
  seq_length = min(seq_length, cfg.max_position_embeddings)
  texts_words = [_words(text) for text in texts]
  encoded, _ = tagged.encode([[text[i:j] for i, j in spans] for text, spans in texts_words], tokenizer, seq_length)
  run = functools.partial(_best_labels, cfg)
  by_row = heads.by_row(run, params, encoded.rows, cfg.max_position_embeddings, batch_size)
  best, scores = (encoded.by_item(by_row.get(name, ())) for name in ("label", "score"))
  results = []
  for n, (text, spans) in enumerate(texts_words):
    parts = []
    for kind, first, after in entities.entities([labels[j] for j in best[n]] if spans else []):
      start, end = spans[first][0], spans[after - 1][1]
      score = float(np.mean(scores[n][first:after]))
      parts.append({"type": kind, "text": text[start:end], "start": start, "end": end, "score": score})
    results.append({"text": text, "entities": parts})
  return results


@functools.partial(jax.jit, static_argnums=0)
def _best_labels(cfg, params, batch):
  probabilities_BLC = jax.nn.softmax(heads.at_positions(cfg, HEAD, params, batch))
  return {"label": jnp.argmax(probabilities_BLC, axis=-1), "score": jnp.max(probabilities_BLC, axis=-1)}


def _words(text):
  """Returns (the text, the start and end of each word)."""
  if isinstance(text, str):
    return text, word_rule.spans(text)
  starts = itertools.accumulate((len(word) + 1 for word in text), initial=0)
  return " ".join(text), [(start, start + len(word)) for word, start in zip(text, starts, strict=False)]


def _item(value):
  item = inputs.text_or_list(value, "tokens")
  return item if isinstance(item, str) or (item is not None and all(word.strip() for word in item)) else None


def _files(config):
  data = TaggingData.from_config(config.data)
  return base.files_of(functools.partial(tagged.split_files, data.dataset), data.split, data.validation_split)


SPEC = Spec(
  make=make,
  settings=Settings,
  metrics=lambda config: ("loss", "f1", "precision", "recall", "token_accuracy", "f1_*", "precision_*", "recall_*"),
  files=_files,
  heads=(HEAD,),
  prediction=Prediction(
    "tag", tag, _item, 'a text, or {"tokens": [words]}', "A text about Anna in Paris.", (frozenset({HEAD}),)
  ),
  score_files=score_files,
)
