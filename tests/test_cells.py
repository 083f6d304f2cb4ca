"""The meaning of a cell is the same in every format and for every task."""

import math

import pytest

from albert_jax.data.finetuning import cells
from albert_jax.errors import UserError


@pytest.mark.parametrize("value", [None, math.nan, "", " ", "nan", "NaN", "NULL", "null", "<NA>"])
def test_a_missing_value(value):
  assert cells.is_missing(value) and cells.is_hidden(value)


@pytest.mark.parametrize("value", ["0", 0, "none", "NA", "n/a", False, 0.0, [], "nano"])
def test_a_value_that_is_there(value):
  assert not cells.is_missing(value) and not cells.is_hidden(value)


def test_a_split_hides_its_labels_only_as_a_whole():
  assert cells.are_hidden(["-1", -1, -1.0, None])
  assert not cells.are_hidden([-1, 0])
  assert not cells.are_hidden([])
  assert not cells.are_hidden(["-1", "-1"], labels=("-1", "1"))


@pytest.mark.parametrize(
  ("name", "values"),
  [
    ("true", [True, "True", "TRUE", "true"]),
    ("1", [1, 1.0, "1", " 1 ", "1.0"]),
    ("1.5", [1.5, "1.5"]),
    ("é", ["é", "e\u0301"]),
  ],
)
def test_a_label_has_one_name_in_every_format(name, values):
  assert {cells.label(value, "here") for value in values} == {name}


@pytest.mark.parametrize("value", [["a"], '["a"]', ' ["a"] '])
def test_a_list_is_no_label(value):
  with pytest.raises(UserError, match=r'^here: the label is \["a"\]; expected a text or a number'):
    cells.label(value, "here")


def test_names_that_look_alike_are_told():
  assert cells.alike(["no", "yes", "Yes", "a b", "a\u00a0b", "x", "x\u200b"]) == [
    ["yes", "Yes"],
    ["a b", "a\u00a0b"],
    ["x", "x\u200b"],
  ]
  assert cells.alike(["a", "b", "1", "-1", "+1"]) == []


def test_brackets_alone_are_part_of_a_name():
  assert [cells.label(name, "here") for name in ("[MASK]", "{x}", "(a)", "[")] == ["[MASK]", "{x}", "(a)", "["]


@pytest.mark.parametrize(
  ("value", "names"),
  [
    ('["joy", "love"]', ["joy", "love"]),
    (' ["a, b"] ', ["a, b"]),
    ("[]", []),
    ("joy, love", ["joy", "love"]),
    (["joy", True], ["joy", "true"]),
    ("", []),
    ([None, "joy"], ["joy"]),
    (7, ["7"]),
  ],
)
def test_several_labels(value, names):
  assert cells.labels(value, ",", "here") == names


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ("['joy', 'love']", "here: the list of labels is not JSON"),
    ('["joy", "love"', r'here: the labels .* are no JSON list; write \["a", "b"\], or names with'),
    ('"joy", "love"]', "are no JSON list"),
    ("(0, 1, 0)", "are no JSON list"),
    ("{joy, love}", "are no JSON list"),
    ("[0, 1, 0]", "the label '0' 2 times; expected names once each"),
    ([["a"]], "the label is"),
    ("[" * 1000 + "]" * 1000, "nested deeper"),
  ],
)
def test_a_list_of_anything_else_is_one_line(value, message):
  with pytest.raises(UserError, match=message):
    cells.labels(value, ",", "here")


def test_numbers():
  assert [cells.number(value, "here", "a score") for value in (1, "2.5", " 3 ", 1e3)] == [1, 2.5, 3, 1000]
  for value in (None, "", "nan", "inf", math.nan, True, "1,5", "1_0", [1], "9" * 400, "1e39"):
    with pytest.raises(UserError, match=r"^here: .* is no number; expected a score$"):
      cells.number(value, "here", "a score")
  with pytest.raises(UserError, match=r'^here: "4,8" has a comma \(replace .*: 4\.8\), and is no number'):
    cells.number("4,8", "here", "a score")
  for value, advice in (("1,500", "1500, or if it is decimal replace it: 1.500"), ("-1,234,567", "-1234567")):
    with pytest.raises(UserError, match=rf"has a comma \(remove the commas of the column: {advice}\)"):
      cells.number(value, "here", "a score")
