"""Hugging Face directories: `config.json`, `model.safetensors` and the vocabulary, as transformers' ALBERT has them."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import safetensors
import safetensors.numpy

from albert_jax import model, paths
from albert_jax.convert import mapping
from albert_jax.convert.files import new_folder
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import VARIANTS, AlbertConfig

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
  "ffn/down": f"{_LAYER}.ffn_output",
  "ffn/norm": f"{_LAYER}.full_layer_layer_norm",
  "pooler": "albert.pooler",
  "mlm": "predictions",
  "mlm/dense": "predictions.dense",
  "mlm/norm": "predictions.LayerNorm",
  "sop/dense": "sop_classifier.classifier",
  "classifier": "classifier",
  "span": "qa_outputs",
}

# transformers' names for what is the same function.
_ACTIVATIONS = {
  "gelu_python": "gelu",
  "gelu_fast": "gelu_new",
  "gelu_pytorch_tanh": "gelu_new",
  "gelu_python_tanh": "gelu_new",
}
# Hugging Face's config has no fields for what we share within a group and how we compute (its `dtype` is that of the
# stored numbers); they go under one key of their own.
_OURS = "albert_jax"
_OUR_FIELDS = ("share", "num_hidden_groups", "dtype", "remat")
_FIELDS = tuple(field.name for field in dataclasses.fields(AlbertConfig))
_SHARED_FIELDS = tuple(name for name in _FIELDS if name not in ("share", "dtype", "remat"))
# Keys of a config.json that describe the file itself, not the model: written anew, never carried over.
_ABOUT_THE_FILE = ("architectures", "dtype", "model_type", "torch_dtype", "transformers_version", _OURS)


def _suffix(path):
  return ".bias" if path.endswith("bias") else ".weight"


def _group(layer, layers, groups):
  """The group transformers runs at a layer (AlbertTransformer.forward); not always the original's: 14 groups of 18."""
  return int(layer / (layers / groups))


def _table(cfg, parts, heads):
  return mapping.entries(
    cfg,
    NAMES,
    _suffix,
    parts=parts,
    heads=heads,
    layers=mapping.layers_there(cfg, _group),
    transposed=lambda path: path.endswith("kernel"),
  )


# Reading.


def load(path):
  """Reads a Hugging Face directory.

  Args:
    path: folder with config.json and model.safetensors.

  Returns:
    (AlbertConfig, params): float32 numpy arrays in our tree, with the parts and heads that are there: of pooler, mlm,
    sop, classifier (of sequences, tokens or choices), span (question answering).

  Raises:
    UserError: a file is missing or damaged, or tensors do not fit the config (all are listed).
  """
  cfg, _ = read_config(path)
  return cfg, params_of(cfg, read_tensors(path), where=path)


def read_config(path):
  """Reads the config.json of a directory.

  Returns:
    (AlbertConfig, dict of the keys that are not ours, to be kept when the model is written again).
  """
  path = pathlib.Path(path) / "config.json"
  try:
    found = json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    raise UserError(f"no {path}: expected a Hugging Face directory, with config.json and model.safetensors") from None
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise UserError(f"{path} is not JSON: {error}") from None
  if not isinstance(found, dict) or found.get("model_type", "albert") != "albert":
    raise UserError(f"{path} does not describe an ALBERT: expected an object with model_type 'albert'")
  # What a config.json leaves out has transformers' default, which is xxlarge.
  fields = dataclasses.asdict(VARIANTS["xxlarge"]) | {name: found[name] for name in _SHARED_FIELDS if name in found}
  fields |= {name: value for name, value in found.get(_OURS, {}).items() if name in _OUR_FIELDS}
  fields["hidden_act"] = _ACTIVATIONS.get(fields["hidden_act"], fields["hidden_act"])
  if fields["classifier_dropout_prob"] is None:
    fields["classifier_dropout_prob"] = fields["hidden_dropout_prob"]
  cfg = AlbertConfig(**fields)
  G = found.get("num_hidden_groups", 1)
  if _OURS not in found and any(
    _group(n, cfg.num_hidden_layers, G) != cfg.group_of(n) for n in range(cfg.num_hidden_layers)
  ):
    raise UserError(
      f"{path}: with {cfg.num_hidden_layers} layers in {G} groups, transformers and the original disagree on which "
      "group a layer uses; such a model cannot be read"
    )
  extra = {name: value for name, value in found.items() if name not in _SHARED_FIELDS and name not in _ABOUT_THE_FILE}
  return cfg, extra


def read_tensors(path):
  """The tensors of a directory, {name: array}, in names that begin with `albert.` and without the tied copies."""
  file = pathlib.Path(path) / "model.safetensors"
  if not file.is_file():
    raise UserError(f"no {file}: expected a Hugging Face directory, with config.json and model.safetensors")
  try:
    views = safetensors.deserialize(file.read_bytes())
  except safetensors.SafetensorError as error:
    raise UserError(f"{file} is damaged or not a safetensors file: {error}") from None
  return _canonical({name: _array(file, name, view) for name, view in views}, file)


def _array(file, name, view):
  """A tensor of a safetensors file; bfloat16, which numpy lacks, is widened."""
  kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}
  if view["dtype"] not in kinds:
    raise UserError(f"{file}: {name} holds numbers of type {view['dtype']}; expected one of {', '.join(kinds)}")
  array = np.frombuffer(view["data"], kinds[view["dtype"]]).reshape(view["shape"])
  return (array.astype(np.uint32) << 16).view(np.float32) if view["dtype"] == "BF16" else array


def _canonical(tensors, where):
  """Names as in NAMES: the model's own begin with `albert.`, buffers and tied copies are gone."""
  if not any(name.startswith("albert.") for name in tensors):
    bare = ("embeddings.", "encoder.", "pooler.")
    tensors = {f"albert.{name}" if name.startswith(bare) else name: value for name, value in tensors.items()}
  # Buffers of old versions: counted positions and zeros.
  tensors = {name: value for name, value in tensors.items() if not name.endswith(("position_ids", "token_type_ids"))}
  tied = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
  }
  for copy, original in tied.items():
    value = tensors.pop(copy, None)
    if value is not None and not np.array_equal(value, tensors.setdefault(original, value)):
      raise UserError(
        f"{where}: {copy} differs from {original}; ALBERT ties the two, and a model that does not cannot be read"
      )
  return tensors


def params_of(cfg, tensors, *, where):
  """Our parameters out of the tensors of a directory. `where` begins the error that lists what does not fit."""
  starts = {"pooler": "albert.pooler.", "mlm": "predictions.", "sop": "sop_classifier."}
  parts = [part for part, start in starts.items() if any(name.startswith(start) for name in tensors)]
  heads = {head: tensors[f"{NAMES[head]}.bias"].size for head in mapping.HEADS if f"{NAMES[head]}.bias" in tensors}
  if cfg.embedding_size == cfg.hidden_size:
    tensors = dict(tensors)
    kernel, bias = (tensors.pop(f"{NAMES['projection']}.{name}", None) for name in ("weight", "bias"))
    if kernel is None or bias is None or not np.array_equal(kernel, np.eye(len(bias))) or bias.any():
      raise UserError(
        f"{where}: embedding_size equals hidden_size ({cfg.hidden_size}); the original has no projection between the "
        f"two then, so {NAMES['projection']} must be the identity, and it is not"
      )
  return mapping.to_here(where, _table(cfg, parts, heads), tensors)


# Writing.


def save(path, cfg, params, *, vocabulary=None, architecture=None, extra=None, overwrite=False):
  """Writes a directory that transformers opens: config.json, model.safetensors, and the vocabulary if given.

  Args:
    path: the new folder; it appears whole or not at all.
    params: our tree, any array type; the parts and heads in it are written.
    vocabulary: a `Tokenizer` or the path of its file; written with the rules transformers needs to know.
    architecture: the class that opens it, such as AlbertForMultipleChoice; None: by the parts and heads there are.
    extra: more keys for config.json, such as id2label.
    overwrite: replace what is at `path`.

  Raises:
    UserError: `path` is taken, a parameter has no name there, or one is not finite.
  """
  params = paths.unflatten({name: np.asarray(value) for name, value in paths.flatten(params).items()})
  fields = write_config(cfg, params, architecture=architecture, extra=extra)
  tensors = tensors_of(cfg, params, architecture=fields["architectures"][0])
  with new_folder(path, overwrite=overwrite) as folder:
    (folder / "config.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", "utf-8")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if vocabulary is not None:
      write_vocabulary(folder, cfg, vocabulary)


def write_config(cfg, params, *, architecture=None, extra=None):
  """The fields of a config.json as a dict (see `save`)."""
  fields = dict(extra or {})
  fields |= {name: getattr(cfg, name) for name in _SHARED_FIELDS}
  fields["num_hidden_groups"] = len(mapping.layers_there(cfg, _group))
  ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
  fields = {**ids, **fields, "model_type": "albert", "dtype": "float32"}
  fields["architectures"] = [architecture or _architecture(params)]
  heads = [head for head in mapping.HEADS if head in params]
  if heads and "id2label" not in fields:
    fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(params[heads[0]]["bias"].size)}
    fields["label2id"] = {label: int(i) for i, label in fields["id2label"].items()}
  return {**fields, _OURS: {name: getattr(cfg, name) for name in _OUR_FIELDS}}


def _architecture(params):
  """The class of transformers that has these parts and heads."""
  if "span" in params:
    return "AlbertForQuestionAnswering"
  if "classifier" in params:
    return "AlbertForSequenceClassification" if "pooler" in params else "AlbertForTokenClassification"
  if "mlm" in params:
    return "AlbertForPreTraining" if "sop" in params else "AlbertForMaskedLM"
  return "AlbertModel"


def tensors_of(cfg, params, *, architecture):
  """{name: array} of a model.safetensors."""
  parts = [part for part in model.OPTIONAL if part in params]
  heads = {head: params[head]["bias"].size for head in mapping.HEADS if head in params}
  tensors = mapping.to_there(_table(cfg, parts, heads), params)
  if cfg.embedding_size == cfg.hidden_size:
    tensors[f"{NAMES['projection']}.weight"] = np.eye(cfg.hidden_size, dtype=np.float32)
    tensors[f"{NAMES['projection']}.bias"] = np.zeros(cfg.hidden_size, np.float32)
  broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
  if broken:
    raise UserError(f"nothing was written: NaN or infinity in {', '.join(broken)}")
  if architecture == "AlbertModel":
    tensors = {name.removeprefix("albert."): tensor for name, tensor in tensors.items()}
  return tensors


def write_vocabulary(folder, cfg, vocabulary):
  """Copies the vocabulary into `folder`, with a tokenizer_config.json that says by which rules texts are cut."""
  tokenizer = vocabulary if isinstance(vocabulary, Tokenizer) else Tokenizer(vocabulary)
  if tokenizer.vocab_size > cfg.vocab_size:
    raise UserError(
      f"the vocabulary {tokenizer.path} has {tokenizer.vocab_size} pieces, the model only {cfg.vocab_size} rows"
    )
  wordpiece = tokenizer.path.endswith(".txt")
  shutil.copyfile(tokenizer.path, folder / ("vocab.txt" if wordpiece else "spiece.model"))
  fields = {
    "tokenizer_class": "BertTokenizer" if wordpiece else "AlbertTokenizer",
    "do_lower_case": tokenizer.lower,
    "keep_accents": tokenizer.keep_accents,
    "model_max_length": cfg.max_position_embeddings,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
