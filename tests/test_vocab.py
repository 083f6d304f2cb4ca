"""Vocabulary training."""

import random

import pytest

from albert_jax import files
from albert_jax.commands import vocab as vocab_command
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """A text of made-up words, some with accents, large enough for a few hundred pieces."""
  chosen = random.Random(0)
  syllables = [a + b for a in "bdfgklmnprst" for b in "aeiouéü"]
  words = ["".join(chosen.choices(syllables, k=chosen.randint(1, 4))) for _ in range(800)]
  lines = [" ".join(chosen.choices(words, k=12)).capitalize() + ". It cost £5 – (or €6)." for _ in range(400)]
  path = tmp_path_factory.mktemp("corpus") / "a.txt"
  path.write_text("\n".join(lines), "utf-8")
  return path


def test_the_rules_of_the_original(corpus, tmp_path, capsys):
  assert vocab_command.main([f"--input={corpus}", f"--out={tmp_path}", "--vocab_size=300"]) == 0
  tokenizer = Tokenizer(tmp_path / "spiece.model")
  assert tokenizer.vocab_size == 300
  first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "(", ")", '"', "-", ".", "\u2013", "£", "€"]
  assert tokenizer.pieces[:13] == first
  assert not any(c in piece for piece in tokenizer.pieces[13:] for c in "éüE")  # normalised before training
  assert '"pieces_per_word"' in capsys.readouterr().out
  with pytest.raises(UserError, match="--overwrite"):
    vocab_command.main([f"--input={corpus}", f"--out={tmp_path}", "--vocab_size=300"])


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
  args = [f"--input={corpus}", "--vocab_size=200"]
  vocab_command.main([*args, f"--out={tmp_path / 'here'}"])
  vocab_command.main([*args, "--out=memory://vocabulary"])
  there = files.read("memory://vocabulary/spiece.model")
  files.remove("memory://vocabulary")
  assert there == (tmp_path / "here" / "spiece.model").read_bytes()


@pytest.mark.parametrize("size", [20, 100_000])
def test_a_size_that_does_not_fit_is_explained(corpus, tmp_path, size):
  with pytest.raises(UserError, match=f"--vocab_size={size} does not suit"):
    vocab_command.main([f"--input={corpus}", f"--out={tmp_path}", f"--vocab_size={size}"])
  assert not list(tmp_path.iterdir())
