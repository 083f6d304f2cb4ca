"""Finds the best answers of a question from scores of starts and ends, over all windows of its passage."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from albert_jax import model
from albert_jax.data.finetuning import squad
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.tasks import heads
from albert_jax.tasks.base import Batch, Params
from albert_jax.tasks.squad.heads import HEADS, Head, get

NOTHING = -2e6  # the score of an answer without a candidate, as in the original


@dataclass(frozen=True)
class Search:
  """The settings of the search for answers. Lengths are in tokens.

  Attributes:
    seq_length: question and window in one row.
    doc_stride: from one window of a long passage to the next.
    max_query_length: longer questions are cut.
    max_answer_length: longer spans are no candidates.
    n_best: answers a question; for plain spans also the starts and ends that are paired.
    start_n_top: beam: starts.
    end_n_top: beam: ends for each start.
    no_answer: there may be none, as in SQuAD 2.0.
    null_threshold: '' is the answer where the odds of no answer are above this.
  """

  seq_length: int = 384
  doc_stride: int = 128
  max_query_length: int = 64
  max_answer_length: int = 30
  n_best: int = 20
  start_n_top: int = 5
  end_n_top: int = 5
  no_answer: bool = True
  null_threshold: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if field.type is int and getattr(self, field.name) < 1:
        raise UserError(f"task.{field.name}={getattr(self, field.name)} must be 1 or more")
    if math.isnan(self.null_threshold):
      raise UserError("task.null_threshold=nan is no number; try --config.task.null_threshold=0")
    if self.seq_length < self.max_query_length + 4:
      raise UserError(
        f"data.seq_length={self.seq_length} leaves no room for a passage beside a question of "
        f"task.max_query_length={self.max_query_length} tokens; lower --config.task.max_query_length"
      )


def best(
  head: Head, windows: squad.Windows, outputs: dict[str, list], question: int, rows: Any, search: Search
) -> tuple[list[dict[str, Any]], float]:
  """Finds the best answers to one question.

  As the official scripts choose them: a span starts where its window shows more of what is around it than any other
  does, is no longer than `max_answer_length`, and one text counts once. Only tokens of the passage compete.

  Args:
    head: the model's.
    windows: all questions.
    outputs: {name: for each row the array of `head.spans`}.
    question: its number in `windows`.
    rows: the numbers of its rows.
    search: how answers are searched for.

  Returns:
    ([{"text", "probability" (among these), "score", "start", "end" (characters)}], best first, of which '' may be one;
    null_odds: how much more there is for no answer than for the best one, a log of odds).
  """
  first, offset, size = windows.first[rows], windows.offset[rows], windows.size[rows]
  owner = squad.best_context(first, size)
  candidates = []
  for w, row in enumerate(rows):
    start, end = np.broadcast_arrays(
      outputs["start_index"][row][:, None] - offset[w], outputs["end_index"][row] - offset[w]
    )
    score = outputs["start_score"][row][:, None] + outputs["end_score"][row]
    fits = (start >= 0) & (start <= end) & (end < size[w]) & (end - start < search.max_answer_length)
    start, end, score = start[fits] + first[w], end[fits] + first[w], score[fits]
    is_owner = owner[start] == w
    candidates.append((score[is_owner], start[is_owner], end[is_owner]))
  scores, starts, ends = (np.concatenate(parts) for parts in zip(*candidates, strict=True))

  context, spans = windows.questions[question].context, windows.spans[question]
  answers: list[dict[str, Any]] = []
  seen = {""}
  for i in np.argsort(-scores, kind="stable"):
    if len(answers) == search.n_best:
      break
    begin, stop = squad.characters(context, spans, int(starts[i]), int(ends[i]))
    if context[begin:stop] not in seen:
      seen.add(context[begin:stop])
      answers.append({"text": context[begin:stop], "score": float(scores[i]), "start": begin, "end": stop})
  odds = float(min(outputs["null"][row] for row in rows))
  if head.null_is_score:
    if search.no_answer:
      answers.append({"text": "", "score": odds, "start": 0, "end": 0})
    odds -= answers[0]["score"] if answers and answers[0]["text"] else NOTHING
  answers.sort(key=lambda answer: -answer["score"])
  probabilities = _softmax([answer["score"] for answer in answers])
  answers = [
    {"text": answer["text"], "probability": float(probability), **answer}
    for answer, probability in zip(answers, probabilities, strict=True)
  ]
  return answers, odds


def _softmax(scores):
  from scipy import special  # Imported here: training does not need it.

  return special.softmax(scores) if scores else []


def predict(
  head: Head, windows: squad.Windows, outputs: dict[str, list], search: Search
) -> tuple[dict[str, str], dict[str, float], dict[str, list[dict[str, Any]]]]:
  """Answers all questions, see `best`.

  Args:
    head: the model's.
    windows: the questions.
    outputs: {name: for each row the array of `head.spans`}.
    search: how answers are searched for.

  Returns:
    ({id: best text that is not '', if there is any}, {id: null_odds}, {id: best answers}).
  """
  texts: dict[str, str] = {}
  odds: dict[str, float] = {}
  lists: dict[str, list] = {}
  bounds = np.searchsorted(windows.question, np.arange(len(windows.questions) + 1))
  for number, question in enumerate(windows.questions):
    rows = np.arange(bounds[number], bounds[number + 1])
    lists[question.id], odds[question.id] = best(head, windows, outputs, number, rows, search)
    texts[question.id] = next((answer["text"] for answer in lists[question.id] if answer["text"]), "")
  return texts, odds, lists


def decide(texts: dict[str, str], odds: dict[str, float], search: Search) -> dict[str, str]:
  """Returns {id: text}, '' if no answer is more likely."""
  return {id: "" if search.no_answer and odds[id] > search.null_threshold else text for id, text in texts.items()}


def answer(
  cfg: AlbertConfig,
  params: Params,
  tokenizer: Tokenizer,
  items: list[dict[str, str]],
  *,
  top_k: int = 5,
  batch_size: int = heads.BATCH,
  **search: Any,
) -> list[dict[str, Any]]:
  """Answers questions about passages of any length.

  Args:
    cfg: the sizes of the model.
    params: the parameters.
    tokenizer: the model's.
    items: {"question", "context"}.
    top_k: answers of each.
    batch_size: the most windows that are run in one batch.
    search: fields of Search; an export names those it was trained with.

  Returns:
    for each item {"answer": text, '' where no answer is more likely, "answers": at most top_k of {"text", "start",
    "end" (characters of the context), "score" (probability among the candidates)}, "no_answer": probability that there
    is no answer, None from a model that was not taught that there may be none}.

  Raises:
    UserError: the model has no head for this, or an item is not a question with a passage.
  """
  names = [name for name, head in HEADS.items() if head.part in params]
  if not names:
    raise UserError(
      "this checkpoint has no head that answers questions; train one: albert-jax train --config=configs/squad.py:base"
    )
  options: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Search)} | search
  room = min(options["seq_length"], cfg.max_position_embeddings)
  question_room = min(options["max_query_length"], room // 2)
  count = max(options["n_best"], top_k)
  settings = Search(**options | {"seq_length": room, "max_query_length": question_room, "n_best": count})
  questions = []
  for number, item in enumerate(items):
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("question", "context")):
      raise UserError(f'item {number + 1} is {str(item)[:60]!r}; expected {{"question": text, "context": text}}')
    questions.append(squad.Question(str(number), item["question"], item["context"], (), True))
  if not questions:
    return []
  windows = encode(questions, tokenizer, settings)
  # The compiled program depends on these fields of the search only.
  sizes = Search(n_best=settings.n_best, start_n_top=settings.start_n_top, end_n_top=settings.end_n_top)
  run = functools.partial(_run, cfg, names[0], sizes)
  outputs = heads.by_row(run, params, windows.rows, cfg.max_position_embeddings, batch_size)
  texts, odds, lists = predict(get(names[0]), windows, outputs, settings)
  chosen = decide(texts, odds, settings)
  return [
    {
      "answer": chosen[id],
      "answers": [
        {"text": a["text"], "start": a["start"], "end": a["end"], "score": a["probability"]}
        for a in lists[id]
        if a["text"]
      ][:top_k],
      "no_answer": 1 / (1 + math.exp(-max(min(odds[id], 500), -500))) if settings.no_answer else None,
    }
    for id in chosen
  ]


def encode(
  questions: list[squad.Question], tokenizer: Tokenizer, search: Search, training: bool = False
) -> squad.Windows:
  """Encodes questions with their passages as rows, see data.finetuning.squad.encode."""
  return squad.encode(
    questions, tokenizer, seq_length=search.seq_length, doc_stride=search.doc_stride,
    max_query_length=search.max_query_length, training=training,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(cfg, name, search, params, batch):
  return spans(cfg, get(name), search, params, batch)


def spans(cfg: AlbertConfig, head: Head, search: Search, params: Params, batch: Batch) -> dict[str, jax.Array]:
  """Finds the best starts and ends of each row, see heads.Head."""
  return head.spans(params[head.part], model.apply(cfg, params, model.inputs(batch))["sequence_output"], batch, search)
