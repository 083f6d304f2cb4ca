"""Question answering data: files as people have them, windows, and answers found again character by character."""

import itertools
import json
import unicodedata

import made_up
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data.finetuning import squad, tables
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


def qa(id="a", question="what ?", answers=(("a", 0),), **more):
  return {"id": id, "question": question, "answers": [{"text": t, "answer_start": s} for t, s in answers], **more}


def official(*paragraphs):
  return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": c, "qas": q} for c, q in paragraphs]}]}


def write(path, value, encoding="utf-8"):
  path.write_text(value if isinstance(value, str) else json.dumps(value), encoding)
  return path


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary")))


class TestReading:
  def test_official_form(self, tmp_path):
    file = write(tmp_path / "x.json", official(
      ("a passage", [qa(), qa("b", answers=(("passage", 2), ("a", 0)))]),
      ("more", [qa("c", answers=(), is_impossible=True), qa(4, answers=())]),
    ))  # fmt: skip
    questions = squad.read_file(file)
    assert [(x.id, x.context, x.answers, x.impossible) for x in questions] == [
      ("a", "a passage", (("a", 0),), False),
      ("b", "a passage", (("passage", 2), ("a", 0)), False),
      ("c", "more", (), True),
      ("4", "more", (), True),
    ]

  def test_flat_form(self, tmp_path):
    rows = [{"id": "a", "question": "q", "context": "the x", "answers": {"text": ["x"], "answer_start": [4]}}]
    for name, content in (
      ("x.json", {"data": rows}), ("X.JSON", {"data": rows}), ("list.json", rows), ("x.jsonl", rows[0]),
      ("lines.json", "\n".join(json.dumps(rows[0] | {"id": i}) for i in "ab")),
    ):  # fmt: skip
      assert squad.read_file(write(tmp_path / name, content))[0].answers == (("x", 4),)

  @pytest.mark.parametrize(
    "answers", [{}, {"answers": None}, {"answers": []}, {"answers": {"text": [], "answer_start": []}}]
  )
  @pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
  def test_a_file_that_hides_its_answers(self, answers, name, tmp_path):
    rows = [{"id": i, "question": "q", "context": "c"} | answers for i in "ab"]
    content = {"data": rows} if name == "x.json" else "\n".join(map(json.dumps, rows))
    questions = squad.read_file(write(tmp_path / name, content))
    assert squad.is_hidden(questions)
    assert [(x.answers, x.impossible) for x in questions] == [((), False)] * 2
    assert not squad.is_hidden([*questions, squad.Question("c", "q", "c", (), True)])

  def test_a_byte_order_mark_and_windows_line_ends(self, tmp_path):
    text = json.dumps(official(("a\r\nb", [qa()])), indent=1).replace("\n", "\r\n")
    assert squad.read_file(write(tmp_path / "x.json", text, "utf-8-sig"))[0].context == "a\r\nb"

  def test_a_folder(self, tmp_path):
    for name in ("train-v2.0.json", "dev-v2.0.json"):
      write(tmp_path / name, official((name, [qa()])))
    assert squad.read(str(tmp_path), "train")[0].context == "train-v2.0.json"
    assert squad.read(str(tmp_path), "validation")[0].context == "dev-v2.0.json"
    assert squad.read(str(tmp_path), "dev-v2.0.json")[0].context == "dev-v2.0.json"
    assert squad.read("", str(tmp_path / "dev-v2.0.json"))[0].context == "dev-v2.0.json"
    assert squad.read(str(tmp_path / "dev-v2.0.json"), "validation")[0].context == "dev-v2.0.json"
    write(tmp_path / "dev-v1.1.json", official(("x", [qa()])))
    with pytest.raises(UserError, match=r"several files of the split 'validation': dev-v1.1.json, dev-v2.0.j"):
      squad.read(str(tmp_path), "validation")
    with pytest.raises(UserError, match=r"no file of the split 'test'.*name the file with --config\.data\.split=FILE"):
      squad.read(str(tmp_path), "test")

  def test_a_folder_of_the_hub(self, tmp_path):
    rows = [
      {"id": str(i), "title": "t", "context": "Badu kelo.", "question": "Who?", "answers": answers}
      for i, answers in enumerate([{"text": ["Badu"], "answer_start": [0]}, {"text": [], "answer_start": []}])
    ]
    text = {"text": {"dtype": "string", "_type": "Value"}, "answer_start": {"dtype": "int32", "_type": "Value"}}
    made_up.hub(tmp_path / "data", "train", rows, 2, answers={"feature": text, "_type": "Sequence"})
    first, second = squad.read(tmp_path, "train")
    assert (first.answers, first.impossible) == ((("Badu", 0),), False)
    assert (second.answers, second.impossible) == ((), True)  # although its file has no answers at all
    assert len(squad.find(tmp_path, "train")) == 2
    made_up.hub(tmp_path / "data", "train", [rows[0], rows[0]], 2)
    with pytest.raises(UserError, match=r"00002\.parquet and 1 more: 2 questions have the id '0'"):
      squad.read(tmp_path, "train")

  def test_tfds(self, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinySquad(tfds.core.GeneratorBasedBuilder):
      """The features of TFDS's squad/v2.0."""

      VERSION = tfds.core.Version("3.0.0")

      def _info(self):
        text, answers = tfds.features.Text(), {"text": tfds.features.Text(), "answer_start": np.int32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
          "id": np.str_, "title": text, "context": text, "question": text,
          "answers": tfds.features.Sequence(answers), "plausible_answers": tfds.features.Sequence(answers),
          "is_impossible": np.bool_,
        }))  # fmt: skip

      def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

      def _generate_examples(self):
        rows = [("a", "größe ?", [("ß", 3)]), ("b", "none ?", []), ("c", "two ?", [("Maß", 0), ("ß", 2)])]
        for id, question, gold in rows:
          answers = {"text": [t for t, _ in gold], "answer_start": [s for _, s in gold]}
          yield id, {
            "id": id, "title": "t", "context": "Maß", "question": question, "answers": answers,
            "plausible_answers": {"text": ["x"], "answer_start": [0]}, "is_impossible": not gold,
          }  # fmt: skip

    TinySquad(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    questions_of = {x.id: x for x in squad.read("tiny_squad", "validation", str(tmp_path))}
    assert questions_of.keys() == {"a", "b", "c"}
    assert questions_of["a"] == squad.Question("a", "größe ?", "Maß", (("ß", 3),), False)
    assert questions_of["b"].impossible and questions_of["b"].answers == ()
    assert questions_of["c"].answers == (("Maß", 0), ("ß", 2))
    rows = tables.read("tiny_squad", "validation", ["answers"], tfds_dir=str(tmp_path))  # Lists hold texts, not bytes.
    assert {"answer_start": [0, 2], "text": ["Maß", "ß"]} in rows.columns["answers"]
    with pytest.raises(UserError, match=r"data\.dataset=no_such_data, split 'train'"):
      squad.read("no_such_data", "train", str(tmp_path))

  @pytest.mark.parametrize(("content", "message"), [
    ("{", r"x\.json is not JSON: .* at character 2"),
    ([{"context": "c", "text": "q"}], r"x\.json line 1: .* name the columns id, question, context and answers$"),
    ("[]", r"x\.json is JSON, but not of the expected form: SQuAD's form"),
    ({"data": {}}, r"x\.json is JSON, but not of the expected form"),
    ({"data": []}, r"x\.json holds no question"),
    ({"data": [3]}, r'data\[0\]: expected an object, got 3'),
    (official(("c", [qa(), {"id": "x", "question": "q"}])), r"the question 'x' has no \"answers\", but others have"),
    (official(("c", [qa(is_impossible="no")])), r'"is_impossible": expected a boolean, got "no"'),
    (official(("c", [qa(question=None)])), r'\.qas\[0\]: "question": expected a text, got null'),
    (official(("c", [qa(answers=((3, 0),))])), r'answers\[0\]: "text": expected a text, got 3'),
    (official(("c", [qa(answers=(("a", "0"),))])), r'"answer_start": expected a whole number, got "0"'),
    (official((None, [qa()])), r'"context": expected a text, got null'),
    (official(("c", [qa("7"), qa(7)])), r"2 questions have the id '7'"),
    ({"data": [{"id": "a", "question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": []}}]},
     r"1 texts but 0 answer_start"),
  ])  # fmt: skip
  def test_what_is_wrong_is_said_with_its_place(self, tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
      squad.read_file(write(tmp_path / "x.json", content))
    assert "\n" not in str(error.value)

  def test_nothing_there(self, tmp_path):
    with pytest.raises(UserError, match=r"data\.dataset is not set"):
      squad.read("", "train")
    with pytest.raises(UserError, match="there is no such file or folder"):
      squad.read(str(tmp_path / "x.json"), "train")
    with pytest.raises(UserError, match=r"there is no such file or folder|no file of the split 'y\.json'"):
      squad.read(str(tmp_path), "y.json")
    (tmp_path / "latin.json").write_bytes('{"data": "ß"}'.encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
      squad.read_file(tmp_path / "latin.json")


class TestLocating:
  @pytest.mark.parametrize(("context", "answer", "place"), [
    ("a cat, a cat", ("cat", 9), (9, 12)),
    ("a cat, a cat", ("cat", 8), (9, 12)),  # the nearest
    ("a cat, a cat", ("cat", 0), (2, 5)),
    ("a cat", (" cat ", 1), (2, 5)),
    ("aaa", ("aa", 5), (1, 3)),
    ("a cat", ("cat", -3), (2, 5)),
    ("a cat", ("dog", 2), None),
    ("a cat", (" ", 1), None),
    ("", ("x", 0), None),
    ("x" * 9, ("", 3), None),
  ])  # fmt: skip
  def test_places(self, context, answer, place):
    assert squad.locate(context, *answer) == place

  @settings(max_examples=150, deadline=None)
  @given(st.data())
  def test_an_answer_comes_back_whole_whatever_normalisation_does(self, tokenizer, data):
    """Lengths change with accents, ligatures, fractions, white space and case; the answer's characters do not."""
    piece = st.sampled_from(
      ["ba", "Dofe", "é", "e\u0301", "\ufb01", "½", "  ", "\u00a0", "\n", "İ", "ß", "…", "“", "``", "''", "1,", "中",
       "\u200b", "\U0001f600", "▁", "."]
    )  # fmt: skip
    words = data.draw(st.lists(piece, min_size=1, max_size=25))
    context = "".join(words)
    ids, spans = tokenizer.encode_with_offsets(context)
    spans = np.array(spans, np.int32).reshape(-1, 2)
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    place = squad.locate(context, context[start:end], start)
    tokens = None if place is None else squad.align(spans, *place)
    if tokens is None:  # Only white space and what the vocabulary drops.
      assert not any(s < e and s < end and e > start for s, e in spans.tolist())
      return
    assert 0 <= tokens[0] <= tokens[1] < len(ids)
    begin, stop = squad.characters(context, spans, *tokens)
    # All tokens that touch the answer, and no others: what is more is the rest of the outer two.
    for (s, e), inside in zip(spans.tolist(), range(len(ids)), strict=False):
      if s < e:
        assert (s < place[1] and e > place[0]) == (tokens[0] <= inside <= tokens[1]), (context, place, tokens)
    covered = {i for s, e in spans.tolist() for i in range(s, e)}
    if covered >= set(range(*place)):
      assert begin <= place[0] and stop >= place[1]

  def test_marks_stay_with_their_letter(self):
    context = "x" + "e\u0301\u0327 y"
    spans = np.array([[0, 1], [1, 2], [5, 6]])
    assert squad.characters(context, spans, 1, 1) == (1, 4)
    assert unicodedata.combining(context[3])


class TestWindows:
  @given(tokens=st.integers(0, 300), room=st.integers(1, 60), stride=st.integers(1, 80))
  def test_they_cover_the_passage(self, tokens, room, stride):
    windows = squad.cut(tokens, room, stride)
    assert windows[0][0] == 0 and sum(windows[-1]) == tokens
    for (a, n), (b, m) in itertools.pairwise(windows):
      assert n == room and b == a + min(room, stride) and m <= room
    assert {i for a, n in windows for i in range(a, a + n)} == set(range(tokens))
    assert len(windows) == 1 or tokens > room

  @given(tokens=st.integers(1, 120), room=st.integers(1, 40), stride=st.integers(1, 50))
  def test_most_context_is_the_originals(self, tokens, room, stride):
    """_check_is_max_context of the original, written out token by token."""
    windows = squad.cut(tokens, room, stride)
    owner = squad.best_context(*np.array(windows).T)
    for token in range(tokens):
      scores = {
        w: min(token - a, a + n - 1 - token) + 0.01 * n for w, (a, n) in enumerate(windows) if a <= token < a + n
      }
      assert owner[token] == max(scores, key=scores.get)

  def encode(self, tokenizer, questions, **sizes):
    return squad.encode(questions, tokenizer, **{"seq_length": 40, "doc_stride": 8, "max_query_length": 10, **sizes})

  def test_rows(self, tokenizer):
    words = " ".join(random_words(60))
    ids, spans = tokenizer.encode_with_offsets(words)
    start, end = spans[30][0], spans[32][1]
    question = squad.Question("a", "what is it", words, ((words[start:end], start),), False)
    windows = self.encode(tokenizer, [question])
    query = tokenizer.encode("what is it")[:10]
    rows, fixed = windows.rows.tokens, windows.rows.fixed
    offset = len(query) + 2
    assert len(windows.rows) == len(squad.cut(len(ids), 40 - len(query) - 3, 8)) > 3
    holding = 0
    for w in range(len(windows.rows)):
      first, size = windows.first[w], windows.size[w]
      row = rows["input_ids"][w].tolist()
      passage = ids[first : first + size]
      assert row == [tokenizer.cls_id, *query, tokenizer.sep_id, *passage, tokenizer.sep_id]
      assert len(row) <= 40 and windows.offset[w] == offset
      assert rows["token_type_ids"][w].tolist() == [0] * offset + [1] * (size + 1)
      assert rows["allowed"][w].tolist() == [1] + [0] * (offset - 1) + [1] * size + [0]
      if first <= 30 and first + size > 32:
        holding += 1
        assert row[fixed["start"][w] : fixed["end"][w] + 1] == ids[30:33] and not fixed["impossible"][w]
      else:
        assert (fixed["start"][w], fixed["end"][w], fixed["impossible"][w]) == (0, 0, 1)
    assert holding > 1 and not windows.notes

  def test_what_is_odd_is_counted_and_nothing_dropped(self, tokenizer):
    words = " ".join(random_words(40))
    q = [
      squad.Question("gone", "q", words, (("zzzzz", 0),), False),
      squad.Question("moved", "q", words, ((words.split()[5], 0),), False),
      squad.Question("long", "q", words, ((words, 0),), False),
      squad.Question("empty", "", "", (), True),
      squad.Question("query", "ba " * 30, words, (), True),
      squad.Question("cut", "q", words, ((words[1:], 1), (words.split()[0], 0)), False),
    ]
    windows = self.encode(tokenizer, q)
    assert windows.questions == q and sorted(set(windows.question)) == list(range(6))
    assert windows.notes == {
      "answers that are not in the passage": 1,
      "answers that are elsewhere in the passage than answer_start says": 1,
      "answers longer than any window": 1,
      "questions without text": 1,
      "passages without text": 1,
      "questions cut to their first task.max_query_length tokens": 1,
    }
    [empty] = np.flatnonzero(windows.question == 3)
    assert windows.rows.tokens["input_ids"][empty].tolist() == [tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id]
    training = self.encode(tokenizer, q, training=True)
    assert [x.id for x in training.questions] == ["moved", "long", "empty", "query", "cut"]
    cut = training.question == 4  # Of its answers it has the one that can be learnt.
    assert (training.rows.fixed["start"][cut] > 0).sum() >= 1

  def test_of_several_answers_the_one_that_tokens_can_say(self, tokenizer):
    """'a' of the one token 'ab' is no label where another annotator took the whole."""
    words = " ".join(random_words(50))
    _, spans = tokenizer.encode_with_offsets(words)
    k = next(i for i, (s, e) in enumerate(spans) if e - s > 1)
    s, e = spans[k]
    part, whole = (words[s : e - 1], s), (words[s:e], s)
    for answers, inside in (((part, whole), 0), ((part,), 1)):
      windows = self.encode(tokenizer, [squad.Question("a", "q", words, answers, False)], seq_length=300)
      assert windows.notes == ({"answers that begin or end inside a token": 1} if inside else {})
      assert windows.rows.fixed["start"][0] - windows.offset[0] == windows.rows.fixed["end"][0] - windows.offset[0] == k

  def test_a_passage_of_50000_words(self, tokenizer):
    words = random_words(50_000)
    context = " ".join(words)
    start = len(" ".join(words[:43_210])) + 1
    windows = squad.encode(
      [squad.Question("a", "where ?", context, ((words[43_210], start),), False)], tokenizer,
      seq_length=384, doc_stride=128, max_query_length=64,
    )  # fmt: skip
    [*rows] = np.flatnonzero(windows.rows.fixed["start"])
    assert rows and not windows.notes
    for w in rows:
      first, last = (windows.rows.fixed[name][w] - windows.offset[w] + windows.first[w] for name in ("start", "end"))
      begin, end = squad.characters(context, windows.spans[0], first, last)
      assert (begin, context[begin:end]) == (start, words[43_210])


def random_words(count):
  rng = np.random.default_rng(0)
  return ["".join(rng.choice(made_up.SYLLABLES, rng.integers(1, 4))) for _ in range(count)]


@pytest.mark.realdata
class TestRealFiles:
  """Gold answers to tokens and back: every question of every file, and what cannot come back, with its reason."""

  def answered(self, questions, tokenizer):
    windows = squad.encode(questions, tokenizer, seq_length=2**17, doc_stride=128, max_query_length=64)
    assert windows.questions == questions and len(windows.rows) == len(questions)
    texts = {}
    for w, question in enumerate(questions):
      start, end = (int(windows.rows.fixed[name][w]) - windows.offset[w] for name in ("start", "end"))
      begin, stop = squad.characters(question.context, windows.spans[w], start, end) if start >= 0 else (0, 0)
      texts[question.id] = question.context[begin:stop]
    return texts, windows.notes

  @pytest.mark.parametrize(("file", "count", "cut"), [
    ("squad_v2/train.json", 3569, 0), ("squad_v2/dev.json", 889, 0), ("squad_v1/newwiki_train.json", 5924, 0),
    ("squad_v1/newwiki_dev.json", 723, 0), ("squad_v1/amazon_train_extra.json", 9885, 4),
  ])  # fmt: skip
  def test_english(self, real_data, file, count, cut):
    from albert_jax.tasks.squad import score as squad_score

    tokenizer = Tokenizer(real_data / "vocab" / "albert_en_30k")
    questions = squad.read_file(real_data / file)
    texts, notes = self.answered(questions, tokenizer)
    assert len(questions) == count
    notes.pop("questions cut to their first task.max_query_length tokens", None)
    assert notes == ({"answers that begin or end inside a token": cut} if cut else {})
    numbers = squad_score.score(questions, texts, squad_score.rules_of(questions, "en"))
    assert numbers["exact"] == 100

  def test_chinese(self, real_data, tmp_path):
    """With a vocabulary of single characters, as the released Chinese models have."""
    pytest.importorskip("tokenizers", reason="WordPiece vocabularies need the library `tokenizers`")
    from albert_jax.tasks.squad import score as squad_score

    questions = squad.read_file(real_data / "squad_zh" / "cmrc2018_trial.json")
    letters = {c for x in questions for c in unicodedata.normalize("NFD", x.context.lower())} - {" ", "\n", "\u2028"}
    letters = sorted(c for c in letters if c.isprintable() and not c.isspace())
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters if c.isalnum())]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    texts, notes = self.answered(questions, Tokenizer(tmp_path / "vocab.txt"))
    assert notes == {  # The data's own: the context of TRIAL_210 lost a character.
      "answers that are elsewhere in the passage than answer_start says": 5, "questions without text": 2,
    }  # fmt: skip
    assert squad_score.score(questions, texts, "cmrc") == {"exact": 100, "f1": 100, "total": 1002}
