"""Config files of other libraries: absent fields get defaults, known errors are corrected."""

import dataclasses
import os
import pathlib
import re
from typing import Any

from albert_jax import strict_json
from albert_jax.convert.mapping import Rules
from albert_jax.errors import UserError
from albert_jax.model import VARIANTS, AlbertConfig
from albert_jax.model.config import COMPUTING

# Configs of other libraries have no fields for sharing within a group and for how to compute (Hugging Face's `dtype` is
# that of the stored numbers). These fields are stored under one key.
OURS = "albert_jax"
OUR_FIELDS = ("share", "num_hidden_groups", "unshared_ends", "layer_rank", "arch", "dtype", "remat")
_NOT_THERE = ("share", "unshared_ends", "layer_rank", "arch", "square_projection", *COMPUTING)
FIELDS = tuple(f.name for f in dataclasses.fields(AlbertConfig) if f.name not in _NOT_THERE)

# Keys that only Google's files have. Files converted from one have them too.
_GOOGLES = {"down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"}
_SHAPE = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
          "intermediate_size", "num_hidden_groups", "inner_group_num")  # fmt: skip
_CORRECTED = ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")


def from_fields(fields_in_file: dict[str, Any], activations: dict[str, str]) -> AlbertConfig:
  """Returns the AlbertConfig of a config file of another library.

  Args:
    fields_in_file: the file's object.
    activations: {the file's name: our name}, for those that differ.
  Returns:
    the AlbertConfig.
  Raises:
    UserError: a value is of another kind, or out of its range.
  """
  # Absent fields have the defaults of Google's and Hugging Face's code, which are those of xxlarge.
  fields = dataclasses.asdict(VARIANTS["xxlarge"]) | {
    name: fields_in_file[name] for name in FIELDS if name in fields_in_file
  }
  ours = strict_json.expect(fields_in_file.get(OURS) or {}, f"{OURS} in config.json", dict)
  fields |= {name: value for name, value in ours.items() if name in OUR_FIELDS}
  if (kind := fields_in_file.get("position_embedding_type") or "absolute") != "absolute":
    raise UserError(
      f"position_embedding_type={kind!r} is another attention than this model's, which adds absolute positions to the "
      "embeddings; give a checkpoint with position_embedding_type='absolute'"
    )
  if isinstance(fields["hidden_act"], str):
    fields["hidden_act"] = activations.get(fields["hidden_act"], fields["hidden_act"])
  if fields["classifier_dropout_prob"] is None:
    fields["classifier_dropout_prob"] = fields["hidden_dropout_prob"]
  return AlbertConfig(**fields)


def to_fields(cfg: AlbertConfig, groups: int) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the fields of a config file for a format that stores `groups` groups."""
  fields = {name: getattr(cfg, name) for name in FIELDS} | {"num_hidden_groups": groups}
  return fields, {OURS: {name: getattr(cfg, name) for name in OUR_FIELDS}}


def corrected(cfg: AlbertConfig, fields_in_file: dict[str, Any], path: str | os.PathLike, rules: Rules) -> AlbertConfig:
  """Corrects known errors of released configs, and reports them (google-research/albert #23, transformers #2395).

  Hugging Face's v1 configs say `gelu` (exact) for weights trained with the tanh form; early v2 configs have dropout.
  A released model is identified by its sizes and its name (`albert-base-v2`, in the path or in the file), its
  activation also by keys that only Google's files have. Do not call this for a model that was trained further.
  """
  text = f"{fields_in_file.get('_name_or_path', '')} {'/'.join(pathlib.Path(path).absolute().parts[-3:])}"
  name = re.search(r"albert[-_](base|large|xlarge|xxlarge)[-_](v1|v2|zh)", text)
  right = {}
  if name:
    size, version = name.groups()
    known = VARIANTS[size if version == "v2" else f"{size}_{version}"]
    if all(getattr(cfg, field) == getattr(known, field) for field in _SHAPE):
      right = {field: getattr(known, field) for field in _CORRECTED}
  elif cfg.hidden_act == "gelu" and _GOOGLES & fields_in_file.keys():
    for size in ("base", "large", "xlarge", "xxlarge"):
      if all(getattr(cfg, field) == getattr(VARIANTS[size], field) for field in _SHAPE):
        right = {"hidden_act": "gelu_new"}
  wrong = {field: value for field, value in right.items() if getattr(cfg, field) != value}
  for field, value in wrong.items():
    note = f"{path}: the config says {field}={getattr(cfg, field)}, these weights were trained with {value}; "
    choice = "keeping the file's" if rules.keep_config else f"using {value} (keep_config keeps the file's)"
    rules.report(note + choice)
  return cfg if rules.keep_config else dataclasses.replace(cfg, **wrong)
