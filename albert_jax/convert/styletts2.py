"""Reads and writes PL-BERT, the phoneme encoder of speech synthesis, in the formats of StyleTTS2 and Kokoro.

StyleTTS2 (read and written): `config.yml` and `step_N.t7`; the largest N is read. Its `net` has an AlbertModel as
  `module.encoder.NAME` and the two heads of pre-training as `module.mask_predictor` and `module.word_predictor`.
Kokoro (read): `config.json` with `plbert`, and one `.pth` with the dict `bert` or one `.safetensors` with names that
  start with `bert.`; the names of the AlbertModel are `module.NAME` or `NAME`.
"""

import logging
import os
import pathlib
import re
from typing import Any

import numpy as np
import yaml

from albert_jax import files, strict_json
from albert_jax.convert import configs, hf, mapping, torch_file
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.types import Params

log = logging.getLogger(__name__)

# Our heads (tasks/plbert.py) and their names in PL-BERT.
HEADS = {"phoneme": "mask_predictor", "word": "word_predictor"}
_ENCODER = ("embeddings", "projection", "attention", "ffn", "pooler")


def is_here(folder: str | os.PathLike) -> bool:
  """Returns whether a folder has a PL-BERT of StyleTTS2 or Kokoro."""
  folder = pathlib.Path(folder)
  if (folder / "config.yml").is_file():
    return bool(_steps(folder))
  path = folder / "config.json"
  return path.is_file() and isinstance(strict_json.read_object(path).get("plbert"), dict)


def load(path: str | os.PathLike, rules: mapping.Rules | None = None) -> tuple[AlbertConfig, Params]:
  """Reads the encoder, and the heads of StyleTTS2's pre-training if the folder has them.

  Args:
    path: a folder.
    rules: `mapping.Rules`; None: strict.

  Returns:
    (AlbertConfig, params): float32 numpy arrays in our tree, the heads as "phoneme" and "word".

  Raises:
    UserError: a file is missing, damaged or holds code, or tensors do not fit the config (all are listed).
  """
  cfg, tensors, names, where = _read(path)
  tensors = hf.canonical({names[name]: tensor for name, tensor in tensors.items()}, where)
  return cfg, hf.params_of(cfg, tensors, where, rules or mapping.Rules())


def survey(
  path: str | os.PathLike,
) -> tuple[AlbertConfig, dict[str, np.ndarray], dict[str, str], list[mapping.Entry], dict[str, str]]:
  """What `albert-jax convert --inspect` shows, see `hf.survey`."""
  cfg, tensors, names, _ = _read(path)
  canonical = hf.canonical_names(names.values())
  names = {name: canonical[short] for name, short in names.items()}
  notes = {name: "buffer" for name, short in names.items() if short.endswith(hf.BUFFERS)}
  table = hf.table_of(cfg, {names[name]: tensor for name, tensor in tensors.items()})
  return cfg, tensors, names, table, notes


def _read(path):
  """Returns (AlbertConfig, {name: array}, {name: name in a directory of Hugging Face}, the file of the tensors)."""
  folder = pathlib.Path(path)
  if (folder / "config.yml").is_file():
    fields, file = _read_yaml(folder / "config.yml"), _steps(folder)[-1]
    tensors = torch_file.read_tensors(file, "net")
    names = {name: name.removeprefix("module.") for name in tensors}
    # AlbertModel has its own `encoder.`, which stays.
    names = {name: short.removeprefix("encoder.") for name, short in names.items()}
  else:
    fields, file = _kokoro_config(folder / "config.json"), _only_weights(folder)
    tensors = _kokoro_tensors(file)
    names = {name: re.sub(r"^(bert\.)?(module\.)?", "", name) for name in tensors}
  tensors = {name: _head_kernel(names[name], tensor) for name, tensor in tensors.items()}
  return hf.from_fields(fields, file), tensors, {name: _head_name(short) for name, short in names.items()}, file


def _head_name(short):
  """Returns the name of `mask_predictor.weight` and the like in our Hugging Face directories."""
  for head, theirs in HEADS.items():
    if short.startswith(f"{theirs}."):
      return f"{hf.FREE}{head}." + ("kernel" if short.endswith("weight") else "bias")
  return short


def _head_kernel(short, tensor):
  """Converts PyTorch's [out, in] to our [in, out], for the heads."""
  return tensor.T if short in [f"{theirs}.weight" for theirs in HEADS.values()] and tensor.ndim == 2 else tensor


def _steps(folder):
  """Returns the checkpoints of a folder, the newest last."""
  steps = {int(match[1]): file for file in folder.glob("step_*.t7") if (match := re.search(r"_(\d+)\.t7$", file.name))}
  return [steps[step] for step in sorted(steps)]


def _read_yaml(path):
  """Returns the fields of AlbertConfig in a config.yml."""
  try:
    document = yaml.safe_load(path.read_text("utf-8"))
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise UserError(f"{path} is not YAML: {' '.join(str(error).split()):.100}") from None
  if not isinstance(document, dict) or not isinstance(document.get("model_params"), dict):
    raise UserError(f"{path} has no model_params; expected the config.yml of a PL-BERT, with the model's sizes in it")
  return document["model_params"] | {configs.OURS: document.get(configs.OURS)}


def _kokoro_config(path):
  """Returns the fields of AlbertConfig in Kokoro's config.json."""
  fields = strict_json.read_object(path)
  if "n_token" not in fields:
    raise UserError(f"{path} has no n_token; expected the config.json of Kokoro, with n_token and plbert")
  return {"vocab_size": fields["n_token"], **fields["plbert"]}


def _only_weights(folder):
  files = sorted([*folder.glob("*.pth"), *folder.glob("*.safetensors")])
  if len(files) != 1:
    names = ", ".join(file.name for file in files) or "none"
    raise UserError(f"{folder} has {names}; expected one file of weights, .pth or .safetensors, beside config.json")
  return files[0]


def _kokoro_tensors(file):
  if file.suffix == ".pth":
    return torch_file.read_tensors(file, "bert")
  tensors = {name: value for name, value in hf.read_safetensors(file).items() if name.startswith("bert.")}
  if not tensors:
    raise UserError(f"{file} has no tensor whose name begins with bert.; expected a checkpoint of Kokoro")
  return tensors


# Writing.


def save(
  path: str | os.PathLike,
  cfg: AlbertConfig,
  params: Params,
  *,
  step: int = 1,
  symbols: Any = None,
  overwrite: bool = False,
) -> None:
  """Writes a folder that StyleTTS2 reads as its PL-BERT (`PLBERT_dir` of its config).

  Args:
    path: the new folder; it is written atomically.
    params: our parameters, of any array type. The encoder and the heads "phoneme" and "word" are written; other heads
      are left out, with a warning.
    step: the N of `step_N.t7`.
    symbols: the symbol table to add, an object with `write(folder)`, or None.
    overwrite: replace an existing folder.

  Raises:
    UserError: `path` exists, or a parameter does not fit the config or is not finite.
  """
  mapping.refuse_ours(cfg, "StyleTTS2")
  left = sorted(params.keys() - {*_ENCODER, *HEADS})
  if left:
    log.warning("%s: StyleTTS2 has no place for %s; left out", path, ", ".join(left))
  encoder = {name: part for name, part in params.items() if name in _ENCODER}
  tensors = {
    f"encoder.{name}": tensor for name, tensor in hf.tensors_of(cfg, encoder, architecture="AlbertModel").items()
  }
  # StyleTTS2 deletes this tensor, which old versions of transformers wrote, without checking that it exists.
  tensors["encoder.embeddings.position_ids"] = np.arange(cfg.max_position_embeddings, dtype=np.int64)[None]
  for head, name in HEADS.items():
    if head in params:
      tensors[f"{name}.weight"] = np.ascontiguousarray(np.asarray(params[head]["kernel"], np.float32).T)
      tensors[f"{name}.bias"] = np.asarray(params[head]["bias"], np.float32)
  fields, ours = configs.to_fields(cfg, len(mapping.stored_layers(cfg, hf.group)))
  with files.writing_folder(path, overwrite=overwrite) as folder:
    text = yaml.safe_dump({"model_params": fields} | ours, sort_keys=False)
    (folder / "config.yml").write_text(text, "utf-8")
    net = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch_file.write(folder / f"step_{step}.t7", {"net": net, "step": step})
    if symbols is not None:
      symbols.write(folder)
