"""Multiple choice: RACE, DREAM, SWAG and own files to passages, questions and options; and those to ids."""

import pathlib
import re
from dataclasses import dataclass

import numpy as np

from albert_jax.data.finetuning import batching, tables
from albert_jax.errors import UserError

LEVELS = ("middle", "high")  # of RACE
_SWAG = ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3")
_RACE = ("article", "questions", "options", "answers")
# Where the option goes into the question: in RACE any underscores, in files of others those that stand alone.
BLANK, LONE_BLANK = re.compile("_+"), re.compile(r"(?<!\w)_+(?!\w)")
_FOLDERS = {"train": "train", "validation": "dev", "test": "test"}


@dataclass(frozen=True)
class Choice:
  """A question about a context, and its options.

  options: texts, two at least. label: the right one's number, None where nobody knows. group: a part of the split with
    a number of its own, such as RACE's "middle"; '' for none. blank: what in the question is the option's place.
  """

  context: str
  question: str
  options: tuple[str, ...]
  label: int | None
  group: str = ""
  blank: re.Pattern = LONE_BLANK

  def endings(self) -> list[str]:
    """The question with each option: in its blank, or behind it."""
    question, *options = (" ".join(text.split()) for text in (self.question, *self.options))
    if self.blank.search(question):
      return [self.blank.sub(lambda _, option=option: option, question) for option in options]
    return [f"{question} {option}".strip() for option in options]


def read(dataset, split, *, levels=LEVELS, tfds_dir="") -> list[Choice]:
  """The questions of a split.

  Args:
    dataset: RACE's folder, a folder of DREAM's, SWAG's or own files, one such file, or a TFDS name such as race/high.
    split: its name, or a file. levels: which parts of RACE.

  Raises:
    UserError: nothing is there, it is in none of these forms, or an answer is not among its options.
  """
  folder = pathlib.Path(dataset).expanduser()
  folder = folder / "RACE" if (folder / "RACE").is_dir() else folder
  race = folder / _FOLDERS.get(split, split)
  if any((race / level).is_dir() for level in LEVELS):
    return _read_race(race, levels)
  path = tables.find(dataset, split)
  if path is None:
    found = tables.read(dataset, split, _RACE, tfds_dir=tfds_dir)
    group = str(dataset).rsplit("/", 1)[-1]
    rows = zip(*(found.columns[name] for name in _RACE), strict=True)
    records = enumerate(dict(zip(_RACE, row, strict=True)) for row in rows)
    return [choice for i, record in records for choice in _race(record, found.where(i), group)]
  if path.suffix in tables.TABLES:
    found = tables.read_file(path, _SWAG, optional=("label",))
    rows = [{name: values[i] for name, values in found.columns.items()} for i in range(len(found))]
    return [choice for i, row in enumerate(rows) for choice in _swag(row, found.where(i))]
  return [choice for number, row in tables.json_rows(path) for choice in _of_row(row, f"{path} line {number}")]


def _read_race(folder, levels):
  """The official folders: a file a passage, JSON whatever its name."""
  found = []
  for level in levels:
    if level not in LEVELS:
      raise UserError(f"data.levels: {level!r} is unknown; RACE has {', '.join(LEVELS)}")
    for path in sorted((folder / level).glob("*.txt")):
      for number, row in tables.json_rows(path):
        found += _race(row, f"{path} line {number}", level)
  if not found:
    raise UserError(f"{folder} has no passages in {', '.join(levels)}; expected files such as {folder}/high/1.txt")
  return found


def _of_row(row, where):
  """The questions of one JSON value: DREAM's list, or an object as in RACE or SWAG or as our own."""
  if isinstance(row, list) and len(row) == 3 and isinstance(row[0], list) and isinstance(row[1], list):
    return _dream(row, where)
  if isinstance(row, dict):
    for fields, parse in ((_RACE, _race), (_SWAG, _swag), (("context", "options"), _own)):
      if all(field in row for field in fields):
        return parse(row, where)
  there = ", ".join(row) if isinstance(row, dict) else f"{str(row)[:40]!r}"
  raise UserError(
    f"{where}: expected an object with context, question, options and label, or one as in RACE, DREAM or SWAG; there "
    f"is {there}"
  )


def _race(row, where, group=""):
  questions, options, answers = (row[name] for name in ("questions", "options", "answers"))
  if not len(questions) == len(options) == len(answers):
    raise UserError(f"{where}: {len(questions)} questions, {len(options)} lists of options, {len(answers)} answers")
  return [
    _choice(where, row["article"], question, choice, answer, group, BLANK)
    for question, choice, answer in zip(questions, options, answers, strict=True)
  ]


def _dream(row, where):
  turns, questions, _ = row
  return [_choice(where, "\n".join(turns), q.get("question", ""), q.get("choice"), q.get("answer")) for q in questions]


def _swag(row, where):
  return [_choice(where, row["sent1"], row["sent2"], [row[name] for name in _SWAG[2:]], row.get("label"))]


def _own(row, where):
  return [_choice(where, row["context"], row.get("question") or "", row["options"], row.get("label"))]


def _choice(where, context, question, options, answer, group="", blank=LONE_BLANK):
  if not isinstance(options, list) or len(options) < 2 or not all(isinstance(text, str) for text in options):
    raise UserError(f"{where}: the options are {str(options)[:60]}; expected a list of two texts or more")
  if not isinstance(context, str) or not isinstance(question, str):
    raise UserError(f"{where}: the context and the question should be texts")
  return Choice(context, question, tuple(options), _label(where, answer, options), group, blank)


def _label(where, answer, options):
  """The number of the right option, which is given as that, as a letter from A, or as its text."""
  if answer is None or answer == "":
    return None
  number = None
  if answer in options:
    number = options.index(answer)
  elif isinstance(answer, int) or (isinstance(answer, str) and answer.strip().isdigit()):
    number = int(answer)
  elif isinstance(answer, str) and len(answer.strip()) == 1:
    number = ord(answer.strip().upper()) - ord("A")
  if number is None or not 0 <= number < len(options):
    raise UserError(
      f"{where}: the answer {str(answer)[:40]!r} is none of its {len(options)} options; expected an option's text, its "
      "number from 0, or its letter from A"
    )
  return number


def rows(choices, vocabulary, seq_length, qa_length, source="") -> batching.Rows:
  """Questions as token ids: [CLS] context [SEP] question and option [SEP] for each option (run_race.py).

  Args: seq_length: what is longer loses the end of its context; qa_length: and before that, the beginning of question
    and option. Both are counted and said. Where questions have fewer options than others, the rest is [CLS] [SEP].
  Returns: Rows with "label" (0 where there is none), "labelled" (1 where there is one) and "options", how many.
  """
  most = max((len(choice.options) for choice in choices), default=0)
  contexts = dict.fromkeys(choice.context for choice in choices)  # Many questions are about the same.
  contexts = dict(zip(contexts, tables.encode_texts(vocabulary, list(contexts)), strict=True))
  endings = iter(tables.encode_texts(vocabulary, [text for choice in choices for text in choice.endings()]))
  # Whole of RACE is a few hundred megabytes so, instead of gigabytes.
  kind = np.uint16 if vocabulary.vocab_size <= 1 << 16 else np.int32
  cls, sep = np.array([vocabulary.cls_id], kind), np.array([vocabulary.sep_id], kind)
  tokens, cut, cut_question = {"input_ids": [], "token_type_ids": []}, 0, 0
  for choice in choices:
    context = contexts[choice.context].astype(kind)
    for _ in choice.options:
      ending = next(endings).astype(kind)
      cut_question += len(ending) > qa_length
      ending = ending[-qa_length:]
      room = seq_length - 3 - len(ending)
      cut += len(context) > room
      head = [cls, context[:room], sep]
      tokens["input_ids"].append(np.concatenate([*head, ending, sep]))
      tokens["token_type_ids"].append(np.repeat(np.int8([0, 1]), [sum(map(len, head)), len(ending) + 1]))
    for _ in range(most - len(choice.options)):
      tokens["input_ids"].append(np.concatenate([cls, sep]))
      tokens["token_type_ids"].append(np.zeros(2, np.int8))
  count = len(tokens["input_ids"])
  if cut_question:
    tables.say(source, cut_question, f"of {count:,} options are longer than {qa_length} tokens with their question "
                 "and lost its beginning (data.qa_length)")  # fmt: skip
  if cut:
    tables.say(source, cut, f"of {count:,} options do not fit {seq_length} tokens with their context, which lost its "
                 "end (data.seq_length)")  # fmt: skip
  labels = [choice.label for choice in choices]
  fixed = {
    "label": np.array([label or 0 for label in labels], np.int32),
    "labelled": np.array([label is not None for label in labels], np.float32),
    "options": np.array([len(choice.options) for choice in choices], np.int32),
  }
  return batching.Rows(tokens, fixed, {"input_ids": vocabulary.pad_id}, group=max(most, 1))
