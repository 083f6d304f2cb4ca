"""The texts that int8 is calibrated and measured on: read, run through a graph, and scored against float32."""

import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from albert_jax import onnx_runtime
from albert_jax.data.finetuning import cells, splits, tables
from albert_jax.data.speech import units
from albert_jax.data.speech.symbols import Symbols
from albert_jax.errors import UserError
from albert_jax.tasks import classify, metrics

LABEL = "label"  # The default column of labels; a table without it is measured against float32.
LEAST_HELD_OUT = 50
MOST_UNKNOWN = 0.2  # of the symbols in a file of phonemes
BATCH = 32


@dataclass(frozen=True)
class Sample:
  """Texts as ids.

  Attributes:
    rows: (input_ids, token_type_ids) of each text.
    gold: the label of each row, as a number; None without labels.
  """

  rows: list
  gold: np.ndarray | None


def read(
  path: str | pathlib.Path, vocabulary: Any, about: dict, *, fields: str = "text", label: str = LABEL, longest: int
) -> Sample:
  """Reads texts like those that the model will see.

  Args:
    path: a .txt file with a text a line, or a table or JSON lines with the columns `fields` and, optionally, `label`;
      for a model of phonemes, see `read_phonemes`.
    vocabulary: the model's Tokenizer, or its Symbols if it reads phonemes.
    about: the task of the checkpoint, see `convert.about`; labels are read if it lists "labels" of a classifier.
    fields: the column of the text, or two with a comma between for pairs.
    label: the column of the label.
    longest: tokens of the longest row.

  Raises:
    UserError: there are too few rows, or the model does not have a label.
  """
  if isinstance(vocabulary, Symbols):
    if fields != "text":
      raise UserError(f"--fields={fields} names columns of texts, and this model reads phonemes; leave --fields out")
    return Sample(read_phonemes(path, vocabulary, longest), None)
  names = [name.strip() for name in fields.split(",") if name.strip()]
  if len(names) not in (1, 2):
    raise UserError(f"--fields={fields} must name one column, or two with a comma between")
  labels, gold = about.get("labels", ()), None
  if str(path).endswith(".txt"):
    if label != LABEL:
      raise UserError(f"--label={label} names a column, and {path} has a text a line; leave --label out")
    columns = [[line.strip() for line in splits.read_text(path).split("\n") if line.strip()]]
  else:
    table = _read_table(path, names, label)
    columns = [tables.texts(table, name) for name in names]
    values = table.columns[label]
    if about.get("name") == "classify" and not any(map(cells.is_missing, values)):
      gold = _gold(table, values, labels, about.get("kind", "classification"))
  check_count(path, len(columns[0]))
  tokens = tables.encode(vocabulary, columns[0], columns[1] if len(columns) == 2 else None, longest, str(path))
  return Sample(list(zip(tokens["input_ids"], tokens["token_type_ids"], strict=True)), gold)


def _read_table(path, names, label):
  try:
    if label == LABEL:
      return tables.read_file(path, names, optional=[label])
    return tables.read_file(path, [*names, label])
  except tables.NoColumn as error:
    raise UserError(f"{error}; choose with --fields=A[,B] and --label=COLUMN") from None


def read_phonemes(path: str | pathlib.Path, symbols: Symbols, longest: int) -> list:
  """Reads texts of phonemes.

  Args:
    path: a .txt file with the phonemes of a text a line, or JSON lines as `albert-jax phonemes --phonemised` takes.
    symbols: the model's symbol table.
    longest: symbols of the longest row; longer texts are cut.

  Returns:
    list of (input_ids, token_type_ids).

  Raises:
    UserError: there are too few rows, a line has no phonemes, or too many characters are outside the table.
  """
  lines = [line.strip() for line in splits.read_text(path).split("\n") if line.strip()]
  if not str(path).endswith(".txt"):
    lines = [" ".join(units.read_record(line, str(path))["phonemes"]) for line in lines]
  lines = [line for line in lines if line]
  check_count(path, len(lines))
  ids = symbols.encode("".join(lines))
  if (share := float(np.mean(ids == symbols.unk_id))) > MOST_UNKNOWN:
    raise UserError(
      f"{path}: {share:.0%} of the characters are not in the model's symbol table; expected phonemes, such as "
      "'həlˈoʊ wˈɜːld'"
    )
  return [(row, [0] * len(row)) for row in (symbols.encode(line)[:longest].tolist() for line in lines)]


def check_count(path: str | pathlib.Path, count: int) -> None:
  """Refuses a file with too few texts to calibrate and to measure on."""
  if count < LEAST_HELD_OUT + 10:
    raise UserError(
      f"{path} has {count} texts; calibration and its check need {LEAST_HELD_OUT + 10} at least, better 1,000"
    )


def _gold(table, values, labels, kind):
  if kind == "multilabel":
    return None
  if kind == "regression":
    return np.array(
      [cells.number(value, table.where(row), "one a row, as the model predicts") for row, value in enumerate(values)]
    )
  numbers = {str(i): i for i in range(len(labels))} | {cells.label(name, "labels"): i for i, name in enumerate(labels)}
  names = [cells.label(value, table.where(row)) for row, value in enumerate(values)]
  for row, name in enumerate(names):
    if name not in numbers:
      raise UserError(f"{table.where(row)} has the label {name!r}; the model has {', '.join(map(str, labels[:20]))}")
  return np.array([numbers[name] for name in names])


def batch_of(rows: list) -> dict[str, np.ndarray]:
  """Pads (input_ids, token_type_ids) to the longest: the inputs of a graph, int64 arrays [rows, L]."""
  width = max(len(ids) for ids, _ in rows)
  made = {name: np.zeros((len(rows), width), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
  for i, (ids, types) in enumerate(rows):
    made["input_ids"][i, : len(ids)], made["token_type_ids"][i, : len(ids)] = ids, types
    made["attention_mask"][i, : len(ids)] = 1
  return made | {"allowed": made["attention_mask"]}


def outputs(session: Any, rows: list) -> list[dict]:
  """Runs a graph; returns the outputs of each row, those by position cut to its length."""
  order = np.argsort([len(ids) for ids, _ in rows], kind="stable")
  results: list[dict] = [{}] * len(rows)
  for start in range(0, len(order), BATCH):
    index = order[start : start + BATCH]
    batch = batch_of([rows[i] for i in index])
    out = onnx_runtime.run(session, batch)
    width = batch["input_ids"].shape[1]
    for k, i in enumerate(index):
      results[i] = {
        name: value[k, : len(rows[i][0])] if value.ndim > 1 and value.shape[1] == width else value[k]
        for name, value in out.items()
      }
  return results


def score(
  task: str, kind: str, rows: list, gold: Any, results: list[dict], reference: list[dict]
) -> tuple[str, float, float]:
  """Scores answers: (metric, percent for float32, percent for int8).

  Args:
    task: a pipeline's task, or ''.
    kind: of a classifier, see tasks.classify.KINDS.
    gold: the labels; None to take the answers of float32 as the labels.
    results, reference: outputs of int8 and of float32, a dict a row.
  """
  if task == "classify" and gold is not None:
    name = "pearson" if kind == "regression" else "accuracy"
    float_score, int8_score = (
      classify.measure(kind, np.stack([x["logits"] for x in out]), gold)[name] for out in (reference, results)
    )
    return name, 100 * float_score, 100 * int8_score
  if task == "classify" and kind == "regression":  # The cosine of single numbers would say nothing but their sign.
    numbers = ([float(x["logits"][0]) for x in out] for out in (reference, results))
    return "correlation with float32's", 100.0, 100 * metrics.pearson(*numbers)
  if task == "classify" and kind == "multilabel":
    equal = [bool(np.all((a["logits"] > 0) == (b["logits"] > 0))) for a, b in zip(results, reference, strict=True)]
    return "answers equal to float32's", 100.0, 100 * float(np.mean(equal))
  if task in ("classify", "tag", "fill-mask"):
    same = [
      np.atleast_1d(a["logits"].argmax(-1) == b["logits"].argmax(-1)) for a, b in zip(results, reference, strict=True)
    ]
    return "answers equal to float32's", 100.0, 100 * float(np.mean(np.concatenate(same)))
  if task == "answer":
    names = ("start_index", "end_index") if "start_index" in reference[0] else ("start_logits", "end_logits")
    best = (lambda x: x.ravel()[0]) if names[0] == "start_index" else np.argmax
    equal = [all(best(a[name]) == best(b[name]) for name in names) for a, b in zip(results, reference, strict=True)]
    return "answers equal to float32's", 100.0, 100 * float(np.mean(equal))
  name = next(name for name in ("sentence_embedding", "sentence_logits", "logits", "last_hidden_state")
              if name in reference[0])  # fmt: skip
  cosines = []
  for pair in zip(results, reference, strict=True):
    x, y = (np.atleast_2d(outputs[name]).astype(np.float64) for outputs in pair)
    cosines.append(np.sum(x * y, axis=-1) / np.maximum(np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1), 1e-12))
  return f"cosine of {name} with float32's", 100.0, 100 * float(np.mean(np.concatenate(cosines)))
