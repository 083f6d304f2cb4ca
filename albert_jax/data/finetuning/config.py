"""What a fine-tuning task reads: `config.data` of each task, checked when it is made."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from albert_jax.data.finetuning import choices, tables
from albert_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FinetuningData:
  """What every task reads.

  Attributes:
    dataset: a TFDS name, an official folder, or files.
    split: the training split: its name, or a file.
    validation_split: the held-out split.
    spm: the vocabulary; '' for that of `init_from`.
    seq_length: the most tokens of a row.
    group_by_length: whether batches have rows of about one length: less padding, another order.
  """

  dataset: str = ""
  split: str = "train"
  validation_split: str = "validation"
  spm: str = ""
  seq_length: int = 512
  group_by_length: bool = False

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if type(value) is not type(field.default) and not (isinstance(field.default, float) and type(value) is int):
        self._fail(field.name, f"a value such as {field.default!r}")
    if not 8 <= self.seq_length <= 65535:
      self._fail("seq_length", "8 to 65535")
    for name in ("split", "validation_split"):
      if not getattr(self, name).strip():
        self._fail(name, "the name of a split, or a file")
    if getattr(self, "quotes", "auto") not in tables.QUOTES:
      self._fail("quotes", f"one of {', '.join(tables.QUOTES)}")

  def _fail(self, name: str, expected: str):
    raise UserError(f"data.{name}={getattr(self, name)!r}: expected {expected}; set it with --config.data.{name}=…")

  def _check_names(self, *names: str):
    for name in names:
      if not getattr(self, name).strip():
        self._fail(name, "the name of a column")

  @classmethod
  def from_config(cls, data: Mapping[str, Any]) -> Self:
    """Makes the dataclass from `config.data`.

    Raises:
      UserError: a field is unknown, is missing, or has a wrong value.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for name in {*data} ^ {*names}:
      raise UserError(f"data.{name} is {'unknown' if name in data else 'missing'}; expected {', '.join(names)}")
    return cls(**data)


@dataclasses.dataclass(frozen=True)
class ClassifyData(FinetuningData):
  """What classification, multi-label classification and regression read.

  Attributes:
    text_fields: one column, or two for pairs: a,b; numbers from 0 for a table without a header.
    label_field: the column with the labels.
    label_separator: between the labels of a row, for multilabel.
    drop_labels: labels, with commas between, whose rows are left out and counted, such as "-" in SNLI.
    validation_fraction: the share of `split` that is kept for validation; 0 reads `validation_split`.
    quotes: of a table: csv, none, or auto, which decides by the file's contents.
    tfds_dir: the folder of TFDS datasets; '' for TFDS' default.
  """

  text_fields: str = "text"
  label_field: str = "label"
  label_separator: str = ","
  drop_labels: str = ""
  validation_fraction: float = 0.0
  quotes: str = "auto"
  tfds_dir: str = ""

  def __post_init__(self):
    super().__post_init__()
    self._check_names("label_field")
    if len(self.texts) not in (1, 2):
      self._fail("text_fields", "one column, or two with a comma between")
    if len({*self.texts, self.label_field.strip()}) <= len(self.texts):
      self._fail("text_fields", f"different columns, and not that of the label, {self.label_field!r}")
    if not self.label_separator:
      self._fail("label_separator", "a character, such as a comma")
    if not 0 <= self.validation_fraction < 1:
      self._fail("validation_fraction", "0, or a share below 1, such as 0.1")
    if self.validation_fraction and self.validation_split != FinetuningData.validation_split:
      raise UserError(
        f"data.validation_split={self.validation_split!r} is not read, because "
        f"data.validation_fraction={self.validation_fraction} holds out a share of data.split; to read it, set "
        "--config.data.validation_fraction=0"
      )

  @property
  def texts(self) -> list[str]:
    """The columns of `text_fields`."""
    return [field.strip() for field in self.text_fields.split(",") if field.strip()]


@dataclasses.dataclass(frozen=True)
class GlueData(FinetuningData):
  """What GLUE reads.

  Attributes:
    tfds_dir: the folder of TFDS datasets; '' for TFDS' default.
  """

  tfds_dir: str = ""


@dataclasses.dataclass(frozen=True)
class SquadData(GlueData):
  """What question answering reads: as GLUE."""

  seq_length: int = 384


@dataclasses.dataclass(frozen=True)
class TaggingData(FinetuningData):
  """What tagging reads.

  Attributes:
    token_column: the column with the words in files with columns, from 0, or from -1 at the end.
    tag_column: the column with the tags.
    token_field: the list of words in JSON lines.
    tag_field: the list of tags.
  """

  token_column: int = 0
  tag_column: int = -1
  token_field: str = "tokens"
  tag_field: str = "tags"
  seq_length: int = 256  # A longer sentence takes several rows.

  def __post_init__(self):
    super().__post_init__()
    self._check_names("token_field", "tag_field")
    if self.token_column == self.tag_column:
      self._fail("tag_column", "another column than data.token_column")


@dataclasses.dataclass(frozen=True)
class ChoiceData(FinetuningData):
  """What multiple choice reads.

  Attributes:
    levels: the parts of RACE, with commas between.
    qa_length: the most tokens of question and option.
    tfds_dir: the folder of TFDS datasets; '' for TFDS' default.
  """

  levels: str = ",".join(choices.LEVELS)
  qa_length: int = 128
  tfds_dir: str = ""

  def __post_init__(self):
    super().__post_init__()
    if not 1 <= self.qa_length <= self.seq_length - 3:
      self._fail("qa_length", f"1 to data.seq_length - 3 = {self.seq_length - 3}")
    if not self.parts or {*self.parts} - {*choices.LEVELS}:
      self._fail("levels", f"some of {', '.join(choices.LEVELS)}")

  @property
  def parts(self) -> tuple[str, ...]:
    """The parts of `levels`."""
    return tuple(level.strip() for level in self.levels.split(",") if level.strip())


@dataclasses.dataclass(frozen=True)
class RetrieveData(FinetuningData):
  """What sentence embeddings read.

  Attributes:
    query_field: the column with the queries, or the first texts.
    answer_field: the column with the answers, or the second texts.
    score_field: the column with the scores; '' to learn from pairs alone, also where there are scores.
    quotes: of a table: csv, none, or auto, which decides by the file's contents.
  """

  query_field: str = "query"
  answer_field: str = "answer"
  score_field: str = "score"
  quotes: str = "auto"
  seq_length: int = 128

  def __post_init__(self):
    super().__post_init__()
    self._check_names("query_field", "answer_field")
    if self.answer_field in (self.query_field, self.score_field):
      self._fail("answer_field", "another column than data.query_field and data.score_field")


@dataclasses.dataclass(frozen=True)
class SummarizeData(FinetuningData):
  """What extractive summaries read.

  Attributes:
    document_field: the column with the documents, texts or lists of sentences.
    summary_field: the column with the summaries.
    labels_field: the column with a 0 or 1 for each sentence.
    quotes: of a table: csv, none, or auto, which decides by the file's contents.
  """

  document_field: str = "document"
  summary_field: str = "summary"
  labels_field: str = "labels"
  quotes: str = "auto"

  def __post_init__(self):
    super().__post_init__()
    self._check_names("document_field", "summary_field", "labels_field")
