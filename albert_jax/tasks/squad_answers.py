"""From scores of starts and ends to texts: the best answers of a question, over all windows of its passage."""

import dataclasses
import functools
import math
from dataclasses import dataclass

import jax
import numpy as np

from albert_jax import model
from albert_jax.data.finetuning import squad
from albert_jax.errors import UserError
from albert_jax.tasks import heads, squad_heads

NOTHING = -2e6  # the score of an answer where there is no candidate, as in the original


@dataclass(frozen=True)
class Search:
  """How answers are looked for. Lengths are in tokens."""

  seq_length: int = 384  # question and window together
  doc_stride: int = 128  # from one window of a long passage to the next
  max_query_length: int = 64
  max_answer_length: int = 30
  n_best: int = 20  # answers a question; for plain spans also the starts and ends that are paired
  start_n_top: int = 5  # beam: starts, and ends for each of them
  end_n_top: int = 5
  no_answer: bool = True  # there may be none, as in SQuAD 2.0
  null_threshold: float = 0.0  # say '' where the odds of no answer are above this

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if field.type is int and getattr(self, field.name) < 1:
        raise UserError(f"task.{field.name}={getattr(self, field.name)} must be 1 or more")
    if self.seq_length < self.max_query_length + 4:
      raise UserError(
        f"data.seq_length={self.seq_length} leaves no room for a passage beside a question of "
        f"task.max_query_length={self.max_query_length} tokens; lower --config.task.max_query_length"
      )


def best(head, windows, found, question: int, rows, search: Search):
  """The best answers to one question.

  As the official scripts choose them: a span starts where its window shows more of what is around it than any other
  does, is no longer than `max_answer_length`, and one text counts once. Only tokens of the passage compete.

  Args:
    head: squad_heads.Head. windows: data.squad.Windows. question: its number in them; rows: the numbers of its rows.
    found: {name: for each row the array of `head.spans`}.

  Returns:
    ([{"text", "probability" (among these), "score", "start", "end" (characters)}], best first, of which '' may be one;
    null_odds: how much more there is for no answer than for the best one, a log of odds).
  """
  first, offset, size = windows.first[rows], windows.offset[rows], windows.size[rows]
  owner = squad.best_context(first, size)
  candidates = []
  for w, row in enumerate(rows):
    start, end = np.broadcast_arrays(
      found["start_index"][row][:, None] - offset[w], found["end_index"][row] - offset[w]
    )
    score = found["start_score"][row][:, None] + found["end_score"][row]
    fits = (start >= 0) & (start <= end) & (end < size[w]) & (end - start < search.max_answer_length)
    start, end, score = start[fits] + first[w], end[fits] + first[w], score[fits]
    mine = owner[start] == w
    candidates.append((score[mine], start[mine], end[mine]))
  scores, starts, ends = (np.concatenate(parts) for parts in zip(*candidates, strict=True))

  context, spans = windows.questions[question].context, windows.spans[question]
  answers, seen = [], {""}
  for i in np.argsort(-scores, kind="stable"):
    if len(answers) == search.n_best:
      break
    begin, stop = squad.characters(context, spans, int(starts[i]), int(ends[i]))
    if context[begin:stop] not in seen:
      seen.add(context[begin:stop])
      answers.append({"text": context[begin:stop], "score": float(scores[i]), "start": begin, "end": stop})
  odds = float(min(found["null"][row] for row in rows))
  if head.null_is_score:
    if search.no_answer:
      answers.append({"text": "", "score": odds, "start": 0, "end": 0})
    odds -= answers[0]["score"] if answers and answers[0]["text"] else NOTHING
  answers.sort(key=lambda answer: -answer["score"])
  shares = np.exp([answer["score"] - answers[0]["score"] for answer in answers])
  answers = [
    {"text": answer["text"], "probability": float(share), **answer}
    for answer, share in zip(answers, shares / shares.sum(), strict=True)
  ]
  return answers, odds


def predict(head, windows, found, search: Search):
  """All questions: ({id: best text that is not '', if there is any}, {id: null_odds}, {id: best answers})."""
  texts, odds, lists = {}, {}, {}
  bounds = np.searchsorted(windows.question, np.arange(len(windows.questions) + 1))
  for number, question in enumerate(windows.questions):
    rows = np.arange(bounds[number], bounds[number + 1])
    lists[question.id], odds[question.id] = best(head, windows, found, number, rows, search)
    texts[question.id] = next((answer["text"] for answer in lists[question.id] if answer["text"]), "")
  return texts, odds, lists


def decide(texts, odds, search: Search):
  """{id: text}, '' where no answer is the better guess."""
  return {id: "" if search.no_answer and odds[id] > search.null_threshold else text for id, text in texts.items()}


def answer(cfg, params, tokenizer, items, *, top_k=5, batch_size=heads.BATCH, **search: Search) -> list[dict]:
  """Answers questions about passages of any length.

  Args:
    items: list of {"question", "context"}. top_k: answers of each. batch_size: the most windows that are run together.
    search: fields of Search; an export names those it was trained with.

  Returns:
    for each item {"answer": text, '' where there is rather none, "answers": at most top_k of {"text", "start", "end"
    (characters of the context), "score" (probability among the candidates)}, "no_answer": probability that there is no
    answer, None from a model that was not taught that there may be none}.

  Raises: UserError for a model without a head for this, or an item that is not a question with a passage.
  """
  names = [name for name, head in squad_heads.HEADS.items() if head.part in params]
  if not names:
    raise UserError(
      "this checkpoint has no head that answers questions; train one: albert-jax train --config=configs/squad.py:base"
    )
  given = {field.name: field.default for field in dataclasses.fields(Search)} | search
  room = min(given["seq_length"], cfg.max_position_embeddings)
  question_room = min(given["max_query_length"], room // 2)
  count = max(given["n_best"], top_k)
  search = Search(**given | {"seq_length": room, "max_query_length": question_room, "n_best": count})
  questions = []
  for number, item in enumerate(items):
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("question", "context")):
      raise UserError(f'item {number + 1} is {str(item)[:60]!r}; expected {{"question": text, "context": text}}')
    questions.append(squad.Question(str(number), item["question"], item["context"], (), True))
  if not questions:
    return []
  windows = encode(questions, tokenizer, search)
  # Of the search the program knows only these: the others change nothing that is compiled.
  sizes = Search(n_best=search.n_best, start_n_top=search.start_n_top, end_n_top=search.end_n_top)
  found = heads.by_row(functools.partial(_run, cfg, names[0], sizes), params, windows.rows, batch_size)
  texts, odds, lists = predict(squad_heads.get(names[0]), windows, found, search)
  chosen = decide(texts, odds, search)
  return [
    {
      "answer": chosen[id],
      "answers": [
        {"text": a["text"], "start": a["start"], "end": a["end"], "score": a["probability"]}
        for a in lists[id]
        if a["text"]
      ][:top_k],
      "no_answer": 1 / (1 + math.exp(-max(min(odds[id], 500), -500))) if search.no_answer else None,
    }
    for id in chosen
  ]


def encode(questions, tokenizer, search: Search, training: bool = False):
  return squad.encode(
    questions, tokenizer, seq_length=search.seq_length, doc_stride=search.doc_stride,
    max_query_length=search.max_query_length, training=training,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(cfg, name, search, params, batch):
  return spans(cfg, squad_heads.get(name), search, params, batch)


def spans(cfg, head, search: Search, params, batch):
  """The best starts and ends of each row, see squad_heads.Head."""
  return head.spans(params[head.part], model.apply(cfg, params, batch)["sequence_output"], batch, search)
