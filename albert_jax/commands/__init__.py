"""The commands: one file each, with `main(argv)`, and this table of what they do."""

COMMANDS = {
  "vocab": "train a SentencePiece vocabulary on a corpus",
  "prepare": "turn a corpus into a dataset of token segments",
  "phonemes": "turn a corpus into words with phonemes, for PL-BERT",
  "audit": "measure the examples of a dataset, and flag what is out of range",
  "train": "pre-train or fine-tune a model; resumes by itself",
  "evaluate": "compute the held-out metrics of a checkpoint, as JSON",
  "predict": "run a trained model on texts: lines in, JSON lines out",
  "serve": "serve models over HTTP, with a page to try them",
  "suite": "fine-tune on several tasks and seeds, beside published numbers",
  "plan": "estimate memory and time on TPUs or GPUs that you do not have",
  "convert": "convert weights from one format to another, or inspect them",
  "export": "write a folder for ONNX Runtime, StableHLO and other programs",
  "push": "upload an export to the Hugging Face Hub",
  "plot": "the curves of one or more runs as a picture",
  "doctor": "check this machine: versions, devices, disk, a self-test, packages",
  "bench": "check and measure this device: correctness, speed, and one table",
  "completion": "print a script for tab completion in bash, zsh or fish",
}
