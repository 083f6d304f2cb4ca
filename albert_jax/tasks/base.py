"""What the training loop knows of a task, and nothing else."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

from albert_jax.data.finetuning import batching
from albert_jax.data.speech.symbols import Symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig


@dataclass(frozen=True)
class Task:
  """A model with a purpose.

  init(key) -> params: fresh parameters, heads included.
  sums(params, batch, key) -> {name: (total, weight)}: float32 sums over rows; total / weight is the metric. `key` is
    [B] keys, one a row, or None: then nothing is dropped out, and evaluation uses the same function.
  terms(batch) -> {name: coefficient}: the loss is the sum of coefficient * total, so that it can be summed over
    micro-batches and devices and still be the mean over the whole batch.
  train_batches(start_step, host, hosts) -> iterator over this host's rows of the global batches, from `start_step` on.
  eval_batches(host, hosts) -> one finite pass; padded rows weigh 0; as many batches on every host.
  baselines: {metric: (value, what it is)}: what the held-out metric would be without learning.
  vocabulary: the Tokenizer (or symbol table) whose ids the batches hold; exported with the weights.
  metrics: the names of all held-out metrics, so that a misspelt `best` is refused before training; () if not known.

  Where held-out numbers are not ratios of sums (F1, correlations, exact match), or answers are files:
  outputs(params, batch) -> {name: array [B, ...]}, on the device.
  score({name: list of arrays, one a row of the split}) -> ({metric: number}, {file name: bytes}), on the host.

  For fine-tuning:
  train_rows: examples of an epoch; 0 where nobody counts epochs.
  new, unused: regular expressions of parameters that `init_from` need not have, and of those it may have in vain.
  about: what an export says of the task, see the function `about`.
  architecture: the class of transformers that opens the export; '' for the one that its parameters imply.
  row_flops: operations of the task's own heads for a row of a training step, where they are not small.
  """

  model: AlbertConfig
  init: Callable
  sums: Callable
  terms: Callable
  train_batches: Callable
  eval_batches: Callable
  baselines: dict
  vocabulary: Tokenizer | Symbols
  metrics: tuple[str, ...] = ()
  outputs: Callable | None = None
  score: Callable | None = None
  train_rows: int = 0
  new: tuple[str, ...] = ()
  unused: tuple[str, ...] = ()
  about: dict = dataclasses.field(default_factory=dict)
  architecture: str = ""
  row_flops: float = 0.0


@dataclass(frozen=True)
class Sketch:
  """What a pre-training task computes, without its data: enough to compile its train step for another machine.

  model, init, sums, terms, row_flops: as of Task. arrays: {name: (shape, dtype)} of a batch. slots: positions of a row
  for which logits of the vocabulary are made by the model's own head.
  """

  model: AlbertConfig
  init: Callable
  sums: Callable
  terms: Callable
  arrays: dict
  slots: int
  row_flops: float = 0.0


def batches(config, training, held_out, first_row) -> dict:
  """`train_batches` and `eval_batches` of a Task whose splits are data.finetuning.batching.Rows.

  Args: training, held_out: functions () -> Rows, called when they are first needed. first_row: see tasks.make.
  Rows are never padded beyond data.seq_length, which fits the model's positions.
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


def about(name: str, labels=(), **options) -> dict:
  """What an export says of its task: keys of config.json, of which `albert_jax.pipeline` reads "albert_jax_task".

  Args: name: the pipeline's task (classify, answer, tag, choose, embed, summarize). labels: names, in the order of the
    head's outputs. options: what the pipeline has to know besides, such as seq_length; plain JSON values.
  """
  fields = {"albert_jax_task": {"name": name, "labels": list(labels), **options}}
  if labels:  # transformers' own names for the same.
    fields["id2label"] = {str(i): str(label) for i, label in enumerate(labels)}
    fields["label2id"] = {str(label): i for i, label in enumerate(labels)}
  return fields


def model_and_vocabulary(config, vocabulary) -> tuple[AlbertConfig, Tokenizer]:
  """The model and the Tokenizer of a fine-tuning config. Args: vocabulary: that of `init_from`, or None.

  Raises: UserError where there is no vocabulary, or it or data.seq_length does not fit the model.
  """
  if config.data.spm:
    given = Tokenizer(config.data.spm)
    if vocabulary is not None and given.pieces != vocabulary.pieces:
      raise UserError(
        f"data.spm={config.data.spm} is another vocabulary than the checkpoint's, {vocabulary.path}, so its ids would "
        "mean other pieces; leave data.spm empty"
      )
    vocabulary = vocabulary or given  # The checkpoint's also knows its rules.
  if vocabulary is None:
    raise UserError(
      "no vocabulary: begin with a checkpoint that has one, --config.init_from=RUN, or give --config.data.spm=FILE"
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


def joined(labels) -> str:
  """Names as `task.labels` has them: with commas between, or as a JSON list where a name has a comma itself."""
  return json.dumps(list(labels)) if any("," in name for name in labels) else ",".join(labels)


def named(labels: str) -> tuple[str, ...]:
  """The inverse of `joined`; () for ''."""
  return tuple(json.loads(labels) if labels.startswith("[") else labels.split(",") if labels else ())
