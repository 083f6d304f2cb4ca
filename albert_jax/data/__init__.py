"""Makes batches from text, with numpy only. Modules that moved are available under their old names until 0.3."""

import importlib
import warnings

_MOVED = {
  "draws": "rng", "source": "datasets",
  "near_duplicates": "corpus.near_duplicates", "prepare": "corpus.prepare", "python_docs": "corpus.python_docs",
  "readers": "corpus.readers", "runners": "corpus.runners", "sentences": "corpus.sentences",
  "shards": "corpus.shards", "tokenise": "corpus.segments", "vocab": "corpus.vocab",
  "audit": "pretraining.audit", "masking": "pretraining.masking", "mixture": "pretraining.mixture",
  "packing": "pretraining.packing", "pairs": "pretraining.pairs", "pipeline": "pretraining.batching",
  "pretrain": "pretraining.examples",
  "choices": "finetuning.choices", "examples": "finetuning.tables", "finetune": "finetuning.batching",
  "squad": "finetuning.squad", "tagged": "finetuning.tagged", "windows": "finetuning.windows",
}  # fmt: skip


def __getattr__(name):
  if name not in _MOVED:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  new = f"{__name__}.{_MOVED[name]}"
  warnings.warn(f"{__name__}.{name} is {new} now", DeprecationWarning, stacklevel=2)
  return importlib.import_module(new)
