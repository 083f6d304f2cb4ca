"""int8 files keep a model's answers, and are exact on processors whose products of bytes saturate."""

import dataclasses
import json

import jax
import made_up
import numpy as np
import pytest
from small_models import SMALL, random_params

import albert_jax
from albert_jax import onnx_runtime
from albert_jax.__main__ import main
from albert_jax.errors import UserError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from test_exports_folder import CASES, TEXTS, checkpoint

from albert_jax.exports import onnx, quantize


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return made_up.vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
def texts(tmp_path):
  """A labelled file of 150 sentences."""
  lines = [sentence for document in made_up.documents(30, seed=3) for sentence in document][:150]
  path = tmp_path / "texts.jsonl"
  rows = [{"text": line, "label": ["bad", "good"][i % 2]} for i, line in enumerate(lines)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
  return path


def test_products_are_exact_where_pairs_of_bytes_saturate():
  """The largest activations at each column's largest weights of one sign, which overflow 16 bits in pairs of 8 bits."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(64, 16)).astype(np.float32)
  kernel[:2] = 5.0  # Two neighbours that are the largest of their columns.
  kernel[2:4] = -5.0
  values, _ = quantize.quantized(kernel, quantize.Recipe())
  inputs = np.concatenate([(values.T > 0) * 255, (values.T < 0) * 255, np.full((1, 64), 255)]).astype(np.uint8)
  graph = onnx.Graph()
  graph.input("x", ("rows", 64), np.uint8)
  graph.constant("w", values)
  graph.output("y", graph.node("MatMulInteger", "product", "x", "w"), ("rows", 16), np.int32)
  [found] = onnx_runtime.session(graph.model("", {})).run(None, {"x": inputs})
  np.testing.assert_array_equal(found, inputs.astype(np.int64) @ values.astype(np.int64))
  pairs = values.astype(int).reshape(32, 2, 16)
  assert np.maximum(pairs, 0).sum(axis=1).max() <= 128 and np.minimum(pairs, 0).sum(axis=1).min() >= -128


def test_pairs_keep_more_than_seven_bits():
  kernel = np.random.default_rng(0).normal(size=(768, 64)).astype(np.float32)

  def error(bits):
    values, scale = quantize.quantized(kernel, quantize.Recipe(bits=bits))
    return np.linalg.norm(values * scale - kernel) / np.linalg.norm(kernel)

  assert error("8") < error("pairs") < 0.8 * error("7")


def with_outlier(seed=0):
  """A model whose feed-forward part sees one channel that is far larger than the others, as trained models have."""
  cfg = dataclasses.replace(SMALL, hidden_size=48, intermediate_size=64, num_attention_heads=4, num_hidden_layers=6)
  params = jax.tree.map(lambda x: x * np.float32(0.15), random_params(cfg, ("pooler",), seed=seed))
  params["attention"]["norm"] = {"scale": np.ones(48, np.float32), "bias": np.zeros(48, np.float32)}
  params["attention"]["norm"]["bias"][7] = 150.0
  return cfg, params


def batches(cfg, count, seed):
  rng = np.random.default_rng(seed)
  for _ in range(count):
    ids = rng.integers(1, cfg.vocab_size, (1, int(rng.integers(4, 16))))
    yield {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}


def error(cfg, params, recipe, uses):
  """The relative error of the last hidden state."""
  exact = onnx_runtime.session(onnx.build(cfg, params))
  bytes_ = onnx_runtime.session(onnx.build(cfg, params, arithmetic=quantize.Int8(recipe, uses)))
  pairs = [
    [onnx_runtime.run(session, batch)["last_hidden_state"] for session in (bytes_, exact)]
    for batch in batches(cfg, 8, seed=2)
  ]
  return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs) / sum(np.sum(b**2) for _, b in pairs))


def test_smoothing_and_float32_places_reduce_the_error():
  cfg, params = with_outlier()
  uses = quantize.calibrate(cfg, params, batches(cfg, 16, seed=1))
  others = ("attention", "attention/context", "ffn/down", "projection")
  plain = error(cfg, params, quantize.Recipe(smoothing={}, float_places=others), uses)
  smooth = error(cfg, params, quantize.Recipe(float_places=others), uses)
  assert smooth < 0.75 * plain  # The rest is the rounding of matrices and embeddings.
  in_float32 = quantize.Recipe(smoothing={}, float_places=(*others, "ffn/up"))
  assert error(cfg, params, in_float32, uses) < 0.75 * plain


def test_each_use_of_a_shared_matrix_has_a_scale_and_the_matrix_is_stored_once():
  cfg, params = with_outlier()
  uses = quantize.calibrate(cfg, params, batches(cfg, 4, seed=1))
  graph = onnx.build(cfg, params, arithmetic=quantize.Int8(quantize.Recipe(), uses)).graph
  names = [tensor.name for tensor in graph.initializer]
  assert sum(name.endswith("ffn/up/scale") for name in names) == cfg.num_hidden_layers
  assert sum(name.endswith("ffn.up.kernel.bytes") for name in names) == 1
  assert sum(len(tensor.raw_data) for tensor in graph.initializer) < 0.45 * 4 * albert_jax.param_count(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrained", "tag", "answer", "embed"])
def test_a_folder_has_an_int8_file_that_answers_alike(name, tmp_path, vocabulary, texts):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES[name])
  if name == "answer":
    rows = [{"text": "ba do", "label": row["text"]} for row in map(json.loads, texts.read_text().splitlines())]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
  fields = "text,label" if name == "answer" else "text"
  report = albert_jax.export(source, tmp_path / "out", formats=("onnx",), quantize="int8", calibration=str(texts),
                             max_loss=10.0, fields=fields)["int8"]  # fmt: skip
  assert report["loss"] <= 10 and report["rows"] == 75
  if name == "embed":
    exact, bytes_ = (
      np.array([row["embedding"] for row in albert_jax.pipeline("embed", tmp_path / "out", **options)(TEXTS)])
      for options in ({}, {"backend": "onnx", "dtype": "int8"})
    )
    assert np.min(np.sum(exact * bytes_, axis=1)) > 0.99


def test_the_command_quantizes_and_the_pipeline_takes_the_int8_file(tmp_path, vocabulary, texts, capsys):
  source, out = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"]), tmp_path / "out"
  arguments = [f"--checkpoint={source}", f"--out={out}", "--formats=onnx", "--quantize=int8", f"--calibration={texts}"]
  assert main(["export", *arguments, "--max_loss=5"]) == 0
  assert "int8: accuracy" in capsys.readouterr().out
  here, there = (albert_jax.pipeline(None, out, **options)(TEXTS) for options in ({}, {"backend": "onnx"}))
  scores = [[row["scores"]["good"] for row in rows] for rows in (here, there)]
  np.testing.assert_allclose(*scores, atol=0.05)
  assert scores[0] != pytest.approx(scores[1], abs=1e-6)  # It was the int8 file, which rounds.


def test_a_model_that_loses_too_much_is_not_written(tmp_path, vocabulary, texts, monkeypatch):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  monkeypatch.setattr(quantize, "score", lambda *args: ("accuracy", 80.0, 77.5))
  with pytest.raises(UserError, match=r"loses more than --max_loss=0.5 points of accuracy .*2\.50.*--max_loss=2\.6"):
    albert_jax.export(source, tmp_path / "out", formats=(), quantize="int8", calibration=str(texts))
  assert not (tmp_path / "out").exists()


def test_mistakes_in_the_calibration_file_are_one_line(tmp_path, vocabulary, texts):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  few = tmp_path / "few.txt"
  few.write_text("ba do\n" * 20)
  other = tmp_path / "other.jsonl"
  other.write_text(texts.read_text().replace('"good"', '"fine"'))
  mistakes = {
    "20 texts": {"calibration": str(few)},
    "has the label 'fine'": {"calibration": str(other)},
    "sentence": {"calibration": str(texts), "fields": "sentence"},
    "--fields": {"calibration": str(texts), "fields": ""},
    "absent.jsonl": {"calibration": str(tmp_path / "absent.jsonl")},
    "max_loss": {"calibration": str(texts), "max_loss": -1.0},
  }
  for what, options in mistakes.items():
    with pytest.raises((UserError, OSError)) as caught:
      albert_jax.export(source, tmp_path / "out", formats=(), quantize="int8", **options)
    assert what in str(caught.value) and "\n" not in str(caught.value), what
  assert not (tmp_path / "out").exists()
