"""An exported folder opens everywhere, says what it holds, and is never half written or wrong."""

import importlib.util
import json
import os
import pathlib
import re
import stat
import subprocess
import sys
import warnings

import jax
import made_up
import numpy as np
import pytest

import albert_jax
from albert_jax import convert, model, onnx_runtime, paths
from albert_jax.__main__ import main
from albert_jax.errors import UserError
from albert_jax.model import task_heads
from albert_jax.tasks.base import about

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from albert_jax.exports import folder as export_folder  # noqa: E402
from albert_jax.exports.onnx import build  # noqa: E402
from albert_jax.exports.outputs import outputs  # noqa: E402

TEXTS = [
  "ba do gi.",
  "Fa ke li mo nu, pa ri so tu ba.",
  "do",
  "ki ki (ki) - la le li lo lu ma me mi mo mu na ne ni no.",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return made_up.vocabulary(tmp_path_factory.mktemp("vocabulary"))


def checkpoint(path, vocabulary, task, labels=(), head=None, parts=(), architecture=None, **options):
  """Returns a checkpoint of two narrow layers for a task, with random weights."""
  cfg = model.AlbertConfig(
    vocab_size=400, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
  )  # fmt: skip
  params = model.init(cfg, jax.random.key(0))
  params = {name: part for name, part in params.items() if name not in model.OPTIONAL or name in parts}
  if head:
    rng = np.random.default_rng(0)
    size = max(len(labels), {"span": 2}.get(head, 1))
    params[head] = {"kernel": rng.normal(size=(32, size)).astype(np.float32), "bias": np.ones(size, np.float32)}
  convert.save(path, cfg, params, vocabulary=vocabulary, architecture=architecture,
               extra=about(task, labels, **options) if task else None)  # fmt: skip
  return path


CASES = {
  "pretrained": {"task": "", "parts": ("pooler", "mlm", "sop")},
  "classify": {"task": "classify", "labels": ("bad", "good"), "head": "classifier", "parts": ("pooler",)},
  "tag": {"task": "tag", "labels": ("O", "B-X", "I-X"), "head": "classifier",
          "architecture": "AlbertForTokenClassification"},
  "answer": {"task": "answer", "head": "span"},
  "choose": {"task": "choose", "head": "classifier", "parts": ("pooler",), "architecture": "AlbertForMultipleChoice"},
  "embed": {"task": "embed", "pooling": "mean", "seq_length": 48, "architecture": "AlbertModel"},
}  # fmt: skip
INPUTS = {
  "pretrained": [f"{text} [MASK]" for text in TEXTS],
  "classify": TEXTS,
  "tag": TEXTS,
  "answer": [{"question": "ba do?", "context": text} for text in TEXTS],
  "choose": [{"context": text, "options": ["ba do", "gi", "la le li"][: 2 + i % 2]} for i, text in enumerate(TEXTS)],
  "embed": TEXTS,
}


@pytest.fixture(
  scope="module",
  params=[name if name in ("pretrained", "tag") else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def exported(request, tmp_path_factory, vocabulary):
  """Returns (name, checkpoint, exported folder, report)."""
  place = tmp_path_factory.mktemp(request.param)
  source = checkpoint(place / "run", vocabulary, **CASES[request.param])
  return request.param, source, place / "out", albert_jax.export(source, place / "out")


def test_every_format_is_written_compared_and_readable_by_all(exported):
  _, _, out, report = exported
  assert {"onnx/model.onnx", "stablehlo/model.jax", "README.md", "tokenizer.json", "config.json"} <= report[
    "files"
  ].keys()
  assert report["difference"] < 1e-4
  umask = os.umask(0)
  os.umask(umask)
  for file in out.rglob("*"):
    assert stat.S_IMODE(file.stat().st_mode) == (0o777 if file.is_dir() else 0o666) & ~umask, file


def test_the_onnx_backend_answers_as_the_model_does(exported):
  name, source, out, _ = exported
  model, graph = albert_jax.pipeline(None, source), albert_jax.pipeline(None, out, backend="onnx")
  assert_alike(model(INPUTS[name]), graph(INPUTS[name]))


def assert_alike(a, b):
  """Equal but for the rounding of numbers."""
  if isinstance(a, dict):
    assert a.keys() == b.keys()
    for key in a:
      assert_alike(a[key], b[key])
  elif isinstance(a, list):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
      assert_alike(x, y)
  elif isinstance(a, float):
    assert a == pytest.approx(b, abs=1e-4)
  else:
    assert a == b


@pytest.mark.slow
def test_transformers_opens_it_without_a_warning_and_cuts_texts_alike(exported, caplog):
  transformers = pytest.importorskip("transformers")
  _, _, out, _ = exported
  name = transformers.AutoConfig.from_pretrained(out).architectures[0]
  with warnings.catch_warnings(record=True) as caught, caplog.at_level("WARNING"):
    warnings.simplefilter("always")
    _, report = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
    tokenizers = [
      transformers.AutoTokenizer.from_pretrained(out),
      transformers.AlbertTokenizerFast.from_pretrained(out),
    ]
  assert not caught and not caplog.records and not any(report.values())
  ours = convert.load_tokenizer(out)
  for text in (*TEXTS, "BA ``do`` gi", "ba  do\tgi 1,000"):
    # The class AlbertTokenizer has a rule of its own for quotes, whatever tokenizer.json says.
    for tokenizer in tokenizers[: 1 if "`" in text else 2]:
      assert tokenizer(text)["input_ids"] == [2, *ours.encode(text), 3], (tokenizer, text)


OPTIMUM = {  # its class, and the outputs that it passes on
  "pretrained": ("MaskedLM", ["logits"]),
  "classify": ("SequenceClassification", ["logits"]),
  "tag": ("TokenClassification", ["logits"]),
  "answer": ("QuestionAnswering", ["start_logits", "end_logits"]),
  "choose": ("MultipleChoice", ["logits"]),
  "embed": ("FeatureExtraction", ["last_hidden_state"]),
}


@pytest.mark.slow
def test_optimum_opens_it(exported):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of the library itself.
    try:
      from optimum import onnxruntime as optimum
    except ImportError as error:  # optimum-onnx 0.1.0 does not import beside transformers 5.
      pytest.skip(f"needs optimum-onnx and transformers 4: {str(error)[:80]}")
    name, source, out, _ = exported
    kind, names = OPTIMUM[name]
    opened = getattr(optimum, f"ORTModelFor{kind}").from_pretrained(out, subfolder="onnx", file_name="model.onnx")
    cfg, params = convert.load(source)
    for lengths in ((7,), (20, 3)):  # A text alone, and two in a batch with padding.
      shape = (len(lengths), 2, max(lengths)) if name == "choose" else (len(lengths), max(lengths))
      ids = np.random.default_rng(len(lengths)).integers(5, 400, shape)
      mask = np.broadcast_to(np.arange(max(lengths)) < np.array(lengths).reshape(-1, *[1] * (ids.ndim - 1)), shape)
      batch = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
      expected = outputs(cfg, params, batch, task=CASES[name]["task"])
      actual = opened(**batch)
      for output in names:
        real = np.asarray(expected[output])
        rows = mask if real.shape[: mask.ndim] == mask.shape else ...
        np.testing.assert_allclose(np.asarray(actual[output])[rows], real[rows], atol=1e-4, err_msg=output)


def test_the_card_says_what_it_is(exported):
  yaml = pytest.importorskip("yaml")
  name, source, out, _ = exported
  text = (out / "README.md").read_text("utf-8")
  _, header, body = text.split("---\n", 2)
  fields = yaml.safe_load(header)
  assert "albert" in fields["tags"] and "onnx" in fields["tags"]
  assert f"{albert_jax.param_count(convert.load(source)[1]):,} parameters" in body
  assert fields["pipeline_tag"] == {
    "pretrained": "fill-mask", "classify": "text-classification", "tag": "token-classification",
    "answer": "question-answering", "choose": "multiple-choice", "embed": "sentence-similarity",
  }[name]  # fmt: skip


@pytest.mark.slow
def test_sentence_transformers_makes_the_same_vectors(tmp_path, vocabulary):
  library = pytest.importorskip("sentence_transformers")
  for pooling in ("mean", "cls"):
    source = checkpoint(tmp_path / pooling, vocabulary, **CASES["embed"] | {"pooling": pooling})
    albert_jax.export(source, tmp_path / f"{pooling}.out", formats=())
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of the library itself.
      vectors = library.SentenceTransformer(str(tmp_path / f"{pooling}.out"), device="cpu").encode(TEXTS)
    expected = [row["embedding"] for row in albert_jax.pipeline("embed", source)(TEXTS)]
    np.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_pooling_makes_sentence_vectors_of_any_encoder(tmp_path, vocabulary):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["pretrained"])
  report = albert_jax.export(source, tmp_path / "out", pooling="mean", formats=("onnx",))
  assert {"modules.json", "1_Pooling/config.json", "2_Normalize/config.json"} <= report["files"].keys()
  for pooling in ("mean", "cls"):  # The file has an output for the first alone.
    original = albert_jax.pipeline("embed", source, pooling=pooling)(TEXTS)
    assert_alike(original, albert_jax.pipeline("embed", tmp_path / "out", backend="onnx", pooling=pooling)(TEXTS))


@pytest.mark.parametrize("case", ["pretrained", "classify"])
def test_a_given_pooling_is_recorded_in_the_folder(tmp_path, vocabulary, case):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES[case])
  albert_jax.export(source, tmp_path / "out", pooling="cls", formats=())
  assert json.loads((tmp_path / "out/1_Pooling/config.json").read_text())["pooling_mode_cls_token"]
  facts = convert.about(source)
  assert convert.about(tmp_path / "out") == facts | {"pooling": "cls"}
  model = albert_jax.pipeline("embed", tmp_path / "out")
  assert model.options["pooling"] == "cls"
  assert_alike(albert_jax.pipeline("embed", source, pooling="cls")(TEXTS), model(TEXTS))


@pytest.mark.parametrize("task", ["classify", "embed"])
def test_text_embeddings_inference_reads_the_folder(tmp_path, vocabulary, task):
  """Its ONNX Runtime backend is a server in Rust; this reads the files with the fields and types that it requires."""
  albert_jax.export(checkpoint(tmp_path / "run", vocabulary, **CASES[task]), tmp_path / "out", formats=("onnx",))

  def fields(name, required):
    values = json.loads((tmp_path / "out" / name).read_text("utf-8"))
    assert {field: type(values.get(field)) for field in required} == required, name
    return values

  sizes = dict.fromkeys(("max_position_embeddings", "pad_token_id", "hidden_size", "num_hidden_layers"), int)
  config = fields("config.json", {"architectures": list, "model_type": str} | sizes)
  assert (tmp_path / "out" / "tokenizer.json").is_file() and not (tmp_path / "out" / "model.onnx").exists()
  graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx").graph
  inputs = {value.name: value.type.tensor_type.elem_type for value in graph.input}
  assert inputs == dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), onnx.TensorProto.INT64)
  outputs_of = {value.name: value.type.tensor_type.elem_type for value in graph.output}
  if task == "classify":
    fields("config.json", {"id2label": dict, "label2id": dict})
    assert config["architectures"][0].endswith("Classification") and config["label2id"] == {"bad": 0, "good": 1}
    assert outputs_of["logits"] == onnx.TensorProto.FLOAT
  else:
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = fields("1_Pooling/config.json", {f"pooling_mode_{mode}": bool for mode in modes})
    assert pooling["pooling_mode_mean_tokens"] and not pooling["pooling_mode_cls_token"]
    assert fields("sentence_bert_config.json", {"max_seq_length": int})["max_seq_length"] == 48
    assert outputs_of["sentence_embedding"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("head", ["squad_v2", "sentence"])
def test_heads_that_only_we_have(tmp_path, vocabulary, head):
  source = checkpoint(tmp_path / "bare", vocabulary, **CASES["embed"] | {"task": ""})
  cfg, params = convert.load(source)
  rng, shapes = np.random.default_rng(0), task_heads.HEADS["squad_v2"](32, 0)
  shapes = shapes if head == "squad_v2" else {"kernel": (32, 1), "bias": (1,)}
  leaves = {path: rng.normal(size=shape).astype(np.float32) * np.float32(0.3) for path, shape in shapes.items()}
  task, inputs = ("answer", INPUTS["answer"]) if head == "squad_v2" else ("summarize", [" ".join(TEXTS)])
  sizes = {"start_n_top": 7, "end_n_top": 3} if head == "squad_v2" else {}
  convert.save(tmp_path / "run", cfg, params | {head: paths.unflatten(leaves)}, vocabulary=vocabulary,
               architecture="AlbertModel", extra=about(task, **sizes))  # fmt: skip
  texts = tmp_path / "texts.txt"
  texts.write_text("\n".join(TEXTS * 20), "utf-8")
  albert_jax.export(tmp_path / "run", tmp_path / "out", quantize="int8", calibration=str(texts), max_loss=100.0)
  if head == "squad_v2":
    run_examples(tmp_path / "out")
    opened = onnx_runtime.session(tmp_path / "out" / "onnx" / "model_int8.onnx")
    shape = onnx_runtime.run(opened, {name: np.ones((1, 9), np.int64) for name in
                                      ("input_ids", "attention_mask", "token_type_ids", "allowed")})  # fmt: skip
    assert shape["end_index"].shape == (1, 7, 3)
  answers = [albert_jax.pipeline(None, tmp_path / name, **options)(inputs)
                 for name, options in (("run", {}), ("out", {"backend": "onnx", "dtype": "float32"}))]  # fmt: skip
  assert_alike(*answers)


def run_examples(folder):
  """Runs each block of a card but those that need PyTorch, or transformers where it is not installed."""
  has_transformers = importlib.util.find_spec("transformers") is not None
  blocks = re.findall(r"\n([^\n]*)\n```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)
  for title, code in blocks:
    if title not in ("transformers:", "sentence-transformers:") and (has_transformers or "transformers" not in code):
      exec(compile(code.replace("DIR", str(folder)), title, "exec"), {})
  assert len(blocks) > 1


@pytest.mark.parametrize("name", ["choose", "pairs"])
def test_the_examples_of_a_card_run(tmp_path, vocabulary, name):
  case = CASES["choose"] if name == "choose" else CASES["classify"] | {"pair": True}
  albert_jax.export(checkpoint(tmp_path / "run", vocabulary, **case), tmp_path / "out")
  run_examples(tmp_path / "out")
  assert ("text_pair" in (tmp_path / "out" / "README.md").read_text()) == (name == "pairs")


def test_the_card_of_a_run_has_its_numbers(tmp_path, vocabulary):
  run = tmp_path / "run"
  checkpoint(run / "export", vocabulary, **CASES["classify"])
  (run / "checkpoints").mkdir()
  lines = [{"step": 10, "split": "eval", "accuracy": 0.5}, {"step": 20, "split": "eval", "accuracy": 0.75},
           {"step": 30, "split": "eval", "accuracy": 0.7}, {"step": 30, "split": "train", "accuracy": 0.9}]  # fmt: skip
  (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4', "utf-8")
  config = {"best": "accuracy", "data": {"dataset": "/data/films"}, "init_from": "models/albert-base"}
  (run / "config.json").write_text(json.dumps(config), "utf-8")
  albert_jax.export(run, tmp_path / "out", formats=(), license="apache-2.0", language="en", name='Films: a "test"')
  yaml = pytest.importorskip("yaml")
  fields = yaml.safe_load((tmp_path / "out" / "README.md").read_text("utf-8").split("---\n")[1])
  assert (fields["license"], fields["language"], fields["base_model"]) == ("apache-2.0", "en", "albert-base")
  assert fields["datasets"] == ["films"]
  assert fields["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.75, "name": "accuracy"}]


def test_a_run_leaves_a_folder_with_a_card_and_keeps_what_users_put_there(tmp_path, vocabulary):
  source = checkpoint(tmp_path / "source", vocabulary, **CASES["embed"])
  cfg, params = convert.load(source)
  run = tmp_path / "runs" / "films"
  run.mkdir(parents=True)
  (run / "metrics.jsonl").write_text('{"step": 9, "split": "eval", "recall": 0.75}\n')

  def finish():
    export_folder.export_run(
      run / "export", cfg, params, vocabulary=vocabulary, architecture="AlbertModel", run=run, name="films",
      extra=about("embed", pooling="mean", seq_length=48), run_config={"data": {"dataset": "a/b"}, "init_from": ""},
    )  # fmt: skip
    return (run / "export" / "README.md").read_text("utf-8")

  card = finish()
  assert "# films" in card and "| recall | 0.7500 |" in card and 'datasets: ["b"]' in card
  names = {path.relative_to(run / "export").as_posix() for path in (run / "export").rglob("*")}
  assert {"config.json", "model.safetensors", "tokenizer.json", "spiece.model", "modules.json"} <= names
  umask = os.umask(0)
  os.umask(umask)
  assert all(stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask for file in (run / "export").glob("*.*"))
  (run / "export" / "notes.txt").write_text("mine")
  assert finish() == card
  (run / "export" / "README.md").write_text(card + "\nIt took me a day.\n", "utf-8")
  assert finish().endswith("It took me a day.\n")
  assert (run / "export" / "notes.txt").read_text() == "mine"
  assert convert.load(run)[1].keys() == params.keys()  # Without the pooler that transformers' class has to have.
  assert_alike(albert_jax.pipeline(None, source)(TEXTS), albert_jax.pipeline(None, run)(TEXTS))


def test_a_difference_is_an_error_and_leaves_nothing(tmp_path, vocabulary, monkeypatch):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  build = export_folder.onnx.build

  def wrong(cfg, params, **options):
    params = params | {"classifier": {name: value + 0.01 for name, value in params["classifier"].items()}}
    return build(cfg, params, **options)

  monkeypatch.setattr(export_folder.onnx, "build", wrong)
  with pytest.raises(export_folder.Differs, match=r"onnx/model\.onnx: logits differs"):
    albert_jax.export(source, tmp_path / "out", formats=("onnx",))
  assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line_each(tmp_path, vocabulary):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  bare = checkpoint(tmp_path / "bare", None, **CASES["classify"])
  damaged = tmp_path / "damaged"
  albert_jax.export(source, damaged, formats=("onnx",))
  model_file = damaged / "onnx" / "model.onnx"
  model_file.write_bytes(model_file.read_bytes()[:5000])
  newer = tmp_path / "newer"
  albert_jax.export(source, newer, formats=("onnx",))
  graph = onnx.load(newer / "onnx" / "model.onnx")
  graph.opset_import[0].version = 99
  onnx.save(graph, newer / "onnx" / "model.onnx")
  mistakes = {
    "vocabulary": lambda: albert_jax.export(bare, tmp_path / "x"),
    "exists already": lambda: albert_jax.export(source, damaged),
    "no format": lambda: albert_jax.export(source, tmp_path / "x", formats=("tflite",)),
    "pooling": lambda: albert_jax.export(source, tmp_path / "x", pooling="max"),
    "quantize": lambda: albert_jax.export(source, tmp_path / "x", quantize="int4"),
    "--calibration": lambda: albert_jax.export(source, tmp_path / "x", quantize="int8"),
    "nothing at": lambda: albert_jax.export(tmp_path / "absent", tmp_path / "x"),
    "no backend": lambda: albert_jax.pipeline(None, source, backend="torch"),
    "has no onnx": lambda: albert_jax.pipeline(None, source, backend="onnx"),
    "int8": lambda: albert_jax.pipeline(None, newer, backend="onnx", dtype="int8"),
    "damaged/onnx/model.onnx cannot be opened": lambda: albert_jax.pipeline(None, damaged, backend="onnx"),
    "newer/onnx/model.onnx cannot be opened": lambda: albert_jax.pipeline(None, newer, backend="onnx"),
  }
  for what, mistake in mistakes.items():
    with pytest.raises(UserError) as error:
      mistake()
    assert what in str(error.value) and "\n" not in str(error.value), what
  assert not (tmp_path / "x").exists()
  albert_jax.export(bare, tmp_path / "without", formats=(), tokenizer=False)


def test_an_onnx_file_of_another_model_is_one_line(tmp_path, vocabulary):
  """Another task's file, one with a smaller vocabulary, and one with an input that only another exporter makes."""
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  cfg, params = albert_jax.load(source)
  answers = {name: part for name, part in params.items() if name not in ("classifier", "pooler")}
  fewer = params | {"embeddings": params["embeddings"] | {"word": {"embedding": np.ones((7, 16), np.float32)}}}
  other = build(cfg, params, task="classify")
  other.graph.input[0].name = "pixel_values"
  (source / "onnx").mkdir()
  for what, graph in {
    "no output 'logits', only last_hidden_state": build(cfg, answers),
    "cannot compute this input": build(cfg, fewer, task="classify"),
    "'pixel_values' is unknown": other,
  }.items():
    for node in graph.graph.node:
      for i, name in enumerate(node.input):
        if name == "input_ids" and graph is other:
          node.input[i] = "pixel_values"
    onnx.save(graph, source / "onnx" / "model.onnx")
    with pytest.raises(UserError) as error:
      albert_jax.pipeline("classify", source, backend="onnx")("ba do")
    assert what in str(error.value) and "\n" not in str(error.value), error.value


def test_a_text_longer_than_the_model_is_one_line(tmp_path, vocabulary):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["pretrained"])
  albert_jax.export(source, tmp_path / "out", formats=("onnx",))
  with pytest.raises(UserError, match="64 positions"):
    albert_jax.pipeline("fill-mask", tmp_path / "out", backend="onnx")("ba [MASK] " * 40)


def test_the_package_needs_no_onnx_until_it_is_used():
  code = "import sys, albert_jax.exports.folder; sys.exit(bool({'onnx', 'onnxruntime'} & sys.modules.keys()))"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_absent_extra_is_one_line(tmp_path, vocabulary, monkeypatch):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(UserError, match=r"pip install 'albert-jax\[onnx\]'"):
    albert_jax.export(source, tmp_path / "out")
  assert not pathlib.Path(tmp_path / "out").exists()


def test_the_command_writes_the_folder_and_its_sizes(tmp_path, vocabulary, capsys):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["classify"])
  arguments = ["export", f"--checkpoint={source}", f"--out={tmp_path / 'out'}", "--formats=onnx", "--license=mit"]
  assert main([*arguments, f"--json={tmp_path / 'sizes.json'}"]) == 0
  assert "onnx/model.onnx" in capsys.readouterr().out
  assert "onnx/model.onnx" in json.loads((tmp_path / "sizes.json").read_text())["files"]
  assert 'license: "mit"' in (tmp_path / "out" / "README.md").read_text("utf-8")
  assert main(arguments) == 2  # The folder is there.
  assert main(["export", f"--checkpoint={tmp_path / 'absent'}", f"--out={tmp_path / 'x'}"]) == 2
  assert all(line.startswith("albert-jax export: ") for line in capsys.readouterr().err.splitlines()[-2:])
