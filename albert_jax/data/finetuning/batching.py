"""Batches of a labelled split that fits in memory: fine-tuning, evaluation, prediction.

As in pre-training, global batch number `step` is a pure function of (rows, seed, step), for any number of hosts. Rows
are padded only to the next of a few lengths, so that short sentences do not pay for 512 positions.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from albert_jax.data import rng
from albert_jax.errors import UserError

LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)  # Few, because each is a program to compile.
WINDOW = 64  # batches whose rows are sorted by length together
# For prediction: the rows of a batch, few for the same reason; and finer lengths for CPUs, which compile in a second
# and take time in proportion to the tokens.
SIZES = (64, 16, 4, 1)
FINE_LENGTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 513, 64))


@dataclasses.dataclass(frozen=True)
class Rows:
  """The encoded examples of a split.

  Attributes:
    tokens: {name: for each sequence a list or array of ints}, "input_ids" among them; the arrays of a sequence have the
      same length. Each name becomes an int32 array [B, L], or [B, group, L].
    fixed: {name: array [n, ...]} of other values, such as labels; becomes [B, ...].
    padding: {name of tokens: the value beyond a sequence's end}; 0 for other names.
    group: the sequences of an example (the options of a question), which follow each other.
  """

  tokens: Mapping[str, Sequence]
  fixed: dict[str, np.ndarray]
  padding: dict[str, int] = dataclasses.field(default_factory=dict)
  group: int = 1

  def __len__(self) -> int:
    return len(self.tokens["input_ids"]) // self.group

  def lengths(self) -> np.ndarray:
    """Returns the tokens of the longest sequence of each example: int64 [n]."""
    sizes = np.fromiter(map(len, self.tokens["input_ids"]), np.int64)
    return sizes.reshape(-1, self.group).max(axis=1, initial=0)


def train_batches(
  rows: Rows,
  *,
  batch_size: int,
  seed: int,
  longest: int | None = None,
  start_step: int = 0,
  host: int = 0,
  hosts: int = 1,
  first_row: int = 0,
  group_by_length: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
  """Endless training batches, shuffled anew each epoch; an epoch's last batch is filled up from the next epoch.

  Args:
    rows: the split.
    batch_size: B of the global batch.
    seed: of the shuffling.
    longest: the most positions to pad to, such as those of the model; None: the next of LENGTHS.
    start_step: the number of the first batch.
    host: this host, which makes rows [host * B / hosts, (host + 1) * B / hosts) of every batch.
    hosts: the number of hosts.
    first_row: the number of the first row of batch 0, for a run that had another batch size before.
    group_by_length: whether to sort the rows of each 64 batches by length before they are cut into batches, which are
      then shuffled.

  Yields:
    "row" int32 [B / hosts], "weight" float32 (all 1), "attention_mask", and the names of rows.

  Raises:
    UserError: there are no rows, or the hosts do not divide the batch.
  """
  _check(rows, batch_size, hosts)
  lengths = rows.lengths()
  step = start_step
  while True:
    if group_by_length:
      window, place = divmod(step, WINDOW)
      numbers = np.arange(WINDOW * batch_size) + window * WINDOW * batch_size + first_row
      index = rng.shuffled(numbers, len(rows), seed)
      index = index[np.argsort(lengths[index], kind="stable")].reshape(WINDOW, batch_size)
      index = index[rng.permute(np.array([place]), WINDOW, rng.keys(seed, "window", np.array([window])))[0]]
    else:
      index = rng.shuffled(np.arange(batch_size) + step * batch_size + first_row, len(rows), seed)
    yield _batch(rows, index, padded_length(lengths[index].max(), longest=longest), host, hosts)
    step += 1


def eval_batches(
  rows: Rows, *, batch_size: int, longest: int | None = None, host: int = 0, hosts: int = 1
) -> Iterator[dict[str, np.ndarray]]:
  """One pass, the shortest rows first, with the same number of batches on every host.

  Args:
    rows: the split.
    batch_size: B of the global batch.
    longest: as in `train_batches`.
    host: as in `train_batches`.
    hosts: as in `train_batches`.

  Yields:
    As `train_batches`. "row" is a row's number in the split; rows that fill up have row -1 and weight 0.

  Raises:
    UserError: as `train_batches`.
  """
  _check(rows, batch_size, hosts)
  lengths = rows.lengths()
  index = np.argsort(lengths, kind="stable")
  index = np.append(index, np.full(-len(index) % batch_size, -1))
  for start in range(0, len(index), batch_size):
    at = index[start : start + batch_size]
    yield _batch(rows, at, padded_length(lengths[at].max(), longest=longest), host, hosts)


def serving_batches(
  rows: Rows, *, most: int, tokens: int, filled: float, lengths: Sequence[int], longest: int | None
) -> Iterator[dict[str, np.ndarray]]:
  """One pass for prediction, the shortest rows first, in batches of SIZES, so that a single row is not padded to many.

  A batch has the largest size that meets `most`, `tokens` and `filled`.

  Args:
    rows: the rows to predict.
    most: the most rows of a batch.
    tokens: the most tokens of a batch, padding included.
    filled: the least share of a batch that is rows.
    lengths: the lengths to pad to.
    longest: the positions of the model.

  Yields:
    As `eval_batches`, whose batches all have the same number of rows.
  """
  sizes = rows.lengths()
  order = np.argsort(sizes, kind="stable")
  while len(order):
    for size in SIZES:
      index = order[:size]
      length = padded_length(sizes[index].max(), lengths, longest)
      if size <= most and size * rows.group * length <= tokens and filled * size <= len(order):
        break
    yield _batch(rows, np.append(index, np.full(size - len(index), -1)), length, 0, 1)
    order = order[size:]


def padded_length(size: int, lengths: Sequence[int] = LENGTHS, longest: int | None = None) -> int:
  """The length to pad to: the next of `lengths`, but at most `longest`; beyond all lengths, multiples of the last."""
  fits = bisect.bisect_left(lengths, size)
  length = lengths[fits] if fits < len(lengths) else -(-size // lengths[-1]) * lengths[-1]
  return length if longest is None else max(min(length, longest), int(size))


def _check(rows, batch_size, hosts):
  if not len(rows):
    raise UserError("the split has no examples; check data.dataset, and data.split or data.validation_split")
  if batch_size < 1 or batch_size % hosts:
    raise UserError(
      f"batch_size={batch_size} must be divisible by the number of hosts ({hosts}); try "
      f"--config.batch_size={max(1, round(batch_size / hosts)) * hosts}"
    )


def _batch(rows, index, length, host, hosts):
  """This host's rows of a global batch. Its length is decided by all of them, so that every host agrees."""
  share = len(index) // hosts
  index = index[host * share : (host + 1) * share]
  batch = {"row": index.astype(np.int32), "weight": (index >= 0).astype(np.float32)}
  sequences = (np.maximum(index, 0)[:, None] * rows.group + np.arange(rows.group)).ravel()
  shape = (share, length) if rows.group == 1 else (share, rows.group, length)
  mask = np.zeros((len(sequences), length), np.int32)
  for name, values in rows.tokens.items():
    array = np.full((len(sequences), length), rows.padding.get(name, 0), np.int32)
    for i, s in enumerate(sequences):
      array[i, : len(values[s])] = values[s]
      mask[i, : len(values[s])] = 1
    batch[name] = array.reshape(shape)
  batch["attention_mask"] = mask.reshape(shape)
  for name, values in rows.fixed.items():
    batch[name] = values[np.maximum(index, 0)]
  return batch
