"""SQuAD 1.1 and 2.0, and data of their form. Variants: a size for 2.0 (base … xxlarge), or with its version (base-1.1).

The hyper-parameters are those of the paper's table 14, also for 2.0's beam head. Official files or a TFDS name:

  albert-jax train --config=configs/squad.py:base --config.init_from=DIR --config.data.dataset=squad/v2.0 --workdir=RUN
  albert-jax train --config=configs/squad.py:base-1.1 --config.init_from=DIR --config.data.dataset=FOLDER --workdir=RUN
"""

from ml_collections import ConfigDict

from albert_jax.configs import common
from albert_jax.data.finetuning.config import SquadData
from albert_jax.errors import UserError

# Table 14 of the paper, and which head it uses. All: AdamW, batch 48, length 384, no dropout but the classifier's 0.1.
VERSIONS = {
  #       learning rate, steps, warm-up, head, may there be no answer, the best checkpoint by
  "1.1": (5e-5, 3649, 365, "span", False, "f1"),
  "2.0": (3e-5, 8144, 814, "beam", True, "best_f1"),
}


def get_config(variant: str = "base") -> ConfigDict:
  size, _, version = variant.partition("-")
  version = version or "2.0"
  if version not in VERSIONS:
    raise UserError(f"no SQuAD {version!r}; there are {', '.join(VERSIONS)}, as in base-1.1")
  rate, steps, warmup, head, no_answer, best = VERSIONS[version]
  config = common.finetune(size, "squad", SquadData())
  config.epochs = 0.0
  config.steps = steps
  config.batch_size = 48
  config.best = best
  config.optimizer.learning_rate = rate
  config.optimizer.warmup_steps = warmup
  config.model.hidden_dropout_prob = 0.0
  config.model.attention_probs_dropout_prob = 0.0
  config.model.classifier_dropout_prob = 0.1
  config.task.update({
    "head": head,  # span: any transformers opens it; beam: the paper's for 2.0
    "no_answer": no_answer,  # some questions have none
    "null_threshold": 0.0,  # say that there is none above these odds
    "language": "",  # en: F1 over words; zh: over characters, as CMRC has it; '': by what the answers are written in
    "doc_stride": 128,  # tokens from one window of a long passage to the next
    "max_query_length": 64,
    "max_answer_length": 30,  # of what is predicted; tokens
    "n_best": 20,
    "start_n_top": 5,  # beam: starts that are tried, and ends for each
    "end_n_top": 5,
  })  # fmt: skip
  return config
