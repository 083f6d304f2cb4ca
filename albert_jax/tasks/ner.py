"""Tagging: a label for every word, such as names and what they name."""

import collections
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax import model
from albert_jax.data.finetuning import tagged
from albert_jax.data.finetuning.config import TaggingData
from albert_jax.data.words import spans as word_spans
from albert_jax.errors import UserError
from albert_jax.model.layers import dropout
from albert_jax.tasks import entities, heads
from albert_jax.tasks.base import Task, about, batches, model_and_vocabulary, named


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task of configs/ner.py: the first piece of each word is labelled, by a dense layer on the encoder's output.

  The labels are those of the training split, sorted, or `task.labels`. Held-out words with another tag count as wrong.
  """
  cfg, vocabulary = model_and_vocabulary(config, vocabulary)
  data = TaggingData.of(config.data)

  def read(split, **options):
    files = tagged.split_files(data.dataset, split)
    return tagged.read(files, data.token_column, data.tag_column, data.token_field, data.tag_field, **options)

  def encode(split, sentences, notes):
    encoded, odd = tagged.encode(sentences.words, vocabulary, data.seq_length, sentences.tags, labels)
    _say(split, sentences, notes | odd)
    return encoded

  # The training data is read when needed: to evaluate a checkpoint, which knows its labels, takes none.
  train = functools.cache(lambda: read(data.split))

  @functools.cache
  def train_rows():
    if lacking := sorted(set(train().labels()) - set(labels)):
      raise UserError(f"task.labels lacks {', '.join(lacking)}, which the training data has; name all of its tags")
    return encode(data.split, train(), {}).rows

  labels = list(named(config.task.labels)) or train().labels()
  dev = read(data.validation_split, may_hide=True)
  tags = collections.Counter(itertools.chain(*(dev.tags or ())))
  unseen = {f"words with the tag {tag}, which is not in training, so they count as wrong": tags[tag]
            for tag in sorted(tags) if tag not in labels}  # fmt: skip
  dev_rows = encode(data.validation_split, dev, unseen)
  return Task(
    model=cfg,
    init=functools.partial(init, cfg, len(labels)),
    sums=functools.partial(sums, cfg, config.task.label_smoothing),
    terms=terms,
    **batches(config, train_rows, lambda: dev_rows.rows, first_row),
    baselines=_baselines(dev, tags),
    vocabulary=vocabulary,
    outputs=functools.partial(outputs, cfg),
    score=functools.partial(score, dev, dev_rows, labels),
    train_rows=len(train_rows()) if config.epochs else 0,
    new=("^classifier/",),
    unused=("^mlm/", "^sop/", "^pooler/", "^(span|squad_v2)/" if config.task.keep_head else heads.FINE_TUNED),
    about=about("tag", labels, seq_length=data.seq_length),
    architecture="AlbertForTokenClassification",
  )  # fmt: skip


def _baselines(dev, tags):
  """The numbers of a model that always gives the most frequent tag; {} where the tags are hidden."""
  if dev.tags is None:
    return {}
  [(most, count)] = tags.most_common(1)
  f1 = entities.scores(dev.tags, [[most] * len(words) for words in dev.words])["f1"]
  return {"f1": (f1, f"always {most}"), "token_accuracy": (count / tags.total(), f"always {most}")}


def _say(split, sentences, notes):
  """One line on what was read, and what was repaired or is odd."""
  words = sum(map(len, sentences.words))
  found = [f"{split}: {len(sentences):,} sentences, {words:,} words"]
  found += [f"{number:,} {what}" for what, number in (sentences.notes | notes).items()]
  if jax.process_index() == 0:
    print("; ".join(found), file=sys.stderr)


def init(cfg, classes, key) -> dict:
  """Fresh parameters: the encoder without pooler, and "classifier" [D, classes]."""
  key_encoder, key_head = jax.random.split(key)
  return {
    **heads.encoder(cfg, key_encoder, pooler=False),
    "classifier": heads.dense(cfg, key_head, cfg.hidden_size, classes),
  }


def logits_BLC(cfg, params, batch, key=None):
  """The head's logits at every position, float32."""
  x_BLD = model.apply(cfg, params, batch, key)["sequence_output"]
  return heads.affine(params["classifier"], dropout(x_BLD, cfg.classifier_dropout_prob, heads.head_keys(key, 0)))


def sums(cfg, smoothing, params, batch, key) -> dict:
  """{"loss", "token_accuracy": (total, weight)}: sums over labelled words. smoothing: of labels, in training only."""
  smoothing = 0.0 if key is None else smoothing
  logits, labels_BL = logits_BLC(cfg, params, batch, key), jnp.maximum(batch["labels"], 0)
  loss, hits = heads.cross_entropy(logits, labels_BL, label_weights(batch), smoothing)
  return {"loss": loss, "token_accuracy": hits}


def terms(batch) -> dict:
  """The loss is the mean over the labelled words of the whole batch, as in transformers."""
  return {"loss": 1 / jnp.maximum(jnp.sum(label_weights(batch)), 1)}


def label_weights(batch):
  """float32 [B, L]: 1 where there is a label, in rows that count."""
  return (batch["labels"] >= 0) * batch["weight"][:, None]


def outputs(cfg, params, batch) -> dict:
  """{"label": int32 [B, L], the best label at every position}."""
  return {"label": jnp.argmax(logits_BLC(cfg, params, batch), axis=-1)}


def score(dev, encoded, labels, found):
  """Entity scores of the held-out split, and `predictions.conll`: word, tag and predicted tag, with tabs between.

  Where the tags are hidden there are no scores, and no column of tags.
  """
  predicted = [[labels[i] for i in tags] for tags in encoded.by_item(found["label"])]
  columns = [dev.words, *([] if dev.tags is None else [dev.tags]), predicted]
  lines = [
    "".join("\t".join(row) + "\n" for row in zip(*sentence, strict=True)) for sentence in zip(*columns, strict=True)
  ]
  numbers = {} if dev.tags is None else entities.scores(dev.tags, predicted)
  return numbers, {"predictions.conll": "\n".join(lines).encode("utf-8", "replace")}


def score_files(predictions, gold, token_column=0, tag_column=-1):
  """Scores tags made elsewhere.

  Args: predictions, gold: paths of two files of the same sentences, in any format that `tagged.read` takes.
    token_column, tag_column: those of `gold`; of the predictions it is the last column, as in predictions.conll.
  Raises: UserError where their words differ.
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
  return entities.scores(ours.tags, theirs.tags)


# For albert_jax.pipeline and albert-jax predict.


def tag(cfg, params, tokenizer, texts, *, labels, seq_length=512, batch_size=heads.BATCH):
  """The entities of texts.

  Args: texts: list of str, or of lists of words. labels: names, in the order of the classifier's outputs.
    batch_size: how many rows are run together.
  Returns: for each text {"text", "entities": list of {"type", "text", "start", "end", "score"}}, so that
    text[start:end] is the entity (of a list, in its words joined by spaces); score is the mean over its words of the
    probability of their labels.
  """
  seq_length = min(seq_length, cfg.max_position_embeddings)
  texts_words = [_words(text) for text in texts]
  encoded, _ = tagged.encode([[word for word, _ in words] for _, words in texts_words], tokenizer, seq_length)
  found = heads.by_row(functools.partial(_best_labels, cfg), params, encoded.rows, batch_size)
  best, scores = (encoded.by_item(found.get(name, ())) for name in ("label", "score"))
  results = []
  for i, (text, words) in enumerate(texts_words):
    spans = []
    for kind, begin, end in entities.entities([labels[j] for j in best[i]] if words else []):
      start, stop = words[begin][1], words[end - 1][1] + len(words[end - 1][0])
      spans.append({"type": kind, "text": text[start:stop], "start": start, "end": stop,
                    "score": float(np.mean(scores[i][begin:end]))})  # fmt: skip
    results.append({"text": text, "entities": spans})
  return results


@functools.partial(jax.jit, static_argnums=0)
def _best_labels(cfg, params, batch):
  probabilities_BLC = jax.nn.softmax(logits_BLC(cfg, params, batch))
  return {"label": jnp.argmax(probabilities_BLC, axis=-1), "score": jnp.max(probabilities_BLC, axis=-1)}


def _words(text):
  """(the text, its words with where each begins)."""
  if isinstance(text, str):
    return text, [(text[start:end], start) for start, end in word_spans(text)]
  starts = np.cumsum([0, *(len(word) + 1 for word in text)])
  return " ".join(text), [(word, int(start)) for word, start in zip(text, starts, strict=False)]
