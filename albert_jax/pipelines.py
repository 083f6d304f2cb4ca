"""Trained models as functions: `albert_jax.pipeline("classify", DIR)(texts)`.

The predictions of a task are defined by the `Prediction` in its file under tasks/.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from albert_jax import convert, onnx_runtime, tasks
from albert_jax.convert.load import find
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.types import Params

TASKS = tasks.predictions()
BACKENDS = ("jax", "onnx")


class Pipeline:
  """A model that is ready to answer inputs of a task; made by `pipeline`.

  Attributes:
    task: its name in TASKS.
    cfg: the sizes of the model.
    params: the parameters, on the device; or an onnx_runtime.OnnxModel.
    tokenizer: the model's.
    labels: names of the outputs; may be empty.
    options: the default options of all calls.
  """

  def __init__(self, task: str, cfg: AlbertConfig, params: Any, tokenizer: Tokenizer, options: dict[str, Any]):
    self.task, self.cfg, self.params, self.tokenizer = task, cfg, params, tokenizer
    self.labels = list(options.get("labels", ()))
    self.options = options

  def __call__(self, inputs: Any, **options: Any) -> dict[str, Any] | list[dict[str, Any]]:
    """Runs the model on inputs.

    Args:
      inputs: one input (a str, a dict or a tuple), or many (a list or any other iterable).
      options: options of the task, for this call.

    Returns:
      The answer to one input, or a list of answers in the order of the inputs.

    Raises:
      UserError: an input has another form (the message has its number, from 1), or there is no such option.
    """
    is_single = isinstance(inputs, str | dict | tuple)
    items = [self.item(value, number) for number, value in enumerate([inputs] if is_single else inputs, 1)]
    results = self.run(items, **options)
    return results[0] if is_single else results

  def run(self, items: list, **options: Any) -> list[dict[str, Any]]:
    """Runs the model on items that `item` returned; options as in a call."""
    _check_options(TASKS[self.task], options)
    function = TASKS[self.task].function
    return function(self.cfg, self.params, self.tokenizer, items, **self.options | options) if items else []

  @property
  def takes_pairs(self) -> bool:
    """Whether every input is known to be a pair of texts."""
    return TASKS[self.task].pairs or bool(self.options.get("pair"))

  def item(self, value: Any, number: int = 1) -> Any:
    """Reads one input.

    Args:
      value: the user's input.
      number: its number, for the error.

    Returns:
      The argument for the task's function.

    Raises:
      UserError: the value has another form, or holds half a surrogate pair, which is no character.
    """
    item = TASKS[self.task].item(value)
    if item is None:
      raise UserError(f"input {number} is {value!r:.60}; {self.task} expects {TASKS[self.task].form}")
    for text in _texts(item):
      if not text.isascii():
        try:
          text.encode()
        except UnicodeEncodeError as error:
          half = f"\\u{ord(text[error.start]):04x}"
          raise UserError(f"input {number} holds half a surrogate pair ({half}); expected text") from None
    return item


def _texts(item: Any) -> Iterator[str]:
  """Yields the texts inside an input."""
  if isinstance(item, str):
    yield item
  elif isinstance(item, dict | list | tuple):
    for part in item.values() if isinstance(item, dict) else item:
      yield from _texts(part)


def pipeline(
  task: str | None, path: str | os.PathLike, *, backend: str = "jax", dtype: str = "", **options: Any
) -> Pipeline:
  """Loads a checkpoint as a function of inputs.

  The function sorts inputs by length and compiles one program for each of a few shapes.

  Args:
    task: a name in TASKS, or None for the task in the checkpoint's config.
    path: a Hugging Face directory, such as RUN/export, or the workdir of a complete run.
    backend: jax, or onnx to run the ONNX file of a folder that `albert-jax export` wrote.
    dtype: bfloat16 or float32, the dtype of the computation; '' for that of the checkpoint. With backend="onnx":
      float32 or int8, the file to run; '' for int8 if the folder has it.
    options: arguments of the task's function, such as top_k or batch_size.

  Returns:
    The pipeline.

  Raises:
    UserError: the checkpoint is for another task, there is no such task or option, or the number of labels differs from
      the number of outputs.
  """
  if task is not None and task not in TASKS:
    raise UserError(f"no task {task!r}; use one of {', '.join(TASKS)}")
  if backend not in BACKENDS:
    raise UserError(f"no backend {backend!r}; use one of {', '.join(BACKENDS)}")
  cfg, params = convert.load(path)
  about = convert.about(path)
  trained_for = about.get("name")
  able = able_tasks(params, trained_for)
  heads = [name for name in able if name != "embed"]
  chosen = task or trained_for or (heads[0] if len(heads) == 1 else None)
  if chosen not in TASKS:
    what = f"is for {trained_for!r}, which is unknown here" if trained_for else "does not name its task"
    raise UserError(f"{path} {what}; give a task: {', '.join(able)}")
  if chosen not in able:
    labels = about.get("labels", ())
    shown = f" ({', '.join(labels[:8])}{', …' * (len(labels) > 8)})" if labels else ""
    what = f"is for {trained_for}{shown}, not for" if trained_for else "has no head for"
    raise UserError(f"{path} {what} {chosen}; it can {' or '.join(able)}")
  prediction = TASKS[chosen]
  _check_options(prediction, options)
  # The options in the export apply to its own task only, but all tasks share one pooling.
  about = about if trained_for in (chosen, None) else {key: about[key] for key in about.keys() & {"pooling"}}
  defaults, positions = prediction.options(), cfg.max_position_embeddings
  options = {key: value for key, value in about.items() if key in defaults} | options
  if "seq_length" in defaults:
    options["seq_length"] = min(options.get("seq_length") or defaults["seq_length"] or positions, positions)
  if "labels" in defaults:
    outputs = len(params["classifier"]["bias"])
    if defaults["labels"] is inspect.Parameter.empty:
      options.setdefault("labels", [f"LABEL_{i}" for i in range(outputs)])
    if options.get("labels") and len(options["labels"]) != outputs:
      raise UserError(
        f"{path} has {len(options['labels'])} labels ({', '.join(map(str, options['labels'][:8]))}) for a head of "
        f"{outputs} outputs; each output needs one, in id2label of its config.json or the option labels"
      )
    if twice := [label for label in options.get("labels") or () if list(options["labels"]).count(label) > 1]:
      raise UserError(f"{path} names two outputs {twice[0]!r}; give each output another name with the option labels")
  if backend == "onnx":
    weights = onnx_runtime.OnnxModel(onnx_runtime.path_in(find(path)[1], dtype), cfg, chosen, params)
  else:
    cfg, weights = dataclasses.replace(cfg, dtype=dtype) if dtype else cfg, jax.device_put(params)
  return Pipeline(chosen, cfg, weights, convert.load_tokenizer(path), options)


def able_tasks(params: Params, name: str | None) -> list[str]:
  """Lists the tasks of TASKS that a checkpoint can do.

  Args:
    params: its parameters.
    name: the task it was trained for, "name" of convert.about; None if not known.

  Returns:
    names in TASKS.
  """
  able = [task for task, prediction in TASKS.items() if any(parts <= params.keys() for parts in prediction.parts)]
  # If the task of a head is known, the head serves no other task. Masks and embeddings need no task head.
  return [task for task in able if name is None or task in (name, "fill-mask", "embed")]


def by_halves(function: Callable[[list], list], items: list) -> list:
  """Runs items in one call and, if it fails, by halves, so that one bad item does not fail the others.

  Args:
    function: items -> as many results; it may raise UserError.
    items: its argument.

  Returns:
    for each item its result, or the UserError that it raises alone.
  """
  try:
    return function(items)
  except UserError as error:
    if len(items) == 1:
      return [error]
    half = len(items) // 2
    return [*by_halves(function, items[:half]), *by_halves(function, items[half:])]


def _check_options(prediction, options):
  if unknown := sorted(options.keys() - prediction.options().keys()):
    raise UserError(f"there is no option {unknown[0]!r}; there are {', '.join(prediction.options())}")
