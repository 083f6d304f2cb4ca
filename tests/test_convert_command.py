"""`albert-jax convert` as its users meet it."""

import dataclasses
import json
import re

import fsspec
import made_up
import numpy as np
import pytest
import safetensors.numpy
from small_models import SMALL, assert_same, random_params
from test_tokenizer import train

import albert_jax
from albert_jax import convert
from albert_jax.commands import common
from albert_jax.commands.convert import main
from albert_jax.convert import conversion, google_tf1, hf, tf_checkpoint
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

PARAMS = random_params(SMALL)


def run(*arguments):
  with common.show_messages():
    main([str(x) for x in arguments])


def test_there_and_back(tmp_path, capsys):
  google_tf1.save(tmp_path / "google", SMALL, PARAMS)
  run("--checkpoint", tmp_path / "google", "--out", tmp_path / "hf")
  run("--checkpoint", tmp_path / "hf", "--out", tmp_path / "back", "--to=google")
  for name in ("hf", "back"):
    cfg, params = albert_jax.load(tmp_path / name)
    assert cfg == SMALL
    assert_same(params, PARAMS)
  theirs, ours = tf_checkpoint.read(tmp_path / "google"), tf_checkpoint.read(tmp_path / "back")
  assert theirs.keys() == ours.keys()
  captured = capsys.readouterr()
  count = f"{albert_jax.param_count(PARAMS):,}"
  assert captured.out == ""
  assert f"read {count} parameters (4 layers of 12, 1 group, share=all; with mlm, pooler, sop)" in captured.err
  with pytest.raises(UserError, match="exists already"):
    run("--checkpoint", tmp_path / "hf", "--out", tmp_path / "back")
  run("--checkpoint", tmp_path / "hf", "--out", tmp_path / "back", "--overwrite")
  assert (tmp_path / "back/config.json").exists()


def test_unshared_layers_become_shared_ones_with_differences(tmp_path, capsys):
  unshared = dataclasses.replace(SMALL, share="none")
  albert_jax.save(tmp_path / "unshared", unshared, random_params(unshared))
  run("--checkpoint", tmp_path / "unshared", "--out", tmp_path / "shared", "--layer_rank=2")
  cfg, params = albert_jax.load(tmp_path / "shared")
  assert cfg == dataclasses.replace(unshared, share="matrices", layer_rank=2)
  assert params["ffn"]["up"]["a"].shape == (4, 12, 2)
  assert re.search(r"differences of rank 2 have \d+\.\d% of the squared norm", capsys.readouterr().err)
  with pytest.raises(UserError, match="that share nothing"):
    run("--checkpoint", tmp_path / "shared", "--out", tmp_path / "again", "--layer_rank=2")
  with pytest.raises(UserError, match="in a second conversion"):
    run("--checkpoint", tmp_path / "unshared", "--out", tmp_path / "x", "--layer_rank=2", "--num_hidden_layers=8")
  with pytest.raises(UserError, match="layer_rank=0 must be from 1 to 12"):
    run("--checkpoint", tmp_path / "unshared", "--out", tmp_path / "x", "--layer_rank=0")


def test_from_a_store_and_not_into_one(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  albert_jax.save(tmp_path / "hf", SMALL, PARAMS)
  store = fsspec.filesystem("memory")
  store.put(str(tmp_path / "hf"), "/weights/run/export", recursive=True)
  store.pipe("/weights/run/checkpoints/2/state", b"what nobody needs to fetch")
  try:
    run("--checkpoint=memory://weights/run", "--out", tmp_path / "google", "--to=google")
    assert_same(albert_jax.load(tmp_path / "google")[1], PARAMS)
    assert_same(albert_jax.load("memory://weights/run/export")[1], PARAMS)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name == "state"]
    with pytest.raises(UserError, match=r"memory://weights/out is not on this machine.*gcloud storage cp"):
      run("--checkpoint=memory://weights/run", "--out=memory://weights/out")
    with pytest.raises(UserError, match="nothing at memory://weights/other"):
      run("--checkpoint=memory://weights/other", "--out", tmp_path / "other")
  finally:
    store.rm("/weights", recursive=True)


def test_what_a_config_says_beside_is_kept(tmp_path):
  params = random_params(SMALL, ("pooler",), {"classifier": 1})
  extra = {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
  hf.save(tmp_path / "a", SMALL, params, architecture="AlbertForMultipleChoice", extra=extra)
  run("--checkpoint", tmp_path / "a", "--out", tmp_path / "b")
  before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
  assert before == after


def test_vocabulary(tmp_path, capsys):
  old, new = train(tmp_path / "old.model"), train(tmp_path / "new.model", user_defined_symbols="the,zebra")
  cfg = dataclasses.replace(SMALL, vocab_size=Tokenizer(old).vocab_size)
  google_tf1.save(tmp_path / "google", cfg, random_params(cfg))
  run("--checkpoint", tmp_path / "google", "--out", tmp_path / "without")
  assert "without a vocabulary" in capsys.readouterr().err
  run("--checkpoint", tmp_path / "google", "--out", tmp_path / "with", "--spm", old, "--cased")
  assert (tmp_path / "with/spiece.model").read_bytes() == old.read_bytes()
  assert json.loads((tmp_path / "with/tokenizer_config.json").read_text())["do_lower_case"] is False
  run("--checkpoint", tmp_path / "with", "--out", tmp_path / "google2", "--to=google")
  assert (tmp_path / "google2/30k-clean.model").read_bytes() == old.read_bytes()

  run("--checkpoint", tmp_path / "with", "--out", tmp_path / "other", "--spm", new, "--keep_pieces")
  assert albert_jax.load(tmp_path / "other")[0].vocab_size == Tokenizer(new).vocab_size
  assert "kept the rows of" in capsys.readouterr().err
  with pytest.raises(UserError, match="needs the new vocabulary"):
    run("--checkpoint", tmp_path / "with", "--out", tmp_path / "x", "--keep_pieces")
  with pytest.raises(UserError, match="needs the vocabulary of the weights"):
    run("--checkpoint", tmp_path / "google", "--out", tmp_path / "x", "--keep_pieces", "--spm", new)


def test_the_vocabulary_beside_the_weights_may_be_cased(tmp_path):
  checkpoint = made_up.checkpoint(tmp_path)
  (checkpoint / "tokenizer.json").unlink()
  (checkpoint / "tokenizer_config.json").unlink()
  run("--checkpoint", checkpoint, "--out", tmp_path / "b", "--cased", "--keep_accents")
  tokenizer = convert.load_tokenizer(tmp_path / "b")
  assert (tokenizer.lower, tokenizer.keep_accents) == (False, True)
  hf.save(tmp_path / "bare", SMALL, PARAMS)
  with pytest.raises(UserError, match="--cased and --keep_accents are for a vocabulary of text"):
    run("--checkpoint", tmp_path / "bare", "--out", tmp_path / "c", "--cased")
  with pytest.raises(UserError, match="--cased and --keep_accents are for a vocabulary of text"):
    run("--checkpoint", checkpoint, "--out", tmp_path / "c", "--symbols=kokoro", "--cased")


def test_a_start_for_another_model(tmp_path):
  hf.save(tmp_path / "a", SMALL, PARAMS)
  flags = ["--max_position_embeddings=20", "--num_hidden_layers=8", "--num_hidden_groups=2"]
  run("--checkpoint", tmp_path / "a", "--out", tmp_path / "b", *flags)
  cfg, _ = albert_jax.load(tmp_path / "b")
  assert cfg == dataclasses.replace(SMALL, max_position_embeddings=20, num_hidden_layers=8, num_hidden_groups=2)


def test_allowed_differences(tmp_path, capsys):
  hf.save(tmp_path / "a", SMALL, PARAMS)
  file = tmp_path / "a/model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  del tensors["albert.pooler.bias"]
  tensors["mystery"] = np.zeros(3, np.float32)
  safetensors.numpy.save_file(tensors, file)
  with pytest.raises(UserError, match=r"missing: albert\.pooler\.bias"):
    run("--checkpoint", tmp_path / "a", "--out", tmp_path / "b")
  assert not (tmp_path / "b").exists()
  run("--checkpoint", tmp_path / "a", "--out", tmp_path / "b", "--allow_missing=pooler/bias", "--allow_unused=mystery")
  assert "not there, so fresh: pooler/bias" in capsys.readouterr().err
  assert not albert_jax.load(tmp_path / "b")[1]["pooler"]["bias"].any()

  run("--inspect", tmp_path / "a")
  output = capsys.readouterr().out
  assert "missing: albert.pooler.bias\nnot used: mystery" in output
  assert "(NOT USED)" in output


class TestInspect:
  def test_hugging_face(self, tmp_path, capsys, caplog):
    cfg = dataclasses.replace(SMALL, num_hidden_groups=2, embedding_size=12)
    params = random_params(cfg, ("mlm",))
    hf.save(tmp_path / "a", cfg, params)
    file = tmp_path / "a/model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["predictions.decoder.weight"] = tensors["albert.embeddings.word_embeddings.weight"].copy()
    tensors["predictions.decoder.bias"] = tensors.pop("predictions.bias")
    safetensors.numpy.save_file(tensors, file)
    run("--inspect", tmp_path / "a")
    output = capsys.readouterr().out
    lines = {line.split()[0]: line for line in output.splitlines() if line}
    value = params["attention"]["query"]["bias"][1]
    name = "albert.encoder.albert_layer_groups.1.albert_layers.0.attention.query.bias"
    assert lines[name].split() == [
      name, "attention/query/bias[1]", "12", "float32", f"{value.mean(dtype=np.float64):.4g}",
      f"{value.std(dtype=np.float64):.4g}",
    ]  # fmt: skip
    assert "tied to albert.embeddings" in lines["predictions.decoder.weight"]
    assert "mlm/bias" in lines["predictions.decoder.bias"]
    assert "the identity" in lines["albert.encoder.embedding_hidden_mapping_in.weight"]
    assert output.endswith("missing: nothing\nnot used: nothing\nparts that are not there: pooler, sop\n")

  def test_another_shape(self, tmp_path, capsys, caplog):
    google_tf1.save(tmp_path / "a", SMALL, PARAMS)
    fields = json.loads((tmp_path / "a/albert_config.json").read_text())
    (tmp_path / "a/albert_config.json").write_text(json.dumps({**fields, "vocab_size": 41}))
    run("--inspect", tmp_path / "a")
    output = capsys.readouterr().out
    assert "embeddings/word/embedding EXPECTED [41, 6]" in output
    assert "(optimizer)" in output


def test_what_is_asked_must_make_sense(tmp_path, capsys):
  with pytest.raises(UserError, match="--checkpoint=PATH --out=DIR"):
    run()
  with pytest.raises(UserError, match="--to=google has none"):
    run("--checkpoint=a", "--out=b", "--to=google", "--architecture=AlbertModel")
  with pytest.raises(UserError, match=r"'\[' is no regular expression"):
    run("--checkpoint=a", "--out=b", "--allow_missing=[")
  with pytest.raises(UserError, match="to='keras' is unknown; use one of hf, google"):
    conversion.convert("a", "b", to="keras")
  with pytest.raises(SystemExit) as stop:
    run("--to=keras")
  assert stop.value.code == 2
  assert "albert-jax convert" in capsys.readouterr().err
