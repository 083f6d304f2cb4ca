"""Pre-training: masked language model plus sentence-order prediction (section 3.1 of the paper); and filling masks."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from albert_jax import model
from albert_jax.data import datasets, records
from albert_jax.data.finetuning.batching import Rows
from albert_jax.data.pretraining import batching
from albert_jax.data.pretraining.batching import DataConfig
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.tasks import heads, inputs
from albert_jax.tasks.base import Answer, Batch, Params, Prediction, Sketch, Spec, Sums, Task

METRICS = ("mlm_loss", "mlm_accuracy", "sop_loss", "sop_accuracy")


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/pretrain.py, see `tasks.make`. The vocabulary is always that of the dataset."""
  data = DataConfig(**config.data)
  mlm_weight, sop_weight = _loss_weights(config)
  vocabulary = datasets.tokenizer(data.dataset, data.spm)
  cfg = model_config(config, vocabulary.vocab_size)
  if vocabulary.vocab_size != cfg.vocab_size:
    raise UserError(
      f"{data.dataset} was prepared with a vocabulary of {vocabulary.vocab_size} pieces, the model has "
      f"{cfg.vocab_size}; try --config.model.vocab_size={vocabulary.vocab_size}"
    )
  if data.seq_length > cfg.max_position_embeddings:
    raise UserError(
      f"data.seq_length={data.seq_length} exceeds model.max_position_embeddings={cfg.max_position_embeddings}; "
      f"try --config.data.seq_length={cfg.max_position_embeddings}"
    )
  if cfg.type_vocab_size < 2 and data.objective != "none":  # A lookup in the compiled step would take the last row.
    raise UserError(
      f"model.type_vocab_size={cfg.type_vocab_size} has no type for the second segment of a pair; try "
      "--config.model.type_vocab_size=2, or --config.data.objective=none for single segments"
    )
  baselines = datasets.describe(data.dataset)["baselines"]
  if not baselines:
    raise UserError(
      f"{data.dataset} has no held-out documents; make it again with albert-jax prepare --validation_fraction=0.05"
    )
  for split in (data.split, data.validation_split):  # Here, so that a mistake is found before the run has a folder.
    batching.check_split(data, split)
  batches = functools.partial(
    batching.train_batches, data, batch_size=config.batch_size, seed=config.seed, first_row=first_row
  )
  eval_batches = functools.partial(
    batching.eval_batches, data, batch_size=config.batch_size, seed=config.seed, max_batches=config.eval_batches or None
  )
  return Task(
    model=cfg,
    init=functools.partial(model.init, cfg),
    sums=functools.partial(sums, cfg),
    terms=functools.partial(terms, mlm_weight, sop_weight),
    train_batches=lambda start_step, host, hosts: batches(start_step=start_step, host=host, hosts=hosts),
    eval_batches=lambda host, hosts: eval_batches(host=host, hosts=hosts),
    baselines={
      "mlm_loss": (baselines["unigram_loss"], "token frequencies alone"),
      "mlm_accuracy": (baselines["top_token_accuracy"], "always the most frequent token"),
      **({"sop_accuracy": (0.5, "guessing")} if sop_weight else {}),
    },
    vocabulary=vocabulary,
    answers=answers(mlm_weight, sop_weight),
    example=functools.partial(masked_sentence, datasets.folders(data.dataset)[0], data.validation_split, vocabulary),
  )


def masked_sentence(dataset: str, split: str, vocabulary: Tokenizer) -> str:
  """Masks the longest word of a short sentence of a dataset, so that a model can be tried in the language it learnt.

  Args:
    dataset: one folder.
    split: the name of the split; its first records are read.
    vocabulary: of the dataset.

  Returns:
    A text with one [MASK], which begins with it, a letter or a digit; '' if no sentence has 10 to 24 pieces and a word
    that is one piece.
  """
  source = datasets.open_split(dataset, split)
  batch = records.unpack(datasets.fetch(source, list(range(min(64, len(source))))))
  pieces, starts_word = vocabulary.pieces, records.word_starts(vocabulary.pieces)
  for record in range(len(batch.tokens)):
    ids = batch.ids[batch.id_base[record] :][: batch.tokens[record]]
    starts = batch.sentence_starts[batch.sentence_base[record] :][: batch.sentences[record]]
    for start, end in itertools.pairwise([*starts, len(ids)]):
      sentence = ids[start:end].tolist()
      if not 10 <= len(sentence) <= 24 or vocabulary.unk_id in sentence:
        continue
      # Not the last piece, which is mostly a full stop.
      words = [
        i for i in range(1, len(sentence) - 1)
        if pieces[sentence[i]].lstrip("▁").isalpha() and starts_word[[sentence[i], sentence[i + 1]]].all()
      ]  # fmt: skip
      if words:
        at = max(words, key=lambda i: len(pieces[sentence[i]]))
        before, after = (vocabulary.decode(part).strip() for part in (sentence[:at], sentence[at + 1 :]))
        if before and not before[0].isalnum():  # A leading dash would be a flag of the command, a leading brace JSON.
          continue
        spaced = [pieces[sentence[i]].startswith("▁") for i in (at, at + 1)]
        return f"{before}{' ' * spaced[0]}[MASK]{' ' * spaced[1]}{after}"
  return ""


def answers(mlm_weight: float, sop_weight: float) -> dict[str, Answer]:
  """Makes `Task.answers`: the logits of the masked slots and of the pairs, as much as each counts in the loss."""
  return {
    "mlm": Answer("classes", ("mlm",), lambda _, out, __: out["mlm_logits"], lambda b: b["mlm_weights"], mlm_weight),
    "sop": Answer(
      "classes", ("sop", "pooler"), lambda _, out, __: out["sop_logits"], lambda b: b["sop_weight"], sop_weight
    ),
  }


def _loss_weights(config):
  """Returns (MLM weight, SOP weight) of `config.loss`, checked."""
  weights = {name: config.loss[name] for name in ("mlm_weight", "sop_weight")}
  for name, weight in weights.items():
    if not (math.isfinite(weight) and weight >= 0):
      raise UserError(f"loss.{name}={weight} must be 0 or more; try --config.loss.{name}=1")
  if not any(weights.values()):
    raise UserError("loss.mlm_weight and loss.sop_weight are both 0, so there is no loss; set one above 0")
  if config.data.objective == "none" and not weights["mlm_weight"]:
    raise UserError("loss.mlm_weight=0 and data.objective=none leave nothing to learn; try --config.loss.mlm_weight=1")
  return tuple(weights.values())


def model_config(config: ConfigDict, vocab_size: int) -> AlbertConfig:
  """Makes the model of a config; `vocab_size` is used if the config has 0."""
  return AlbertConfig(**{**config.model, "vocab_size": config.model.vocab_size or vocab_size})


def sketch(config: ConfigDict) -> Sketch:
  """Makes the train step of a config without its dataset; examples.py defines its arrays."""
  cfg, data = model_config(config, AlbertConfig().vocab_size), DataConfig(**{**config.data, "dataset": "-"})
  B, L, M, P = config.batch_size, data.seq_length, data.slots, data.packing
  pairs = (B, P) if P > 1 else (B,)
  integers: dict[str, tuple[int, ...]] = {
    "input_ids": (B, L), "attention_mask": (B, L), "token_type_ids": (B, L), "mlm_positions": (B, M),
    "mlm_labels": (B, M), "sop_label": pairs,
  }  # fmt: skip
  if P > 1:
    integers |= {"segment_ids": (B, L), "position_ids": (B, L), "cls_positions": (B, P)}
  return Sketch(
    model=cfg,
    init=functools.partial(model.init, cfg),
    sums=functools.partial(sums, cfg),
    terms=functools.partial(terms, *_loss_weights(config)),
    arrays={name: (shape, np.int32) for name, shape in integers.items()}
    | {"mlm_weights": ((B, M), np.float32), "sop_weight": (pairs, np.float32)},
    slots=M,
    answers=answers(*_loss_weights(config)),
  )


def sums(cfg: AlbertConfig, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
  """Sums losses and correct answers over masked slots (mlm_…), and over pairs (sop_…).

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    batch: see data/pretraining/examples.py.
    key: for dropout, one or one a row; or None.

  Returns:
    {name of METRICS: (total, weight)}.
  """
  out = model.apply(cfg, params, model.inputs(batch), key)
  mlm_loss, mlm_hits = heads.cross_entropy(out["mlm_logits"], batch["mlm_labels"], batch["mlm_weights"])
  sop_loss, sop_hits = heads.cross_entropy(out["sop_logits"], batch["sop_label"], batch["sop_weight"])
  return {"mlm_loss": mlm_loss, "mlm_accuracy": mlm_hits, "sop_loss": sop_loss, "sop_accuracy": sop_hits}


def terms(mlm_weight: float, sop_weight: float, batch: Batch) -> dict[str, jax.Array]:
  """Implements `Task.terms`: MLM mean over masked slots + SOP mean over pairs, each with its weight.

  get_masked_lm_output and get_sentence_order_output of run_pretraining.py. The small constant is the original's; it
  also makes a batch without any label cost nothing.
  """
  weights = {"mlm_loss": (mlm_weight, batch["mlm_weights"]), "sop_loss": (sop_weight, batch["sop_weight"])}
  return {name: weight / (jnp.sum(counts) + 1e-5) for name, (weight, counts) in weights.items()}


# Prediction.


def fill_mask(
  cfg: AlbertConfig,
  params: Params,
  tokenizer: Tokenizer,
  texts: list[str],
  *,
  top_k: int = 5,
  batch_size: int = heads.BATCH,
) -> list[dict[str, Any]]:
  """Predicts the token of each `[MASK]` of each text.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    tokenizer: the model's.
    texts: each with a `[MASK]` at least.
    top_k: candidates a mask.
    batch_size: the most texts that are run in one batch.

  Returns:
    for each text {"text", "filled": the text with the best pieces in place, "masks": for each mask a list of top_k
    {"token", "score"}, best first}; a score is the probability among ordinary pieces.

  Raises:
    UserError: a text has no [MASK], or is longer than the model's positions.
  """
  ids = [[tokenizer.cls_id, *tokenizer.encode(text, specials=True), tokenizer.sep_id] for text in texts]
  masks_of = [np.flatnonzero(np.array(row) == tokenizer.mask_id) for row in ids]
  for text, row, masks in zip(texts, ids, masks_of, strict=True):
    if not len(masks):
      raise UserError(f"no [MASK] in {text[:200]!r}; write one where a word is to be filled in")
    if len(row) > cfg.max_position_embeddings:
      raise UserError(
        f"a text has {len(row)} tokens, the model {cfg.max_position_embeddings} positions; shorten the text, which "
        f"begins {text[:60]!r}"
      )
  slots = 1 << (max(map(len, masks_of)) - 1).bit_length()  # Each number of slots is a separate program.
  positions = np.stack([np.pad(masks, (0, slots - len(masks))) for masks in masks_of]).astype(np.int32)
  rows = Rows({"input_ids": ids}, {"mlm_positions": positions}, {"input_ids": tokenizer.pad_id})
  ordinary = jax.device_put(tokenizer.ordinary_ids)
  predict = functools.partial(_best_pieces, cfg, min(top_k, len(ordinary)), ordinary)
  outputs = heads.by_row(predict, params, rows, cfg.max_position_embeddings, batch_size)
  results = []
  for i, (text, row) in enumerate(zip(texts, ids, strict=True)):
    count = len(masks_of[i])
    candidates = [
      [{"token": tokenizer.decode([k]), "score": float(p)} for k, p in zip(pieces, scores, strict=True)]
      for pieces, scores in zip(outputs["piece"][i][:count], outputs["score"][i][:count], strict=True)
    ]
    filled = np.array(row)
    filled[masks_of[i]] = outputs["piece"][i][:count, 0]
    results.append({"text": text, "filled": tokenizer.decode(filled[1:-1]), "masks": candidates})
  return results


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best_pieces(cfg, top_k, ordinary, params, batch):
  logits_BMV = model.apply(cfg, params, model.inputs(batch))["mlm_logits"][:, :, ordinary]
  scores, best = jax.lax.top_k(jax.nn.softmax(logits_BMV), top_k)
  return {"piece": ordinary[best], "score": scores}


SPEC = Spec(
  make=make,
  settings=None,
  metrics=lambda config: METRICS[:2] if config.data.objective == "none" else METRICS,
  prediction=Prediction(
    "fill-mask", fill_mask, inputs.text, "a text with [MASK] in it", "It is a [MASK] of time.", (frozenset({"mlm"}),)
  ),
  sketch=sketch,
)
