"""Multiple choice: RACE, DREAM, SWAG and own files to passages, questions and options; and those to ids."""

import itertools
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from albert_jax import strict_json
from albert_jax.data.finetuning import batching, cells, splits, tables
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

LEVELS = ("middle", "high")  # of RACE
_SWAG = ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3")
_RACE = ("article", "questions", "options")
_RACE_ROW = ("article", "question", "options")  # a question a row, as on the Hugging Face Hub
# The place of the option in a question: in RACE any underscores, in other files underscores that stand alone.
BLANK, LONE_BLANK = re.compile("_+"), re.compile(r"(?<!\w)_+(?!\w)")


@dataclass(frozen=True)
class Choice:
  """A question about a context, and its options.

  Attributes:
    context: the passage.
    question: the question, or the beginning of a sentence that an option ends; may be ''.
    options: two texts or more.
    label: the number of the right option; None if the file hides it.
    group: a part of the split with an accuracy of its own, such as RACE's "middle"; '' for none.
    blank: matches the place of the option in the question.
  """

  context: str
  question: str
  options: tuple[str, ...]
  label: int | None
  group: str = ""
  blank: re.Pattern = LONE_BLANK

  def endings(self) -> list[str]:
    """Returns the question with each option: in its blank, or at its end."""
    question, *options = (" ".join(text.split()) for text in (self.question, *self.options))
    if self.blank.search(question):
      return [self.blank.sub(option.replace("\\", r"\\"), question) for option in options]
    return [f"{question} {option}".strip() for option in options]


def read(dataset: str, split: str, *, levels: Sequence[str] = LEVELS, tfds_dir: str = "") -> list[Choice]:
  """Reads the questions of a split.

  Args:
    dataset: RACE's folder, a folder with files as those of DREAM or SWAG or with JSON lines, one such file, or a TFDS
      name such as race/high.
    split: the split's name, or a file.
    levels: the parts of RACE to read.
    tfds_dir: the folder of TFDS datasets; '' for TFDS' default.

  Raises:
    UserError: there is no such split, the file has none of these forms, or an answer is not among its options.
  """
  if (folder := _race_folder(dataset, split)) is not None:
    return _read_race(folder, levels)
  paths = tables.find(dataset, split)
  if paths is None:
    rows = tables.read(dataset, split, _RACE, optional=("answers",), tfds_dir=tfds_dir)
    group = str(dataset).rsplit("/", 1)[-1]
    return [choice for i, row in enumerate(rows.records()) for choice in _race(row, rows.where(i), group)]
  questions = [question for path in paths for question in _read_file(path)]
  chosen = [question for question in questions if question.group in ("", *levels)]
  if not chosen:
    what = f"no questions of data.levels={','.join(levels)}" if questions else "no rows"
    raise UserError(f"{splits.named(paths)} has {what}; expected one for each example of the split {split!r}")
  return chosen


def _read_file(path):
  if path.suffix.lower() in tables.TABLES:
    rows = tables.read_file(path, _SWAG, optional=("label",))
    return [choice for i, row in enumerate(rows.records()) for choice in _swag(row, rows.where(i))]
  return [choice for number, row in tables.read_values(path) for choice in _of_row(row, f"{path} line {number}")]


def find(dataset: str, split: str, levels: Sequence[str] = LEVELS) -> list[pathlib.Path] | None:
  """Lists the files of a split, see `read`; None where TFDS reads the dataset."""
  if (folder := _race_folder(dataset, split)) is not None:
    return _passages(folder, levels)
  return tables.find(dataset, split)


def _race_folder(dataset, split):
  """Returns the folder of a split of RACE; None for other data."""
  folder = pathlib.Path(dataset).expanduser()
  folder = folder / "RACE" if (folder / "RACE").is_dir() else folder
  for name, level in itertools.product(splits.names_of(split), LEVELS):
    if (folder / name / level).is_dir():
      return folder / name
  return None


def _passages(folder, levels):
  return [path for level in levels for path in sorted((folder / level).glob("*.txt"))]


def _read_race(folder, levels):
  """Returns the official folders: a file a passage, JSON with any suffix."""
  questions = []
  for level in levels:
    if level not in LEVELS:
      raise UserError(f"data.levels: {level!r} is unknown; RACE has {', '.join(LEVELS)}")
  for path in _passages(folder, levels):
    for number, row in tables.read_values(path):
      questions += _race(row, f"{path} line {number}", path.parent.name)
  if not questions:
    raise UserError(f"{folder} has no passages in {', '.join(levels)}; expected files such as {folder}/high/1.txt")
  return questions


def _of_row(row, where):
  """The questions of one JSON value: DREAM's list, or an object as in RACE or SWAG, or with a context and options."""
  if isinstance(row, list) and len(row) == 3 and isinstance(row[0], list) and isinstance(row[1], list):
    return _dream(row, where)
  if isinstance(row, dict):
    parsers = {_RACE: _race, _RACE_ROW: _race_row, _SWAG: _swag, ("context", "options"): _plain}
    for fields, parse in parsers.items():
      if all(field in row for field in fields):
        return parse(row, where)
  contents = ", ".join(row)[:200] if isinstance(row, dict) else strict_json.show(row, 40)
  raise UserError(
    f"{where}: expected an object with context, question, options and label, or one as in RACE, DREAM or SWAG; there "
    f"is {contents}"
  )


def _race(row, where, group=""):
  questions, options = (strict_json.expect(row[name], f"{where}: {name!r}", list) for name in _RACE[1:])
  answers = row.get("answers")
  answers = [None] * len(questions) if answers is None else strict_json.expect(answers, f"{where}: 'answers'", list)
  if not len(questions) == len(options) == len(answers):
    raise UserError(f"{where}: {len(questions)} questions, {len(options)} lists of options, {len(answers)} answers")
  return [
    _choice(where, row["article"], *parts, ("letter", "number", "text"), group, BLANK)
    for parts in zip(questions, options, answers, strict=True)
  ]


def _race_row(row, where):
  group = next((level for level in LEVELS if str(row.get("example_id")).startswith(level)), "")
  whole = {"article": row["article"], "questions": [row["question"]], "options": [row["options"]]}
  return _race(whole | {"answers": [row.get("answer")]}, where, group)


def _dream(row, where):
  turns, questions, _ = row
  turns = [strict_json.expect(turn, f"{where}: a turn of the dialogue", str) for turn in turns]
  questions = [strict_json.expect(question, f"{where}: a question", dict) for question in questions]
  return [
    _choice(
      where, "\n".join(turns), q.get("question", ""), q.get("choice"), q.get("answer"), ("text", "letter", "number")
    )
    for q in questions
  ]


def _swag(row, where):
  options = [row[name] for name in _SWAG[2:]]
  return [_choice(where, row["sent1"], row["sent2"], options, row.get("label"), ("number", "letter", "text"))]


def _plain(row, where):
  question = row.get("question") or ""
  return [_choice(where, row["context"], question, row["options"], row.get("label"), ("letter", "text", "number"))]


def _choice(where, context, question, options, answer, forms, group="", blank=LONE_BLANK):
  if not isinstance(options, list) or len(options) < 2 or not all(isinstance(text, str) for text in options):
    raise UserError(f"{where}: the options are {strict_json.show(options)}; expected a list of two texts or more")
  if not isinstance(context, str) or not isinstance(question, str):
    raise UserError(f"{where}: the context and the question should be texts")
  return Choice(context, question, tuple(options), _label(where, answer, options, forms), group, blank)


def _label(where, answer, options, forms):
  """Returns the number of the right option, or None if the file hides it.

  Args:
    answer: an option's number, its letter from A, or its text.
    forms: these three, in the order of precedence of the file's format: an option's text may be the letter of another.
  """
  if answer not in options and cells.is_hidden(answer):
    return None
  text = cells.label(answer, where)
  is_letter = re.fullmatch("[A-Z]", text) or (re.fullmatch("[a-z]", text) and answer not in options)
  readings = {
    "letter": ord(text.upper()) - ord("A") if is_letter else None,
    "number": int(text) if re.fullmatch("[0-9]{1,4}", text) else None,
    "text": options.index(answer) if answer in options else None,
  }
  for form in forms if isinstance(answer, str) else ("number",):
    number = readings[form]
    if number is not None and 0 <= number < len(options):
      return number
  raise UserError(
    f"{where}: the answer {strict_json.show(answer, 40)} is none of its {len(options)} options; expected an option's "
    "text, its number from 0, or its letter from A"
  )


def rows(
  choices: Sequence[Choice], vocabulary: Tokenizer, seq_length: int, qa_length: int, source: str = ""
) -> batching.Rows:
  """Encodes questions: [CLS] context [SEP] question and option [SEP] for each option (run_race.py).

  What is cut is counted. A question with fewer options than others is filled up with rows [CLS] [SEP].

  Args:
    choices: n questions.
    vocabulary: the tokenizer.
    seq_length: the longest row; a longer context loses its end.
    qa_length: the most tokens of question and option; more lose their beginning.
    source: where the questions are from, for messages.

  Returns:
    Rows with "label" int32 [n] (0 where there is none), "labelled" float32 [n] (1 where there is one) and "options"
    int32 [n], the number of options.
  """
  most = max((len(choice.options) for choice in choices), default=0)
  texts = list(dict.fromkeys(choice.context for choice in choices))  # Many questions share a context.
  contexts = dict(zip(texts, tables.encode_texts(vocabulary, texts), strict=True))
  endings = iter(tables.encode_texts(vocabulary, [text for choice in choices for text in choice.endings()]))
  # RACE takes a few hundred megabytes with small integers, instead of gigabytes.
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
      tokens["token_type_ids"].append(np.repeat(np.array([0, 1], np.int8), [sum(map(len, head)), len(ending) + 1]))
    for _ in range(most - len(choice.options)):
      tokens["input_ids"].append(np.concatenate([cls, sep]))
      tokens["token_type_ids"].append(np.zeros(2, np.int8))
  count = len(tokens["input_ids"])
  if cut_question:
    problem = f"of {count:,} options and their question exceed data.qa_length={qa_length} tokens and lost its start"
    splits.warn_count(source, cut_question, problem)
  if cut:
    problem = f"of {count:,} options and their context exceed data.seq_length={seq_length} tokens and lost its end"
    splits.warn_count(source, cut, problem)
  labels = [choice.label for choice in choices]
  fixed = {
    "label": np.array([label or 0 for label in labels], np.int32),
    "labelled": np.array([label is not None for label in labels], np.float32),
    "options": np.array([len(choice.options) for choice in choices], np.int32),
  }
  return batching.Rows(tokens, fixed, {"input_ids": vocabulary.pad_id}, group=max(most, 1))
