"""Packs several examples into one row.

Rows are planned from the lengths of the records alone, by best fit. A plan has the lengths of the examples in each row;
the records of these lengths are drawn again each epoch. So each epoch has every record once, and a row is located
without the rows before it.

Segments end with a sentence, so most are slightly shorter than a row, and few documents fit into the remaining room:
with segments as long as rows, the best plan leaves 3.7 % of English Wikipedia and novels empty. `fill` adds a short
sequence, a part of any record, to rows with room.
"""

import dataclasses

import numpy as np

from albert_jax.data import rng

_LEAST_ROOM = 12  # tokens of a row; less, and less than a sixteenth of a row, stays empty


@dataclasses.dataclass(frozen=True)
class Plan:
  """A plan of R rows with at most S examples each.

  Attributes:
    sizes: int64 array [P, S], the patterns: tokens of each example in a row, special ones included; 0 is none.
    ends: int64 array [P]; rows ends[p - 1] to ends[p] follow pattern p, and R is the last of them.
    ordinals: int64 array [P, S]; example s of the pattern's first row is the record number ordinals[p, s] of its size.
    order: int array [n], the records by size.
    begin, count: int64 arrays [L + 1], where the records of a size begin in `order`, and how many they are.
  """

  sizes: np.ndarray
  ends: np.ndarray
  ordinals: np.ndarray
  order: np.ndarray
  begin: np.ndarray
  count: np.ndarray

  @property
  def rows(self) -> int:
    return int(self.ends[-1])


def example_sizes(lengths: np.ndarray, length: int) -> np.ndarray:
  """Returns how many tokens the example of each record has, special ones included.

  Args:
    lengths: int array [n, 2], tokens and sentences of each record.
    length: L.

  Returns:
    int64 array [n], from 3 to L.
  """
  tokens, sentences = lengths.astype(np.int64).T
  return np.minimum(tokens, length - 3) + np.where(sentences > 1, 3, 2)


def make_plan(sizes: np.ndarray, length: int, most: int) -> Plan:
  """Plans the rows by best fit, longest examples first.

  Args:
    sizes: int64 array [n], see example_sizes.
    length: L, the tokens of a row.
    most: S, the most examples in a row.

  Returns:
    Plan; each of the n records is in exactly one row.
  """
  count = np.bincount(sizes, minlength=length + 1)
  # Equal rows are counted, not listed: {room: {pattern: rows}} of rows that have room for more examples.
  open_rows, patterns = {}, {}
  for size in np.flatnonzero(count)[::-1].tolist():
    left = int(count[size])
    while left and (fitting := [room for room in open_rows if room >= size]):
      room = min(fitting)
      pattern, rows = open_rows[room].popitem()
      taken = min(rows, left)
      left -= taken
      if rows > taken:
        open_rows[room][pattern] = rows - taken
      if not open_rows[room]:
        del open_rows[room]
      _open(open_rows, patterns, (*pattern, size), room - size, taken, most)
    # New rows, each with as many examples of this size as fit.
    per_row = min(most, length // size)
    for examples, rows in ((per_row, left // per_row), (left % per_row, 1)):
      if examples and rows:
        _open(open_rows, patterns, (size,) * examples, length - size * examples, rows, most)
  for rows_of in open_rows.values():
    for pattern, rows in rows_of.items():
      patterns[pattern] = patterns.get(pattern, 0) + rows

  table = np.zeros((len(patterns), most), np.int64)
  ordinals = np.zeros((len(patterns), most), np.int64)
  used = np.zeros(length + 1, np.int64)
  for p, (pattern, rows) in enumerate(patterns.items()):
    for s, size in enumerate(pattern):
      table[p, s], ordinals[p, s] = size, used[size]
      used[size] += rows
  return Plan(
    sizes=table,
    ends=np.cumsum(list(patterns.values())),
    ordinals=ordinals,
    order=np.argsort(sizes, kind="stable"),
    begin=np.cumsum(count) - count,
    count=count,
  )


def _open(open_rows, patterns, pattern, room, rows, most):
  """Records rows of a pattern, as open if they have room for more examples, else as complete."""
  where = open_rows.setdefault(room, {}) if room >= 3 and len(pattern) < most else patterns
  where[pattern] = where.get(pattern, 0) + rows


def _locate(plan, numbers, seed):
  """Returns the position of rows in the plan: pattern, index within the pattern, epoch; int64 arrays [B]."""
  rows, epoch = numbers, np.zeros_like(numbers)
  if seed is not None:
    epoch = numbers // plan.rows
    rows = rng.permute(numbers % plan.rows, plan.rows, rng.keys(seed, "rows", epoch))
  pattern = np.searchsorted(plan.ends, rows, side="right")
  return pattern, rows - np.append(0, plan.ends)[pattern], epoch


def rows_to_records(plan: Plan, numbers: np.ndarray, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Returns the records in rows.

  Args:
    plan: Plan.
    numbers: int64 array [B], row numbers: any with a seed, which shuffles each epoch; below R without.
    seed: int, or None for the plan's own order.

  Returns:
    (records, is_used): int64 and bool arrays [B, S].
  """
  pattern, nth, epoch = _locate(plan, numbers, seed)
  sizes = plan.sizes[pattern]
  is_used = sizes > 0
  ordinal = (plan.ordinals[pattern] + nth[:, None])[is_used]
  size = sizes[is_used]
  if seed is not None:
    keys = rng.keys(seed, "members", np.repeat(epoch, is_used.sum(axis=1)) << 20 | size)
    ordinal = rng.permute(ordinal, plan.count[size], keys)
  records = np.zeros(is_used.shape, np.int64)
  records[is_used] = plan.order[plan.begin[size] + ordinal]
  return records, is_used


def place(
  plan: Plan, numbers: np.ndarray, seed: int | None, length: int, special: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """Returns the E examples of rows.

  Args:
    plan, numbers: as for rows_to_records.
    seed: shuffles the rows and fills those with room, see `fill`; None does neither.
    length: L.
    special: the most special tokens of an example.

  Returns:
    (records, is_used, max_tokens): int64 array [E], the record of each example; bool array [B, S] with E True; and
    int64 array [E], the most tokens of each example without special tokens, or None without a seed.
  """
  records, is_used = rows_to_records(plan, numbers, seed)
  max_tokens = None
  if seed is not None:
    records, is_used, max_tokens = fill(plan, numbers, seed, records, is_used, length, special)
  return records[is_used], is_used, max_tokens


def example_numbers(numbers: np.ndarray, is_used: np.ndarray) -> np.ndarray:
  """Returns the global numbers of the E examples of rows: int64 array [E].

  Args:
    numbers: int64 array [B], the global numbers of the rows.
    is_used: bool array [B, S], with E True.
  """
  most = is_used.shape[1]
  return (numbers[:, None] * most + np.arange(most))[is_used]


def fill(
  plan: Plan, numbers: np.ndarray, seed: int, records: np.ndarray, is_used: np.ndarray, length: int, special: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Adds a short sequence, from a random record, to each row that has room.

  Args:
    plan, numbers, seed: as for rows_to_records, which made
    records, is_used: int64 and bool arrays [B, S].
    length: L.
    special: the most special tokens of an example.

  Returns:
    (records, is_used, max_tokens): the arrays with the added examples, and an int64 array [E] of the most tokens of
    each of the E examples, without special tokens.
  """
  room = length - plan.sizes[_locate(plan, numbers, seed)[0]].sum(axis=1)
  count = is_used.sum(axis=1)
  most = is_used.shape[1]
  rows = np.flatnonzero((room >= max(_LEAST_ROOM, length // 16)) & (count < most))
  records, is_used = records.copy(), is_used.copy()
  max_tokens = np.full(is_used.shape, length - special)
  place = rows, count[rows]
  random = rng.bits(rng.keys(seed, "fill", numbers[rows]), 1)[:, 0]
  records[place] = rng.below(random, len(plan.order))
  is_used[place] = True
  max_tokens[place] = room[rows] - special
  return records, is_used, max_tokens[is_used]


def share_budget(budget: np.ndarray, is_used: np.ndarray, slots: int) -> np.ndarray:
  """Limits the masked tokens of examples so that those of a row fit into its slots.

  Args:
    budget: int64 array [E], how many tokens each example would mask.
    is_used: bool array [B, S], with E True.
    slots: M of a row.

  Returns:
    int64 array [E], at most `budget`; rounding up in several examples may exceed the slots by one or two.
  """
  counts = np.zeros(is_used.shape, np.int64)
  counts[is_used] = budget
  before = np.cumsum(counts, axis=1) - counts
  return np.clip(slots - before, 0, counts)[is_used]


def pack_positions(
  arrays: dict[str, np.ndarray], is_token: np.ndarray, is_used: np.ndarray, pads: dict[str, int]
) -> dict[str, np.ndarray]:
  """Puts the positions of examples into rows, one example after the other.

  Args:
    arrays: {name: array [E, L]}.
    is_token: bool array [E, L], True from the first position to the last one that is no padding.
    is_used: bool array [B, S], with E True.
    pads: the padding of an array, by its name; 0 for the others.

  Returns:
    {name: array [B, L]}, with segment_ids (1 to S: which example a position is of; 0 is padding) and position_ids (from
    0 in each example), both int32.
  """
  row, nth = np.nonzero(is_used)
  example, column = np.nonzero(is_token)
  at = row[example], _offsets(is_token.sum(axis=1), is_used)[example] + column
  shape = len(is_used), is_token.shape[1]
  result = {}
  for name, values in arrays.items():
    result[name] = np.full(shape, pads.get(name, 0), values.dtype)
    result[name][at] = values[example, column]
  for name, values in (("segment_ids", nth[example] + 1), ("position_ids", column)):
    result[name] = np.zeros(shape, np.int32)
    result[name][at] = values
  return result


def _offsets(sizes, is_used):
  """Returns where each of the E examples begins in its row."""
  size_of = np.zeros(is_used.shape, np.int64)
  size_of[is_used] = sizes
  return (np.cumsum(size_of, axis=1) - size_of)[is_used]


def pack_examples(
  examples: dict[str, np.ndarray], is_used: np.ndarray, slots: int, pad_id: int
) -> dict[str, np.ndarray]:
  """Puts examples into rows, one after the other.

  Args:
    examples: dict of arrays with E rows, see examples.make_batch: the used ones of B rows, in their order.
    is_used: bool array [B, S], with E True.
    slots: M of the rows.
    pad_id: int.

  Returns:
    dict of arrays as examples.make_batch returns, but that sop_label and sop_weight are [B, S]; and besides
    segment_ids [B, L] (1 to S: which example a token is of, the only ones it may attend to; 0 is padding),
    position_ids [B, L] (from 0 in each example) and cls_positions [B, S] (where an example begins), all int32.
  """
  batch, most = is_used.shape
  row = np.nonzero(is_used)[0]
  mask = examples["attention_mask"]
  by_position = {name: examples[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
  result = pack_positions(by_position, mask > 0, is_used, {"input_ids": pad_id})
  offset = _offsets(mask.sum(axis=1), is_used)

  example, slot = np.nonzero(examples["mlm_weights"])
  rank = np.arange(len(example)) - np.searchsorted(row[example], np.arange(batch))[row[example]]
  at = row[example], rank
  for name in ("mlm_positions", "mlm_labels", "mlm_weights"):
    result[name] = np.zeros((batch, slots), examples[name].dtype)
    result[name][at] = examples[name][example, slot]
  result["mlm_positions"][at] += offset[example].astype(np.int32)

  for name, values in (
    ("sop_label", examples["sop_label"]),
    ("sop_weight", examples["sop_weight"]),
    ("cls_positions", offset.astype(np.int32)),
  ):
    result[name] = np.zeros((batch, most), values.dtype)
    result[name][is_used] = values
  return result
