"""Vocabulary training."""

import gzip
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax import files
from albert_jax.__main__ import main
from albert_jax.commands import vocab as vocab_command
from albert_jax.data.corpus import vocab
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """Returns a text of made-up words, some with accents, large enough for a few hundred pieces."""
  chosen = random.Random(0)
  syllables = [a + b for a in "bdfgklmnprst" for b in "aeiouéü"]
  words = ["".join(chosen.choices(syllables, k=chosen.randint(1, 4))) for _ in range(800)]
  lines = [" ".join(chosen.choices(words, k=12)).capitalize() + ". It cost £5 – (or €6)." for _ in range(400)]
  path = tmp_path_factory.mktemp("corpus") / "a.txt"
  path.write_text("\n".join(lines), "utf-8")
  return path


def test_the_rules_of_the_original(corpus, tmp_path, capsys):
  assert vocab_command.main([f"--input={corpus}", f"--out={tmp_path}", "--vocab_size=300", "--no-keep_accents"]) == 0
  tokenizer = Tokenizer(tmp_path / "spiece.model")
  assert tokenizer.vocab_size == 300
  first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "(", ")", '"', "-", ".", "\u2013", "£", "€"]
  assert tokenizer.pieces[:13] == first
  assert not any(c in piece for piece in tokenizer.pieces[13:] for c in "éüE")  # normalised before training
  out = capsys.readouterr().out
  assert '"pieces_per_word"' in out
  assert out.endswith(f"next: albert-jax prepare --input={corpus} --spm={tmp_path}/spiece.model --out=DIR\n")
  with pytest.raises(UserError, match="--overwrite"):
    vocab_command.main([f"--input={corpus}", f"--out={tmp_path}", "--vocab_size=300", "--no-keep_accents"])


def test_the_same_corpus_gives_the_same_vocabulary(corpus, tmp_path):
  models = []
  for name in ("a", "b"):
    vocab_command.main(
      [f"--input={corpus}", f"--out={tmp_path / name}", "--vocab_size=200", "--keep_accents", "--no-lower"]
    )
    models.append((tmp_path / name / "spiece.model").read_bytes())
  assert models[0] == models[1]
  assert any("\u0301" in piece for piece in Tokenizer(tmp_path / "a" / "spiece.model").pieces)


def test_into_a_store(corpus, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  args = [f"--input={corpus}", "--vocab_size=200", "--no-keep_accents"]
  vocab_command.main([*args, f"--out={tmp_path / 'here'}"])
  vocab_command.main([*args, "--out=memory://vocabulary"])
  content = files.read("memory://vocabulary/spiece.model")
  files.remove("memory://vocabulary")
  assert content == (tmp_path / "here" / "spiece.model").read_bytes()


@pytest.mark.parametrize("size", [20, 100_000])
def test_a_size_that_does_not_fit_is_explained(corpus, tmp_path, size):
  with pytest.raises(UserError, match=f"--vocab_size={size} does not suit"):
    vocab_command.main([f"--input={corpus}", f"--out={tmp_path}", f"--vocab_size={size}", "--no-keep_accents"])
  assert not list(tmp_path.iterdir())


def write(path, words, sentences=400, stop=".", seed=0):
  chosen = random.Random(seed)
  words = ["".join(chosen.choices(words.split(), k=chosen.randint(1, 3))) for _ in range(500)]
  lines = [" ".join(chosen.choices(words, k=8)) + stop for _ in range(sentences)]
  path.write_text("\n\n".join("\n".join(lines[i : i + 5]) for i in range(0, sentences, 5)) + "\n", "utf-8")
  return path


GERMAN = "für über schön wir gehen heute nach Hause die Bücher und Häuser sind größer als früher"
OTHER_SCRIPTS = {
  "hindi": "नमस्ते हिन्दी में लिखा हुआ यह एक वाक्य है और दूसरा भी क्योंकि विद्यार्थी पुस्तकें पढ़ते हैं",
  "thai": "สวัสดี ครับ ผม ชื่อ น้ำ อยู่ ที่ นี่ เมื่อ วาน ไป ตลาด ซื้อ ผัก ผลไม้ แล้ว ก็ กลับ บ้าน",
  "hebrew": "שָׁלוֹם עוֹלָם הַיּוֹם יוֹם טוֹב בָּרוּךְ הַבָּא תּוֹדָה רַבָּה לְךָ",
  "arabic": "أنا إلى القرآن السَّلام عَلَيكم مرحبا كيف حالك اليوم أهلا وسهلا",
  "russian": "мой твой ёлка йогурт район чай ещё её трамвай хороший новый дом",
  "japanese": "これが 日本語 です ありがとう ございます パン ビール",
}


def restored(tokenizer, text):
  """What is left of a text after encoding and decoding."""
  return unicodedata.normalize("NFKC", tokenizer.decode(tokenizer.encode(text)))


@pytest.mark.parametrize("language", OTHER_SCRIPTS)
def test_marks_of_other_scripts_are_kept_and_the_rule_is_recorded(tmp_path, language):
  words = OTHER_SCRIPTS[language]
  report = vocab.train_vocabulary(str(write(tmp_path / "a.txt", words)), tmp_path / "v", vocab_size=90)
  assert report["keep_accents"] and report["marks"]["other_share"] > 0.05 and report["marks"]["examples"]
  tokenizer = Tokenizer(tmp_path / "v")
  assert tokenizer.keep_accents
  assert restored(tokenizer, words) == unicodedata.normalize("NFKC", words)
  assert tokenizer.decode(tokenizer.encode(words)) == unicodedata.normalize("NFKC", words)
  assert Tokenizer(tmp_path / "v" / "spiece.model").keep_accents
  assert not Tokenizer(tmp_path / "v", keep_accents=False).keep_accents


@pytest.mark.parametrize(
  "words",
  [GERMAN, "tiếng Việt có dấu người một nhà này được không", "cafe\u0301 and the of but from where are you going to"],
)
def test_latin_text_that_would_lose_marks_waits_for_a_decision(tmp_path, capsys, words):
  args = ["vocab", f"--input={write(tmp_path / 'a.txt', words)}", f"--out={tmp_path / 'v'}", "--vocab_size=60"]
  assert main(args) == 2
  message = capsys.readouterr().err.splitlines()[-1]
  assert "% of the words would lose" in message and " -> " in message and "--no-keep_accents" in message
  assert not (tmp_path / "v").exists()
  for flag, is_kept in (("--keep_accents", True), ("--no-keep_accents", False)):
    assert main([*args, flag, "--overwrite"]) == 0
    tokenizer = Tokenizer(tmp_path / "v")
    assert tokenizer.keep_accents == is_kept
    assert (restored(tokenizer, words) == unicodedata.normalize("NFKC", words).lower()) == is_kept


def test_english_with_a_few_foreign_words_is_as_the_original(tmp_path):
  words = "the of and to in a is that it was for on as with his he be at by this had not are but from " * 20 + "José"
  report = vocab.train_vocabulary(str(write(tmp_path / "a.txt", words)), tmp_path / "v", vocab_size=60)
  assert not report["keep_accents"] and 0 < report["marks"]["latin_share"] < 0.01


def test_long_sentences_are_cut_and_learnt_from(tmp_path):
  chosen = random.Random(0)
  greek = [" ".join("".join(chosen.choices("αβγδεζηθικλ", k=5)) for _ in range(900)) for _ in range(20)]
  thai = ["".join(chosen.choices("กขคงจฉชซ", k=3000)) for _ in range(20)]
  (tmp_path / "a.txt").write_text("\n\n".join([*greek, *thai, "short english ▅ words"]))
  report = vocab.train_vocabulary(str(tmp_path / "a.txt"), tmp_path / "v", vocab_size=120)
  assert report["input"]["sentences"] == 41 and report["input"]["long sentences cut"] == 40
  assert any("▅" in name for name in report["input"])
  assert report["unknown_rate"] < 0.001
  pieces = "".join(Tokenizer(tmp_path / "v").pieces)
  assert set("αβγδεζηθικλกขคงจฉชซ") <= set(pieces)


@given(st.text(max_size=200), st.integers(8, 64))
def test_cutting_loses_no_visible_character(text, limit):
  text = " ".join(text.split())
  parts = vocab.cut(text, limit)
  assert all(len(part.encode("utf-8", "surrogatepass")) <= limit for part in parts)
  assert "".join(parts).replace(" ", "") == text.replace(" ", "")


def test_a_corpus_without_text_says_what_was_read(tmp_path):
  (tmp_path / "a.json").write_text('{\n "text": "one"\n}\n')
  with pytest.raises(UserError, match=r"a\.json has no text \(bytes: 19, lines that are not JSON: 3\); expected text"):
    vocab.train_vocabulary(str(tmp_path / "a.json"), tmp_path / "v", vocab_size=50)


def test_a_damaged_file_in_the_middle_is_named(tmp_path):
  data = gzip.compress(("word " * 20 + "\n").encode() * 20_000 + random.Random(0).randbytes(1 << 18).hex().encode())
  (tmp_path / "a.txt.gz").write_bytes(data[:-1000])
  with pytest.raises(UserError, match="is cut short"):
    vocab.train_vocabulary(str(tmp_path / "a.txt.gz"), tmp_path / "v", vocab_size=60)
  assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
  ("name", "value"),
  [("vocab_size", 0), ("vocab_size", 10**14), ("character_coverage", float("nan")), ("character_coverage", 2.0),
   ("input_sentence_size", -1), ("input_sentence_size", 10**20)],
)  # fmt: skip
def test_a_value_that_no_vocabulary_can_have_is_refused_before_anything_is_read(tmp_path, name, value):
  with pytest.raises(UserError, match=rf"--{name}={value} is out of range; expected"):
    vocab.train_vocabulary(str(tmp_path / "nothing.txt"), tmp_path / "out", **{name: value})
  assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error_before_anything_is_read(tmp_path):
  (tmp_path / "file").write_text("no folder")
  with pytest.raises(OSError, match="file/out"):
    vocab.train_vocabulary(str(tmp_path / "nothing.txt"), tmp_path / "file/out")
