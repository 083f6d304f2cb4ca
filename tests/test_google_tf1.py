"""Checkpoints of the original: all its names, the same bytes again, refusals in words (its numbers: test_golden.py)."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from small_models import HEADS, SMALL, assert_same, configs, random_params

import albert_jax
from albert_jax import convert, model, paths
from albert_jax.convert import configs as configs_lib
from albert_jax.convert import google_tf1, mapping, tf_checkpoint
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


@pytest.mark.realdata
class TestOriginal:
  @pytest.mark.parametrize("folder", ["google_tf1", "google_tf1_squad_v2"])
  def test_written_again_it_is_the_same(self, tmp_path, real_data, folder):
    cfg, params = google_tf1.load(real_data / folder)
    google_tf1.save(tmp_path / "model", cfg, params)
    theirs, ours = tf_checkpoint.read(real_data / folder), tf_checkpoint.read(tmp_path / "model")
    assert ours.pop("global_step") == theirs.pop("global_step", 0)
    assert ours.keys() == theirs.keys()
    for name in theirs:
      np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name, strict=True)
    fields = json.loads((real_data / folder / "albert_config.json").read_text())
    assert fields.items() <= json.loads((tmp_path / "model/albert_config.json").read_text()).items()

  def test_heads(self, real_data):
    _, params = google_tf1.load(real_data / "google_tf1_squad_v2")
    assert params.keys() == {"embeddings", "projection", "attention", "ffn", "pooler", "squad_v2"}

  def test_a_config_of_another_vocabulary_is_refused(self, tmp_path, real_data):
    for file in (real_data / "google_tf1").glob("model*"):
      (tmp_path / file.name).symlink_to(file)
    fields = json.loads((real_data / "google_tf1/albert_config.json").read_text())
    (tmp_path / "albert_config.json").write_text(json.dumps({**fields, "vocab_size": 30000}))
    with pytest.raises(UserError, match=r"word_embeddings is \[1000, 32\], its config says \[30000, 32\]") as error:
      google_tf1.load(tmp_path)
    assert "cls/predictions/output_bias is [1000]" in str(error.value)


@settings(max_examples=20, deadline=None)
@given(configs())
def test_what_is_written_is_read_back(tmp_path_factory, cfg):
  if cfg.hidden_act == "gelu":
    cfg = dataclasses.replace(cfg, hidden_act="gelu_new")
  params = random_params(cfg, heads=HEADS)
  path = tmp_path_factory.mktemp("google") / "model"
  google_tf1.save(path, cfg, params, step=7)
  read_cfg, read = google_tf1.load(path)
  assert read_cfg == cfg
  assert_same(read, params)
  assert tf_checkpoint.Checkpoint(path).read("global_step") == 7


def test_the_table_has_a_name_for_everything():
  params = random_params(SMALL, heads=HEADS)
  table = google_tf1._table(SMALL, *mapping.shapes_of(params))
  assert len({entry.name for entry in table}) == len(table)
  assert not any(entry.name.startswith("albert_jax/") for entry in table)
  assert sum(np.prod(entry.file_shape) for entry in table) == albert_jax.param_count(params)


def test_a_head_of_ours_that_the_original_does_not_have(tmp_path):
  params = {**random_params(SMALL), "tags": {"first": {"kernel": np.ones((12, 3), np.float32)}}}
  google_tf1.save(tmp_path / "model", SMALL, params)
  assert_same(google_tf1.load(tmp_path / "model")[1], params)


class TestSpellings:
  """Variables as other exports name them."""

  @pytest.fixture
  def saved(self, tmp_path):
    cfg = dataclasses.replace(SMALL, inner_group_num=2)
    params = random_params(cfg)
    google_tf1.save(tmp_path / "model", cfg, params)
    return tmp_path / "model", cfg, params

  def rename(self, folder, rename):
    arrays = {rename(name): array for name, array in tf_checkpoint.read(folder).items()}
    for file in folder.glob("model.ckpt*"):
      file.unlink()
    tf_checkpoint.write(folder / "model.ckpt-best", arrays)

  def test_module(self, saved):
    folder, cfg, params = saved
    self.rename(folder, lambda name: f"module/{name}")
    assert google_tf1.load(folder)[0] == cfg
    assert_same(google_tf1.load(folder)[1], params)

  def test_hub_folders(self, saved):
    folder, _, params = saved
    (folder / "assets").mkdir()
    (folder / "variables").mkdir()
    (folder / "albert_config.json").rename(folder / "assets/albert_config.json")
    for file in folder.glob("model.ckpt*"):
      file.rename(folder / "variables" / file.name.replace("model.ckpt-best", "variables"))
    assert_same(google_tf1.load(folder)[1], params)

  def test_layer_normalization(self, saved):
    folder, _, params = saved
    self.rename(folder, lambda name: name.replace("LayerNorm", "layer_normalization"))
    assert_same(google_tf1.load(folder)[1], params)
    self.rename(folder, lambda name: name.replace("transform/layer_normalization", "transform/layer_normalization_25"))
    assert_same(google_tf1.load(folder)[1], params)

  def test_layer_norms_that_are_not_shared(self, saved, caplog):
    """google-research/albert #241: group_0_2/layer_2/inner_group_0/layer_normalization_5."""
    folder, cfg, params = saved
    arrays = tf_checkpoint.read(folder)
    start = "bert/encoder/transformer/group_0/inner_group_"
    norms = {name: arrays.pop(name) for name in list(arrays) if name.startswith(start) and "LayerNorm" in name}
    for layer in range(cfg.num_hidden_layers):
      for name, array in norms.items():
        inner, norm, leaf = name.removeprefix(start).split("/")
        number = 1 + 4 * layer + 2 * int(inner) + norm.endswith("_1")
        group = f"group_0_{layer}" if layer else "group_0"
        variable = (
          f"bert/encoder/transformer/{group}/layer_{layer}/inner_group_{inner}/layer_normalization_{number}/{leaf}"
        )
        arrays[variable] = array + layer
    for file in folder.glob("model.ckpt*"):
      file.unlink()
    tf_checkpoint.write(folder / "model.ckpt-best", arrays)

    read_cfg, read = google_tf1.load(folder)
    assert "separate layer norms" in caplog.text
    assert read_cfg == dataclasses.replace(cfg, num_hidden_groups=4)
    for path, value in paths.flatten(read).items():
      expected = paths.flatten(params)[path]
      if path.startswith(("attention", "ffn")):
        expected = np.stack([expected + (layer if "norm" in path else 0) for layer in range(4)])
      np.testing.assert_array_equal(value, expected, err_msg=path)

  def test_optimizer(self, saved):
    folder, _, params = saved
    with pytest.raises(UserError, match="the optimizer state was removed"):
      google_tf1.load_optimizer(folder)
    arrays = tf_checkpoint.read(folder)
    slots = {f"{name}/adam_{slot}": array * k for name, array in arrays.items() for slot, k in (("m", 2), ("v", 3))}
    slots = {name: array for name, array in slots.items() if not name.startswith("global_step")}
    for file in folder.glob("model.ckpt*"):
      file.unlink()
    tf_checkpoint.write(folder / "model.ckpt-100", {**arrays, **slots, "global_step": np.array(100)})
    assert_same(google_tf1.load(folder)[1], params)
    state = google_tf1.load_optimizer(folder)
    assert state["step"] == 100
    assert_same(state["m"], jax.tree.map(lambda x: x * 2, params))
    assert_same(state["v"], jax.tree.map(lambda x: x * 3, params))


class TestRefusals:
  @pytest.fixture
  def saved(self, tmp_path):
    google_tf1.save(tmp_path / "model", SMALL, random_params(SMALL))
    return tmp_path / "model"

  def change(self, folder, change):
    arrays = tf_checkpoint.read(folder)
    change(arrays)
    for file in folder.glob("model.ckpt*"):
      file.unlink()
    tf_checkpoint.write(folder / "model.ckpt-best", arrays)

  def test_missing_and_unused_can_be_allowed(self, saved, caplog):
    def change(arrays):
      del arrays["bert/embeddings/token_type_embeddings"]
      arrays["mystery"] = np.zeros(3, np.float32)

    self.change(saved, change)
    with pytest.raises(UserError) as error:
      google_tf1.load(saved)
    assert "missing: bert/embeddings/token_type_embeddings [2, 6] (here: embeddings/token_type/emb" in str(error.value)
    assert "not known: mystery [3]" in str(error.value)
    rules = mapping.Rules(allow_missing=["token_type"], allow_unused=["^mystery$"])
    _, params = google_tf1.load(saved, rules)
    output = caplog.text
    assert "fresh: embeddings/token_type/embedding" in output and "not used: mystery" in output
    expected = random_params(SMALL)
    fresh = params["embeddings"].pop("token_type")["embedding"]
    assert 0 < np.abs(fresh).max() <= 2 * SMALL.initializer_range
    del expected["embeddings"]["token_type"]
    assert_same(params, expected)

  def test_configs_of_other_names(self, saved):
    (saved / "albert_config.json").rename(saved / "albert_config_base.json")
    assert google_tf1.load(saved)[0] == SMALL
    (saved / "albert_config_large.json").write_text("{}")
    with pytest.raises(UserError, match=r"several configs beside .*base\.json, albert_config_large\.json"):
      google_tf1.load(saved)

  def test_no_config(self, saved):
    (saved / "albert_config.json").unlink()
    with pytest.raises(UserError, match=r"no albert_config\.json beside"):
      google_tf1.load(saved)

  def test_what_the_original_cannot_compute(self, tmp_path):
    cfg = dataclasses.replace(SMALL, hidden_act="gelu")
    with pytest.raises(UserError, match="has only the tanh form"):
      google_tf1.save(tmp_path / "model", cfg, random_params(cfg))
    cfg = dataclasses.replace(SMALL, layer_norm_eps=1e-5)
    with pytest.raises(UserError, match=r"layer_norm_eps=1e-05: the original has only 1e-12; .*--to=hf"):
      google_tf1.save(tmp_path / "model", cfg, random_params(cfg))
    cfg = dataclasses.replace(SMALL, num_hidden_layers=22, share="none")
    with pytest.raises(UserError, match="22 layers that share nothing"):
      google_tf1.save(tmp_path / "model", cfg, random_params(cfg, ()))
    assert list(tmp_path.iterdir()) == []

  def test_the_rules_of_a_vocabulary_are_kept_and_a_tokenizer_json_is_refused(self, tmp_path):
    params = random_params(SMALL, ())
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    google_tf1.save(tmp_path / "model", SMALL, params, vocabulary=Tokenizer(tmp_path / "vocab.txt", lower=False))
    assert not convert.load_tokenizer(tmp_path / "model").lower
    google_tf1.save(tmp_path / "model", SMALL, params, vocabulary=tmp_path / "vocab.txt", overwrite=True)
    assert convert.load_tokenizer(tmp_path / "model").lower
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"the original reads no .*tokenizer\.json; .* --spm=FILE"):
      google_tf1.save(tmp_path / "other", SMALL, params, vocabulary=tmp_path / "tokenizer.json")
    assert not (tmp_path / "other").exists()

  def test_a_checkpoint_without_heads_loads_as_what_it_is(self, tmp_path):
    params = random_params(SMALL, ())
    google_tf1.save(tmp_path / "model", SMALL, params)
    cfg, read = google_tf1.load(tmp_path / "model")
    assert_same(read, params)
    out = albert_jax.apply(cfg, read, {"input_ids": np.ones((1, 4), np.int32)})
    assert out.keys() == {"sequence_output"}


class TestKnownModels:
  def load(self, tmp_path, name, variant, rules=None, heads=None, **fields):
    """Corrects the config of a released model, without its weights."""
    folder = tmp_path / name
    cfg = dataclasses.replace(albert_jax.VARIANTS[variant], **fields)
    written = {**dataclasses.asdict(cfg), "net_structure_type": 0}
    return configs_lib.corrected(cfg, written, folder, rules or mapping.Rules())

  def test_activation_and_dropout_by_name(self, tmp_path, caplog):
    right = albert_jax.VARIANTS["base"]
    assert self.load(tmp_path, "albert-base-v2", "base_v1", hidden_act="gelu") == right
    output = caplog.text
    assert "says hidden_act=gelu, these weights were trained with gelu_new" in output
    assert "says hidden_dropout_prob=0.1, these weights were trained with 0.0" in output
    assert self.load(tmp_path, "albert_base_v1", "base") == albert_jax.VARIANTS["base_v1"]
    assert self.load(tmp_path, "albert_large_zh", "large_zh", hidden_act="gelu").hidden_act == "relu"

  def test_activation_by_sizes(self, tmp_path):
    assert self.load(tmp_path, "my_model", "xlarge", hidden_act="gelu").hidden_act == "gelu_new"
    assert self.load(tmp_path, "my_model", "xlarge", hidden_act="gelu", embedding_size=256).hidden_act == "gelu"
    assert self.load(tmp_path, "albert-base-v2", "xlarge", hidden_act="relu").hidden_act == "relu"

  def test_the_files_can_be_kept(self, tmp_path, caplog):
    rules = mapping.Rules(keep_config=True)
    assert self.load(tmp_path, "albert-base-v1", "base_v1", rules, hidden_act="gelu").hidden_act == "gelu"
    assert "keeping the file's" in caplog.text

  def test_every_released_model_is_in_the_table(self):
    assert (
      len(model.VARIANTS.keys() & {f"{s}_{v}" for s in ("base", "large", "xlarge", "xxlarge") for v in ("v1", "zh")})
      == 8
    )
