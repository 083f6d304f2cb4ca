"""A text or a pair of texts to a label, several labels or a number: classification, multi-label, regression.

The head is the original's: dropout and one dense layer on the pooled [CLS] (run_classifier.py, `create_model`).
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax import model
from albert_jax.data.finetuning import batching, cells, splits, tables
from albert_jax.data.finetuning.config import ClassifyData
from albert_jax.errors import UserError
from albert_jax.model.layers import dropout
from albert_jax.tasks import heads, metrics
from albert_jax.tasks.base import Task, about, batches, model_and_vocabulary, named

# What transformers calls each kind.
KINDS = {
  "classification": "single_label_classification", "regression": "regression",
  "multilabel": "multi_label_classification",
}  # fmt: skip
MOST_LABELS = 100  # as many may there be, whatever the number of rows
HEAD = "^classifier/"


@dataclass(frozen=True)
class Split:
  """Labelled texts.

  first, second: lists of n texts; second is None where they are no pairs.
  gold: int [n] (classification), float32 [n] (regression) or float32 [n, C] of 0 and 1; None where nobody knows.
  source: where they are from. index: how the data's owner numbers the rows, list of n ints.
  """

  first: list[str]
  second: list[str] | None
  gold: np.ndarray | None
  source: str
  index: list[int]

  def __len__(self):
    return len(self.first)


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task of configs/classify.py, on a user's own data."""
  kind, task, data = config.task.kind, config.task, ClassifyData.of(config.data)
  if kind not in KINDS:
    raise UserError(f"task.kind={kind!r} is unknown; use one of {', '.join(KINDS)}")
  fields = data.texts

  @functools.cache
  def read(split):
    """The rows of "train" or "held out"."""
    shared = data.validation_fraction > 0
    name = data.split if split == "train" or shared else data.validation_split
    test = split == "held out" and not shared
    found = tables.read(
      data.dataset, name, fields if test else [*fields, data.label_field], quotes=data.quotes, tfds_dir=data.tfds_dir,
      optional=[data.label_field] if test else (), skip_ragged=split == "train" or shared,
    )  # fmt: skip
    if shared:
      away = tables.held_out(found, fields, data.validation_fraction)
      found = found.select(away if split == "held out" else ~away)
    unwanted = {cells.label(label, "data.drop_labels") for label in data.drop_labels.split(",") if label}
    if unwanted:
      single = (
        None if cell is None or isinstance(cell, list) else cells.label(cell, "")
        for cell in found.columns[data.label_field]
      )
      keep = np.array([name not in unwanted for name in single], bool)
      if not keep.all():
        splits.say(found.source, int(np.sum(~keep)), f"rows have a label of data.drop_labels={data.drop_labels}")
      found = found.select(keep)
    return found

  @functools.cache
  def labels():
    return tuple(cells.label(name, "task.labels") for name in named(task.labels)) or _labels_of(
      read("train"), data.label_field, kind, data.label_separator
    )

  def split(which):
    rows = read(which)
    columns = [tables.texts(rows, field) for field in fields]
    gold = gold_of(rows, data.label_field, kind, labels(), data.label_separator, may_lack=which == "held out")
    return Split(columns[0], columns[1] if len(fields) == 2 else None, gold, rows.source, list(range(len(rows))))

  held_out = split("held out")
  names = () if kind == "regression" else labels()
  return build(
    config, vocabulary, first_row, kind=kind, labels=names, held_out=held_out,
    train=functools.cache(lambda: split("train")), train_rows=len(read("train")) if config.epochs else 0,
    score=functools.partial(_score, kind, names, held_out),
    baselines=baselines(kind, held_out.gold, len(names)),
  )  # fmt: skip


def build(
  config, vocabulary, first_row, *, kind, labels, held_out: Split, train: Callable, train_rows, score, baselines
) -> Task:
  """A Task of texts that are at hand.

  Args: kind: see KINDS. labels: their names, () for regression. train: () -> Split, called when training begins.
    score: {"outputs": …} -> see Task.score. baselines: see Task.
  """
  cfg, vocabulary = model_and_vocabulary(config, vocabulary)
  task, length = config.task, config.data.seq_length
  if task.r_drop and not (cfg.hidden_dropout_prob or cfg.attention_probs_dropout_prob or cfg.classifier_dropout_prob):
    raise UserError("task.r_drop compares two passes with dropout, and there is none; set a model.*_dropout_prob")
  if task.class_weights not in ("", "balanced") or (task.class_weights and kind != "classification"):
    raise UserError(f"task.class_weights={task.class_weights!r}: expected '', or balanced for task.kind=classification")
  if not 0 <= task.label_smoothing < 1 or (task.label_smoothing and kind != "classification"):
    raise UserError(f"task.label_smoothing={task.label_smoothing}: expected 0 to below 1, for task.kind=classification")
  encode = functools.partial(rows, vocabulary=vocabulary, kind=kind, labels=len(labels), seq_length=length)
  encoded = functools.cache(lambda: encode(train(), class_weights=task.class_weights))
  held_out_encoded = functools.cache(lambda: encode(held_out))
  return Task(
    model=cfg,
    init=functools.partial(init, cfg, max(len(labels), 1)),
    sums=functools.partial(sums, cfg, kind, task.label_smoothing, task.r_drop),
    terms=functools.partial(terms, task.r_drop),
    **batches(config, encoded, held_out_encoded, first_row),
    baselines=baselines,
    vocabulary=vocabulary,
    outputs=lambda params, batch: {"outputs": logits(cfg, params, batch)},
    score=score,
    train_rows=train_rows,
    new=(HEAD,),
    unused=unused(task.keep_head),
    about=about("classify", labels, kind=kind, pair=held_out.second is not None, seq_length=length)
    | {"problem_type": KINDS[kind]},
  )  # fmt: skip


def unused(keep_head) -> tuple[str, ...]:
  """What of a checkpoint is left out: other heads, and a classifier unless this is to go on with the same task."""
  return ("^mlm/", "^sop/", "^span/", "^squad_v2/", *(() if keep_head else (HEAD,)))


# Labels.


def gold_of(rows, field, kind, labels, separator=",", may_lack=False):
  """The labels of rows as numbers, see Split.

  Raises: UserError for a label that is not among `labels`, or is no number; for one that is missing, unless all are
    and `may_lack`.
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
  found = list(_names(rows, field, kind, separator))
  for row, names in enumerate(found):
    for name in names:
      if name not in number:
        shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
        raise UserError(f"{rows.where(row)} has the label {name!r}, unknown in training; there are {shown}")
  if kind == "classification":
    return np.array([number[names[0]] for names in found], np.int32)
  gold = np.zeros((len(rows), len(labels)), np.float32)
  for row, names in enumerate(found):
    gold[row, [number[name] for name in names]] = 1
  return gold


def _labels_of(rows, field, kind, separator):
  """The labels that occur, in an order that is always the same."""
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
  return tuple(tables.numbered(names))


def _lacks(value, kind):
  """Whether a cell has no label. An empty text of several labels means that the row has none of them."""
  return cells.is_missing(value) and not (kind == "multilabel" and isinstance(value, str) and not value.strip())


def _names(rows, field, kind, separator):
  """For each row the names of its labels; none for a missing label."""
  for row, value in enumerate(rows.columns[field]):
    if cells.is_missing(value):
      yield []
    elif kind == "multilabel":
      yield cells.labels(value, separator, rows.where(row))
    else:
      yield [cells.label(value, rows.where(row))]


def rows(split, vocabulary, kind, labels, seq_length, class_weights="") -> batching.Rows:
  """A Split as token ids, with "label", and "counts": a row's weight in the loss, 0 where it has no label.

  Args: labels: how many there are. class_weights: see configs/classify.py.
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


def init(cfg, outputs, key):
  """Fresh parameters: the encoder with its pooler, and a dense layer of so many outputs."""
  key_encoder, key_head = jax.random.split(key)
  encoder = heads.encoder(cfg, key_encoder, pooler=True)
  return encoder | {"classifier": heads.dense(cfg, key_head, cfg.hidden_size, outputs)}


def logits(cfg, params, batch, keys=None):
  """[B, C] float32. keys: [B], for dropout, or None."""
  pooled_BD = model.apply(cfg, params, batch, keys)["pooled_output"]
  return heads.affine(params["classifier"], dropout(pooled_BD, cfg.classifier_dropout_prob, heads.head_keys(keys, 0)))


def sums(cfg, kind, smoothing, r_drop, params, batch, keys) -> dict:
  """{"loss", and of single labels "accuracy": (total, weight)}; in training with R-Drop also "r_drop".

  R-Drop (arXiv 2106.14448): two passes that drop other values; the loss is the mean of theirs, plus how far apart the
  two answers are, which `terms` weighs.
  """
  training = keys is not None
  weights = batch["weight"] * batch["counts"]
  first = logits(cfg, params, batch, keys)
  found = _loss(kind, first, batch, weights, smoothing if training else 0.0)
  if training and r_drop:
    second = logits(cfg, params, batch, jax.vmap(jax.random.fold_in, (0, None))(keys, 1))
    other = _loss(kind, second, batch, weights, smoothing)
    found = {name: ((found[name][0] + other[name][0]) / 2, found[name][1]) for name in found}
    found["r_drop"] = (jnp.sum(weights * _distance(kind, first, second)), jnp.sum(weights))
  return found


def terms(r_drop, batch) -> dict:
  """The mean over rows, by their weights."""
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
  """[B]: the mean of the two Kullback-Leibler divergences between answers; of numbers, the squared difference."""
  if kind == "regression":
    return jnp.square(a - b)[:, 0]
  if kind == "multilabel":  # Each label is a distribution over yes and no.
    a, b = (jnp.stack([x, jnp.zeros_like(x)], axis=-1) for x in (a, b))
  log_a, log_b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
  divergence = jnp.sum((jnp.exp(log_a) - jnp.exp(log_b)) * (log_a - log_b), axis=-1) / 2
  return jnp.mean(divergence, axis=-1) if kind == "multilabel" else divergence


# Scores.


def probabilities(kind, outputs):
  """float64 [n, C] of logits [n, C]: softmax over labels, or of each its own sigmoid; regression has none."""
  outputs = np.asarray(outputs, np.float64)
  if kind == "multilabel":
    return 1 / (1 + np.exp(-outputs))
  shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
  return shifted / shifted.sum(axis=1, keepdims=True)


def measure(kind, outputs, gold) -> dict:
  """{metric: number} of a kind's usual metrics. Args: outputs: [n, C]. gold: as in Split."""
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


def baselines(kind, gold, labels) -> dict:
  """What the metrics of `measure`, and the loss, would be without looking at the texts; {} without labels."""
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
    entropy = -sum(np.where(p > 0, p * np.log(p), 0) for p in parts)
  loss = float(entropy.mean() if kind == "multilabel" else entropy.sum())
  outputs = np.tile(share - 0.5 if kind == "multilabel" else share, (len(gold), 1))
  most = "what most rows have" if kind == "multilabel" else "always the most frequent label"
  return {"loss": (loss, "the labels' frequencies")} | {
    name: (value, "guessing" if name == "auc" else most) for name, value in measure(kind, outputs, gold).items()
  }


def _score(kind, labels, split, outputs):
  """Task.score: the metrics, and a JSON line a row with the answer and what it should be."""
  found = np.stack(outputs["outputs"])
  numbers = measure(kind, found, split.gold) if split.gold is not None else {}
  return numbers, {"predictions.jsonl": _answers(kind, labels, split, found)}


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
