"""Tagging words: names (WNUT-17, CoNLL-2003, LitBank), parts of speech, your own. Variants are the sizes.

  albert-jax train --config=configs/ner.py:base --config.init_from=CHECKPOINT --config.data.dataset=DIR --workdir=RUN

DIR holds train.conll and dev.conll (or .txt, .tsv, .jsonl; see docs/finetuning.md). ALBERT's paper tags nothing; the
values are from the ranges of BERT's (appendix A.3: batch 16 or 32, rate 2e-5 to 5e-5, 2 to 4 epochs).
"""

from albert_jax.configs import common
from albert_jax.data.finetuning.config import TaggingData


def get_config(variant: str = "base"):
  config = common.finetune(variant, "ner", TaggingData())
  config.task.labels = ""  # B-PER,I-PER,O: names in the order of the outputs; '' for those of the training data
  config.task.keep_head = False  # go on with the checkpoint's classifier, which has to have the same labels
  config.task.label_smoothing = 0.0
  config.batch_size = 16
  config.epochs = 4.0
  config.best = "f1"
  config.optimizer.learning_rate = 5e-5
  return config
