"""Pre-training: masked language model plus sentence-order prediction (section 3.1 of the paper)."""

import functools

import jax.numpy as jnp
import numpy as np

from albert_jax import model
from albert_jax.data import datasets
from albert_jax.data.pretraining import batching
from albert_jax.data.pretraining.batching import DataConfig
from albert_jax.errors import UserError
from albert_jax.tasks.base import Sketch, Task
from albert_jax.tasks.heads import cross_entropy

METRICS = ("mlm_loss", "mlm_accuracy", "sop_loss", "sop_accuracy")


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task of a pre-training config (an ml_collections.ConfigDict, see configs/pretrain.py).

  The vocabulary is the dataset's, whatever is given.
  """
  data = DataConfig(**config.data)
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
  found = datasets.describe(data.dataset)["baselines"]
  if not found:
    raise UserError(
      f"{data.dataset} has no held-out documents; make it again with albert-jax prepare --validation_fraction=0.05"
    )
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
    terms=functools.partial(terms, config.loss.mlm_weight, config.loss.sop_weight),
    train_batches=lambda start_step, host, hosts: batches(start_step=start_step, host=host, hosts=hosts),
    eval_batches=lambda host, hosts: eval_batches(host=host, hosts=hosts),
    baselines={
      "mlm_loss": (found["unigram_loss"], "token frequencies alone"),
      "mlm_accuracy": (found["top_token_accuracy"], "always the most frequent token"),
      **({"sop_accuracy": (0.5, "guessing")} if config.loss.sop_weight else {}),
    },
    vocabulary=vocabulary,
    metrics=METRICS,
  )


def model_config(config, vocab_size: int) -> model.AlbertConfig:
  """The model of a config; `vocab_size` is used where the config leaves it open with 0."""
  return model.AlbertConfig(**{**config.model, "vocab_size": config.model.vocab_size or vocab_size})


def sketch(config) -> Sketch:
  """The train step of a config whose dataset need not be there."""
  cfg, data = model_config(config, model.AlbertConfig().vocab_size), DataConfig(**{**config.data, "dataset": "-"})
  B, L, M, P = config.batch_size, data.seq_length, data.slots, data.packing
  pairs = (B, P) if P > 1 else (B,)
  integers = {"input_ids": (B, L), "attention_mask": (B, L), "token_type_ids": (B, L), "mlm_positions": (B, M),
              "mlm_labels": (B, M), "sop_label": pairs}  # fmt: skip
  if P > 1:
    integers |= {"segment_ids": (B, L), "position_ids": (B, L), "cls_positions": (B, P)}
  return Sketch(
    model=cfg,
    init=functools.partial(model.init, cfg),
    sums=functools.partial(sums, cfg),
    terms=functools.partial(terms, config.loss.mlm_weight, config.loss.sop_weight),
    arrays={name: (shape, np.int32) for name, shape in integers.items()}
    | {"mlm_weights": ((B, M), np.float32), "sop_weight": (pairs, np.float32)},
    slots=M,
  )


def sums(cfg, params, batch, key) -> dict:
  """{"mlm_loss", "mlm_accuracy", "sop_loss", "sop_accuracy": (total, weight)}: sums over masked slots, and over pairs.

  Args: batch: see data/pretraining/examples.py. key: for dropout (one, or one a row), or None.
  """
  out = model.apply(cfg, params, batch, key)
  mlm_loss, mlm_hits = cross_entropy(out["mlm_logits"], batch["mlm_labels"], batch["mlm_weights"])
  sop_loss, sop_hits = cross_entropy(out["sop_logits"], batch["sop_label"], batch["sop_weight"])
  return {"mlm_loss": mlm_loss, "mlm_accuracy": mlm_hits, "sop_loss": sop_loss, "sop_accuracy": sop_hits}


def terms(mlm_weight, sop_weight, batch) -> dict:
  """The loss as coefficients of the totals: MLM mean over masked slots + SOP mean over pairs, each with its weight.

  get_masked_lm_output and get_sentence_order_output of run_pretraining.py. The small constant is the original's; it
  also makes a batch without any label cost nothing.
  """
  weights = {"mlm_loss": (mlm_weight, batch["mlm_weights"]), "sop_loss": (sop_weight, batch["sop_weight"])}
  return {name: weight / (jnp.sum(counts) + 1e-5) for name, (weight, counts) in weights.items()}
