"""Files of labelled examples on which `export --quantize=int8` measures the metric of `tag`, `answer` and `choose`."""

import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from albert_jax import onnx_runtime, tasks
from albert_jax.data.finetuning import choices, splits, squad, tables, tagged
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.tasks.ner import entities
from albert_jax.tasks.squad import score as squad_score
from albert_jax.types import Params


@dataclass(frozen=True)
class Labelled:
  """Inputs of a task with the right answers.

  Attributes:
    metric: the name of the metric.
    items: the inputs of the pipeline.
    percent: (indices of items, the pipeline's results for them) -> the metric, from 0 to 100.
  """

  metric: str
  items: list
  percent: Callable[[Sequence[int], list[dict]], float]


def read(path: str | pathlib.Path, task: str) -> Labelled | None:
  """Reads tagged sentences for `tag`, questions with answers for `answer`, or questions with options for `choose`.

  Args:
    path: the file; `tagged.read`, `squad.read_file` and `choices.read` describe the formats.
    task: the pipeline's task.

  Returns:
    The inputs and labels; None if the file has another form, such as a text a line.

  Raises:
    UserError: the file has the form, but is damaged or hides the answers; or it has another form, for `choose`.
  """
  path = pathlib.Path(path).expanduser()
  if task == "tag" and _is_tagged(path):
    sentences = tagged.read([path])
    assert sentences.tags is not None  # `read` hides tags only with may_hide.
    return Labelled("F1", sentences.words, lambda index, results: _entity_f1(sentences, index, results))
  if task == "answer" and _is_squad(path):
    questions = squad.read_file(path)
    if squad.is_hidden(questions):
      raise _hidden(path)
    items = [{"question": question.question, "context": question.context} for question in questions]
    return Labelled("F1", items, lambda index, results: _answer_f1(questions, index, results))
  if task == "choose":
    return _read_choices(path)
  return None


def _hidden(path):
  return UserError(f"{path} hides the answers, so it cannot measure a loss; give a split with answers")


def _read_choices(path):
  if not path.is_file():
    raise UserError(
      f"no file {str(path)!r}; give one with questions, options and answers, as a split of RACE, DREAM, SWAG"
    )
  questions = choices.read(str(path), "train")
  if any(question.label is None for question in questions):
    raise _hidden(path)
  items = [{"context": q.context, "question": q.question, "options": list(q.options)} for q in questions]
  labels = np.array([question.label for question in questions])

  def accuracy(index, results):
    return 100 * float(np.mean(labels[index] == [result["choice"] for result in results]))

  return Labelled("accuracy", items, accuracy)


def _is_tagged(path):
  if path.suffix.lower() in (".conll", ".conllu", ".bio", ".iob", ".iob2", ".bioes"):
    return True
  if path.suffix.lower() not in (".jsonl", ".ndjson"):
    return False
  first = next((line for line in splits.read_text(path).split("\n") if line.strip()), "")
  try:
    row = json.loads(first)
  except ValueError:
    return False  # The reader of tables says what is wrong.
  return isinstance(row, dict) and {"tokens", "tags"} <= row.keys()


def _is_squad(path):
  suffix = path.suffix.lower()
  if suffix in tables.TABLES:
    return False
  if suffix == ".json" and splits.read_text(path).lstrip().startswith("{"):
    return True
  try:
    rows = tables.read_file(path, squad.REQUIRED, optional=["answers"])
  except tables.NoColumn:
    return False
  return any(value is not None for value in rows.columns["answers"])


def _entity_f1(sentences, index, results):
  right = proposed = existing = 0
  for i, result in zip(index, results, strict=True):
    starts = np.cumsum([0, *(len(word) + 1 for word in sentences.words[i])])
    gold = {(kind, starts[first], starts[after] - 1) for kind, first, after in entities.entities(sentences.tags[i])}
    predicted = {(part["type"], part["start"], part["end"]) for part in result["entities"]}
    right, proposed, existing = right + len(gold & predicted), proposed + len(predicted), existing + len(gold)
  return 200 * right / max(proposed + existing, 1)


def _answer_f1(questions, index, results):
  chosen = [questions[i] for i in index]
  predictions = {question.id: result["answer"] for question, result in zip(chosen, results, strict=True)}
  return squad_score.score(chosen, predictions, squad_score.rules_of(chosen))["f1"]


class Recorded(onnx_runtime.OnnxModel):
  """An OnnxModel that keeps the rows that it computes.

  Attributes:
    rows: (input_ids, token_type_ids) of each row, without padding.
  """

  def __init__(self, *args: Any):
    super().__init__(*args)
    self.rows: list[tuple[list[int], list[int]]] = []

  def __call__(self, function: Any, batch: dict) -> dict:
    """See `OnnxModel`."""
    batch.setdefault("token_type_ids", np.zeros_like(batch["input_ids"]))
    inputs = (
      batch[name].reshape(-1, batch[name].shape[-1]) for name in ("input_ids", "token_type_ids", "attention_mask")
    )
    for ids, types, mask in zip(*inputs, strict=True):
      if mask.any():
        self.rows.append((ids[mask > 0].tolist(), types[mask > 0].tolist()))
    return super().__call__(function, batch)


def answers(
  graph: Any, cfg: AlbertConfig, params: Params, vocabulary: Tokenizer, about: dict, task: str, items: list
) -> tuple[list[dict], list]:
  """Runs a task's pipeline on an ONNX graph.

  Args:
    graph: a ModelProto.
    cfg: the sizes of the model.
    params: the parameters; only the names of the parts are used.
    vocabulary: the model's.
    about: the task of the checkpoint, see `convert.about`.
    task: the pipeline's task.
    items: its inputs.

  Returns:
    (a result for each item, the rows that the graph computed, as `calibration.Sample` has them).
  """
  model, prediction = Recorded(graph, cfg, task, params), tasks.predictions()[task]
  options = {name: value for name, value in about.items() if name in prediction.options()}
  if task == "tag":
    options.setdefault("labels", [f"LABEL_{i}" for i in range(len(params["classifier"]["bias"]))])
  return prediction.function(cfg, model, vocabulary, items, **options), model.rows
