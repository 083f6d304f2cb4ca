"""`albert-jax COMMAND …`: a table of commands, nothing else."""

import gc
import importlib
import sys

from albert_jax.commands import common
from albert_jax.errors import UserError

COMMANDS = {
  "vocab": "train a SentencePiece vocabulary on a corpus",
  "prepare": "turn a corpus into a dataset of token segments",
  "phonemes": "turn a corpus into words with phonemes, for PL-BERT",
  "audit": "what a model will see of a dataset, and what is wrong with it",
  "train": "pre-train a model; resumes by itself",
  "evaluate": "the numbers of a checkpoint on held-out data, as JSON",
  "predict": "what a trained model says of texts: lines in, JSON lines out",
  "serve": "models behind HTTP, with a page to try them",
  "suite": "a set of fine-tuning tasks and seeds, and one table beside the published numbers",
  "plan": "will it fit a TPU that is not there, and how long will it take",
  "convert": "weights from any format to another, or looked into",
  "export": "one folder for every runtime: ONNX, StableHLO, sentence-transformers, a model card",
}


def main(argv=None) -> int:
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ("-h", "--help", "help"):
    listed = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    print(f"usage: albert-jax COMMAND [--help] …\n\ncommands:\n{listed}")
    return 0 if argv else 2
  if argv[0] not in COMMANDS:
    print(f"albert-jax: no command {argv[0]!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
    return 2
  common.keep_compiled()
  common.show_messages()
  if argv[0] in ("train", "evaluate", "predict", "serve"):
    common.keep_memory()
    # Tracing makes many objects that stay; looking for garbage among them takes long and finds little.
    gc.set_threshold(100_000)
  try:
    return _imported(f"albert_jax.commands.{argv[0]}").main(argv[1:]) or 0
  except UserError as error:
    print(f"albert-jax {argv[0]}: {error}", file=sys.stderr)
    return 2
  except (OSError, FloatingPointError) as error:
    print(f"albert-jax {argv[0]}: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f"albert-jax {argv[0]}: interrupted", file=sys.stderr)
    return 130


def _imported(module):
  """A module. Nobody looks for garbage among what its imports make, then or later: it stays."""
  gc.disable()
  try:
    return importlib.import_module(module)
  finally:
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
  sys.exit(main())
