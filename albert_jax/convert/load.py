"""Loads a checkpoint of any supported format; the format is detected."""

import logging
import os
import pathlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, overload

import numpy as np

from albert_jax import copies, files, paths, strict_json
from albert_jax.convert import google_tf1, hf, hub, styletts2
from albert_jax.convert.mapping import Rules
from albert_jax.data.speech import symbols
from albert_jax.data.speech.symbols import Symbols
from albert_jax.data.tokenizer import Tokenizer, recorded_rules
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.task_heads import CLASSES
from albert_jax.types import Params

logger = logging.getLogger(__name__)


def load(
  path: str | os.PathLike,
  *,
  allow_missing: Sequence[str] = (),
  allow_unused: Sequence[str] = (),
  keep_config: bool = False,
) -> tuple[AlbertConfig, Params]:
  """Reads the weights at `path`.

  Args:
    path: a Hugging Face directory, a checkpoint of google-research/albert (its folder, or the prefix of one checkpoint
      in it), the workdir of a complete run (its `export` is read), or the folder of a PL-BERT of StyleTTS2 or Kokoro
      (see styletts2.py). Folders in a store, as gs://BUCKET/FOLDER, are read from a local copy, see copies.local.
    allow_missing: regular expressions of our parameter paths that may be absent; such parameters are fresh.
    allow_unused: regular expressions of tensor names in the file that may stay unused.
    keep_config: keep the config's values even if they are known to be wrong for the weights.

  Returns:
    (AlbertConfig, params); params is a nested dict of float32 numpy arrays with the checkpoint's parts and heads.

  Raises:
    UserError: there is no checkpoint at `path`, or it does not fit its own config.
  """
  format, place = find(path)
  return format.load(place, Rules(tuple(allow_missing), tuple(allow_unused), keep_config))


def config_of(path: str | os.PathLike) -> AlbertConfig:
  """Reads the shape of the checkpoint at a path, see `load`, without messages about its weights.

  Raises:
    UserError: as `load`.
  """
  format, place = find(path)
  return format.load(place, Rules(report=lambda line: None))[0]


def find(path: str | os.PathLike) -> tuple[ModuleType, pathlib.Path]:
  """Returns the format of a checkpoint: (module `hf`, `google_tf1` or `styletts2`, the path for its `load`)."""
  if hub.is_name(path):
    path = hub.fetch(str(path))
  elif files.is_url(path):
    is_run = files.exists(f"{path}/checkpoints")  # Only the export of a run is downloaded.
    path = copies.local(f"{path}/export" if is_run else str(path))
  path = pathlib.Path(files.user_path(path))
  if styletts2.is_here(path):
    return styletts2, path
  for folder in (path, path / "export"):
    if (folder / "config.json").is_file() and any(
      any(folder.glob(pattern)) for pattern in ("model.safetensors*", "pytorch_model.bin", "*.pth")
    ):
      return hf, folder
  prefix = path.with_name(f"{path.name}.index")
  if any(path.glob("*.index")) or (path / "variables/variables.index").is_file() or prefix.is_file() or path.is_file():
    return google_tf1, path
  expected = (
    "expected a Hugging Face directory (config.json, model.safetensors), the workdir of a complete run, or a "
    "checkpoint of google-research/albert (albert_config.json, model.ckpt-*)"
  )
  if not path.exists():
    raise UserError(f"nothing at {str(path)!r}; {expected}{files.near_path(path)}")
  if (path / "checkpoints").is_dir():
    saved = [int(folder.name) for folder in (path / "checkpoints").iterdir() if folder.name.isdecimal()]
    early = f", or end it at its newest checkpoint: the same command with --config.steps={max(saved)}" if saved else ""
    raise UserError(
      f"the run in {str(path)!r} is not complete, so it has no export; finish it with albert-jax train{early}"
    )
  raise UserError(f"{str(path)!r} holds no checkpoint; {expected}")


_FACTS = {
  "name": str, "labels": list, "kind": str, "pair": bool, "pooling": str, "seq_length": int, "qa_length": int,
  "sentences": int, "trigram_blocking": bool, "head": str, "language": str, "doc_stride": int, "max_query_length": int,
  "max_answer_length": int, "n_best": int, "start_n_top": int, "end_n_top": int, "no_answer": bool,
  "null_threshold": float,
}  # fmt: skip
# What a fact may be, where the answers depend on it; a newer version may know more.
_VALUES = {"kind": ("classification", "multilabel", "regression"), "pooling": ("mean", "cls")}
_KINDS = {"regression": "regression", "multi_label_classification": "multilabel"}


def about(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the facts about its task in an export: "albert_jax_task" of its config.json (see tasks/base.py).

  For a directory of transformers, they come from its class and labels: "name"; "labels", if they have names; "kind" of
  a classifier. {} if there are none.

  Raises:
    UserError: config.json has facts of another form.
  """
  format, folder = find(path)
  fields = hf.read_fields(folder) if format is hf else {}
  if "albert_jax_task" in fields:
    where = f"{folder}/config.json: albert_jax_task"
    facts = strict_json.expect(fields["albert_jax_task"], where, dict)
    for name, kind in _FACTS.items():
      if name in facts:
        strict_json.expect(facts[name], f"{where}: {name}", kind)
        if kind is int and facts[name] < 1:
          raise UserError(f"{where}: {name}: expected 1 or more, got {facts[name]}")
    for name, values in _VALUES.items():
      if facts.get(name, values[0]) not in values:
        raise UserError(
          f"{where}: {name}: expected one of {', '.join(values)}, got {facts[name]!r}; is the model of a newer version?"
        )
    for label in facts.get("labels", ()):
      strict_json.expect(label, f"{where}: a label", str)
    return facts
  names = _label_names(fields.get("id2label") or {}, folder)
  facts = {"labels": names} if names and not all(re.fullmatch(r"LABEL_\d+", name) for name in names) else {}
  purpose = next((CLASSES[name] for name in fields.get("architectures") or () if name in CLASSES), None)
  if purpose == "classify":
    facts["kind"] = _KINDS.get(
      fields.get("problem_type") or ("regression" if len(names) == 1 else ""), "classification"
    )
  return {"name": purpose, **facts} if purpose else facts


def _label_names(id2label, folder) -> list[str]:
  """Returns the names of the outputs 0 to n - 1, in this order, of a config.json's `id2label`."""
  try:
    by_id = {int(i): name for i, name in id2label.items()}
  except (AttributeError, TypeError, ValueError):
    by_id = {-1: None}
  if sorted(by_id) != list(range(len(id2label))) or not all(isinstance(name, str) for name in by_id.values()):
    raise UserError(
      f"{folder}/config.json: id2label is {id2label!r:.80}; expected a name for each output from 0 on, such as "
      '{"0": "negative", "1": "positive"}'
    )
  return [by_id[i] for i in range(len(by_id))]


@overload
def load_tokenizer(path: str | os.PathLike, *, optional: Literal[False] = False) -> Tokenizer: ...


@overload
def load_tokenizer(path: str | os.PathLike, *, optional: bool) -> Tokenizer | None: ...


def load_tokenizer(path: str | os.PathLike, *, optional: bool = False) -> Tokenizer | None:
  """Reads the tokenizer of a checkpoint, with the rules that its tokenizer_config.json names.

  Args:
    path: see `load`.
    optional: return None if there is no vocabulary.
  Returns:
    The Tokenizer. If tokens were added to the vocabulary, it is that of tokenizer.json, with the ids of transformers.
  Raises:
    UserError: there is no vocabulary, its rules are not booleans, it has more pieces than the model has rows, or the
      tokenizer.json in the folder, which transformers reads, has other pieces or rules.
  """
  _, folder = find(path)
  folder = pathlib.Path(folder)
  folder = folder if folder.is_dir() else folder.parent
  flags = {"lower": True, "keep_accents": False} | recorded_rules(folder)
  assets = folder / "assets" if (folder / "assets").is_dir() else folder
  try:
    tokenizer = Tokenizer(assets, **flags)
  except UserError:
    if optional:
      return None
    raise
  if not tokenizer.path.endswith(".json") and (added := _added_tokens(folder, tokenizer)):
    whole = Tokenizer(folder / "tokenizer.json", **flags) if (folder / "tokenizer.json").is_file() else tokenizer
    if lacking := [token for token in added if token not in whole.pieces]:
      raise UserError(
        f"{folder}: the tokens {', '.join(map(repr, lacking[:3]))} were added to the vocabulary, but {whole.path} "
        "does not hold them; save the tokenizer with transformers 5, so that there is a whole tokenizer.json"
      )
    tokenizer = whole
  elif not tokenizer.path.endswith(".json") and (folder / "tokenizer.json").is_file():
    _check_agreement(tokenizer, Tokenizer(folder / "tokenizer.json", **flags))
  _check_rows(folder, tokenizer)
  return tokenizer


def load_symbols(path: str | os.PathLike) -> Symbols | None:
  """Reads the symbol table of a PL-BERT.

  Args:
    path: see `load`.
  Returns:
    the table in its symbols.json or in Kokoro's config.json; StyleTTS2's own for a folder of StyleTTS2 with a model of
    that size; None for a model of text, or one that has no table.
  Raises:
    UserError: the table is damaged.
  """
  format, folder = find(path)
  folder = pathlib.Path(folder)
  if (folder / symbols.FILE).is_file():
    table = symbols.load(folder)
    if format is styletts2:
      rows = format.load(folder, Rules(report=lambda line: None))[0].vocab_size
    else:
      rows = strict_json.read_object(folder / "config.json").get("vocab_size")
    if table.vocab_size != rows:
      raise UserError(
        f"{folder / symbols.FILE} has {table.vocab_size} symbols, the model {rows}; is it another model's?"
      )
    return table
  if format is not styletts2:
    return None
  if not (folder / "config.yml").is_file():
    return symbols.load(folder / "config.json")
  standard = symbols.load("styletts2")
  return standard if format.load(folder, Rules(report=lambda line: None))[0].vocab_size == standard.vocab_size else None


def _added_tokens(folder: pathlib.Path, tokenizer: Tokenizer) -> list[str]:
  """Returns the tokens that other files in the folder add to a vocabulary and that are not among its pieces."""
  added = []
  if (folder / "added_tokens.json").is_file():
    added += strict_json.read_object(folder / "added_tokens.json")
  if (folder / "tokenizer.json").is_file():
    tokens = strict_json.read_object(folder / "tokenizer.json").get("added_tokens") or []
    strict_json.expect(tokens, f"{folder / 'tokenizer.json'}: added_tokens", list)
    added += [token["content"] for token in tokens if isinstance(token, dict) and isinstance(token.get("content"), str)]
  pieces = set(tokenizer.pieces) if added else set()
  return [token for token in dict.fromkeys(added) if token not in pieces]


def _check_agreement(tokenizer: Tokenizer, other: Tokenizer):
  """Compares a vocabulary with the tokenizer.json in its folder: pieces, case and accents."""
  if other.pieces != tokenizer.pieces:
    raise UserError(f"{other.path} has other pieces than {tokenizer.path}; remove the one that is not the model's")
  for text, plain, rule in (("A", "a", "do_lower_case"), ("e\u0301", "e", "keep_accents")):
    changes = [len({tuple(ids) for ids in each.encode_batch([text, plain])}) > 1 for each in (tokenizer, other)]
    if changes[0] != changes[1]:
      raise UserError(
        f"{other.path} and {tokenizer.path} disagree on {rule}; set it in tokenizer_config.json as the former has it"
      )


def _check_rows(folder: pathlib.Path, tokenizer: Tokenizer):
  """Compares the size of a vocabulary with vocab_size of the config.json in its folder."""
  config = folder / "config.json"
  rows = strict_json.read_object(config).get("vocab_size") if config.is_file() else None
  if not isinstance(rows, int):
    return
  pieces = tokenizer.vocab_size
  if pieces > rows:
    raise UserError(f"{folder}: the vocabulary has {pieces} pieces, the model {rows} rows; is it another model's?")
  if pieces < rows:
    logger.info("%s: %d rows of the model have no piece in the vocabulary of %d.", folder, rows, pieces)


def fit(params: Params, loaded: Params, *, new: Sequence[str] = (), unused: Sequence[str] = ()) -> tuple[Params, str]:
  """Puts the weights of a checkpoint into the fresh parameters of a model.

  Args:
    params: fresh parameters of the model to train.
    loaded: those of a checkpoint.
    new: regular expressions of parameters that the checkpoint may lack (a task's head).
    unused: regular expressions of parameters of the checkpoint that the model may lack (heads of pre-training).
      Parameters that match both `new` and `unused` are fresh even if the checkpoint has them (a head of another task).

  Returns:
    (params, a line for the user with the number of loaded values and the new parameters).

  Raises:
    UserError: a parameter is missing, unused or of another shape (all are listed).
  """
  expected, tensors = paths.flatten(params), paths.flatten(loaded)
  dropped = [path for path in tensors if path in expected and _matches(new, path) and _matches(unused, path)]
  left = [path for path in tensors if path not in expected]
  tensors = {path: value for path, value in tensors.items() if path not in dropped}
  fresh = [path for path in expected if path not in tensors]
  problems = [f"missing: {path} {list(expected[path].shape)}" for path in fresh if not _matches(new, path)]
  problems += [
    f"not part of this model: {path} {list(tensors[path].shape)}" for path in left if not _matches(unused, path)
  ]
  problems += [
    f"other shape: {path} is {list(tensors[path].shape)} in the checkpoint, {list(expected[path].shape)} in the model"
    for path in expected.keys() & tensors.keys()
    if expected[path].shape != tensors[path].shape
  ]
  if problems:
    raise UserError("the checkpoint does not fit the model:\n  " + "\n  ".join(sorted(problems)))
  count = sum(int(np.prod(expected[path].shape)) for path in expected if path in tensors)
  line = f"loaded {count:,} parameters; new: {', '.join(fresh) or 'none'}"
  line += f"; not used: {', '.join([*dropped, *left])}" if dropped or left else ""
  return paths.unflatten({path: tensors.get(path, value) for path, value in expected.items()}), line


def _matches(patterns, path):
  return any(re.search(pattern, path) for pattern in patterns)
