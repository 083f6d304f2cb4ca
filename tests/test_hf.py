"""Hugging Face directories: what is written is read back, and what does not fit is refused in words."""

import dataclasses
import errno
import json

import jax
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import HEADS, SMALL, assert_same, configs, random_params

import albert_jax
from albert_jax import files
from albert_jax.convert import google_tf1, hf, mapping
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model.config import SHARE


def read_config(path):
  fields = hf.read_fields(path)
  return hf.from_fields(fields, path), hf.extra_fields(fields)


@settings(max_examples=25, deadline=None)
@given(configs(), st.sets(st.sampled_from(["pooler", "mlm"])), st.sets(st.sampled_from(list(HEADS))))
def test_what_is_written_is_read_back(tmp_path_factory, cfg, parts, heads):
  if "pooler" in parts and "mlm" in parts:
    parts = {*parts, "sop"}
  params = random_params(cfg, tuple(parts), {head: HEADS[head] for head in heads})
  path = tmp_path_factory.mktemp("hf") / "model"
  hf.save(path, cfg, params)
  read_cfg, read = hf.load(path)
  assert read_cfg == cfg
  assert_same(read, params)


def test_a_full_disk_is_an_error_of_the_disk(tmp_path, monkeypatch):
  def full(*_, **__):
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

  monkeypatch.setattr(safetensors.numpy, "save_file", full)
  with pytest.raises(OSError, match="No space left") as raised:
    hf.save(tmp_path / "model", SMALL, random_params(SMALL, ("pooler",), {}))
  assert raised.value.errno == errno.ENOSPC and raised.value.filename.endswith("model.safetensors")
  assert list(tmp_path.iterdir()) == []


def test_another_kind_of_positions_is_refused():
  with pytest.raises(UserError, match="position_embedding_type='relative_key'"):
    hf.from_fields({"position_embedding_type": "relative_key"}, "model")


@pytest.mark.parametrize(("share", "ends"), [*((share, 0) for share in SHARE), ("all", 1)])
def test_sharing_becomes_groups_that_compute_the_same(tmp_path, share, ends):
  layers = SMALL.num_hidden_layers + 2 * ends
  cfg = dataclasses.replace(
    SMALL, share=share, num_hidden_layers=layers, num_hidden_groups=2 - ends, unshared_ends=ends, inner_group_num=2
  )
  params = random_params(cfg)
  hf.save(tmp_path / "model", cfg, params)
  fields = json.loads((tmp_path / "model/config.json").read_text())
  assert fields["num_hidden_groups"] == (2 if share == "all" and not ends else layers)
  assert hf.load(tmp_path / "model")[0] == cfg
  del fields["albert_jax"]
  (tmp_path / "model/config.json").write_text(json.dumps(fields))
  plain_cfg, plain = hf.load(tmp_path / "model")
  assert (plain_cfg.share, plain_cfg.num_hidden_groups) == ("all", fields["num_hidden_groups"])
  batch = {"input_ids": np.arange(20, dtype=np.int32).reshape(2, 10)}
  ours = albert_jax.apply(cfg, jax.tree.map(jax.numpy.asarray, params), batch)
  theirs = albert_jax.apply(plain_cfg, plain, batch)
  for name in ours:
    np.testing.assert_allclose(theirs[name], ours[name], atol=1e-5)


def test_low_rank_differences_are_kept_and_not_opened_by_transformers(tmp_path):
  cfg = dataclasses.replace(SMALL, layer_rank=2, share="matrices")
  params = random_params(cfg)
  hf.save(tmp_path / "model", cfg, params)
  assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == "albert_jax"
  read_cfg, read = hf.load(tmp_path / "model")
  assert read_cfg == cfg
  assert_same(read, params)


def test_the_table_has_a_name_for_everything():
  """One name per tensor, and as many numbers there as here."""
  for share in ("all", "none"):
    cfg = dataclasses.replace(SMALL, share=share)
    params = random_params(cfg, heads={"classifier": 2, "span": 2, "squad_v2": 0})
    table = hf._table(cfg, *mapping.shapes_of(params))
    assert len({entry.name for entry in table}) == len(table)
    assert sum(np.prod(entry.file_shape) for entry in table) == albert_jax.param_count(params)


def test_layers_where_transformers_counts_groups_differently():
  cfg = dataclasses.replace(SMALL, num_hidden_layers=18, num_hidden_groups=14)
  assert mapping.stored_layers(cfg) != mapping.stored_layers(cfg, hf.group) == list(range(18))


class TestConfig:
  def write(self, path, **fields):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "albert", **fields}))
    return path

  def test_defaults_are_those_of_transformers(self, tmp_path):
    cfg, extra = read_config(self.write(tmp_path / "x"))
    assert cfg == albert_jax.VARIANTS["xxlarge"]
    assert extra == {}

  def test_other_keys_are_kept(self, tmp_path):
    folder = self.write(tmp_path / "x", id2label={"0": "no", "1": "yes"}, torch_dtype="float16", gap_size=0)
    _, extra = read_config(folder)
    assert extra == {"id2label": {"0": "no", "1": "yes"}, "gap_size": 0}
    hf.save(tmp_path / "y", SMALL, random_params(SMALL), extra=extra)
    assert read_config(tmp_path / "y") == (SMALL, {**extra, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3})

  def test_other_names_of_activations(self, tmp_path):
    assert read_config(self.write(tmp_path / "x", hidden_act="gelu_pytorch_tanh"))[0].hidden_act == "gelu_new"
    with pytest.raises(UserError, match="hidden_act='swish' is unknown"):
      read_config(self.write(tmp_path / "x", hidden_act="swish"))

  def test_another_model(self, tmp_path):
    with pytest.raises(UserError, match="does not describe an ALBERT"):
      read_config(self.write(tmp_path / "x", model_type="bert"))
    with pytest.raises(UserError, match=r"no .*config\.json: expected a Hugging Face directory"):
      read_config(tmp_path / "nowhere")
    (tmp_path / "x/config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
      read_config(tmp_path / "x")


class TestStrict:
  @pytest.fixture
  def saved(self, tmp_path):
    hf.save(tmp_path / "model", SMALL, random_params(SMALL))
    return tmp_path / "model"

  def change(self, saved, change):
    tensors = safetensors.numpy.load_file(saved / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, saved / "model.safetensors")

  def test_everything_wrong_is_listed(self, saved):
    def change(tensors):
      del tensors["albert.pooler.weight"]
      tensors["albert.strange"] = np.zeros(3, np.float32)
      tensors["predictions.bias"] = np.zeros(41, np.float32)
      tensors["albert.pooler.bias"][0] = np.nan

    self.change(saved, change)
    with pytest.raises(UserError) as error:
      hf.load(saved)
    for line in (
      "missing: albert.pooler.weight [12, 12] (here: pooler/kernel)",
      "not known: albert.strange [3]",
      "other shape: predictions.bias is [41], its config says [40]",
      "not finite: albert.pooler.bias",
    ):
      assert line in str(error.value)

  def test_tied_copies_and_buffers_are_dropped(self, saved):
    def change(tensors):
      tensors["predictions.decoder.weight"] = tensors["albert.embeddings.word_embeddings.weight"]
      tensors["predictions.decoder.bias"] = tensors.pop("predictions.bias")
      tensors["albert.embeddings.position_ids"] = np.arange(16)[None]

    self.change(saved, change)
    assert_same(hf.load(saved)[1], random_params(SMALL))
    self.change(saved, lambda tensors: tensors["predictions.decoder.weight"].__setitem__(0, 7))
    with pytest.raises(UserError, match=r"predictions\.decoder\.weight differs"):
      hf.load(saved)

  def test_a_bare_model_has_no_prefix(self, tmp_path):
    params = random_params(SMALL, ("pooler",))
    hf.save(tmp_path / "model", SMALL, params)
    names = safetensors.numpy.load_file(tmp_path / "model/model.safetensors").keys()
    assert not any(name.startswith("albert.") for name in names)
    assert_same(hf.load(tmp_path / "model")[1], params)

  def test_lower_precision_is_widened(self, saved):
    file = saved / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    half = {name: value.astype(np.float16) for name, value in tensors.items()}
    safetensors.numpy.save_file(half, file)
    np.testing.assert_array_equal(hf.load(saved)[1]["pooler"]["bias"], half["albert.pooler.bias"].astype(np.float32))

    cut = {name: jax.numpy.asarray(value, jax.numpy.bfloat16) for name, value in tensors.items()}
    safetensors.flax.save_file(cut, file)
    np.testing.assert_array_equal(hf.load(saved)[1]["pooler"]["bias"], np.float32(cut["albert.pooler.bias"]))

  def test_damaged_files(self, saved):
    file = saved / "model.safetensors"
    data = file.read_bytes()
    for broken in (data[:-10], b"", b"garbage", (2**60).to_bytes(8, "little") + data[8:]):
      file.write_bytes(broken)
      with pytest.raises(UserError, match="damaged"):
        hf.load(saved)
    file.unlink()
    with pytest.raises(UserError, match=r"no .*model\.safetensors"):
      hf.load(saved)

  def test_layers_that_should_be_shared_but_differ(self, tmp_path):
    cfg = dataclasses.replace(SMALL, share="attention")
    hf.save(tmp_path / "model", cfg, random_params(cfg))
    name = "albert.encoder.albert_layer_groups.2.albert_layers.0.attention.query.bias"
    self.change(tmp_path / "model", lambda tensors: tensors[name].__setitem__(0, 7))
    with pytest.raises(UserError, match=r"groups\.2.*the layers differ"):
      hf.load(tmp_path / "model")


class TestWriting:
  def test_nothing_is_overwritten_or_left_half(self, tmp_path):
    params = random_params(SMALL)
    hf.save(tmp_path / "model", SMALL, params)
    with pytest.raises(UserError, match="exists already"):
      hf.save(tmp_path / "model", SMALL, params)
    broken = {**params, "sop": jax.tree.map(lambda x: x * np.nan, params["sop"])}
    with pytest.raises(UserError, match="NaN"):
      hf.save(tmp_path / "model", SMALL, broken, overwrite=True)
    with pytest.raises(UserError, match=r"other shape: pooler/bias is \[13\]"):
      hf.save(tmp_path / "other", SMALL, {**params, "pooler": {**params["pooler"], "bias": np.zeros(13)}})
    with pytest.raises(UserError, match=r"missing: pooler/bias"):
      hf.save(tmp_path / "other", SMALL, {**params, "pooler": {"kernel": params["pooler"]["kernel"]}})
    assert_same(hf.load(tmp_path / "model")[1], params)
    hf.save(tmp_path / "model", SMALL, random_params(SMALL, seed=1), overwrite=True)
    assert_same(hf.load(tmp_path / "model")[1], random_params(SMALL, seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

  def test_a_failed_block_leaves_nothing(self, tmp_path):
    with pytest.raises(RuntimeError), files.writing_folder(tmp_path / "x") as folder:
      (folder / "file").write_text("half")
      raise RuntimeError
    assert list(tmp_path.iterdir()) == []

  def test_architectures(self, tmp_path):
    cases = {
      "AlbertForPreTraining": (("pooler", "mlm", "sop"), {}),
      "AlbertForMaskedLM": (("mlm",), {}),
      "AlbertModel": (("pooler",), {}),
      "AlbertForSequenceClassification": (("pooler",), {"classifier": 3}),
      "AlbertForTokenClassification": ((), {"classifier": 5}),
      "AlbertForQuestionAnswering": ((), {"span": 2}),
    }
    for name, (parts, heads) in cases.items():
      fields = hf.to_fields(SMALL, random_params(SMALL, parts, heads))
      assert fields["architectures"] == [name]
      if heads:
        assert len(fields["id2label"]) == next(iter(heads.values()))

  @pytest.mark.realdata
  def test_vocabulary(self, tmp_path, real_data):
    cfg = dataclasses.replace(SMALL, vocab_size=30000)
    vocabulary = real_data / "vocab/albert_en_30k/spiece.model"
    hf.save(tmp_path / "model", cfg, random_params(cfg), vocabulary=vocabulary)
    assert (tmp_path / "model/spiece.model").read_bytes() == vocabulary.read_bytes()
    assert json.loads((tmp_path / "model/tokenizer_config.json").read_text())["do_lower_case"] is True
    written = json.loads((tmp_path / "model/tokenizer.json").read_text())
    scores = dict(written["model"]["vocab"])
    assert list(scores) == Tokenizer(vocabulary).pieces
    assert scores["\u25812010,"] < scores["\u25812010"] - 100
    with pytest.raises(UserError, match="30000 pieces, the model only 40 rows"):
      hf.save(tmp_path / "other", SMALL, random_params(SMALL), vocabulary=vocabulary)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class TestSquareProjection:
  """transformers has a projection also where embeddings are as wide as the layers; the original has none."""

  CFG = dataclasses.replace(SMALL, embedding_size=12)

  def test_the_identity_is_left_out(self, tmp_path):
    params = random_params(self.CFG)
    hf.save(tmp_path / "a", self.CFG, params)
    cfg, read = albert_jax.load(tmp_path / "a")
    assert cfg == self.CFG and "projection" not in read

  def test_a_trained_one_loads_and_is_written_again(self, tmp_path):
    cfg = dataclasses.replace(self.CFG, square_projection=True)
    params = random_params(cfg)
    assert params["projection"]["kernel"].shape == (12, 12)
    hf.save(tmp_path / "a", cfg, params)
    read_cfg, read = albert_jax.load(tmp_path / "a")
    assert read_cfg == cfg
    assert_same(read, params)

  def test_the_originals_format_cannot_hold_it(self, tmp_path):
    cfg = dataclasses.replace(self.CFG, square_projection=True)
    with pytest.raises(UserError, match="square_projection"):
      google_tf1.save(tmp_path / "a", dataclasses.replace(cfg, hidden_act="gelu_new"), random_params(cfg))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "", 3, "x.bin"])
def test_an_index_names_no_files_elsewhere(tmp_path, name):
  hf.save(tmp_path / "a", SMALL, random_params(SMALL))
  (tmp_path / "a/model.safetensors").rename(tmp_path / "secret.safetensors")
  (tmp_path / "a/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
  with pytest.raises(UserError, match="weight_map"):
    hf.read_tensors(tmp_path / "a")
