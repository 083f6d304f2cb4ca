"""Symbol tables: what is in them, how files are read, and which are refused."""

import json

import numpy as np
import pytest

from albert_jax.data.speech import symbols
from albert_jax.errors import UserError


def test_the_table_of_styletts2():
  table = symbols.load("styletts2")
  assert table.vocab_size == 178
  assert (table.pad_id, table.space_id, table.mask_id, table.unk_id) == (0, 16, 29, 37)
  # The apostrophe stands twice; the later place counts, as in the reference.
  np.testing.assert_array_equal(table.encode("';a(ᵻ"), [176, 1, 43, 37, 177])


@pytest.mark.realdata
def test_the_table_of_kokoro_is_kokoros(real_data):
  ours, theirs = symbols.load("kokoro"), symbols.load(real_data / "plbert_kokoro/vocab.json")
  vocab = json.loads((real_data / "plbert_kokoro/vocab.json").read_text())["vocab"]
  assert all(ours.pieces[number] == symbol for symbol, number in vocab.items())
  assert ours.pieces == theirs.pieces and ours.vocab_size == 178


def test_a_table_is_the_same_after_writing_and_reading(tmp_path):
  table = symbols.load("kokoro").extended(["ʬ", "a", "ꜛ"])
  assert table.pieces[178:] == ["ʬ", "ꜛ"]
  table.write(tmp_path)
  back = symbols.load(tmp_path)
  assert back.pieces == table.pieces and back.to_json() == table.to_json()


def test_a_text_file_has_a_symbol_a_line(tmp_path):
  (tmp_path / "table.txt").write_text("_\n \nM\nU\na\nɑ\n")
  table = symbols.load(tmp_path / "table.txt")
  assert table.pad_id == 0 and table.space_id == 1 and table.pieces[5] == "ɑ"
  assert table.ordinary == ["a", "ɑ"]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("$\n \nM\nU\na\na\n", "'a' occurs twice"),
    ('{"vocab": {"$": 0, "a": 1, "a": 2}}', "has the key .* 2 times"),
    ('{"vocab": {"$": 0, "a": 1, "b": 1}}', "both have the id 1"),
    ('{"vocab": {"$": 0, "ab": 1}}', "'ab' is 2 characters"),
    ('{"vocab": 3}', "no symbol table"),
    ('{"vocab": ', "is not JSON"),
    ("$\nM\nU\na\n", "has no ' ', the symbol for space"),
    ('{"$": 0, "M": 1, "U": 2, " ": 3, "a": 99999999999}', "has 100000000000 ids; expected 1 to 65536"),
    ('{"vocab": {"$": 0, "M": 1, "U": 2, " ": 3}, "size": 1000000000}', "has 1000000000 ids"),
    ('{"vocab": {"$": 0, "M": 1, "U": 2, " ": 3}, "size": "4"}', "has 4 ids; expected"),
  ],
)
def test_bad_tables_are_one_line(tmp_path, text, message):
  (tmp_path / "table").write_text(text)
  with pytest.raises(UserError, match=message) as caught:
    symbols.load(tmp_path / "table")
  assert "\n" not in str(caught.value)


def test_no_table(tmp_path):
  with pytest.raises(UserError, match="expected styletts2, kokoro, or a file"):
    symbols.load(tmp_path / "none")
