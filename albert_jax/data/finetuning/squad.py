"""Question answering data: SQuAD's files to windows of tokens, and from tokens back to characters of the passage.

A row is [CLS] question [SEP] passage [SEP]. A passage that does not fit becomes several rows that overlap, a new one
every `doc_stride` tokens. Answers are found by where their characters are, so none is lost to how a text is normalised.
"""

import collections
import functools
import json
import pathlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
import tqdm

from albert_jax.data.finetuning import tables
from albert_jax.data.finetuning.batching import Rows
from albert_jax.errors import UserError

# What the file of a split may be called in a folder of SQuAD's kind, such as dev-v2.0.json.
_FILES = {"train": r"train", "validation": r"dev|valid", "test": r"test"}
_FORM = 'SQuAD\'s form, {"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}'


@dataclass(frozen=True)
class Question:
  """One question and its passage, as the data has them. answers: (text, where it starts in the passage), maybe none."""

  id: str
  question: str
  context: str
  answers: tuple[tuple[str, int], ...]
  impossible: bool  # marked as without an answer, or has none


@dataclass(frozen=True)
class Windows:
  """The rows of a split and what leads from a token of theirs back to the passage. W rows, Q questions.

  rows: tokens "input_ids", "token_type_ids" (1: passage) and "allowed" (1: passage and [CLS], where an answer may start
    or end); fixed "start", "end" (the label's positions, 0 = [CLS] where the row holds no answer), "impossible".
  question [W]: whose row it is. first [W]: the row's first token of the passage. offset [W]: its position in the row.
  size [W]: how many tokens of the passage the row has.
  spans: for each question int32 [n, 2], the characters of each token of its passage.
  notes: {what was wrong with the data: how many questions}.
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
  """The questions of a split.

  Args:
    dataset: a TFDS name (squad/v1.1, squad/v2.0, or another with their features), a folder of official files, or a
      file, which is then every split's.
    split: of TFDS, or `train`, `validation`, `test` of a folder; or the name of a file in the folder, or its path.
    tfds_dir: where TFDS datasets are; '' is TFDS' own default.

  Raises:
    UserError: nothing is there, or it is not question answering data; says where.
  """
  path = pathlib.Path(dataset).expanduser()
  if split.endswith(".json"):
    return read_file(path / split if dataset and path.is_dir() else split)
  if path.is_file():
    return read_file(path)
  if not dataset:
    raise UserError(
      "data.dataset is not set; give a TFDS name (squad/v2.0), a folder with SQuAD's files, or a file: "
      "--config.data.dataset=DIR"
    )
  if path.is_dir():
    return read_file(_file_of(path, split))
  if dataset.endswith(".json") or dataset.startswith(("/", ".", "~")):
    raise UserError(f"no file or folder {dataset!r}; expected SQuAD's JSON, or a folder with it, or a TFDS name")
  return _read_tfds(dataset, split, tfds_dir)


def _file_of(folder, split):
  files = sorted(file for file in folder.glob("*.json") if re.search(_FILES.get(split, re.escape(split)), file.name))
  if len(files) != 1:
    found = ", ".join(file.name for file in files or sorted(folder.glob("*.json"))) or "no .json at all"
    raise UserError(
      f"{folder}: {'no file' if not files else 'several files'} for the split {split!r} (there: {found}); name one, as "
      "--config.data.split=FILE.json or --config.data.validation_split=FILE.json"
    )
  return files[0]


def read_file(path) -> list[Question]:
  """The questions of a file in SQuAD's form, or in the flat one (`data` is a list of questions with their passages)."""
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise UserError(f"no file {str(path)!r}; expected SQuAD's JSON, such as dev-v2.0.json")
  try:
    whole = json.loads(tables.read_text(path))
  except ValueError as error:
    raise UserError(f"{path} is no whole JSON ({error}); expected {_FORM}") from None
  data = whole.get("data") if isinstance(whole, dict) else None
  if not isinstance(data, list):
    raise UserError(f"{path} is JSON, but not what was expected: {_FORM}")
  questions = []
  for a, article in enumerate(data):
    where = f"{path}: data[{a}]"
    if isinstance(article, dict) and "paragraphs" not in article:
      questions.append(_question(where, article, article))
      continue
    for p, paragraph in enumerate(_field(where, article, "paragraphs", list)):
      here = f"{where}.paragraphs[{p}]"
      for q, qa in enumerate(_field(here, paragraph, "qas", list)):
        questions.append(_question(f"{here}.qas[{q}]", qa, paragraph))
  return _checked(path, questions)


def _read_tfds(name, split, tfds_dir):
  found = tables.read(
    name, split, ["id", "question", "context", "answers"], optional=["is_impossible"], tfds_dir=tfds_dir
  )
  rows = (dict(zip(found.columns, map(_plain, row), strict=True)) for row in zip(*found.columns.values(), strict=True))
  return _checked(found.source, [_question(found.where(i), row, row) for i, row in enumerate(rows)])


def _plain(value):
  """TFDS's bytes and numpy values as Python's own."""
  if isinstance(value, dict):
    return {key: _plain(each) for key, each in value.items()}
  if isinstance(value, np.ndarray | list):
    return [_plain(each) for each in value]
  value = value.item() if isinstance(value, np.generic) else value
  return value.decode() if isinstance(value, bytes) else value


def _question(where, qa, paragraph):
  answers = _field(where, qa, "answers", (list, dict))
  if isinstance(answers, dict):  # {"text": [...], "answer_start": [...]}, as TFDS has it
    texts, starts = (_field(f"{where}.answers", answers, name, list) for name in ("text", "answer_start"))
    if len(texts) != len(starts):
      raise UserError(f"{where}.answers: {len(texts)} texts but {len(starts)} answer_start")
    answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
  found = tuple(
    (_field(f"{where}.answers[{i}]", x, "text", str), _field(f"{where}.answers[{i}]", x, "answer_start", int))
    for i, x in enumerate(answers)
  )
  return Question(
    id=str(_field(where, qa, "id", (str, int))),
    question=_field(where, qa, "question", str),
    context=_field(where, paragraph, "context", str),
    answers=found,
    impossible=bool(qa.get("is_impossible")) or not found,
  )


def _field(where, value, name, kind):
  """value[name], which must be there and of that kind."""
  kinds = kind if isinstance(kind, tuple) else (kind,)
  found = value.get(name) if isinstance(value, dict) else None
  if not isinstance(found, kinds) or isinstance(found, bool):
    wanted = " or ".join({str: "text", int: "a whole number", list: "a list", dict: "an object"}[k] for k in kinds)
    got = "nothing" if found is None else repr(found)[:60]
    raise UserError(f'{where}: expected "{name}" with {wanted}, got {got}')
  return found


def _checked(where, questions):
  if not questions:
    raise UserError(f"{where} holds no question")
  [(most, count)] = collections.Counter(x.id for x in questions).most_common(1)
  if count > 1:
    raise UserError(f"{where}: {count} questions have the id {most!r}; answers are filed by id, so each needs its own")
  return questions


# Encoding.


def locate(context: str, text: str, start: int):
  """Where an answer is: (start, end) of its characters in the passage, outer white space aside.

  Where the passage does not hold it at `start`, that is the nearest place that does; None if there is none.
  """
  stripped = text.strip()
  start += len(text) - len(text.lstrip())
  if not stripped:
    return None
  if not context.startswith(stripped, max(start, 0)) or start < 0:
    places = [match.start() for match in re.finditer(f"(?={re.escape(stripped)})", context)]
    if not places:
      return None
    start = min(places, key=lambda place: abs(place - start))
  return start, start + len(stripped)


def align(spans: np.ndarray, start: int, end: int):
  """The first and the last token that have something of characters [start, end); None if no token has.

  Args: spans [n, 2]: the characters of each token, never going back.
  """
  first = int(np.searchsorted(spans[:, 1], start, side="right"))
  last = int(np.searchsorted(spans[:, 0], end, side="left")) - 1
  return (first, last) if first <= last else None


def characters(context: str, spans: np.ndarray, first: int, last: int):
  """(start, end) of tokens first to last in the passage, without outer white space; a mark stays with its letter."""
  start, end = int(spans[first, 0]), int(spans[last, 1])
  while end < len(context) and unicodedata.combining(context[end]):
    end += 1  # WordPiece drops it, and its offsets with it.
  while end > start and context[end - 1].isspace():
    end -= 1
  while start < end and context[start].isspace():
    start += 1
  return start, end


def cut(tokens: int, room: int, stride: int):
  """[(first token, how many)] of the windows of a passage; an empty passage has one empty window."""
  windows = [(0, min(tokens, room))]
  while sum(windows[-1]) < tokens:
    first = windows[-1][0] + min(windows[-1][1], stride)
    windows.append((first, min(tokens - first, room)))
  return windows


def best_context(first: np.ndarray, size: np.ndarray) -> np.ndarray:
  """For each token of a passage, the number of the window that shows most of what is around it.

  Args: first, size [w]: the windows of one passage. The score is that of the original (_check_is_max_context): the
    smaller of the tokens to the left and to the right; the longer window, then the earlier one, where they tie.
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


def encode(questions, tokenizer, *, seq_length, doc_stride, max_query_length, training=False) -> Windows:
  """Questions as rows.

  Of several answers, the label is the first that lies in a window and begins and ends where tokens do, else the first
  that lies in a window. A row without its answer is labelled as having none, as in the original.

  Args:
    seq_length: the longest row, more than max_query_length + 3. doc_stride: tokens from one window to the next.
    max_query_length: a longer question loses its end.
    training: leave out questions whose answer is nowhere in the passage: there is nothing to learn from them.
  """
  notes = collections.Counter()
  kind = np.int32 if tokenizer.vocab_size > 2**16 else np.uint16
  passage_of = functools.cache(lambda text: _passage(tokenizer, text, kind))  # TFDS has the questions shuffled.
  tokens = {"input_ids": [], "token_type_ids": [], "allowed": []}
  fixed = {"start": [], "end": [], "impossible": []}
  kept, places, all_spans = [], [], []
  asked = tokenizer.encode_batch([x.question for x in questions])
  shown = tqdm.tqdm(questions, desc="encoding", disable=None, leave=False)
  for question, query in zip(shown, asked, strict=True):
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
      here = label is not None and first <= label[0] and label[1] < first + size
      offset = len(query) + 2
      front = np.array([tokenizer.cls_id, *query, tokenizer.sep_id], kind)
      row = np.concatenate([front, ids[first : first + size], np.array([tokenizer.sep_id], kind)])
      passage = np.zeros(len(row), np.uint8)
      passage[offset:] = 1
      allowed = passage.copy()
      allowed[0], allowed[-1] = 1, 0
      for name, value in zip(tokens, (row, passage, allowed), strict=True):
        tokens[name].append(value)
      for name, value in zip(fixed, [x - first + offset for x in label] if here else (0, 0), strict=False):
        fixed[name].append(value)
      fixed["impossible"].append(not here)
      places.append((len(kept), first, offset, size))
    kept.append(question)
    all_spans.append(spans)
  rows = Rows(tokens, {name: np.array(values, np.int32) for name, values in fixed.items()},
              {"input_ids": tokenizer.pad_id})  # fmt: skip
  columns = np.array(places, np.int64).reshape(-1, 4).T
  return Windows(rows, kept, *columns, all_spans, {what: count for what, count in notes.items() if count})


def _passage(tokenizer, text, kind):
  ids, spans = tokenizer.encode_with_offsets(text)
  return np.array(ids, kind), np.array(spans, np.int32).reshape(-1, 2)


def _label(question, spans, windows, notes):
  """The tokens (first, last) of the answer to learn, None if there is none; adds to `notes` what is wrong."""
  if question.impossible:
    return None
  found = []
  for text, start in question.answers:
    place = locate(question.context, text, start)
    tokens = None if place is None else align(spans, *place)
    if tokens is not None:
      moved = question.context[start : start + len(text)] != text
      inside = any(first <= tokens[0] and tokens[1] < first + size for first, size in windows)
      exact = characters(question.context, spans, *tokens) == place
      found.append((not inside, not exact, len(found), moved, tokens))
  if not found:
    notes["answers that are not in the passage"] += 1
    return None
  outside, within, _, moved, tokens = min(found)
  notes["answers that are elsewhere in the passage than answer_start says"] += moved
  notes["answers that begin or end inside a token"] += within
  notes["answers longer than any window"] += outside
  return tokens
