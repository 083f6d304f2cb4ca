"""Foreign config files: read leniently where they are silent, corrected where they are known to be wrong."""

import dataclasses
import pathlib
import re

from albert_jax import strict_json
from albert_jax.model import VARIANTS, AlbertConfig
from albert_jax.model.config import COMPUTING

# Foreign configs have no fields for what we share within a group and how we compute (Hugging Face's `dtype` is that of
# the stored numbers); these go under one key of their own.
OURS = "albert_jax"
OUR_FIELDS = ("share", "num_hidden_groups", "dtype", "remat")
_NOT_THERE = ("share", "square_projection", *COMPUTING)
FIELDS = tuple(f.name for f in dataclasses.fields(AlbertConfig) if f.name not in _NOT_THERE)

# Keys that only Google's files have; what was converted from one carries them along.
_GOOGLES = {"down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"}
_SHAPE = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
          "intermediate_size", "num_hidden_groups", "inner_group_num")  # fmt: skip
_CORRECTED = ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")


def from_fields(found, activations):
  """The AlbertConfig of a foreign config.

  Args:
    found: the file's object.
    activations: {name there: name here}, for those that differ.
  Returns:
    the AlbertConfig.
  Raises:
    UserError: a value is of another kind, or out of its range.
  """
  # What a file leaves out has the default of Google's and of Hugging Face's code, which is xxlarge.
  fields = dataclasses.asdict(VARIANTS["xxlarge"]) | {name: found[name] for name in FIELDS if name in found}
  ours = strict_json.expect(found.get(OURS) or {}, f"{OURS} in config.json", dict)
  fields |= {name: value for name, value in ours.items() if name in OUR_FIELDS}
  if isinstance(fields["hidden_act"], str):
    fields["hidden_act"] = activations.get(fields["hidden_act"], fields["hidden_act"])
  if fields["classifier_dropout_prob"] is None:
    fields["classifier_dropout_prob"] = fields["hidden_dropout_prob"]
  return AlbertConfig(**fields)


def to_fields(cfg, groups):
  """A foreign config's fields, for a format that stores `groups` groups."""
  fields = {name: getattr(cfg, name) for name in FIELDS} | {"num_hidden_groups": groups}
  return fields, {OURS: {name: getattr(cfg, name) for name in OUR_FIELDS}}


def corrected(cfg, found, path, rules):
  """The config with what is known to be wrong put right, saying so (google-research/albert #23, transformers #2395).

  Hugging Face's v1 configs say `gelu` (exact) for weights trained with the tanh form; early v2 configs had dropout. A
  released model is known by its sizes and its name (`albert-base-v2`, in the path or in the file), the activation also
  by the keys that only Google's files have. For a model that was trained further, the file is right: do not call this.
  """
  text = f"{found.get('_name_or_path', '')} {'/'.join(pathlib.Path(path).absolute().parts[-3:])}"
  name = re.search(r"albert[-_](base|large|xlarge|xxlarge)[-_](v1|v2|zh)", text)
  right = {}
  if name:
    size, version = name.groups()
    known = VARIANTS[size if version == "v2" else f"{size}_{version}"]
    if all(getattr(cfg, field) == getattr(known, field) for field in _SHAPE):
      right = {field: getattr(known, field) for field in _CORRECTED}
  elif cfg.hidden_act == "gelu" and _GOOGLES & found.keys():
    for size in ("base", "large", "xlarge", "xxlarge"):
      if all(getattr(cfg, field) == getattr(VARIANTS[size], field) for field in _SHAPE):
        right = {"hidden_act": "gelu_new"}
  wrong = {field: value for field, value in right.items() if getattr(cfg, field) != value}
  for field, value in wrong.items():
    there = f"{path}: the config says {field}={getattr(cfg, field)}, these weights were trained with {value}; "
    rules.say(there + ("keeping the file's" if rules.keep_config else f"using {value} (keep_config keeps the file's)"))
  return cfg if rules.keep_config else dataclasses.replace(cfg, **wrong)
