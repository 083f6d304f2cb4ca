"""ALBERT in JAX. The whole public interface: a config, plain parameters, and functions of them."""

import importlib

# Imported on first use: worker processes that only make batches import this package too, and must not load JAX.
_HOME = {
  "VARIANTS": "model", "AlbertConfig": "model", "apply": "model", "init": "model", "param_count": "model",
  "prepare": "data.corpus.prepare", "train_vocabulary": "data.corpus.vocab",
  "load": "convert", "save": "convert",
  "pipeline": "pipelines", "train": "loop", "evaluate": "evaluation", "plan": "planning",
  "export": "exports.folder",
  "Tokenizer": "data.tokenizer", "Params": "types", "Batch": "types", "UserError": "errors",
}  # fmt: skip
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name):
  if name == "__version__":
    return importlib.import_module(f"{__name__}.versions").installed()
  if name not in _HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
  return __all__
