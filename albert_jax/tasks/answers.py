"""What trained models say of texts: masks filled, labels, choices. For albert_jax.pipeline and albert-jax predict.

Each is function(cfg, params, tokenizer, items, **options) -> a dict for each item, in their order.
"""

import functools

import jax
import numpy as np

from albert_jax import model
from albert_jax.data.finetuning import tables
from albert_jax.data.finetuning.batching import Rows
from albert_jax.errors import UserError
from albert_jax.tasks import classify as classification
from albert_jax.tasks import heads


def fill_mask(cfg, params, tokenizer, texts, *, top_k=5, batch_size=heads.BATCH):
  """What the model would write at each `[MASK]` of each text.

  Args: texts: list of str. top_k: candidates a mask. batch_size: the most texts that are run together.
  Returns: for each text {"text", "filled": the text with the best pieces in place, "masks": for each mask a list of
    top_k {"token", "score"}, best first; score is the probability among ordinary pieces}.
  Raises: UserError for a text without [MASK], or one that is longer than the model's positions.
  """
  ids = [[tokenizer.cls_id, *tokenizer.encode(text, specials=True), tokenizer.sep_id] for text in texts]
  where = [np.flatnonzero(np.array(row) == tokenizer.mask_id) for row in ids]
  for text, row, masks in zip(texts, ids, where, strict=True):
    if not len(masks):
      raise UserError(f"no [MASK] in {text[:200]!r}; write one where a word is to be filled in")
    if len(row) > cfg.max_position_embeddings:
      raise UserError(
        f"a text has {len(row)} tokens, the model {cfg.max_position_embeddings} positions; shorten the text, which "
        f"begins {text[:60]!r}"
      )
  slots = 1 << (max(map(len, where)) - 1).bit_length()  # Each number of them is a program of its own.
  positions = np.stack([np.pad(masks, (0, slots - len(masks))) for masks in where]).astype(np.int32)
  rows = Rows({"input_ids": ids}, {"mlm_positions": positions}, {"input_ids": tokenizer.pad_id})
  ordinary = jax.device_put(tokenizer.ordinary_ids)
  best = functools.partial(_best_pieces, cfg, min(top_k, len(ordinary)), ordinary)
  found = heads.by_row(best, params, rows, batch_size)
  results = []
  for i, (text, row) in enumerate(zip(texts, ids, strict=True)):
    count = len(where[i])
    masks = [
      [{"token": tokenizer.decode([k]), "score": float(p)} for k, p in zip(pieces, scores, strict=True)]
      for pieces, scores in zip(found["piece"][i][:count], found["score"][i][:count], strict=True)
    ]
    filled = np.array(row)
    filled[where[i]] = found["piece"][i][:count, 0]
    results.append({"text": text, "filled": tokenizer.decode(filled[1:-1]), "masks": masks})
  return results


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best_pieces(cfg, top_k, ordinary, params, batch):
  logits_BMV = model.apply(cfg, params, batch)["mlm_logits"][:, :, ordinary]
  scores, best = jax.lax.top_k(jax.nn.softmax(logits_BMV), top_k)
  return {"piece": ordinary[best], "score": scores}


def classify(
  cfg, params, tokenizer, items, *, labels=(), kind="classification", pair=None, seq_length=0, batch_size=heads.BATCH
):
  """The labels of texts, or of pairs of texts.

  Args:
    items: list of str, or of (first, second). What is longer than `seq_length` is cut as in training, and said.
    labels: names, in the order of the classifier's outputs; () numbers them.
    kind: classification | regression | multilabel. pair: whether the model is for pairs; None: for either.
    seq_length: 0 for the model's positions.

  Returns: for each item {"text", and "pair" of a pair} and, by `kind`, {"label", "score": its probability, "scores":
    {label: probability}, most probable first}, {"score": number}, or {"labels": [those above 0.5], "scores"}.
  Raises: UserError for a text where the model is for pairs, or the other way round.
  """
  pairs = [isinstance(item, tuple) for item in items]
  wanted = pairs[0] if pair is None else pair
  if len(wrong := [item for item, is_pair in zip(items, pairs, strict=True) if is_pair != wanted]):
    what = "pairs of texts, as they were in its training" if wanted else "single texts"
    raise UserError(f"this model is for {what}; {str(wrong[0])[:60]!r} is not one, or is among others that are not")
  first, second = zip(*items, strict=True) if wanted else (items, None)
  length = seq_length or cfg.max_position_embeddings
  tokens = tables.encode(tokenizer, first, second, length, "input")
  rows = Rows(tokens, {}, {"input_ids": tokenizer.pad_id})
  outputs = np.stack(heads.by_row(functools.partial(_logits, cfg), params, rows, batch_size)["logits"])
  labels = list(labels) or [f"LABEL_{i}" for i in range(outputs.shape[1])]
  scores = None if kind == "regression" else classification.probabilities(kind, outputs)
  results = []
  for i, item in enumerate(items):
    result = {"text": item[0], "pair": item[1]} if wanted else {"text": item}
    if kind == "regression":
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
  return {"logits": classification.logits(cfg, params, batch)}
