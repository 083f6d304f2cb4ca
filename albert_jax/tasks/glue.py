"""GLUE: a table of ten datasets, read as official TSV files or from TFDS; the model and the loss are classify's."""

import functools
import io
import pathlib
import zipfile
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from albert_jax.data.finetuning import cells, splits, tables
from albert_jax.data.finetuning.config import GlueData
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks import classify, metrics
from albert_jax.tasks.base import Spec, Task, files_of, settings_of


@dataclass(frozen=True)
class Row:
  """The files, labels and metrics of one dataset.

  Attributes:
    folder: the name of its folder of TSV files.
    tfds: its TFDS name behind "glue/".
    texts: columns of the texts in the TSV files.
    tfds_texts: its columns of texts in TFDS, where the label is "label".
    label: the column of the label in the TSV files.
    labels: names in the order of the head's outputs, which are TFDS' own; () is regression.
    written: how the TSV files and submissions write them.
    metrics: of METRICS; the first is the one to choose a checkpoint by.
    submission: the name of the file of answers.
  """

  folder: str
  tfds: str
  texts: tuple[str, ...]
  tfds_texts: tuple[str, ...]
  label: str
  labels: tuple[str, ...]
  written: tuple[str, ...]
  metrics: tuple[str, ...]
  submission: str


_ONE, _TWO, _NLI_TEXTS = ("sentence",), ("sentence1", "sentence2"), ("premise", "hypothesis")
_01, _NO_YES = ("0", "1"), ("not_entailment", "entailment")
_NLI = ("entailment", "neutral", "contradiction")
_STRINGS, _QUESTIONS = ("#1 String", "#2 String"), ("question1", "question2")
_ENTAILED = ("entailment", "not_entailment")
_F1 = ("accuracy", "f1")
TASKS = {
  "cola": Row("CoLA", "cola", _ONE, _ONE, "label", ("unacceptable", "acceptable"), _01, ("mcc", "accuracy"), "CoLA"),
  "sst-2": Row("SST-2", "sst2", _ONE, _ONE, "label", ("negative", "positive"), _01, ("accuracy",), "SST-2"),
  "mrpc": Row("MRPC", "mrpc", _STRINGS, _TWO, "Quality", ("not_equivalent", "equivalent"), _01, _F1, "MRPC"),
  "sts-b": Row("STS-B", "stsb", _TWO, _TWO, "score", (), (), ("pearson", "spearman"), "STS-B"),
  "qqp": Row("QQP", "qqp", _QUESTIONS, _QUESTIONS, "is_duplicate", ("not_duplicate", "duplicate"), _01, _F1, "QQP"),
  "mnli": Row("MNLI", "mnli", _TWO, _NLI_TEXTS, "gold_label", _NLI, _NLI, ("accuracy",), "MNLI-m"),
  "qnli": Row("QNLI", "qnli", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILED, _ENTAILED,
              ("accuracy",), "QNLI"),
  "rte": Row("RTE", "rte", _TWO, _TWO, "label", _ENTAILED, _ENTAILED, ("accuracy",), "RTE"),
  "wnli": Row("WNLI", "wnli", _TWO, _TWO, "label", _NO_YES, _01, ("accuracy",), "WNLI"),
  # The diagnostics are for a model of MNLI; there is nothing to train on.
  "ax": Row("AX", "ax", _TWO, _NLI_TEXTS, "label", _NLI, _NLI, ("mcc",), "AX"),
}  # fmt: skip

# The official files of a split.
FILES = {
  "train": ("train.tsv", "msr_paraphrase_train.txt"),
  "validation": ("dev.tsv",),
  "validation_matched": ("dev_matched.tsv",),
  "validation_mismatched": ("dev_mismatched.tsv",),
  "test": ("test.tsv", "msr_paraphrase_test.txt", "diagnostic.tsv", "AX.tsv"),
  "test_matched": ("test_matched.tsv",),
  "test_mismatched": ("test_mismatched.tsv",),
}
# CoLA's training and dev files have no header: source, label, the author's mark, sentence.
HEADLESS = {"sentence": "3", "label": "1"}
# The diagnostics with labels are a separate file, with other names: texts, label.
DIAGNOSTICS, DIAGNOSTICS_COLUMNS = "diagnostic-full.tsv", (("Premise", "Hypothesis"), "Label")
INDEX = ("index", "id", "idx")  # the names of the column with a row's number, in files and TFDS
METRICS = {
  "accuracy": lambda gold, outputs: metrics.accuracy(gold, outputs.argmax(axis=1)),
  "f1": lambda gold, outputs: metrics.f1(gold, outputs.argmax(axis=1)),
  "mcc": lambda gold, outputs: metrics.mcc(gold, outputs.argmax(axis=1)),
  "pearson": lambda gold, outputs: metrics.pearson(gold, outputs[:, 0]),
  "spearman": lambda gold, outputs: metrics.spearman(gold, outputs[:, 0]),
}


@dataclass(frozen=True)
class Settings(classify.LossSettings):
  """`config.task` of configs/glue.py.

  Attributes:
    dataset: one of TASKS.
  """

  dataset: str

  def __post_init__(self):
    super().__post_init__()
    self.check_kind("classification" if row_of(self.dataset).labels else "regression")


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/glue.py, see `tasks.make`.

  MNLI's two held-out parts are evaluated in one pass; *_mismatched is the second's.
  """
  settings, data = settings_of(Settings, config), GlueData.from_config(config.data)
  row = row_of(settings.dataset)
  kind = "classification" if row.labels else "regression"

  @functools.cache
  def train():
    if settings.dataset == "ax":
      raise UserError(
        "AX has no training data; evaluate a model of MNLI on it: albert-jax evaluate --config=configs/glue.py:ax "
        "--config.data.dataset=DIR --checkpoint=RUN --out=DIR"
      )
    return read(row, data.dataset, data.split, data.tfds_dir, skip_ragged=True)

  parts = {
    ending: read(row, data.dataset, split, data.tfds_dir) for ending, split in parts_of(row, data.validation_split)
  }
  held_out = _joined(list(parts.values()))
  return classify.build(
    config, settings, vocabulary, first_row, kind=kind, labels=row.labels, held_out=held_out, train=train,
    train_rows=len(train()) if config.epochs else 0,
    score=functools.partial(_score, row, parts, data.validation_split), baselines=_baselines(row, kind, parts),
  )  # fmt: skip


def row_of(name: str) -> Row:
  """Returns the row of a dataset. Raises UserError for a name that is not in the table."""
  if name not in TASKS:
    raise UserError(f"there is no GLUE dataset {name!r}; use one of {', '.join(TASKS)}")
  return TASKS[name]


def parts_of(row: Row, split: str) -> list[tuple[str, str]]:
  """Returns (ending of the metrics' names, split) of the splits that are evaluated in one pass."""
  if row.tfds == "mnli" and split in ("validation", "test"):
    return [("", f"{split}_matched"), ("_mismatched", f"{split}_mismatched")]
  return [("", split)]


def read(row: Row, dataset: str, split: str, tfds_dir: str = "", skip_ragged: bool = False) -> classify.Split:
  """Reads a split.

  Args:
    row: the dataset.
    dataset: the dataset's own folder of TSV or Parquet files, the folder that holds those of all datasets, or a TFDS
      name.
    split: its name.
    tfds_dir: the folder of TFDS datasets; "" for TFDS' default.
    skip_ragged: whether rows with another number of columns are skipped and counted, else they are an error.

  Returns:
    the texts with their labels.
  """
  paths, texts, label = find(row, dataset, split), row.tfds_texts, "label"
  if paths is None:
    rows = tables.read(dataset, split, texts, optional=(label, *INDEX), tfds_dir=tfds_dir)
  elif paths[0].suffix.lower() == ".parquet":  # The Hugging Face Hub has the columns of TFDS.
    rows = tables.read_files(paths, texts, optional=(label, *INDEX))
  else:
    texts, label, rows = _read_official(row, paths, split == "train", skip_ragged)
  tables.filled(rows, split)
  gold = _gold(row, rows, label, may_lack=split != "train")
  first, *second = (tables.texts(rows, field) for field in texts)
  return classify.Split(first, second[0] if second else None, gold, rows.source, _index(rows))


def find(row: Row, dataset: str, split: str) -> list[pathlib.Path] | None:
  """Finds the files of a split, see `read`; None if TFDS reads the dataset."""
  folder = pathlib.Path(dataset).expanduser()
  folder = next((folder / name for name in (row.folder, row.tfds) if (folder / name).is_dir()), folder)
  names = (DIAGNOSTICS,) if row.folder == "AX" and split == "validation" else FILES.get(split)
  if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")):
    names = None
  return splits.find(folder if folder.exists() else dataset, split, tables.SUFFIXES, names or ())


def _gold(row, rows, column, may_lack=False):
  """Returns a column as `classify.Split.gold`."""
  values, names = rows.columns[column], dict(zip(row.written, row.labels, strict=True))
  if names:  # JSON and Parquet have numbers for what is written as text.
    known = [None if cells.is_missing(value) else cells.label(value, rows.where(i)) for i, value in enumerate(values)]
    rows.columns[column] = [names.get(label, value) for label, value in zip(known, values, strict=True)]
  kind = "classification" if row.labels else "regression"
  return classify.gold_of(rows, column, kind, row.labels, may_lack=may_lack)


def _read_official(row, paths, has_labels, skip_ragged):
  """Returns (the columns of texts, that of labels, the rows) of official files."""
  texts, label = row.texts, row.label
  header = splits.read_text(paths[0]).split("\n", 1)[0].split("\t")
  if row.folder == "CoLA" and "sentence" not in header:
    texts, label = tuple(HEADLESS[name] for name in texts), HEADLESS[label]
  if row.folder == "AX" and "Premise" in header:
    texts, label = DIAGNOSTICS_COLUMNS
  required = [*texts, label] if has_labels else texts
  # Quotes are plain characters in these files.
  return texts, label, tables.read_files(
    paths, required, optional=(label, *INDEX), quotes="none", skip_ragged=skip_ragged
  )  # fmt: skip


def _index(rows):
  """Returns the official numbers of the rows, or their positions."""
  for name in INDEX:
    values = rows.columns[name]
    if values and None not in values:
      try:
        index = [int(value) for value in values]
      except ValueError:
        raise UserError(f"{rows.source}: the column {name!r} should hold the rows' numbers") from None
      if len({*index}) == len(index):  # QQP has repeated numbers.
        return index
  return list(range(len(rows)))


def _joined(parts):
  """Concatenates several splits."""
  if len({part.gold is None for part in parts}) > 1:
    raise UserError(f"only some of {', '.join(part.source for part in parts)} have labels")
  return classify.Split(
    first=[text for part in parts for text in part.first],
    second=None if parts[0].second is None else [text for part in parts for text in part.second],
    gold=None if parts[0].gold is None else np.concatenate([part.gold for part in parts]),
    source=", ".join(part.source for part in parts),
    index=[i for part in parts for i in part.index],
  )


# Scores.


def _measure(row, parts, outputs):
  """Returns {metric: number} of all parts that have labels.

  Args:
    outputs: {ending: [n, C]}.
  """
  return {
    name + ending: METRICS[name](part.gold, outputs[ending])
    for ending, part in parts.items() if part.gold is not None
    for name in row.metrics
  }  # fmt: skip


def _baselines(row, kind, parts):
  """Returns the baselines of `classify` for the first part, and every metric of a constant answer."""
  first = parts[""]
  if first.gold is None:
    return {}
  constant = np.bincount(first.gold, minlength=len(row.labels)) if row.labels else np.zeros(1)
  scores = _measure(row, parts, {ending: np.tile(constant, (len(part), 1)) for ending, part in parts.items()})
  what = "always the most frequent label" if row.labels else "always the same number"
  loss = classify.baselines(kind, first.gold, len(row.labels))["loss"]
  return {"loss": loss} | {name: (value, what) for name, value in scores.items()}


def _score(row, parts, split, outputs):
  """Implements `Task.score`: the metrics, and the answers in the format of GLUE's site."""
  logits, start, by_part, files = metrics.finite(np.stack(outputs["outputs"])), 0, {}, {}
  for ending, part in parts.items():
    by_part[ending] = logits[start : start + len(part)]
    start += len(part)
    name = "MNLI-mm" if ending or split.endswith("_mismatched") else row.submission
    files[f"{name}.tsv"] = submission(row, part.index, by_part[ending])
  if any(part.gold is not None for part in parts.values()):
    # Not to be taken for a submission: these are not the test's answers.
    files = {f"{split.replace('/', '-')}-{name}": content for name, content in files.items()}
  else:
    files["submission.zip"] = zipped(files)
  return _measure(row, parts, by_part), files


def score_files(predictions: str, gold: str) -> dict[str, float]:
  """Scores answers of another program.

  Args:
    predictions: a TSV with the columns index and prediction, whose name ends as GLUE calls it, such as SST-2.tsv.
    gold: the official file, such as SST-2/dev.tsv.

  Returns:
    {metric: number}.

  Raises:
    UserError: the two are not of the same rows.
  """
  called = {row.submission: row for row in TASKS.values()} | {"MNLI-mm": TASKS["mnli"]}
  stem = pathlib.Path(predictions).stem
  row = next((row for name, row in called.items() if stem.endswith(name)), None)
  if row is None:
    raise UserError(f"{predictions}: its name should say which dataset it is of: {', '.join(called)}, as in SST-2.tsv")
  _, label, rows = _read_official(row, [gold], has_labels=True, skip_ragged=False)
  expected, index = _gold(row, rows, label), _index(rows)
  answers = tables.read_file(predictions, ["index", "prediction"], optional=INDEX[1:], quotes="none")
  answer_of = dict(zip(_index(answers), _gold(row, answers, "prediction"), strict=True))
  if len({*answers.columns["index"]}) != len(answers) or answer_of.keys() != set(index):
    odd = sorted(answer_of.keys() ^ set(index))[:3]
    raise UserError(
      f"{predictions} has {len(answers):,} answers, {gold} {len(index):,} rows; both need the same numbers in the "
      f"column index, once each; look for {', '.join(map(str, odd)) or 'a repeated number'}"
    )
  best = np.array([answer_of[i] for i in index])
  outputs = np.eye(len(row.labels))[best] if row.labels else best[:, None]
  return {name: METRICS[name](expected, outputs) for name in row.metrics}


def submission(row: Row, index: list[int], outputs: np.ndarray) -> bytes:
  """Writes the TSV of GLUE's site: a header, and each row's number and answer, by number.

  Args:
    row: the dataset.
    index: the rows' numbers.
    outputs: the head's, [n, C].

  Returns:
    the file.
  """
  if row.labels:
    answers = [row.written[best] for best in outputs.argmax(axis=1)]
  else:
    answers = [f"{score:.3f}" for score in np.clip(outputs[:, 0], 0, 5)]  # The range of STS-B's own scores.
  lines = sorted(zip(index, answers, strict=True), key=lambda line: line[0])
  return ("index\tprediction\n" + "".join(f"{number}\t{answer}\n" for number, answer in lines)).encode()


def zipped(files: dict[str, bytes]) -> bytes:
  """Packs {file name: bytes} as a zip; equal files give equal bytes."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
  return buffer.getvalue()


def _metrics(config):
  row = row_of(config.task.dataset)
  endings = [ending for ending, _ in parts_of(row, config.data.validation_split)]
  return ("loss", *([] if not row.labels else ["accuracy"]), *(name + e for e in endings for name in row.metrics))


def _files(config):
  row, data = row_of(config.task.dataset), config.data
  names = [data.split, *(split for _, split in parts_of(row, data.validation_split))]
  return files_of(functools.partial(find, row, data.dataset), *names)


SPEC = Spec(
  make=make,
  settings=Settings,
  metrics=lambda config: tuple(dict.fromkeys(_metrics(config))),
  files=_files,
  heads=(classify.HEAD,),
  prediction=classify.PREDICTION,
  score_files=score_files,
)
