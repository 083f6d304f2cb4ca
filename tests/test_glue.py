"""GLUE: its files as they come, with their oddities; TFDS; submissions; and MNLI's two parts."""

import io
import json
import pathlib
import zipfile

import jax
import made_up
import numpy as np
import pytest
import tensorflow_datasets as tfds

import albert_jax
from albert_jax import convert, tasks
from albert_jax.__main__ import main
from albert_jax.commands.common import load_config
from albert_jax.errors import UserError
from albert_jax.tasks import glue
from albert_jax.training.writer import read

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "glue.py"
# What the official files look like, their quotes, header lines and byte order mark included.
FILES = {
  "CoLA/train.tsv": "gj04\t1\t\tOur friends won't buy this.\ncj99\t0\t*\tThe more you would \"want.\n",
  "CoLA/dev.tsv": "gj04\t1\t\tA ship.\ngj04\t0\t*\tShip the.\n",
  "CoLA/test.tsv": "index\tsentence\n0\tBill.\n1\tJohn.\n",
  "SST-2/train.tsv": "sentence\tlabel\nhide new \t0\nloves \t1\n",
  "SST-2/dev.tsv": "sentence\tlabel\ncharming \t1\nbleak \t0\n",
  "SST-2/test.tsv": "index\tsentence\n0\tuneasy\n1\tb\n",
  "MRPC/train.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\t\" He\tShe\r\n0\t9\t1\tA\tB\r\n",
  "MRPC/dev.tsv": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tx\ty\n",
  "MRPC/test.tsv": "\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tx\ty\n",
  "STS-B/train.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta\tb\t5.000\n1\tg\ta\tb\t2.5\n",
  "STS-B/dev.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta\tb\t1.000\n1\tg\tc\td\t4\n2\tg\te\tf\t3\n",
  "STS-B/test.tsv": "index\tgenre\tsentence1\tsentence2\n0\tg\ta\tb\n",
  "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\ta?\tb?\t1\n9\t1\n6\t1\t2\ta?\tb?\t0\n",
  "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\ta?\tb?\t1\n",
  "QQP/test.tsv": "id\tquestion1\tquestion2\n1\ta\tb\n0\tc\td\n",
  "MNLI/train.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tneutral\n",
  "MNLI/dev_matched.tsv": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n1\tc\td\tentailment\n",
  "MNLI/dev_mismatched.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\te\tf\t-\tcontradiction\n",
  "MNLI/test_matched.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n",
  "MNLI/test_mismatched.tsv": "index\tsentence1\tsentence2\n0\te\tf\n",
  "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\ta?\tb\tnot_entailment\n",
  "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\ta?\tb\tentailment\n",
  "QNLI/test.tsv": "index\tquestion\tsentence\n0\ta?\tb\n",
  "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n",
  "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n",
  "RTE/test.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n",
  "WNLI/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n",
  "WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t0\n",
  "WNLI/test.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n",
  "AX/diagnostic.tsv": "index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n",
  "AX/diagnostic-full.tsv": "Logic\tDomain\tPremise\tHypothesis\tLabel\r\nNegation\tNews\ta\tb\tentailment\r\n"
  "\t\tc\td\tneutral\r\n\t\te\tf\tcontradiction\r\n",
}  # fmt: skip
ALL = [name for name in glue.TASKS if name != "ax"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("glue_data")
  for name, text in FILES.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(text.encode())
  return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return made_up.checkpoint(tmp_path_factory.mktemp("checkpoint"))


def make(checkpoint, folder, name, **data):
  config = load_config(f"{CONFIG}:{name}-tiny")
  cfg, _ = albert_jax.load(checkpoint)
  config.update({"batch_size": 8, "model": {field: getattr(cfg, field) for field in tasks.STRUCTURE}})
  config.data.update({"dataset": str(folder), "seq_length": 32} | data)
  return tasks.make(config, convert.load_tokenizer(checkpoint))


def answered(task, outputs):
  """Task.score of given outputs [n, C]."""
  return task.score({"outputs": list(np.asarray(outputs, np.float32))})


class TestFiles:
  @pytest.mark.parametrize("name", ALL)
  def test_every_split(self, name, checkpoint, folder):
    row = glue.TASKS[name]
    for split in ("train", "validation", "test"):
      for _, part in glue.parts_of(row, split):
        split_data = glue.read(row, folder, part, skip_ragged=split == "train")
        assert (split_data.gold is None) == (split == "test"), (name, part)
        assert all(split_data.first)
        assert (split_data.second is None) == (len(row.texts) == 1)
        # The dataset's own folder does as well.
        assert glue.read(row, folder / row.folder, part, skip_ragged=split == "train").first == split_data.first

  def test_what_is_odd_about_them(self, folder, caplog):
    cola = glue.read(glue.TASKS["cola"], folder, "train")
    assert cola.first == ["Our friends won't buy this.", 'The more you would "want.']
    assert cola.gold.tolist() == [1, 0]
    assert glue.read(glue.TASKS["cola"], folder, "test").first == ["Bill.", "John."]
    mrpc = glue.read(glue.TASKS["mrpc"], folder, "train")
    assert (mrpc.first, mrpc.second) == (['" He', "A"], ["She", "B"])
    assert glue.read(glue.TASKS["sts-b"], folder, "train").gold.tolist() == [5, 2.5]
    assert glue.read(glue.TASKS["rte"], folder, "validation").gold.tolist() == [1]
    assert glue.read(glue.TASKS["wnli"], folder, "train").gold.tolist() == [1]
    assert glue.read(glue.TASKS["mnli"], folder, "validation_mismatched").gold.tolist() == [2]
    qqp = glue.read(glue.TASKS["qqp"], folder, "train", skip_ragged=True)
    assert len(qqp) == 2
    assert "1 lines have another number of columns" in caplog.text

  def test_a_folder_of_the_hub(self, checkpoint, tmp_path):
    rows = [{"sentence": f"badu {i}", "label": i % 2, "idx": i + 7} for i in range(4)]
    for split, count in (("train", 2), ("validation", 1)):
      made_up.hub(tmp_path / "sst2", split, rows, count, label=made_up.classes("negative", "positive"))
    made_up.hub(tmp_path / "sst2", "test", [row | {"label": -1} for row in rows], label=made_up.classes("no", "yes"))
    for dataset in (tmp_path, tmp_path / "sst2"):
      task = make(checkpoint, dataset, "sst-2")
      assert (task.has_labels, len(task.files())) == (True, 3)
    split = glue.read(glue.TASKS["sst-2"], tmp_path, "train")
    assert (split.gold.tolist(), split.index) == ([0, 1, 0, 1], [7, 8, 9, 10])
    assert glue.read(glue.TASKS["sst-2"], tmp_path, "test").gold is None
    with pytest.raises(UserError, match=r"'validation': expected dev\.tsv, and there is sst2"):
      make(checkpoint, tmp_path, "rte")

  def test_microsofts_own_names(self, folder, tmp_path):
    for name in ("train", "test"):
      (tmp_path / f"msr_paraphrase_{name}.txt").write_bytes((folder / "MRPC/train.tsv").read_bytes())
    for split in ("train", "test"):
      assert glue.read(glue.TASKS["mrpc"], tmp_path, split).gold.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"expected dev\.tsv, .* there is msr_paraphrase_test\.txt"):
      glue.read(glue.TASKS["mrpc"], tmp_path, "validation")

  def test_diagnostics_with_labels(self, checkpoint, folder):
    task = make(checkpoint, folder, "ax", validation_split="validation")
    numbers, _ = answered(task, np.eye(3)[[0, 1, 1]])
    assert numbers["mcc"] == pytest.approx(3 / np.sqrt(4 * 6)), "(3 * 2 - 3) / sqrt((9 - 5) (9 - 3))"
    assert "mcc" not in answered(make(checkpoint, folder, "ax"), np.eye(3)[[0, 1]])[0]

  def test_a_label_that_is_none(self, folder, tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na\t1\nb\t2\n")
    with pytest.raises(UserError, match=r"dev\.tsv line 3 has the label '2', unknown in training; there are negative"):
      glue.read(glue.TASKS["sst-2"], tmp_path, "validation")

  @pytest.mark.parametrize("split", ["train", "validation"])
  def test_a_file_without_rows_is_refused(self, split, tmp_path):
    for name in ("train", "dev"):
      (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(UserError, match=rf"\.tsv has no rows; expected one for each example of the split '{split}'"):
      glue.read(glue.TASKS["sst-2"], tmp_path, split)

  @pytest.mark.realdata
  def test_official_sizes(self, real_data):
    for name, sizes in {
      "cola": (8551, 1043), "sst-2": (67349, 872), "mrpc": (3668, 408), "sts-b": (5749, 1500), "rte": (2490, 277),
      "wnli": (635, 71),
    }.items():  # fmt: skip
      splits = [glue.read(glue.TASKS[name], real_data / "glue", split) for split in ("train", "validation")]
      assert tuple(map(len, splits)) == sizes, name
    for name in ("MNLI", "QQP"):
      assert len(
        glue.read(glue.TASKS[name.lower()], real_data / "glue_subsets" / name / "official_tsv_sample", "train")
      )


def write_tfds(folder, features, splits):
  """Prepares a TFDS dataset of {split: rows}; returns its folder."""
  with tfds.core.registered.skip_registration():

    class MadeUp(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.0.0")

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )  # fmt: skip

      def _split_generators(self, _):
        return {name: enumerate(rows) for name, rows in splits.items()}

      def _generate_examples(self):
        raise NotImplementedError

  builder = MadeUp(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return folder / "made_up"


class TestTFDS:
  """The same datasets by TFDS' own features, written here since nothing can be downloaded."""

  def test_labels_are_names_and_minus_one_is_none(self, tmp_path):
    label = tfds.features.ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = {
      "premise": tfds.features.Text(), "hypothesis": tfds.features.Text(), "label": label, "idx": np.int32,
    }  # fmt: skip
    rows = [{"premise": f"é {i}", "hypothesis": "b", "label": i, "idx": 9 - i} for i in range(3)]
    folder = write_tfds(tmp_path, features, {"train": rows, "test_matched": [row | {"label": -1} for row in rows]})
    split_data = glue.read(glue.TASKS["mnli"], folder, "train")
    assert split_data.first == ["é 0", "é 1", "é 2"]
    assert split_data.gold.tolist() == [0, 1, 2]
    assert split_data.index == [9, 8, 7]
    assert glue.read(glue.TASKS["mnli"], folder, "test_matched").gold is None
    with pytest.raises(UserError, match="split 'nowhere', cannot be read"):
      glue.read(glue.TASKS["mnli"], folder, "nowhere")

  def test_scores(self, tmp_path):
    text = tfds.features.Text()
    features = {"sentence1": text, "sentence2": text, "label": np.float32, "idx": np.int32}
    rows = [{"sentence1": "a", "sentence2": "b", "label": 2.5 + i, "idx": i} for i in range(2)]
    folder = write_tfds(tmp_path, features, {"train": rows, "test": [row | {"label": -1.0} for row in rows]})
    assert glue.read(glue.TASKS["sts-b"], folder, "train").gold.tolist() == [2.5, 3.5]
    assert glue.read(glue.TASKS["sts-b"], folder, "test").gold is None

  def test_glue_is_known_though_tfds_does_not_import_it(self, tmp_path):
    """It is not prepared here, and that is what is said, not that there is no such dataset."""
    with pytest.raises(UserError, match="tfds build glue/sst2"):
      glue.read(glue.TASKS["sst-2"], "glue/sst2", "train", tfds_dir=str(tmp_path))


class TestScores:
  @pytest.mark.parametrize("name", ALL)
  def test_all_right(self, name, checkpoint, folder):
    row = glue.TASKS[name]
    task = make(checkpoint, folder, name)
    parts = [glue.read(row, folder, split) for _, split in glue.parts_of(row, "validation")]
    gold = np.concatenate([part.gold for part in parts])
    numbers, files = answered(task, np.eye(3)[gold][:, : len(row.labels)] if row.labels else gold[:, None])
    endings = ["", "_mismatched"] if name == "mnli" else [""]
    assert set(numbers) == {metric + ending for metric in row.metrics for ending in endings}
    for metric in ("accuracy", "accuracy_mismatched", "pearson"):
      assert numbers.get(metric, 1) == pytest.approx(1)
    assert set(task.baselines) == {"loss", *numbers}
    # Nobody should hand in these: they are no test's answers.
    names = ["MNLI-m", "MNLI-mm"] if name == "mnli" else [row.submission]
    assert set(files) == {f"validation-{x}.tsv" for x in names}
    assert load_config(f"{CONFIG}:{name}").best in numbers

  def test_mnli_has_two_parts(self, checkpoint, folder):
    numbers, files = answered(make(checkpoint, folder, "mnli"), [[0, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert numbers == {"accuracy": 0.5, "accuracy_mismatched": 1.0}
    assert files["validation-MNLI-mm.tsv"] == b"index\tprediction\n0\tcontradiction\n"
    numbers, files = answered(make(checkpoint, folder, "mnli", validation_split="validation_mismatched"), [[0, 0, 1]])
    assert (numbers, set(files)) == ({"accuracy": 1.0}, {"validation_mismatched-MNLI-mm.tsv"})

  @pytest.mark.parametrize(
    ("name", "outputs", "files"),
    [
      ("cola", [[1, 0], [0, 1]], {"CoLA": "0\t0\n1\t1\n"}),
      ("sts-b", [[5.25]], {"STS-B": "0\t5.000\n"}),
      ("qqp", [[0, 1], [1, 0]], {"QQP": "0\t0\n1\t1\n"}),  # by number, and there 1 comes first
      ("mnli", [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
       {"MNLI-m": "0\tentailment\n1\tneutral\n", "MNLI-mm": "0\tcontradiction\n"}),
      ("rte", [[0, 1]], {"RTE": "0\tnot_entailment\n"}),
      ("wnli", [[0, 1]], {"WNLI": "0\t1\n"}),
      ("ax", [[0, 1, 0], [1, 0, 0]], {"AX": "0\tneutral\n1\tentailment\n"}),
    ],
  )  # fmt: skip
  def test_submissions(self, name, outputs, files, checkpoint, folder):
    task = make(checkpoint, folder, name, validation_split="test")
    numbers, written = answered(task, outputs)
    assert (numbers, task.baselines) == ({}, {})
    archive = zipfile.ZipFile(io.BytesIO(written.pop("submission.zip")))
    assert written == {f"{file}.tsv": f"index\tprediction\n{lines}".encode() for file, lines in files.items()}
    assert {file: archive.read(file) for file in archive.namelist()} == written

  def test_ax_is_not_trained_on(self, checkpoint, folder):
    with pytest.raises(UserError, match=r"AX has no training data; .*glue\.py:ax"):
      next(iter(make(checkpoint, folder, "ax").train_batches(0, 0, 1)))

  def test_answers_made_elsewhere(self, folder, tmp_path, capsys):
    path = tmp_path / "MRPC.tsv"
    path.write_text("index\tprediction\n0\t1\n")
    arguments = ["evaluate", "--task=glue", f"--predictions={path}", f"--json={tmp_path / 'numbers.json'}"]
    assert main([*arguments, f"--gold={folder / 'MRPC/dev.tsv'}"]) == 0
    assert json.loads(capsys.readouterr().out) == {"accuracy": 1.0, "f1": 1.0}
    assert json.loads((tmp_path / "numbers.json").read_text()) == {"accuracy": 1.0, "f1": 1.0}
    assert main([*arguments, f"--gold={folder / 'MRPC/train.tsv'}"]) == 2
    assert "has 1 answers" in capsys.readouterr().err
    path.write_text("prediction\n1\n")
    assert main([*arguments, f"--gold={folder / 'MRPC/dev.tsv'}"]) == 2
    assert capsys.readouterr().err.endswith("has no column 'index'; expected one of prediction\n")
    scores = tmp_path / "run-STS-B.tsv"
    scores.write_text("index\tprediction\n2\t2\n0\t1\n1\t3\n")
    assert glue.score_files(scores, folder / "STS-B/dev.tsv") == pytest.approx({"pearson": 0.9819805, "spearman": 1.0})
    scores.write_text("index\tprediction\n2\tnan\n0\t1\n1\t3\n")
    with pytest.raises(UserError, match="has no label in 'prediction'"):
      glue.score_files(scores, folder / "STS-B/dev.tsv")
    with pytest.raises(UserError, match="its name should say which dataset"):
      glue.score_files(tmp_path / "answers.tsv", folder / "STS-B/dev.tsv")

  @pytest.mark.parametrize(("name", "content"), [
    ("SST-2.jsonl", '{"index": 0, "prediction": 1}\n{"index": 1, "prediction": 0}\n'),
    ("SST-2.tsv", "index\tprediction\n1\t0.0\n0\t1.0\n"),
  ])  # fmt: skip
  def test_labels_that_are_numbers(self, name, content, tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na\t1\nb\t0\n")
    (tmp_path / name).write_text(content)
    assert glue.score_files(tmp_path / name, tmp_path / "dev.tsv") == {"accuracy": 1.0}

  def test_a_number_that_is_answered_twice(self, tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\na\t1\nb\t0\n")
    (tmp_path / "SST-2.tsv").write_text("index\tprediction\n0\t1\n0\t0\n")
    with pytest.raises(UserError, match="look for a repeated number"):
      glue.score_files(tmp_path / "SST-2.tsv", tmp_path / "dev.tsv")


class TestConfig:
  def test_the_papers_values(self):
    assert set(configs_of()) == set(glue.TASKS)
    rte = load_config(f"{CONFIG}:rte-xxlarge")
    assert (rte.model.hidden_size, rte.model.hidden_dropout_prob, rte.model.classifier_dropout_prob) == (4096, 0.1, 0.1)
    assert (rte.optimizer.learning_rate, rte.optimizer.warmup_steps) == (3e-5, 200)
    assert (rte.batch_size, rte.steps, rte.data.seq_length, rte.epochs) == (32, 800, 512, 0)
    assert load_config(f"{CONFIG}:cola").model.hidden_size == 768
    with pytest.raises(ValueError, match="use one of cola"):
      load_config(f"{CONFIG}:xxlarge")

  def test_warm_start_from_mnli(self, checkpoint, folder):
    """The classifier of three labels is left out, that of two begins fresh; the pooler stays."""
    mnli, rte = make(checkpoint, folder, "mnli"), make(checkpoint, folder, "rte")
    loaded = jax.device_get(mnli.init(jax.random.key(1)))
    fresh = jax.device_get(rte.init(jax.random.key(0)))
    params, line = convert.fit(fresh, loaded, new=rte.new, unused=rte.unused)
    assert "new: classifier/bias, classifier/kernel; not used: classifier/bias, classifier/kernel" in line
    np.testing.assert_array_equal(params["pooler"]["kernel"], loaded["pooler"]["kernel"])
    np.testing.assert_array_equal(params["classifier"]["kernel"], fresh["classifier"]["kernel"])


def configs_of():
  return {name: load_config(f"{CONFIG}:{name}") for name in glue.TASKS}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_runs")
def test_end_to_end(checkpoint, folder, tmp_path, capsys):
  """Trained, gone on with, evaluated, and a submission made."""
  workdir = tmp_path / "run"
  flags = [
    f"--config={CONFIG}:sts-b-tiny", f"--config.data.dataset={folder}", "--config.data.seq_length=32",
    "--config.batch_size=8", "--config.optimizer.warmup_steps=1",
  ]  # fmt: skip
  for steps in (2, 4):
    more = [f"--config.steps={steps}", "--config.eval_every=2", "--config.log_every=1", "--config.checkpoint_every=2"]
    assert main(["train", *flags, *more, f"--config.init_from={checkpoint}", f"--workdir={workdir}"]) == 0
  lines = read(workdir)
  assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
  held_out = [line for line in lines if line["split"] == "eval"]
  best = max(held_out, key=lambda line: line["pearson"])
  assert (workdir / "predictions/validation-STS-B.tsv").read_text().startswith("index\tprediction\n0\t")
  capsys.readouterr()
  assert main(["evaluate", *flags, f"--checkpoint={workdir}"]) == 0
  assert json.loads(capsys.readouterr().out)["pearson"] == pytest.approx(best["pearson"], rel=1e-4)
  test = ["--config.data.validation_split=test", f"--checkpoint={workdir}", f"--out={tmp_path / 'out'}"]
  assert main(["evaluate", *flags, *test]) == 0
  assert json.loads(capsys.readouterr().out) == {}
  assert {path.name for path in (tmp_path / "out").iterdir()} == {"STS-B.tsv", "submission.zip"}
