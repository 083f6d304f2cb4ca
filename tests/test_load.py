"""One door for every kind of checkpoint."""

import dataclasses
import json
import pathlib
import shutil
import sys

import made_up
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from small_models import SMALL, assert_same, random_params

import albert_jax
from albert_jax import convert
from albert_jax.convert import google_tf1, hf
from albert_jax.convert.load import find, fit
from albert_jax.errors import UserError
from albert_jax.tasks import classify, retrieve

PARAMS = random_params(SMALL)


class TestFind:
  def test_every_kind(self, tmp_path):
    albert_jax.save(tmp_path / "hf", SMALL, PARAMS)
    google_tf1.save(tmp_path / "google", SMALL, PARAMS)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"not complete.*finish it with albert-jax train$"):
      albert_jax.load(tmp_path / "run")
    for step in ("90", "120"):
      (tmp_path / "run/checkpoints" / step).mkdir()
    with pytest.raises(UserError, match=r"or end it at its newest checkpoint: .* --config\.steps=120$"):
      albert_jax.load(tmp_path / "run")
    hf.save(tmp_path / "run/export", SMALL, PARAMS)
    for place in ("hf", "google", "google/model.ckpt-best", "google/model.ckpt-best.index", "run", "run/export"):
      cfg, params = albert_jax.load(tmp_path / place)
      assert cfg == SMALL, place
      assert_same(params, PARAMS)

  def test_nothing(self, tmp_path):
    with pytest.raises(UserError, match=r"nothing at .*nowhere.*expected a Hugging Face directory"):
      albert_jax.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
      albert_jax.load(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="no TensorFlow checkpoint at"):
      albert_jax.load(tmp_path / "file")

  def test_shards(self, tmp_path):
    hf.save(tmp_path / "model", SMALL, PARAMS)
    whole = tmp_path / "model/model.safetensors"
    tensors = safetensors.numpy.load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
      part = {name: tensors[name] for name in names if weight_map[name] == file}
      safetensors.numpy.save_file(part, tmp_path / "model" / file)
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(albert_jax.load(tmp_path / "model")[1], PARAMS)
    (tmp_path / "model/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"no .*model-00002-of-00002\.safetensors"):
      albert_jax.load(tmp_path / "model")

  def test_tokenizer(self, tmp_path):
    cfg = dataclasses.replace(SMALL, vocab_size=400)
    hf.save(tmp_path / "model", cfg, random_params(cfg))
    with pytest.raises(UserError, match="holds no vocabulary"):
      convert.load_tokenizer(tmp_path / "model")
    assert convert.load_tokenizer(tmp_path / "model", optional=True) is None
    made_up.vocabulary(tmp_path / "model")
    assert convert.load_tokenizer(tmp_path / "model").lower is True
    (tmp_path / "model/tokenizer_config.json").write_text('{"do_lower_case": false, "keep_accents": true}')
    tokenizer = convert.load_tokenizer(tmp_path / "model")
    assert (tokenizer.lower, tokenizer.keep_accents) == (False, True)
    (tmp_path / "model/tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    with pytest.raises(UserError, match="do_lower_case is 'no'; expected true or false"):
      convert.load_tokenizer(tmp_path / "model")


TEXTS = ["Badekope fumikine lu depinu.", "nipu 2010, (dosa) “fo” titebo", "ßé unknown ☃ [MASK] words"]


class TestTokenizerJson:
  """What transformers 5 saves: tokenizer.json and no spiece.model."""

  @pytest.fixture
  def folder(self, tmp_path):
    path = made_up.checkpoint(tmp_path)
    (path / "spiece.model").unlink()
    return path

  @pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
  def test_the_folders_name_may_be_no_utf_8(self, folder):
    shutil.copytree(folder, other := folder.with_name("a\udcff"))
    assert convert.load_tokenizer(other).encode(TEXTS[0]) == convert.load_tokenizer(folder).encode(TEXTS[0])

  def test_ids_are_those_of_the_library(self, folder):
    tokenizer = convert.load_tokenizer(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
      0,
      1,
      2,
      3,
      4,
    )
    for text in TEXTS:
      assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
      ids, spans = tokenizer.encode_with_offsets(text)
      assert ids == tokenizer.encode(text) and len(spans) == len(ids)
    assert tokenizer.encode("[MASK]", specials=True) == [4] and 4 not in tokenizer.encode("[MASK]")

  def test_it_is_written_again(self, folder, tmp_path):
    cfg, params = albert_jax.load(folder)
    albert_jax.save(tmp_path / "again", cfg, params, vocabulary=convert.load_tokenizer(folder))
    assert convert.load_tokenizer(tmp_path / "again").encode_batch(TEXTS) == convert.load_tokenizer(
      folder
    ).encode_batch(TEXTS)

  @pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "1.0"}', '{"model": {"type": "Unigram", "vocab": 3}}'])
  def test_damage_is_one_line(self, folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json") as error:
      convert.load_tokenizer(folder).encode("a")
    assert "\n" not in str(error.value)


class TestTwoVocabularies:
  """A spiece.model and a tokenizer.json, of which transformers reads the second, must mean the same."""

  @pytest.fixture
  def folder(self, tmp_path):
    return made_up.checkpoint(tmp_path)

  def change(self, folder, change):
    fields = json.loads((folder / "tokenizer.json").read_text())
    change(fields)
    (folder / "tokenizer.json").write_text(json.dumps(fields))

  def test_ours_do(self, folder):
    assert convert.load_tokenizer(folder).path.endswith("spiece.model")

  def test_other_rules_are_refused(self, folder):
    def keep_case(fields):
      steps = fields["normalizer"]["normalizers"]
      steps.remove({"type": "Lowercase"})

    self.change(folder, keep_case)
    with pytest.raises(UserError, match=r"disagree on do_lower_case; set it in tokenizer_config\.json"):
      convert.load_tokenizer(folder)

  def test_other_pieces_are_refused(self, folder):
    self.change(folder, lambda fields: fields["model"]["vocab"][50].__setitem__(0, "other"))
    with pytest.raises(UserError, match=r"tokenizer\.json has other pieces than .*spiece\.model"):
      convert.load_tokenizer(folder)


class TestAddedTokens:
  def add(self, folder, name):
    tokens = json.loads((folder / "tokenizer.json").read_text())
    tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 400, "content": name, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokens))

  def test_they_have_the_ids_of_tokenizer_json(self, tmp_path):
    cfg = dataclasses.replace(SMALL, vocab_size=401)
    albert_jax.save(tmp_path / "a", cfg, random_params(cfg), vocabulary=made_up.vocabulary(tmp_path))
    self.add(tmp_path / "a", "<ent>")
    assert 400 in convert.load_tokenizer(tmp_path / "a").encode("nipu <ent> dosa")

  def test_more_pieces_than_rows(self, tmp_path):
    path = made_up.checkpoint(tmp_path)
    self.add(path, "<ent>")
    with pytest.raises(UserError, match="the vocabulary has 401 pieces, the model 400 rows"):
      convert.load_tokenizer(path)

  def test_a_list_that_is_none_is_one_line(self, tmp_path):
    path = made_up.checkpoint(tmp_path)
    fields = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(fields | {"added_tokens": 5}))
    with pytest.raises(UserError, match=r"tokenizer\.json: added_tokens: expected a list, got 5"):
      convert.load_tokenizer(path)

  @pytest.mark.parametrize("is_there", [True, False])
  def test_where_tokenizer_json_lacks_them_they_are_refused(self, tmp_path, is_there):
    path = made_up.checkpoint(tmp_path)
    if not is_there:
      (path / "tokenizer.json").unlink()
    (path / "added_tokens.json").write_text('{"<ent>": 400}')
    with pytest.raises(UserError, match="'<ent>' were added to the vocabulary"):
      convert.load_tokenizer(path)


@pytest.mark.parametrize(("name", "expected"), [("kind", classify.KINDS), ("pooling", retrieve.POOLING)])
def test_facts_of_a_newer_version_are_refused(tmp_path, name, expected):
  path = made_up.checkpoint(tmp_path)
  fields = json.loads((path / "config.json").read_text())
  for value in expected:
    (path / "config.json").write_text(json.dumps(fields | {"albert_jax_task": {"name": "classify", name: value}}))
    assert convert.about(path)[name] == value
  (path / "config.json").write_text(json.dumps(fields | {"albert_jax_task": {"name": "classify", name: "ordinal"}}))
  with pytest.raises(UserError, match=f"albert_jax_task: {name}: expected one of .*, got 'ordinal'; is the model of a"):
    convert.about(path)


@pytest.mark.parametrize(
  "names", [{"0": "a", "5": "b"}, {"x": "a"}, ["a"], {"0": 3}, {"1": "a"}, {"0": "a", "00": "b"}]
)
def test_labels_with_gaps_are_refused(tmp_path, names):
  path = made_up.checkpoint(tmp_path)
  fields = json.loads((path / "config.json").read_text())
  (path / "config.json").write_text(json.dumps(fields | {"id2label": names}))
  with pytest.raises(UserError, match="id2label is"):
    convert.about(path)


class TestTorch:
  def test_without_torch(self, tmp_path, monkeypatch):
    hf.save(tmp_path / "model", SMALL, PARAMS)
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch to read it"):
      albert_jax.load(tmp_path / "model")

  def test_with_torch(self, tmp_path):
    torch = pytest.importorskip("torch", reason="reads PyTorch files, for which torch is needed")
    hf.save(tmp_path / "model", SMALL, PARAMS)
    file = tmp_path / "model/model.safetensors"
    tensors = {name: torch.tensor(array) for name, array in safetensors.numpy.load_file(file).items()}
    file.unlink()
    torch.save(tensors, tmp_path / "model/pytorch_model.bin")
    assert_same(albert_jax.load(tmp_path / "model")[1], PARAMS)

  def test_a_pickle_with_code_in_it(self, tmp_path):
    torch = pytest.importorskip("torch", reason="reads PyTorch files, for which torch is needed")

    class Attack:
      def __reduce__(self):
        return pathlib.Path.touch, (tmp_path / "attacked",)

    hf.save(tmp_path / "model", SMALL, PARAMS)
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({"x": Attack()}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(UserError, match="refused, and nothing in it was executed"):
      albert_jax.load(tmp_path / "model")
    assert not (tmp_path / "attacked").exists()
    for garbage in (b"", b"garbage", b"PK\x03\x04garbage"):
      (tmp_path / "model/pytorch_model.bin").write_bytes(garbage)
      with pytest.raises(UserError, match="damaged"):
        albert_jax.load(tmp_path / "model")


class TestFit:
  def test_a_new_head_on_old_weights(self):
    fresh = random_params(SMALL, ("pooler",), {"classifier": 3}, seed=1)
    params, line = fit(fresh, PARAMS, new=["^classifier/"], unused=["^mlm/", "^sop/"])
    assert params.keys() == fresh.keys()
    assert_same(params["pooler"], PARAMS["pooler"])
    assert_same(params["classifier"], fresh["classifier"])
    count = albert_jax.param_count(fresh) - 12 * 3 - 3
    assert line.startswith(f"loaded {count:,} parameters; new: classifier/bias, classifier/kernel; not used: mlm/bias,")

  def test_what_does_not_fit_is_listed(self):
    fresh = random_params(SMALL, ("pooler",), {"classifier": 3})
    fresh["pooler"]["bias"] = np.zeros(13, np.float32)
    with pytest.raises(UserError) as error:
      fit(fresh, PARAMS)
    for line in (
      "missing: classifier/bias [3]",
      "not part of this model: mlm/bias [40]",
      "other shape: pooler/bias is [12] in the checkpoint, [13] in the model",
    ):
      assert line in str(error.value)


def test_find_says_the_format(tmp_path):
  google_tf1.save(tmp_path / "x", SMALL, PARAMS)
  assert find(tmp_path / "x")[0] is google_tf1
