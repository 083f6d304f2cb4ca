"""Protocol buffers without their schemas: numbers of fields and what they hold."""


def varint(data, at):
  """A number in groups of seven bits, the lowest first. Returns: (number, position after it)."""
  value = 0
  for shift in range(0, 70, 7):
    byte = data[at]
    at += 1
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value, at
  raise ValueError("a number has no end")


def parse(data):
  """A protocol buffer without its schema: {field number: [values]}, ints or bytes."""
  fields, at = {}, 0
  while at < len(data):
    tag, at = varint(data, at)
    kind = tag & 7
    if kind == 0:
      value, at = varint(data, at)
    else:
      size, at = varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind), at)
      if size is None or at + size > len(data):
        raise ValueError("a record is not a protocol buffer")
      value = data[at : at + size]
      value, at = value if kind == 2 else int.from_bytes(value, "little"), at + size
    fields.setdefault(tag >> 3, []).append(value)
  return fields


def to_varint(value):
  result = b""
  while value >= 0x80:
    result += bytes([value & 0x7F | 0x80])
    value >>= 7
  return result + bytes([value])


def field(number, value):
  """A field of a protocol buffer: an int or a message (bytes). A zero is left out, as protocol buffers do."""
  if isinstance(value, int):
    return to_varint(number << 3) + to_varint(value) if value else b""
  return to_varint(number << 3 | 2) + to_varint(len(value)) + value
