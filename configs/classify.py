"""A text, or a pair of texts, to a label, several labels or a number, on your own data. Variants are the sizes.

  albert-jax train --config=configs/classify.py:base --config.init_from=CHECKPOINT --config.data.dataset=DIR \\
    --config.data.text_fields=question,answer --config.data.label_field=good --workdir=RUN

DIR holds train.csv and dev.csv, or .tsv, .jsonl, .json or .parquet. docs/finetuning.md has commands for topics, spam,
sentiment, inference and the quality of translations. The values are from the ranges of BERT's paper (appendix A.3:
batch 16 or 32, rate 2e-5 to 5e-5, 2 to 4 epochs); tiny has Muon, from which small models learn sooner.
"""

from albert_jax.configs import common
from albert_jax.data.finetuning.config import ClassifyData
from albert_jax.training.optimizer import SMALL_MODEL


def get_config(variant: str = "base"):
  config = common.finetune(variant, "classify", ClassifyData())
  config.task.kind = "classification"  # or regression, or multilabel: any number of labels a row
  config.task.labels = ""  # neg,pos: names in the order of the outputs; '' for those of the training data, sorted
  config.task.keep_head = False  # go on with the checkpoint's classifier, which has to have the same labels
  options(config)
  if variant == "tiny":  # For a small model of your own.
    config.optimizer.update(SMALL_MODEL)
  config.best = "loss"
  return config


def options(config):
  """What the loss of any classifier may be changed by."""
  config.task.class_weights = ""  # balanced: every label weighs as much as any other, however few rows it has
  config.task.label_smoothing = 0.0
  config.task.r_drop = 0.0  # weight of R-Drop: two passes with other dropout are to agree (arXiv 2106.14448)
