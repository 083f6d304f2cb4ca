"""Multiple choice: RACE, DREAM, SWAG, and your own. A softmax over one number an option (run_race.py)."""

import functools
import json
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from albert_jax.data.finetuning import cells, choices, tables
from albert_jax.data.finetuning.config import ChoiceData
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, task_heads
from albert_jax.tasks import base, classify, heads, metrics
from albert_jax.tasks.base import Answer, Prediction, Spec, Sums, Task
from albert_jax.types import Batch, Params


@dataclass(frozen=True)
class Settings:
  """`config.task` of configs/race.py.

  Attributes:
    keep_head: continue with the checkpoint's head.
  """

  keep_head: bool


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/race.py, see `tasks.make`."""
  settings = base.settings_of(Settings, config)
  cfg, vocabulary = base.model_and_vocabulary(config, vocabulary)
  data = ChoiceData.from_config(config.data)
  read = functools.partial(choices.read, data.dataset, levels=data.parts, tfds_dir=data.tfds_dir)
  encode = functools.partial(choices.rows, vocabulary=vocabulary, seq_length=data.seq_length, qa_length=data.qa_length)

  @functools.cache
  def train():
    questions = read(data.split)
    if lacking := sum(choice.label is None for choice in questions):
      raise UserError(f"{data.dataset}: {lacking:,} of {len(questions):,} training questions have no answer")
    return questions

  held_out = read(data.validation_split)
  answered = sum(choice.label is not None for choice in held_out)
  if answered not in (0, len(held_out)):
    raise UserError(f"{data.validation_split}: only {answered:,} of {len(held_out):,} questions have an answer")
  train_rows = functools.cache(lambda: encode(train(), source=f"{data.dataset} ({data.split})"))
  held_out_rows = functools.cache(lambda: encode(held_out, source=f"{data.dataset} ({data.validation_split})"))
  return Task(
    model=cfg,
    init=lambda key: heads.with_head(cfg, key, classify.HEAD, 1, pooler=True),
    sums=functools.partial(sums, cfg),
    terms=lambda batch: {"loss": 1 / jnp.maximum(jnp.sum(batch["weight"] * batch["labelled"]), 1)},
    **base.batches(config, train_rows, held_out_rows, first_row),
    baselines=_baselines(held_out) if answered else {},
    has_labels=answered > 0,
    vocabulary=vocabulary,
    outputs=lambda params, batch: {"logits": logits(cfg, params, batch)},
    score=functools.partial(_score, held_out),
    train_rows=len(train()) if config.epochs else 0,
    new=(task_heads.pattern(classify.HEAD),),
    unused=base.unused(classify.HEAD, keep=settings.keep_head, pooler=True),
    about=base.about("choose", seq_length=data.seq_length, qa_length=data.qa_length),
    architecture=task_heads.class_for("choose"),
    answers={"answer": Answer("classes", (classify.HEAD, "pooler"), _of_options, lambda batch: batch["weight"])},
  )  # fmt: skip


def logits(cfg: AlbertConfig, params: Params, batch: Batch, keys: jax.Array | None = None) -> jax.Array:
  """Applies the model and the head to each option.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    batch: names of tokens [B, C, L], and "options" [B], how many of the C are options.
    keys: [B], for dropout, or None.

  Returns:
    float32 [B, C], the logit of each option; the lowest float beyond the last option.
  """
  B, C, L = batch["input_ids"].shape
  if keys is not None:
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(C)))(keys).reshape(B * C)
  inputs = {name: batch[name].reshape(B * C, L) for name in ("input_ids", "attention_mask", "token_type_ids")}
  return _masked(classify.logits(cfg, params, inputs, keys), batch)


def _of_options(params, out, batch):
  return _masked(heads.affine(params[classify.HEAD], out["pooled_output"]), batch)


def _masked(logits, batch):
  """Returns logits of all options one after the other as [B, C], with the lowest float for what only fills up."""
  B, C, _ = batch["input_ids"].shape
  is_option_BC = jnp.arange(C)[None, :] < batch["options"][:, None]
  return jnp.where(is_option_BC, logits.reshape(B, C), jnp.finfo(jnp.float32).min)


def sums(cfg: AlbertConfig, params: Params, batch: Batch, keys: jax.Array | None) -> Sums:
  """Implements `Task.sums`: {"loss", "accuracy": (total, weight)}."""
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
  scores_NC = metrics.finite(np.stack(outputs["logits"]))
  best, numbers = scores_NC.argmax(axis=1), {}
  if held_out[0].label is not None:
    gold, groups = np.array([choice.label for choice in held_out]), np.array([choice.group for choice in held_out])
    numbers = {"accuracy": metrics.accuracy(gold, best)} | {
      f"accuracy_{group}": metrics.accuracy(gold[groups == group], best[groups == group])
      for group in np.unique(groups) if group
    }  # fmt: skip
  lines = []
  for i, choice in enumerate(held_out):
    scores = classify.probabilities("classification", scores_NC[i : i + 1, : len(choice.options)])[0]
    line = {"index": i, "prediction": int(best[i]), "probabilities": [round(float(p), 6) for p in scores]}
    lines.append(json.dumps(line | ({} if choice.label is None else {"gold": choice.label})) + "\n")
  return numbers, {"predictions.jsonl": "".join(lines).encode()}


# Prediction.


def choose(
  cfg: AlbertConfig,
  params: Params,
  tokenizer: Tokenizer,
  items: list[dict[str, Any]],
  *,
  seq_length: int = 0,
  qa_length: int = 128,
  batch_size: int = heads.BATCH,
) -> list[dict[str, Any]]:
  """Predicts the best option of each question.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    tokenizer: the model's.
    items: {"context", "question" (may be left out), "options": texts}.
    seq_length: 0 for the model's positions.
    qa_length: see data.finetuning.choices.rows.
    batch_size: the most questions that are run in one batch.

  Returns:
    for each item {"choice": number from 0, "text": that option, "score": its probability, "scores": all}.
  """
  questions = [
    choices.Choice(item["context"], item.get("question") or "", tuple(item["options"]), None) for item in items
  ]
  rows = choices.rows(questions, tokenizer, seq_length or cfg.max_position_embeddings, qa_length, source="input")
  by_row = heads.by_row(functools.partial(_logits, cfg), params, rows, cfg.max_position_embeddings, batch_size)
  results = []
  for choice, row in zip(questions, by_row["logits"], strict=True):
    scores = classify.probabilities("classification", row[None, : len(choice.options)])[0]
    best = int(scores.argmax())
    results.append({"choice": best, "text": choice.options[best], "score": float(scores[best]),
                    "scores": [float(p) for p in scores]})  # fmt: skip
  return results


@functools.partial(jax.jit, static_argnums=0)
def _logits(cfg, params, batch):
  return {"logits": logits(cfg, params, batch)}


def score_files(predictions: str, gold: str) -> dict[str, float]:
  """Scores answers made elsewhere.

  Args:
    predictions: JSON lines with "prediction", an option's number, in the order of `gold`.
    gold: a file as data.finetuning.choices.read takes.

  Returns:
    {"accuracy": …}.

  Raises:
    UserError: the two are not of the same questions.
  """
  questions = choices.read(gold, "train")
  answers = tables.read_file(predictions, ["prediction"])
  if len(answers) != len(questions):
    raise UserError(f"{predictions} has {len(answers):,} answers, {gold} {len(questions):,} questions")
  if any(choice.label is None for choice in questions):
    raise UserError(f"{gold} has questions without an answer")
  what, column = "the number of an option", answers.columns["prediction"]
  best = np.array([cells.number(value, answers.where(row), what) for row, value in enumerate(column)])
  for row, (number, question) in enumerate(zip(best, questions, strict=True)):
    if number not in range(len(question.options)):
      raise UserError(f"{answers.where(row)}: {number:g} is none of 0 to {len(question.options) - 1}, {what} there")
  return {"accuracy": metrics.accuracy([choice.label for choice in questions], best)}


def _item(value):
  if not isinstance(value, dict) or not isinstance(value.get("options"), list):
    return None
  texts = [value.get("context"), value.get("question") or "", *value["options"]]
  return value if len(texts) > 3 and all(isinstance(text, str) for text in texts) else None


def _files(config):
  data = ChoiceData.from_config(config.data)
  return base.files_of(
    functools.partial(choices.find, data.dataset, levels=data.parts), data.split, data.validation_split
  )


SPEC = Spec(
  make=make,
  settings=Settings,
  metrics=lambda config: ("loss", "accuracy", "accuracy_*"),
  files=_files,
  heads=(classify.HEAD,),
  prediction=Prediction(
    "choose",
    choose,
    _item,
    '{"context": …, "question": …, "options": [texts, two at least]}',
    '{"context": "The sky is clear.", "question": "How is the weather?", "options": ["Fine.", "Wet."]}',
    (frozenset({classify.HEAD, "pooler"}),),
  ),
  score_files=score_files,
)
