"""What the training loop knows of a task, and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.model import AlbertConfig


@dataclass(frozen=True)
class Task:
  """A model with a purpose.

  init(key) -> params: fresh parameters, heads included.
  sums(params, batch, key) -> {name: (total, weight)}: float32 sums over rows; total / weight is the metric. With key
    None nothing is dropped out: evaluation uses the same function.
  terms(batch) -> {name: coefficient}: the loss is the sum of coefficient * total, so that it can be summed over
    micro-batches and devices and still be the mean over the whole batch.
  train_batches(start_step, host, hosts) -> iterator over this host's rows of the global batches, from `start_step` on.
  eval_batches(host, hosts) -> one finite pass; padded rows weigh 0; as many batches on every host.
  baselines: {metric: (value, what it is)}: what the held-out metric would be without learning.
  vocabulary: the Tokenizer whose ids the batches hold; exported with the weights.
  """

  model: AlbertConfig
  init: Callable
  sums: Callable
  terms: Callable
  train_batches: Callable
  eval_batches: Callable
  baselines: dict
  vocabulary: Tokenizer
