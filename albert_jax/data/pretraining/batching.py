"""Makes batches for the loop: global batch number `step` is a pure function of (dataset, config, seed, step).

Each element of the Grain pipeline is a whole batch, because an element costs more than an example. Batches have no
common state, so a resumed run starts at another number, and any host or worker can make any batch.
"""

import dataclasses
import errno
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from albert_jax.data import datasets, rng
from albert_jax.data.pretraining import examples, mixture, packing
from albert_jax.data.pretraining.examples import DataConfig
from albert_jax.data.workers import exit_with_parent, start_memory_tracker
from albert_jax.errors import UserError

__all__ = [
  "FOREVER", "DataConfig", "Maker", "batch_maker", "check_hosts", "check_split", "eval_batches", "iterate",
  "train_batches",
]  # fmt: skip

FOREVER = 1 << 40  # steps
_BUFFERED = 2  # batches that wait ready for the loop


@dataclasses.dataclass(frozen=True)
class Maker:
  """Makes one host's rows of a global batch; small and picklable, because files are opened in the worker."""

  cfg: Any
  split: str
  batch_size: int
  seed: int
  host: int
  hosts: int
  is_training: bool
  first_row: int = 0

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    """Returns the batch's arrays."""
    return self.explain(step)[0]

  def explain(self, step: int) -> tuple[dict[str, np.ndarray], Any]:
    """Returns the batch, and what it was made of."""
    raise NotImplementedError

  def numbers(self, step: int, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the global numbers of this host's rows; those within an epoch of `total` rows; and whether they are."""
    rows = self.batch_size // self.hosts
    numbers = self.first_row + int(step) * self.batch_size + self.host * rows + np.arange(rows)
    is_real = self.is_training | (numbers < total)
    return numbers, numbers if self.is_training else np.minimum(numbers, total - 1), is_real


class _Maker(Maker):
  def explain(self, step):
    """Returns the batch and its examples.Details."""
    cfg = self.cfg
    sources = [datasets.open_split(folder, self.split) for folder in datasets.folders(cfg.dataset)]
    sizes = [len(records) for records in sources]
    numbers, numbers_or_last, is_real = self.numbers(step, _rows(cfg, self.split))
    is_used = max_tokens = None
    if cfg.packing > 1:
      plan = _plan(cfg.dataset, self.split, cfg.seq_length, cfg.packing)
      seed = self.seed if self.is_training else None
      members, is_used, max_tokens = packing.place(plan, numbers_or_last, seed, cfg.seq_length)
      dataset_of, indices = mixture.locate_in_order(members, sizes)
      numbers = packing.example_numbers(numbers, is_used)
    elif self.is_training:
      dataset_of, indices = mixture.locate(numbers, mixture.block_slots(cfg.weights, sizes), sizes, self.seed)
    else:
      dataset_of, indices = mixture.locate_in_order(numbers_or_last, sizes)
    if cfg.objective == "nsp":
      second = rng.below(rng.bits(rng.keys(self.seed, "others", numbers), 1)[:, 0], sum(sizes))
      second = mixture.locate_in_order(second, sizes)
      dataset_of, indices = np.append(dataset_of, second[0]), np.append(indices, second[1])
    packed = datasets.fetch_from(sources, dataset_of, indices)
    vocabulary = _vocabulary(cfg.dataset, cfg.spm)
    batch, details = examples.explain_batch(packed, numbers, self.seed, cfg, vocabulary, is_used, max_tokens)
    if not is_real.all():
      for name in ("mlm_weights", "sop_weight"):
        batch[name][~is_real] = 0
    return batch, details


@functools.lru_cache(maxsize=16)
def _plan(dataset, split, length, most):
  """Returns the packing plan of a split, made once a process."""
  sizes = packing.example_sizes(datasets.lengths(dataset, split), length)
  return packing.make_plan(sizes, length, most)


def _rows(cfg, split):
  """Returns the number of rows of one epoch of a split."""
  if cfg.packing > 1:
    return _plan(cfg.dataset, split, cfg.seq_length, cfg.packing).rows
  return sum(len(datasets.open_split(folder, split)) for folder in datasets.folders(cfg.dataset))


@functools.lru_cache(maxsize=64)
def _vocabulary(dataset, spm):
  """Returns the dataset's vocabulary, read once a process."""
  return examples.Vocabulary.from_tokenizer(datasets.tokenizer(dataset, spm))


def check_hosts(batch_size: int, host: int, hosts: int) -> None:
  """

  Raises:
    UserError: the hosts cannot share the batch evenly, or the host does not exist.
  """
  if batch_size < 1 or batch_size % hosts:
    raise UserError(
      f"batch_size={batch_size} must be divisible by the number of hosts ({hosts}); try "
      f"--config.batch_size={max(1, round(batch_size / hosts)) * hosts}"
    )
  if not 0 <= host < hosts:
    raise UserError(f"host={host} is not one of {hosts} hosts; expected 0 to {hosts - 1}")


def _check(cfg, split, batch_size, host, hosts):
  """Raises the user's mistakes here, because errors of workers are hard to read; returns the rows of an epoch."""
  check_hosts(batch_size, host, hosts)
  _vocabulary(cfg.dataset, cfg.spm)
  check_split(cfg, split)
  return _rows(cfg, split)


def check_split(cfg: DataConfig, split: str) -> None:
  """Checks that a split can be read and mixed.

  Raises:
    UserError: there is no such split, or the weights do not fit the datasets.
  """
  sizes = [len(datasets.open_split(folder, split)) for folder in datasets.folders(cfg.dataset)]
  mixture.block_slots(cfg.weights, sizes)
  if cfg.packing > 1 and cfg.weights:
    raise UserError(
      f"data.weights={cfg.weights} and data.packing={cfg.packing} do not go together: packed datasets are mixed by "
      "size; leave data.weights empty, or add --config.data.packing=1"
    )


def iterate(maker: Callable[[int], Any], first: int, stop: int, workers: int) -> Iterator[Any]:
  """Yields the batches `first` to `stop` of a maker, made in advance by a thread or by worker processes."""
  if first < stop:
    yield maker(first)
  # Imported here, so that the device computes while Grain is imported.
  import grain

  dataset = grain.MapDataset.range(first + 1, stop).map(maker)
  dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BUFFERED))
  if workers:
    yield from _from_workers(dataset, workers)
  else:
    yield from dataset


def _from_workers(dataset, workers):
  """Yields the batches of a Grain dataset, made in worker processes."""
  import grain
  from absl import flags

  try:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain's workers read flags, which only absl's own `app.run` parses
    start_memory_tracker()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BUFFERED)
    yield from dataset.mp_prefetch(options, worker_init_fn=_follow_the_loop)
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    raise OSError(
      f"data.workers={workers} hand their batches over in shared memory, and /dev/shm is full; free some of it, give "
      "the container more (docker run --shm-size=2g), or add --config.data.workers=0"
    ) from error


def _follow_the_loop(_worker, _workers):
  """Makes a worker exit with the loop, and not before it: the loop needs its workers until it has saved."""
  exit_with_parent(ignores_sigterm=True)


def batch_maker(
  cfg: DataConfig, *, batch_size: int, seed: int, host: int = 0, hosts: int = 1, first_row: int = 0
) -> _Maker:
  """Returns the function that makes a training batch; arguments and errors are those of `train_batches`.

  Returns:
    A function (step) -> dict of arrays; its method `explain` also returns the examples.Details.
  """
  _check(cfg, cfg.split, batch_size, host, hosts)
  return _Maker(cfg, cfg.split, batch_size, seed, host, hosts, is_training=True, first_row=first_row)


def train_batches(
  cfg: DataConfig, *, batch_size: int, seed: int, start_step: int = 0, host: int = 0, hosts: int = 1, first_row: int = 0
) -> Iterator[dict[str, np.ndarray]]:
  """Yields training batches without end, in another order each epoch.

  Args:
    cfg: DataConfig.
    batch_size: B of the global batch.
    seed: the seed of all random draws, 0 or more.
    start_step: the number of the first batch.
    host, hosts: this host makes rows [host * B / hosts, (host + 1) * B / hosts) of every batch.
    first_row: the number of the first row of batch 0, for a run that had another batch size before.

  Returns:
    An iterator of dicts, see examples.make_batch, with B / hosts rows each.

  Raises:
    UserError: the dataset, the vocabulary or the sizes do not fit.
  """
  maker = batch_maker(cfg, batch_size=batch_size, seed=seed, host=host, hosts=hosts, first_row=first_row)
  return iterate(maker, start_step, FOREVER, cfg.workers)


def eval_batches(
  cfg: DataConfig, *, batch_size: int, seed: int, host: int = 0, hosts: int = 1, max_batches: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the batches of one pass over the validation split, in order; the masks depend on the seed alone.

  Args:
    cfg, batch_size, seed, host, hosts: as for train_batches.
    max_batches: the most batches; None for all.

  Returns:
    An iterator with the same number of dicts on every host. Padding rows of the last batch have weights 0.

  Raises:
    UserError: as train_batches.
  """
  total = _check(cfg, cfg.validation_split, batch_size, host, hosts)
  maker = _Maker(cfg, cfg.validation_split, batch_size, seed, host, hosts, is_training=False)
  batches = -(-total // batch_size)
  return iterate(maker, 0, min(batches, max_batches or batches), 0)
