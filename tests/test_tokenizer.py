"""The tokenizer against the rules of the original, on the genuine vocabulary and on any Unicode."""

import io
import itertools
import json
import pickle
import shutil
import time
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from albert_jax.data import tokenizer as tokenizer_lib
from albert_jax.data.tokenizer import Tokenizer, normalize
from albert_jax.errors import UserError

SPECIAL_SETTINGS = {
  "pad_id": 0,
  "pad_piece": "<pad>",
  "unk_id": 1,
  "bos_id": -1,
  "eos_id": -1,
  "control_symbols": "[CLS],[SEP],[MASK]",
  "user_defined_symbols": '(,),"▁2010,","12,"',
}


def train(path, **settings):
  """Returns a small vocabulary in which some pieces end in a digit and a comma, inside words too."""
  years = [f"in {year}, there were x{n}, then" for year in (1999, 2010, 2011) for n in (3, 7, 12)] * 10
  words = ["the quick brown fox jumps over the lazy dog", "a fine affluent office (so they say)", "σας naïve İstanbul"]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter((years + words * 10) * 3),
    model_writer=model,
    vocab_size=120,
    hard_vocab_limit=False,
    split_by_number=False,
    split_by_unicode_script=False,
    minloglevel=2,
    **(SPECIAL_SETTINGS | settings),
  )
  path.write_bytes(model.getvalue())
  return path


@pytest.fixture(scope="session")
def small(tmp_path_factory):
  return Tokenizer(train(tmp_path_factory.mktemp("vocabulary") / "spiece.model"))


@pytest.fixture(scope="session")
def genuine(real_data):
  return Tokenizer(real_data / "vocab/albert_en_30k/spiece.model")


def original_preprocess_text(text, lower):
  """tokenization.py, `preprocess_text`, character by character."""
  text = unicodedata.normalize("NFKD", " ".join(text.strip().split()))
  text = "".join(c for c in text if not unicodedata.combining(c) and not 0xD800 <= ord(c) < 0xE000)
  return text.lower() if lower else text


def original_encode(sp, text):
  """tokenization.py, `encode_pieces` and `encode_ids`, as written but for the text/bytes slip (docs/tokenizer.md)."""
  result = []
  for piece in sp.encode(text, out_type=str):
    if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit():
      parts = sp.encode(piece[:-1].replace("▁", ""), out_type=str)
      if piece[0] != "▁" and parts[0][0] == "▁":
        if len(parts[0]) == 1:
          parts = parts[1:]
        else:
          parts[0] = parts[0][1:]
      result += [*parts, piece[-1]]
    else:
      result.append(piece)
  return [sp.piece_to_id(piece) for piece in result]


any_text = st.text(st.characters(exclude_categories=())) | st.text(
  st.sampled_from("ab 9,İßﬁ½é\u0301\u0323`'\t\n\xa0Σσ가𝟘¨")
)


class TestNormalize:
  @pytest.mark.parametrize(
    ("text", "expected"),
    [
      ("  Hello \t\n  World ", "hello world"),
      ("falsé", "false"),
      ("İstanbul", "istanbul"),
      ("ﬁne ½ ①", "fine 1⁄2 1"),
      ("ΟΔΟΣ", "οδος"),
      ("``quoted''", "``quoted''"),
      ("", ""),
    ],
  )
  def test_examples(self, text, expected):
    assert normalize(text) == expected

  def test_switches(self):
    assert normalize("Falsé", lower=False) == "False"
    assert normalize("Falsé", keep_accents=True) == "false\u0301"
    assert normalize("``Quoted'' text", hf_quotes=True) == '"quoted" text'

  @given(any_text, st.booleans())
  def test_equals_the_original(self, text, lower):
    assert normalize(text, lower=lower) == original_preprocess_text(text, lower)

  @given(any_text, st.booleans(), st.booleans(), st.booleans())
  def test_spans_version_is_the_same_text(self, text, lower, keep_accents, hf_quotes):
    rules = {"lower": lower, "keep_accents": keep_accents, "hf_quotes": hf_quotes}
    result, spans = tokenizer_lib._normalize_with_spans(text, **rules)
    assert result == normalize(text, **rules)
    assert len(spans) == len(result)


class TestVocabulary:
  def test_special_ids_come_from_the_model(self, small, tmp_path):
    assert (small.pad_id, small.unk_id, small.cls_id, small.sep_id, small.mask_id) == (0, 1, 2, 3, 4)
    other = Tokenizer(
      train(
        tmp_path / "other.model",
        pad_id=7,
        unk_id=0,
        control_symbols="[MASK],[SEP],[CLS]",
      )
    )
    assert (other.pad_id, other.unk_id, other.mask_id, other.sep_id, other.cls_id) == (7, 0, 1, 2, 3)
    assert not {0, 1, 2, 3, 7} & set(other.ordinary_ids.tolist())

  def test_ordinary_ids(self, small):
    assert small.ordinary_ids.dtype == np.int32
    np.testing.assert_array_equal(small.ordinary_ids, np.arange(5, small.vocab_size))

  def test_pieces(self, small):
    assert small.pieces[:5] == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert small.vocab_size == len(small.pieces)

  def test_a_vocabulary_without_mask_is_refused(self, tmp_path):
    tokenizer = Tokenizer(train(tmp_path / "no_mask.model", control_symbols="[CLS],[SEP]"))
    assert tokenizer.encode("the dog")
    with pytest.raises(UserError, match=r"no piece \[MASK\].*albert-jax vocab"):
      _ = tokenizer.cls_id

  def test_missing_file(self, tmp_path):
    with pytest.raises(UserError, match=r"no vocabulary at .*nowhere\.model.*albert-jax vocab"):
      Tokenizer(tmp_path / "nowhere.model")
    with pytest.raises(UserError, match="holds no vocabulary"):
      Tokenizer(tmp_path)

  @pytest.mark.parametrize("content", [b"", b"this is no model", b"\x00" * 100])
  def test_not_a_model(self, tmp_path, content):
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a SentencePiece model"):
      Tokenizer(path).encode("text")

  def test_a_folder_is_searched(self, small, tmp_path):
    shutil.copy(small.path, tmp_path / "spiece.model")
    assert Tokenizer(tmp_path).pieces == small.pieces

  def test_pickles_as_a_few_strings(self, small):
    small.encode("loaded")
    data = pickle.dumps(small)
    assert len(data) < 1000
    assert pickle.loads(data).encode("the dog") == small.encode("the dog")
    cased = Tokenizer(small.path, lower=False, keep_accents=True, hf_quotes=True, digit_comma=False)
    assert repr(pickle.loads(pickle.dumps(cased))) == repr(cased)


class TestEncode:
  def test_the_small_vocabulary_has_the_hard_case(self, small):
    ends = [piece for piece in small.pieces if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()]
    assert any(piece.startswith("▁") for piece in ends)
    assert any(not piece.startswith("▁") for piece in ends)

  @given(any_text)
  @example("in 2010, there were x12, or 3,")
  def test_equals_the_original(self, small, text):
    assert small.encode(text) == original_encode(small._model, original_preprocess_text(text, lower=True))

  @given(st.lists(any_text))
  def test_batch_equals_one_by_one(self, small, texts):
    assert small.encode_batch(texts) == [small.encode(text) for text in texts]

  def test_digit_comma_can_be_left_to_sentencepiece(self, small):
    plain = Tokenizer(small.path, digit_comma=False)
    text = "in 2010, there"
    assert plain.encode(text) == small._model.encode(text)
    assert plain.encode(text) != small.encode(text)

  def test_specials_only_where_asked(self, small):
    text = "the [MASK] dog[SEP]"
    assert not {2, 3, 4} & set(small.encode(text))
    expected = [*small.encode("the"), small.mask_id, *small.encode("dog"), small.sep_id]
    assert small.encode(text, specials=True) == expected
    assert small.encode_with_offsets(text, specials=True)[0] == expected
    assert small.encode("[mask] <pad>", specials=True) == small.encode("[mask] <pad>")
    assert small.encode("", specials=True) == []

  def test_a_text_cannot_forge_a_symbol(self, small):
    """Where none of its characters is known, a whole `[CLS]` is one unknown piece, spelled like the symbol."""
    cased = Tokenizer(small.path, lower=False)
    assert cased._model.encode("[CLS]", out_type=str)[-1] == "[CLS]"
    assert cased.encode("[CLS]") == cased.encode_with_offsets("[CLS]")[0] == [cased.pieces.index("▁"), cased.unk_id]

  def test_decode(self, small):
    assert small.decode(small.encode("The quick  brown fox")) == "the quick brown fox"
    assert small.decode([2, *small.encode("the dog"), 3, 0, 0]) == "the dog"
    assert small.decode(np.array(small.encode("the dog"), np.int32)) == "the dog"
    with pytest.raises(UserError, match="id 100000 is outside the vocabulary"):
      small.decode([100000])


class TestOffsets:
  @settings(max_examples=300)
  @given(any_text, st.booleans(), st.booleans(), st.booleans(), st.booleans())
  def test_any_text(self, small, text, lower, keep_accents, hf_quotes, specials):
    tokenizer = Tokenizer(small.path, lower, keep_accents, hf_quotes)
    tokenizer._model = small._model
    ids, spans = tokenizer.encode_with_offsets(text, specials=specials)
    assert ids == tokenizer.encode(text, specials=specials)
    assert len(ids) == len(spans)
    for (start, end), (next_start, next_end) in itertools.pairwise(spans):
      assert start <= next_start and end <= next_end
    covered = np.zeros(len(text), bool)
    for start, end in spans:
      assert 0 <= start <= end <= len(text)
      if start < end:
        assert not text[start].isspace() and not text[end - 1].isspace()
      covered[start:end] = True
    # What is not covered leaves no trace in the ids: without it the pieces are the same.
    for i in np.flatnonzero(~covered):
      kept = tokenizer._model.normalize(tokenizer.normalize(text[i]))
      assert kept == "", (text[i], kept)

  @given(any_text)
  def test_a_piece_is_made_of_its_substring(self, small, text):
    """Where no character expands into several pieces, the substring alone gives the piece's text."""
    ids, spans = small.encode_with_offsets(text)
    for i, (start, end) in zip(ids, spans, strict=True):
      if i == small.unk_id or start == end or spans.count((start, end)) > 1:
        continue
      inside = small._model.normalize(small.normalize(text[start:end])).lstrip("▁")
      assert small.pieces[i].lstrip("▁") in inside.replace("σ", "ς") + inside

  @pytest.mark.realdata
  @pytest.mark.parametrize(
    ("text", "expected"),
    [
      ("  Hello   World", ["Hello", "World"]),
      ("fals\u00e9.", ["fals\u00e9", "."]),
      ("false\u0301.", ["false\u0301", "."]),
      ("In 2010, Paris", ["In", "2010", ",", "Paris"]),
      ("\u0130stanbul (x)", ["\u0130stanbul", "", "(", "x", ")"]),
      ("\ufb01ne", ["\ufb01ne"]),
      ("a\u200bb", ["a", "b"]),
    ],
  )
  def test_examples(self, genuine, text, expected):
    _, spans = genuine.encode_with_offsets(text)
    assert [text[start:end] for start, end in spans] == expected

  def test_one_character_that_is_several_pieces(self, small):
    text = "a ½"
    ids, spans = small.encode_with_offsets(text)
    assert ids == small.encode("a 1⁄2")
    assert {span for span in spans if span[0] != span[1]} == {(0, 1), (2, 3)}


@pytest.mark.realdata
class TestGenuine:
  def test_special_ids(self, genuine):
    assert (genuine.pad_id, genuine.unk_id, genuine.cls_id, genuine.sep_id, genuine.mask_id) == (0, 1, 2, 3, 4)
    assert genuine.vocab_size == 30000
    assert len(genuine.ordinary_ids) == 29995

  def test_golden_ids(self, genuine):
    assert genuine.encode("this is a test") == [48, 25, 21, 1289]
    kept = Tokenizer(genuine.path, keep_accents=True)
    expected = [31, 23, 386, 19, 561, 3050, 15, 17, 48, 25, 8256, 18, 1, 9]
    assert kept.encode("i was born in 92000, and this is falsé.") == expected
    assert kept.encode("I was born in 92000, and this is falsé.") == expected
    assert genuine.encode("I was born in 92000, and this is falsé.") == [*expected[:10], 4997, 9]

  def test_the_slip_of_the_original_concerns_no_piece(self, genuine):
    assert all(genuine.pieces[i].startswith("▁") for i in genuine._resplit)

  def test_equals_the_original_on_real_text(self, genuine, real_data):
    lines = (real_data / "pretrain/wiki_en/wiki_en_00.txt").read_text("utf-8").splitlines()[:300]
    expected = [original_encode(genuine._model, original_preprocess_text(line, lower=True)) for line in lines]
    assert genuine.encode_batch(lines) == expected

  def test_answers_of_squad_are_found_by_their_characters(self, genuine, real_data):
    articles = json.loads((real_data / "squad_v2/dev.json").read_text("utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]][:60]
    for paragraph in paragraphs:
      context = paragraph["context"]
      _, spans = genuine.encode_with_offsets(context)
      for answer in [a for question in paragraph["qas"] for a in question["answers"]]:
        start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
        inside = [span for span in spans if span[1] > start and span[0] < end]
        assert inside[0][0] <= start and inside[-1][1] >= end


def original_wordpiece(vocabulary, text):
  """tokenization.py, `BasicTokenizer` (lower-casing) and `WordpieceTokenizer`; the ids of the pieces."""

  def is_chinese(c):
    ranges = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F)]
    return any(a <= ord(c) <= b for a, b in [*ranges, (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)])

  def is_punctuation(c):
    return (c.isascii() and c.isprintable() and not c.isalnum() and c != " ") or unicodedata.category(c)[0] == "P"

  cleaned = ""
  for c in text:
    category = unicodedata.category(c)
    if c in "\t\n\r " or category == "Zs":
      cleaned += " "
    elif c not in "\0\ufffd" and category not in ("Cc", "Cf"):
      cleaned += f" {c} " if is_chinese(c) else c
  words = []
  for word in cleaned.split():
    word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
    words += "".join(f" {c} " if is_punctuation(c) else c for c in word).split()
  ids = []
  for word in words:
    start, pieces = 0, []
    while start < len(word) <= 200:
      ends = [end for end in range(len(word), start, -1) if "##" * (start > 0) + word[start:end] in vocabulary]
      if not ends:
        break
      pieces.append(vocabulary["##" * (start > 0) + word[start : ends[0]]])
      start = ends[0]
    ids += pieces if start == len(word) else [vocabulary["[UNK]"]]
  return ids


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
  pytest.importorskip("tokenizers", reason="WordPiece vocabularies need the library `tokenizers`")
  tmp_path = tmp_path_factory.mktemp("wordpiece")
  pieces = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "我", "爱", "中", "run", "##ning", ",", "cafe"]
  (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
  return Tokenizer(tmp_path / "vocab.txt")


class TestWordPiece:
  def test_encode(self, chinese):
    text = "我爱 Running, Café"
    ids, spans = chinese.encode_with_offsets(text)
    assert [chinese.pieces[i] for i in ids] == ["我", "爱", "run", "##ning", ",", "cafe"]
    assert [text[a:b] for a, b in spans] == ["我", "爱", "Run", "ning", ",", "Café"]
    assert chinese.encode(text) == ids == chinese.encode_batch([text])[0]
    assert chinese.encode("x" * 201) == [chinese.unk_id]
    assert chinese.encode("我[MASK]中", specials=True) == [6, chinese.mask_id, 8]
    assert chinese.mask_id not in chinese.encode("[MASK]")
    assert chinese.encode("我\ud800") == [6, chinese.unk_id] or chinese.encode("我\ud800") == [6]

  @settings(max_examples=300)
  @given(
    st.text(st.sampled_from("我爱中run igcafé\u0301İΣ,.!?$^`\t\n\r \xa0\u3000\0\ufffd\u200b、。「ⅷﬁ🙂\x7f\U00020000ก้"))
    | st.text(st.characters(max_codepoint=0x24F))  # the library's tables of what is punctuation are of an older Unicode
  )
  def test_equals_the_original(self, chinese, text):
    vocabulary = {piece: i for i, piece in enumerate(chinese.pieces)}
    assert chinese.encode(text) == original_wordpiece(vocabulary, text)
    ids, spans = chinese.encode_with_offsets(text)
    assert ids == chinese.encode(text)
    assert all(0 <= start < end <= len(text) for start, end in spans)

  def test_vocabulary(self, chinese):
    assert (chinese.pad_id, chinese.unk_id, chinese.cls_id, chinese.sep_id, chinese.mask_id) == (0, 2, 3, 4, 5)
    assert chinese.ordinary_ids.tolist() == [6, 7, 8, 9, 10, 11, 12]
    assert chinese.decode([3, 9, 10, 4]) == "running"
    assert pickle.loads(pickle.dumps(chinese)).encode("我") == [6]

  def test_errors(self, chinese, tmp_path):
    (tmp_path / "bad.txt").write_text("[UNK]\na\na\n")
    with pytest.raises(UserError, match="line 3"):
      Tokenizer(tmp_path / "bad.txt").encode("a")
    (tmp_path / "none.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"no line \[UNK\]"):
      Tokenizer(tmp_path / "none.txt").encode("a")


def test_a_long_run_of_marks_is_sorted_as_the_standard_library_does():
  marks = "\u0301\u0316\u0344\u0f73\uff9e\u05b0" * 300
  text = "a\u0301" + marks + "é" + marks[:80] + " end " * 200
  assert normalize(text, keep_accents=True, lower=False) == unicodedata.normalize("NFKD", " ".join(text.split()))


def test_time_grows_in_proportion_to_the_number_of_marks():
  def seconds(count):
    start = time.process_time()
    normalize("a" + "\u0301\u0316" * count)
    return time.process_time() - start

  seconds(1000)
  assert seconds(80_000) < 40 * max(seconds(10_000), 0.005)
