"""Multiple-choice files to questions, and those to ids by the rules of run_race.py."""

import json

import made_up
import numpy as np
import pytest

from albert_jax.data.finetuning import choices
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

PASSAGE = {
  "article": "Badu kelo.\nGine.", "questions": ["Badu is _ .", "Who?"], "answers": ["B", "A"],
  "options": [["mola ", "toro", "gi", "a_b"], ["x", "y", "z", "w"]], "id": "high1.txt",
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary")))


class TestFormats:
  def test_race(self, tmp_path):
    for level, name in (("high", "2.txt"), ("middle", "7.txt"), ("high", "10.txt")):
      (tmp_path / "RACE/dev" / level).mkdir(parents=True, exist_ok=True)
      (tmp_path / "RACE/dev" / level / name).write_text(json.dumps(PASSAGE | {"article": level + name}))
    questions = choices.read(tmp_path, "validation")
    assert [(c.group, c.context) for c in questions[::2]] == [
      ("middle", "middle7.txt"), ("high", "high10.txt"), ("high", "high2.txt"),
    ]  # fmt: skip
    assert [c.label for c in questions[:2]] == [1, 0]
    assert questions[0].endings() == ["Badu is mola .", "Badu is toro .", "Badu is gi .", "Badu is a_b ."]
    assert questions[1].endings() == ["Who? x", "Who? y", "Who? z", "Who? w"]
    assert len(choices.read(tmp_path / "RACE", "validation", levels=("high",))) == 4
    with pytest.raises(UserError, match="RACE has middle, high"):
      choices.read(tmp_path, "validation", levels=("low",))
    with pytest.raises(UserError, match="no file of the split 'train'"):
      choices.read(tmp_path / "RACE", "train")

  def test_folders_of_the_hub(self, tmp_path):
    rows = [
      {
        "example_id": f"{level}1.txt",
        "article": "A.",
        "answer": answer,
        "question": "Badu is _ .",
        "options": ["x", "y"],
      }
      for level, answer in (("high", "B"), ("middle", "A"), ("middle", ""))
    ]
    made_up.hub(tmp_path / "race", "train", rows, 2)
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for dataset in ("race", "lines.jsonl"):
      questions = choices.read(tmp_path / dataset, "train")
      assert [(c.group, c.label) for c in questions] == [("high", 1), ("middle", 0), ("middle", None)]
      assert questions[0].endings() == ["Badu is x .", "Badu is y ."]
      assert [c.group for c in choices.read(tmp_path / dataset, "train", levels=("high",))] == ["high"]
    assert len(choices.find(tmp_path / "race", "train")) == 2
    made_up.hub(tmp_path / "race", "validation", rows[:1])
    with pytest.raises(UserError, match=r"has no questions of data\.levels=middle"):
      choices.read(tmp_path / "race", "validation", levels=("middle",))
    swag = {"sent1": "One.", "sent2": "He", "ending0": "a", "ending1": "b", "ending2": "c", "ending3": "d", "gold": "x"}
    digits = made_up.classes("0", "1", "2", "3")
    made_up.hub(tmp_path / "swag", "train", [swag | {"label": 3}, swag | {"label": -1}], label=digits)
    made_up.hub(tmp_path / "own", "train", [{"context": "c", "question": "q", "options": ["x", "y"], "label": 1}])
    made_up.hub(tmp_path / "other", "train", [{"sentence": "c", "label": 1}])
    assert [c.label for c in choices.read(tmp_path / "swag", "train")] == [3, None]
    assert choices.read(tmp_path / "own", "train") == [choices.Choice("c", "q", ("x", "y"), 1)]
    with pytest.raises(UserError, match=r"00001\.parquet line 1: expected an object with context.*is sentence, label"):
      choices.read(tmp_path / "other", "train")

  def test_dream_swag_and_own(self, tmp_path):
    (tmp_path / "dev.json").write_text(
      json.dumps([[["M: Badu?", "W: Gi."], [{"question": "Who?", "choice": ["a", "b", "c"], "answer": "c"}], "5-1"]])
    )
    assert choices.read(tmp_path, "validation") == [choices.Choice("M: Badu?\nW: Gi.", "Who?", ("a", "b", "c"), 2)]
    (tmp_path / "train.csv").write_text(
      ',video-id,sent1,sent2,ending0,ending1,ending2,ending3,label\n0,v,One.,He,"runs, far",b,c,d,3\n'
    )
    (question,) = choices.read(tmp_path, "train")
    (tmp_path / "dev.csv").write_text("sent1,sent2,ending0,ending1,ending2,ending3,label\n")
    with pytest.raises(UserError, match=r"dev\.csv has no rows"):
      choices.read(tmp_path / "dev.csv", "train")
    (tmp_path / "train.csv").rename(tmp_path / "UPPER.CSV")
    assert choices.read(tmp_path / "UPPER.CSV", "train") == [question]
    assert (question.context, question.label, question.endings()[0]) == ("One.", 3, "He runs, far")
    rows = [
      {"context": "c", "question": "The file_name is ___.", "options": ["x", "y"], "label": "y"},
      {"context": "c", "options": ["x", "y", "z"], "label": 2},
      {"context": "c", "question": None, "options": ["x", "y"], "label": "B"},
      {"context": "c", "options": ["x", "y"]},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    question = choices.read(tmp_path / "own.jsonl", "train")
    assert [c.label for c in question] == [1, 2, 1, None]
    assert question[0].endings() == ["The file_name is x.", "The file_name is y."]
    assert question[1].endings() == ["x", "y", "z"]

  @pytest.mark.parametrize(
    ("answers", "labels"),
    [
      (["A", "B"], [0, 1]),  # Letters are positions, also where another option is that letter.
      (["C", "D"], [2, 3]),
      ([1, 0], [1, 0]),
      (["", None], [None, None]),
      (["-1", -1], [None, None]),
      (None, [None, None]),
    ],
  )
  def test_answers_of_race(self, answers, labels, tmp_path):
    row = PASSAGE | {"options": [["C", "A", "B", "D"], ["0", "2", "1", "3"]], "answers": answers}
    (tmp_path / "x.json").write_text(json.dumps(row))
    assert [c.label for c in choices.read(tmp_path / "x.json", "train")] == labels

  @pytest.mark.parametrize(
    ("label", "number"), [("A", 0), ("B", 1), ("y", 1), ("0", 0), (1, 1), (-1, None), ("-1", None), (None, None)]
  )
  def test_labels_of_own_files(self, label, number, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"context": "c", "options": ["B", "y"], "label": label}))
    assert [c.label for c in choices.read(tmp_path / "x.jsonl", "train")] == [number]

  @pytest.mark.parametrize(
    ("row", "words"),
    [
      ({"context": "c", "options": ["x"], "label": 0}, "line 1: the options are"),
      ({"context": "c", "options": ["x", "y"], "label": 2}, "line 1: the answer 2 is none of its 2 options"),
      ({"context": "c", "options": ["x", "y"], "label": "zz"}, 'the answer "zz"'),
      ({"context": 3, "options": ["x", "y"], "label": 1}, "should be texts"),
      ({"text": "c"}, "expected an object with context, question, options and label.*there is text"),
      (PASSAGE | {"answers": ["A"]}, "2 questions, 2 lists of options, 1 answers"),
      (PASSAGE | {"questions": 7}, "'questions': expected a list, got 7"),
      ({"context": "c", "options": ["x", "y"], "label": [0]}, "the label is"),
      ([1], r"there is \[1\]"),
    ],
  )
  def test_a_mistake_is_one_line(self, row, words, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=words) as error:
      choices.read(tmp_path / "x.jsonl", "train")
    assert "\n" not in str(error.value)

  @pytest.mark.realdata
  def test_official_files(self, real_data):
    questions = choices.read(real_data / "race", "validation")
    assert [sum(c.group == level for c in questions) for level in choices.LEVELS] == [1436, 3451]
    assert len(choices.read(real_data / "dream", "validation")) == 2040
    assert len(choices.read(real_data / "tiny_samples/swag/sample.json", "train")) == 10


class TestIds:
  def test_are_those_of_the_original(self, vocabulary, caplog):
    """convert_single_example of race_utils.py, without its padding."""
    questions = [
      choices.Choice("badu " * 9, "gine toro " * 5, ("mo", "nora kelo gi"), 1),
      choices.Choice("badu", "gi", ("mo", "no"), None),
    ]
    rows = choices.rows(questions, vocabulary, 24, 12, "here")
    ids = iter(rows.tokens["input_ids"])
    for choice in questions:
      for ending in choice.endings():
        context, tail = vocabulary.encode(choice.context), vocabulary.encode(ending)[-12:]
        if len(context) + len(tail) > 24 - 3:
          context = context[: 24 - 3 - len(tail)]
        expected = [vocabulary.cls_id, *context, vocabulary.sep_id, *tail, vocabulary.sep_id]
        assert next(ids).tolist() == expected
    types = rows.tokens["token_type_ids"][0]
    assert types.tolist() == [0] * (24 - 13) + [1] * 13
    output = caplog.text
    assert "here: 2 of 4 options and their question exceed data.qa_length=12 tokens" in output
    assert "here: 2 of 4 options and their context exceed data.seq_length=24 tokens" in output

  def test_questions_with_fewer_options(self, vocabulary):
    questions = [choices.Choice("a", "b", ("c", "d", "e"), 2), choices.Choice("a", "b", ("c", "d"), 1)]
    rows = choices.rows(questions, vocabulary, 32, 16)
    assert len(rows) == 2
    assert rows.group == 3
    assert rows.fixed["options"].tolist() == [3, 2]
    assert rows.tokens["input_ids"][5].tolist() == [vocabulary.cls_id, vocabulary.sep_id]
    assert np.array_equal(rows.fixed["labelled"], [1, 1])
