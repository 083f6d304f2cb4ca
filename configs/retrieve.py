"""Sentence embeddings, finding answers, choosing replies. Variants are the sizes.

  albert-jax train --config=configs/retrieve.py:base --config.init_from=CHECKPOINT --config.data.dataset=DIR \\
    --workdir=RUN

DIR holds train.jsonl and dev.jsonl (or .tsv, .csv, .parquet) with the fields query and answer, or two like texts and
how alike they are, as STS-B has them: --config.data.query_field=sentence1 --config.data.answer_field=sentence2
--config.data.score_field=score --config.task.score_range=0,5 --config.best=spearman. ALBERT's paper has no such task;
temperature and batch are those of SimCSE (arXiv 2104.08821, supervised, base size).
"""

from albert_jax.configs import common
from albert_jax.data.finetuning.config import RetrieveData


def get_config(variant: str = "base"):
  config = common.finetune(variant, "retrieve", RetrieveData())
  config.task.pooling = "mean"  # or cls: what of the encoder's output is a text's embedding
  config.task.temperature = 0.05  # cosines are divided by it
  config.task.score_range = "0,1"  # the lowest and the highest score there can be
  config.batch_size = 64  # also: how many answers a query has to choose from in training
  config.best = "mrr"
  config.optimizer.learning_rate = 5e-5
  return config
