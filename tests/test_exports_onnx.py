"""ONNX graphs equal the model they are built from, whatever the model shares, and hold each matrix once."""

import dataclasses

import jax
import numpy as np
import pytest
from small_models import SMALL, random_params, read_npz

import albert_jax
from albert_jax import model, onnx_runtime
from albert_jax.errors import UserError
from albert_jax.model import task_heads
from albert_jax.tasks import heads, retrieve
from albert_jax.tasks.squad import heads as squad_heads
from albert_jax.tasks.squad.answers import Search
from albert_jax.tasks.summarize import task as summarize

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from albert_jax.exports import onnx as export_onnx  # noqa: E402
from albert_jax.exports import quantize  # noqa: E402

LENGTHS = (7, 1, 12, 16)


def run(graph, feeds):
  onnx.checker.check_model(graph, full_check=True)
  session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
  names = [output.name for output in session.get_outputs()]
  input_names = {value.name for value in session.get_inputs()}
  feeds = {name: np.asarray(value, np.int64) for name, value in feeds.items() if name in input_names}
  return dict(zip(names, session.run(names, feeds), strict=True))


def batch_of(cfg, lengths=LENGTHS, seed=0):
  """Rows of several lengths, padded to the longest."""
  rng, longest = np.random.default_rng(seed), max(lengths)
  mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int32)
  ids = rng.integers(1, cfg.vocab_size, (len(lengths), longest)).astype(np.int32)
  types = (np.arange(longest)[None] >= np.array(lengths)[:, None] // 2).astype(np.int32)
  return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types * mask}


def params_of(cfg, parts=model.OPTIONAL, classes=None, seed=0):
  """Parameters of a size at which layers do something and no output explodes."""
  params = random_params(cfg, parts, classes, seed)
  return jax.tree.map(lambda x: (x * 0.3).astype(np.float32), params)


def assert_close(expected, actual, batch=None):
  expected = np.asarray(expected)
  if batch is not None:
    keep = batch["attention_mask"].astype(bool)
    expected, actual = expected[keep], actual[keep]
  np.testing.assert_allclose(expected, actual, atol=1e-4, rtol=1e-4)


SHARING = [
  {},
  {"share": "none", "hidden_act": "gelu"},
  {"share": "attention", "num_hidden_groups": 2, "hidden_act": "relu"},
  {"share": "ffn", "inner_group_num": 2, "embedding_size": 12},
  {"share": "matrices", "num_hidden_groups": 2, "inner_group_num": 2},
  {"num_hidden_layers": 5, "num_hidden_groups": 3, "inner_group_num": 2},
  {"num_hidden_layers": 4, "unshared_ends": 1},
  {"share": "matrices", "layer_rank": 2, "inner_group_num": 2},
  {"layer_rank": 2},
  {"arch": "modern", "num_hidden_layers": 5},
  {"arch": "modern", "share": "matrices", "layer_rank": 3, "num_hidden_groups": 2, "inner_group_num": 2},
]


@pytest.mark.parametrize("fields", SHARING)
def test_a_graph_equals_the_model_whatever_is_shared(fields):
  cfg = dataclasses.replace(SMALL, **fields)
  params, batch = params_of(cfg), batch_of(cfg)
  actual, expected = run(export_onnx.build(cfg, params), batch), albert_jax.apply(cfg, params, batch)
  assert_close(expected["sequence_output"], actual["last_hidden_state"], batch)
  assert_close(expected["mlm_logits"], actual["logits"], batch)
  assert_close(expected["pooled_output"], actual["pooler_output"])
  assert_close(expected["sop_logits"], actual["sop_logits"])


@pytest.mark.parametrize("fields", SHARING)
def test_every_parameter_is_stored_once(fields):
  cfg = dataclasses.replace(SMALL, **fields)
  params = params_of(cfg)
  tensors = export_onnx.build(cfg, params).graph.initializer
  stored = sum(int(np.prod(x.dims)) for x in tensors if x.data_type == onnx.TensorProto.FLOAT)
  assert stored <= albert_jax.param_count(params) + 4  # And a few constants.


def test_with_one_type_of_tokens_all_numbers_of_types_are_that_one():
  cfg = dataclasses.replace(SMALL, type_vocab_size=1)
  params, batch = params_of(cfg), batch_of(cfg)
  actual = run(export_onnx.build(cfg, params), batch)["last_hidden_state"]
  one_type = {name: value for name, value in batch.items() if name != "token_type_ids"}
  for inputs in (batch, one_type):
    expected = jax.jit(lambda inputs: albert_jax.apply(cfg, params, inputs)["sequence_output"])(inputs)
    assert_close(expected, actual, batch)


def test_a_row_without_padding_is_the_same_alone_and_in_a_batch():
  params, batch = params_of(SMALL), batch_of(SMALL)
  graph = export_onnx.build(SMALL, params)
  batched = run(graph, batch)["last_hidden_state"]
  for row, length in enumerate(LENGTHS):
    alone = run(graph, {name: value[row : row + 1, :length] for name, value in batch.items()})
    np.testing.assert_allclose(batched[row, :length], alone["last_hidden_state"][0], atol=1e-4)


def test_a_row_of_padding_alone_is_finite():
  params, batch = params_of(SMALL), batch_of(SMALL, (0, 5))
  assert np.isfinite(run(export_onnx.build(SMALL, params), batch)["last_hidden_state"]).all()


def test_a_classifier_of_rows_tokens_and_choices():
  rows = params_of(SMALL, ("pooler",), {"classifier": 3})
  batch = batch_of(SMALL)
  pooled = albert_jax.apply(SMALL, rows, batch)["pooled_output"]
  assert_close(heads.affine(rows["classifier"], pooled), run(export_onnx.build(SMALL, rows), batch)["logits"])

  tokens = params_of(SMALL, (), {"classifier": 3})
  hidden = albert_jax.apply(SMALL, tokens, batch)["sequence_output"]
  logits = run(export_onnx.build(SMALL, tokens, task="tag"), batch)["logits"]
  assert_close(heads.affine(tokens["classifier"], hidden), logits, batch)

  choices = params_of(SMALL, ("pooler",), {"classifier": 1})
  logits = run(export_onnx.build(SMALL, choices, task="choose"), {k: v.reshape(2, 2, -1) for k, v in batch.items()})
  pooled = albert_jax.apply(SMALL, choices, batch)["pooled_output"]
  assert_close(np.asarray(heads.affine(choices["classifier"], pooled)).reshape(2, 2), logits["logits"])


def test_spans_and_sentences():
  params, batch = params_of(SMALL, (), {"span": 2}), batch_of(SMALL)
  params["sentence"] = {"kernel": params["span"]["kernel"][:, :1], "bias": params["span"]["bias"][:1]}
  actual = run(export_onnx.build(SMALL, params), batch)
  expected = heads.affine(params["span"], albert_jax.apply(SMALL, params, batch)["sequence_output"])
  assert_close(expected[..., 0], actual["start_logits"], batch)
  assert_close(expected[..., 1], actual["end_logits"], batch)
  assert_close(summarize.logits_BL(SMALL, params, batch), actual["sentence_logits"], batch)


@pytest.mark.parametrize("lengths", [LENGTHS, (3, 2)])
def test_the_beam_head(lengths):
  params, batch = params_of(SMALL, (), {"squad_v2": 0}), batch_of(SMALL, lengths)
  batch["allowed"] = batch["attention_mask"] * (batch["token_type_ids"] | (np.arange(max(lengths)) == 0)[None])
  hidden = albert_jax.apply(SMALL, params, batch)["sequence_output"]
  expected = squad_heads.beam_spans(params["squad_v2"], hidden, batch, Search(start_n_top=5, end_n_top=5))
  actual = run(export_onnx.build(SMALL, params, task="answer"), batch)
  assert_close(expected["null"], actual["null"])
  keep = np.asarray(expected["start_score"]) > -1e9  # Positions that are not allowed have no order.
  np.testing.assert_array_equal(np.asarray(expected["start_index"])[keep], actual["start_index"][keep])
  assert_close(np.asarray(expected["start_score"])[keep], actual["start_score"][keep])
  keep = (np.asarray(expected["end_score"]) > -1e9) & keep[:, :, None]
  assert_close(np.asarray(expected["end_score"])[keep], actual["end_score"][keep])
  np.testing.assert_array_equal(np.asarray(expected["end_index"])[keep], actual["end_index"][keep])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_embeddings(pooling):
  params, batch = params_of(SMALL, ()), batch_of(SMALL)
  batch["token_type_ids"] *= 0
  actual = run(export_onnx.build(SMALL, params, pooling=pooling), batch)["sentence_embedding"]
  assert_close(retrieve.embeddings_BD(SMALL, pooling, params, batch), actual)


def test_rows_longer_than_the_window_of_local_attention():
  cfg = dataclasses.replace(SMALL, arch="modern", max_position_embeddings=300)
  params, batch = params_of(cfg), batch_of(cfg, (300, 70, 170))
  actual, expected = run(export_onnx.build(cfg, params), batch), albert_jax.apply(cfg, params, batch)
  assert_close(expected["sequence_output"], actual["last_hidden_state"], batch)


@pytest.mark.parametrize("fields", [{}, {"arch": "modern"}])
def test_packed_rows(fields):
  cfg = dataclasses.replace(SMALL, **fields)
  params, batch = params_of(cfg), batch_of(cfg, (12, 12))
  batch["segment_ids"] = np.array([[1] * 5 + [2] * 6 + [0], [1] * 12], np.int32)
  batch["position_ids"] = np.array([[*range(5), *range(6), 0], [*range(12)]], np.int32)
  batch["cls_positions"] = np.array([[0, 5], [0, 0]], np.int32)
  actual, expected = run(export_onnx.build(cfg, params, packed=True), batch), albert_jax.apply(cfg, params, batch)
  real = {"attention_mask": batch["segment_ids"] > 0}
  assert_close(expected["sequence_output"], actual["last_hidden_state"], real)
  assert_close(expected["pooled_output"], actual["pooler_output"])
  assert_close(expected["sop_logits"], actual["sop_logits"])


def test_what_cannot_be_built_is_one_line():
  params = params_of(SMALL, ("pooler",), {"classifier": 2})
  for options in ({"task": "translate"}, {"pooling": "max"}, {"packed": True}):
    with pytest.raises(UserError) as error:
      export_onnx.build(SMALL, params, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("variant", "megabytes"), [("base", 50), pytest.param("xlarge", 240, marks=pytest.mark.slow)])
def test_a_large_model_with_all_heads_is_a_small_file(variant, megabytes):
  cfg = albert_jax.VARIANTS[variant]
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), model.shapes(cfg))
  for head, classes in {"classifier": 3, "span": 2}.items():
    shapes = task_heads.HEADS[head](cfg.hidden_size, classes)
    params[head] = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
  assert export_onnx.build(cfg, params).ByteSize() < megabytes * 1e6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openvino_computes_the_same_in_float32_and_in_int8(tmp_path):
  openvino = pytest.importorskip("openvino", reason="OpenVINO opens the file: pip install openvino")
  params = random_params(SMALL, ("pooler", "mlm", "sop"))
  ids = np.random.default_rng(0).integers(1, SMALL.vocab_size, (3, 14))
  mask = np.ones_like(ids)
  mask[1:, 9:] = 0
  batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
  uses = quantize.calibrate(SMALL, params, [batch])
  for arithmetic in (None, quantize.Int8(quantize.Recipe(), uses)):
    graph = export_onnx.build(SMALL, params, arithmetic=arithmetic)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    outputs = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU", exact)(batch)
    for name, value in onnx_runtime.run(onnx_runtime.session(graph), batch).items():
      of_tokens = value.shape[:2] == mask.shape
      difference = np.abs(outputs[name] - value)[mask > 0] if of_tokens else np.abs(outputs[name] - value)
      assert difference.max() < 1e-4, name


@pytest.mark.realdata
def test_a_trained_model_of_base_size_on_real_sentences(real_data):
  """Kokoro's encoder: our graph, padded and batched, against transformers' own numbers."""
  cfg, params = albert_jax.load(real_data / "plbert_kokoro")
  golden = read_npz(real_data / "plbert_kokoro" / "golden.npz")
  batch = {name: golden[name] for name in ("input_ids", "attention_mask")}
  batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
  graph = export_onnx.build(cfg, params)
  assert_close(golden["last_hidden_state"], run(graph, batch)["last_hidden_state"], batch)
  for row, length in enumerate(batch["attention_mask"].sum(axis=1)):
    alone = run(graph, {name: value[row : row + 1, :length] for name, value in batch.items()})
    np.testing.assert_allclose(golden["last_hidden_state"][row, :length], alone["last_hidden_state"][0], atol=1e-4)
