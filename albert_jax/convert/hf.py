"""Hugging Face directories: `config.json`, `model.safetensors` and the vocabulary, as for transformers' ALBERT."""

import dataclasses
import json
import os
import pathlib
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from albert_jax import files, strict_json
from albert_jax.convert import configs, mapping, torch_file
from albert_jax.convert.tokenizer_json import tokenizer_json
from albert_jax.data.speech.symbols import Symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.config import LOW_RANK
from albert_jax.model.task_heads import HEADS
from albert_jax.types import Params

_LAYER = "albert.encoder.albert_layer_groups.{G}.albert_layers.{I}"
NAMES = {
  "embeddings/word": "albert.embeddings.word_embeddings",
  "embeddings/position": "albert.embeddings.position_embeddings",
  "embeddings/token_type": "albert.embeddings.token_type_embeddings",
  "embeddings/norm": "albert.embeddings.LayerNorm",
  "projection": "albert.encoder.embedding_hidden_mapping_in",
  "attention/query": f"{_LAYER}.attention.query",
  "attention/key": f"{_LAYER}.attention.key",
  "attention/value": f"{_LAYER}.attention.value",
  "attention/output": f"{_LAYER}.attention.dense",
  "attention/norm": f"{_LAYER}.attention.LayerNorm",
  "ffn/up": f"{_LAYER}.ffn",
  "ffn/gate": f"{_LAYER}.ffn_gate",
  "ffn/down": f"{_LAYER}.ffn_output",
  "ffn/norm": f"{_LAYER}.full_layer_layer_norm",
  "norm": "albert.encoder.LayerNorm",
  "pooler": "albert.pooler",
  "mlm": "predictions",
  "mlm/dense": "predictions.dense",
  "mlm/norm": "predictions.LayerNorm",
  "sop/dense": "sop_classifier.classifier",
  "classifier": "classifier",
  "span": "qa_outputs",
}

# transformers' names of the same functions.
_ACTIVATIONS = {
  "gelu_python": "gelu",
  "gelu_fast": "gelu_new",
  "gelu_pytorch_tanh": "gelu_new",
  "gelu_python_tanh": "gelu_new",
}
# The model_type of models that transformers cannot express; it refuses to open them.
OWN_TYPE = "albert_jax"
# Keys of a config.json that describe the file itself, not the model: written anew, never carried over.
_ABOUT_THE_FILE = ("architectures", "dtype", "model_type", "torch_dtype", "transformers_version", configs.OURS)
# A config.json's names for special ids, and a tokenizer's.
_TOKENS = {"pad": "pad", "bos": "cls", "eos": "sep"}
# The prefix of task heads that transformers does not have; our names follow it.
FREE = "albert_jax."


def _suffix(path):
  leaf = path.rsplit("/", 1)[-1]
  return f".{leaf}" if leaf in ("bias", *LOW_RANK) else ".weight"


def group(layer: int, layers: int, groups: int) -> int:
  """Returns the group that transformers runs at a layer; the original's differs for some sizes, as 14 groups of 18."""
  return int(layer / (layers / groups))


def _table(cfg, parts, heads):
  return mapping.entries(
    cfg,
    mapping.shapes(cfg, parts, heads),
    NAMES,
    _suffix,
    lambda path: FREE + path.replace("/", "."),
    layers=mapping.stored_layers(cfg, group),
    transposed=lambda path: path.endswith("kernel"),
  )


# Reading.


def load(path: str | os.PathLike, rules: mapping.Rules | None = None) -> tuple[AlbertConfig, Params]:
  """Reads a Hugging Face directory.

  Args:
    path: folder with config.json and model.safetensors.
    rules: `mapping.Rules`; None: strict.

  Returns:
    (AlbertConfig, params): float32 numpy arrays in our tree, with the parts and heads of the directory: pooler, mlm,
    sop, classifier (of sequences, tokens or choices), span (question answering), and any that we wrote.

  Raises:
    UserError: a file is missing or damaged, or tensors do not fit the config (all are listed).
  """
  rules = rules or mapping.Rules()
  fields = read_fields(path)
  cfg = from_fields(fields, path)
  tensors = canonical(read_tensors(path), path)
  cfg, tensors = _without_identity(cfg, _without_zero_pooler(tensors))
  if not any(name.startswith((NAMES["classifier"], NAMES["span"], FREE)) for name in tensors):
    cfg = configs.corrected(cfg, fields, path, rules)
  return cfg, params_of(cfg, tensors, path, rules)


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the object in the config.json of a directory."""
  path = pathlib.Path(path) / "config.json"
  if not path.is_file():
    raise UserError(f"no {path}: expected a Hugging Face directory, with config.json and model.safetensors")
  fields = strict_json.read_object(path)
  if fields.get("model_type", "albert") not in ("albert", OWN_TYPE):
    raise UserError(f"{path} does not describe an ALBERT: its model_type is {fields['model_type']!r}")
  strict_json.expect(fields.get("architectures") or [], f"{path}: architectures", list)
  return fields


def from_fields(fields: dict[str, Any], path: str | os.PathLike) -> AlbertConfig:
  """Returns the AlbertConfig of a config.json."""
  cfg = configs.from_fields(fields, _ACTIVATIONS)
  N, G = cfg.num_hidden_layers, cfg.num_hidden_groups
  if configs.OURS not in fields and any(group(n, N, G) != mapping.copy_of(cfg, "ffn", n) for n in range(N)) and G > 1:
    raise UserError(
      f"{path}: with {N} layers in {G} groups, transformers and the original disagree on which group a layer uses; "
      "such a model cannot be read"
    )
  return cfg


def extra_fields(fields: dict[str, Any]) -> dict[str, Any]:
  """Returns the keys of a config.json that are not ours; pass them to `save(extra=…)` to keep them."""
  return {name: value for name, value in fields.items() if name not in configs.FIELDS and name not in _ABOUT_THE_FILE}


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the tensors of a directory, {name: array}, as they are.

  The file is model.safetensors or the shards in model.safetensors.index.json; else pytorch_model.bin or the only .pth
  file. Files of a PyTorch before 1.6 need torch.
  """
  path = pathlib.Path(path)
  index = path / "model.safetensors.index.json"
  weights = [path / "model.safetensors"]
  if not weights[0].is_file() and index.is_file():
    weights = [pathlib.Path(files.inside(path, name)) for name in _shards(index)]
  elif not weights[0].is_file():
    weights = [path / "pytorch_model.bin"]
    if not weights[0].is_file() and len(checkpoints := sorted(path.glob("*.pth"))) == 1:
      weights = checkpoints
  missing = [file for file in weights if not file.is_file()]
  if missing or not weights:
    raise UserError(
      f"no {path / 'model.safetensors' if missing == [path / 'pytorch_model.bin'] else (missing or [index])[0]}: "
      "expected a Hugging Face directory, with config.json and model.safetensors"
    )
  tensors = {}
  for file in weights:
    tensors |= read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
  return tensors


def _shards(index: pathlib.Path) -> list[str]:
  """Returns the files in a model.safetensors.index.json. The index is untrusted: they must be in its folder."""
  weight_map = strict_json.expect(strict_json.read_object(index).get("weight_map"), f"{index}: weight_map", dict)
  names = sorted({strict_json.expect(name, f"{index}: a file of weight_map", str) for name in weight_map.values()})
  for name in names:
    if name != pathlib.PurePosixPath(name).name or name in ("", ".", "..") or not name.endswith(".safetensors"):
      raise UserError(f"{index}: weight_map names {name!r:.80}; expected names of .safetensors files beside it")
  return names


def read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the tensors of one .safetensors file."""
  try:
    views = safetensors.deserialize(file.read_bytes())
  except safetensors.SafetensorError as error:
    raise UserError(f"{file} is damaged or not a safetensors file: {error}") from None
  return {name: _array(file, name, view) for name, view in views}


def _read_torch(file):
  """Reads a file of torch.save. Only tensors are unpickled, so no code in the file runs."""
  if zipfile.is_zipfile(file):
    return torch_file.read_tensors(file)
  try:
    import torch
  except ImportError:
    raise UserError(
      f"{file} is a file of a PyTorch before 1.6; pip install torch to read it, or save the model as model.safetensors"
    ) from None
  try:
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    return {name: tensor.to(torch.float32).numpy() for name, tensor in tensors.items()}
  except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    raise UserError(f"{file} is damaged, or holds more than tensors: {reason}") from None


def _array(file, name, view):
  """Returns a tensor of a safetensors file; bfloat16, which numpy lacks, is widened."""
  kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}
  if view["dtype"] not in kinds:
    raise UserError(f"{file}: {name} holds numbers of type {view['dtype']}; expected one of {', '.join(kinds)}")
  array = np.frombuffer(view["data"], kinds[view["dtype"]]).reshape(view["shape"])
  return (array.astype(np.uint32) << 16).view(np.float32) if view["dtype"] == "BF16" else array


BUFFERS = ("position_ids", "token_type_ids")  # of old versions: counted positions and zeros
_TIED = {
  "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
  "predictions.decoder.bias": "predictions.bias",
}


def canonical(tensors: dict[str, np.ndarray], where: str | os.PathLike) -> dict[str, np.ndarray]:
  """Renames tensors as in NAMES: those of the model start with `albert.`; buffers and tied copies are removed."""
  names = canonical_names(tensors)
  result = {short: tensors[name] for name, short in names.items() if not short.endswith(BUFFERS)}
  for copy, original in _TIED.items():
    value = result.pop(copy, None)
    if value is not None and not np.array_equal(value, result.setdefault(original, value)):
      raise UserError(
        f"{where}: {copy} differs from {original}; ALBERT ties the two, and an untied model cannot be read"
      )
  return result


def canonical_names(names: Iterable[str]) -> dict[str, str]:
  """Returns {name in a file: name as in NAMES}; a bare AlbertModel's names lack `albert.`."""
  bare = () if any(name.startswith("albert.") for name in names) else ("embeddings.", "encoder.", "pooler.")
  return {name: f"albert.{name}" if name.startswith(bare) else name for name in names}


def params_of(
  cfg: AlbertConfig, tensors: dict[str, np.ndarray], where: str | os.PathLike, rules: mapping.Rules | None
) -> Params:
  """Converts a directory's tensors to our parameters; `where` names the directory in errors."""
  return mapping.to_params(str(where), cfg, table_of(cfg, tensors), tensors, rules)


def _without_identity(cfg, tensors):
  """Removes an identity projection: transformers always has a projection, the original sometimes has none.

  Args:
    cfg: AlbertConfig.
    tensors: {name as in NAMES: array}.
  Returns:
    (cfg, tensors); `square_projection` is set if embeddings as wide as the layers have a trained projection.
  """
  if cfg.embedding_size != cfg.hidden_size:
    return cfg, tensors
  names = [f"{NAMES['projection']}.{name}" for name in ("weight", "bias")]
  kernel, bias = (tensors.get(name) for name in names)
  if kernel is None or bias is None or not np.array_equal(kernel, np.eye(len(bias))) or bias.any():
    return dataclasses.replace(cfg, square_projection=True), tensors  # A missing tensor is an error of the table.
  return cfg, {name: tensor for name, tensor in tensors.items() if name not in names}


def _without_zero_pooler(tensors):
  """Leaves out a pooler of zeros, which exports have because transformers' AlbertModel must have one."""
  names = [f"{NAMES['pooler']}.{leaf}" for leaf in ("weight", "bias")]
  if any(name not in tensors or np.any(tensors[name]) for name in names):
    return tensors
  return {name: tensor for name, tensor in tensors.items() if name not in names}


def table_of(cfg: AlbertConfig, tensors: dict[str, np.ndarray]) -> list[mapping.Entry]:
  """Returns the entries of all parts and heads of which {name as in NAMES: array} has a tensor."""
  starts = {"pooler": "albert.pooler.", "mlm": "predictions.", "sop": "sop_classifier."}
  parts = tuple(part for part, start in starts.items() if any(name.startswith(start) for name in tensors))
  heads = {}
  for head in ("classifier", "span"):
    if any(name.startswith(f"{NAMES[head]}.") for name in tensors):
      heads[head] = HEADS[head](cfg.hidden_size, tensors.get(f"{NAMES[head]}.bias", np.empty(0)).size)
  for name, tensor in tensors.items():
    if name.startswith(FREE):
      head, _, path = name.removeprefix(FREE).replace(".", "/").partition("/")
      heads.setdefault(head, {})[path] = tensor.shape
  return _table(cfg, parts, heads)


def survey(
  path: str | os.PathLike,
) -> tuple[AlbertConfig, dict[str, np.ndarray], dict[str, str], list[mapping.Entry], dict[str, str]]:
  """Returns what `albert-jax convert --inspect` shows.

  Returns:
    AlbertConfig, {name: array}, {name: name as in NAMES}, entries, {name: why it is not one of our parameters}.
  """
  cfg = from_fields(read_fields(path), path)
  tensors = dict(sorted(read_tensors(path).items()))
  names = canonical_names(tensors)
  cfg, kept = _without_identity(cfg, {short: tensors[name] for name, short in names.items()})
  notes = {name: "buffer" for name, short in names.items() if short.endswith(BUFFERS)}
  for name, short in list(names.items()):
    if _TIED.get(short) in names.values():
      notes[name] = f"tied to {_TIED[short]}"
    elif short in _TIED:
      names[name] = _TIED[short]
    elif short not in kept:
      notes[name] = "the identity, as embeddings are as wide as layers"
  return cfg, tensors, names, table_of(cfg, {short: tensors[name] for name, short in names.items()}), notes


# Writing.


def save(
  path: str | os.PathLike,
  cfg: AlbertConfig,
  params: Params,
  *,
  vocabulary: Tokenizer | Symbols | str | os.PathLike | None = None,
  architecture: str | None = None,
  extra: Mapping[str, Any] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a directory for transformers: config.json, model.safetensors, and the vocabulary if there is one.

  Args:
    path: the new folder; it is written atomically.
    cfg: the model.
    params: our parameters, of any array type; all their parts and heads are written.
    vocabulary: a `Tokenizer`, the path of its file, or a symbol table; written with the rules transformers needs.
    architecture: the class of transformers, such as AlbertForMultipleChoice; None to derive it from the heads.
    extra: more keys for config.json, such as id2label.
    overwrite: replace an existing folder.

  Raises:
    UserError: `path` exists, a parameter has no name in the format, or one is not finite.
  """
  fields = to_fields(cfg, params, architecture=architecture, extra=extra)
  if vocabulary is not None:
    vocabulary = vocabulary if isinstance(vocabulary, Tokenizer | Symbols) else Tokenizer(vocabulary)
    fields |= {
      f"{name}_token_id": getattr(vocabulary, f"{id}_id")
      for name, id in _TOKENS.items()
      if hasattr(vocabulary, f"{id}_id")
    }
  tensors = tensors_of(cfg, params, architecture=fields["architectures"][0])
  with files.writing_folder(path, overwrite=overwrite) as folder:
    (folder / "config.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")
    _save_tensors(tensors, folder / "model.safetensors")
    if isinstance(vocabulary, Symbols):
      vocabulary.write(folder)
    elif vocabulary is not None:
      write_vocabulary(folder, cfg, vocabulary)


def _save_tensors(tensors, path):
  try:
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
  except safetensors.SafetensorError as error:
    if code := re.search(r"\(os error (\d+)\)", str(error)):  # Such as of a full disk.
      raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    raise


def to_fields(
  cfg: AlbertConfig, params: Params, *, architecture: str | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns the object of a config.json (see `save`)."""
  fields, ours = configs.to_fields(cfg, len(mapping.stored_layers(cfg, group)))
  fields = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, **(extra or {}), **fields}
  model_type = OWN_TYPE if mapping.is_ours(cfg) else "albert"
  fields |= {"model_type": model_type, "dtype": "float32", "architectures": [architecture or _architecture(params)]}
  heads = [head for head in ("classifier", "span") if head in params]
  if heads and "id2label" not in fields:
    fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(params[heads[0]]["bias"].size)}
    fields["label2id"] = {label: int(i) for i, label in fields["id2label"].items()}
  return fields | ours


def _architecture(params):
  """Returns the class of transformers that has these parts and heads."""
  if "span" in params:
    return "AlbertForQuestionAnswering"
  if "classifier" in params:
    return "AlbertForSequenceClassification" if "pooler" in params else "AlbertForTokenClassification"
  if "mlm" in params:
    return "AlbertForPreTraining" if "sop" in params else "AlbertForMaskedLM"
  return "AlbertModel"


def tensors_of(cfg: AlbertConfig, params: Params, *, architecture: str) -> dict[str, np.ndarray]:
  """Returns {name: array} of a model.safetensors."""
  tensors = mapping.to_tensors(_table(cfg, *mapping.shapes_of(params)), params)
  if cfg.embedding_size == cfg.hidden_size and not cfg.square_projection:
    tensors[f"{NAMES['projection']}.weight"] = np.eye(cfg.hidden_size, dtype=np.float32)
    tensors[f"{NAMES['projection']}.bias"] = np.zeros(cfg.hidden_size, np.float32)
  if architecture == "AlbertModel":  # Its names have no prefix.
    tensors = {name.removeprefix("albert."): tensor for name, tensor in tensors.items()}
  return tensors


def write_vocabulary(folder: pathlib.Path, cfg: AlbertConfig, tokenizer: Tokenizer) -> None:
  """Copies the vocabulary into `folder`, with the files that tell transformers its tokenization rules."""
  if tokenizer.vocab_size > cfg.vocab_size:
    raise UserError(
      f"the vocabulary {tokenizer.path} has {tokenizer.vocab_size} pieces, the model only {cfg.vocab_size} rows"
    )
  # The plain class uses a tokenizer.json unchanged; AlbertTokenizer would change quotes, for example.
  name, tokenizer_class = {
    ".txt": ("vocab.txt", "BertTokenizer"), ".json": ("tokenizer.json", "PreTrainedTokenizerFast")
  }.get(pathlib.Path(tokenizer.path).suffix, ("spiece.model", "AlbertTokenizer"))  # fmt: skip
  shutil.copyfile(tokenizer.path, folder / name)
  if name == "spiece.model" and (rules := tokenizer_json(tokenizer)) is not None:
    (folder / "tokenizer.json").write_text(json.dumps(rules, ensure_ascii=False), "utf-8")
    tokenizer_class = "PreTrainedTokenizerFast"
  names = {key: tokenizer.pieces[getattr(tokenizer, f"{key}_id")] for key in ("pad", "unk", "cls", "sep", "mask")}
  fields = {
    "tokenizer_class": tokenizer_class,
    "do_lower_case": tokenizer.lower,
    "keep_accents": tokenizer.keep_accents,
    "model_max_length": cfg.max_position_embeddings,
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    **{f"{key}_token": name for key, name in names.items()},
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
