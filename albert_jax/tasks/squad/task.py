"""Question answering: the answer to a question is a span of its passage, or, as in SQuAD 2.0, there may be none."""

import dataclasses
import functools
import json
import logging
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from albert_jax import model
from albert_jax.data.finetuning import squad
from albert_jax.data.finetuning.config import SquadData
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, task_heads
from albert_jax.tasks import base, heads, inputs
from albert_jax.tasks.base import Answer, Prediction, Spec, Sums, Task
from albert_jax.tasks.squad import answers
from albert_jax.tasks.squad import score as scorer
from albert_jax.tasks.squad.answers import Search
from albert_jax.tasks.squad.heads import HEADS, Head, get
from albert_jax.types import Batch, Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
  """`config.task` of configs/squad.py; what it has in common with Search is explained there.

  Attributes:
    head: a name of HEADS.
    language: see score.rules_of.
  """

  head: str
  language: str
  doc_stride: int
  max_query_length: int
  max_answer_length: int
  n_best: int
  start_n_top: int
  end_n_top: int
  no_answer: bool
  null_threshold: float

  def __post_init__(self):
    get(self.head)
    scorer.check_language(self.language)

  def search(self, seq_length: int) -> Search:
    """Returns the Search for rows of a length; checks the values."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(Search) if f.name != "seq_length"}
    return Search(seq_length=seq_length, **fields)


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task of configs/squad.py, see `tasks.make`. An epoch is all windows of all passages once."""
  settings, data = base.settings_of(Settings, config), SquadData.from_config(config.data)
  search, head = settings.search(data.seq_length), get(settings.head)
  cfg, vocabulary = base.model_and_vocabulary(config, vocabulary)

  held_out = squad.read(data.dataset, data.validation_split, data.tfds_dir)
  rules = scorer.rules_of(held_out, settings.language)
  hidden, silent = squad.is_hidden(held_out), sum(not question.answers for question in held_out)
  _check_answers(search, held_out, data.validation_split)

  @functools.cache
  def training():
    questions = squad.read(data.dataset, data.split, data.tfds_dir)
    if squad.is_hidden(questions):
      raise UserError(
        f"the split {data.split!r} of {data.dataset} has no answer at all; train with a split that has some"
      )
    _check_answers(search, questions, data.split)
    windows = answers.encode(questions, vocabulary, search, training=True)
    _log_counts(data.split, windows, len(questions))
    return windows

  @functools.cache
  def validation():
    windows = answers.encode(held_out, vocabulary, search)
    _log_counts(data.validation_split, windows, len(held_out))
    return windows

  return Task(
    model=cfg,
    init=functools.partial(init, cfg, head),
    sums=functools.partial(sums, cfg, head, hidden=hidden),
    terms=heads.mean_loss,
    **base.batches(config, lambda: training().rows, lambda: validation().rows, first_row),
    baselines={} if hidden else {name: (100 * silent / len(held_out), "never an answer") for name in ("exact", "f1")},
    vocabulary=vocabulary,
    has_labels=not hidden,
    outputs=functools.partial(answers.spans, cfg, head, search),
    score=lambda outputs: score(head, validation(), outputs, search, rules),
    train_rows=len(training().rows) if config.epochs else 0,
    new=(task_heads.pattern(head.part),),
    unused=base.unused(head.part, keep=True),
    about=base.about("answer", head=settings.head, language=settings.language, **vars(search)),
    answers={name: _answer(head, name) for name in head.answers},
  )  # fmt: skip


def _answer(head, name):
  kind, logits = head.answers[name]
  scale = 1 / len(head.answers)
  return Answer(
    kind, (head.part,), lambda params, out, batch: logits(params[head.part], out["sequence_output"], batch),
    lambda batch: batch["weight"], scale,
  )  # fmt: skip


def init(cfg: AlbertConfig, head: Head, key: jax.Array) -> Params:
  """Makes fresh parameters: the encoder without pooler, and the head."""
  key_encoder, key_head = jax.random.split(key)
  return {**heads.encoder(cfg, key_encoder, pooler=False), head.part: head.init(cfg, key_head)}


def sums(
  cfg: AlbertConfig, head: Head, params: Params, batch: Batch, key: jax.Array | None, hidden: bool = False
) -> Sums:
  """Implements `Task.sums`: {"loss" and what else the head minimises: (total, weight)} over the rows that count.

  Args:
    cfg: the sizes of the model.
    head: the task's.
    params: the parameters.
    batch: see data.finetuning.squad.
    key: see Task.
    hidden: whether the held-out split hides its answers, so that none of its rows counts.

  Returns:
    the sums.
  """
  x_BLD = model.apply(cfg, params, model.inputs(batch), key)["sequence_output"]
  losses = head.losses(cfg, params[head.part], x_BLD, batch, key)
  weight = jnp.zeros_like(batch["weight"]) if hidden and key is None else batch["weight"]
  return {name: (jnp.sum(weight * loss), jnp.sum(weight)) for name, loss in losses.items()}


def score(
  head: Head, windows: squad.Windows, outputs: dict[str, list], search: Search, rules: str
) -> tuple[dict[str, float], dict[str, bytes]]:
  """Implements `Task.score`: the official numbers, and predictions.json, nbest_predictions.json and null_odds.json.

  `exact` and `f1` are of predictions.json, with task.null_threshold; `best_exact` and `best_f1` of always the best
  text, with the threshold that would have been best on this very split.
  """
  texts, odds, lists = answers.predict(head, windows, outputs, search)
  predictions = answers.decide(texts, odds, search)
  hidden = squad.is_hidden(windows.questions)
  numbers = {} if hidden else scorer.score(windows.questions, predictions, rules)
  files = {"predictions": predictions, "nbest_predictions": lists}
  if search.no_answer:
    files["null_odds"] = odds
    if rules == "squad2" and not hidden:
      raw = scorer.score(windows.questions, texts, rules, odds)
      numbers |= {name: value for name, value in raw.items() if name.startswith("best_")}
  return numbers, {f"{name}.json": (json.dumps(value, indent=4) + "\n").encode() for name, value in files.items()}


def _check_answers(search, questions, split):
  silent = sum(question.impossible for question in questions)
  if silent and not search.no_answer:
    raise UserError(
      f"{silent} of {len(questions)} questions of the split {split!r} have no answer, as in SQuAD 2.0; use "
      "--config.task.no_answer=True, or the config's variant for 2.0"
    )


def _log_counts(split, windows, questions):
  """Logs the size of a split, and the counts of its defects."""
  if jax.process_index() == 0:
    log.info("%s: %d questions, %d windows.", split, questions, len(windows.rows))
    for note, count in windows.notes.items():
      log.info("  %d %s", count, note)
    if questions > len(windows.questions):
      log.info("  %d questions left out: they have no answer to learn", questions - len(windows.questions))


def _metrics(config):
  names = ["loss", *(["span_loss", "answer_loss"] if config.task.head == "beam" else []), "exact", "f1"]
  if config.task.no_answer:
    names += ["best_exact", "best_f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"]
  return tuple(names)


def _files(config):
  data = SquadData.from_config(config.data)
  return base.files_of(functools.partial(squad.find, data.dataset), data.split, data.validation_split)


def _item(value):
  pair = inputs.texts(value, "question", "context")
  return pair and {"question": pair[0], "context": pair[1]}


SPEC = Spec(
  make=make,
  settings=Settings,
  metrics=_metrics,
  files=_files,
  heads=tuple(head.part for head in HEADS.values()),
  prediction=Prediction(
    "answer",
    answers.answer,
    _item,
    '{"question": …, "context": …}, or the two as a pair',
    '{"question": "Who sings?", "context": "In the morning Anna sings."}',
    tuple(frozenset({head.part}) for head in HEADS.values()),
    pairs=True,
    settings=Search,
  ),
  score_files=scorer.score_files,
)
