"""Words remembered: the ids are what the tokenizer gives."""

import types

import made_up
import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data.corpus import word_ids
from albert_jax.data.corpus.word_ids import WordIds
from albert_jax.data.tokenizer import Tokenizer

LINES = [line for document in made_up.documents(60, seed=3) for line in document]
ODD = [
  "a \u0301 b",
  "\u00a8 x y\u00a8 z",
  "\u2581 y\u2581 z \u2581",
  "\u0301",
  "",
  "☃☃ ☃ ☃b",
  "\ud800 a\udfffb",
  "ΟΔΟΣ ΟΔΟΣ, Σ",
  "ÀÉ İI K",
  "a" * 40 + " " + "a" * 40 + "b",
  "好" * 50,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary")))


def trained(path, **kwargs):
  """A tokenizer whose vocabulary was trained in another way than ours."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([line.lower() for line in LINES]),
    model_prefix=str(path),
    pad_id=0,
    unk_id=1,
    bos_id=-1,
    eos_id=-1,
    control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    minloglevel=2,
    **kwargs,
  )
  return Tokenizer(f"{path}.model")


def encode(words, sentences):
  ids, lengths = words.encode(sentences)
  return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def expected(tokenizer, sentences):
  return [[i for word in sentence.split(" ") for i in tokenizer.encode(word)] for sentence in sentences]


def test_it_equals_the_tokenizer(tokenizer):
  assert tokenizer.words_stand_alone
  words = WordIds(tokenizer, np.uint16)
  for _ in range(2):  # the second time, all is remembered
    for i in range(0, len(LINES), 50):
      assert encode(words, LINES[i : i + 50]) == tokenizer.encode_batch(LINES[i : i + 50])
    assert encode(words, ODD) == tokenizer.encode_batch(ODD)
  calls = []
  words.tokenizer = types.SimpleNamespace(lower=True, words_stand_alone=True, encode_batch=calls.append)
  assert encode(words, LINES[:50]) == tokenizer.encode_batch(LINES[:50])
  assert not calls


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_any_text(tokenizer, sentences):
  sentences = [" ".join(sentence.replace("▁", "").split()) for sentence in sentences]
  assert encode(WordIds(tokenizer, np.uint16), sentences) == expected(tokenizer, sentences)


@pytest.mark.parametrize(("bits", "kept"), [(3, 1 << 20), (20, 100)])
def test_forgetting_does_not_matter(tokenizer, monkeypatch, bits, kept):
  monkeypatch.setattr(word_ids, "_SLOTS_BITS", bits)
  monkeypatch.setattr(word_ids, "_KEPT_TOKENS", kept)
  words = WordIds(tokenizer, np.uint32)
  sentences = [line[i:] for line in LINES for i in (0, 1)]
  for i in range(0, len(sentences), 40):
    assert encode(words, sentences[i : i + 40]) == expected(tokenizer, sentences[i : i + 40])
    assert len(words.entries) == 1 << bits
  assert len(words.store) <= 1 << 16


def test_case_is_kept_where_the_tokenizer_keeps_it(tokenizer):
  cased = Tokenizer(tokenizer.path, lower=False, keep_accents=True)
  sentences = ["Ab ab AB", "\u00c9t\u00e9 e\u0301", *ODD]
  assert encode(WordIds(cased, np.uint16), sentences) == cased.encode_batch(sentences)


@pytest.mark.parametrize(
  "kwargs",
  [
    {"split_by_whitespace": False, "model_type": "unigram", "vocab_size": 1500},  # pieces reach over spaces
    {"add_dummy_prefix": False, "model_type": "unigram", "vocab_size": 300},  # the first word is like no other
    {"model_type": "word", "vocab_size": 200},  # unknown words that meet are one piece
  ],
)
def test_sentences_stay_whole_where_words_do_not_stand_alone(tmp_path, kwargs):
  tokenizer = trained(tmp_path / "other", **kwargs)
  assert not tokenizer.words_stand_alone
  sentences = [*LINES[:300], *ODD, "xyz qqq xyz qqq"]
  assert expected(tokenizer, sentences) != tokenizer.encode_batch(sentences)
  words = WordIds(tokenizer, np.uint16)
  for _ in range(2):
    assert encode(words, sentences) == tokenizer.encode_batch(sentences)


def test_other_kinds_of_vocabularies(tmp_path):
  bpe = trained(tmp_path / "bpe", model_type="bpe", vocab_size=300)
  assert bpe.words_stand_alone
  assert encode(WordIds(bpe, np.uint16), LINES + ODD) == bpe.encode_batch(LINES + ODD)
  pytest.importorskip("tokenizers")
  (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "##c", "好", "a"]))
  wordpiece = Tokenizer(tmp_path / "vocab.txt")
  sentences = ["abc ab 好好ab x", "\u2581 a", "a\u2581b", *ODD]
  assert encode(WordIds(wordpiece, np.uint16), sentences) == wordpiece.encode_batch(sentences)


@pytest.mark.realdata
@pytest.mark.parametrize("lower", [True, False])
def test_it_equals_the_genuine_tokenizer(real_data, lower):
  tokenizer = Tokenizer(real_data / "vocab/albert_en_30k/spiece.model", lower=lower, keep_accents=not lower)
  words = WordIds(tokenizer, np.uint16)
  for file, size in (("wiki_en/wiki_en_07.txt", 2_000_000), ("books_de/kafka_process.txt", 300_000),
                     ("wiki_zh_raw/wiki_02", 300_000)):  # fmt: skip
    text = (real_data / "pretrain" / file).read_text("utf-8")[:size]
    lines = [" ".join(line.split()) for line in text.split("\n")]
    found, wanted = encode(words, lines), tokenizer.encode_batch(lines)
    # Ties between ways to cut a word are settled by what stands before it: see WordIds.
    other = [(a, b) for a, b in zip(found, wanted, strict=True) if a != b]
    assert len(other) <= 2
    score = tokenizer._model.get_score
    for a, b in other:
      assert sum(map(score, a)) == pytest.approx(sum(map(score, b)), abs=1e-3)
      assert "".join(tokenizer.pieces[i] for i in a) == "".join(tokenizer.pieces[i] for i in b)
