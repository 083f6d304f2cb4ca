"""Any checkpoint to (AlbertConfig, params): says by itself what it is."""

import json
import pathlib

from albert_jax.convert import hf
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


def load(path):
  """Reads the weights at `path`.

  Args: path: a Hugging Face directory, or the workdir of a complete run (its `export` is read).
  Returns: (AlbertConfig, params), params a nested dict of float32 numpy arrays with the parts and heads that are there.
  Raises: UserError if there is no checkpoint at `path`, or it does not fit its own config.
  """
  return hf.load(_folder(path))


def load_tokenizer(path) -> Tokenizer:
  """The tokenizer of the checkpoint at `path`, with the rules its tokenizer_config.json names.

  Raises: UserError if there is no vocabulary.
  """
  folder = _folder(path)
  for name in ("spiece.model", "vocab.txt"):
    if (folder / name).is_file():
      rules = folder / "tokenizer_config.json"
      said = json.loads(rules.read_text("utf-8")) if rules.is_file() else {}
      return Tokenizer(
        folder / name, lower=said.get("do_lower_case", True), keep_accents=said.get("keep_accents", False)
      )
  raise UserError(f"{str(folder)!r} holds no spiece.model; copy the model's vocabulary there")


def _folder(path):
  path = pathlib.Path(path)
  for folder in (path, path / "export"):
    if (folder / "model.safetensors").is_file():
      return folder
  if not path.exists():
    raise UserError(f"nothing at {str(path)!r}; give a folder with config.json and model.safetensors")
  raise UserError(f"{str(path)!r} holds no model.safetensors; give a Hugging Face directory, such as RUN/export")
