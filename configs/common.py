"""What every config shares. A value is here, in a file that builds on this one, or on the command line."""

import dataclasses

from ml_collections import ConfigDict

from albert_jax.model import VARIANTS
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.sharding import MeshConfig


def get_config(variant: str) -> ConfigDict:
  """The fields of any run of the model `variant`, with no task yet."""
  if variant not in VARIANTS:
    raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
  config = ConfigDict()
  config.seed = 0
  config.steps = 125_000
  config.batch_size = 4096  # rows over all devices
  config.accumulate = 1  # micro-batches a step: more need less memory; the result is the same
  config.log_every = 100  # steps between lines of metrics.jsonl
  config.eval_every = 5_000
  config.eval_batches = 100  # of held-out data; 0 is all there are
  config.checkpoint_every = 5_000
  config.keep_checkpoints = 5
  config.init_from = ""  # weights to begin with: a checkpoint of any kind, or '' for fresh ones
  config.init_optimizer = False  # also its moments and step, to go on with a run of google-research/albert
  config.init_missing = ""  # regular expression: which parameters `init_from` need not have, such as "sop/"
  config.model = ConfigDict(dataclasses.asdict(VARIANTS[variant]))
  config.optimizer = ConfigDict(dataclasses.asdict(OptimizerConfig()))
  config.mesh = ConfigDict(dataclasses.asdict(MeshConfig()))
  return config
