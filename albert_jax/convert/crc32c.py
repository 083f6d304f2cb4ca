"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, in numpy: hundreds of megabytes a second, no C extension.

A CRC is linear: the checksum of a concatenation is the first one's, moved on by the length of the second, plus the
second one's. So a buffer is cut into many lanes, all lanes advance together four bytes at a time, and the results are
folded in pairs.
"""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reversed bit order
_LANE = 256  # words of four bytes in a lane
_LANES = 8192  # at most, in one go


def _table8():
  table = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
  return table.astype(np.uint32)


_BYTE = _table8()
_BYTE_LIST = _BYTE.tolist()  # plain ints, for the few bytes that are done one by one


def _tables(columns):
  """A linear map of 32 bits, given by its values at single bits, as two tables of 16 bits each."""
  tables = []
  for half in (columns[:16], columns[16:]):
    table = np.zeros(1, np.uint32)
    for column in half:
      table = np.concatenate([table, table ^ column])
    tables.append(table)
  return tables


def _apply(tables, x):
  low, high = tables
  return low[x & np.uint32(0xFFFF)] ^ high[x >> np.uint32(16)]


@functools.cache
def _advance(size):
  """The map of a checksum to what it is after `size` more zero bytes, as tables. `size` is a power of two."""
  bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
  if size == 1:
    return _tables(_BYTE[bits & np.uint32(0xFF)] ^ (bits >> np.uint32(8)))
  half = _advance(size // 2)
  return _tables(_apply(half, _apply(half, bits)))


def crc32c(data) -> int:
  """The CRC-32C of a bytes-like object or array."""
  data = np.frombuffer(memoryview(data).cast("B"), np.uint8) if len(memoryview(data)) else np.empty(0, np.uint8)
  state = 0xFFFFFFFF
  whole = data.size // 4 * 4 if data.size >= 64 else 0
  words = data[:whole].view(np.dtype("<u4")) if whole else np.empty(0, np.uint32)
  while words.size:
    # The largest power of two of lanes that is full; what is too short for that gets zeros in front, which change
    # nothing, since the running checksum goes into the first real word.
    lanes = min(_LANES, 1 << max(0, (words.size // _LANE).bit_length() - 1))
    size = min(lanes * _LANE, words.size)
    block = np.zeros(lanes * _LANE, np.uint32)
    block[block.size - size :] = words[:size]
    block[block.size - size] ^= np.uint32(state)
    state = int(_block(block.reshape(lanes, _LANE)))
    words = words[size:]
  for byte in data[whole:].tolist():
    state = _BYTE_LIST[(state ^ byte) & 0xFF] ^ (state >> 8)
  return state ^ 0xFFFFFFFF


def _block(words):
  """The checksum, from state 0, of words [lanes, _LANE] read row by row; lanes is a power of two."""
  low, high = _advance(4)
  state = np.zeros(len(words), np.uint32)
  for column in np.ascontiguousarray(words.T):
    state ^= column
    state = low[state & np.uint32(0xFFFF)] ^ high[state >> np.uint32(16)]
  size = _LANE * 4
  while len(state) > 1:
    state = _apply(_advance(size), state[::2]) ^ state[1::2]
    size *= 2
  return state[0]


def masked(crc) -> int:
  """The form in which TensorFlow and leveldb store a checksum (crc32c.h, `Mask`)."""
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
