"""Multiple choice: RACE, DREAM, SWAG, and your own. A softmax over one number an option (run_race.py)."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.data.finetuning import cells, choices, tables
from albert_jax.data.finetuning.config import ChoiceData
from albert_jax.errors import UserError
from albert_jax.tasks import classify, heads, metrics
from albert_jax.tasks.base import Task, about, batches, model_and_vocabulary


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task of configs/race.py."""
  cfg, vocabulary = model_and_vocabulary(config, vocabulary)
  data = ChoiceData.of(config.data)
  read = functools.partial(choices.read, data.dataset, levels=data.parts, tfds_dir=data.tfds_dir)
  encode = functools.partial(choices.rows, vocabulary=vocabulary, seq_length=data.seq_length, qa_length=data.qa_length)

  @functools.cache
  def train():
    found = read(data.split)
    if lacking := sum(choice.label is None for choice in found):
      raise UserError(f"{data.dataset}: {lacking:,} of {len(found):,} training questions have no answer")
    return found

  held_out = read(data.validation_split)
  answered = sum(choice.label is not None for choice in held_out)
  if answered not in (0, len(held_out)):
    raise UserError(f"{data.validation_split}: only {answered:,} of {len(held_out):,} questions have an answer")
  train_rows = functools.cache(lambda: encode(train(), source=f"{data.dataset} ({data.split})"))
  held_out_rows = functools.cache(lambda: encode(held_out, source=f"{data.dataset} ({data.validation_split})"))
  return Task(
    model=cfg,
    init=functools.partial(classify.init, cfg, 1),
    sums=functools.partial(sums, cfg),
    terms=lambda batch: {"loss": 1 / jnp.maximum(jnp.sum(batch["weight"] * batch["labelled"]), 1)},
    **batches(config, train_rows, held_out_rows, first_row),
    baselines=_baselines(held_out) if answered else {},
    vocabulary=vocabulary,
    outputs=lambda params, batch: {"logits": logits(cfg, params, batch)},
    score=functools.partial(_score, held_out),
    train_rows=len(train()) if config.epochs else 0,
    new=(classify.HEAD,),
    unused=classify.unused(config.task.keep_head),
    about=about("choose", seq_length=data.seq_length, qa_length=data.qa_length),
    architecture="AlbertForMultipleChoice",
  )  # fmt: skip


def logits(cfg, params, batch, keys=None):
  """float32 [B, C], a number an option; the lowest float for what only fills up. keys: [B], for dropout, or None.

  Args: batch: names of tokens [B, C, L], and "options" [B], how many are options.
  """
  B, C, L = batch["input_ids"].shape
  if keys is not None:
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(C)))(keys).reshape(B * C)
  inputs = {name: batch[name].reshape(B * C, L) for name in ("input_ids", "attention_mask", "token_type_ids")}
  x_BC = classify.logits(cfg, params, inputs, keys).reshape(B, C)
  return jnp.where(jnp.arange(C)[None, :] < batch["options"][:, None], x_BC, jnp.finfo(jnp.float32).min)


def sums(cfg, params, batch, keys) -> dict:
  """{"loss", "accuracy": (total, weight)}."""
  loss, hits = heads.cross_entropy(
    logits(cfg, params, batch, keys), batch["label"], batch["weight"] * batch["labelled"]
  )
  return {"loss": loss, "accuracy": hits}


def _baselines(held_out):
  options = [len(choice.options) for choice in held_out]
  chance = float(np.mean([1 / n for n in options]))
  groups = sorted({choice.group for choice in held_out} - {""})
  return {"loss": (float(np.mean([math.log(n) for n in options])), "guessing"), "accuracy": (chance, "guessing")} | {
    f"accuracy_{group}": (
      float(np.mean([1 / n for n, choice in zip(options, held_out, strict=True) if choice.group == group])), "guessing",
    )
    for group in groups
  }  # fmt: skip


def _score(held_out, outputs):
  """Task.score: the accuracy of all, and of each group; and a JSON line a question."""
  found = np.stack(outputs["logits"])
  metrics.finite(found)
  best, numbers = found.argmax(axis=1), {}
  if held_out[0].label is not None:
    gold, groups = np.array([choice.label for choice in held_out]), np.array([choice.group for choice in held_out])
    numbers = {"accuracy": metrics.accuracy(gold, best)} | {
      f"accuracy_{group}": metrics.accuracy(gold[groups == group], best[groups == group])
      for group in np.unique(groups) if group
    }  # fmt: skip
  lines = []
  for i, choice in enumerate(held_out):
    scores = classify.probabilities("classification", found[i : i + 1, : len(choice.options)])[0]
    line = {"index": i, "prediction": int(best[i]), "probabilities": [round(float(p), 6) for p in scores]}
    lines.append(json.dumps(line | ({} if choice.label is None else {"gold": choice.label})) + "\n")
  return numbers, {"predictions.jsonl": "".join(lines).encode()}


# For albert_jax.pipeline and albert-jax predict.


def choose(cfg, params, tokenizer, items, *, seq_length=0, qa_length=128, batch_size=heads.BATCH):
  """The best option of each question.

  Args: items: list of {"context", "question" (may be left out), "options": texts}. seq_length: 0 for the model's
    positions; qa_length: see data.choices.rows.
  Returns: for each item {"choice": number from 0, "text": that option, "score": its probability, "scores": all}.
  """
  asked = [choices.Choice(item["context"], item.get("question") or "", tuple(item["options"]), None) for item in items]
  rows = choices.rows(asked, tokenizer, seq_length or cfg.max_position_embeddings, qa_length, source="input")
  found = heads.by_row(functools.partial(_logits, cfg), params, rows, batch_size)["logits"]
  results = []
  for choice, row in zip(asked, found, strict=True):
    scores = classify.probabilities("classification", row[None, : len(choice.options)])[0]
    best = int(scores.argmax())
    results.append({"choice": best, "text": choice.options[best], "score": float(scores[best]),
                    "scores": [float(p) for p in scores]})  # fmt: skip
  return results


@functools.partial(jax.jit, static_argnums=0)
def _logits(cfg, params, batch):
  return {"logits": logits(cfg, params, batch)}


def score_files(predictions, gold) -> dict:
  """Scores answers made elsewhere. Args: predictions: JSON lines with "prediction", an option's number, in the order of
  `gold`, a file as `data.choices.read` takes. Returns: {"accuracy": …}, with one for each group."""
  asked = choices.read(gold, "train")
  answers = tables.read_file(predictions, ["prediction"])
  if len(answers) != len(asked):
    raise UserError(f"{predictions} has {len(answers):,} answers, {gold} {len(asked):,} questions")
  if any(choice.label is None for choice in asked):
    raise UserError(f"{gold} has questions without an answer")
  what, column = "the number of an option", answers.columns["prediction"]
  best = np.array([cells.number(value, answers.where(row), what) for row, value in enumerate(column)])
  return {"accuracy": metrics.accuracy([choice.label for choice in asked], best)}
