"""PL-BERT of StyleTTS2 and Kokoro: read without running what a file holds, written as StyleTTS2 reads it."""

import collections
import dataclasses
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import yaml
from small_models import SMALL, assert_same, random_params, read_npz

import albert_jax
from albert_jax import __main__, convert
from albert_jax.convert import conversion, hf, inspection, styletts2, torch_file
from albert_jax.data.speech import symbols
from albert_jax.errors import UserError

WORDS, D = 9, SMALL.hidden_size


def with_heads(seed=0):
  """Returns a small encoder with the two heads of PL-BERT's pre-training."""
  rng = np.random.default_rng(seed)
  params = random_params(SMALL, parts=("pooler",), seed=seed)
  for name, size in {"phoneme": SMALL.vocab_size, "word": WORDS}.items():
    params[name] = {
      "kernel": rng.normal(size=(D, size)).astype(np.float32),
      "bias": rng.normal(size=size).astype(np.float32),
    }
  return params


def open_as_styletts2(folder):
  """What StyleTTS2 does with `PLBERT_dir`; returns the transformers AlbertModel."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  config = yaml.safe_load((folder / "config.yml").read_text())
  model = transformers.AlbertModel(transformers.AlbertConfig(**config["model_params"]))
  steps = [int(name.split("_")[-1].split(".")[0]) for name in os.listdir(folder) if name.startswith("step_")]
  state = torch.load(folder / f"step_{max(steps)}.t7", map_location="cpu", weights_only=True)["net"]
  kept = collections.OrderedDict()
  for name, tensor in state.items():
    name = name[7:]
    if name.startswith("encoder."):
      kept[name[8:]] = tensor
  del kept["embeddings.position_ids"]
  outcome = model.load_state_dict(kept, strict=False)
  assert not outcome.unexpected_keys
  assert {name for name in outcome.missing_keys if not name.startswith("pooler.")} == set()
  return model.eval()


class TestFolder:
  def test_round_trip_is_bit_exact_with_and_without_heads(self, tmp_path):
    for name, params in {"heads": with_heads(), "encoder": random_params(SMALL, parts=())}.items():
      styletts2.save(tmp_path / name, SMALL, params)
      cfg, back = albert_jax.load(tmp_path / name)
      assert cfg == SMALL
      assert_same(back, params)

  def test_the_newest_step_counts(self, tmp_path):
    styletts2.save(tmp_path / "a", SMALL, with_heads(0), step=999)
    styletts2.save(tmp_path / "b", SMALL, with_heads(1), step=1000)
    (tmp_path / "b/step_1000.t7").rename(tmp_path / "a/step_1000.t7")
    assert_same(albert_jax.load(tmp_path / "a")[1], with_heads(1))

  def test_styletts2_opens_it_and_computes_the_same(self, tmp_path):
    torch = pytest.importorskip("torch")
    params = with_heads()
    styletts2.save(tmp_path / "x", SMALL, params, step=42)
    ids = np.random.default_rng(0).integers(1, SMALL.vocab_size, (2, 7)).astype(np.int32)
    with torch.no_grad():
      theirs = open_as_styletts2(tmp_path / "x")(torch.tensor(ids)).last_hidden_state.numpy()
    ours = albert_jax.apply(SMALL, params, {"input_ids": ids})["sequence_output"]
    np.testing.assert_allclose(ours, theirs, atol=2e-5)

  def test_a_file_of_pytorch_itself_with_an_optimizer_in_it(self, tmp_path):
    torch = pytest.importorskip("torch")
    params = with_heads()
    styletts2.save(tmp_path / "x", SMALL, params)
    file = tmp_path / "x/step_1.t7"
    net = {name: torch.tensor(array) for name, array in torch_file.read_tensors(file, "net").items()}
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save({"net": collections.OrderedDict(net), "step": 1, "optimizer": optimizer.state_dict()}, file)
    assert_same(albert_jax.load(tmp_path / "x")[1], params)

  def test_heads_of_text_are_left_out_and_named(self, tmp_path, caplog):
    styletts2.save(tmp_path / "x", SMALL, random_params(SMALL))
    assert "no place for mlm, sop" in caplog.text
    assert albert_jax.load(tmp_path / "x")[1].keys() == random_params(SMALL, parts=("pooler",)).keys()

  def test_convert_makes_a_directory_of_it(self, tmp_path):
    styletts2.save(tmp_path / "x", SMALL, with_heads())
    conversion.convert(tmp_path / "x", tmp_path / "hf")
    assert_same(albert_jax.load(tmp_path / "hf")[1], with_heads())
    shown = inspection.inspect(tmp_path / "x")
    assert "missing: nothing" in shown and "not used: nothing" in shown

  @pytest.mark.realdata
  def test_the_real_encoder(self, tmp_path, real_data):
    cfg, params = albert_jax.load(real_data / "plbert_kokoro")
    golden = read_npz(real_data / "plbert_kokoro/golden.npz")
    batch = {name: golden[name] for name in ("input_ids", "attention_mask")}
    ours = albert_jax.apply(cfg, params, batch)["sequence_output"]
    is_token = golden["attention_mask"] == 1
    np.testing.assert_allclose(ours[is_token], golden["last_hidden_state"][is_token], atol=2e-5)
    styletts2.save(tmp_path / "x", cfg, params)
    assert_same(albert_jax.load(tmp_path / "x")[1], params)
    torch = pytest.importorskip("torch")
    with torch.no_grad():
      model = open_as_styletts2(tmp_path / "x")
      theirs = model(torch.tensor(golden["input_ids"]), torch.tensor(golden["attention_mask"])).last_hidden_state
    np.testing.assert_allclose(theirs.numpy()[is_token], golden["last_hidden_state"][is_token], atol=2e-5)


class TestSymbols:
  """A PL-BERT with its symbol table: exported, and turned to another table."""

  CFG = dataclasses.replace(SMALL, vocab_size=178)

  def checkpoint(self, folder):
    params = random_params(self.CFG, parts=())
    rng = np.random.default_rng(1)
    for name, size in {"phoneme": 178, "word": WORDS}.items():
      params[name] = {"kernel": rng.normal(size=(D, size)), "bias": rng.normal(size=size)}
      params[name] = {key: value.astype(np.float32) for key, value in params[name].items()}
    hf.save(folder, self.CFG, params, vocabulary=symbols.load("styletts2"))
    return params

  def test_export_writes_the_folder_with_the_step_of_the_run(self, tmp_path, capsys):
    run = tmp_path / "run"
    params = self.checkpoint(run / "export")
    (run / "metrics.jsonl").write_text('{"step": 40}\n{"step": 50}\n')
    (run / "checkpoints").mkdir()
    argv = ["export", f"--checkpoint={run}", f"--out={tmp_path / 'out'}", "--to=styletts2"]
    assert __main__.main(argv) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.yml", "step_50.t7", "symbols.json"}
    assert_same(albert_jax.load(tmp_path / "out")[1], params)
    open_as_styletts2(tmp_path / "out")
    assert __main__.main(argv) == 2  # It is there already.
    assert __main__.main([*argv, "--overwrite", "--pooling=mean"]) == 2
    assert "leave --pooling out" in capsys.readouterr().err

  @pytest.mark.slow
  def test_export_writes_the_folder_of_every_runtime(self, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    self.checkpoint(tmp_path / "x")
    assert __main__.main(["export", f"--checkpoint={tmp_path / 'x'}", f"--out={tmp_path / 'out'}"]) == 0
    assert "outputs equal the model's" in capsys.readouterr().out
    assert (tmp_path / "out/onnx/model.onnx").is_file() and (tmp_path / "out/symbols.json").is_file()

  def test_export_takes_the_last_whole_line_of_the_metrics(self, tmp_path):
    run = tmp_path / "run"
    self.checkpoint(run / "export")
    (run / "checkpoints").mkdir()
    (run / "metrics.jsonl").write_text('{"step": 40, "split": "train"}\n{"step": 50, "spl')
    assert __main__.main(["export", f"--checkpoint={run}", f"--out={tmp_path / 'out'}", "--to=styletts2"]) == 0
    assert (tmp_path / "out/step_40.t7").is_file()

  def test_a_table_of_another_model_and_a_format_without_phonemes_are_refused(self, tmp_path, capsys):
    self.checkpoint(tmp_path / "x")
    argv = ["convert", f"--checkpoint={tmp_path / 'x'}", f"--out={tmp_path / 'out'}"]
    assert __main__.main([*argv, "--to=google"]) == 2
    assert "this model reads phonemes" in capsys.readouterr().err
    symbols.load("kokoro").extended(["ꜛ"]).write(tmp_path / "x")
    assert __main__.main(argv) == 2
    assert "has 179 symbols, the model 178" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

  def test_a_larger_table_keeps_what_both_have(self, tmp_path, capsys):
    params = self.checkpoint(tmp_path / "old")
    symbols.load("kokoro").extended(["ꜛ", "ʬ"]).write(tmp_path)
    argv = ["convert", f"--checkpoint={tmp_path / 'old'}", f"--out={tmp_path / 'new'}", "--keep_pieces"]
    assert __main__.main([*argv, f"--symbols={tmp_path / 'symbols.json'}"]) == 0
    assert "left out the head that predicts words" in capsys.readouterr().err
    cfg, new = albert_jax.load(tmp_path / "new")
    assert cfg.vocab_size == 180 and "word" not in new
    old_table, table = symbols.load("styletts2"), convert.load_symbols(tmp_path / "new")
    assert table.pieces[178:] == ["ꜛ", "ʬ"]
    old_row, row = (t.pieces.index("ɹ") for t in (old_table, table))
    embeddings, before = (p["embeddings"]["word"]["embedding"] for p in (new, params))
    np.testing.assert_array_equal(embeddings[row], before[old_row])
    np.testing.assert_array_equal(new["phoneme"]["kernel"][:, row], params["phoneme"]["kernel"][:, old_row])
    for role in ("pad_id", "mask_id", "unk_id", "space_id"):
      np.testing.assert_array_equal(embeddings[getattr(table, role)], before[getattr(old_table, role)])
    assert not (embeddings[table.pieces.index("(")] == before[old_table.pieces.index("«")]).any()

  def test_where_the_table_comes_from(self, tmp_path):
    styletts2.save(tmp_path / "styletts2", self.CFG, random_params(self.CFG, parts=()))
    styletts2.save(tmp_path / "other", SMALL, random_params(SMALL, parts=()))
    albert_jax.save(tmp_path / "text", SMALL, random_params(SMALL))
    assert convert.load_symbols(tmp_path / "styletts2").pieces == symbols.load("styletts2").pieces
    assert convert.load_symbols(tmp_path / "other") is None
    assert convert.load_symbols(tmp_path / "text") is None


class TestKokoro:
  def folder(self, tmp_path, file, tensors):
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings",
             "num_hidden_layers", "embedding_size")  # fmt: skip
    config = {"n_token": SMALL.vocab_size, "plbert": {name: getattr(SMALL, name) for name in sizes}, "vocab": {"a": 1}}
    tmp_path.mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config))
    if file.endswith(".pth"):
      torch_file.write(tmp_path / file, {"bert": tensors, "decoder": {"module.x": np.zeros(2, np.float32)}})
    else:
      tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
      safetensors.numpy.save_file(tensors | {"decoder.x": np.zeros(2, np.float32)}, tmp_path / file)
    return tmp_path

  def test_pth_and_safetensors(self, tmp_path):
    params = random_params(SMALL, parts=("pooler",))
    tensors = hf.tensors_of(SMALL, params, architecture="AlbertModel")
    module = {f"module.{name}": tensor for name, tensor in tensors.items()}
    for i, (file, kind) in enumerate([("k.pth", module), ("k.pth", tensors), ("k.safetensors", module)]):
      cfg, back = albert_jax.load(self.folder(tmp_path / str(i), file, kind))
      assert cfg == SMALL
      assert_same(back, params)

  def test_what_is_missing_is_one_line(self, tmp_path):
    folder = self.folder(tmp_path / "x", "k.safetensors", {})
    with pytest.raises(UserError, match=r"k\.safetensors has no tensor whose name begins with bert\."):
      albert_jax.load(folder)
    (folder / "k.safetensors").unlink()
    with pytest.raises(UserError, match="has none; expected one file of weights"):
      albert_jax.load(folder)


class TestHostileFiles:
  def load(self, folder, data=None, compression=zipfile.ZIP_STORED):
    """Loads a PL-BERT whose pickle is `data`; returns the one line that refuses it."""
    styletts2.save(folder / "x", SMALL, random_params(SMALL, parts=()))
    with zipfile.ZipFile(folder / "x/step_1.t7", "w", compression) as archive:
      archive.writestr("archive/data.pkl", data)
    with pytest.raises(UserError) as caught:
      albert_jax.load(folder / "x")
    assert "\n" not in str(caught.value)
    return str(caught.value)

  def test_code_is_refused_and_not_run(self, tmp_path):
    trace = tmp_path / "ran"

    class Bomb:
      def __reduce__(self):
        return os.system, (f"touch {trace}",)

    for protocol in (2, 4):
      error = self.load(tmp_path / str(protocol), pickle.dumps({"net": Bomb()}, protocol))
      assert "system; expected a file of torch.save" in error and "nothing in it was executed" in error
    assert not trace.exists()

  def test_other_tricks(self, tmp_path):
    tricks = {
      "eval": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
      "instance": b"(ios\nsystem\n.",
      "extension": b"\x80\x02\x82\x01.",
      "a key that takes forever to hash": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
      "a memo of four billion entries": b"\x80\x02}r\xff\xff\xff\xff" + b"X\xff\xff\xff\xffx.",
      "no end": b"\x80\x02}",
      "nothing on the stack": b"\x80\x02R.",
      "not a pickle": b"hello",
      "empty": b"",
    }
    for name, data in tricks.items():
      assert "step_1.t7 is" in self.load(tmp_path / name, data), name

  def test_a_compressed_bomb_is_not_unpacked(self, tmp_path):
    error = self.load(tmp_path, b"\x80\x02" + b"0" * (1 << 24), zipfile.ZIP_DEFLATED)
    assert "data.pkl is compressed" in error

  def test_a_tensor_that_reaches_beyond_its_bytes(self, tmp_path):
    file = tmp_path / "x.pt"
    torch_file.write(file, {"a": np.arange(6, dtype=np.float32)})
    with zipfile.ZipFile(file) as archive:
      entries = {name: archive.read(name) for name in archive.namelist()}
    for original, forged in {
      b"J\x06\x00\x00\x00t(": b"J\x07\x00\x00\x00t(",  # a longer shape
      b"(J\x01\x00\x00\x00t\x89": b"(J\x02\x00\x00\x00t\x89",  # a longer stride
      b"tQJ\x00\x00\x00\x00": b"tQJ\x01\x00\x00\x00",  # an offset
      b"(J\x01\x00\x00\x00t\x89c": b"(J\xff\xff\xff\xfft\x89c",  # a stride backwards
    }.items():
      changed = entries["archive/data.pkl"].replace(original, forged)
      assert changed != entries["archive/data.pkl"]
      with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, data in (entries | {"archive/data.pkl": changed}).items():
          archive.writestr(name, data)
      with pytest.raises(UserError, match=r"y\.pt is"):
        torch_file.read_tensors(tmp_path / "y.pt")

  def test_config_yml(self, tmp_path):
    styletts2.save(tmp_path / "x", SMALL, random_params(SMALL, parts=()))
    config = tmp_path / "x/config.yml"
    for text in ("!!python/object/apply:os.system ['true']", "a: [", "{}", "- 1", "model_params: 3"):
      config.write_text(text)
      with pytest.raises(UserError, match=r"config\.yml (is not YAML|has no model_params)") as caught:
        albert_jax.load(tmp_path / "x")
      assert "\n" not in str(caught.value)


class TestTorchFile:
  def test_all_types_of_numbers_from_pytorch(self, tmp_path):
    torch = pytest.importorskip("torch")
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool)  # fmt: skip
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    tensors["view"] = torch.arange(12.0).reshape(3, 4).T[1:, ::2]
    tensors["scalar"], tensors["empty"] = torch.tensor(3.5), torch.zeros(0, 4)
    torch.save(tensors, tmp_path / "x.pt")
    back = torch_file.read_tensors(tmp_path / "x.pt")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
      expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
      np.testing.assert_array_equal(back[name], expected, err_msg=name)
      assert back[name].dtype == expected.dtype and back[name].shape == expected.shape

  def test_pytorch_opens_what_is_written(self, tmp_path):
    torch = pytest.importorskip("torch")
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": [1, -3, 2**40, 0.5, True, None, "ɑ"], "t": (1, "x")}
    torch_file.write(tmp_path / "x.pt", tree)
    back = torch.load(tmp_path / "x.pt", weights_only=True)
    np.testing.assert_array_equal(back["a"].numpy(), tree["a"])
    assert back["n"] == tree["n"] and back["t"] == tree["t"]
    torch_file.write(tmp_path / "y.pt", tree)
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "y.pt").read_bytes()
