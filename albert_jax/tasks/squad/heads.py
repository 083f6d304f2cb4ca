"""The heads for question answering, by the name of `task.head`.

span: a start and an end logit for each token, as in run_squad_v1.py and transformers' AlbertForQuestionAnswering; that
there is no answer is the span of [CLS] alone. beam: the paper's for SQuAD 2.0 (run_squad_v2.py, after XLNet): the end
is chosen given the start, and a third part says whether there is an answer at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.layers import dropout
from albert_jax.tasks import heads
from albert_jax.tasks.base import Batch, Params

NEVER = -1e30  # the logit of a position that is not allowed, as in the original


@dataclass(frozen=True)
class Head:
  """One way to answer.

  Attributes:
    part: its name in the parameters.
    init: (cfg, key) -> its fresh parameters.
    losses: (cfg, head, x_BLD, batch, keys_B) -> {name: [B]}, of which "loss" is minimised; `head` is its parameters.
    spans: (head, x_BLD, batch, search) -> the best starts and ends of each row: start_index, start_score [B, K];
      end_index, end_score [B, K, J], the ends of each start ([B, 1, J]: of any); null [B], the score of no answer.
    answers: {name: (kind of base.Answer, (head, x_BLD, batch) -> logits [B, C])}.
    null_is_score: whether `null` is the score of '' as a span, to be compared with those of the others.
  """

  part: str
  init: Callable
  losses: Callable
  spans: Callable
  answers: dict[str, tuple[str, Callable]]
  null_is_score: bool


def get(name: str) -> Head:
  """Returns a head of HEADS. Raises UserError for another name."""
  if name not in HEADS:
    raise UserError(f"task.head={name!r} is unknown; use one of {', '.join(HEADS)}")
  return HEADS[name]


def _masked_log_softmax(logits_BL, allowed_BL):
  return jax.nn.log_softmax(jnp.where(allowed_BL > 0, logits_BL, NEVER), axis=-1)


def _at(values_BL, positions_B):
  return jnp.take_along_axis(values_BL, positions_B[:, None], axis=1)[:, 0]


# Plain spans.


def span_init(cfg: AlbertConfig, key: jax.Array) -> Params:
  """Makes fresh parameters."""
  return heads.dense(cfg, key, cfg.hidden_size, 2)


def span_losses(cfg: AlbertConfig, head: Params, x_BLD: jax.Array, batch: Batch, keys_B: Any) -> dict[str, jax.Array]:
  """Computes the mean cross-entropy of start and end, over all tokens of a row; no dropout, as in the original."""
  del cfg, keys_B
  logits_BL2 = heads.affine(head, x_BLD)
  losses = [
    -_at(_masked_log_softmax(logits_BL2[:, :, i], batch["attention_mask"]), batch[name])
    for i, name in enumerate(("start", "end"))
  ]
  return {"loss": 0.5 * (losses[0] + losses[1])}


def span_spans(head: Params, x_BLD: jax.Array, batch: Batch, search: Any) -> dict[str, jax.Array]:
  """Finds the best starts and ends, each by itself, see Head."""
  logits_BL2 = heads.affine(head, x_BLD)
  # [CLS], the first position, is scored separately, as the span for no answer.
  passage_BL = (batch["allowed"] > 0) & (jnp.arange(x_BLD.shape[1]) > 0)[None]
  starts, ends = (jnp.where(passage_BL, logits_BL2[:, :, i], NEVER) for i in (0, 1))
  count = min(search.n_best, x_BLD.shape[1])
  start_score, start_index = jax.lax.top_k(starts, count)
  end_score, end_index = jax.lax.top_k(ends, count)
  return {
    "start_index": start_index, "start_score": start_score,
    "end_index": end_index[:, None], "end_score": end_score[:, None],
    "null": jnp.sum(logits_BL2[:, 0], axis=-1),
  }  # fmt: skip


# The paper's head for SQuAD 2.0.


def beam_init(cfg: AlbertConfig, key: jax.Array) -> Params:
  """Makes fresh parameters."""
  D = cfg.hidden_size
  keys = jax.random.split(key, 5)
  return {
    "start": heads.dense(cfg, keys[0], D, 1),
    "end": {
      "dense_0": heads.dense(cfg, keys[1], 2 * D, D),
      "norm": {"scale": jnp.ones(D), "bias": jnp.zeros(D)},
      "dense_1": heads.dense(cfg, keys[2], D, 1),
    },
    "answer": {
      "dense_0": heads.dense(cfg, keys[3], 2 * D, D),
      "dense_1": {"kernel": heads.dense(cfg, keys[4], D, 1)["kernel"]},
    },
  }


def beam_start(head: Params, x_BLD: jax.Array, allowed_BL: jax.Array) -> jax.Array:
  """Computes the log-probabilities [B, L] of each start."""
  return _masked_log_softmax(heads.affine(head["start"], x_BLD)[:, :, 0], allowed_BL)


def beam_end(head: Params, x_BLD: jax.Array, allowed_BL: jax.Array, starts_BK: jax.Array) -> jax.Array:
  """Computes the log-probabilities [B, K, L] of each end, given the K starts."""
  part, D = head["end"], x_BLD.shape[-1]
  x_BLD = x_BLD.astype(jnp.float32)
  start_BKD = jnp.take_along_axis(x_BLD, starts_BK[:, :, None], axis=1)
  # The dense layer over [x; start] is the sum of two layers: one of x alone, and one of the start alone.
  kernel, bias = part["dense_0"]["kernel"], part["dense_0"]["bias"]
  from_x_BLD, from_start_BKD = x_BLD @ kernel[:D], start_BKD @ kernel[D:] + bias[None, None, :]
  h_BKLD = jnp.tanh(from_x_BLD[:, None] + from_start_BKD[:, :, None])
  h_BKLD = _layer_norm(part["norm"], h_BKLD)
  return _masked_log_softmax(heads.affine(part["dense_1"], h_BKLD)[..., 0], allowed_BL[:, None])


def _layer_norm(norm, x):
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  # The original's contrib.layers.layer_norm has this epsilon for every model.
  scaled = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-12)
  lead = (1,) * (x.ndim - 1)
  return scaled * norm["scale"].reshape(*lead, -1) + norm["bias"].reshape(*lead, -1)


def beam_no_answer(head: Params, x_BLD: jax.Array, start_BL: jax.Array, rate: float, keys_B: Any) -> jax.Array:
  """Computes the logit [B] that there is no answer.

  It is made of [CLS] and the mean of all tokens, weighted by how likely a start each is.
  """
  part = head["answer"]
  x_BLD = x_BLD.astype(jnp.float32)
  start_BD = jnp.einsum("BLD,BL->BD", x_BLD, jnp.exp(start_BL))
  h_BD = jnp.tanh(heads.affine(part["dense_0"], jnp.concatenate([start_BD, x_BLD[:, 0]], axis=-1)))
  return (dropout(h_BD, rate, heads.head_keys(keys_B, 0)) @ part["dense_1"]["kernel"])[:, 0]


def beam_losses(cfg: AlbertConfig, head: Params, x_BLD: jax.Array, batch: Batch, keys_B: Any) -> dict[str, jax.Array]:
  """Computes half of start and end cross-entropy, and half of that of there being no answer.

  The end is that given the labelled start.
  """
  start_BL = beam_start(head, x_BLD, batch["allowed"])
  end_BL = beam_end(head, x_BLD, batch["allowed"], batch["start"][:, None])[:, 0]
  span_loss = -0.5 * (_at(start_BL, batch["start"]) + _at(end_BL, batch["end"]))
  logit_B = beam_no_answer(head, x_BLD, start_BL, cfg.classifier_dropout_prob, keys_B)
  answer_loss = jax.nn.softplus(logit_B) - batch["impossible"] * logit_B  # cross-entropy of a sigmoid
  return {"loss": span_loss + 0.5 * answer_loss, "span_loss": span_loss, "answer_loss": answer_loss}


def beam_spans(head: Params, x_BLD: jax.Array, batch: Batch, search: Any) -> dict[str, jax.Array]:
  """Finds the best starts, and the best ends of each, see Head."""
  start_BL = beam_start(head, x_BLD, batch["allowed"])
  starts, ends = (min(count, x_BLD.shape[1]) for count in (search.start_n_top, search.end_n_top))
  start_score, start_index = jax.lax.top_k(start_BL, starts)
  end_score, end_index = jax.lax.top_k(beam_end(head, x_BLD, batch["allowed"], start_index), ends)
  return {
    "start_index": start_index, "start_score": start_score, "end_index": end_index, "end_score": end_score,
    "null": beam_no_answer(head, x_BLD, start_BL, 0.0, None),
  }  # fmt: skip


# The logits that a student imitates: of the start, of the end (of `beam` after the labelled start), and of no answer.


def _span_answer(i):
  def logits(head, x_BLD, batch):
    return jnp.where(batch["attention_mask"] > 0, heads.affine(head, x_BLD)[:, :, i], NEVER)

  return "classes", logits


def _beam_start(head, x_BLD, batch):
  return beam_start(head, x_BLD, batch["allowed"])


def _beam_end(head, x_BLD, batch):
  return beam_end(head, x_BLD, batch["allowed"], batch["start"][:, None])[:, 0]


def _beam_no_answer(head, x_BLD, batch):
  return beam_no_answer(head, x_BLD, beam_start(head, x_BLD, batch["allowed"]), 0.0, None)[:, None]


SPAN_ANSWERS = {"start": _span_answer(0), "end": _span_answer(1)}
BEAM_ANSWERS = {
  "start": ("classes", _beam_start), "end": ("classes", _beam_end), "no_answer": ("labels", _beam_no_answer),
}  # fmt: skip
HEADS = {
  "span": Head("span", span_init, span_losses, span_spans, SPAN_ANSWERS, null_is_score=True),
  "beam": Head("squad_v2", beam_init, beam_losses, beam_spans, BEAM_ANSWERS, null_is_score=False),
}
