"""Exact match and F1: the official scorers' definitions, case by case and written out a second time."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.finetuning import squad
from albert_jax.data.finetuning.squad import Question
from albert_jax.errors import UserError
from albert_jax.tasks.squad import score as squad_score
from albert_jax.tasks.squad.score import cmrc, normalize, squad1, squad2


@pytest.mark.parametrize(("text", "normal"), [
  ("The Cat's pyjamas, a 'lot'!", "cats pyjamas lot"),
  ("a-b", "ab"),  # Punctuation goes first, and joins what it stood between,
  ("a.", ""),  # so that what is left of it may be an article.
  ("The the THE", ""),
  ("then another anthem", "then another anthem"),
  ("“quoted” — dash", "“quoted” — dash"),  # Only ASCII's punctuation is.
  ("  many\n\tspaces\u00a0here ", "many spaces here"),
  ("A\u00e9", "aé"),
  ("U.S.A.", "usa"),
  ("$5.50 a day", "550 day"),
])  # fmt: skip
def test_normal_form(text, normal):
  assert normalize(text) == normal


@pytest.mark.parametrize(("golds", "predicted", "first", "second"), [
  (["the cat"], "Cat", (1, 1.0), (1, 1.0)),
  (["black cat"], "a cat", (0, 2 / 3), (0, 2 / 3)),
  (["cat cat dog"], "cat dog dog", (0, 2 / 3), (0, 2 / 3)),  # bags of words, counted
  (["dog", "black cat"], "black cat", (1, 1.0), (1, 1.0)),
  (["dog"], "cat", (0, 0), (0, 0)),
  (["dog"], "", (0, 0), (0, 0)),
  (["dog"], "the", (0, 0), (0, 0)),
  # Answers that normalise to nothing: 1.1 counts them, 2.0 leaves them out unless there is no other.
  (["the"], "an", (1, 0), (1, 1)),
  (["the"], "dog", (0, 0), (0, 0)),
  (["the", "dog"], "", (1, 0), (0, 0)),
  (["..."], "", (1, 0), (1, 1)),
  ([""], "", (1, 0), (1, 1)),
  ([""], "dog", (0, 0), (0, 0)),
  ([""], "the", (1, 0), (1, 1)),
])  # fmt: skip
def test_cases(golds, predicted, first, second):
  assert squad1(golds, predicted) == pytest.approx(first)
  assert squad2(golds, predicted) == pytest.approx(second)


words = st.lists(st.sampled_from(["a", "The", "cat", "Dog,", "dog", "-", "c.a.t", "\u00e9"]), max_size=6).map(" ".join)


@given(golds=st.lists(words, min_size=1, max_size=3), predicted=words)
def test_f1_is_what_it_says(golds, predicted):
  """Precision and recall by taking words away one by one, instead of by counting."""

  def overlap(gold, ours):
    gold, ours = normalize(gold).split(), normalize(ours).split()
    left, same = list(gold), 0
    for word in ours:
      if word in left:
        left.remove(word)
        same += 1
    return 2 * same / (len(gold) + len(ours)) if same else 0.0

  exact, f1 = squad1(golds, predicted)
  assert f1 == pytest.approx(max(overlap(gold, predicted) for gold in golds))
  assert exact == any(normalize(gold) == normalize(predicted) for gold in golds)
  real = [gold for gold in golds if normalize(gold)]
  exact, f1 = squad2(golds, predicted)
  if real and normalize(predicted):
    assert (exact, f1) == squad1(real, predicted)
  else:
    assert exact == f1 == (not real and not normalize(predicted))


@pytest.mark.parametrize(("gold", "predicted", "scores"), [
  ("一百二十年", "一百二十年", (1, 1)),
  ("一百二十年", "一百二十年。", (1, 1)),  # Its punctuation does not count,
  ("《一百》二十年", "一百二十年", (1, 1)),
  ("(一百)", "一百", (0, 2 / 3)),  # but ASCII's brackets do: two of four.
  ("一百二十年", "一百三十年", (0, 0.4)),  # The longest run: two of five.
  ("一百二十年", "百二", (0, 4 / 7)),
  ("一百", "三", (0, 0)),
  ("Nexon公司", "nexon公司", (1, 1)),
  ("Nexon公司", "Nexo公司", (0, 2 / 3)),  # What is not Chinese counts by the word.
  ("1,000.5 km", "1,000.5", (0, 2 / 3)),
  ("a-b", "ab", (1, 1)),
  ("一", "", (0, 0)),
  ("", "", (1, 1)),
  ("", "一", (0, 0)),
])  # fmt: skip
def test_chinese(gold, predicted, scores):
  exact, f1 = cmrc([gold], predicted)
  assert (exact, f1) == pytest.approx(scores)


def test_chinese_takes_the_best_answer():
  assert cmrc(["三", "一百"], "一百") == (1, 1)


def questions(count, unanswerable):
  def answers(i):
    return () if i in unanswerable else ((f"word{i} more", 0), (f"other{i}", 0))

  return [Question(f"q{i}", "?", "context", answers(i), i in unanswerable) for i in range(count)]


class TestScore:
  def test_by_hand(self):
    question_list = questions(4, {2, 3})
    answers = {"q0": "the WORD0 more!", "q1": "word1", "q2": "", "q3": "something"}
    assert squad_score.score(question_list, answers, "squad2") == {
      "exact": 50.0, "f1": 100 * (1 + 2 / 3 + 1) / 4, "total": 4,
      "HasAns_exact": 50.0, "HasAns_f1": 100 * (1 + 2 / 3) / 2, "HasAns_total": 2,
      "NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2,
    }  # fmt: skip
    # Silence above 2.5 makes q3 right; silence above 0.5 would cost q0, one above 2.5 leaves q2 as it is.
    odds = {"q0": 0.5, "q1": 2.0, "q2": 1.0, "q3": 3.0}
    numbers = squad_score.score(question_list, answers, "squad2", odds, 2.5)
    assert numbers["exact"] == 75.0 and numbers["NoAns_exact"] == 100.0 and numbers["HasAns_exact"] == 50.0
    assert (numbers["best_exact"], numbers["best_exact_thresh"]) == (75.0, 0.5)
    assert (numbers["best_f1"], numbers["best_f1_thresh"]) == (pytest.approx(100 * (3 + 2 / 3) / 4), 2.0)

  def test_the_official_threshold_is_one(self):
    """evaluate-v2.0.py takes null odds for probabilities unless it is told otherwise."""
    question_list = questions(1, set())
    assert squad_score.score(question_list, {"q0": "other0"}, "squad2", {"q0": 1.0})["exact"] == 100
    assert squad_score.score(question_list, {"q0": "other0"}, "squad2", {"q0": 1.1})["exact"] == 0

  def test_without_silent_questions_there_is_no_such_part(self):
    assert squad_score.score(questions(2, set()), {"q0": "", "q1": "other1"}, "squad2").keys() == {
      "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total",
    }  # fmt: skip
    assert squad_score.score(questions(2, set()), {"q0": "", "q1": "other1"}, "squad1") == {
      "exact": 50.0, "f1": 50.0, "total": 2,
    }  # fmt: skip

  def test_questions_without_a_prediction_score_nothing_and_are_counted(self):
    numbers = squad_score.score(questions(4, {3}), {"q0": "other0"}, "squad2")
    assert (numbers["exact"], numbers["total"], numbers["missing"]) == (25.0, 4, 3)
    assert numbers["NoAns_exact"] == 0

  @given(st.data())
  def test_the_best_threshold_is_the_best(self, data):
    """Against trying each of them."""
    count = data.draw(st.integers(1, 12))
    unanswerable = data.draw(st.sets(st.integers(0, count - 1)))
    question_list = questions(count, unanswerable)
    text = st.sampled_from(["", "other0", "word1 more", "more", "word2"])
    answers = {x.id: data.draw(text) for x in question_list}
    odds = {x.id: data.draw(st.integers(-20, 20)) / 4 + i * 1e-3 for i, x in enumerate(question_list)}
    numbers = squad_score.score(question_list, answers, "squad2", odds)
    for name in ("exact", "f1"):
      tried = []
      for threshold in (*odds.values(), min(odds.values()) - 1):
        silent = {id: "" if odds[id] > threshold else answer for id, answer in answers.items()}
        # In the official search silence about a question scores as having said '', whoever was silent.
        tried.append(squad_score.score(question_list, silent, "squad2")[name])
      assert numbers[f"best_{name}"] == pytest.approx(max(tried))
      silent = {id: "" if odds[id] > numbers[f"best_{name}_thresh"] else answer for id, answer in answers.items()}
      if numbers[f"best_{name}"] > 100 * len(unanswerable) / count:  # Else it is 0, for which nothing was tried.
        assert squad_score.score(question_list, silent, "squad2")[name] == pytest.approx(numbers[f"best_{name}"])

  def test_rules(self):
    assert squad_score.rules_of(questions(2, set()), "en") == "squad1"
    assert squad_score.rules_of(questions(2, {1}), "en") == "squad2"
    assert squad_score.rules_of(questions(2, {1}), "zh") == "cmrc"
    assert squad_score.rules_of(questions(2, {1})) == "squad2"
    chinese = [
      Question(str(i), "?", "一百年", ((text, 0),), False) for i, text in enumerate(["一百", "年", "2年", "NBA"])
    ]
    assert squad_score.rules_of(chinese) == "cmrc"
    assert squad_score.rules_of(chinese, "en") == "squad1"
    assert squad_score.rules_of([*chinese, *questions(9, set())]) == "squad1"
    with pytest.raises(UserError, match=r"task\.language='de' is unknown; use en \(words\), zh"):
      squad_score.rules_of([], "de")


class TestFiles:
  @pytest.fixture
  def gold(self, tmp_path):
    qas = [
      {"id": "a", "question": "?", "answers": [{"text": "the cat", "answer_start": 0}]},
      {"id": "b", "question": "?", "answers": [], "is_impossible": True},
    ]
    path = tmp_path / "gold.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "the cat", "qas": qas}]}]}))
    return str(path)

  def file(self, tmp_path, value, name="predictions.json"):
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8-sig")
    return str(path)

  def test_scores(self, tmp_path, gold, caplog):
    predictions = self.file(tmp_path, {"a": "Cat", "b": "cat", "c": "x"})
    numbers = squad_score.score_files(predictions, gold)
    assert (numbers["exact"], numbers["HasAns_f1"], numbers["NoAns_f1"]) == (50.0, 100.0, 0.0)
    assert "best_f1" not in numbers
    assert "Note: 1 questions are answered that the gold file does not have, such as 'c'." in caplog.text
    odds = self.file(tmp_path, {"a": -1, "b": 0.5, "c": 3}, "odds.json")
    numbers = squad_score.score_files(predictions, gold, odds)
    assert (numbers["exact"], numbers["best_exact"], numbers["best_exact_thresh"]) == (50.0, 100.0, -1)
    assert squad_score.score_files(self.file(tmp_path, {"b": ""}), gold)["missing"] == 1
    assert "Note: 1 questions have no prediction, and score 0, such as 'a'." in caplog.text

  @pytest.mark.parametrize(("content", "message"), [
    ({"x": "cat"}, r"answers none of the questions of .*gold\.json: its ids are such as 'x', there .* 'a'"),
    ({}, "answers none of the questions"),
    ([1], r"predictions\.json: expected an object, got"),
    ({"a": [{"text": "cat"}]}, r"predictions\.json: 'a' has .* expected the text of its answer"),
    ('{"a": ', r"predictions\.json is not JSON"),
  ])  # fmt: skip
  def test_wrong_files(self, tmp_path, gold, content, message):
    with pytest.raises(UserError, match=message):
      squad_score.score_files(self.file(tmp_path, content), gold)

  def test_wrong_odds(self, tmp_path, gold):
    predictions = self.file(tmp_path, {"a": "Cat", "b": "cat"})
    with pytest.raises(UserError, match=r"odds\.json lacks 1 questions that .*predictions\.json answers, such as 'b'"):
      squad_score.score_files(predictions, gold, self.file(tmp_path, {"a": 1}, "odds.json"))
    for bad in ("NaN", '"1"', "true"):
      with pytest.raises(UserError, match=r"odds\.json: ('a' has .* expected a number|NaN is no JSON number)"):
        squad_score.score_files(predictions, gold, self.file(tmp_path, f'{{"a": {bad}, "b": 1}}', "odds.json"))
    with pytest.raises(UserError, match="no file"):
      squad_score.score_files(predictions, gold, str(tmp_path / "nothing.json"))


def made_up_predictions(question_list):
  """Some right, some nearly, some wrong; and odds. From Python's own generator, so the same everywhere."""
  rng, texts, odds = random.Random(6), {}, {}
  for question in question_list:
    words, gold = question.context.split(), [text for text, _ in question.answers]
    place, length, kind = rng.randrange(len(words)), rng.randrange(1, 6), rng.randrange(5)
    answer = " ".join(words[place : place + length])
    if gold:
      answer = [answer, f"The {gold[-1].upper()}!", gold[0][: len(gold[0]) * 2 // 3 + 1], gold[0], ""][kind]
    texts[question.id] = answer if gold or kind else ""
    odds[question.id] = rng.randrange(-400, 400) / 100 - (2 if gold else 0)
  return texts, odds


# What evaluate-v2.0.py (alone, and with --na-prob-file) and evaluate-v1.1.py print for made_up_predictions.
RECORDED = {
  ("squad_v2/dev.json", False): {
    "exact": 30.708661417322833, "f1": 34.682698180680056, "total": 889,
    "HasAns_exact": 39.27765237020316, "HasAns_f1": 47.252638109762, "HasAns_total": 443,
    "NoAns_exact": 22.19730941704036, "NoAns_f1": 22.19730941704036, "NoAns_total": 446,
  },
  ("squad_v2/dev.json", True): {
    "exact": 42.63217097862767, "f1": 46.099359333330085, "total": 889,
    "HasAns_exact": 32.50564334085779, "HasAns_f1": 39.46349988110711, "HasAns_total": 443,
    "NoAns_exact": 52.690582959641254, "NoAns_f1": 52.690582959641254, "NoAns_total": 446,
    "best_exact": 55.56805399325084, "best_exact_thresh": -4.02, "best_f1": 55.943396685803876,
    "best_f1_thresh": -4.02,
  },
  ("squad_v1/newwiki_dev.json", False): {
    "exact": 39.55739972337483, "f1": 48.100557379371956, "total": 723,
  },
}  # fmt: skip


@pytest.mark.realdata
@pytest.mark.parametrize(("file", "with_odds"), [
  ("squad_v2/dev.json", False), ("squad_v2/dev.json", True), ("squad_v1/newwiki_dev.json", False)
])  # fmt: skip
def test_recorded_numbers_of_the_official_scripts(real_data, tmp_path, file, with_odds):
  texts, odds = made_up_predictions(squad.read_file(real_data / file))
  (tmp_path / "texts.json").write_text(json.dumps(texts))
  (tmp_path / "odds.json").write_text(json.dumps(odds))
  odds_file = str(tmp_path / "odds.json") if with_odds else ""
  numbers = squad_score.score_files(str(tmp_path / "texts.json"), str(real_data / file), odds_file)
  # To twelve digits: from Python 3.12 on, sums of floats are rounded once, at their end.
  assert numbers == pytest.approx(RECORDED[file, with_odds], rel=1e-12, abs=0)
