"""A trained model as a function: `albert_jax.pipeline("classify", DIR)(texts)`.

What a task makes of texts is in its own file under tasks/, all in one form: function(cfg, params, tokenizer, items,
**options) -> a dict for each item. Here they are found, given what the export says of itself, and fed.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax

from albert_jax import convert, onnx_runtime
from albert_jax.convert.load import find
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig


@dataclass(frozen=True)
class Purpose:
  """What a model can be for.

  home: where its function is, "module:name" in tasks/.
  item: what a user gives for one input -> what the function takes; None where it is something else.
  form: what that is, in words.
  pairs: whether it is always two texts.
  settings: the name of a dataclass beside the function, whose fields are options too.
  parts: which parts of the parameters it needs, in one way or another.
  """

  home: str
  item: Callable
  form: str
  parts: tuple[set, ...]
  pairs: bool = False
  settings: str = ""

  def function(self):
    module, name = self.home.split(":")
    return getattr(importlib.import_module(f"albert_jax.tasks.{module}"), name)

  def options(self) -> dict:
    """{option: its default}: the function's keyword arguments, and the fields of its settings."""
    function = self.function()
    found = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if self.settings:
      fields = dataclasses.fields(getattr(inspect.getmodule(function), self.settings))
      found |= {field.name: field.default for field in fields}
    return found


def _texts(value, *names):
  """The texts of a dict's fields, or of a tuple or list of as many; None where they are not."""
  if isinstance(value, dict):
    value = [value.get(name) for name in names]
  if not isinstance(value, list | tuple) or len(value) != len(names) or not all(isinstance(x, str) for x in value):
    return None
  return tuple(value)


def _text(value):
  return value if isinstance(value, str) else (_texts(value, "text") or (None,))[0]


def _text_or_pair(value):
  pair = isinstance(value, list | tuple) or (isinstance(value, dict) and value.get("pair") is not None)
  return _texts(value, "text", "pair") if pair else _text(value)


def _question(value):
  found = _texts(value, "question", "context")
  return found and {"question": found[0], "context": found[1]}


def _text_or_words(value):
  words = value.get("tokens") if isinstance(value, dict) else value
  is_words = isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words)
  return words if is_words else _text(value)


def _text_or_sentences(value):
  sentences = value.get("sentences") if isinstance(value, dict) else value
  return sentences if isinstance(sentences, list) and all(isinstance(x, str) for x in sentences) else _text(value)


def _choice(value):
  if not isinstance(value, dict) or not isinstance(value.get("options"), list):
    return None
  texts = [value.get("context"), value.get("question") or "", *value["options"]]
  return value if len(texts) > 3 and all(isinstance(text, str) for text in texts) else None


TASKS = {
  "fill-mask": Purpose("answers:fill_mask", _text, "a text with [MASK] in it", ({"mlm"},)),
  "classify": Purpose(
    "answers:classify", _text_or_pair, 'a text, or a pair: ("…", "…") or {"text": …, "pair": …}',
    ({"classifier", "pooler"},),
  ),
  "answer": Purpose(
    "squad_answers:answer", _question, '{"question": …, "context": …}, or the two as a pair', ({"span"}, {"squad_v2"}),
    pairs=True, settings="Search",
  ),
  "tag": Purpose("ner:tag", _text_or_words, 'a text, or {"tokens": [words]}', ({"classifier"},)),
  "choose": Purpose(
    "choice:choose", _choice, '{"context": …, "question": …, "options": [texts, two at least]}',
    ({"classifier", "pooler"},),
  ),
  "embed": Purpose("retrieve:embed", _text, "a text", (set(),)),
  "summarize": Purpose("summarize:summarize", _text_or_sentences, 'a text, or {"sentences": [texts]}', ({"sentence"},)),
}  # fmt: skip


class Pipeline:
  """A model made ready for a task; made by `pipeline`.

  Attributes: task: its name in TASKS. labels: list of names, maybe empty. options: what every call begins with.
  """

  def __init__(self, task: str, cfg: AlbertConfig, params: dict, tokenizer, options: dict):
    self.task, self.cfg, self.params, self.tokenizer = task, cfg, params, tokenizer
    self.labels = list(options.get("labels", ()))
    self.options = options
    self._function = TASKS[task].function()

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
