"""Sentence embeddings for retrieval: texts that belong together get similar vectors.

Two towers with one set of weights: query and answer go through the encoder one by one, and an embedding is the mean of
the encoder's output over the text's pieces, or its output at [CLS], of length 1. Similarity is the cosine.

Pairs without scores are learnt with in-batch negatives: of all answers in the batch a query has to find its own, and an
answer its own query (the symmetric InfoNCE loss). No other loss here couples rows. The answers of all devices are
gathered, so the result is the same on any mesh. With `accumulate=N`, the negatives are those of a micro-batch, which is
an N-th of the batch. Pairs with scores (STS) are learnt by the squared error of the cosine.
"""

import functools
import json
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from albert_jax import model
from albert_jax.data.finetuning import batching, cells, tables
from albert_jax.data.finetuning.config import RetrieveData
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.tasks import base, heads, inputs, metrics
from albert_jax.tasks.base import Baselines, Prediction, Spec, Sums, Task
from albert_jax.types import Batch, Params

POOLING = ("mean", "cls")
RECALL_AT = (1, 5, 10)
# The held-out numbers of scored pairs, and of pairs without scores.
SCORED_METRICS = ("loss", "spearman", "pearson")
METRICS = ("loss", "in_batch_accuracy", "mrr", *(f"recall@{k}" for k in RECALL_AT))


@dataclass(frozen=True)
class Settings:
  """`config.task` of configs/retrieve.py.

  Attributes:
    pooling: one of POOLING: how the encoder's output becomes the embedding of a text.
    temperature: cosines are divided by it.
    score_range: "low,high": the lowest and the highest score there can be.
  """

  pooling: str
  temperature: float
  score_range: str

  def __post_init__(self):
    if self.pooling not in POOLING:
      raise UserError(f"task.pooling={self.pooling!r} is unknown; use one of {', '.join(POOLING)}")
    if not (math.isfinite(self.temperature) and self.temperature > 0):
      raise UserError(f"task.temperature={self.temperature} must be above 0; try --config.task.temperature=0.05")
    _ = self.bounds

  @property
  def bounds(self) -> tuple[float, float]:
    """Returns the lowest and the highest score."""
    try:
      low, high = map(float, self.score_range.split(","))
    except ValueError:
      raise UserError(f"task.score_range={self.score_range!r} must be two numbers, such as 0,5") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
      raise UserError(f"task.score_range={self.score_range!r} must be a low and a higher number, such as 0,5")
    return low, high


@dataclass(frozen=True)
class Pairs:
  """Pairs of texts that belong together.

  Attributes:
    queries: n texts.
    answers: n texts.
    scores: float32 [n] from 0 to 1, how well they fit; None without.
  """

  queries: list[str]
  answers: list[str]
  scores: np.ndarray | None

  def __len__(self):
    return len(self.queries)


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/retrieve.py, see `tasks.make`."""
  settings, data = base.settings_of(Settings, config), RetrieveData.from_config(config.data)
  cfg, vocabulary = base.model_and_vocabulary(config, vocabulary)
  train = functools.cache(lambda: read(data, data.split, settings))
  dev = read(data, data.validation_split, settings, may_hide=True)
  if config.epochs and (train().scores is None) != (dev.scores is None):
    raise UserError(
      f"{data.split} has {'no ' if train().scores is None else ''}scores in {data.score_field!r} and "
      f"{data.validation_split} has {'none' if dev.scores is None else 'some'}; both need them, or neither (then set "
      "--config.data.score_field=)"
    )
  if dev.scores is None and config.epochs and config.batch_size // config.accumulate < 2:
    raise UserError("in-batch negatives need two rows a micro-batch at least; raise batch_size or lower accumulate")
  scored = dev.scores is not None
  train_rows = functools.cache(lambda: rows(train(), vocabulary, data.seq_length, data.split))
  dev_rows = rows(dev, vocabulary, data.seq_length, data.validation_split)
  return Task(
    model=cfg,
    init=functools.partial(heads.encoder, cfg, pooler=False),
    sums=functools.partial(sums, cfg, settings.pooling, settings.temperature, scored),
    terms=heads.mean_loss,
    **base.batches(config, train_rows, lambda: dev_rows, first_row),
    baselines=baselines(dev),
    vocabulary=vocabulary,
    outputs=functools.partial(outputs, cfg, settings.pooling),
    metrics=SCORED_METRICS if scored else METRICS,
    score=functools.partial(score, dev),
    train_rows=len(train()) if config.epochs else 0,
    unused=base.unused(),
    about=base.about("embed", pooling=settings.pooling, seq_length=data.seq_length),
    architecture="AlbertModel",
  )  # fmt: skip


# Data.


def read(data: RetrieveData, split: str, settings: Settings, *, may_hide: bool = False) -> Pairs:
  """Reads the pairs of a split.

  Args:
    data: config.data, for the fields.
    split: its name.
    settings: for the range of the scores.
    may_hide: whether scores that are all -1 hide them, as in published test data, if -1 is outside of the range.

  Returns:
    the pairs.

  Raises:
    UserError: a score is no number or outside the range, or only some rows have one.
  """
  texts, scored = [data.query_field, data.answer_field], [data.score_field] if data.score_field else []
  # The default column may be missing; another one was asked for, and only test data may lack it.
  required = scored if not may_hide and data.score_field != RetrieveData.score_field else []
  rows = tables.read(
    data.dataset, split, texts + required, optional=scored, quotes=data.quotes,
    settings=("query_field", "answer_field", "score_field"),
  )  # fmt: skip
  scores = None
  column = rows.columns[data.score_field] if scored else []
  low, high = settings.bounds
  if not all(map(cells.is_hidden if may_hide and low > -1 else cells.is_missing, column)):
    what = "a score, which every row needs, or none has"
    scores = np.array([cells.number(value, rows.where(row), what) for row, value in enumerate(column)])
    outside = np.flatnonzero((scores < low) | (scores > high))
    if outside.size:
      row = int(outside[0])
      raise UserError(
        f"{rows.where(row)} has the score {scores[row]:g}, outside of task.score_range={settings.score_range}; "
        f"try --config.task.score_range={scores.min():g},{scores.max():g}"
      )
    scores = ((scores - low) / (high - low)).astype(np.float32)
  return Pairs(tables.texts(rows, data.query_field), tables.texts(rows, data.answer_field), scores)


def rows(pairs: Pairs, vocabulary: Tokenizer, seq_length: int, source: str) -> batching.Rows:
  """Encodes pairs as token ids.

  Args:
    pairs: the texts.
    vocabulary: the model's.
    seq_length: the longest row; longer texts are cut.
    source: where the texts are from, for the count of those that were cut.

  Returns:
    rows of [2, L], with "query" and "answer", numbers that equal texts share, and "score".
  """
  texts = [text for pair in zip(pairs.queries, pairs.answers, strict=True) for text in pair]
  tokens = tables.encode(vocabulary, texts, None, seq_length, source)
  numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
  fixed = {name: np.array([numbers[text] for text in side], np.int32)
           for name, side in {"query": pairs.queries, "answer": pairs.answers}.items()}  # fmt: skip
  fixed["score"] = np.zeros(len(pairs), np.float32) if pairs.scores is None else pairs.scores
  return batching.Rows({"input_ids": tokens["input_ids"]}, fixed, {"input_ids": vocabulary.pad_id}, group=2)


# The model.


def embeddings_BD(
  cfg: AlbertConfig, pooling: str, params: Params, batch: Batch, key: jax.Array | None = None
) -> jax.Array:
  """Computes the vectors of texts.

  Args:
    cfg: the sizes of the model.
    pooling: one of POOLING.
    params: the parameters.
    batch: input_ids and attention_mask [B, L].
    key: [B], for dropout, or None.

  Returns:
    float32 [B, D], each of length 1.
  """
  return pooled_BD(
    pooling, model.apply(cfg, params, model.inputs(batch), key)["sequence_output"], batch["attention_mask"]
  )


def pooled_BD(pooling: str, x_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
  """Reduces the encoder's output to one vector of length 1 a row, float32.

  Args:
    pooling: one of POOLING.
    x_BLD: the encoder's output.
    mask_BL: 1 for tokens, 0 for padding.

  Returns:
    float32 [B, D].
  """
  x_BLD = x_BLD.astype(jnp.float32)
  if pooling == "cls":
    x_BD = x_BLD[:, 0]
  else:
    mask_BL1 = mask_BL[..., None].astype(jnp.float32)
    x_BD = jnp.sum(x_BLD * mask_BL1, axis=1) / jnp.maximum(jnp.sum(mask_BL1, axis=1), 1)
  return x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), 1e-6)


def _towers(cfg, pooling, params, batch, key=None):
  """Computes the embeddings [B, D] of the queries and of the answers."""
  flat = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("input_ids", "attention_mask")}
  if key is not None:  # The two texts of a row have different keys.
    key = jax.vmap(lambda k: jax.random.split(k, 2))(key).reshape(-1)
  x_BTD = embeddings_BD(cfg, pooling, params, flat, key).reshape(batch["input_ids"].shape[0], 2, -1)
  return x_BTD[:, 0], x_BTD[:, 1]


def sums(
  cfg: AlbertConfig,
  pooling: str,
  temperature: float,
  scored: bool,
  params: Params,
  batch: Batch,
  key: jax.Array | None,
) -> Sums:
  """Implements `Task.sums`: {"loss"} and, without scores, "in_batch_accuracy": how often the own answer is first.

  In a training step, where each device sees its own rows, those of the others are gathered first.
  """
  queries, answers = _towers(cfg, pooling, params, batch, key)
  weights = batch["weight"]
  weight = jnp.sum(weights)
  if scored:
    return {"loss": (jnp.sum(weights * jnp.square(jnp.sum(queries * answers, axis=-1) - batch["score"])), weight)}
  to_answers = _own_among_all(queries, answers, batch["answer"], weights, temperature)
  to_queries = _own_among_all(answers, queries, batch["query"], weights, temperature)
  losses = (to_answers[0] + to_queries[0]) / 2
  return {"loss": (jnp.sum(weights * losses), weight), "in_batch_accuracy": (jnp.sum(weights * to_answers[1]), weight)}


def _own_among_all(x_BD, y_BD, numbers_B, weights_B, temperature):
  """Computes, for each x, the cross-entropy of its own y among the y of all rows, and whether it ranks first: [B] each.

  Args:
    numbers_B: equal for equal y, which are not negatives of each other.
    weights_B: rows of weight 0 are none either.
  """
  # In a training step, the axes over which rows are split; else ().
  axes = tuple(axis for axis in jax.sharding.get_abstract_mesh().manual_axes if axis != "tensor")
  everyone = (y_BD, numbers_B, weights_B)
  row_index = jnp.arange(x_BD.shape[0])
  if axes:
    everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), everyone)
    row_index = row_index + jax.lax.axis_index(axes) * x_BD.shape[0]
  y_AD, numbers_A, weights_A = everyone
  is_own_BA = row_index[:, None] == jnp.arange(y_AD.shape[0])[None, :]
  negative_BA = (weights_A > 0)[None, :] & (numbers_B[:, None] != numbers_A[None, :])
  logits_BA = jnp.where(is_own_BA | negative_BA, x_BD @ y_AD.T / temperature, -jnp.inf)
  own_B = jnp.sum(x_BD * y_BD, axis=-1) / temperature
  found_B = jnp.all(jnp.where(is_own_BA, True, logits_BA < own_B[:, None]), axis=-1)
  return jax.nn.logsumexp(logits_BA, axis=-1) - own_B, found_B.astype(jnp.float32)


def outputs(cfg: AlbertConfig, pooling: str, params: Params, batch: Batch) -> dict[str, jax.Array]:
  """Implements `Task.outputs`: {"query", "answer": embeddings [B, D]}."""
  queries, answers = _towers(cfg, pooling, params, batch)
  return {"query": queries, "answer": answers}


# Scores.


def score(dev: Pairs, outputs: dict[str, list]) -> tuple[dict[str, float], dict[str, bytes]]:
  """Implements `Task.score`: Spearman of scored pairs, else MRR and recall@k of each query's answer in the split.

  `predictions.jsonl` has the cosine of each pair, and without scores its rank.
  """
  queries, answers = (metrics.finite(np.stack(outputs[name])) for name in ("query", "answer"))
  cosines = np.sum(queries * answers, axis=1)
  lines = [{"query": q, "answer": a, "cosine": round(float(c), 6)}
           for q, a, c in zip(dev.queries, dev.answers, cosines, strict=True)]  # fmt: skip
  if dev.scores is not None:
    numbers = {"spearman": metrics.spearman(dev.scores, cosines), "pearson": metrics.pearson(dev.scores, cosines)}
  else:
    ranks = own_ranks(queries, answers, dev.queries, dev.answers)
    numbers = rank_metrics(ranks)
    lines = [line | {"rank": int(rank)} for line, rank in zip(lines, ranks, strict=True)]
  content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  return numbers, {"predictions.jsonl": content.encode("utf-8", "replace")}


def own_ranks(queries: np.ndarray, answers: np.ndarray, query_texts: list[str], answer_texts: list[str]) -> np.ndarray:
  """Ranks each query's own answer among all different answers.

  Other right answers of the same query are left out. Of equal cosines the own answer is last, so that equal embeddings
  do not score.

  Args:
    queries: [n, D], of length 1.
    answers: likewise.
    query_texts: n texts.
    answer_texts: likewise.

  Returns:
    int [n], from 1.
  """
  first = {text: i for i, text in reversed(list(enumerate(answer_texts)))}  # The first index of each answer.
  number = {text: k for k, text in enumerate(first)}
  candidates = answers[list(first.values())]
  right: dict[str, set[int]] = {}
  for query, answer in zip(query_texts, answer_texts, strict=True):
    right.setdefault(query, set()).add(number[answer])
  ranks = np.zeros(len(queries), np.int64)
  for start in range(0, len(queries), 1024):
    cosines = queries[start : start + 1024] @ candidates.T
    for row, i in enumerate(range(start, min(start + 1024, len(queries)))):
      answer_id = number[answer_texts[i]]
      other_answers = [k for k in right[query_texts[i]] if k != answer_id]
      best = cosines[row, answer_id] - 1e-9  # Differences by rounding do not count.
      cosines[row, other_answers] = -np.inf
      ranks[i] = np.sum(cosines[row] >= best)
  return ranks


def rank_metrics(ranks: np.ndarray) -> dict[str, float]:
  """Returns {"mrr": mean of 1 / rank, "recall@k": the share of ranks up to k}."""
  return {"mrr": float(np.mean(1 / ranks)), **{f"recall@{k}": float(np.mean(ranks <= k)) for k in RECALL_AT}}


def baselines(dev: Pairs) -> Baselines:
  """Returns the metrics of guessing, see Task."""
  if dev.scores is not None:
    return {"spearman": (0.0, "guessing"), "pearson": (0.0, "guessing")}
  candidates = len(set(dev.answers))
  expected = rank_metrics(np.arange(1, candidates + 1))
  return {name: (value, f"guessing among {candidates:,} answers") for name, value in expected.items()}


# Prediction.


def embed(
  cfg: AlbertConfig,
  params: Params,
  tokenizer: Tokenizer,
  texts: list[str],
  *,
  pooling: str = "mean",
  seq_length: int = 512,
  batch_size: int = heads.BATCH,
) -> list[dict[str, Any]]:
  """Computes the vectors of texts.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    tokenizer: the model's.
    texts: texts; a text longer than `seq_length` pieces is cut, with a warning.
    pooling: one of POOLING, as the model was trained.
    seq_length: the longest row.
    batch_size: the most texts that are run in one batch.

  Returns:
    for each text {"text", "embedding": list of D floats, of length 1}.

  Raises:
    UserError: there is no such pooling.
  """
  if pooling not in POOLING:
    raise UserError(f"pooling={pooling!r} is unknown; use one of {', '.join(POOLING)}")
  seq_length = min(seq_length, cfg.max_position_embeddings)
  tokens = tables.encode(tokenizer, texts, None, seq_length, "embed")
  encoded = batching.Rows({"input_ids": tokens["input_ids"]}, {}, {"input_ids": tokenizer.pad_id})
  run = functools.partial(_embed, cfg, pooling)
  outputs = heads.by_row(run, params, encoded, cfg.max_position_embeddings, batch_size)
  return [{"text": t, "embedding": x.tolist()} for t, x in zip(texts, outputs.get("embedding", ()), strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(cfg, pooling, params, batch):
  return {"embedding": embeddings_BD(cfg, pooling, params, batch)}


def _files(config):
  data = RetrieveData.from_config(config.data)
  return base.files_of(functools.partial(tables.find, data.dataset), data.split, data.validation_split)


SPEC = Spec(
  make=make,
  settings=Settings,
  metrics=lambda config: tuple(dict.fromkeys(SCORED_METRICS + METRICS)),
  files=_files,
  prediction=Prediction("embed", embed, inputs.text, "a text", "A text to embed.", (frozenset(),)),
)
