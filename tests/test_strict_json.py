"""JSON of anyone: what is valid is read as Python's own reader does, all else is one line that names the place."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax import strict_json
from albert_jax.errors import UserError

values = st.recursive(
  st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(st.characters(exclude_categories=("Cs",))),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner),
  max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(values, st.booleans())
def test_a_valid_value_is_read_as_it_was_written(value, ascii):
  text = json.dumps(value, ensure_ascii=ascii)
  assert strict_json.loads(text, "here") == value
  assert strict_json.loads(text.encode(), "here") == value


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[" * 100_000 + "]" * 100_000, "deeper than 64"),
    ('{"a":' * 65 + "1" + "}" * 65, "deeper than 64"),
    ("9" * 5000, "5,000 digits"),
    ("[" + "9" * 310 + "]", "310 digits"),
    ("1e999", "too large"),
    ("0." + "3" * 5000, "too long"),
    (r'"x \ud800"', r"half a surrogate pair \(\\ud800\)"),
    (r'{"\udc00": 1}', "half a surrogate"),
    ('"\ud800"', "half a surrogate"),
    ("NaN", "NaN is no JSON number"),
    ("[1, -Infinity]", "-Infinity is no JSON number"),
    ('{"a": 1, "a": 2}', '"a" 2 times'),
    ('{"a": 1', "is not JSON.*character 8"),
    ("{'a': 1}", "is not JSON"),
    ('{"a": 1} {"a": 2}', "is not JSON.*Extra data"),
    ('{\n"a": 1,\n}', "is not JSON.*line 3"),
    ("", "is not JSON"),
    ('"a\nb"', "is not JSON"),
    (b'"\xff"', "not UTF-8"),
    ("[" + "[]," * (1 << 21) + "1]", "exceed the limit"),
    ('"' + "x" * (1 << 24) + '"', "over the limit"),
  ],
)
def test_what_is_not_valid_or_exceeds_a_limit_is_one_line(text, message):
  with pytest.raises(UserError, match=message) as error:
    strict_json.loads(text, "FILE line 7")
  assert str(error.value).startswith("FILE line 7") and "\n" not in str(error.value)
  assert len(str(error.value)) < 300


def test_values_at_the_limits_are_read():
  deep = "[" * 64 + "]" * 64
  assert strict_json.loads(deep, "here") == json.loads(deep)
  assert strict_json.loads("9" * 100, "here") == int("9" * 100)
  assert strict_json.loads(r'"\ud83d\ude00 \\ud800"', "here") == "😀 \\ud800"
  assert strict_json.loads("[" + "[]," * 1000 + "1]", "here")[-1] == 1
  assert strict_json.loads("\ufeff[1]", "here") == [1]


def test_nan_is_null_where_that_is_asked_for():
  assert strict_json.loads('{"label": NaN}', "here", nan_as_null=True) == {"label": None}
  with pytest.raises(UserError, match="Infinity"):
    strict_json.loads('{"label": Infinity}', "here", nan_as_null=True)


@pytest.mark.parametrize(
  ("text", "kind", "message"),
  [
    ("[]", dict, r"expected an object, got \[\]"),
    ("null", dict, "expected an object, got null"),
    ("true", int, "expected a whole number, got true"),
    ('"a"', (list, float), 'expected a list or a number, got "a"'),
  ],
)
def test_another_kind_of_value_is_one_line(text, kind, message):
  with pytest.raises(UserError, match=message):
    strict_json.loads(text, "here", kind)
  assert strict_json.loads("1", "here", float) == 1
  assert strict_json.loads("false", "here", (bool, int)) is False


def test_a_file_is_read_or_is_one_line(tmp_path):
  path = tmp_path / "config.json"
  with pytest.raises(UserError, match=r"config\.json cannot be read \(No such file.*expected a configuration"):
    strict_json.read_object(path, "a configuration")
  with pytest.raises(UserError, match="cannot be read"):
    strict_json.read_object(tmp_path, "a configuration")
  path.write_bytes(b" \n")
  with pytest.raises(UserError, match="is empty; expected a configuration"):
    strict_json.read_object(path, "a configuration")
  path.write_bytes(b"[1]")
  with pytest.raises(UserError, match="expected an object"):
    strict_json.read_object(path, "a configuration")
  assert strict_json.read(path) == [1]
  path.write_bytes(b'{"a": NaN}')
  assert strict_json.read_object(path, nan_as_null=True) == {"a": None}
  with pytest.raises(UserError, match="over the limit of 5 bytes"):
    strict_json.read_object(path, max_bytes=5)


def test_damaged_lines_are_passed_over():
  lines = [
    '{"step": 1}',
    "",
    "[" * 100_000,
    '{"step": 2, "loss": NaN}',
    "[1]",
    '{"a": ' + "1" * 5000 + "}",
    '{"step": 3',
  ]
  assert list(strict_json.sound_objects("\n".join(lines))) == [{"step": 1}, {"step": 2, "loss": None}]
