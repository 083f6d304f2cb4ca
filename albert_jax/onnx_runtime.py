"""Runs an exported ONNX file with ONNX Runtime, in place of the JAX model of a pipeline."""

import functools
import json
import os
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from albert_jax.errors import UserError, message_lines
from albert_jax.model import AlbertConfig

FILES = {"float32": "onnx/model.onnx", "int8": "onnx/model_int8.onnx"}


def require() -> Any:
  """Imports onnxruntime, or raises a UserError that names the extra."""
  try:
    import onnxruntime
  except ImportError:
    raise UserError(
      "running ONNX files needs the onnxruntime package; install it with: pip install 'albert-jax[onnx]'"
    ) from None
  return onnxruntime


def session(source: Any) -> Any:
  """Returns an InferenceSession of a file's path or of a ModelProto.

  Raises:
    UserError: the file is missing or damaged, or needs a newer ONNX Runtime.
  """
  ort = require()
  if isinstance(source, str | pathlib.Path) and not pathlib.Path(source).is_file():
    raise UserError(f"no file {str(source)!r}; write it with: albert-jax export --checkpoint=RUN --out=DIR")
  settings = ort.SessionOptions()
  settings.log_severity_level = 4  # What it logs is in the exception too.
  bytes_or_path = str(source) if isinstance(source, str | pathlib.Path) else source.SerializeToString()
  try:
    return ort.InferenceSession(bytes_or_path, settings, providers=["CPUExecutionProvider"])
  except Exception as error:  # Its classes of exceptions are not public.
    what = source if isinstance(source, str | pathlib.Path) else "the ONNX graph"
    raise UserError(
      f"{what} cannot be opened by onnxruntime {ort.__version__}: {message_lines(error)[0][:300]}; export it again, or "
      "update onnxruntime"
    ) from None


class _Outputs(dict):
  """{output: array}; an absent name is a mistake of the file."""

  def __missing__(self, name):
    raise UserError(
      f"the ONNX file has no output {name!r}, only {', '.join(self)}: it is of another task or tool; write it with: "
      "albert-jax export --checkpoint=RUN --out=DIR"
    )


def run(session: Any, batch: dict) -> dict:
  """Returns {output: array} of a session. Names of `batch` that are not inputs of the graph are left out.

  Raises:
    UserError: the graph has other inputs, or does not fit the batch.
  """
  names, inputs = ([value.name for value in values] for values in (session.get_outputs(), session.get_inputs()))
  if unknown := [name for name in inputs if name not in batch]:
    raise UserError(
      f"the ONNX file has the inputs {', '.join(inputs)}, of which {unknown[0]!r} is unknown here; write it with: "
      "albert-jax export --checkpoint=RUN --out=DIR"
    )
  try:
    values = session.run(names, {name: np.asarray(batch[name], np.int64) for name in inputs})
  except Exception as error:  # Its classes of exceptions are not public.
    raise UserError(
      f"the ONNX file cannot compute this input: {message_lines(error)[0][:300]}; if its vocabulary or config was "
      "replaced, export the model again"
    ) from None
  return dict(zip(names, values, strict=True))


class OnnxModel:
  """An ONNX file that takes the place of the parameters of a pipeline (see tasks.heads.by_row).

  Attributes:
    positions: the longest row it takes.
  """

  def __init__(self, path: str | os.PathLike, cfg: AlbertConfig, task: str, parts: Any):
    """Opens the file.

    Args:
      path: the .onnx file.
      cfg: the model's shape.
      task: the pipeline's task.
      parts: the names of the parts and heads of the checkpoint.
    """
    self.positions = cfg.max_position_embeddings
    self._session, self._task, self._parts = session(path), task, frozenset(parts)
    self._metadata = self._session.get_modelmeta().custom_metadata_map
    if task not in ANSWERS:
      raise UserError(f"backend=onnx cannot {task}; leave backend out")

  def __contains__(self, part):
    return part in self._parts

  def __call__(self, function: functools.partial, batch: dict) -> dict:
    """What the JAX `function` of a task, a functools.partial, returns for a batch."""
    length = batch["input_ids"].shape[-1]
    if length > self.positions:
      raise UserError(f"a row is {length} tokens long, the model has {self.positions} positions; shorten the text")
    batch.setdefault("token_type_ids", np.zeros_like(batch["input_ids"]))
    return ANSWERS[self._task](_Outputs(run(self._session, batch)), batch, self._metadata, *function.args[1:])


# For each task what its JAX function makes of the graph's outputs: (outputs, batch, metadata, *arguments) -> {name: …}.


def _softmax(x):
  x = np.exp(x - x.max(axis=-1, keepdims=True))
  return x / x.sum(axis=-1, keepdims=True)


def _top(values, count):
  """Returns the best `count` of the last axis, and their indices; of equal ones the first."""
  index = np.argsort(-values, axis=-1, kind="stable")[..., :count]
  return np.take_along_axis(values, index, axis=-1), index


def _classify(out, batch, metadata):
  return {"logits": out["logits"]}


def _tag(out, batch, metadata):
  probabilities = _softmax(out["logits"])
  return {"label": probabilities.argmax(axis=-1), "score": probabilities.max(axis=-1)}


def _choose(out, batch, metadata):
  logits = out["logits"]
  is_option = np.arange(logits.shape[1])[None] < batch["options"][:, None]
  return {"logits": np.where(is_option, logits, np.finfo(np.float32).min)}


def _embed(out, batch, metadata, pooling):
  if metadata.get("pooling") == pooling:
    return {"embedding": out["sentence_embedding"]}
  x, mask = out["last_hidden_state"], batch["attention_mask"][:, :, None]
  x = x[:, 0] if pooling == "cls" else np.sum(x * mask, axis=1) / np.maximum(np.sum(mask, axis=1), 1)
  x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
  return {"embedding": x.astype(np.float32)}


def _fill_mask(out, batch, metadata, top_k, ordinary):
  logits = np.take_along_axis(
    out["prediction_logits" if "prediction_logits" in out else "logits"], batch["mlm_positions"][:, :, None], axis=1
  )
  score, best = _top(_softmax(logits[:, :, np.asarray(ordinary)]), top_k)
  return {"piece": np.asarray(ordinary)[best], "score": score}


def _answer(out, batch, metadata, head, search):
  if head == "beam":
    for name in ("starts", "ends"):
      count = getattr(search, f"{name[:-1]}_n_top")
      if int(metadata.get(name, count)) != count:
        raise UserError(f"this ONNX file was exported for {metadata[name]} {name} a window, not {count}")
    return {name: out[name] for name in ("start_index", "start_score", "end_index", "end_score", "null")}
  passage = (batch["allowed"] > 0) & (np.arange(batch["allowed"].shape[1]) > 0)[None]
  scores = [np.where(passage, out[name], np.float32(-1e30)) for name in ("start_logits", "end_logits")]
  count = min(search.n_best, passage.shape[1])
  (start_score, start_index), (end_score, end_index) = (_top(score, count) for score in scores)
  return {
    "start_index": start_index, "start_score": start_score,
    "end_index": end_index[:, None], "end_score": end_score[:, None],
    "null": out["start_logits"][:, 0] + out["end_logits"][:, 0],
  }  # fmt: skip


def _summarize(out, batch, metadata):
  return {"score": 1 / (1 + np.exp(-out["sentence_logits"]))}


ANSWERS: dict[str, Callable[..., dict]] = {
  "fill-mask": _fill_mask, "classify": _classify, "answer": _answer, "tag": _tag, "choose": _choose, "embed": _embed,
  "summarize": _summarize,
}  # fmt: skip


def path_in(folder: str | os.PathLike, dtype: str) -> pathlib.Path:
  """Returns the ONNX file of an exported folder.

  Args:
    folder: what `albert-jax export` wrote.
    dtype: float32 or int8; '' for int8 where the folder has it, else float32.

  Raises:
    UserError: the folder has no such file.
  """
  folder = pathlib.Path(folder)
  if dtype not in ("", *FILES):
    raise UserError(f"dtype={dtype!r} is unknown to backend=onnx; use one of {', '.join(FILES)}")
  names = [FILES[dtype]] if dtype else [FILES["int8"], FILES["float32"]]
  path = next((folder / name for name in names if (folder / name).is_file()), None)
  if path is None:
    raise UserError(
      f"{folder} has no {names[0] if dtype else 'onnx/model.onnx'}; write it with: albert-jax export "
      f"--checkpoint={shlex.quote(str(folder))} --out=DIR" + (" --quantize=int8" if dtype == "int8" else "")
    )
  return path


def metadata_of(about: dict, starts: int, ends: int) -> dict:
  """What a file says of itself besides its graph."""
  return {"starts": str(starts), "ends": str(ends), "albert_jax_task": json.dumps(about)}
