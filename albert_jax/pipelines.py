"""A trained model as a function: `albert_jax.pipeline("classify", DIR)(texts)`.

What a task makes of texts is the `Prediction` in its file under tasks/.
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
  """A model made ready for a task; made by `pipeline`.

  Attributes:
    task: its name in TASKS.
    cfg: the sizes of the model.
    params: the parameters, on the device; or an onnx_runtime.OnnxModel.
    tokenizer: the model's.
    labels: names, maybe none.
    options: the options that every call begins with.
  """

  def __init__(self, task: str, cfg: AlbertConfig, params: Any, tokenizer: Tokenizer, options: dict[str, Any]):
    self.task, self.cfg, self.params, self.tokenizer = task, cfg, params, tokenizer
    self.labels = list(options.get("labels", ()))
    self.options = options

  def __call__(self, inputs: Any, **options: Any) -> dict[str, Any] | list[dict[str, Any]]:
    """Answers inputs.

    Args:
      inputs: one input (a str, a dict or a tuple), or many (a list or any other iterable).
      options: options of the task, for this call.

    Returns:
      the answer to one input, or a list of them, in the order of the inputs.

    Raises:
      UserError: an input has another form (with its number from 1), or there is no such option.
    """
    is_single = isinstance(inputs, str | dict | tuple)
    items = [self.item(value, number) for number, value in enumerate([inputs] if is_single else inputs, 1)]
    results = self.run(items, **options)
    return results[0] if is_single else results

  def run(self, items: list, **options: Any) -> list[dict[str, Any]]:
    """Answers a list of what `item` returned; options as in a call."""
    _check_options(TASKS[self.task], options)
    function = TASKS[self.task].function
    return function(self.cfg, self.params, self.tokenizer, items, **self.options | options) if items else []

  @property
  def takes_pairs(self) -> bool:
    """Whether every input is two texts, as far as is known."""
    return TASKS[self.task].pairs or bool(self.options.get("pair"))

  def item(self, value: Any, number: int = 1) -> Any:
    """Reads one input.

    Args:
      value: what a user gave.
      number: which input it is, for the error.

    Returns:
      the form that the task's function takes.

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
  """Reads a checkpoint, and makes a function of inputs out of it.

  Compiled once for each of a few shapes, whatever the inputs are; they are sorted by length inside.

  Args:
    task: a name in TASKS, or None for what the export says it is for.
    path: a Hugging Face directory, such as RUN/export, or the workdir of a complete run.
    backend: jax, or onnx to run the ONNX file of a folder that `albert-jax export` wrote.
    dtype: bfloat16 or float32, what to compute in; '' for what the checkpoint says. With backend="onnx": float32 or
      int8, which file to run; '' for int8 where the folder has it.
    options: arguments of the task's function, such as top_k or batch_size.

  Returns:
    the pipeline.

  Raises:
    UserError: the checkpoint is for something else, there is no such task or option, or the labels are not as many as
      the outputs of the head.
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
    raise UserError(f"{path} does not say what it is for; give a task: {', '.join(able)}")
  if chosen not in able:
    labels = about.get("labels", ())
    shown = f" ({', '.join(labels[:8])}{', …' * (len(labels) > 8)})" if labels else ""
    what = f"is for {trained_for}{shown}, not for" if trained_for else "has no head for"
    raise UserError(f"{path} {what} {chosen}; it can {' or '.join(able)}")
  prediction = TASKS[chosen]
  _check_options(prediction, options)
  # What the export says of a task other than this one is not meant for it.
  about = about if trained_for in (chosen, None) else {}
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
  # A head is for what it was trained for, where that is known; masks and vectors need none of its kind.
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
