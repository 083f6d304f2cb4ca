"""PL-BERT: an ALBERT that reads phonemes, for speech synthesis (StyleTTS2, Kokoro). docs/plbert.md goes step by step.

base is the recipe of the published PL-BERT: 12 layers of 768, AdamW at 1e-4 without decay or schedule, batch 192,
length 512, a million steps, the word loss at all positions. small is for one machine without an accelerator; its rows
are short first. On 0.9 million words of English, 5,800 steps, 31 minutes of processor time on one core of an AMD EPYC
(Zen 3), 2026-11-27: held-out word accuracy 77.7 %, masked phonemes 29.2 % (frequencies alone: 2.9 %, 12.2 %); its
shares of short rows were 0.15 and 0.4.

  albert-jax train --config=configs/plbert.py:base --config.data.dataset=DIR --workdir=RUN
"""

import dataclasses

from ml_collections import ConfigDict

from albert_jax.configs import common
from albert_jax.data.speech.batching import SpeechConfig

VARIANTS = ("base", "small")


def get_config(variant: str = "base") -> ConfigDict:
  common.check_variant(variant, VARIANTS)
  config = common.get_config("base" if variant == "base" else "tiny")
  config.task = ConfigDict({"name": "plbert"})
  config.loss = ConfigDict({
    "phoneme_weight": 1.0,
    "word_weight": 1.0,
    "word_positions": 1.0,  # share of a row's positions at which words are predicted, drawn anew for each row
    "word_chunk": 4096,  # positions whose word logits are made at a time; it changes memory and speed, not the result
  })  # fmt: skip
  config.data = ConfigDict(dataclasses.asdict(SpeechConfig(dataset="")))
  config.model.vocab_size = 178
  config.guard.loss_spike, config.guard.grad_spike = 2.5, 100.0
  config.update({
    "steps": 1_000_000, "batch_size": 192,
    "optimizer": {
      "name": "adamw", "textbook": True, "learning_rate": 1e-4, "schedule": "constant", "warmup_steps": 0,
      "weight_decay": 0.0, "eps": 1e-8, "clip_norm": float("inf"),
    },
  })  # fmt: skip
  if variant == "base":
    config.model.intermediate_size = 2048
  else:
    config.update({
      "steps": 6000, "batch_size": 16, "log_every": 100, "eval_every": 500, "eval_batches": 16, "checkpoint_every": 500,
      "data": {"seq_length": 128},
      "curriculum": {"seq_length": "32:0.2,64:0.5", "batch_size": "32:0.2"},
      "loss": {"word_positions": 0.25, "word_chunk": 512},
      "optimizer": {
        "name": "muon", "b1": 0.95, "learning_rate": 5e-3, "schedule": "wsd", "decay_share": 0.3, "warmup_steps": 100,
        "clip_norm": 1.0,
      },
    })  # fmt: skip
  return config
