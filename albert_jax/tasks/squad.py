"""Question answering: the answer to a question is a span of its passage, or, as in SQuAD 2.0, there may be none."""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp

from albert_jax import model
from albert_jax.data.finetuning import squad
from albert_jax.data.finetuning.config import SquadData
from albert_jax.errors import UserError
from albert_jax.tasks import heads, squad_answers, squad_heads, squad_score
from albert_jax.tasks.base import Task, about, batches, model_and_vocabulary
from albert_jax.tasks.squad_answers import Search


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task of a config of configs/squad.py. An epoch is all windows of all passages once."""
  cfg, vocabulary = model_and_vocabulary(config, vocabulary)
  data, task, head = SquadData.of(config.data), config.task, squad_heads.get(config.task.head)
  sizes = {field.name: task[field.name] for field in dataclasses.fields(Search) if field.name != "seq_length"}
  search = Search(seq_length=data.seq_length, **sizes)

  held_out = squad.read(data.dataset, data.validation_split, data.tfds_dir)
  rules = squad_score.rules_of(held_out, task.language)
  hidden, silent = squad.is_hidden(held_out), sum(not question.answers for question in held_out)
  _check_answers(search, held_out, data.validation_split)

  @functools.cache
  def training():
    questions = squad.read(data.dataset, data.split, data.tfds_dir)
    if squad.is_hidden(questions):
      raise UserError(
        f"the split {data.split!r} of {data.dataset} has no answer at all; train with a split that has some"
      )
    _check_answers(search, questions, data.split)
    windows = squad_answers.encode(questions, vocabulary, search, training=True)
    _say(data.split, windows, len(questions))
    return windows

  @functools.cache
  def validation():
    windows = squad_answers.encode(held_out, vocabulary, search)
    _say(data.validation_split, windows, len(held_out))
    return windows

  return Task(
    model=cfg,
    init=functools.partial(init, cfg, head),
    sums=functools.partial(sums, cfg, head, hidden=hidden),
    terms=heads.mean_loss,
    **batches(config, lambda: training().rows, lambda: validation().rows, first_row),
    baselines={} if hidden else {name: (100 * silent / len(held_out), "never an answer") for name in ("exact", "f1")},
    vocabulary=vocabulary,
    outputs=functools.partial(squad_answers.spans, cfg, head, search),
    score=lambda found: score(head, validation(), found, search, rules),
    train_rows=len(training().rows) if config.epochs else 0,
    new=(f"^{head.part}/",),
    unused=("^mlm/", "^sop/", "^pooler/", f"^(?!{head.part}/){heads.FINE_TUNED.removeprefix('^')}"),
    about=about("answer", head=task.head, language=task.language, **vars(search)),
  )  # fmt: skip


def init(cfg, head, key) -> dict:
  key_encoder, key_head = jax.random.split(key)
  return {**heads.encoder(cfg, key_encoder, pooler=False), head.part: head.init(cfg, key_head)}


def sums(cfg, head, params, batch, key, hidden=False) -> dict:
  """{"loss" and what else the head minimises: (total, weight)} over the rows that count.

  Args: hidden: whether the held-out split hides its answers, so that none of its rows counts.
  """
  x_BLD = model.apply(cfg, params, batch, key)["sequence_output"]
  losses = head.losses(cfg, params[head.part], x_BLD, batch, key)
  weight = jnp.zeros_like(batch["weight"]) if hidden and key is None else batch["weight"]
  return {name: (jnp.sum(weight * loss), jnp.sum(weight)) for name, loss in losses.items()}


def score(head, windows, found, search, rules):
  """Held-out numbers and the files of answers: predictions.json, nbest_predictions.json, and null_odds.json.

  `exact` and `f1` are of predictions.json, with task.null_threshold; `best_exact` and `best_f1` of always the best
  text, with the threshold that would have been best on this very split.
  """
  texts, odds, lists = squad_answers.predict(head, windows, found, search)
  predictions = squad_answers.decide(texts, odds, search)
  hidden = squad.is_hidden(windows.questions)
  numbers = {} if hidden else squad_score.score(windows.questions, predictions, rules)
  files = {"predictions": predictions, "nbest_predictions": lists}
  if search.no_answer:
    files["null_odds"] = odds
    if rules == "squad2" and not hidden:
      raw = squad_score.score(windows.questions, texts, rules, odds)
      numbers |= {name: value for name, value in raw.items() if name.startswith("best_")}
  return numbers, {f"{name}.json": (json.dumps(value, indent=4) + "\n").encode() for name, value in files.items()}


def _check_answers(search, questions, split):
  silent = sum(question.impossible for question in questions)
  if silent and not search.no_answer:
    raise UserError(
      f"{silent} of {len(questions)} questions of the split {split!r} have no answer, as in SQuAD 2.0; use "
      "--config.task.no_answer=True, or the config's variant for 2.0"
    )


def _say(split, windows, given):
  """What was read, and everything about it that is not as it should be."""
  if jax.process_index() == 0:
    print(f"{split}: {given} questions, {len(windows.rows)} windows.", file=sys.stderr)
    for what, count in windows.notes.items():
      print(f"  {count} {what}", file=sys.stderr)
    if given > len(windows.questions):
      print(f"  {given - len(windows.questions)} questions left out: they have no answer to learn", file=sys.stderr)
