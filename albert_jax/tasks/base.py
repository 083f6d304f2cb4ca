"""Defines a task: `Task` for the training loop, `Prediction` for `albert_jax.pipeline`, and `Spec`, which has both.

Each task is one file or folder in this package, with a `SPEC`. docs/contributing/adding_a_task.md has an example.
"""

import dataclasses
import inspect
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from albert_jax.data.finetuning import batching
from albert_jax.data.speech.symbols import Symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, task_heads
from albert_jax.types import Batch, Params

Sums = dict[str, tuple[jax.Array, jax.Array]]  # {name: (total, weight)}, float32 scalars
Baselines = dict[str, tuple[float, str]]  # {metric: (value, what gives it)}


@dataclass(frozen=True)
class Answer:
  """What a task's head computes, as another model of the task can imitate it, see tasks/distill.py.

  Attributes:
    kind: "classes" (a softmax over the last axis), "labels" (each a sigmoid) or "number".
    parts: the parts of the parameters that the head needs.
    logits: (params, out, batch) -> float32 [..., C] without dropout; `out` is the result of model.apply.
    weights: (batch) -> float32 [...], how much each counts.
    scale: a factor on its loss beside those of the task's other answers.
  """

  kind: str
  parts: tuple[str, ...]
  logits: Callable[[Params, dict[str, jax.Array], Batch], jax.Array]
  weights: Callable[[Batch], jax.Array]
  scale: float = 1.0


@dataclass(frozen=True)
class Teacher:
  """A model from which a task learns.

  Attributes:
    path: its checkpoint.
    cfg: its sizes.
    params: its parameters, on the host.
    vocabulary: its Tokenizer.
    about: the facts about its task, see convert.about.
    fingerprint: a SHA-256 of the parameters.
  """

  path: str
  cfg: AlbertConfig
  params: Params
  vocabulary: Tokenizer
  about: dict[str, Any]
  fingerprint: str


@dataclass(frozen=True)
class Task:
  """A task as the training loop runs it.

  Attributes:
    model: the sizes of the encoder.
    init: (key) -> fresh parameters, heads included.
    sums: (params, batch, key) -> {name: (total, weight)}, float32 sums over rows; total / weight is the metric. `key`
      has one key a row, [B], or is None, which turns dropout off; evaluation calls the same function.
    terms: (batch) -> {name: coefficient}. The loss is the sum of coefficient * total. So micro-batches and devices add
      up to the mean over the whole batch.
    train_batches: (start_step, host, hosts) -> iterator over this host's rows of the global batches from `start_step`.
    eval_batches: (host, hosts) -> one finite pass with the same number of batches on every host; padded rows weigh 0.
    baselines: the held-out metrics without learning.
    vocabulary: the Tokenizer (or symbol table) whose ids the batches hold; it is exported with the weights.
    metrics: the names of the held-out numbers, see Spec; `tasks.make` sets them where the task does not.
    has_labels: whether the held-out split has labels; without them an evaluation has answers and no numbers.
    files: () -> see Spec.files; `tasks.make` sets it.
    outputs: (params, batch) -> {name: array [B, ...]} on the device, for `score`; None where `sums` is all.
    score: ({name: list of one array a row of the split}) -> ({metric: number}, {file name: bytes}) on the host, for
      metrics that are no ratio of sums (F1, correlations, exact match), and for files of answers.
    train_rows: examples of an epoch; 0 where epochs are not counted.
    new: regular expressions of parameters that `init_from` need not have.
    unused: regular expressions of parameters that `init_from` may have in vain. A parameter that matches both is fresh.
    about: what an export says of the task, see `about`.
    architecture: the class of transformers that opens the export; '' for the one that the parameters imply.
    row_flops: operations of the task's own heads for a row of a training step, where they are not small.
    exported: trained parameters -> those that an export holds.
    answers: what another model of the task can imitate, by name; {} where nothing is.
    example: makes a text from the held-out data to try the model on, '' if none fits; None where the task has one for
      all languages.
    teacher: its parameters are the argument `frozen` of the train step, and `sums` finds them beside the others, as
      "teacher"; None for none.
  """

  model: AlbertConfig
  init: Callable[[jax.Array], Params]
  sums: Callable[[Params, Batch, jax.Array | None], Sums]
  terms: Callable[[Batch], dict[str, Any]]
  train_batches: Callable[[int, int, int], Iterator[Batch]]
  eval_batches: Callable[[int, int], Iterator[Batch]]
  baselines: Baselines
  vocabulary: Tokenizer | Symbols
  metrics: tuple[str, ...] = ()
  has_labels: bool = True
  files: Callable[[], list[pathlib.Path] | None] = lambda: None
  outputs: Callable[[Params, Batch], dict[str, jax.Array]] | None = None
  score: Callable[[dict[str, list]], tuple[dict[str, float], dict[str, bytes]]] | None = None
  train_rows: int = 0
  new: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()
  about: dict[str, Any] = dataclasses.field(default_factory=dict)
  architecture: str = ""
  row_flops: float = 0.0
  exported: Callable[[Params], Params] = lambda params: params
  answers: dict[str, Answer] = dataclasses.field(default_factory=dict)
  example: Callable[[], str] | None = None
  teacher: Teacher | None = None


@dataclass(frozen=True)
class Sketch:
  """A pre-training task without its data, for compiling its train step for another machine.

  Attributes:
    model: as of Task.
    init: likewise.
    sums: likewise.
    terms: likewise.
    arrays: {name: (shape, dtype)} of a global batch.
    slots: positions of a row for which logits of the vocabulary are made by the model's own head.
    row_flops: as of Task.
    answers: likewise.
    teacher: likewise.
  """

  model: AlbertConfig
  init: Callable[[jax.Array], Params]
  sums: Callable[[Params, Batch, jax.Array | None], Sums]
  terms: Callable[[Batch], dict[str, Any]]
  arrays: dict[str, tuple[tuple[int, ...], Any]]
  slots: int
  row_flops: float = 0.0
  answers: dict[str, Answer] = dataclasses.field(default_factory=dict)
  teacher: Teacher | None = None


@dataclass(frozen=True)
class Prediction:
  """The prediction of a trained model, for `albert_jax.pipeline` and `albert-jax predict`.

  Attributes:
    name: what users call it, such as classify.
    function: (cfg, params, tokenizer, items, **options) -> a dict for each item, in their order. Its keyword-only
      arguments are the options.
    item: what a user gave for one input -> what the function takes; None where it is something else.
    form: what an input is, in words.
    example: an input as typed to `albert-jax predict`.
    parts: alternatives, each the parts of the parameters that the function needs.
    pairs: whether an input always is two texts.
    settings: a dataclass whose fields are options too.
  """

  name: str
  function: Callable[..., list[dict[str, Any]]]
  item: Callable[[Any], Any]
  form: str
  example: str
  parts: tuple[frozenset[str], ...]
  pairs: bool = False
  settings: type | None = None

  def options(self) -> dict[str, Any]:
    """Returns {option: its default}; inspect.Parameter.empty for those without one."""
    parameters = inspect.signature(self.function).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if self.settings:
      options |= {field.name: field.default for field in dataclasses.fields(self.settings)}
    return options


@dataclass(frozen=True)
class Spec:
  """The properties of a kind of task that do not depend on data or weights.

  Attributes:
    make: (config, vocabulary, first_row) -> Task, see `tasks.make`.
    settings: the dataclass of `config.task`, see `settings_of`; None where the config has only the name.
    metrics: (config) -> the names of the held-out numbers, as shell patterns: f1_* stands for all names that begin so.
    files: (config) -> the files of the data that a run reads; None where it reads all of the dataset.
    heads: the parts that the task adds to the parameters, names of model.task_heads.HEADS.
    prediction: what its models answer; None for none of their own.
    score_files: (predictions, gold, **options) -> {metric: number} of answers made elsewhere; None for none.
    sketch: (config) -> Sketch; None where only the data tell the shapes of a batch.
  """

  make: Callable[[ConfigDict, Tokenizer | None, int], Task]
  settings: type | None
  metrics: Callable[[ConfigDict], tuple[str, ...]]
  files: Callable[[ConfigDict], list[pathlib.Path] | None] = lambda config: None
  heads: tuple[str, ...] = ()
  prediction: Prediction | None = None
  score_files: Callable[..., dict[str, float]] | None = None
  sketch: Callable[[ConfigDict], Sketch] | None = None


# The fields of config.task.

SettingsType = TypeVar("SettingsType")


def settings_of(kind: type[SettingsType], config: ConfigDict) -> SettingsType:
  """Makes a task's settings of `config.task`.

  Args:
    kind: a dataclass; its `__post_init__` checks the values.
    config: the whole config.

  Returns:
    an instance of `kind`.

  Raises:
    UserError: `config.task` lacks a field, has one that the task does not know, or one of another type.
  """
  settings = {name: value for name, value in config.task.items() if name != "name"}
  fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
  unknown = [name for name in settings if name not in fields]
  missing = [name for name, field in fields.items() if name not in settings and field.default is dataclasses.MISSING]
  if unknown or missing:
    what = f"has no field {unknown[0]!r}" if unknown else f"needs the field {missing[0]!r}"
    raise UserError(f"task.name={config.task.name} {what}; its fields are {', '.join(fields)}")
  for name, value in settings.items():
    expected = fields[name].type
    if expected in (str, bool, int, float) and type(value) not in ((float, int) if expected is float else (expected,)):
      raise UserError(f"task.{name}={value!r} must be a {expected.__name__}")
  return kind(**settings)


def check_share(name: str, value: float) -> None:
  """Checks a setting that is 0 or more and below 1, such as label smoothing.

  Args:
    name: the field of `config.task`.
    value: its value.

  Raises:
    UserError: the value is outside.
  """
  if not 0 <= value < 1:
    raise UserError(f"task.{name}={value} must be from 0 to below 1; try --config.task.{name}=0.1")


def joined(labels: Iterable[str]) -> str:
  """Writes names as `task.labels` has them: with commas between, or as a JSON list where that would be ambiguous."""
  names = list(labels)
  return json.dumps(names) if any("," in name or name.startswith("[") for name in names) else ",".join(names)


def named(labels: str) -> tuple[str, ...]:
  """Reads `task.labels`, the inverse of `joined`.

  Args:
    labels: names with commas between, or a JSON list of texts; '' for none.

  Returns:
    the names, () for ''.

  Raises:
    UserError: a name is empty or stands twice, or the JSON is no list of texts.
  """
  if labels.startswith("["):
    try:
      names = json.loads(labels)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f"task.labels={labels[:60]!r} is not a JSON list ({error}); write names with commas, or those that begin with "
        '[ as a JSON list: ["[a]", "b"]'
      ) from None
  else:
    names = [name.strip() for name in labels.split(",")] if labels else []
  if not all(isinstance(name, str) and name.strip() for name in names):
    raise UserError(f"task.labels={labels[:60]!r} has an empty name; write names with commas between, as neg,pos")
  if twice := [name for name in names if names.count(name) > 1]:
    raise UserError(f"task.labels={labels[:60]!r} names {twice[0]!r} twice; each label has one name")
  return tuple(names)


# Parts of a Task.


def files_of(find: Callable[[str], list[pathlib.Path] | pathlib.Path | None], *names: str) -> list[pathlib.Path] | None:
  """Lists the files of splits.

  Args:
    find: the name of a split -> its files; None where TFDS reads the dataset.
    names: the names of the splits.

  Returns:
    the paths, each once, sorted; None where TFDS reads the dataset.
  """
  files_of_splits: set[pathlib.Path] = set()
  for name in names:
    paths = find(name)
    if paths is None:
      return None
    files_of_splits |= {paths} if isinstance(paths, pathlib.Path) else {*paths}
  return sorted(files_of_splits)


def batches(config: ConfigDict, training: Callable, held_out: Callable, first_row: int) -> dict[str, Any]:
  """Makes `train_batches` and `eval_batches` of a Task whose splits are data.finetuning.batching.Rows.

  Args:
    config: the whole config. Rows are never padded beyond data.seq_length, which fits the model's positions.
    training: () -> Rows, called when they are first needed.
    held_out: () -> Rows, likewise.
    first_row: see `tasks.make`.

  Returns:
    the two arguments of Task by name.
  """
  common = {"batch_size": config.batch_size, "longest": config.data.seq_length}

  def train_batches(start_step, host, hosts):
    return batching.train_batches(
      training(), **common, seed=config.seed, start_step=start_step, host=host, hosts=hosts, first_row=first_row,
      group_by_length=config.data.group_by_length,
    )  # fmt: skip

  return {
    "train_batches": train_batches,
    "eval_batches": lambda host, hosts: batching.eval_batches(held_out(), **common, host=host, hosts=hosts),
  }


def about(name: str, labels: Iterable[str] = (), **options: Any) -> dict[str, Any]:
  """Makes the facts about the task in an export: keys of config.json; pipelines read "albert_jax_task".

  Args:
    name: the name of its Prediction.
    labels: names, in the order of the head's outputs.
    options: what the prediction has to know besides, such as seq_length; plain JSON values.

  Returns:
    the keys and values.
  """
  fields: dict[str, Any] = {"albert_jax_task": {"name": name, "labels": list(labels), **options}}
  if labels:  # transformers' own names for the same.
    fields["id2label"] = {str(i): str(label) for i, label in enumerate(labels)}
    fields["label2id"] = {str(label): i for i, label in enumerate(labels)}
  return fields


def unused(*own_heads: str, keep: bool = False, pooler: bool = False) -> tuple[str, ...]:
  """Makes `Task.unused`: the parameters of a checkpoint that a fine-tuning task leaves out.

  Args:
    own_heads: the task's own heads.
    keep: whether the task goes on with a checkpoint's heads of these names; else they are fresh.
    pooler: whether the task uses the pooler.

  Returns:
    regular expressions: the heads of pre-training, and those of other tasks.
  """
  heads = [name for name in task_heads.HEADS if not (keep and name in own_heads)]
  return tuple(task_heads.pattern(part) for part in ("mlm", "sop", *([] if pooler else ["pooler"]), *heads))


def model_and_vocabulary(config: ConfigDict, vocabulary: Tokenizer | None) -> tuple[AlbertConfig, Tokenizer]:
  """Settles the model and the Tokenizer of a fine-tuning config.

  Args:
    config: the whole config.
    vocabulary: that of `init_from`, or None.

  Returns:
    the sizes of the model, and the Tokenizer.

  Raises:
    UserError: there is no vocabulary, or it or data.seq_length does not fit the model.
  """
  if config.data.spm:
    named_vocabulary = Tokenizer(config.data.spm)
    if vocabulary is not None and named_vocabulary.pieces != vocabulary.pieces:
      raise UserError(
        f"data.spm={config.data.spm} is another vocabulary than the checkpoint's, {vocabulary.path}, so its ids would "
        "mean other pieces; leave data.spm empty"
      )
    vocabulary = vocabulary or named_vocabulary  # The checkpoint's also knows its rules.
  if vocabulary is None:
    raise UserError(
      "no vocabulary: begin with a checkpoint that has one, such as --config.init_from=albert/albert-base-v2 (needs "
      "pip install 'albert-jax[hub]') or a run of your own, or give --config.data.spm=FILE to start from random weights"
    )
  cfg = AlbertConfig(**{**config.model, "vocab_size": config.model.vocab_size or vocabulary.vocab_size})
  if vocabulary.vocab_size > cfg.vocab_size:
    raise UserError(
      f"{vocabulary.path} has {vocabulary.vocab_size} pieces, the model {cfg.vocab_size}; give the checkpoint's own "
      f"vocabulary, or for a model from scratch --config.model.vocab_size={vocabulary.vocab_size}"
    )
  if config.data.seq_length > cfg.max_position_embeddings:
    raise UserError(
      f"data.seq_length={config.data.seq_length} exceeds the model's {cfg.max_position_embeddings} positions; "
      f"try --config.data.seq_length={cfg.max_position_embeddings}"
    )
  return cfg, vocabulary
