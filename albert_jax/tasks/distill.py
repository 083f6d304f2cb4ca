"""Distillation: a task whose model also learns the answers, hidden states and attention relations of a teacher.

The teacher computes in the same step on the same batch, without dropout and without gradients.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax import convert, model, paths
from albert_jax.errors import UserError
from albert_jax.model import task_heads
from albert_jax.tasks import heads
from albert_jax.tasks.base import Sketch, Sums, Task, Teacher
from albert_jax.types import Batch, Params

PROJECTION = "distill"  # the part of the parameters that maps the student's hidden states to the teacher's width
LOWEST = -1e30  # of a logit, so that a quotient of it is finite
LARGEST = 1e6
_OF_ANSWERS = ("temperature", "logit_weight")
_HEADS = ("mlm", "sop", "pooler", *task_heads.HEADS)

TaskType = TypeVar("TaskType", Task, Sketch)


@dataclass(frozen=True)
class DistillConfig:
  """`config.distill`. Raises UserError for a value that is out of range, or has no effect."""

  teacher: str = ""  # the checkpoint to learn from, of any kind and size, with the same vocabulary and labels; '': none
  temperature: float = 2.0  # divides the logits of both models before the softmax; 1 leaves them
  label_weight: float = 1.0  # factor on the task's own loss; 0: learn from the teacher alone
  logit_weight: float = 1.0  # factor on the divergence from the teacher's answers (arXiv 1503.02531)
  hidden_weight: float = 0.0  # factor on the squared error of hidden states, through a projection (arXiv 1909.10351)
  # Factor on the divergence of the last layers' relations of queries, keys and values (MiniLMv2, arXiv 2012.15828).
  relation_weight: float = 0.0
  relation_heads: int = 0  # parts that queries, keys and values are cut into for their relations; 0: the model's heads
  # Fewer layers are trained too, without a teacher: a row's answers after a random number of layers, at least so many,
  # imitate its answers after all layers; 0: no.
  least_layers: int = 0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      needs_teacher = field.name != "least_layers" and not (self.least_layers and field.name in _OF_ANSWERS)
      if not self.teacher and needs_teacher and value != field.default:
        raise UserError(
          f"distill.{field.name}={value} has no effect without a teacher; add --config.distill.teacher=CHECKPOINT"
        )
      least = 0.01 if field.name == "temperature" else 0
      if field.name != "teacher" and not (math.isfinite(value) and least <= value <= LARGEST):
        raise UserError(f"distill.{field.name}={value} must be from {least} to {LARGEST:g}")
    if self.least_layers and not self.logit_weight:
      raise UserError(
        f"distill.least_layers={self.least_layers} has no effect with distill.logit_weight=0; set that above 0"
      )
    for name, weight in {"temperature": "logit_weight", "relation_heads": "relation_weight"}.items():
      if getattr(self, name) != getattr(DistillConfig, name) and not getattr(self, weight):
        raise UserError(
          f"distill.{name}={getattr(self, name)} has no effect with distill.{weight}=0; set that above 0, or leave "
          f"{name} out"
        )
    if not (self.logit_weight or self.hidden_weight or self.relation_weight):
      raise UserError(
        f"distill.teacher={self.teacher} has nothing to teach: set distill.logit_weight, hidden_weight or "
        "relation_weight above 0"
      )


def load(path: str) -> Teacher:
  """Reads a teacher.

  Args:
    path: a checkpoint of any kind, see convert.load.

  Returns:
    the Teacher, with its vocabulary.

  Raises:
    UserError: there is no checkpoint, or it has no vocabulary.
  """
  cfg, params = convert.load(path)
  vocabulary = convert.load_tokenizer(path)
  digest = hashlib.sha256()
  for name, value in sorted(paths.flatten(params).items()):
    digest.update(f"{name} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes())
  return Teacher(path, cfg, params, vocabulary, convert.about(path), f"sha256:{digest.hexdigest()}")


def adapt(task: TaskType, settings: DistillConfig, seq_length: int, load: Callable[[str], Teacher] = load) -> TaskType:
  """Makes the task that also learns from a teacher.

  Args:
    task: the task without it.
    settings: see DistillConfig.
    seq_length: the longest row of a batch.
    load: reads the teacher.

  Returns:
    the task. Its step needs `{"teacher": parameters}` of Task.teacher beside the parameters. The held-out numbers and
    the export are those of the task without a teacher.

  Raises:
    UserError: the teacher has another vocabulary, other labels, lacks a head, or its shape does not fit the settings.
  """
  if not task.answers:
    raise UserError(
      f"distill.teacher={settings.teacher}: this task has no answers that another model could teach; leave it out"
    )
  teacher = load(settings.teacher)
  answers = {name: answer for name, answer in task.answers.items() if answer.scale and settings.logit_weight}
  relation_heads = settings.relation_heads or task.model.num_attention_heads
  _check(task, settings, teacher, seq_length, answers, relation_heads)
  # The teacher computes as the student does.
  cfg = dataclasses.replace(
    teacher.cfg, dtype=task.model.dtype, attention=task.model.attention, remat="none", hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
  )  # fmt: skip
  parts = {part for answer in answers.values() for part in answer.parts}
  needed = {name: value for name, value in teacher.params.items() if name not in _HEADS or name in parts}
  keeps_hidden = bool(settings.hidden_weight or settings.relation_weight)

  def init(key: jax.Array) -> Params:
    params = task.init(key)
    if not settings.hidden_weight:
      return params
    projection = heads.dense(task.model, jax.random.fold_in(key, 2), task.model.hidden_size, cfg.hidden_size)
    return {**params, PROJECTION: projection}

  def sums(params: Params, batch: Batch, keys: jax.Array | None) -> Sums:
    if keys is None:  # An evaluation.
      return task.sums(params, batch, None)
    student = {name: part for name, part in params.items() if name not in (PROJECTION, "teacher")}
    with model.recorded(keeps_hidden) as calls:
      totals = task.sums(student, batch, keys)
      call, frozen = calls[0], jax.lax.stop_gradient(params["teacher"])
      model.apply(cfg, frozen, model.inputs(call.batch))
    theirs = jax.lax.stop_gradient(calls[-1].out)
    for name, answer in answers.items():
      logits, target_logits = answer.logits(student, call.out, batch), answer.logits(frozen, theirs, batch)
      totals[f"distill_{name}"] = _weighted(
        answer_loss(answer.kind, logits, target_logits, settings.temperature), answer.weights(batch)
      )
    if settings.hidden_weight:
      losses_BL = hidden_loss(params[PROJECTION], call.out["hidden"], theirs["hidden"])
      totals["distill_hidden"] = _weighted(losses_BL, _tokens(batch))
    if settings.relation_weight:
      mine = model.last_projections(call.cfg, call.params, call.out["hidden"][-2])
      target = model.last_projections(cfg, frozen, theirs["hidden"][-2])
      segments_BL = call.batch.get("segment_ids", call.batch["attention_mask"])
      losses_BL = relation_loss(mine, target, segments_BL, relation_heads)
      totals["distill_relations"] = _weighted(losses_BL, _tokens(batch))
    return totals

  def terms(batch: Batch) -> dict[str, Any]:
    coefficients = {name: settings.label_weight * value for name, value in task.terms(batch).items()}
    coefficients = coefficients if settings.label_weight else {}
    for name, answer in answers.items():
      coefficients[f"distill_{name}"] = settings.logit_weight * answer.scale * _mean(answer.weights(batch))
    for name, weight in {"hidden": settings.hidden_weight, "relations": settings.relation_weight}.items():
      if weight:
        coefficients[f"distill_{name}"] = weight * _mean(_tokens(batch))
    return coefficients

  changes: dict[str, Any] = {
    "init": init, "sums": sums, "terms": terms, "teacher": dataclasses.replace(teacher, cfg=cfg, params=needed),
  }  # fmt: skip
  if isinstance(task, Task):
    changes["new"] = (*task.new, f"^{PROJECTION}/")
    changes["exported"] = lambda params: task.exported({k: v for k, v in params.items() if k != PROJECTION})
  return dataclasses.replace(task, **changes)


def adapt_depth(task: TaskType, settings: DistillConfig) -> TaskType:
  """Makes the task whose answers after fewer layers imitate those after all layers, in one pass.

  Args:
    task: the task without it.
    settings: see DistillConfig; `least_layers` is above 0.

  Returns:
    the task; its held-out numbers are those of all layers.

  Raises:
    UserError: the task has no answers, or the model not more than `least_layers` layers.
  """
  least, layers = settings.least_layers, task.model.num_hidden_layers
  answers = {name: answer for name, answer in task.answers.items() if answer.scale}
  if not answers:
    raise UserError(f"distill.least_layers={least}: this task has no answers to imitate; leave it out")
  if least >= layers:
    raise UserError(f"distill.least_layers={least} must be below num_hidden_layers={layers}; try {max(1, layers // 2)}")

  def sums(params: Params, batch: Batch, keys: jax.Array | None) -> Sums:
    if keys is None:  # An evaluation.
      return task.sums(params, batch, None)
    with model.recorded(keeps_hidden=True) as calls:
      totals = task.sums(params, batch, keys)
    call = calls[0]
    depth_B = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, layers), (), least, layers))(keys)
    hidden_NBLD = call.out["hidden"]
    depth_B = jnp.repeat(depth_B, hidden_NBLD.shape[1] // len(depth_B))  # The options of a question are several rows.
    x_BLD = jnp.einsum("BN,NBLD->BLD", jax.nn.one_hot(depth_B, layers + 1, dtype=hidden_NBLD.dtype), hidden_NBLD)
    shallow = model.finish(call.cfg, call.params, x_BLD, call.batch)
    for name, answer in answers.items():
      target = jax.lax.stop_gradient(answer.logits(params, call.out, batch))
      losses = answer_loss(answer.kind, answer.logits(params, shallow, batch), target, settings.temperature)
      totals[f"depth_{name}"] = _weighted(losses, answer.weights(batch))
    return totals

  def terms(batch: Batch) -> dict[str, Any]:
    coefficients = {
      f"depth_{name}": settings.logit_weight * answer.scale * _mean(answer.weights(batch))
      for name, answer in answers.items()
    }
    return task.terms(batch) | coefficients

  return dataclasses.replace(task, sums=sums, terms=terms)


# Losses.


def answer_loss(kind: str, student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Computes how far the student's answers are from the teacher's.

  Args:
    kind: see Answer.
    student: logits [..., C].
    teacher: likewise.
    temperature: T. Its square scales the divergence, so that gradients are about as large at any T (arXiv 1503.02531).

  Returns:
    float32 [...]: T² KL(softmax(teacher / T), softmax(student / T)); of "labels" the mean over C of that of yes and no;
    of "number" the mean squared difference.
  """
  if kind == "number":
    return jnp.mean(jnp.square(student - teacher), axis=-1)
  if kind == "labels":
    student, teacher = (jnp.stack([x, jnp.zeros_like(x)], axis=-1) for x in (student, teacher))
  losses = temperature**2 * _divergence(teacher / temperature, student / temperature)
  return jnp.mean(losses, axis=-1) if kind == "labels" else losses


def hidden_loss(projection: Params, student_NBLD: jax.Array, teacher_NBLD: jax.Array) -> jax.Array:
  """Computes the mean squared error of hidden states (TinyBERT, arXiv 1909.10351).

  Each layer of the student is compared with the teacher's layer at the same relative depth.

  Args:
    projection: a dense layer from the student's width to the teacher's, the same for all layers.
    student_NBLD: the input of the first layer, and the output of each.
    teacher_NBLD: likewise.

  Returns:
    float32 [B, L], mean over the student's layers and the teacher's width.
  """
  layers, theirs = len(student_NBLD) - 1, len(teacher_NBLD) - 1
  chosen = np.array([round(n * theirs / layers) for n in range(1, layers + 1)])
  differences = heads.affine(projection, student_NBLD[1:]) - teacher_NBLD[chosen].astype(jnp.float32)
  return jnp.mean(jnp.square(differences), axis=(0, -1))


def relation_loss(
  student: tuple[jax.Array, ...], teacher: tuple[jax.Array, ...], segments_BL: jax.Array, count: int
) -> jax.Array:
  """Computes the divergence of attention relations (MiniLMv2, arXiv 2012.15828).

  The relation of queries is softmax(Q Q' / sqrt(K)) of each of `count` parts of their width, likewise of keys and of
  values. Both models have the same number of parts, whatever their widths and numbers of heads are.

  Args:
    student: queries, keys and values [B, L, D].
    teacher: likewise.
    segments_BL: positions with the same number above 0 read each other.
    count: parts.

  Returns:
    float32 [B, L], mean over the three relations and the parts.
  """
  reads_BLl = (segments_BL[:, :, None] == segments_BL[:, None, :]) & (segments_BL > 0)[:, None, :]

  def relation(x_BLD):
    x_BLAK = x_BLD.astype(jnp.float32).reshape(*x_BLD.shape[:2], count, -1)
    scores_BALl = jnp.einsum("BLAK,BlAK->BALl", x_BLAK, x_BLAK) / math.sqrt(x_BLAK.shape[-1])
    return jnp.where(reads_BLl[:, None], scores_BALl, LOWEST)

  losses = [_divergence(relation(t), relation(s)) for s, t in zip(student, teacher, strict=True)]
  return jnp.mean(jnp.stack(losses), axis=(0, 2))


def _divergence(target, logits):
  """Returns the Kullback-Leibler divergence of the softmax over the last axis of `logits` from that of `target`."""
  log_p, log_q = (jax.nn.log_softmax(jnp.maximum(x, LOWEST)) for x in (target, logits))
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _weighted(losses, weights):
  return jnp.sum(weights * losses), jnp.sum(weights)


def _mean(weights):
  return 1 / jnp.maximum(jnp.sum(weights), 1e-6)


def _tokens(batch):
  """Returns float32 [rows, L]: 1 at each token of a row that counts. A row of options is several rows."""
  tokens = (batch["attention_mask"] > 0).astype(jnp.float32)
  if "weight" in batch:
    tokens *= batch["weight"].reshape(-1, *[1] * (tokens.ndim - 1))
  return tokens.reshape(-1, tokens.shape[-1])


# Checks.


def _check(task, settings, teacher, seq_length, answers, relation_heads):
  name, cfg = f"distill.teacher={teacher.path}", teacher.cfg
  if isinstance(task, Task) and not _is_same(task.vocabulary, teacher.vocabulary):
    raise UserError(
      f"{name} has another vocabulary ({teacher.vocabulary.path}) than the data ({task.vocabulary.path}), so its ids "
      "would mean other pieces; give a teacher with the same one"
    )
  if seq_length > cfg.max_position_embeddings:
    raise UserError(
      f"{name} has {cfg.max_position_embeddings} positions, fewer than data.seq_length={seq_length}; try "
      f"--config.data.seq_length={cfg.max_position_embeddings}"
    )
  for answer in answers.values():
    if missing := [part for part in answer.parts if part not in teacher.params]:
      raise UserError(
        f"{name} has no {missing[0]!r}, which its answers need; give a teacher that was trained on this task, or set "
        "--config.distill.logit_weight=0"
      )
  if answers and isinstance(task, Task):
    _check_labels(task, teacher, name)
  if settings.relation_weight:
    _check_relations((task.model, cfg), relation_heads)


def _is_same(ours, theirs):
  return all(getattr(ours, name) == getattr(theirs, name) for name in ("pieces", "lower", "keep_accents"))


def _check_labels(task, teacher, name):
  """Refuses a teacher of another task or with other labels."""
  ours = task.about.get("albert_jax_task", {})
  for field in ("name", "kind", "labels", "head"):
    theirs = teacher.about.get(field, ours.get(field))
    if field in ours and theirs != ours[field]:
      raise UserError(
        f"{name} is of another task: its {field} is {theirs!r}, here {ours[field]!r}; give a teacher of this task, or "
        "set --config.distill.logit_weight=0"
      )
  fresh = jax.eval_shape(task.init, jax.random.key(0))
  for part in sorted({part for answer in task.answers.values() for part in answer.parts} & {*task_heads.HEADS}):
    shapes = [params[part]["kernel"].shape[-1] for params in (fresh, teacher.params) if "kernel" in params[part]]
    if len({*shapes}) > 1:
      raise UserError(
        f"{name} has {shapes[1]} outputs in {part!r}, here {shapes[0]}; give a teacher of the same labels"
      )


def _check_relations(models, count):
  widths = [cfg.hidden_size for cfg in models]
  if any(width % count for width in widths):
    raise UserError(
      f"distill.relation_heads={count} must divide both hidden_size={widths[0]} and the teacher's {widths[1]}; try "
      f"--config.distill.relation_heads={math.gcd(*widths, 16)}"
    )
  if any(cfg.inner_group_num > 1 for cfg in models):
    raise UserError(
      "distill.relation_weight is for models with inner_group_num=1; set --config.distill.relation_weight=0"
    )
