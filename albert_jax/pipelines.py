"""A trained model as a function: `albert_jax.pipeline("classify", DIR)(texts)`.

What a task makes of texts is the `Prediction` in its file under tasks/.
"""

import dataclasses
import inspect

import jax

from albert_jax import convert, onnx_runtime, tasks
from albert_jax.convert.load import find
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig

TASKS = tasks.predictions()


class Pipeline:
  """A model made ready for a task; made by `pipeline`.

  Attributes: task: its name in TASKS. labels: list of names, maybe empty. options: what every call begins with.
  """

  def __init__(self, task: str, cfg: AlbertConfig, params: dict, tokenizer, options: dict):
    self.task, self.cfg, self.params, self.tokenizer = task, cfg, params, tokenizer
    self.labels = list(options.get("labels", ()))
    self.options = options
    self._function = TASKS[task].function

  def __call__(self, inputs, **options):
    """The answers to one input (a str, a dict or a tuple), as a dict, or to many (a list or any other iterable), as a
    list of dicts in their order.

    Raises: UserError for an input of another form, with its number from 1, and for an option that there is not.
    """
    one = isinstance(inputs, str | dict | tuple)
    items = [self.item(value, number) for number, value in enumerate([inputs] if one else inputs, 1)]
    found = self.run(items, **options)
    return found[0] if one else found

  def run(self, items, **options) -> list[dict]:
    """The answers to a list of what `item` returned."""
    _check_options(TASKS[self.task], options)
    return self._function(self.cfg, self.params, self.tokenizer, items, **self.options | options) if items else []

  @property
  def takes_pairs(self) -> bool:
    """Whether every input is two texts, as far as is known."""
    return TASKS[self.task].pairs or bool(self.options.get("pair"))

  def item(self, value, number: int = 1):
    """One input in the form that the task's function takes. Raises: UserError where it is none."""
    found = TASKS[self.task].item(value)
    if found is None:
      raise UserError(f"input {number} is {value!r:.60}; {self.task} expects {TASKS[self.task].form}")
    return found


BACKENDS = ("jax", "onnx")


def pipeline(task: str | None, path, *, backend: str = "jax", dtype: str = "", **options) -> Pipeline:
  """Reads a checkpoint, and makes a function of inputs out of it.

  Compiled once for each of a few shapes, whatever the inputs are; they are sorted by length inside.

  Args:
    task: a name in TASKS, or None for what the export says it is for.
    path: a Hugging Face directory, such as RUN/export, or the workdir of a complete run.
    backend: jax, or onnx to run the ONNX file of a folder that `albert-jax export` wrote.
    dtype: bfloat16 or float32, what to compute in; '' for what the checkpoint says. With backend="onnx": float32 or
      int8, which file to run; '' for int8 where the folder has it.
    options: arguments of the task's function, such as top_k or batch_size.

  Raises: UserError for a checkpoint that is for something else, or a task or an option that there is not.
  """
  if task is not None and task not in TASKS:
    raise UserError(f"no task {task!r}; use one of {', '.join(TASKS)}")
  if backend not in BACKENDS:
    raise UserError(f"no backend {backend!r}; use one of {', '.join(BACKENDS)}")
  cfg, params = convert.load(path)
  said = convert.about(path)
  name = said.get("name")
  able = able_tasks(params, name)
  heads = [x for x in able if x != "embed"]
  wanted = task or name or (heads[0] if len(heads) == 1 else None)
  if wanted not in TASKS:
    raise UserError(f"{path} does not say what it is for; give a task: {', '.join(able)}")
  if wanted not in able:
    labels = said.get("labels", ())
    shown = f" ({', '.join(labels[:8])}{', …' * (len(labels) > 8)})" if labels else ""
    what = f"is for {name}{shown}, not for" if name else "has no head for"
    raise UserError(f"{path} {what} {wanted}; it can {' or '.join(able)}")
  purpose = TASKS[wanted]
  _check_options(purpose, options)
  # What the export says of a task other than this one is not meant for it.
  said = said if name in (wanted, None) else {}
  defaults, positions = purpose.options(), cfg.max_position_embeddings
  options = {key: value for key, value in said.items() if key in defaults} | options
  if "seq_length" in defaults:
    options["seq_length"] = min(options.get("seq_length") or defaults["seq_length"] or positions, positions)
  if defaults.get("labels") is inspect.Parameter.empty and "labels" not in options:
    options["labels"] = [f"LABEL_{i}" for i in range(len(params["classifier"]["bias"]))]
  if backend == "onnx":
    params = onnx_runtime.OnnxModel(onnx_runtime.path_in(find(path)[1], dtype), cfg, wanted, params)
  else:
    cfg, params = dataclasses.replace(cfg, dtype=dtype) if dtype else cfg, jax.device_put(params)
  return Pipeline(wanted, cfg, params, convert.load_tokenizer(path), options)


def able_tasks(params: dict, name: str | None) -> list[str]:
  """The tasks of TASKS that a checkpoint can do.

  Args: params: its parameters. name: the task it was trained for, "name" of convert.about, or None if not known.
  """
  able = [task for task, purpose in TASKS.items() if any(parts <= params.keys() for parts in purpose.parts)]
  # A head is for what it was trained for, where that is known; masks and vectors need none of its kind.
  return [task for task in able if name is None or task in (name, "fill-mask", "embed")]


def by_halves(function: Callable[[list], list], items: list) -> list:
  """Runs items together, and if that fails by halves, so that one bad item does not fail the others.

  Args: function: items -> as many results; it may raise UserError.
  Returns: for each item its result, or the UserError that it raises alone.
  """
  try:
    return function(items)
  except UserError as error:
    if len(items) == 1:
      return [error]
    half = len(items) // 2
    return [*by_halves(function, items[:half]), *by_halves(function, items[half:])]


def _check_options(purpose, given):
  if unknown := sorted(given.keys() - purpose.options().keys()):
    raise UserError(f"there is no option {unknown[0]!r}; there are {', '.join(purpose.options())}")
