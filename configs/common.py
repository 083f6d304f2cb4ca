"""The fields that all configs share. A value comes from this file, from a file that extends it, or from a flag."""

import dataclasses
from collections.abc import Iterable

from ml_collections import ConfigDict

from albert_jax.data.finetuning.config import FinetuningData
from albert_jax.errors import UserError, did_you_mean
from albert_jax.model import VARIANTS
from albert_jax.tasks.distill import DistillConfig
from albert_jax.training.guard import GuardConfig
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.sharding import MeshConfig


def get_config(variant: str) -> ConfigDict:
  """Returns the fields of any run of the model `variant`, with no task yet."""
  check_variant(variant, VARIANTS)
  config = ConfigDict()
  config.seed = 0
  # One of these four limits the run, and the others are 0; a limit on the command line replaces that of the config.
  config.steps = 125_000
  config.epochs = 0.0  # passes over the training data
  config.tokens = 0.0  # tokens of all batches, padding included
  config.hours = 0.0  # duration of the run, converted to steps by timing a few steps at its start
  config.batch_size = 4096  # rows over all devices
  config.accumulate = 1  # micro-batches a step: more need less memory; the result is the same
  config.log_every = 100  # steps between lines of metrics.jsonl
  config.log_to = ""  # trackers that also receive the metrics: wandb, mlflow or "wandb,mlflow"; each needs its package
  config.eval_every = 5_000
  config.eval_batches = 100  # batches of held-out data to evaluate; 0: all
  config.checkpoint_every = 5_000
  config.keep_checkpoints = 5  # the newest
  config.keep_every = 0  # also keep the checkpoints of every so many steps; 0: none
  config.best = ""  # also keep the best by this held-out metric, and export it; '' exports the last
  config.early_stop = 0  # evaluations without a new best after which the run ends; 0: never
  config.hang_minutes = 30.0  # minutes without a step after which the stacks of all threads are printed; 0: never
  config.init_from = ""  # initial weights: a checkpoint of any kind, or '' for fresh weights
  config.init_optimizer = False  # also restore its moments and step, to continue a run of google-research/albert
  config.init_structure = False  # take the model's shape and the vocabulary from `init_from`
  config.init_missing = ""  # regular expression: parameters that `init_from` may lack, such as "sop/"
  # VALUE:UNTIL pairs such as "128:0.9": the value holds until that share of the run, then the config's own.
  config.curriculum = ConfigDict({"seq_length": "", "batch_size": "", "num_hidden_layers": ""})
  config.model = ConfigDict(dataclasses.asdict(VARIANTS[variant]))
  config.model.vocab_size = 0  # 0 for the size of the dataset's vocabulary, or of that of a fine-tuning run
  config.optimizer = ConfigDict(dataclasses.asdict(OptimizerConfig()))
  config.guard = ConfigDict(dataclasses.asdict(GuardConfig()))
  config.mesh = ConfigDict(dataclasses.asdict(MeshConfig()))
  config.distill = ConfigDict(dataclasses.asdict(DistillConfig()))
  return config


def check_variant(variant: str, names: Iterable[str], example: str = "") -> None:
  """Checks what follows the colon of --config.

  Args:
    variant: what the user typed.
    names: those that the config has.
    example: of another form, '' for none.

  Raises:
    UserError: it is not one of them.
  """
  names = list(dict.fromkeys(names))
  if variant not in names:
    form = f", also as {example}" if example else ""
    raise UserError(f"no variant {variant!r}; use one of {', '.join(names)}{form}{did_you_mean(variant, names)}")


def finetune(variant: str, task: str, data: FinetuningData | None = None) -> ConfigDict:
  """Returns the fields of a fine-tuning run, which takes shape and vocabulary from `init_from`."""
  config = get_config(variant)
  config.task = ConfigDict({"name": task})
  config.init_structure = True
  # Train low-rank differences of this rank to the layers' matrices, and the task's head, alone (LoRA); 0: everything.
  config.lora_rank = 0
  # The same for the table of words, with or without lora_rank; a small model needs it (docs/finetuning.md).
  config.lora_word_rank = 0
  config.steps, config.epochs = 0, 3.0
  config.batch_size = 32
  config.log_every = 20
  config.eval_batches = 0
  config.eval_every = 500
  config.checkpoint_every = 500
  config.keep_checkpoints = 1
  config.data = ConfigDict(dataclasses.asdict(data or FinetuningData()))
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 2e-5
  config.optimizer.warmup_steps = -1  # a tenth of the run
  return config
