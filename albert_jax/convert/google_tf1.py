"""Checkpoints of google-research/albert: `albert_config.json`, `model.ckpt-*` and the vocabulary."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
from typing import Any

import numpy as np

from albert_jax import copies, files, strict_json
from albert_jax.convert import configs, mapping, tf_checkpoint
from albert_jax.data.tokenizer import RULES_FILE, Tokenizer, rules_file
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.task_heads import HEADS
from albert_jax.types import Params

_LAYER = "bert/encoder/transformer/group_{G}/inner_group_{I}"
# modeling.py, run_pretraining.py, classifier_utils.py, race_utils.py, squad_utils.py of the original.
NAMES = {
  "embeddings/word/embedding": "bert/embeddings/word_embeddings",
  "embeddings/position/embedding": "bert/embeddings/position_embeddings",
  "embeddings/token_type/embedding": "bert/embeddings/token_type_embeddings",
  "embeddings/norm": "bert/embeddings/LayerNorm",
  "projection": "bert/encoder/embedding_hidden_mapping_in",
  "attention/query": f"{_LAYER}/attention_1/self/query",
  "attention/key": f"{_LAYER}/attention_1/self/key",
  "attention/value": f"{_LAYER}/attention_1/self/value",
  "attention/output": f"{_LAYER}/attention_1/output/dense",
  "attention/norm": f"{_LAYER}/LayerNorm",
  "ffn/up": f"{_LAYER}/ffn_1/intermediate/dense",
  "ffn/down": f"{_LAYER}/ffn_1/intermediate/output/dense",
  "ffn/norm": f"{_LAYER}/LayerNorm_1",
  "pooler": "bert/pooler/dense",
  "mlm/dense": "cls/predictions/transform/dense",
  "mlm/norm": "cls/predictions/transform/LayerNorm",
  "mlm/bias": "cls/predictions/output_bias",
  "sop/dense/kernel": "cls/seq_relationship/output_weights",
  "sop/dense/bias": "cls/seq_relationship/output_bias",
  "classifier/kernel": "output_weights",
  "classifier/bias": "output_bias",
  "span/kernel": "cls/squad/output_weights",
  "span/bias": "cls/squad/output_bias",
  "squad_v2/start": "start_logits/dense",
  "squad_v2/end/dense_0": "end_logits/dense_0",
  "squad_v2/end/norm": "end_logits/LayerNorm",
  "squad_v2/end/dense_1": "end_logits/dense_1",
  "squad_v2/answer/dense_0": "answer_class/dense_0",
  "squad_v2/answer/dense_1": "answer_class/dense_1",
}
# These matrices are [classes, hidden] in the checkpoint; all others are [in, out], as ours.
_TRANSPOSED = ("sop/dense/kernel", "classifier/kernel", "span/kernel")
# The original computes `gelu` by its tanh form.
_ACTIVATIONS = {"gelu": "gelu_new"}
LAYER_NORM_EPS = 1e-12  # of the original's layer norm, which no config changes
_SLOTS = {"m": "/adam_m", "v": "/adam_v"}


def _suffix(path):
  if "norm/" in path:
    return "/gamma" if path.endswith("scale") else "/beta"
  return "/kernel" if path.endswith("kernel") else "/bias"


def _table(cfg, parts, heads):
  return mapping.entries(
    cfg,
    mapping.shapes(cfg, parts, heads),
    NAMES,
    _suffix,
    lambda path: f"albert_jax/{path}",
    layers=mapping.stored_layers(cfg),
    transposed=lambda path: path in _TRANSPOSED,
  )


# Reading.


def load(path: str | os.PathLike, rules: mapping.Rules | None = None) -> tuple[AlbertConfig, Params]:
  """Reads a checkpoint of the original.

  Args:
    path: its folder (as unpacked from albert_*.tar.gz, or a TF-Hub module), or the prefix of one checkpoint in it;
      albert_config.json must be in the same folder.
    rules: `mapping.Rules`; None: strict.

  Returns:
    (AlbertConfig, params): float32 numpy arrays in our tree, with the parts and heads of the checkpoint: pooler, mlm,
    sop, classifier (also RACE's), span (SQuAD 1.1), squad_v2. Optimizer slots are left out (see `load_optimizer`).

  Raises:
    UserError: a file is missing or damaged, or tensors do not fit the config (all are listed).
  """
  rules = rules or mapping.Rules()
  prefix = find(path)
  cfg, tensors = _read(prefix, rules, lambda name: not _is_optimizer(name))
  return cfg, params_of(cfg, tensors, prefix, rules)


def load_optimizer(path: str | os.PathLike, rules: mapping.Rules | None = None) -> dict[str, Any]:
  """Returns the optimizer state of a checkpoint, to continue its training.

  Returns:
    {"step": int, "m": tree, "v": tree}; m and v are the moments of the parameters, in the parameters' tree.

  Raises:
    UserError: as for `load`, or the checkpoint has no moments.
  """
  rules = rules or mapping.Rules()
  prefix = find(path)
  cfg, tensors = _read(prefix, rules, _is_optimizer)
  if "global_step" not in tensors:
    raise UserError(f"{prefix} holds no global_step: the optimizer state was removed")
  state: dict[str, Any] = {"step": int(tensors["global_step"])}
  for slot, end in _SLOTS.items():
    slots = {name.removesuffix(end): tensor for name, tensor in tensors.items() if name.endswith(end)}
    if not slots:
      raise UserError(f"{prefix} holds no …{end}: the optimizer state was removed")
    state[slot] = params_of(cfg, slots, f"{prefix} (…{end})", rules)
  return state


def find(path: str | os.PathLike) -> str:
  """Returns the prefix of the checkpoint at `path`; a TF-Hub module has it in a folder `variables`."""
  path = pathlib.Path(copies.local(os.fspath(path)))
  hub = path / "variables"
  return tf_checkpoint.find(hub if not list(path.glob("*.index")) and (hub / "variables.index").is_file() else path)


def read_fields(prefix: str) -> dict[str, Any]:
  """Returns the object in the albert_config.json that belongs to a checkpoint."""
  folder = pathlib.Path(prefix).parent
  for place in (folder, folder.parent / "assets"):
    candidates = sorted(place.glob("albert_config*.json"))  # Also albert_config_base.json and similar names.
    if len(candidates) == 1:
      return strict_json.read_object(candidates[0])
    if candidates:
      raise UserError(
        f"several configs beside {prefix}: {', '.join(x.name for x in candidates)}; keep only the right one"
      )
  raise UserError(f"no albert_config.json beside {prefix}: copy the one that came with the checkpoint to {folder}")


def _read(prefix, rules, is_needed):
  """Returns (AlbertConfig, {name: array}) of the variables that `is_needed` selects, with names as in NAMES."""
  fields = read_fields(prefix)
  checkpoint = tf_checkpoint.Checkpoint(prefix)
  cfg = configs.from_fields(fields, _ACTIVATIONS)
  names = {name.removeprefix("module/"): name for name in checkpoint.variables}
  if not any(name.startswith(("output_", "cls/squad", "start_logits", "albert_jax/")) for name in names):
    cfg = configs.corrected(cfg, fields, prefix, rules)
  tensors = {short: checkpoint.read(name) for short, name in names.items() if is_needed(short)}
  if any(_OWN_NORM.match(name) for name in names):
    cfg, tensors = _own_norms(cfg, tensors)
    rules.report(f"{prefix}: every layer has separate layer norms; read as {cfg.num_hidden_groups} groups")
  return cfg, {canonical(name): tensor for name, tensor in tensors.items()}


def canonical(name: str) -> str:
  """Returns a variable's name in the spelling of NAMES; Keras numbers its layer norms and names them differently."""
  inside = re.fullmatch(r"(.*/inner_group_\d+)/layer_normalization(_1)?/(.*)", name)
  if inside:
    return f"{inside[1]}/LayerNorm{inside[2] or ''}/{inside[3]}"
  return re.sub(r"^((?:(?!/inner_group_).)*)/layer_normalization(_\d+)?/", r"\1/LayerNorm/", name)


# Checkpoints of google-research/albert #241: TensorFlow 2 does not share the layer norms between layers.
_GROUP = "bert/encoder/transformer/group_"
_OWN_NORM = re.compile(rf"{_GROUP}\d+(?:_\d+)?/layer_(\d+)/inner_group_(\d+)/layer_normalization(?:_(\d+))?/(.+)")


def _own_norms(cfg, tensors):
  """Returns the same model with one group per layer: shared weights are repeated, layer norms stay separate."""
  norms, shared, result = {}, {}, {}
  for name, tensor in tensors.items():
    if match := _OWN_NORM.fullmatch(name):
      layer, inner, number, leaf = match.groups()
      norms.setdefault((int(layer), inner, leaf), []).append((int(number or 0), name))
    elif name.startswith(_GROUP):
      group, _, rest = name.removeprefix(_GROUP).partition("/")
      shared.setdefault(group, {})[rest] = tensor
    else:
      result[name] = tensor
  for layer in range(cfg.num_hidden_layers):
    for rest, tensor in shared.get(str(cfg.group_of(layer)), {}).items():
      result[f"{_GROUP}{layer}/{rest}"] = tensor
  for (layer, inner, leaf), names in norms.items():
    for i, (_, name) in enumerate(sorted(names)):  # in a layer, the one after attention was numbered first
      result[f"{_GROUP}{layer}/inner_group_{inner}/LayerNorm{f'_{i}' if i else ''}/{leaf}"] = tensors[name]
  return dataclasses.replace(cfg, num_hidden_groups=cfg.num_hidden_layers), result


def _is_optimizer(name):
  return name == "global_step" or name.endswith(tuple(_SLOTS.values()))


def params_of(cfg: AlbertConfig, tensors: dict[str, np.ndarray], where: str, rules: mapping.Rules | None) -> Params:
  """Converts a checkpoint's tensors to our parameters; `where` names the checkpoint in errors."""
  return mapping.to_params(where, cfg, table_of(cfg, tensors), tensors, rules)


def table_of(cfg: AlbertConfig, tensors: dict[str, np.ndarray]) -> list[mapping.Entry]:
  """Returns the entries of all parts and heads of which {name as in NAMES: array} has a tensor."""
  starts = {"pooler": "bert/pooler/", "mlm": "cls/predictions/", "sop": "cls/seq_relationship/"}
  parts = tuple(part for part, start in starts.items() if any(name.startswith(start) for name in tensors))
  starts = {"classifier": "output_", "span": "cls/squad/", "squad_v2": "start_logits/"}
  heads = {}
  for head, start in starts.items():
    if any(name.startswith(start) for name in tensors):
      classes = tensors.get(NAMES.get(f"{head}/bias", ""), np.empty(0)).size
      heads[head] = HEADS[head](cfg.hidden_size, classes)
  for name, tensor in tensors.items():
    if name.startswith("albert_jax/"):
      head, _, path = name.removeprefix("albert_jax/").partition("/")
      heads.setdefault(head, {})[path] = tensor.shape
  return _table(cfg, parts, heads)


def survey(
  path: str | os.PathLike,
) -> tuple[AlbertConfig, dict[str, np.ndarray], dict[str, str], list[mapping.Entry], dict[str, str]]:
  """Returns what `albert-jax convert --inspect` shows; see `hf.survey`."""
  prefix = find(path)
  cfg = configs.from_fields(read_fields(prefix), _ACTIVATIONS)
  tensors = tf_checkpoint.read(prefix)
  names = {name: canonical(name.removeprefix("module/")) for name in tensors}
  notes = {name: "optimizer" for name, short in names.items() if _is_optimizer(short)}
  return (
    cfg,
    tensors,
    names,
    table_of(cfg, {names[name]: tensors[name] for name in tensors if name not in notes}),
    notes,
  )


# Writing.


def save(
  path: str | os.PathLike,
  cfg: AlbertConfig,
  params: Params,
  *,
  vocabulary: Any = None,
  step: int = 0,
  overwrite: bool = False,
) -> None:
  """Writes a folder that the original's programs and TensorFlow can read.

  Args:
    path: the new folder; it is written atomically.
    params: our parameters, of any array type; all their parts and heads are written.
    vocabulary: a `Tokenizer` or the path of its file.
    step: written as global_step.
    overwrite: replace an existing folder.

  Raises:
    UserError: `path` exists, or the original cannot compute the model or read the vocabulary.
  """
  activation = {"gelu_new": "gelu", "relu": "relu"}.get(cfg.hidden_act)
  if activation is None:
    raise UserError(
      f"hidden_act={cfg.hidden_act}: the original has only the tanh form, gelu_new; convert to Hugging Face "
      "instead (--to=hf)"
    )
  if cfg.layer_norm_eps != LAYER_NORM_EPS:
    raise UserError(
      f"layer_norm_eps={cfg.layer_norm_eps:g}: the original has only {LAYER_NORM_EPS:g}; convert to Hugging Face "
      "instead (--to=hf)"
    )
  mapping.refuse_ours(cfg, "the original")
  if cfg.square_projection:
    raise UserError(
      "square_projection: the original has no projection where embeddings are as wide as the layers; convert to "
      "Hugging Face instead (--to=hf)"
    )
  groups = len(mapping.stored_layers(cfg))
  N = cfg.num_hidden_layers
  if groups == N and any(mapping.original_group(n, N, N) != n for n in range(N)):
    raise UserError(
      f"{N} layers that share nothing: the original's rounding would run some layers twice; "
      "convert to Hugging Face instead (--to=hf)"
    )
  tokenizer = vocabulary if isinstance(vocabulary, Tokenizer | None) else Tokenizer(vocabulary)
  if tokenizer is not None and tokenizer.path.endswith(".json"):
    raise UserError(
      f"the original reads no {tokenizer.path}; give the vocabulary as spiece.model or vocab.txt, with --spm=FILE"
    )
  tensors = mapping.to_tensors(_table(cfg, *mapping.shapes_of(params)), params)
  fields, ours = configs.to_fields(cfg, groups)
  # The original's scripts set the classifier's dropout.
  fields = {**fields, "hidden_act": activation, "down_scale_factor": 1, "net_structure_type": 0, **ours}
  with files.writing_folder(path, overwrite=overwrite) as folder:
    (folder / "albert_config.json").write_text(json.dumps(fields, indent=2) + "\n", "utf-8")
    tf_checkpoint.write(folder / "model.ckpt-best", {**tensors, "global_step": np.array(step, np.int64)})
    if tokenizer is not None:
      name = "vocab_chinese.txt" if tokenizer.path.endswith(".txt") else "30k-clean.model"
      shutil.copyfile(tokenizer.path, folder / name)
      (folder / RULES_FILE).write_bytes(rules_file(tokenizer.lower, tokenizer.keep_accents))
