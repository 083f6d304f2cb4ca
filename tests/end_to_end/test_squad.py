"""Question answering from the command line: train, go on, evaluate, score, ask; and what transformers makes of it."""

import json
import random

import made_up
import numpy as np
import pytest
from conftest import ROOT

import albert_jax
from albert_jax.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

WORDS = made_up.SYLLABLES
KEYS = ["badebi", "fofugu", "kolomu"]


def data(seed, count, version):
  """Returns the answer is the word after the key that the question is; in 2.0 some passages lack the key."""
  rng, paragraphs = random.Random(seed), []
  for i in range(count):
    words, key = rng.choices(WORDS, k=rng.randint(5, 60)), rng.choice(KEYS)
    silent = version == "2.0" and i % 4 == 0
    place = rng.randrange(len(words) - 1)
    words[place] = WORDS[0] if silent else key
    start = len(" ".join(words[: place + 1])) + 1
    answers = [] if silent else [{"text": words[place + 1], "answer_start": start}]
    qa = {"id": f"{seed}-{i}", "question": key, "answers": answers}
    if version == "2.0":
      qa["is_impossible"] = silent
    paragraphs.append({"context": " ".join(words), "qas": [qa]})
  return {"version": version, "data": [{"title": "t", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("squad")
  made_up.vocabulary(folder)
  for version in ("1.1", "2.0"):
    for split, count in {"train": 192, "dev": 40}.items():
      (folder / f"{split}-v{version}.json").write_text(json.dumps(data(len(split), count, version)), "utf-8-sig")
  return folder


def flags(folder, version, **overrides):
  values = {
    "data__dataset": folder, "data__split": f"train-v{version}.json", "data__validation_split": f"dev-v{version}.json",
    "data__spm": folder, "data__seq_length": 64, "task__doc_stride": 24, "task__max_query_length": 8,
    "task__max_answer_length": 3, "model__vocab_size": 400, "model__num_hidden_layers": 1, "model__hidden_size": 32,
    "model__intermediate_size": 32, "model__embedding_size": 32, "model__num_attention_heads": 2,
    "model__classifier_dropout_prob": 0.0, "init_structure": False, "batch_size": 32, "steps": 40, "eval_every": 20,
    "checkpoint_every": 20, "optimizer__warmup_steps": 5, "optimizer__learning_rate": 5e-3,
    "optimizer__textbook": True, **overrides,
  }  # fmt: skip
  return [
    f"--config={ROOT}/configs/squad.py:tiny-{version}",
    *(f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()),
  ]


def held_out(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return {x["step"]: {k: v for k, v in x.items() if k not in ("step", "split")} for x in lines if x["split"] == "eval"}


@pytest.fixture(scope="module", params=["1.1", "2.0"])
def trained(request, folder, tmp_path_factory):
  """Returns (SQuAD's version, workdir of a run that was stopped half way and went on)."""
  run = tmp_path_factory.mktemp("run") / request.param
  assert main(["train", *flags(folder, request.param, steps=20), f"--workdir={run}"]) == 0
  assert main(["train", *flags(folder, request.param), f"--workdir={run}"]) == 0
  assert list(held_out(run)) == [20, 40]
  return request.param, run


def test_what_a_run_leaves(trained, folder, tmp_path, capsys):
  version, run = trained
  names = {"exact", "f1", "total", "loss"}
  if version == "2.0":
    names |= {f"{part}_{name}" for part in ("HasAns", "NoAns") for name in ("exact", "f1", "total")}
    names |= {"best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh", "span_loss", "answer_loss"}
  metric = "best_f1" if version == "2.0" else "f1"
  best = max(held_out(run).values(), key=lambda numbers: numbers[metric])
  assert best.keys() == names and best["total"] == 40
  files = {path.name: json.loads(path.read_text()) for path in (run / "predictions").iterdir()}
  ids = {f"3-{i}" for i in range(40)}
  expected = {"predictions.json", "nbest_predictions.json", *(["null_odds.json"] if version == "2.0" else [])}
  assert files.keys() == expected and all(file.keys() == ids for file in files.values())
  facts = json.loads((run / "export/config.json").read_text())["albert_jax_task"]
  assert facts["name"] == "answer" and facts["doc_stride"] == 24 and facts["no_answer"] == (version == "2.0")

  # The same again from the export, and from the files.
  out = tmp_path / "out"
  assert main(["evaluate", *flags(folder, version), f"--checkpoint={run}/export", f"--out={out}"]) == 0
  metrics = json.loads(capsys.readouterr().out)
  assert metrics == pytest.approx(best, rel=1e-4)
  assert json.loads((out / "predictions.json").read_text()) == files["predictions.json"]
  scored = ["evaluate", "--task=squad", f"--predictions={out}/predictions.json", f"--gold={folder}/dev-v{version}.json"]
  assert main(scored) == 0
  again = json.loads(capsys.readouterr().out)
  assert again.items() <= metrics.items() and again["f1"] == metrics["f1"]
  if version == "2.0":
    assert main([*scored, f"--null_odds={out}/null_odds.json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {name: again[name] for name in metrics if "best" in name} == {
      k: v for k, v in metrics.items() if "best" in k
    }
  assert main([*scored, "--task=ner", "--null_odds=odds.json"]) == 2
  assert "--null_odds is for --task=squad, not ner" in capsys.readouterr().err


def test_asking(trained, folder):
  """The pipeline gives what the evaluation gave, window by window or not."""
  version, run = trained
  model = albert_jax.pipeline("answer", run)
  predictions = json.loads((run / "predictions/predictions.json").read_text())
  rows = json.loads((folder / f"dev-v{version}.json").read_text("utf-8-sig"))["data"][0]["paragraphs"]
  items = [{"question": row["qas"][0]["question"], "context": row["context"]} for row in rows]
  assert [result["answer"] for result in model(items)] == list(predictions.values())


def test_what_is_wrong(folder, tmp_path, capsys):
  def refused(*args, **overrides):
    version = overrides.pop("version", "2.0")
    assert main(["train", *flags(folder, version, **overrides), f"--workdir={tmp_path}/run", *args]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]

  assert "have no answer, as in SQuAD 2.0" in refused(version="1.1", data__validation_split="dev-v2.0.json")
  assert "several files of the split 'validation'" in refused(data__validation_split="validation")
  assert "task.head='spam' is unknown" in refused(task__head="spam")
  assert "task.language='de' is unknown" in refused(task__language="de")
  assert "leaves no room for a passage" in refused(task__max_query_length=62)
  assert "no file" in refused(data__split="nothing.json")
  # The mistake was in the data to train on, and is put right in the same folder.
  assert main(["train", *flags(folder, "2.0", steps=1, optimizer__warmup_steps=0), f"--workdir={tmp_path}/run"]) == 0


def test_transformers_answers_the_same(trained, folder):
  """The export opens as AlbertForQuestionAnswering, with equal logits."""
  torch = pytest.importorskip("torch", reason="parity with transformers: pip install albert-jax[parity]")
  transformers = pytest.importorskip("transformers", reason="parity with transformers: pip install albert-jax[parity]")
  version, run = trained
  config = json.loads((run / "export/config.json").read_text())
  if version == "2.0":  # transformers has no such head: the encoder opens, and the rest is ours.
    assert config["architectures"] == ["AlbertModel"]
    return
  theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(run / "export").eval()
  assert type(theirs).__name__ == config["architectures"][0] == "AlbertForQuestionAnswering"
  cfg, params = albert_jax.load(run)
  rng = np.random.default_rng(0)
  lengths = np.array([[20], [64], [33]])
  batch = {
    "input_ids": rng.integers(5, 400, (3, 64)), "attention_mask": (np.arange(64)[None] < lengths).astype(int),
    "token_type_ids": (np.arange(64)[None] > 9) & (np.arange(64)[None] < lengths),
  }  # fmt: skip
  with torch.no_grad():
    out = theirs(**{name: torch.tensor(value.astype(np.int64)) for name, value in batch.items()})
  x = albert_jax.apply(cfg, params, {name: value.astype(np.int32) for name, value in batch.items()})["sequence_output"]
  ours = np.asarray(x) @ params["span"]["kernel"] + params["span"]["bias"][None, None]
  real = batch["attention_mask"] > 0
  np.testing.assert_allclose(ours[..., 0][real], out.start_logits.numpy()[real], atol=1e-5)
  np.testing.assert_allclose(ours[..., 1][real], out.end_logits.numpy()[real], atol=1e-5)
