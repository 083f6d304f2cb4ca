"""Multiple choice: RACE, DREAM, SWAG, and your own questions. Variants are the sizes.

  albert-jax train --config=configs/race.py:base --config.init_from=CHECKPOINT --config.data.dataset=RACE --workdir=RUN

data.dataset is RACE's folder (train, dev and test, in each middle and high), a folder with train.json and dev.json of
DREAM, train.csv and val.csv of SWAG, or train.jsonl and dev.jsonl with a context, a question, options and a label a
line; docs/finetuning.md shows them.
"""

from albert_jax.configs import common
from albert_jax.data.finetuning.config import ChoiceData


def get_config(variant: str = "base"):
  config = common.finetune(variant, "choice", ChoiceData())
  config.task.keep_head = False  # go on with the checkpoint's own head
  config.best = "accuracy"
  # The paper's values for RACE (arXiv 1909.11942, table 14), whose classifier dropout is 0.1 and length 512; the
  # original's README takes 1e-5 and no dropout for v2.
  config.optimizer.learning_rate = 2e-5
  config.optimizer.warmup_steps = 1_000
  config.batch_size = 32
  config.model.hidden_dropout_prob = config.model.attention_probs_dropout_prob = 0.1
  config.model.classifier_dropout_prob = 0.1
  config.epochs, config.steps = 0.0, 12_000
  config.eval_every = config.checkpoint_every = 1_200
  return config
