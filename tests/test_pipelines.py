"""Pipelines: what a model says of a text does not depend on which others it is asked about with, or in what order."""

import dataclasses
import importlib
import json
import shlex
import types

import jax
import made_up
import numpy as np
import pytest
from small_models import SMALL

import albert_jax
from albert_jax import loop, pipelines, tasks
from albert_jax.__main__ import main
from albert_jax.convert import hf
from albert_jax.data.finetuning import batching
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks import classify
from albert_jax.tasks.base import about
from albert_jax.tasks.ner import entities

CFG = dataclasses.replace(
  SMALL, vocab_size=400, max_position_embeddings=64, num_hidden_layers=2, hidden_size=36, initializer_range=0.2
)
LENGTHS = [9, 50, 60, 12, 90] * 4
TEXTS = [" ".join(text)[:size] for text, size in zip(made_up.documents(20, seed=5), LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary")))


@pytest.fixture(scope="module")
def export(tmp_path_factory, vocabulary):
  """Returns a function that writes a checkpoint: export(parts, {head: classes}, architecture, about)."""
  folder = tmp_path_factory.mktemp("exports")
  fresh = jax.jit(albert_jax.init, static_argnums=0)(CFG, jax.random.key(1))

  def write(parts, heads, architecture=None, facts=None):
    path = folder / str(len(list(folder.iterdir())))
    unwanted = {"pooler", "mlm", "sop"} - set(parts)
    params = {name: part for name, part in fresh.items() if name not in unwanted}
    for head, classes in heads.items():
      kernel = np.random.default_rng(0).normal(size=(CFG.hidden_size, classes)).astype(np.float32)
      params[head] = {"kernel": kernel, "bias": np.zeros(classes, np.float32)}
    hf.save(path, CFG, params, vocabulary=vocabulary, architecture=architecture, extra=facts)
    return path

  return write


@pytest.fixture(scope="module")
def classifier(export):
  facts = about("classify", ("bad", "good", "odd"), kind="classification", pair=False, seq_length=64)
  return export(("pooler",), {"classifier": 3}, None, facts)


@pytest.fixture(scope="module")
def masked(export):
  return export(("pooler", "mlm", "sop"), {})


def test_three_lines(classifier):
  assert albert_jax.pipeline is pipelines.pipeline
  results = albert_jax.pipeline("classify", classifier)(TEXTS)
  assert [x["text"] for x in results] == TEXTS
  for x in results:
    assert set(x["scores"]) == {"bad", "good", "odd"}
    assert list(x["scores"].values()) == sorted(x["scores"].values(), reverse=True)
    assert sum(x["scores"].values()) == pytest.approx(1)
    assert (x["label"], x["score"]) == next(iter(x["scores"].items()))
  assert len({x["label"] for x in results}) > 1
  assert json.loads(json.dumps(results)) == results


def test_neither_order_nor_company_matters(classifier):
  pipe = albert_jax.pipeline(None, classifier)
  assert pipe.task == "classify"
  batched = pipe(TEXTS)
  for alone in ([pipe(text) for text in TEXTS], pipe(TEXTS[::-1])[::-1], pipe((text for text in TEXTS), batch_size=4)):
    for x, y in zip(batched, alone, strict=True):
      assert x["text"] == y["text"]
      assert x["scores"] == pytest.approx(y["scores"], abs=1e-6)
  assert pipe([]) == []


def test_a_few_programs_serve_all_inputs(classifier):
  before = classify._logits._cache_size()
  pipe = albert_jax.pipeline("classify", classifier)
  rng = np.random.default_rng(0)
  for _ in range(10):
    pipe([TEXTS[i] for i in rng.integers(0, 20, rng.integers(1, 90))])
  for count in range(1, 20):
    pipe(TEXTS[:count])
  programs = classify._logits._cache_size()
  assert programs <= max(before, len(batching.FINE_LENGTHS[:8]) * len(batching.SIZES))
  albert_jax.pipeline("classify", classifier)(TEXTS)  # Another pipeline of the same model compiles nothing.
  assert classify._logits._cache_size() == programs


def test_what_a_text_is_worth_is_what_the_model_says(classifier, vocabulary):
  cfg, params = albert_jax.load(classifier)
  text = TEXTS[1]
  ids = np.array([[vocabulary.cls_id, *vocabulary.encode(text), vocabulary.sep_id]], np.int32)
  pooled = albert_jax.apply(cfg, params, {"input_ids": ids})["pooled_output"]
  logits = np.asarray(pooled[0] @ params["classifier"]["kernel"] + params["classifier"]["bias"])
  expected = np.exp(logits) / np.exp(logits).sum()
  scores = albert_jax.pipeline("classify", classifier)(text)["scores"]
  np.testing.assert_allclose([scores["bad"], scores["good"], scores["odd"]], expected, rtol=1e-5)


def test_long_texts_are_cut_with_a_warning(classifier, caplog):
  long = " ".join(TEXTS)
  results = albert_jax.pipeline("classify", classifier)([long, TEXTS[0]])
  assert "1 of 2 rows exceed data.seq_length=64 tokens and were cut" in caplog.text
  assert sum(results[0]["scores"].values()) == pytest.approx(1)


def test_pairs(export, classifier):
  facts = about("classify", ("no", "yes"), kind="classification", pair=True, seq_length=64)
  pipe = albert_jax.pipeline("classify", export(("pooler",), {"classifier": 2}, None, facts))
  as_tuple, as_dict = pipe((TEXTS[1], TEXTS[4])), pipe({"text": TEXTS[1], "pair": TEXTS[4]})
  assert as_tuple == as_dict
  assert (as_tuple["text"], as_tuple["pair"]) == (TEXTS[1], TEXTS[4])
  assert pipe((TEXTS[4], TEXTS[1]))["scores"] != pytest.approx(as_tuple["scores"], abs=1e-4)
  with pytest.raises(UserError, match="this model is for pairs of texts"):
    pipe(TEXTS[1])
  with pytest.raises(UserError, match="this model is for single texts"):
    albert_jax.pipeline("classify", classifier)([(TEXTS[1], TEXTS[4])])


def test_numbers_and_several_labels(export):
  number = export(("pooler",), {"classifier": 1}, None, about("classify", (), kind="regression", seq_length=64))
  results = albert_jax.pipeline(None, number)(TEXTS[:3])
  assert all(set(x) == {"text", "score"} for x in results)
  several = about("classify", ("a", "b", "c"), kind="multilabel", seq_length=64)
  results = albert_jax.pipeline(None, export(("pooler",), {"classifier": 3}, None, several))(TEXTS)
  assert len({len(x["labels"]) for x in results}) > 1
  for x in results:
    assert x["labels"] == [name for name, score in x["scores"].items() if score > 0.5]


def test_masks(masked):
  texts = [f"{TEXTS[0]} [MASK]", f"[MASK] {TEXTS[3]} of [MASK]", "[MASK]"]
  pipe = albert_jax.pipeline("fill-mask", masked, top_k=3)
  batched = pipe(texts)
  assert [len(result["masks"]) for result in batched] == [1, 2, 1]
  for text, result in zip(texts, batched, strict=True):
    alone = pipe(text)
    assert (result["text"], result["filled"]) == (text, alone["filled"])
    for a, b in zip(alone["masks"], result["masks"], strict=True):
      assert [x["token"] for x in a] == [x["token"] for x in b]
      assert [x["score"] for x in a] == pytest.approx([x["score"] for x in b], rel=1e-4)
      assert [x["score"] for x in a] == sorted((x["score"] for x in a), reverse=True)
      assert len(a) == 3
  with pytest.raises(UserError, match=r"no \[MASK\] in 'nothing'; write one"):
    pipe("nothing")
  with pytest.raises(UserError, match="the model 64 positions; shorten the text"):
    pipe("[MASK] " + "badu " * 400)


def test_it_says_what_a_checkpoint_is_for(classifier, masked, export, tmp_path):
  with pytest.raises(UserError, match=r"is for classify \(bad, good, odd\), not for answer; it can classify"):
    albert_jax.pipeline("answer", classifier)
  with pytest.raises(UserError, match="is for fill-mask, not for classify"):
    albert_jax.pipeline("classify", masked)
  with pytest.raises(UserError, match="no task 'classfy'; use one of fill-mask, classify"):
    albert_jax.pipeline("classfy", classifier)
  with pytest.raises(UserError, match="does not name its task; give a task"):
    albert_jax.pipeline(None, export(("pooler",), {}))
  with pytest.raises(UserError, match="is for 'order', which is unknown here; give a task: embed"):
    albert_jax.pipeline(None, export(("pooler",), {}, None, about("order")))
  with pytest.raises(UserError, match="nothing at"):
    albert_jax.pipeline("classify", tmp_path / "nowhere")


def test_of_one_that_says_nothing_its_parts_do(export, masked, monkeypatch):
  span = export((), {"span": 2})
  monkeypatch.setattr(pipelines.convert, "about", lambda path: {})
  assert albert_jax.pipeline(None, masked).task == "fill-mask"
  assert albert_jax.pipeline(None, span).task == "answer"
  path = export(("pooler",), {"classifier": 2})
  with pytest.raises(UserError, match="does not name its task; give a task: classify, tag, choose, embed"):
    albert_jax.pipeline(None, path)
  assert albert_jax.pipeline("classify", path).labels == []
  assert albert_jax.pipeline("tag", path).labels == ["LABEL_0", "LABEL_1"]
  with pytest.raises(UserError, match="has no head for answer; it can classify or tag or choose or embed"):
    albert_jax.pipeline("answer", path)


def test_wrong_inputs_and_options(classifier):
  pipe = albert_jax.pipeline("classify", classifier)
  with pytest.raises(UserError, match="input 2 is 3; classify expects a text, or a pair"):
    pipe(["a", 3])
  with pytest.raises(UserError, match="input 1 is "):
    pipe({"texts": "a"})
  with pytest.raises(UserError, match="input 1 is "):
    pipe({"text": "a", "pair": 3})
  with pytest.raises(UserError, match="there is no option 'topk'; there are labels, kind"):
    pipe("a", topk=3)
  with pytest.raises(UserError, match="there is no option 'topk'"):
    albert_jax.pipeline("classify", classifier, topk=3)


def test_each_output_has_its_own_label(export):
  def label_fields(id2label):
    return {"id2label": id2label, "label2id": {}}

  for id2label in ({"0": "zero", "5": "five"}, {"1": "one", "2": "two"}, {"0": "zero", "x": "five"}):
    with pytest.raises(UserError, match="id2label"):
      albert_jax.pipeline(None, export(("pooler",), {"classifier": 2}, None, label_fields(id2label)))
  three = export(("pooler",), {"classifier": 2}, None, label_fields({"0": "a", "1": "b", "2": "c"}))
  with pytest.raises(UserError, match=r"has 3 labels \(a, b, c\) for a head of 2 outputs"):
    albert_jax.pipeline(None, three)
  assert albert_jax.pipeline(None, three, labels=["a", "b"]).labels == ["a", "b"]
  with pytest.raises(UserError, match="names two outputs 'a'"):
    albert_jax.pipeline(None, export(("pooler",), {"classifier": 2}, None, label_fields({"0": "a", "1": "a"})))


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"albert_jax_task": None}, "albert_jax_task: expected an object, got null"),
    ({"albert_jax_task": {"name": ["classify"]}}, "name: expected a text"),
    ({"albert_jax_task": {"name": "classify", "labels": {"0": "a"}}}, "labels: expected a list"),
    ({"albert_jax_task": {"name": "classify", "labels": ["a", 1]}}, "a label: expected a text, got 1"),
    ({"albert_jax_task": {"name": "classify", "seq_length": "64"}}, "seq_length: expected a whole number"),
    ({"albert_jax_task": {"name": "classify", "seq_length": -5}}, "seq_length: expected 1 or more, got -5"),
    ({"albert_jax_task": {"name": "answer", "doc_stride": "128"}}, "doc_stride: expected a whole number"),
    ({"albert_jax_task": {"name": "answer", "no_answer": 1}}, "no_answer: expected a boolean"),
    ({"architectures": 3}, "architectures: expected a list"),
  ],
)
def test_a_config_with_facts_of_another_form_is_one_line(export, change, words):
  path = export(("pooler",), {"classifier": 2})
  fields = json.loads((path / "config.json").read_text("utf-8"))
  (path / "config.json").write_text(json.dumps(fields | change), "utf-8")
  with pytest.raises(UserError, match=words) as caught:
    albert_jax.pipeline(None, path)
  assert "\n" not in str(caught.value)


def test_half_a_surrogate_pair_is_no_text(classifier):
  with pytest.raises(UserError, match=r"input 2 holds half a surrogate pair \(.ud800\)"):
    albert_jax.pipeline(None, classifier)(["a", "b \ud800"])


def test_bfloat16_says_about_the_same(classifier):
  exact = albert_jax.pipeline("classify", classifier)(TEXTS[:4])
  rough = albert_jax.pipeline("classify", classifier, dtype="bfloat16")(TEXTS[:4])
  differences = [abs(x["scores"]["bad"] - y["scores"]["bad"]) for x, y in zip(exact, rough, strict=True)]
  assert 0 < max(differences) < 0.1


def test_every_task_answers(export):
  """What each makes of its inputs is tested with the task; here that all of them are reached, by what exports say."""
  text = TEXTS[2]
  inputs = {
    "answer": ({"span": 2}, (), {"head": "span", "no_answer": True, "seq_length": 48}, (TEXTS[0], text)),
    "tag": ({"classifier": 3}, ("O", "B-X", "I-X"), {"seq_length": 48}, text),
    "choose": ({"classifier": 1}, (), {"seq_length": 48}, {"context": text, "options": ["badu", "mola"]}),
    "embed": ({}, (), {"pooling": "cls", "seq_length": 48}, text),
    "summarize": ({"sentence": 1}, (), {"sentences": 1, "seq_length": 48}, text),
  }  # fmt: skip
  expected = {"answer": {"answer", "answers", "no_answer"}, "tag": {"text", "entities"}, "embed": {"text", "embedding"},
            "choose": {"choice", "text", "score", "scores"}, "summarize": {"summary", "sentences"}}  # fmt: skip
  for task, (heads, labels, options, value) in inputs.items():
    parts = ("pooler",) if task == "choose" else ()
    architecture = "AlbertForTokenClassification" if task == "tag" else None
    pipe = albert_jax.pipeline(None, export(parts, heads, architecture, about(task, labels, **options)))
    assert (pipe.task, pipe.options["seq_length"]) == (task, 48)
    result = pipe(value)
    assert set(result) == expected[task]
    assert json.loads(json.dumps(result)) == result
    assert pipe([value, value])[1].keys() == result.keys()


@pytest.mark.slow
def test_the_command_that_a_complete_run_suggests_answers(export, masked, classifier, vocabulary, capsys):
  """A line for each task; of a classifier of pairs with a pair."""
  no_pair, pair = ("classify", ("no", "yes"), {"pair": False}), ("classify", ("no", "yes"), {"pair": True})
  runs = [
    (classifier, no_pair),
    (export(("pooler",), {"classifier": 2}, None, about("classify", ("no", "yes"), pair=True)), pair),
    *(
      (export(parts, heads, architecture, about(task, labels)), (task, labels, {}))
      for task, parts, heads, architecture, labels in (
        ("answer", (), {"span": 2}, None, ()),
        ("tag", (), {"classifier": 3}, "AlbertForTokenClassification", ("O", "B-X", "I-X")),
        ("choose", ("pooler",), {"classifier": 1}, None, ()),
        ("embed", (), {}, None, ()),
        ("summarize", (), {"sentence": 1}, None, ()),
      )
    ),
  ]
  named = {task for _, (task, _, _) in runs} | {"fill-mask"}
  assert named == tasks.predictions().keys(), "each task has its example here"
  for path, (task, labels, options) in runs:
    run = types.SimpleNamespace(about=about(task, labels, **options), vocabulary=vocabulary)
    assert "--task" not in loop.next_command(run, str(path))
    assert main(shlex.split(loop.next_command(run, str(path)))[1:]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
  pre_trained = types.SimpleNamespace(about={}, vocabulary=vocabulary)
  command = loop.next_command(pre_trained, str(masked))
  assert "--task=fill-mask" in command and main(shlex.split(command)[1:]) == 0
  no_texts = types.SimpleNamespace(about=about("plbert"), vocabulary=vocabulary)
  assert loop.next_command(no_texts, "runs/my voice") == "albert-jax evaluate --checkpoint='runs/my voice'"


class TestFilesOfTransformers:
  """Checkpoints that do not say in our words what they are for."""

  def test_labels_and_kinds(self, export):
    names = {"id2label": {"0": "NEG", "1": "POS"}, "label2id": {"NEG": 0, "POS": 1}}
    result = albert_jax.pipeline(None, export(("pooler",), {"classifier": 2}, None, names))(TEXTS[0])
    assert set(result["scores"]) == {"NEG", "POS"}
    pipe = albert_jax.pipeline(None, export(("pooler",), {"classifier": 3}))
    assert set(pipe(TEXTS[0])["scores"]) == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert set(pipe((TEXTS[0], TEXTS[1]))["scores"]) == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert set(albert_jax.pipeline(None, export(("pooler",), {"classifier": 1}))(TEXTS[0])) == {"text", "score"}
    several = {"problem_type": "multi_label_classification"}
    assert "labels" in albert_jax.pipeline(None, export(("pooler",), {"classifier": 3}, None, several))(TEXTS[0])


@pytest.fixture(scope="module")
def transformers():
  pytest.importorskip("torch", reason="parity with transformers: pip install albert-jax[parity]")
  module = pytest.importorskip("transformers", reason="parity with transformers: pip install albert-jax[parity]")
  module.utils.logging.disable_progress_bar()
  return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
class TestParity:
  """What transformers says of the same export, from the same text."""

  def test_classify(self, transformers, classifier):
    theirs = transformers.pipeline("text-classification", model=str(classifier), top_k=None, device="cpu")
    texts = [text for text in TEXTS if len(text) < 100]
    for ours, reference in zip(albert_jax.pipeline(None, classifier)(texts), theirs(texts), strict=True):
      assert ours["scores"] == pytest.approx({x["label"]: x["score"] for x in reference}, abs=1e-5)

  def test_several_labels_and_numbers(self, transformers, export):
    facts = about("classify", ("a", "b", "c"), kind="multilabel") | {"problem_type": "multi_label_classification"}
    path = export(("pooler",), {"classifier": 3}, None, facts)
    theirs = transformers.pipeline("text-classification", model=str(path), top_k=None, device="cpu")([TEXTS[0]])[0]
    assert albert_jax.pipeline(None, path)(TEXTS[0])["scores"] == pytest.approx(
      {x["label"]: x["score"] for x in theirs}, abs=1e-5
    )
    path = export(
      ("pooler",), {"classifier": 1}, None, about("classify", kind="regression") | {"problem_type": "regression"}
    )
    theirs = transformers.pipeline("text-classification", model=str(path), function_to_apply="none", device="cpu")
    assert albert_jax.pipeline(None, path)(TEXTS[0])["score"] == pytest.approx(theirs(TEXTS[0])[0]["score"], abs=1e-5)

  def test_fill_mask(self, transformers, masked):
    theirs = transformers.pipeline("fill-mask", model=str(masked), top_k=400, device="cpu")
    tokenizer = Tokenizer(masked)
    ordinary = {int(i) for i in tokenizer.ordinary_ids}
    text = f"{TEXTS[0]} [MASK] badu"
    reference = [x for x in theirs(text) if x["token"] in ordinary]
    total = sum(x["score"] for x in reference)
    [ours] = albert_jax.pipeline("fill-mask", masked, top_k=5)(text)["masks"]
    assert [x["token"] for x in ours] == [tokenizer.decode([x["token"]]) for x in reference[:5]]
    assert [x["score"] for x in ours] == pytest.approx([x["score"] / total for x in reference[:5]], rel=1e-4)

  def test_tag(self, transformers, export):
    path = export(
      (), {"classifier": 5}, "AlbertForTokenClassification", about("tag", ("O", "B-X", "I-X", "B-Y", "I-Y"))
    )
    text = "badu mola gine toro kiki badu"  # Words that both cut alike; each counts by its first piece.
    model = transformers.AutoModelForTokenClassification.from_pretrained(path).eval()
    tokenizer = Tokenizer(path)
    pieces = [tokenizer.encode(word) for word in text.split()]
    ids = [tokenizer.cls_id, *(i for piece in pieces for i in piece), tokenizer.sep_id]
    firsts = np.cumsum([1, *map(len, pieces)])[:-1]
    with importlib.import_module("torch").inference_mode():
      logits = model(input_ids=importlib.import_module("torch").tensor([ids])).logits[0]
    scores = logits.softmax(-1).numpy()[firsts]
    labels = [model.config.id2label[i] for i in scores.argmax(-1)]
    tagged = albert_jax.pipeline(None, path)(text)["entities"]
    expected = entities.entities(labels)
    assert [x["type"] for x in tagged] == [kind for kind, _, _ in expected]
    assert [x["text"] for x in tagged] == [" ".join(text.split()[begin:end]) for _, begin, end in expected]
    assert [text[x["start"] : x["end"]] for x in tagged] == [x["text"] for x in tagged]
    assert [x["score"] for x in tagged] == pytest.approx(
      [scores.max(-1)[begin:end].mean() for _, begin, end in expected], abs=1e-5
    )

  def test_answer(self, transformers, export):
    """The best span by their logits, sought by hand: transformers 5 has no pipeline for it any more."""
    path = export((), {"span": 2})
    assert json.loads((path / "config.json").read_text())["architectures"] == ["AlbertForQuestionAnswering"]
    torch = importlib.import_module("torch")
    model, tokenizer = transformers.AutoModelForQuestionAnswering.from_pretrained(path).eval(), Tokenizer(path)
    question, context = "badu mola", "gine toro kiki badu mola gine"
    query, (passage, spans) = tokenizer.encode(question), tokenizer.encode_with_offsets(context)
    ids = [tokenizer.cls_id, *query, tokenizer.sep_id, *passage, tokenizer.sep_id]
    types = [0] * (len(query) + 2) + [1] * (len(passage) + 1)
    with torch.inference_mode():
      out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
    first = len(query) + 2
    starts, ends = (x[0].numpy()[first : first + len(passage)] for x in (out.start_logits, out.end_logits))
    scores = [(starts[i] + ends[j], spans[i][0], spans[j][1]) for i in range(len(starts)) for j in range(i, len(ends))]
    _, begin, end = max(scores)
    best = albert_jax.pipeline(None, path, max_answer_length=100)((question, context))["answers"][0]
    assert (best["text"], best["start"], best["end"]) == (context[begin:end], begin, end)

  def test_choose(self, transformers, export):
    path = export(("pooler",), {"classifier": 1}, "AlbertForMultipleChoice")
    torch = importlib.import_module("torch")
    model, tokenizer = transformers.AutoModelForMultipleChoice.from_pretrained(path).eval(), Tokenizer(path)
    context, options = TEXTS[0], ["badu mola", "gine", "toro kiki badu"]
    rows, types = [], []
    for option in options:
      a, b = tokenizer.encode(context), tokenizer.encode(option)
      rows.append([tokenizer.cls_id, *a, tokenizer.sep_id, *b, tokenizer.sep_id])
      types.append([0] * (len(a) + 2) + [1] * (len(b) + 1))
    length = max(map(len, rows))
    mask = torch.tensor([[[1] * len(row) + [0] * (length - len(row)) for row in rows]])
    ids, types = (torch.tensor([[row + [0] * (length - len(row)) for row in x]]) for x in (rows, types))
    with torch.inference_mode():
      scores = model(input_ids=ids, token_type_ids=types, attention_mask=mask).logits.softmax(-1)[0].numpy()
    result = albert_jax.pipeline(None, path)({"context": context, "options": options})
    assert result["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
    assert result["text"] == options[int(scores.argmax())]
