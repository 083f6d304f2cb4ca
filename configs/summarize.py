"""Extractive summaries: which sentences of a document to keep. Variants are the sizes.

  albert-jax train --config=configs/summarize.py:base --config.init_from=CHECKPOINT --config.data.dataset=DIR \\
    --workdir=RUN

DIR holds train.jsonl and dev.jsonl with lines {"document": text or list of sentences, "summary": text}, or with
"labels": a 0 or 1 for each sentence, instead of a summary. ALBERT's paper has no such task; the values are BERT's usual
ones for fine-tuning (appendix A.3 of its paper).
"""

from albert_jax.configs import common
from albert_jax.data.finetuning.config import SummarizeData


def get_config(variant: str = "base"):
  config = common.finetune(variant, "summarize", SummarizeData())
  config.task.sentences = 3  # of a summary, and of what training takes for the best one
  config.task.trigram_blocking = True  # no sentence that repeats three words in a row of a better one
  config.batch_size = 16
  config.best = "rouge2"
  config.optimizer.learning_rate = 3e-5
  return config
