"""int8 files keep a model's answers, and are exact on processors whose products of bytes saturate."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_models import SMALL, random_params, read_npz

import albert_jax
from albert_jax import model, onnx_runtime
from albert_jax.__main__ import main
from albert_jax.commands import export
from albert_jax.data.speech import symbols
from albert_jax.errors import UserError
from albert_jax.model import quantization

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from test_exports_folder import CASES, TEXTS, checkpoint

from albert_jax.exports import calibration, labelled, onnx, quantize


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return made_up.vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
def texts(tmp_path):
  """Returns a labelled file of 150 sentences."""
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
  [products] = onnx_runtime.session(graph.model("", {})).run(None, {"x": inputs})
  np.testing.assert_array_equal(products, inputs.astype(np.int64) @ values.astype(np.int64))
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
  """Returns the relative error of the last hidden state."""
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
  float_places = ("attention", "attention/context", "ffn/down", "projection")
  plain = error(cfg, params, quantize.Recipe(smoothing={}, float_places=float_places), uses)
  smooth = error(cfg, params, quantize.Recipe(float_places=float_places), uses)
  assert smooth < 0.75 * plain  # The rest is the rounding of matrices and embeddings.
  in_float32 = quantize.Recipe(smoothing={}, float_places=(*float_places, "ffn/up"))
  assert error(cfg, params, in_float32, uses) < 0.75 * plain


def test_the_noise_of_training_is_the_rounding_of_the_export():
  """One product, by training's function and by the exported graph: equal but for where a tie falls."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(48, 24)).astype(np.float32)
  x = (rng.normal(size=(200, 48)) * np.where(np.arange(48) == 7, 20, 1)).astype(np.float32)
  weight = onnx.Weight("ffn.up", kernel, np.zeros(24, np.float32), "ffn.up")
  use = quantize.Use(x.min(axis=0), x.max(axis=0), x.sum(axis=0), len(x), (weight,))
  graph = onnx.Graph()
  arithmetic = quantize.Int8(quantize.Recipe(), {"layer.0/ffn/up": use})
  graph.input("x", ("tokens", 48), np.float32)
  bytes_ = arithmetic.inputs(graph, "layer.0/ffn/up", "x")
  graph.output("y", arithmetic.product(graph, "layer.0/ffn/up", bytes_, weight), ("tokens", 24))
  [exported] = onnx_runtime.session(graph.model("", {})).run(None, {"x": x})
  trained = np.matmul(*quantization.rounded(jnp.asarray(x), jnp.asarray(kernel), "up"))
  exact = x @ kernel
  noise = np.linalg.norm(trained - exact)
  assert 0.002 < noise / np.linalg.norm(exact) < 0.02
  assert np.linalg.norm(trained - exported) < 0.1 * noise


def test_each_use_of_a_shared_matrix_has_a_scale_and_the_matrix_is_stored_once():
  cfg, params = with_outlier()
  uses = quantize.calibrate(cfg, params, batches(cfg, 4, seed=1))
  graph = onnx.build(cfg, params, arithmetic=quantize.Int8(quantize.Recipe(), uses)).graph
  names = [tensor.name for tensor in graph.initializer]
  assert sum(name.endswith("ffn/up/scale") for name in names) == cfg.num_hidden_layers
  assert sum(name.endswith("ffn.up.kernel.bytes") for name in names) == 1
  assert sum(len(tensor.raw_data) for tensor in graph.initializer) < 0.45 * 4 * albert_jax.param_count(params)


def test_gated_layers_and_low_rank_differences():
  cfg = dataclasses.replace(
    SMALL, arch="modern", share="matrices", layer_rank=2, hidden_size=48, intermediate_size=64, num_attention_heads=4
  )
  params = jax.tree.map(lambda x: x * np.float32(0.15), random_params(cfg, ("pooler",)))
  uses = quantize.calibrate(cfg, params, batches(cfg, 16, seed=1))
  graph = onnx.build(cfg, params, arithmetic=quantize.Int8(quantize.Recipe(), uses)).graph
  names = [tensor.name for tensor in graph.initializer]
  assert names.count("ffn.gate.kernel.bytes") == 1
  assert sum(name.endswith("gate.a") for name in names) == cfg.num_hidden_layers
  assert error(cfg, params, quantize.Recipe(), uses) < 0.05


def test_the_base_model_with_all_heads_takes_less_than_12_megabytes():
  cfg = albert_jax.VARIANTS["base"]
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), model.shapes(cfg))
  observed = quantize.Observed()
  onnx.build(cfg, params, arithmetic=observed)
  uses = {}
  for name, weights in observed.weights.items():
    ones = np.ones(len(weights[0].kernel))
    uses[name] = quantize.Use(-ones, ones, 0 * ones, 1, tuple(weights))
  graph = onnx.build(cfg, params, arithmetic=quantize.Int8(quantize.Recipe(), uses))
  quantize.compact(graph)
  assert graph.ByteSize() < 12e6


def test_short_names_change_no_output():
  cfg, params = with_outlier()
  [batch] = batches(cfg, 1, seed=1)
  graph = onnx.build(cfg, params, arithmetic=quantize.Int8(quantize.Recipe(), quantize.calibrate(cfg, params, [batch])))
  before, size = onnx_runtime.run(onnx_runtime.session(graph), batch), graph.ByteSize()
  quantize.compact(graph)
  assert graph.ByteSize() < size
  after = onnx_runtime.run(onnx_runtime.session(graph), batch)
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(value, after[name])


def test_scales_are_what_float16_holds_and_never_smaller():
  scale = np.abs(np.random.default_rng(0).normal(size=1000) * 10.0 ** -np.arange(1000).clip(max=9)).astype(np.float32)
  above = quantize.float16_above(scale)
  assert np.array_equal(above, above.astype(np.float16).astype(np.float32))
  assert np.all(above >= scale) and np.all(above > 0)
  assert np.all(above[scale > 1e-4] <= 1.001 * scale[scale > 1e-4])


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
  float32, int8 = (albert_jax.pipeline(None, out, **options)(TEXTS) for options in ({}, {"backend": "onnx"}))
  scores = [[row["scores"]["good"] for row in rows] for rows in (float32, int8)]
  np.testing.assert_allclose(*scores, atol=0.05)
  assert scores[0] != pytest.approx(scores[1], abs=1e-6)  # It was the int8 file, which rounds.


def test_a_model_that_loses_too_much_is_not_written(tmp_path, vocabulary, texts, monkeypatch):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  monkeypatch.setattr(calibration, "score", lambda *args: ("accuracy", 80.0, 77.5))
  with pytest.raises(UserError, match=r"loses more than --max_loss=0.5 points of accuracy .*2\.50.*--max_loss=2\.6"):
    albert_jax.export(source, tmp_path / "out", formats=(), quantize="int8", calibration=str(texts))
  assert not (tmp_path / "out").exists()


def squad_file(path, source=None):
  """Writes 70 questions of SQuAD's form, with the answers of the model at `source`; without it they are hidden."""
  items = [{"question": "ba do?", "context": f"{text} gi ko."} for text in TEXTS[:3] * 24][
    :70
  ]  # Answers of punctuation score 0.
  answers = albert_jax.pipeline("answer", source)(items) if source else [None] * 70
  paragraphs = []
  for i, (item, answer) in enumerate(zip(items, answers, strict=True)):
    gold = [{"text": answer["answer"], "answer_start": answer["answers"][0]["start"]}] if answer else []
    qa = {"id": str(i), "question": item["question"], "answers": gold}
    paragraphs.append({"context": item["context"], "qas": [qa]})
  path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}), "utf-8")
  return path


def test_questions_in_rows_are_read_with_their_answers(tmp_path):
  answers = {"text": ["ba"], "answer_start": [0]}
  rows = [{"id": str(i), "question": "q?", "context": "ba do", "answers": answers} for i in range(3)]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "dev.jsonl").write_text(lines)
  (tmp_path / "dev.json").write_text(json.dumps(rows))
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "dev.parquet")
  for name in ("dev.jsonl", "dev.json", "dev.parquet"):
    examples = labelled.read(tmp_path / name, "answer")
    assert examples.metric == "F1" and len(examples.items) == 3
    assert examples.percent([0, 1], [{"answer": "ba"}, {"answer": "do"}]) == 50
  (tmp_path / "texts.jsonl").write_text('{"question": "q?", "context": "ba do"}\n')
  assert labelled.read(tmp_path / "texts.jsonl", "answer") is None


@pytest.mark.parametrize("name", ["tag", "answer"])
def test_labels_of_words_and_of_questions_measure_f1(name, tmp_path, vocabulary, capsys):
  """The labels are the model's own answers; those of punctuation alone score 0 by SQuAD's rules."""
  source = checkpoint(tmp_path / "run", vocabulary, **CASES[name])
  if name == "answer":
    path = squad_file(tmp_path / "dev.json", source)
  else:
    path = tmp_path / "dev.conll"
    words = [text.replace(".", "").split() for text in TEXTS] * 18
    entities = [row["entities"] for row in albert_jax.pipeline("tag", source)([{"tokens": row} for row in words])]
    path.write_text("".join(_conll(*pair) for pair in zip(words, entities, strict=True)), "utf-8")
  arguments = [f"--checkpoint={source}", f"--out={tmp_path / 'out'}", "--formats=onnx", "--quantize=int8"]
  assert main(["export", *arguments, f"--calibration={path}", "--max_loss=100"]) == 0
  line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("int8: "))
  before, after = map(float, line.removeprefix("int8: F1 ").split(" (")[0].split(" on ")[0].split(" -> "))
  assert before == 100 if name == "tag" else 50 < before < 100
  assert before / 2 < after <= 100
  assert line.endswith("on 36 held-out rows" if name == "tag" else "on 35 held-out rows")


def _conll(words, entities):
  tags, start = [], 0
  for word in words:
    inside = next((e for e in entities if e["start"] <= start < e["end"]), None)
    tags.append("O" if inside is None else ("B-" if inside["start"] == start else "I-") + inside["type"])
    start += len(word) + 1
  return "".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n"


def test_labels_are_read_as_training_reads_them(tmp_path, vocabulary):
  case = CASES["classify"] | {"labels": ("false", "true")}
  source = checkpoint(tmp_path / "run", vocabulary, **case)
  rows = list(enumerate(TEXTS * 18))
  table, lines = tmp_path / "dev.csv", tmp_path / "dev.jsonl"
  table.write_text("text,label\n" + "".join(f'"{text}",{i % 2 == 0}\n' for i, text in rows), "utf-8")
  lines.write_text("".join(json.dumps({"text": text, "label": i % 2 == 0}) + "\n" for i, text in rows))
  for file in (table, lines):
    report = albert_jax.export(
      source, tmp_path / file.name[-3:], formats=(), quantize="int8", calibration=str(file), max_loss=100.0
    )["int8"]
    assert report["metric"] == "accuracy"


def test_numbers_and_several_labels_without_labels_are_compared_with_those_of_float32():
  logits = np.random.default_rng(0).normal(size=(50, 3))
  reference = [{"logits": row.astype(np.float32)} for row in logits]
  noisy = [{"logits": (row + np.sin(9 * row)).astype(np.float32)} for row in logits]
  for kind, columns, least, most in (("regression", 1, 50, 95), ("multilabel", 3, 10, 95)):
    rows, exact = ([{"logits": row["logits"][:columns]} for row in out] for out in (noisy, reference))
    _, float_score, int8_score = calibration.score("classify", kind, [], None, rows, exact)
    assert float_score == 100 and least < int8_score < most
    assert calibration.score("classify", kind, [], None, exact, exact)[2] == pytest.approx(100)


def test_mistakes_in_the_calibration_file_are_one_line(tmp_path, vocabulary, texts):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  few = tmp_path / "few.txt"
  few.write_text("ba do\n" * 20)
  lines = tmp_path / "lines.txt"
  lines.write_text("ba do\n" * 80)
  other = tmp_path / "other.jsonl"
  other.write_text(texts.read_text().replace('"good"', '"fine"'))
  mistakes = {
    "20 texts": {"calibration": str(few)},
    "has the label 'fine'": {"calibration": str(other)},
    "choose with --fields=A[,B]": {"calibration": str(texts), "fields": "sentence"},
    "expected an object with the fields text, stars": {"calibration": str(texts), "label": "stars"},
    "leave --label out": {"calibration": str(lines), "label": "stars"},
    "max_loss=nan": {"calibration": str(texts), "max_loss": math.nan},
    "--fields": {"calibration": str(texts), "fields": ""},
    "absent.jsonl": {"calibration": str(tmp_path / "absent.jsonl")},
    "max_loss": {"calibration": str(texts), "max_loss": -1.0},
  }
  number = checkpoint(tmp_path / "number", vocabulary, **CASES["classify"] | {"labels": ()}, kind="regression")
  with pytest.raises(UserError, match='"bad" is no number; expected one a row') as caught:
    albert_jax.export(number, tmp_path / "out", formats=(), quantize="int8", calibration=str(texts))
  assert "\n" not in str(caught.value)
  for what, options in mistakes.items():
    with pytest.raises((UserError, OSError)) as caught:
      albert_jax.export(source, tmp_path / "out", formats=(), quantize="int8", **options)
    assert what in str(caught.value) and "\n" not in str(caught.value), what
  answers = checkpoint(tmp_path / "answers", vocabulary, **CASES["answer"])
  for what, options in {
    "hides the answers": {"calibration": str(squad_file(tmp_path / "hidden.json"))},
    "--fields=question has no effect": {
      "calibration": str(squad_file(tmp_path / "dev.json", answers)),
      "fields": "question",
    },
  }.items():
    with pytest.raises(UserError, match=what):
      albert_jax.export(answers, tmp_path / "out", formats=(), quantize="int8", **options)
  assert not (tmp_path / "out").exists()


def choice_file(path, count=70, **change):
  """Writes questions with two or three options, of which the first is right."""
  rows = [
    {"context": text, "question": "ba do?", "options": ["ba do", "gi", "la le li"][: 2 + i % 2], "label": 0, **change}
    for i, text in enumerate((TEXTS * count)[:count])
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
  return path


def test_multiple_choice_is_measured_by_its_accuracy(tmp_path, vocabulary, capsys):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["choose"])
  path, out = choice_file(tmp_path / "dev.jsonl"), tmp_path / "out"
  items = [json.loads(line) for line in path.read_text().splitlines()]
  answers = [row["choice"] for row in albert_jax.pipeline("choose", source)(items)]
  path.write_text("".join(json.dumps({**row, "label": i}) + "\n" for row, i in zip(items, answers, strict=True)))
  arguments = [f"--checkpoint={source}", f"--out={out}", "--formats=onnx", "--quantize=int8", f"--calibration={path}"]
  assert main(["export", *arguments, "--max_loss=20"]) == 0
  assert "int8: accuracy 100.00 -> " in (text := capsys.readouterr().out) and "on 35 held-out rows" in text
  scores = [
    [p for row in albert_jax.pipeline("choose", out, **options)(items) for p in row["scores"]]
    for options in ({}, {"backend": "onnx", "dtype": "int8"})
  ]
  np.testing.assert_allclose(*scores, atol=0.1)
  assert scores[0] != scores[1]
  for what, file in {
    "hides the answers": choice_file(tmp_path / "hidden.jsonl", label=None),
    "9 texts": choice_file(tmp_path / "few.jsonl", count=9),
    "expected an object with context": texts_file(tmp_path / "texts.jsonl"),
    "no file": tmp_path / "absent.jsonl",
  }.items():
    with pytest.raises(UserError, match=what):
      albert_jax.export(source, tmp_path / "other", formats=(), quantize="int8", calibration=str(file))
  assert not (tmp_path / "other").exists()


def texts_file(path):
  path.write_text('{"text": "ba do"}\n' * 80)
  return path


def test_a_change_of_a_score_is_told_in_words():
  assert export._change(0.43) == "int8 loses 0.43 points"
  assert export._change(-0.43) == "int8 is 0.43 points better"
  assert export._change(-0.001) == "no difference"


@pytest.fixture
def phonemes(tmp_path):
  """80 lines of words with phonemes."""
  rng = np.random.default_rng(0)
  path = tmp_path / "phonemes.jsonl"
  rows = [["".join(rng.choice(list("abdɪkˈlmnɔpʃtə"), 5)) for _ in range(rng.integers(1, 12))] for _ in range(80)]
  lines = [json.dumps({"words": row, "phonemes": row}, ensure_ascii=False) + "\n" for row in rows]
  path.write_text("".join(lines), "utf-8")
  return path


def plbert(path):
  """Returns a PL-BERT with a symbol table and heads, as a run leaves it."""
  cfg = dataclasses.replace(SMALL, vocab_size=178, max_position_embeddings=64)
  heads = {name: {"kernel": np.ones((12, n), np.float32), "bias": np.ones(n, np.float32)}
           for name, n in {"phoneme": 178, "word": 9}.items()}  # fmt: skip
  params = jax.tree.map(lambda x: x * np.float32(0.5), random_params(cfg, ())) | heads
  albert_jax.save(path, cfg, params, vocabulary=symbols.load("styletts2"))
  return path


def test_a_phoneme_encoder_is_calibrated_on_phonemes(tmp_path, phonemes, capsys):
  source, out = plbert(tmp_path / "run"), tmp_path / "out"
  arguments = ["export", f"--checkpoint={source}", f"--out={out}", "--formats=onnx", "--quantize=int8"]
  assert main([*arguments, f"--calibration={phonemes}", "--max_loss=5"]) == 0
  assert "int8: cosine of last_hidden_state" in capsys.readouterr().out
  assert (out / "onnx/model_int8.onnx").is_file() and (out / "symbols.json").is_file()
  lines = [" ".join(json.loads(line)["phonemes"]) for line in phonemes.read_text("utf-8").splitlines()]
  (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", "utf-8")
  table = symbols.load("styletts2")
  rows = calibration.read_phonemes(tmp_path / "lines.txt", table, 64)
  assert rows == calibration.read_phonemes(phonemes, table, 64)
  assert rows[0][0] == table.encode(lines[0])[:64].tolist() and max(len(ids) for ids, _ in rows) == 64


def test_calibration_of_a_phoneme_encoder_refuses_what_is_not_phonemes(tmp_path, phonemes, capsys):
  source = plbert(tmp_path / "run")
  (tmp_path / "chinese.txt").write_text("我们在这里\n" * 80, "utf-8")
  (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n' * 80)
  (tmp_path / "few.txt").write_text("həlˈoʊ\n" * 5, "utf-8")
  for what, options in {
    "100% of the characters are not in the model's symbol table": ["--calibration=chinese.txt"],
    "a line has no lists of strings": ["--calibration=texts.jsonl"],
    "5 texts": ["--calibration=few.txt"],
    "leave --fields out": ["--calibration=phonemes.jsonl", "--fields=phonemes"],
  }.items():
    options = [option.replace("--calibration=", f"--calibration={tmp_path}/") for option in options]
    assert main(["export", f"--checkpoint={source}", f"--out={tmp_path / 'out'}", "--quantize=int8", *options]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert what in error, error
  assert not (tmp_path / "out").exists()


@pytest.mark.realdata
@pytest.mark.slow
def test_int8_of_a_real_phoneme_encoder_is_near_its_reference(real_data):
  """Kokoro's encoder, calibrated on phonemes of Wikipedia, on other sentences whose outputs transformers computed."""
  cfg, params = albert_jax.load(real_data / "plbert_kokoro")
  table = symbols.load(real_data / "plbert_kokoro/vocab.json")
  golden = read_npz(real_data / "plbert_kokoro/golden.npz")
  rows = calibration.read_phonemes(real_data / "phonemes_en/dev.jsonl", table, 200)[:12]
  uses = quantize.calibrate(cfg, params, [calibration.batch_of([row]) for row in rows])
  session = onnx_runtime.session(onnx.build(cfg, params, arithmetic=quantize.Int8(quantize.Recipe(), uses)))
  batch = {name: golden[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
  batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
  is_token = golden["attention_mask"] == 1
  ours = onnx_runtime.run(session, batch)["last_hidden_state"][is_token]
  exact, theirs = (golden[name][is_token] for name in ("last_hidden_state", "last_hidden_state_int8_graph"))
  error, published = (np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (ours, theirs))
  assert error < published
  assert error < 0.09
