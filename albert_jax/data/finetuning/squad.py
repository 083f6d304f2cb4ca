"""Question answering data: SQuAD's files to windows of tokens, and from tokens back to characters of the passage.

A row is [CLS] question [SEP] passage [SEP]. A longer passage becomes several rows that overlap, a new one every
`doc_stride` tokens. Answers are located by their characters, so that none is lost to the normalisation of the text.
"""

import collections
import functools
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tqdm

from albert_jax import strict_json
from albert_jax.data.finetuning import splits, tables
from albert_jax.data.finetuning.batching import Rows
from albert_jax.data.finetuning.windows import windows as cut_into_windows
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

_FORM = 'SQuAD\'s form, {"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}'
REQUIRED, _OPTIONAL = ("id", "question", "context"), ("answers", "is_impossible")  # the columns of rows
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Question:
  """One question and its passage, as the data has them.

  Attributes:
    id: unique in the split.
    question: the text of the question.
    context: the passage.
    answers: (text, its first character in the passage) of each; none if there is no answer or the file hides it.
    impossible: whether the passage does not answer the question.
  """

  id: str
  question: str
  context: str
  answers: tuple[tuple[str, int], ...]
  impossible: bool


@dataclass(frozen=True)
class Windows:
  """The rows of a split, and the way from their tokens back to the passages. W rows, Q questions.

  Attributes:
    rows: tokens "input_ids", "token_type_ids" (1: passage) and "allowed" (1: passage and [CLS], where an answer may
      start or end); fixed "start", "end" (positions of the label, 0 = [CLS] if the row has no answer), "impossible".
    questions: Q questions.
    question: int [W], the question of each row.
    first: int [W], the first token of the passage in the row.
    offset: int [W], the position of that token in the row.
    size: int [W], the tokens of the passage in the row.
    spans: for each question int32 [n, 2], the characters of each token of its passage.
    notes: the number of questions with each fault of the data.
  """

  rows: Rows
  questions: list[Question]
  question: np.ndarray
  first: np.ndarray
  offset: np.ndarray
  size: np.ndarray
  spans: list[np.ndarray]
  notes: dict[str, int]


# Reading.


def read(dataset: str, split: str, tfds_dir: str = "") -> list[Question]:
  """Reads the questions of a split.

  Args:
    dataset: a TFDS name (squad/v1.1, squad/v2.0, or another with their features), a folder of official files, or a
      file, which then is every split.
    split: a split of TFDS; or `train`, `validation`, `test` of a folder, the name of a file in it, or a path.
    tfds_dir: the folder of TFDS datasets; '' for TFDS' default.

  Raises:
    UserError: there is no such split, or it is no question answering data; names the place.
  """
  paths = find(dataset, split)
  if paths is None:
    rows = tables.read(dataset, split, REQUIRED, optional=_OPTIONAL, tfds_dir=tfds_dir)
    return _checked(rows.source, _of_rows(rows))
  return _checked(splits.named(paths), [question for path in paths for question in _read_file(path)])


def find(dataset: str, split: str) -> list[pathlib.Path] | None:
  """Finds the files of a split, see `read`; None where TFDS reads the dataset."""
  is_file = str(dataset) and pathlib.Path(dataset).expanduser().is_file()
  return splits.find(dataset, "train" if is_file and split in splits.NAMES else split, _SUFFIXES)


def read_file(path: str | pathlib.Path) -> list[Question]:
  """Reads a file of SQuAD's form, of its flat form ("data" is a list of questions with their passages), or of rows.

  Rows are those of a table, JSON lines, or one JSON list.

  Raises:
    UserError: as `read`.
  """
  return _checked(path, _read_file(path))


def _read_file(path):
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise UserError(f"no file {str(path)!r}; expected SQuAD's JSON, such as dev-v2.0.json")
  if path.suffix.lower() != ".json":
    return _read_rows(path)
  rows = [row for _, row in tables.read_values(path)]
  if all(isinstance(row, dict) and "context" in row for row in rows):
    return _read_rows(path)
  whole = rows[0] if len(rows) == 1 else None
  data = whole.get("data") if isinstance(whole, dict) else None
  if not isinstance(data, list):
    raise UserError(f"{path} is JSON, but not of the expected form: {_FORM}")
  questions = []
  for a, article in enumerate(data):
    where = f"{path}: data[{a}]"
    if isinstance(article, dict) and "paragraphs" not in article:
      questions.append(_question(where, article, article))
      continue
    for p, paragraph in enumerate(_field(where, article, "paragraphs", list)):
      position = f"{where}.paragraphs[{p}]"
      for q, qa in enumerate(_field(position, paragraph, "qas", list)):
        questions.append(_question(f"{position}.qas[{q}]", qa, paragraph))
  return questions


def is_hidden(questions: Sequence[Question]) -> bool:
  """Returns whether a split hides its answers: no question has one, and none is marked as having none."""
  return not any(question.answers or question.impossible for question in questions)


def _read_rows(path):
  try:
    return _of_rows(tables.read_file(path, REQUIRED, optional=_OPTIONAL))
  except tables.NoColumn as error:
    raise UserError(f"{error}; name the columns {', '.join(REQUIRED)} and answers") from None


def _of_rows(rows):
  return [_question(rows.where(i), record, record) for i, record in enumerate(rows.records())]


def _question(where, qa, paragraph):
  """Returns a question as it stands there: `answers` is None where the key is absent or null."""
  strict_json.expect(qa, where, dict)
  answers = qa.get("answers")
  if isinstance(answers, dict):  # {"text": [...], "answer_start": [...]}, as TFDS has it
    texts, starts = (_field(f"{where}.answers", answers, name, list) for name in ("text", "answer_start"))
    if len(texts) != len(starts):
      raise UserError(f"{where}.answers: {len(texts)} texts but {len(starts)} answer_start")
    answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
  if answers is not None:
    answers = tuple(
      (_field(f"{where}.answers[{i}]", x, "text", str), _field(f"{where}.answers[{i}]", x, "answer_start", int))
      for i, x in enumerate(_field(where, {"answers": answers}, "answers", (list, dict)))
    )
  return Question(
    id=str(_field(where, qa, "id", (str, int))),
    question=_field(where, qa, "question", str),
    context=_field(where, paragraph, "context", str),
    answers=answers,
    impossible=qa.get("is_impossible") is not None and _field(where, qa, "is_impossible", bool),
  )


def _field(where, value, name, kind):
  """value[name], which must be there and of that kind."""
  return strict_json.expect(strict_json.expect(value, where, dict).get(name), f'{where}: "{name}"', kind)


def _checked(where, questions):
  """Returns the questions of a split. One without answers has none to find, unless the split hides all answers."""
  if not questions:
    raise UserError(f"{where} holds no question")
  [(most, count)] = collections.Counter(x.id for x in questions).most_common(1)
  if count > 1:
    raise UserError(f"{where}: {count} questions have the id {most!r}; answers are filed by id, so each needs its own")
  hidden = is_hidden(questions)
  for i, question in enumerate(questions):
    if question.answers is None and not (hidden or question.impossible):
      raise UserError(f'{where}: the question {question.id!r} has no "answers", but others have; add them, or []')
    if not question.answers:
      questions[i] = replace(question, answers=(), impossible=not hidden)
  return questions


# Encoding.


def locate(context: str, text: str, start: int) -> tuple[int, int] | None:
  """Finds an answer in its passage.

  Args:
    context: the passage.
    text: the answer; outer white space does not count.
    start: its first character; where the passage does not have it there, the nearest place counts.

  Returns:
    The first character and the one behind the last; None if the passage does not have the answer.
  """
  stripped = text.strip()
  start += len(text) - len(text.lstrip())
  if not stripped:
    return None
  if not context.startswith(stripped, max(start, 0)) or start < 0:
    starts = [match.start() for match in re.finditer(f"(?={re.escape(stripped)})", context)]
    if not starts:
      return None
    start = min(starts, key=lambda place: abs(place - start))
  return start, start + len(stripped)


def align(spans: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
  """Returns the first and the last token that overlap characters [start, end); None if no token does.

  Args:
    spans: int [n, 2], the characters of each token, in the order of the text.
    start: the first character.
    end: the character behind the last.
  """
  first = int(np.searchsorted(spans[:, 1], start, side="right"))
  last = int(np.searchsorted(spans[:, 0], end, side="left")) - 1
  return (first, last) if first <= last else None


def characters(context: str, spans: np.ndarray, first: int, last: int) -> tuple[int, int]:
  """The characters (start, end) of tokens in the passage, without outer white space; a mark stays with its letter.

  Args:
    context: the passage.
    spans: int [n, 2], the characters of each token.
    first: the first token.
    last: the last token.
  """
  start, end = int(spans[first, 0]), int(spans[last, 1])
  while end < len(context) and unicodedata.combining(context[end]):
    end += 1  # WordPiece drops it, and its offsets with it.
  while end > start and context[end - 1].isspace():
    end -= 1
  while start < end and context[start].isspace():
    start += 1
  return start, end


def cut(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
  """Cuts a passage into windows as the original does.

  Args:
    tokens: the tokens of the passage.
    room: the most tokens of a window.
    stride: the tokens from the start of one window to the next.

  Returns:
    (first token, number of tokens) of each window; an empty passage has one empty window.
  """
  windows = cut_into_windows(np.arange(tokens + 1), room, max(room - stride, 0))
  return [(begin, end - begin) for begin, end, _, _ in windows] or [(0, 0)]


def best_context(first: np.ndarray, size: np.ndarray) -> np.ndarray:
  """For each token of a passage, the window with the most context around it: int [tokens].

  The score is that of the original (_check_is_max_context): the smaller of the numbers of tokens to the left and to the
  right; of equal scores the longer window wins, then the earlier one.

  Args:
    first: int [w], the first token of each window of one passage.
    size: int [w], the tokens of each.
  """
  best = np.full(int(first[-1] + size[-1]), -1.0)
  owner = np.zeros(len(best), np.int64)
  for number, (begin, count) in enumerate(zip(first, size, strict=True)):
    place = np.arange(count)
    score = np.minimum(place, count - 1 - place) + 0.01 * count
    better = score > best[begin : begin + count]
    best[begin : begin + count][better] = score[better]
    owner[begin : begin + count][better] = number
  return owner


def encode(
  questions: Sequence[Question],
  tokenizer: Tokenizer,
  *,
  seq_length: int,
  doc_stride: int,
  max_query_length: int,
  training: bool = False,
) -> Windows:
  """Encodes questions and their passages as rows.

  Of several answers, the label is the first that lies in a window and begins and ends where tokens do, else the first
  that lies in a window. A row without its answer is labelled as having none, as in the original.

  Args:
    questions: Q questions.
    tokenizer: the tokenizer.
    seq_length: the longest row, more than max_query_length + 3.
    doc_stride: the tokens from one window to the next.
    max_query_length: the most tokens of a question; a longer one loses its end.
    training: whether to leave out questions whose answer is not in the passage, since they teach nothing.
  """
  notes: collections.Counter[str] = collections.Counter()
  kind = np.int32 if tokenizer.vocab_size > 2**16 else np.uint16
  passage_of = functools.cache(lambda text: _passage(tokenizer, text, kind))  # TFDS has the questions shuffled.
  tokens = {"input_ids": [], "token_type_ids": [], "allowed": []}
  fixed = {"start": [], "end": [], "impossible": []}
  kept, positions, all_spans = [], [], []
  queries = tokenizer.encode_batch([x.question for x in questions])
  shown = tqdm.tqdm(questions, desc="encoding", disable=None, leave=False)
  for question, query in zip(shown, queries, strict=True):
    ids, spans = passage_of(question.context)
    windows = cut(len(ids), seq_length - min(len(query), max_query_length) - 3, doc_stride)
    label = _label(question, spans, windows, notes)
    notes["questions without text"] += not query
    notes["questions cut to their first task.max_query_length tokens"] += len(query) > max_query_length
    notes["passages without text"] += not len(ids)
    if training and label is None and not question.impossible:
      continue
    query = query[:max_query_length]
    for first, size in windows:
      is_inside = label is not None and first <= label[0] and label[1] < first + size
      offset = len(query) + 2
      front = np.array([tokenizer.cls_id, *query, tokenizer.sep_id], kind)
      row = np.concatenate([front, ids[first : first + size], np.array([tokenizer.sep_id], kind)])
      passage = np.zeros(len(row), np.uint8)
      passage[offset:] = 1
      allowed = passage.copy()
      allowed[0], allowed[-1] = 1, 0
      for name, value in zip(tokens, (row, passage, allowed), strict=True):
        tokens[name].append(value)
      for name, value in zip(fixed, [x - first + offset for x in label] if is_inside else (0, 0), strict=False):
        fixed[name].append(value)
      fixed["impossible"].append(not is_inside)
      positions.append((len(kept), first, offset, size))
    kept.append(question)
    all_spans.append(spans)
  rows = Rows(tokens, {name: np.array(values, np.int32) for name, values in fixed.items()},
              {"input_ids": tokenizer.pad_id})  # fmt: skip
  question_of, firsts, offsets, sizes = np.array(positions, np.int64).reshape(-1, 4).T
  counts = {note: count for note, count in notes.items() if count}
  return Windows(rows, kept, question_of, firsts, offsets, sizes, all_spans, counts)


def _passage(tokenizer, text, kind):
  ids, spans = tokenizer.encode_with_offsets(text)
  return np.array(ids, kind), np.array(spans, np.int32).reshape(-1, 2)


def _label(question, spans, windows, notes):
  """Returns the tokens (first, last) of the answer to learn, None if there is none; counts faults in `notes`."""
  if not question.answers or question.impossible:
    return None
  candidates = []
  for text, start in question.answers:
    place = locate(question.context, text, start)
    tokens = None if place is None else align(spans, *place)
    if tokens is not None:
      moved = question.context[start : start + len(text)] != text
      inside = any(first <= tokens[0] and tokens[1] < first + size for first, size in windows)
      exact = characters(question.context, spans, *tokens) == place
      candidates.append((not inside, not exact, len(candidates), moved, tokens))
  if not candidates:
    notes["answers that are not in the passage"] += 1
    return None
  outside, within, _, moved, tokens = min(candidates)
  notes["answers that are elsewhere in the passage than answer_start says"] += moved
  notes["answers that begin or end inside a token"] += within
  notes["answers longer than any window"] += outside
  return tokens
