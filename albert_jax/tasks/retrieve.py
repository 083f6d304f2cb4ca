"""Sentence embeddings: texts that belong together come to lie close, so that an answer, or a like text, can be found.

Two towers with one set of weights: query and answer go through the encoder one by one, and an embedding is the mean of
the encoder's output over the text's pieces, or its output at [CLS], of length 1. Similarity is the cosine.

Pairs without scores are learnt with in-batch negatives: of all answers in the batch a query has to find its own, and an
answer its own query (the symmetric InfoNCE loss). This is the one loss of the house that couples rows, so what the
batch is decides what is learnt: the answers of all devices are gathered, and the result is the same on any mesh; but
with `accumulate` each micro-batch is a batch by itself, with as many times fewer negatives. Pairs with scores (STS) are
learnt by the squared error of the cosine.
"""

import functools
import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax import model
from albert_jax.data.finetuning import batching, cells, tables
from albert_jax.data.finetuning.config import RetrieveData
from albert_jax.errors import UserError
from albert_jax.tasks import heads, metrics
from albert_jax.tasks.base import Task, about, batches, model_and_vocabulary

POOLING = ("mean", "cls")
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Pairs:
  """queries, answers: lists of n texts. scores: float32 [n] from 0 to 1, how well they go together, or None."""

  queries: list[str]
  answers: list[str]
  scores: np.ndarray | None

  def __len__(self):
    return len(self.queries)


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task of configs/retrieve.py."""
  cfg, vocabulary = model_and_vocabulary(config, vocabulary)
  data, pooling, temperature = RetrieveData.of(config.data), config.task.pooling, config.task.temperature
  if pooling not in POOLING:
    raise UserError(f"task.pooling={pooling!r} is unknown; use one of {', '.join(POOLING)}")
  if not temperature > 0:
    raise UserError(f"task.temperature={temperature} must be above 0; try --config.task.temperature=0.05")
  train = functools.cache(lambda: read(data, data.split, config.task.score_range))
  dev = read(data, data.validation_split, config.task.score_range)
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
    sums=functools.partial(sums, cfg, pooling, temperature, scored),
    terms=heads.mean_loss,
    **batches(config, train_rows, lambda: dev_rows, first_row),
    baselines=baselines(dev),
    vocabulary=vocabulary,
    outputs=functools.partial(outputs, cfg, pooling),
    score=functools.partial(score, dev),
    train_rows=len(train()) if config.epochs else 0,
    unused=("^mlm/", "^sop/", "^pooler/", heads.FINE_TUNED),
    about=about("embed", pooling=pooling, seq_length=data.seq_length),
    architecture="AlbertModel",
  )  # fmt: skip


# Data.


def read(data, split, score_range) -> Pairs:
  """The pairs of a split. Args: data: config.data, for the fields. score_range: "low,high" of the scores, see config.

  Raises: UserError for a score that is no number or outside the range, and where only some rows have one.
  """
  optional = [data.score_field] if data.score_field else []
  found = tables.read(data.dataset, split, [data.query_field, data.answer_field], optional=optional, quotes=data.quotes)
  scores = None
  given = found.columns[data.score_field] if optional else []
  if not all(map(cells.is_missing, given)):
    try:
      low, high = map(float, score_range.split(","))
    except ValueError:
      raise UserError(f"task.score_range={score_range!r} must be two numbers, such as 0,5") from None
    what = "a score, which every row needs, or none has"
    scores = np.array([cells.number(value, found.where(row), what) for row, value in enumerate(given)])
    outside = np.flatnonzero((scores < low) | (scores > high))
    if outside.size or not low < high:
      row = int(outside[0]) if outside.size else 0
      raise UserError(
        f"{found.where(row)} has the score {scores[row]:g}, outside of task.score_range={score_range}; "
        f"try --config.task.score_range={scores.min():g},{scores.max():g}"
      )
    scores = ((scores - low) / (high - low)).astype(np.float32)
  return Pairs(tables.texts(found, data.query_field), tables.texts(found, data.answer_field), scores)


def rows(pairs, vocabulary, seq_length, source) -> batching.Rows:
  """Pairs as token ids, [2, L] a row; "query" and "answer" are numbers that equal texts share, "score" is theirs."""
  texts = [text for pair in zip(pairs.queries, pairs.answers, strict=True) for text in pair]
  tokens = tables.encode(vocabulary, texts, None, seq_length, source)
  numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
  fixed = {name: np.array([numbers[text] for text in side], np.int32)
           for name, side in {"query": pairs.queries, "answer": pairs.answers}.items()}  # fmt: skip
  fixed["score"] = np.zeros(len(pairs), np.float32) if pairs.scores is None else pairs.scores
  return batching.Rows({"input_ids": tokens["input_ids"]}, fixed, {"input_ids": vocabulary.pad_id}, group=2)


# The model.


def embeddings_BD(cfg, pooling, params, batch, key=None):
  """Texts as vectors of length 1, float32. Args: batch: input_ids and attention_mask [B, L]. key: [B], or None."""
  return pooled_BD(pooling, model.apply(cfg, params, batch, key)["sequence_output"], batch["attention_mask"])


def pooled_BD(pooling, x_BLD, mask_BL):
  """The encoder's output as one vector of length 1 a row, float32. pooling: see POOLING."""
  x_BLD = x_BLD.astype(jnp.float32)
  if pooling == "cls":
    x_BD = x_BLD[:, 0]
  else:
    mask_BL1 = mask_BL[..., None].astype(jnp.float32)
    x_BD = jnp.sum(x_BLD * mask_BL1, axis=1) / jnp.maximum(jnp.sum(mask_BL1, axis=1), 1)
  return x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), 1e-6)


def _towers(cfg, pooling, params, batch, key=None):
  """Embeddings [B, D] of the queries, and of the answers."""
  flat = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("input_ids", "attention_mask")}
  if key is not None:  # Each of the two texts of a row has a key of its own.
    key = jax.vmap(lambda k: jax.random.split(k, 2))(key).reshape(-1)
  x_BTD = embeddings_BD(cfg, pooling, params, flat, key).reshape(batch["input_ids"].shape[0], 2, -1)
  return x_BTD[:, 0], x_BTD[:, 1]


def sums(cfg, pooling, temperature, scored, params, batch, key) -> dict:
  """{"loss": (total, weight)} and, without scores, "in_batch_accuracy": how many queries found their own answer.

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
  """For each x the cross entropy of finding its own y among all that there are, and whether it did: [B] each.

  Args: numbers_B: equal for equal y, which are no negatives of each other. weights_B: rows of weight 0 are none either.
  """
  # In a training step those over which rows are split, else ().
  axes = tuple(axis for axis in jax.sharding.get_abstract_mesh().manual_axes if axis != "tensor")
  everyone = (y_BD, numbers_B, weights_B)
  own = jnp.arange(x_BD.shape[0])
  if axes:
    everyone = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), everyone)
    own = own + jax.lax.axis_index(axes) * x_BD.shape[0]
  y_AD, numbers_A, weights_A = everyone
  is_own_BA = own[:, None] == jnp.arange(y_AD.shape[0])[None, :]
  negative_BA = (weights_A > 0)[None, :] & (numbers_B[:, None] != numbers_A[None, :])
  logits_BA = jnp.where(is_own_BA | negative_BA, x_BD @ y_AD.T / temperature, -jnp.inf)
  own_B = jnp.sum(x_BD * y_BD, axis=-1) / temperature
  found_B = jnp.all(jnp.where(is_own_BA, True, logits_BA < own_B[:, None]), axis=-1)
  return jax.nn.logsumexp(logits_BA, axis=-1) - own_B, found_B.astype(jnp.float32)


def outputs(cfg, pooling, params, batch) -> dict:
  """{"query", "answer": embeddings [B, D]}."""
  queries, answers = _towers(cfg, pooling, params, batch)
  return {"query": queries, "answer": answers}


# Scores.


def score(dev, found):
  """Spearman of scored pairs; else MRR and recall@k of each query's answer among all answers of the split, each once.

  `predictions.jsonl` has the cosine of each pair, and without scores its rank.
  """
  queries, answers = (metrics.finite(np.stack(found[name])) for name in ("query", "answer"))
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


def own_ranks(queries, answers, query_texts, answer_texts):
  """The rank of each query's own answer among all different answers, from 1; int [n].

  Other right answers of the same query are not in the way. Of equal cosines one's own is the last, so that embeddings
  which are all the same find nothing.
  Args: queries, answers: [n, D] of length 1. query_texts, answer_texts: lists of n str.
  """
  first = {text: i for i, text in reversed(list(enumerate(answer_texts)))}  # each different answer, and where it is
  place = {text: k for k, text in enumerate(first)}
  candidates = answers[list(first.values())]
  right = {}
  for query, answer in zip(query_texts, answer_texts, strict=True):
    right.setdefault(query, set()).add(place[answer])
  ranks = np.zeros(len(queries), np.int64)
  for start in range(0, len(queries), 1024):
    cosines = queries[start : start + 1024] @ candidates.T
    for row, i in enumerate(range(start, min(start + 1024, len(queries)))):
      own = place[answer_texts[i]]
      others = [k for k in right[query_texts[i]] if k != own]
      best = cosines[row, own] - 1e-9  # what rounding makes of equal ones is not better
      cosines[row, others] = -np.inf
      ranks[i] = np.sum(cosines[row] >= best)
  return ranks


def rank_metrics(ranks) -> dict:
  """{"mrr": mean of 1 / rank, "recall@k": the share of ranks up to k}."""
  return {"mrr": float(np.mean(1 / ranks)), **{f"recall@{k}": float(np.mean(ranks <= k)) for k in RECALL_AT}}


def baselines(dev) -> dict:
  if dev.scores is not None:
    return {"spearman": (0.0, "guessing"), "pearson": (0.0, "guessing")}
  candidates = len(set(dev.answers))
  expected = rank_metrics(np.arange(1, candidates + 1))
  return {name: (value, f"guessing among {candidates:,} answers") for name, value in expected.items()}


# For albert_jax.pipeline and albert-jax predict.


def embed(cfg, params, tokenizer, texts, *, pooling="mean", seq_length=512, batch_size=heads.BATCH):
  """Texts as vectors of length 1.

  Args: texts: list of str; what is longer than `seq_length` pieces is cut, and counted on stderr. pooling: mean or cls,
    as the model was trained. batch_size: how many are run together at most.
  Returns: for each text {"text", "embedding": list of D floats}.
  """
  if pooling not in POOLING:
    raise UserError(f"pooling={pooling!r} is unknown; use one of {', '.join(POOLING)}")
  seq_length = min(seq_length, cfg.max_position_embeddings)
  tokens = tables.encode(tokenizer, texts, None, seq_length, "embed")
  encoded = batching.Rows({"input_ids": tokens["input_ids"]}, {}, {"input_ids": tokenizer.pad_id})
  found = heads.by_row(functools.partial(_embed, cfg, pooling), params, encoded, batch_size)
  return [{"text": t, "embedding": x.tolist()} for t, x in zip(texts, found.get("embedding", ()), strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(cfg, pooling, params, batch):
  return {"embedding": embeddings_BD(cfg, pooling, params, batch)}
