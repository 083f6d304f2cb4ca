"""The commands: one file each, with `main(argv)`, and this table of what they do."""

COMMANDS = {
  "vocab": "train a SentencePiece vocabulary on a corpus",
  "prepare": "turn a corpus into a dataset of token segments",
  "phonemes": "turn a corpus into words with phonemes, for PL-BERT",
  "audit": "what a model will see of a dataset, and what is wrong with it",
  "train": "pre-train or fine-tune a model; resumes by itself",
  "evaluate": "the numbers of a checkpoint on held-out data, as JSON",
  "predict": "what a trained model says of texts: lines in, JSON lines out",
  "serve": "models behind HTTP, with a page to try them",
  "suite": "a set of fine-tuning tasks and seeds, and one table beside the published numbers",
  "plan": "will it fit a TPU that is not there, and how long will it take",
  "convert": "weights from any format to another, or looked into",
  "export": "one folder for every runtime: ONNX, StableHLO, sentence-transformers, a model card",
  "push": "upload an export to the Hugging Face Hub",
  "plot": "the curves of one or more runs as a picture",
  "doctor": "check this machine: versions, devices, disk, a self-test, what is missing",
  "bench": "check and measure this device: correctness, speed, and one table",
  "completion": "tab completion for bash, zsh or fish",
}
