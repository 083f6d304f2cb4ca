"""The models of a server: their tasks, the limits of their inputs, and compilation ahead of requests."""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from albert_jax import convert, pipelines
from albert_jax.data.finetuning import batching
from albert_jax.errors import UserError
from albert_jax.serve import schemas
from albert_jax.tasks import heads

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CUT = ("classify", "embed", "choose")  # tasks whose function truncates long inputs; the others read windows or refuse
MAX_TOP_K = {"fill-mask": schemas.TOP_K, "answer": schemas.TOP_K}


class Served:
  """One checkpoint, with a pipeline for each of its tasks.

  Attributes:
    name: the model's name in requests.
    tasks: {task: Pipeline}.
    parameters: the number of parameters.
  """

  def __init__(self, name: str, path: str | os.PathLike, *, batch_size: int, backend: str = "jax", dtype: str = ""):
    """

    Args:
      name: a NAME.
      path, backend, dtype: as for albert_jax.pipeline.
      batch_size: the most rows run together.

    Raises:
      UserError: the checkpoint cannot be read, or has no task.
    """
    self.name = name
    purpose = convert.about(path).get("name")
    trained = purpose if purpose in pipelines.TASKS and purpose != "fill-mask" else None
    if trained not in (None, *schemas.ITEMS):
      raise UserError(f"{path} is for {trained}, which the server has no path for; it has {', '.join(schemas.ITEMS)}")
    params = convert.load(path)[1]
    tasks = [trained] if trained else pipelines.able_tasks(params, purpose)
    if trained is None and len(heads := [task for task in tasks if task not in ("fill-mask", "embed")]) > 1:
      raise UserError(f"{path} does not say what it is for ({', '.join(heads)}); serve an export of albert-jax train")
    self.tasks = {}
    for task in tasks:
      options = {"top_k": MAX_TOP_K[task]} if task in MAX_TOP_K else {}
      self.tasks[task] = pipelines.pipeline(task, path, backend=backend, dtype=dtype, batch_size=batch_size, **options)
    first = next(iter(self.tasks.values()))
    self.compiles = backend == "jax"
    if self.compiles:
      for pipe in self.tasks.values():
        pipe.params = first.params  # One copy on the device.
    self.cfg, self.tokenizer = first.cfg, first.tokenizer
    self.parameters = sum(int(np.size(leaf)) for leaf in _leaves(params))

  @property
  def labels(self) -> list[str]:
    return next((pipe.labels for pipe in self.tasks.values() if pipe.labels), [])

  def longest(self, task: str) -> int:
    """Returns the largest number of tokens in a row, special tokens included."""
    pipe = self.tasks[task]
    return min(pipe.options.get("seq_length") or self.cfg.max_position_embeddings, self.cfg.max_position_embeddings)

  def read(self, task: str, item: Any, truncate: bool) -> tuple[object, int]:
    """Checks one input of a request.

    Args:
      task: the task of the route.
      item: the input, as plain JSON values.
      truncate: whether a long input is cut.

    Returns:
      (the pipeline's item, its number of tokens without special tokens, and without those that are cut).

    Raises:
      UserError: the item has a wrong form, or does not fit.
      TooLong: the item is longer than the model allows.
    """
    pipe = self.tasks[task]
    value = pipe.item(item)
    if task == "classify" and pipe.options.get("pair") not in (None, isinstance(value, tuple)):
      expected = '{"text": …, "pair": …}' if pipe.takes_pairs else "single texts"
      raise UserError(f"the model {self.name!r} is for {'pairs of texts' if pipe.takes_pairs else 'single texts'}; "
                      f"send {expected}")  # fmt: skip
    parts = _texts(task, value)
    sizes = [len(self.tokenizer.encode(text, specials=task == "fill-mask")) for text in parts]
    if task == "fill-mask":
      masks = value.count("[MASK]")
      if masks > schemas.MASKS:
        raise UserError(f"a text has {masks} [MASK]; the most is {schemas.MASKS}")
    room = self.longest(task)
    if task == "choose":
      row, question_size = sizes[0] + max(sizes[1:]) + 3, max(sizes[1:])
      if question_size > pipe.options.get("qa_length", 128) and not truncate:
        raise TooLong(f"a question with its option has {question_size} tokens; the model {self.name!r} takes "
                      f"{pipe.options.get('qa_length', 128)}; shorten it, or send \"truncate\": true")  # fmt: skip
    else:
      row = sum(sizes) + (3 if len(sizes) == 2 else 2)
    if row > room and (task == "fill-mask" or (task in CUT and not truncate)):
      advice = "shorten it" if task == "fill-mask" else 'shorten it, or send "truncate": true'
      raise TooLong(f"an input has {row} tokens; the model {self.name!r} takes {room}; {advice}")
    if truncate and task in CUT and task != "choose":
      return value, min(sum(sizes), room - (row - sum(sizes)))
    return value, sum(sizes)

  def describe(self) -> dict:
    """Returns the entry of GET /v1/models."""
    options = {task: pipe.options for task, pipe in self.tasks.items()}
    classify = options.get("classify", {})
    return {
      "id": self.name, "object": "model", "created": 0, "owned_by": "albert-jax", "tasks": list(self.tasks),
      "labels": self.labels, "kind": classify.get("kind", "classification") if classify else None,
      "pairs": classify.get("pair") if classify else None,
      "max_tokens": max(self.longest(task) for task in self.tasks), "parameters": self.parameters,
    }  # fmt: skip

  def warm_up(self, batch_size: int) -> Iterator[Callable[[], object]]:
    """Yields functions, each of which compiles one batch shape of ordinary requests."""
    limits, positions = heads.batch_limits(), self.cfg.max_position_embeddings
    word = self._word()
    for task, pipe in self.tasks.items():
      longest = self.longest(task)
      if not self.compiles:
        yield functools.partial(pipe.run, [_item(task, pipe, word, 8)])
        continue
      lengths = [length for length in limits["lengths"] if length < longest] + [longest]
      for length in lengths:
        padded = batching.padded_length(length, limits["lengths"], positions)
        item = _item(task, pipe, word, length)
        group = 2 if task == "choose" else 1
        for size in batching.SIZES:
          if size == 1 or (size <= batch_size and size * group * padded <= limits["tokens"]):
            yield functools.partial(pipe.run, [item] * size)

  def _word(self):
    """Returns a word that is one piece at every position of a text."""
    for i in self.tokenizer.ordinary_ids:
      word = self.tokenizer.decode([int(i)]).strip()
      if word.isalpha() and len(self.tokenizer.encode(" ".join([word] * 3))) == 3:
        return word
    return "a"


class TooLong(UserError):
  """An input is longer than the model's positions."""


def _leaves(tree):
  for value in tree.values():
    if isinstance(value, dict):
      yield from _leaves(value)
    else:
      yield value


def _texts(task, value):
  """Returns the texts of an item; for `choose`, the context, then the question with each option."""
  if task == "choose":
    return [value["context"], *(f"{value.get('question') or ''} {option}" for option in value["options"])]
  if isinstance(value, str):
    return [value]
  return list(value.values()) if isinstance(value, dict) else list(value)


def _item(task, pipe, word, length):
  """Returns an item whose row has `length` tokens, or a few less."""
  words = [word] * max(length - 4, 1)
  text = " ".join(words)
  if task == "fill-mask":
    return f"[MASK] {' '.join(words[1:])}"
  if task == "classify" and pipe.takes_pairs:
    return (word, " ".join(words[1:]) or word)
  if task == "answer":
    return {"question": word, "context": text}
  if task == "choose":
    return {"context": text, "options": [word, word]}
  return text


def parse(checkpoints: list[str]) -> dict[str, str]:
  """Returns {name: path} of the values of `--checkpoint`, in their order.

  Args:
    checkpoints: "DIR", whose name is that of its folder (for RUN/export, of the run), or "NAME=DIR".

  Raises:
    UserError: a name is used twice, or has characters other than letters, digits, `.`, `_` and `-`.
  """
  result = {}
  for value in checkpoints:
    name, equals, path = value.partition("=")
    if not (equals and NAME.fullmatch(name)):
      path = value
      parts = [part for part in pathlib.PurePath(value).parts if part not in ("/", ".", "..")]
      parts = parts[:-1] if len(parts) > 1 and parts[-1] == "export" else parts
      name = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1] if parts else "model").lstrip("._-") or "model"
    if name in result:
      raise UserError(f"two checkpoints are named {name!r}; name one: --checkpoint=NAME={path}")
    result[name] = path
  return result
