"""What the training loop knows of a task, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.model import AlbertConfig


@dataclass(frozen=True)
class Task:
  """A model with a purpose.

  init(key) -> params: fresh parameters, heads included.
  loss(params, batch, key) -> (loss, sums): a scalar to minimise, and {"name": (total, weight)} of float32 scalars
    whose ratio total / weight is the metric. With key None nothing is dropped out; evaluation uses the same function.
  train_batches(start_step, host, hosts) -> iterator over this host's rows of the global batches, from `start_step` on.
  eval_batches(host, hosts) -> one finite pass; padded rows weigh 0; as many batches on every host.
  baselines: {metric: (value, what it is)}: what the held-out metric would be without learning.
  vocabulary: the Tokenizer whose ids the batches hold; exported with the weights.
  """

  model: AlbertConfig
  init: Callable
  loss: Callable
  train_batches: Callable
  eval_batches: Callable
  baselines: dict
  vocabulary: Tokenizer
