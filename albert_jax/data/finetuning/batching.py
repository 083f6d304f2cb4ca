"""Batches of a labelled split that fits in memory: fine-tuning, evaluation, prediction.

As in pre-training, global batch number `step` is a pure function of (rows, seed, step), whoever makes how much of it.
Rows are padded only to the next of a few lengths, so that short sentences do not pay for 512 positions.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from albert_jax.data import rng
from albert_jax.errors import UserError

LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)  # Few, because each is a program to compile.
WINDOW = 64  # batches whose rows are sorted by length together
# Where there is nothing to train: rows of a batch, few for the same reason, and finer lengths for processors, which
# compile in a second and take as long as there are tokens.
SIZES = (64, 16, 4, 1)
FINE_LENGTHS = (*range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32), *range(256, 513, 64))


@dataclasses.dataclass(frozen=True)
class Rows:
  """The encoded examples of a split.

  tokens: {name: for each sequence a list or array of ints}, "input_ids" among them; all names of a sequence are equally
    long. Each becomes an int32 array [B, L], or [B, group, L].
  fixed: {name: array [n, ...]}, what is not a matter of tokens, such as labels; becomes [B, ...].
  padding: {name of tokens: the value beyond a sequence's end}; 0 for those that are not named.
  group: how many sequences make an example (the options of a question); sequences of an example follow each other.
  """

  tokens: dict[str, Sequence]
  fixed: dict[str, np.ndarray]
  padding: dict[str, int] = dataclasses.field(default_factory=dict)
  group: int = 1

  def __len__(self):
    return len(self.tokens["input_ids"]) // self.group

  def lengths(self):
    """int64 array [n]: tokens in the longest sequence of each example."""
    sizes = np.fromiter(map(len, self.tokens["input_ids"]), np.int64)
    return sizes.reshape(-1, self.group).max(axis=1, initial=0)


def train_batches(
  rows, *, batch_size, seed, longest=None, start_step=0, host=0, hosts=1, first_row=0, group_by_length=False
):
  """Endless training batches, shuffled anew each epoch; an epoch's last batch is filled up from the next epoch.

  Args:
    rows: Rows. batch_size: B of the global batch. start_step: the number of the first batch.
    longest: what no row is padded beyond, such as the positions of the model; None: the next of LENGTHS.
    host, hosts: this host makes rows [host * B / hosts, (host + 1) * B / hosts) of every batch.
    first_row: the number of the first row of batch 0, for a run whose batch was of another size before.
    group_by_length: sort each 64 batches' rows by length before they are cut into batches, and shuffle those.

  Yields: {"row" int32 [B / hosts], "weight" float32 (all 1), "attention_mask", the names of rows}.
  Raises: UserError where there are no rows, or the hosts do not divide the batch.
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


def eval_batches(rows, *, batch_size, longest=None, host=0, hosts=1):
  """One pass, the shortest rows first; "row" is a row's number. Rows that fill up have row -1 and weight 0.

  Yields as many batches on every host. Args and errors: as train_batches.
  """
  _check(rows, batch_size, hosts)
  lengths = rows.lengths()
  index = np.argsort(lengths, kind="stable")
  index = np.append(index, np.full(-len(index) % batch_size, -1))
  for start in range(0, len(index), batch_size):
    at = index[start : start + batch_size]
    yield _batch(rows, at, padded_length(lengths[at].max(), longest=longest), host, hosts)


def serving_batches(rows, *, most, tokens, filled, lengths, longest):
  """One pass for prediction, the shortest rows first, in batches of SIZES: a single row pays for no other.

  A batch has the largest size that is at most `most`, no more than `tokens` with its padding, and of which a share
  `filled` is rows.
  Args: lengths: what to pad to the next of. longest: positions of the model, beyond which nothing is padded.
  Yields: as eval_batches, which is for metrics: there every batch has as many rows.
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


def padded_length(size: int, lengths=LENGTHS, longest=None) -> int:
  """The next of `lengths` from `size` on, or where that is more than `longest`, that; beyond all, multiples of 512."""
  fits = bisect.bisect_left(lengths, size)
  length = lengths[fits] if fits < len(lengths) else -(-size // lengths[-1]) * lengths[-1]
  return length if longest is None else max(min(length, longest), int(size))


def _check(rows, batch_size, hosts):
  if not len(rows):
    raise UserError("the split has no examples; check data.dataset, and data.split or data.validation_split")
  if batch_size < 1 or batch_size % hosts:
    raise UserError(
      f"batch_size={batch_size} must divide by the number of hosts ({hosts}); try "
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
