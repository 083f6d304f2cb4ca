"""Lists the fields of a config with value, type and meaning, for --show_config and docs/config_fields.md."""

import dataclasses
import importlib
import inspect
import pathlib
import re

from ml_collections import ConfigDict

# The dataclasses whose fields are sections of a config.
_SECTIONS = {
  "model": "albert_jax.model.config:AlbertConfig",
  "optimizer": "albert_jax.training.optimizer:OptimizerConfig",
  "guard": "albert_jax.training.guard:GuardConfig",
  "mesh": "albert_jax.training.sharding:MeshConfig",
  "distill": "albert_jax.tasks.distill:DistillConfig",
}
# The dataclass of the section `data`, by the name of the task.
_FINETUNING = "albert_jax.data.finetuning.config"
_DATA = {
  "pretrain": "albert_jax.data.pretraining.examples:DataConfig",
  "plbert": "albert_jax.data.speech.batching:SpeechConfig",
  "classify": f"{_FINETUNING}:ClassifyData",
  "glue": f"{_FINETUNING}:GlueData",
  "squad": f"{_FINETUNING}:SquadData",
  "ner": f"{_FINETUNING}:TaggingData",
  "choice": f"{_FINETUNING}:ChoiceData",
  "retrieve": f"{_FINETUNING}:RetrieveData",
  "summarize": f"{_FINETUNING}:SummarizeData",
}
# The meaning of fields without a comment at their definition.
_MEANINGS = {
  "seed": "of the parameters, the order of the data, masks and dropout",
  "steps": "steps of the optimizer in the whole run",
  "checkpoint_every": "steps between checkpoints",
  "eval_every": "steps between evaluations on held-out data",
  "task.name": "which task is trained, see albert_jax/tasks",
  "task.dataset": "which dataset of GLUE",
  "task.label_smoothing": "share of a label's probability that is spread over all labels",
  "task.max_query_length": "the longest question, in tokens",
  "task.n_best": "answers listed for each question",
  "task.end_n_top": "beam: ends that are tried for each start",
  "loss.mlm_weight": "factor on the masked language model's loss",
  "loss.sop_weight": "factor on the sentence order loss",
  "loss.phoneme_weight": "factor on the loss of masked phonemes",
  "loss.word_weight": "factor on the loss of words",
  "data.split": "the split to train on",
  "data.validation_split": "the split to evaluate on",
  "data.seq_length": "tokens in a row",
  "data.label_field": "the column or field of the label",
  "data.tag_column": "the column of the tags, from 0, or from -1 at the end",
  "data.tag_field": "the field of the tags, of JSON lines",
  "data.query_field": "the field of the query",
  "data.answer_field": "the field of the answer",
  "data.document_field": "the field of the document",
  "data.summary_field": "the field of the summary",
  "data.labels_field": "the field of the sentences' labels",
  "model.vocab_size": "rows of the embedding table",
  "model.embedding_size": "E, the width of the token embeddings",
  "model.hidden_size": "D, the width of the layers",
  "model.num_hidden_layers": "how often a layer is applied",
  "model.num_hidden_groups": "groups of layers with parameters of their own",
  "model.inner_group_num": "layers in a group that differ",
  "model.num_attention_heads": "H, heads of each attention",
  "model.intermediate_size": "F, the width inside the feed-forward part",
  "model.hidden_dropout_prob": "dropout after attention, feed-forward and embeddings",
  "model.attention_probs_dropout_prob": "dropout of attention weights",
  "model.classifier_dropout_prob": "dropout before a task's head",
  "model.max_position_embeddings": "the longest sequence that the model can read",
  "model.type_vocab_size": "segment types",
  "model.initializer_range": "standard deviation of fresh weights",
  "model.layer_norm_eps": "added to the variance in layer norms",
  "model.scan_unroll": "layers a turn of the scan computes",
  "model.attention": "the kernel: auto, xla, pallas or cudnn",
  "optimizer.reference_batch": "the batch size that learning_rate is for, with scale_with_batch",
  "optimizer.warmup_steps": "steps over which the learning rate rises from 0",
  "optimizer.weight_decay": "decay of weight matrices a step, times the learning rate",
  "optimizer.eps": "added to the root of the second moment",
}


@dataclasses.dataclass(frozen=True)
class Field:
  """One value of a config.

  Attributes:
    name: with dots, as on the command line after `--config.`.
    value: its value in this config.
    type: its Python type's name.
    meaning: one sentence, '' if none is known.
  """

  name: str
  value: object
  type: str
  meaning: str


def structure() -> tuple[str, ...]:
  """Returns the fields of `model` that are part of a checkpoint's shape. The import takes a second."""
  return importlib.import_module("albert_jax.model.config").STRUCTURE


def fields_of(config: ConfigDict, source: str = "") -> list[Field]:
  """Lists every field of a config.

  Args:
    config: the config.
    source: the text of its file; its comments take precedence over those of the installed configs.
  """
  known = meanings(source, config.get("task", {}).get("name", ""))
  return [
    Field(name, value, type(value).__name__ if value is not None else "any", known.get(name, ""))
    for name, value in flat(config).items()
  ]


def flat(config: ConfigDict, prefix: str = "") -> dict:
  """Returns {name with dots: value} of a config."""
  fields = {}
  for name, value in config.items():
    fields |= flat(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {f"{prefix}{name}": value}
  return fields


def meanings(source: str = "", task: str = "") -> dict[str, str]:
  """Returns {field: meaning} from the comments in `source`, the installed configs and a task's dataclasses."""
  comments = dict(_MEANINGS)
  folder = pathlib.Path(importlib.import_module("albert_jax.configs").__path__[0])
  for path in sorted(folder.glob("*.py"), key=lambda path: path.name != "common.py", reverse=True):
    comments |= _of_config_file(path.read_text("utf-8"))
  for section, name in (_SECTIONS | ({"data": _DATA[task]} if task in _DATA else {})).items():
    module, name = name.split(":")
    for cls in reversed(getattr(importlib.import_module(module), name).__mro__[:-1]):
      comments |= {f"{section}.{field}": text for field, text in _of_dataclass(cls).items()}
  return comments | _of_config_file(source)


def table(config: ConfigDict, source: str = "") -> str:
  """Returns the fields as aligned lines for a terminal."""
  rows = [(field.name, repr(field.value), field.type, field.meaning) for field in fields_of(config, source)]
  widths = [min(max(len(row[i]) for row in rows), (40, 34, 8)[i]) for i in range(3)]
  lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
  return "\n".join(line.rstrip() for line in lines)


def markdown(configs: dict[str, ConfigDict]) -> str:
  """Returns docs/config_fields.md: a table of the first config's fields, and of the additional fields of the others.

  Args:
    configs: {name, such as "pretrain:base": config}; the first one is for pre-training.
  """
  first, *remaining = configs
  lines = [
    "# Config fields",
    "",
    "Set any field on the command line: `--config.optimizer.learning_rate=1e-3`. This page is generated by",
    "`python -m albert_jax.commands.config_fields docs/config_fields.md`; `albert-jax train --config=X --show_config`",
    "prints the same for one config.",
  ]
  known = {(field.name, field.meaning) for field in fields_of(configs[first])}
  for name in (first, *remaining):
    skip = known if name != first else set()
    title = f"`--config={first}`" if name == first else f"`--config={name}`, besides the fields above"
    rows = [field for field in fields_of(configs[name]) if (field.name, field.meaning) not in skip]
    lines += ["", f"## {title}", "", "| field | type | default | meaning |", "|---|---|---|---|"]
    for field in rows:
      text = field.meaning.replace("|", "\\|")
      lines.append(f"| `{field.name}` | {field.type} | `{field.value!r}` | {text} |")
  return "\n".join(lines) + "\n"


def _of_config_file(text: str) -> dict[str, str]:
  """Returns {field: comment} of the assignments to `config.…` in a config file."""
  comments, section, above = {}, "", ""
  for line in text.splitlines():
    stripped = line.strip()
    if stripped.startswith("# "):
      above = f"{above} {stripped[2:]}".strip()
      continue
    opened = re.match(r"\s*config\.(\w+)(?: = ConfigDict\(|\.update\()\{$", line)
    assigned = re.match(r"\s*config\.([\w.]+) = .*?(?:  # (.*))?$", line)
    entry = re.match(r'\s*"(\w+)": .*?(?:  # (.*))?$', line)
    if opened:
      section = f"{opened[1]}."
    elif assigned and (assigned[2] or above):
      comments.setdefault(assigned[1], assigned[2] or above)
    elif entry and section and entry[2]:
      comments.setdefault(section + entry[1], entry[2])
    if stripped.startswith("})"):
      section = ""
    above = ""
    if assigned and "ConfigDict({" in line and line.rstrip().endswith("})") and comments.get(assigned[1]):
      # A section on one line: its comment is about each field.
      comments |= {f"{assigned[1]}.{key}": comments[assigned[1]] for key in re.findall(r'"(\w+)":', line)}
  return comments


def _of_dataclass(cls: type) -> dict[str, str]:
  """Returns {field: its comment, or its line in the docstring's Attributes}."""
  source, comments = inspect.getsource(cls), {}
  documented = re.search(r"Attributes:\n(.*?)(?:\n\n|\"\"\")", source, re.DOTALL)
  for names, text in re.findall(r"(?m)^    (\w[\w, ]*): ((?:.|\n      )*)", documented[1] if documented else ""):
    for name in names.split(", "):
      comments[name] = " ".join(text.split()).rstrip(".")
  above = ""
  for line in source.splitlines():
    if comment := re.match(r"  # (.*)", line):
      above = f"{above} {comment[1]}".strip()
    elif field := re.match(r"  (\w+): \w[^#]*?(?:  # (.*))?$", line):
      if text := field[2] or above:
        comments.setdefault(field[1], text.removeprefix("Ours. "))
      above = ""
    else:
      above = ""
  return comments


if __name__ == "__main__":
  from albert_jax import files
  from albert_jax.commands import common

  files.write(common.page_argument(__doc__), markdown({name: common.load_config(name) for name in common.DOCUMENTED}))
