"""Predicts a label, several labels or a number from a text or a pair of texts.

The head is the original's: dropout and one dense layer on the pooled [CLS] (run_classifier.py, `create_model`).
"""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from albert_jax import model
from albert_jax.data.finetuning import batching, cells, splits, tables
from albert_jax.data.finetuning.config import ClassifyData
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, task_heads
from albert_jax.model.layers import dropout
from albert_jax.tasks import base, heads, inputs, metrics
from albert_jax.tasks.base import Answer, Baselines, Prediction, Spec, Sums, Task
from albert_jax.types import Batch, Params

log = logging.getLogger(__name__)

# What transformers calls each kind.
KINDS = {
  "classification": "single_label_classification", "regression": "regression",
  "multilabel": "multi_label_classification",
}  # fmt: skip
# The held-out numbers of each kind besides "loss", see `measure`.
METRICS = {
  "classification": ("accuracy", "macro_f1", "mcc", "auc"), "regression": ("pearson", "spearman"),
  "multilabel": ("accuracy", "macro_f1", "micro_f1", "auc"),
}  # fmt: skip
# What each kind is to a student, see base.Answer.
ANSWERS = {"classification": "classes", "regression": "number", "multilabel": "labels"}
MOST_LABELS = 100  # the number of labels that is accepted for any number of rows
HEAD = "classifier"


@dataclass(frozen=True)
class LossSettings:
  """The settings of a classifier's loss.

  Attributes:
    keep_head: continue with the checkpoint's classifier.
    class_weights: "balanced" to give every label the same weight, however few rows it has; else "".
    label_smoothing: from 0 to below 1.
    r_drop: the weight of R-Drop (arXiv 2106.14448), the distance of two passes with different dropout.
  """

  keep_head: bool
  class_weights: str
  label_smoothing: float
  r_drop: float

  def __post_init__(self):
    if self.class_weights not in ("", "balanced"):
      raise UserError(f"task.class_weights={self.class_weights!r} is unknown; use balanced, or '' for none")
    base.check_share("label_smoothing", self.label_smoothing)
    if not (math.isfinite(self.r_drop) and self.r_drop >= 0):
      raise UserError(f"task.r_drop={self.r_drop} must be 0 or more; try --config.task.r_drop=1")

  def check_kind(self, kind: str) -> None:
    """Raises UserError for a setting that only classification has."""
    for name in ("class_weights", "label_smoothing"):
      if getattr(self, name) and kind != "classification":
        raise UserError(
          f"task.{name}={getattr(self, name)} is for classification, and this is {kind}; leave out --config.task.{name}"
        )


@dataclass(frozen=True)
class Settings(LossSettings):
  """`config.task` of configs/classify.py.

  Attributes:
    kind: one of KINDS.
    labels: names in the order of the outputs, see base.named; "" for those of the training data.
  """

  kind: str
  labels: str

  def __post_init__(self):
    super().__post_init__()
    if self.kind not in KINDS:
      raise UserError(f"task.kind={self.kind!r} is unknown; use one of {', '.join(KINDS)}")
    self.check_kind(self.kind)
    names = base.named(self.labels)
    if names and self.kind == "regression":
      raise UserError(f"task.labels={self.labels} is for classes; task.kind=regression has none, leave it empty")
    if len(names) == 1 and self.kind == "classification":
      raise UserError(f"task.labels={self.labels} is one label; name two at least, with commas between")
    first: dict[str, str] = {}
    for name in names:
      if (other := first.setdefault(cells.label(name, "task.labels"), name)) != name:
        raise UserError(f"task.labels={self.labels[:60]}: {other} and {name} are one label in the data; leave one out")


@dataclass(frozen=True)
class Split:
  """Labelled texts.

  Attributes:
    first: n texts.
    second: the other texts of pairs; None where they are no pairs.
    gold: int [n] (classification), float32 [n] (regression) or float32 [n, C] of 0 and 1; None if unknown.
    source: where they are from.
    index: the official numbers of the rows, n ints.
  """

  first: list[str]
  second: list[str] | None
  gold: np.ndarray | None
  source: str
  index: list[int]

  def __len__(self):
    return len(self.first)


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/classify.py, on a user's own data; see `tasks.make`."""
  settings, data = base.settings_of(Settings, config), ClassifyData.from_config(config.data)
  kind, separator = settings.kind, data.label_separator
  fields = data.texts
  if separator != ClassifyData.label_separator and kind != "multilabel":
    raise UserError(
      f"data.label_separator={separator!r} is for several labels a row, and task.kind is {kind}; set "
      "--config.task.kind=multilabel, or --config.data.label_separator=,"
    )

  @functools.cache
  def read(split):
    """Returns the rows of "train" or "held out"."""
    shared = data.validation_fraction > 0
    name = data.split if split == "train" or shared else data.validation_split
    test = split == "held out" and not shared
    rows = tables.read(
      data.dataset, name, fields if test else [*fields, data.label_field], quotes=data.quotes, tfds_dir=data.tfds_dir,
      optional=[data.label_field] if test else (), skip_ragged=split == "train" or shared,
      settings=("text_fields", "label_field"),
    )  # fmt: skip
    if shared:
      away = tables.held_out(rows, fields, data.validation_fraction)
      rows = rows.select(away if split == "held out" else ~away)
    dropped = {cells.label(label, "data.drop_labels") for label in data.drop_labels.split(",") if label}
    if dropped:
      keep = np.array([dropped.isdisjoint(names) for names in _names(rows, data.label_field, kind, separator)], bool)
      if split == "train" or not keep.all():  # A label that no row has may be a typing mistake.
        splits.warn_count(rows.source, int(np.sum(~keep)), f"rows have a label of data.drop_labels={data.drop_labels}")
      rows = rows.select(keep)
    if not len(rows):
      raise UserError(
        f"{rows.source} has no row {'for validation' if split == 'held out' else 'to train on'} after "
        f"data.validation_fraction={data.validation_fraction} and data.drop_labels={data.drop_labels!r}; give more rows"
      )
    return rows

  @functools.cache
  def labels():
    names = tuple(cells.label(name, "task.labels") for name in base.named(settings.labels))
    return names or _labels_of(read("train"), data.label_field, kind, separator)

  def split(part):
    rows = read(part)
    columns = [tables.texts(rows, field) for field in fields]
    gold = gold_of(rows, data.label_field, kind, labels(), separator, may_lack=part == "held out")
    return Split(columns[0], columns[1] if len(fields) == 2 else None, gold, rows.source, list(range(len(rows))))

  held_out = split("held out")
  names = () if kind == "regression" else labels()
  without_reading = baselines(kind, held_out.gold, len(names))
  task = build(
    config, settings, vocabulary, first_row, kind=kind, labels=names, held_out=held_out,
    train=functools.cache(lambda: split("train")), train_rows=len(read("train")) if config.epochs else 0,
    score=functools.partial(_score, kind, names, held_out), baselines=without_reading,
  )  # fmt: skip
  return dataclasses.replace(task, metrics=tuple(without_reading))  # Without those that these rows leave undefined.


def build(
  config: ConfigDict,
  settings: LossSettings,
  vocabulary: Tokenizer | None,
  first_row: int,
  *,
  kind: str,
  labels: tuple[str, ...],
  held_out: Split,
  train: Callable[[], Split],
  train_rows: int,
  score: Callable,
  baselines: Baselines,
) -> Task:
  """Makes a Task of texts in memory.

  Args:
    config: the whole config.
    settings: its `task`, checked.
    vocabulary: see `tasks.make`.
    first_row: likewise.
    kind: one of KINDS.
    labels: their names, () for regression.
    held_out: the split to evaluate on.
    train: makes the training split, called when training begins.
    train_rows: see Task.
    score: {"outputs": …} -> see Task.score.
    baselines: see Task.

  Returns:
    the task.

  Raises:
    UserError: the settings do not fit the model.
  """
  cfg, vocabulary = base.model_and_vocabulary(config, vocabulary)
  length = config.data.seq_length
  if settings.r_drop and not (
    cfg.hidden_dropout_prob or cfg.attention_probs_dropout_prob or cfg.classifier_dropout_prob
  ):
    raise UserError("task.r_drop compares two passes with dropout, and there is none; set a model.*_dropout_prob")
  encode = functools.partial(rows, vocabulary=vocabulary, kind=kind, labels=len(labels), seq_length=length)
  encoded = functools.cache(lambda: encode(train(), class_weights=settings.class_weights))
  held_out_encoded = functools.cache(lambda: encode(held_out))
  return Task(
    model=cfg,
    init=lambda key: heads.with_head(cfg, key, HEAD, max(len(labels), 1), pooler=True),
    sums=functools.partial(sums, cfg, kind, settings.label_smoothing, settings.r_drop),
    terms=functools.partial(terms, settings.r_drop),
    **base.batches(config, encoded, held_out_encoded, first_row),
    baselines=baselines,
    vocabulary=vocabulary,
    has_labels=held_out.gold is not None,
    outputs=lambda params, batch: {"outputs": logits(cfg, params, batch)},
    score=score,
    train_rows=train_rows,
    new=(task_heads.pattern(HEAD),),
    unused=base.unused(HEAD, keep=settings.keep_head, pooler=True),
    about=base.about("classify", labels, kind=kind, pair=held_out.second is not None, seq_length=length)
    | {"problem_type": KINDS[kind]},
    answers={"answer": Answer(ANSWERS[kind], (HEAD, "pooler"), _answer, lambda batch: batch["weight"])},
  )  # fmt: skip


# Labels.


def gold_of(
  rows: tables.Examples, field: str, kind: str, labels: Sequence[str], separator: str = ",", may_lack: bool = False
) -> np.ndarray | None:
  """Reads the labels of rows as numbers.

  Args:
    rows: the rows of a file.
    field: the column of the labels.
    kind: one of KINDS.
    labels: their names in the order of the outputs.
    separator: what stands between the labels of a row, for multilabel.
    may_lack: whether a split without any label is one to predict.

  Returns:
    see Split.gold; None where no row has a label and `may_lack`.

  Raises:
    UserError: a label is not among `labels`, is no number, or is missing in some rows.
  """
  values = rows.columns[field]
  if may_lack and cells.are_hidden(values, labels):
    return None
  lacking = [row for row, value in enumerate(values) if _lacks(value, kind)]
  if lacking:
    raise UserError(f"{rows.where(lacking[0])} has no label in {field!r} ({len(lacking):,} of {len(rows):,} rows)")
  if kind == "regression":
    what = "one a row, as task.kind=regression needs"
    return np.array([cells.number(value, rows.where(row), what) for row, value in enumerate(values)], np.float32)
  number = {label: i for i, label in enumerate(labels)}
  names_of = list(_names(rows, field, kind, separator))
  for row, names in enumerate(names_of):
    for name in names:
      if name not in number:
        shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
        raise UserError(f"{rows.where(row)} has the label {name!r}, unknown in training; there are {shown}")
  if kind == "classification":
    return np.array([number[names[0]] for names in names_of], np.int32)
  gold = np.zeros((len(rows), len(labels)), np.float32)
  for row, names in enumerate(names_of):
    gold[row, [number[name] for name in names]] = 1
  return gold


def _labels_of(rows, field, kind, separator):
  """Returns the labels that occur, in an order that is always the same."""
  if kind == "regression":
    return ()
  names = {name for row_names in _names(rows, field, kind, separator) for name in row_names}
  if len(names) < (1 if kind == "multilabel" else 2):
    raise UserError(f"{rows.source}: the column {field!r} has {len(names)} different labels; expected two at least")
  if len(names) > max(MOST_LABELS, len(rows) // 10):
    raise UserError(
      f"{rows.source}: the column {field!r} has {len(names):,} different labels in {len(rows):,} rows; is it the "
      "label? Choose with --config.data.label_field=…; for numbers, --config.task.kind=regression"
    )
  for group in cells.alike(sorted(names)):
    log.warning(
      "%s: the column %r has different labels that look alike: %s; give them one name if they are one",
      rows.source, field, ", ".join(map(repr, group)),
    )  # fmt: skip
  # The order of the format is also that of earlier versions, for which the labels of Parquet files were numbers.
  order = dict.fromkeys(cells.label(name, rows.source) for name in rows.classes.get(field, ()))
  return tuple([name for name in order if name in names] if names <= {*order} else tables.numbered(names))


def _lacks(value, kind):
  """Returns whether a cell has no label. An empty text of several labels means that the row has none of them."""
  return cells.is_missing(value) and not (kind == "multilabel" and isinstance(value, str) and not value.strip())


def _names(rows, field, kind, separator):
  """Returns the names of the labels of each row; none for a missing label."""
  for row, value in enumerate(rows.columns[field]):
    if cells.is_missing(value):
      yield []
    elif kind == "multilabel":
      yield cells.labels(value, separator, rows.where(row))
    else:
      yield [cells.label(value, rows.where(row))]


def rows(
  split: Split, vocabulary: Tokenizer, kind: str, labels: int, seq_length: int, class_weights: str = ""
) -> batching.Rows:
  """Encodes a Split as token ids.

  Args:
    split: the texts.
    vocabulary: the model's.
    kind: one of KINDS.
    labels: how many there are.
    seq_length: the longest row; longer texts are cut.
    class_weights: see LossSettings.

  Returns:
    rows with "label", and "counts": a row's weight in the loss, 0 where it has no label.
  """
  gold, shape = split.gold, (len(split), labels) if kind == "multilabel" else (len(split),)
  if gold is None:
    gold, counts = np.zeros(shape, np.int32 if kind == "classification" else np.float32), np.zeros(len(split))
  elif class_weights:
    # Each label that occurs has the same weight over all its rows; a row's mean weight is 1.
    number = np.bincount(gold, minlength=labels)
    counts = len(gold) / (np.sum(number > 0) * number[gold])
  else:
    counts = np.ones(len(split))
  return batching.Rows(
    tokens=tables.encode(vocabulary, split.first, split.second, seq_length, split.source),
    fixed={"label": gold, "counts": counts.astype(np.float32)},
    padding={"input_ids": vocabulary.pad_id},
  )


# The model.


def logits(cfg: AlbertConfig, params: Params, batch: Batch, keys: jax.Array | None = None) -> jax.Array:
  """Applies the model and the head.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    batch: input_ids and so on, [B, L].
    keys: [B], for dropout, or None.

  Returns:
    float32 [B, C].
  """
  pooled_BD = model.apply(cfg, params, model.inputs(batch), keys)["pooled_output"]
  return heads.affine(params[HEAD], dropout(pooled_BD, cfg.classifier_dropout_prob, heads.head_keys(keys, 0)))


def _answer(params, out, batch):
  del batch
  return heads.affine(params[HEAD], out["pooled_output"])


def sums(
  cfg: AlbertConfig, kind: str, smoothing: float, r_drop: float, params: Params, batch: Batch, keys: jax.Array | None
) -> Sums:
  """Implements `Task.sums`: {"loss", of single labels "accuracy", in training with R-Drop "r_drop": (total, weight)}.

  R-Drop (arXiv 2106.14448): two passes with different dropout. The loss is the mean of both losses, plus the distance
  of the two answers with the weight in `terms`.
  """
  weights = batch["weight"] * batch["counts"]
  first = logits(cfg, params, batch, keys)
  result = _loss(kind, first, batch, weights, 0.0 if keys is None else smoothing)
  if keys is not None and r_drop:
    second = logits(cfg, params, batch, jax.vmap(jax.random.fold_in, (0, None))(keys, 1))
    other = _loss(kind, second, batch, weights, smoothing)
    result = {name: ((result[name][0] + other[name][0]) / 2, result[name][1]) for name in result}
    result["r_drop"] = (jnp.sum(weights * _distance(kind, first, second)), jnp.sum(weights))
  return result


def terms(r_drop: float, batch: Batch) -> dict[str, jax.Array]:
  """Implements `Task.terms`: the mean over rows, by their weights."""
  mean = 1 / jnp.maximum(jnp.sum(batch["weight"] * batch["counts"]), 1e-6)
  return {"loss": mean} | ({"r_drop": r_drop * mean} if r_drop else {})


def _loss(kind, logits_BC, batch, weights, smoothing):
  """Cross entropy; squared error; or the binary cross entropy, mean over labels."""
  if kind == "classification":
    loss, _ = heads.cross_entropy(logits_BC, batch["label"], weights, smoothing)
    _, hits = heads.cross_entropy(logits_BC, batch["label"], jnp.where(weights > 0, batch["weight"], 0))
    return {"loss": loss, "accuracy": hits}
  if kind == "regression":
    losses = jnp.square(logits_BC[:, 0] - batch["label"])
  else:
    losses = jnp.mean(jax.nn.softplus(logits_BC) - logits_BC * batch["label"], axis=-1)
  return {"loss": (jnp.sum(weights * losses), jnp.sum(weights))}


def _distance(kind, a, b):
  """Returns [B]: the mean of the two Kullback-Leibler divergences of answers; for numbers, the squared difference."""
  if kind == "regression":
    return jnp.square(a - b)[:, 0]
  if kind == "multilabel":  # Each label is a distribution over yes and no.
    a, b = (jnp.stack([x, jnp.zeros_like(x)], axis=-1) for x in (a, b))
  log_a, log_b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
  divergence = jnp.sum((jnp.exp(log_a) - jnp.exp(log_b)) * (log_a - log_b), axis=-1) / 2
  return jnp.mean(divergence, axis=-1) if kind == "multilabel" else divergence


# Scores.


def probabilities(kind: str, outputs: Any) -> np.ndarray:
  """Returns float64 [n, C] of logits [n, C]: softmax over labels, or of multilabel each label's own sigmoid."""
  from scipy import special  # Imported here: only evaluation and prediction need it.

  outputs = np.asarray(outputs, np.float64)
  return special.expit(outputs) if kind == "multilabel" else special.softmax(outputs, axis=1)


def measure(kind: str, outputs: np.ndarray, gold: np.ndarray) -> dict[str, float]:
  """Computes the METRICS of a kind, without those that the data leave undefined.

  Args:
    kind: one of KINDS.
    outputs: the head's, [n, C].
    gold: as in Split.

  Returns:
    {metric: number}.
  """
  if kind == "regression":
    return {"pearson": metrics.pearson(gold, outputs[:, 0]), "spearman": metrics.spearman(gold, outputs[:, 0])}
  scores = probabilities(kind, metrics.finite(outputs))
  if kind == "multilabel":
    predicted = scores > 0.5
    labels = range(scores.shape[1])
    numbers = {
      "accuracy": float(np.mean(np.all(predicted == (gold > 0.5), axis=1))),
      "macro_f1": float(np.mean([metrics.f1(gold[:, k], predicted[:, k]) for k in labels])),
      "micro_f1": metrics.f1(gold, predicted),
      "auc": metrics.macro_auc(gold, scores),
    }
  else:
    predicted = scores.argmax(axis=1)
    binary = scores.shape[1] == 2
    numbers = {
      "accuracy": metrics.accuracy(gold, predicted),
      "macro_f1": metrics.macro_f1(gold, predicted),
      "mcc": metrics.mcc(gold, predicted),
      "auc": metrics.auc(gold, scores[:, 1]) if binary else metrics.macro_auc(np.eye(scores.shape[1])[gold], scores),
    }
  return {name: value for name, value in numbers.items() if value is not None}


def baselines(kind: str, gold: np.ndarray | None, labels: int) -> Baselines:
  """Computes the loss, and the metrics of `measure`, of a model that does not read the texts.

  Args:
    kind: one of KINDS.
    gold: as in Split.
    labels: how many there are.

  Returns:
    see Task.baselines; {} without labels.
  """
  if gold is None or not len(gold):
    return {}
  if kind == "regression":
    return {
      "loss": (float(np.var(gold)), "always the mean"), "pearson": (0.0, "always the same number"),
      "spearman": (0.0, "always the same number"),
    }  # fmt: skip
  share = np.mean(gold, axis=0) if kind == "multilabel" else np.bincount(gold, minlength=labels) / len(gold)
  with np.errstate(divide="ignore", invalid="ignore"):
    parts = [share, 1 - share] if kind == "multilabel" else [share]
    entropy = -np.sum([np.where(p > 0, p * np.log(p), 0) for p in parts], axis=0)
  loss = float(entropy.mean() if kind == "multilabel" else entropy.sum())
  outputs = np.tile(share - 0.5 if kind == "multilabel" else share, (len(gold), 1))
  most = "what most rows have" if kind == "multilabel" else "always the most frequent label"
  return {"loss": (loss, "the labels' frequencies")} | {
    name: (value, "guessing" if name == "auc" else most) for name, value in measure(kind, outputs, gold).items()
  }


def _score(kind, labels, split, outputs):
  """Task.score: the metrics, and a JSON line a row with the answer and what it should be."""
  logits_NC = np.stack(outputs["outputs"])
  numbers = measure(kind, logits_NC, split.gold) if split.gold is not None else {}
  return numbers, {"predictions.jsonl": _answers(kind, labels, split, logits_NC)}


def _answers(kind, labels, split, outputs):
  scores = None if kind == "regression" else probabilities(kind, outputs)

  def names(row):
    return labels[row] if kind == "classification" else [labels[k] for k in np.flatnonzero(row > 0.5)]

  lines = []
  for i in range(len(split)):
    line = {"index": split.index[i]}
    if kind == "regression":
      line["prediction"] = float(outputs[i, 0])
    else:
      line["prediction"] = names(scores[i].argmax() if kind == "classification" else scores[i])
      line["probabilities"] = {label: round(float(p), 6) for label, p in zip(labels, scores[i], strict=True)}
    if split.gold is not None:
      line["gold"] = float(split.gold[i]) if kind == "regression" else names(split.gold[i])
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  return "".join(lines).encode()


# Prediction.


def classify(
  cfg: AlbertConfig,
  params: Params,
  tokenizer: Tokenizer,
  items: list,
  *,
  labels: Sequence[str] = (),
  kind: str = "classification",
  pair: bool | None = None,
  seq_length: int = 0,
  batch_size: int = heads.BATCH,
) -> list[dict[str, Any]]:
  """Predicts the labels of texts, or of pairs of texts.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    tokenizer: the model's.
    items: texts, or (first, second). Texts longer than `seq_length` are cut as in training, with a warning.
    labels: names, in the order of the classifier's outputs; () numbers them.
    kind: one of KINDS.
    pair: whether the model is for pairs; None for either.
    seq_length: 0 for the model's positions.
    batch_size: the most texts that are run in one batch.

  Returns:
    for each item {"text", and "pair" of a pair} and, by `kind`, {"label", "score": its probability, "scores": {label:
    probability}, most probable first}, {"score": number}, or {"labels": [those above 0.5], "scores"}.

  Raises:
    UserError: a text where the model is for pairs, or the other way round.
  """
  pairs = [isinstance(item, tuple) for item in items]
  takes_pairs = pairs[0] if pair is None else pair
  if len(wrong := [item for item, is_pair in zip(items, pairs, strict=True) if is_pair != takes_pairs]):
    what = "pairs of texts, as they were in its training" if takes_pairs else "single texts"
    raise UserError(f"this model is for {what}; {str(wrong[0])[:60]!r} is not one, or is among others that are not")
  first = [item[0] for item in items] if takes_pairs else items
  second = [item[1] for item in items] if takes_pairs else None
  length = seq_length or cfg.max_position_embeddings
  tokens = tables.encode(tokenizer, first, second, length, "input")
  encoded = batching.Rows(tokens, {}, {"input_ids": tokenizer.pad_id})
  by_row = heads.by_row(functools.partial(_logits, cfg), params, encoded, cfg.max_position_embeddings, batch_size)
  outputs = np.stack(by_row["logits"])
  labels = list(labels) or [f"LABEL_{i}" for i in range(outputs.shape[1])]
  scores = None if kind == "regression" else probabilities(kind, outputs)
  results = []
  for i, item in enumerate(items):
    result = {"text": item[0], "pair": item[1]} if takes_pairs else {"text": item}
    if scores is None:
      results.append(result | {"score": float(outputs[i, 0])})
      continue
    order = np.argsort(-scores[i], kind="stable")
    if kind == "multilabel":
      result["labels"] = [labels[k] for k in order if scores[i, k] > 0.5]
    else:
      result |= {"label": labels[order[0]], "score": float(scores[i, order[0]])}
    results.append(result | {"scores": {labels[k]: float(scores[i, k]) for k in order}})
  return results


@functools.partial(jax.jit, static_argnums=0)
def _logits(cfg, params, batch):
  return {"logits": logits(cfg, params, batch)}


PREDICTION = Prediction(
  "classify", classify, inputs.text_or_pair, 'a text, or a pair: ("…", "…") or {"text": …, "pair": …}',
  "A text to label.", (frozenset({HEAD, "pooler"}),),
)  # fmt: skip


def _files(config):
  data = ClassifyData.from_config(config.data)
  names = (data.split,) if data.validation_fraction else (data.split, data.validation_split)
  return base.files_of(functools.partial(tables.find, data.dataset), *names)


SPEC = Spec(
  make=make,
  settings=Settings,
  metrics=lambda config: ("loss", *METRICS[base.settings_of(Settings, config).kind]),
  files=_files,
  heads=(HEAD,),
  prediction=PREDICTION,
)
