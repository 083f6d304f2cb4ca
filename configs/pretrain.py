"""Pre-training: MLM with n-gram masks, and sentence order. Variants are the sizes, e.g. configs/pretrain.py:base.

base to xxlarge are the paper's recipe: LAMB, batch 4096, learning rate 0.00176, 125,000 steps, 3,125 of them warm-up,
length 512 (section 4.1). At another batch size lower the learning rate too: at batch 32 the paper's rate never leaves
the unigram plateau.

  albert-jax train --config=configs/pretrain.py:base --config.data.dataset=DIR --workdir=RUN
"""

import dataclasses

from ml_collections import ConfigDict

from albert_jax.configs import common
from albert_jax.data.pretraining.batching import DataConfig
from albert_jax.model import VARIANTS


def get_config(variant: str = "base") -> ConfigDict:
  common.check_variant(variant, (*SMALL, *VARIANTS))
  small = variant in SMALL
  config = common.get_config("tiny" if small else variant)
  config.task = ConfigDict({"name": "pretrain"})
  config.loss = ConfigDict({"mlm_weight": 1.0, "sop_weight": 1.0})
  config.data = ConfigDict(dataclasses.asdict(DataConfig(dataset="", seq_length=512)))
  # Far outside the normal range: in four pre-training runs no logged loss was above the median of those before it, and
  # no gradient norm above 1.7 times its median. (In fine-tuning a loss was 3.4 times its median, so the check is off.)
  config.guard.loss_spike, config.guard.grad_spike = 2.5, 100.0
  if small:
    config.update(SMALL[variant])
  return config


# For one machine without an accelerator; measured numbers are in docs/benchmarks/tasks.md. AdamW has its textbook form:
# without bias correction, as in the original, the first steps of a short run are several times larger.
_MUON = {"name": "muon", "b1": 0.95, "weight_decay": 0.1, "schedule": "wsd"}
_WORDS = {"mask_rate": 0.3, "ngram": 1}
SMALL = {
  # The first run (launch/local.sh), on the documentation that ships with Python. In 450 steps Muon, with 30 % of the
  # words masked one by one, reaches the held-out loss that AdamW at 1e-3 with the paper's masks has after 1,800. Two
  # layers take 0.6 of the time of four, and have the lower loss after the same time (docs/log.md).
  "quickstart": {
    "steps": 1500, "batch_size": 32, "log_every": 50, "eval_every": 300, "eval_batches": 0, "checkpoint_every": 300,
    "model": {
      "vocab_size": 4096, "max_position_embeddings": 128, "num_hidden_layers": 2, "remat": "none", "scan_unroll": 2,
    },
    "data": {"seq_length": 64, **_WORDS},
    "optimizer": {**_MUON, "learning_rate": 5e-3, "warmup_steps": -1, "decay_share": 0.4},
  },
  "tiny": {
    "steps": 2000, "batch_size": 32, "log_every": 50, "eval_every": 250, "eval_batches": 20, "checkpoint_every": 250,
    "data": {"seq_length": 128},
    "optimizer": {"name": "adamw", "textbook": True, "learning_rate": 1e-3, "warmup_steps": -1},
  },
  # The best recipe for an hour of one core, and that of launch/speedrun.sh: 4.27 nats (docs/leaderboard.md). Steps are
  # 2,048 positions: short rows come first. Two layers take 0.6 of the time of four. transformers cannot open a model of
  # arch=modern; the paper's layer (arch=albert, intermediate_size=512) has 4.41 nats after the same steps.
  "small": {
    "steps": 14_000, "batch_size": 16, "log_every": 100, "eval_every": 2800, "eval_batches": 100,
    "checkpoint_every": 700,
    "curriculum": {"seq_length": "32:0.12,64:0.3", "batch_size": "64:0.12,32:0.3"},
    "data": {"seq_length": 128, **_WORDS},
    "loss": {"sop_weight": 0.3},
    "model": {
      "arch": "modern", "intermediate_size": 344, "num_hidden_layers": 2, "remat": "none", "scan_unroll": 2,
    },
    "optimizer": {**_MUON, "learning_rate": 3e-3, "b2": 0.98, "warmup_steps": 100, "decay_share": 0.3},
  },
}  # fmt: skip
