"""Settles a config before the first array exists: task, mesh, optimizer, number of steps, stages."""

import copy
import functools
import logging
import math
import pathlib
import re
import shlex
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from albert_jax import convert, files, model, paths, tasks
from albert_jax.data.finetuning import tables
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks import distill, lora
from albert_jax.tasks.distill import DistillConfig
from albert_jax.training import duration, flops, held_out, optimizer, sharding, state, trackers, workdir
from albert_jax.training.guard import GuardConfig
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.schedule import schedule
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.step import make_train_step

log = logging.getLogger(__name__)

# The range of each number of a config, both ends included. All other numbers are checked by the dataclass of their
# section (AlbertConfig, OptimizerConfig, …).
LIMITS = {
  "seed": (0, 2**32 - 1),  # JAX uses the lowest 32 bits of a seed.
  "steps": (0, 2**31 - 1),
  "epochs": (0, 1e6),
  "tokens": (0, 1e18),
  "hours": (0, 1e5),
  "batch_size": (1, 2**22),
  "accumulate": (1, 2**22),
  "log_every": (1, 2**31 - 1),
  "eval_every": (1, 2**31 - 1),
  "checkpoint_every": (1, 2**31 - 1),
  "eval_batches": (0, 2**31 - 1),
  "keep_checkpoints": (1, 10**6),
  "keep_every": (0, 2**31 - 1),
  "early_stop": (0, 10**6),
  "lora_rank": (0, 4096),
  "lora_word_rank": (0, 4096),
}
LORA_RANKS = ("lora_rank", "lora_word_rank")  # Only fine-tuning has them.
SECTIONS = ("task", "data", "model", "optimizer", "guard", "mesh", "curriculum")
MAX_WEIGHT = 1e6  # of a term of the loss
HANG_MINUTES = (0.01, 1e6)  # or 0: faulthandler's timer crashes on shorter ones.
MAY_BE_INFINITE = ("optimizer.clip_norm",)


@dataclass(frozen=True)
class Program:
  """The task and the compiled steps of one part of a run.

  Attributes:
    task: the task at the part's batch size, length and depth.
    train_step: see training/step.py.
    eval_step: see training/held_out.py.
  """

  task: tasks.Task
  train_step: Callable
  eval_step: Callable


@dataclass(frozen=True)
class Stage(Program):
  """Steps [first, last) of a run; `rate` is their learning rate, a function of the step."""

  first: int
  last: int
  rate: Callable[[int], float]


@dataclass(frozen=True)
class StatePlan:
  """The training state as shapes, with its shardings, keys and optimizer.

  Attributes:
    optimizer: the optimizer's config.
    tx: its gradient transformation, without the learning rate.
    abstract: {"step", "params", "opt"} as shapes and dtypes.
    shardings: the NamedSharding of each leaf.
    init_key, step_key: the keys of the fresh parameters, and of dropout.
  """

  optimizer: OptimizerConfig
  tx: optax.GradientTransformation
  abstract: dict
  shardings: dict
  init_key: jax.Array
  step_key: jax.Array


@dataclass(frozen=True)
class Run:
  """A settled config.

  Attributes:
    config: the config, completed with the model's shape and the number of steps. Locked.
    task: the task of the last part, whose shape is exported.
    mesh: the devices.
    stages: in order, each with its own program.
    create_state: () -> the state at the run's first step.
    eval_params: state -> the parameters to evaluate and export.
    plan: shapes and shardings of the state.
    peak: the peak of all devices in operations a second; None if unknown.
    trackers: modules of additional trackers, see training/trackers.py.
  """

  config: ConfigDict
  task: tasks.Task
  mesh: jax.sharding.Mesh
  stages: list[Stage]
  create_state: Callable[[], dict]
  eval_params: Callable[[dict], dict]
  plan: StatePlan
  peak: float | None
  trackers: dict[str, ModuleType]


def settle(config: ConfigDict, directory: str) -> Run:
  """Settles a config.

  Args:
    config: see configs/.
    directory: the workdir as an absolute path or URL.

  Returns:
    The Run. No file is written.

  Raises:
    UserError: the config contradicts itself, the data, the devices or the checkpoint in `init_from`.
  """
  check(config)
  modules = trackers.find(config.log_to)
  config, parts, task_of = _parts(config)
  task = task_of(parts[-1])
  _check_best(config, task)
  if not workdir.has_begun(directory):  # A run of an older version goes on, as does one whose rate has been cut.
    check_unread(config, task.files())
    if config.guard.cut_rate != 1 and not config.guard.give_up:
      raise UserError(
        f"guard.cut_rate={config.guard.cut_rate} has no effect with guard.give_up=0, which ends the run at its first "
        "alarm; set give_up above 0, or leave cut_rate out"
      )
  mesh = sharding.make_mesh(MeshConfig(**config.mesh), config.batch_size)
  plan = plan_state(config, task, mesh)
  # Sharded as the parameters are. If the compiler chose the sharding, evaluation might be compiled twice.
  averaged = jax.jit(
    functools.partial(optimizer.averaged, plan.optimizer), out_shardings=plan.shardings["params"]
  )  # fmt: skip

  def create_state():
    if config.init_from:
      moments = convert.load_optimizer(config.init_from) if config.init_optimizer else None
      params = _initial_params(config, task, plan.init_key)
      if moments:
        _check_moments(config, params, moments)
      return state.from_params(params, plan.tx, plan.shardings, moments)
    return state.create(task.init, plan.tx, plan.init_key, plan.shardings)

  programs, frozen = [], _placed(task, mesh)
  for part in parts:
    part_task = task_of(part)
    accumulate = _checked_accumulate(part.batch_size, config.accumulate, mesh)
    programs.append(
      Program(
        part_task,
        functools.partial(train_step(plan, part_task, mesh, accumulate), **frozen),
        held_out.make_eval_step(part_task.sums, part_task.outputs),
      )
    )
  if config.hours:
    create = functools.partial(state.create, task.init, plan.tx, plan.init_key, plan.shardings)
    config.steps = workdir.settled_steps(config, directory) or _steps_in_hours(config, parts, programs, create, mesh)
  stages = [
    Stage(
      task_of(parts[s.part], s.first_row), programs[s.part].train_step, programs[s.part].eval_step, s.first, s.last,
      schedule(plan.optimizer, config.steps, parts[s.part].batch_size),
    )
    for s in duration.stages(parts, config.steps)
  ]  # fmt: skip
  return Run(
    config=config.lock(), task=task, mesh=mesh, stages=stages, create_state=create_state,
    eval_params=lambda s: averaged(s["opt"], s["params"]) if plan.optimizer.ema else s["params"],
    plan=plan, peak=flops.peak(mesh.devices.flat[0].device_kind, mesh.size), trackers=modules,
  )  # fmt: skip


def plan_state(config: ConfigDict, task: tasks.Task | tasks.Sketch, mesh: jax.sharding.Mesh) -> StatePlan:
  """Returns the training state of a task on a mesh, as shapes. No array of the model is made."""
  opt = OptimizerConfig(**config.optimizer)
  # As one program: each look-up in the compilation cache takes time.
  init_key, step_key = jax.jit(lambda: tuple(jax.random.split(jax.random.key(config.seed))))()
  tx = optimizer.make(opt, model.layer_axes(task.model, jax.eval_shape(jax.jit(task.init), init_key)))
  abstract = state.abstract(task.init, tx, init_key)
  shardings = sharding.shardings(mesh, abstract, config.mesh.zero1)
  return StatePlan(opt, tx, abstract, shardings, init_key, step_key)


def sketch(config: ConfigDict) -> tasks.Sketch:
  """Returns the train step of a pre-training config without its data, with its teacher; see tasks.sketch."""
  distillation = DistillConfig(**config.get("distill", {}))
  if config.init_structure and config.init_from:
    config = copy.deepcopy(config)
    take_structure(config, config.init_from)
  task = tasks.sketch(config)
  return _distilled(task, distillation, config.data.seq_length, distill.load)


def _distilled(task, distillation, seq_length, load):
  if distillation.teacher:
    task = distill.adapt(task, distillation, seq_length, load)
  return distill.adapt_depth(task, distillation) if distillation.least_layers else task


def frozen_shardings(task: tasks.Task | tasks.Sketch, mesh: jax.sharding.Mesh) -> dict:
  """Returns the shardings of the train step's argument `frozen`: {"teacher": …}, or {} without a teacher."""
  return sharding.shardings(mesh, {"teacher": task.teacher.params}) if task.teacher else {}


def _placed(task, mesh):
  """Returns the keyword arguments of the train step besides those of each step."""
  if not task.teacher:
    return {}
  place = jax.jit(lambda params: params, out_shardings=frozen_shardings(task, mesh))
  return {"frozen": place({"teacher": task.teacher.params})}


def train_step(plan: StatePlan, task: tasks.Task | tasks.Sketch, mesh: jax.sharding.Mesh, accumulate: int) -> Callable:
  """Returns the compiled train step of a task, see training/step.py."""
  return make_train_step(task.sums, task.terms, plan.tx, plan.step_key, mesh, plan.shardings, accumulate)


def check(config: ConfigDict) -> None:
  """Checks every value of a config that can be checked without data and devices.

  Raises:
    UserError: a value is out of range or not finite, a pattern is not a regular expression, or a setting has no effect
      with the others.
  """
  if missing := [name for name in (*SECTIONS, *LIMITS) if name not in config and name not in LORA_RANKS]:
    raise UserError(
      f"the config lacks {', '.join(missing[:5])}; begin with that of an installed one, as "
      "albert_jax.configs.pretrain.get_config()"
    )
  values = workdir.flat(config.to_dict())
  for name, value in values.items():
    if isinstance(value, float) and not math.isfinite(value) and not (name in MAY_BE_INFINITE and value > 0):
      raise UserError(f"{name}={value} must be a finite number; try --config.{name}=…")
    if name in LIMITS:
      low, high = LIMITS[name]
      if not low <= value <= high:
        raise UserError(f"{name}={value} must be {_limit(name, value, low, high)}")
  duration.check(config.steps, config.epochs, config.tokens, config.hours)
  if config.hang_minutes and not HANG_MINUTES[0] <= config.hang_minutes <= HANG_MINUTES[1]:
    raise UserError(f"hang_minutes={config.hang_minutes} must be {HANG_MINUTES[0]} or more, or 0 for never")
  kept, saved = config.keep_every, config.checkpoint_every
  if kept and kept % saved and saved % kept:  # Orbax keeps what is of both, which would be few.
    raise UserError(
      f"keep_every={kept} and checkpoint_every={saved}: one must be a multiple of the other, as "
      f"--config.keep_every={-(-kept // saved) * saved}"
    )
  if config.early_stop and not config.best:
    raise UserError(f"early_stop={config.early_stop} needs a metric; give one, as --config.best=mlm_loss")
  weights = {name: value for name, value in values.items() if name.startswith("loss.") and name.endswith("_weight")}
  for name, value in weights.items():
    if value and not optimizer.SMALLEST <= value <= MAX_WEIGHT:
      raise UserError(f"{name}={value} must be 0, or from {optimizer.SMALLEST:g} to {MAX_WEIGHT:g}")
  if weights and not any(weights.values()):
    raise UserError(f"{' and '.join(f'{name}=0' for name in weights)} leave nothing to learn; set one of them above 0")
  is_pretraining = tasks.spec(config.task.name).sketch is not None
  if config.eval_batches and not is_pretraining:
    raise UserError(
      f"eval_batches={config.eval_batches} is for pre-training; the numbers of task.name={config.task.name} are of all "
      "held-out rows, so leave it 0"
    )
  # The configs of fine-tuning set init_structure themselves.
  for name in ("init_optimizer", "init_missing", *(["init_structure"] if is_pretraining else [])):
    if config[name] and not config.init_from:
      raise UserError(f"{name}={config[name]} has no effect without a checkpoint; add --config.init_from=CHECKPOINT")
  if ranks := _lora_ranks(config):
    chosen = " ".join(f"{name}={rank}" for name, rank in ranks.items() if rank)
    if not config.init_from:
      raise UserError(f"{chosen} changes a trained model; add --config.init_from=CHECKPOINT")
    if config.optimizer.freeze:
      raise UserError(
        f"optimizer.freeze={config.optimizer.freeze!r} has no effect beside {chosen}, which trains nothing but "
        "low-rank differences and the task's head; set one of them"
      )
  try:
    re.compile(config.init_missing)
  except re.error as error:
    raise UserError(f"init_missing={config.init_missing!r} is not a regular expression: {error}") from None
  if slots := config.data.get("max_predictions", 0):
    earlier = duration.parse("seq_length", config.curriculum.seq_length)
    length = max(config.data.seq_length, *(length for _, length in earlier), 0)
    if slots > length - 2:
      raise UserError(
        f"data.max_predictions={slots} exceeds the {length - 2} tokens of a row of {length} that can be masked; with "
        "--config.data.max_predictions=0 there are as many slots as data.mask_rate needs"
      )
  OptimizerConfig(**config.optimizer), GuardConfig(**config.guard), MeshConfig(**config.mesh)
  DistillConfig(**config.get("distill", {}))
  if config.model.vocab_size:
    model.AlbertConfig(**config.model)


def _lora_ranks(config) -> dict[str, int]:
  ranks = {name: config.get(name, 0) for name in LORA_RANKS}
  return ranks if any(ranks.values()) else {}


def _limit(name, value, low, high) -> str:
  if value > high:
    return f"{high:,} or less"
  none = "; for none before the last step, one above the number of steps" if name.endswith("every") else ""
  return f"{low} or more" + (none if low else "")


def _check_best(config, task):
  """Refuses a metric for `best` that is not among the metrics of the task, or that needs labels without any."""
  if config.best and not task.has_labels:
    raise UserError(
      f"best={config.best!r} needs held-out labels, and data.validation_split={config.data.validation_split!r} has "
      "none; give a split with labels, or export the last step with --config.best="
    )
  if config.best and task.metrics and not tasks.is_metric(config.best, task.metrics):
    raise UserError(f"best={config.best!r} is not among the held-out metrics: {', '.join(task.metrics)}")


def check_unread(config: ConfigDict, read: list[pathlib.Path] | None) -> None:
  """Warns if data.tfds_dir has no effect; it may be given for several tasks, of which only some read TFDS.

  Args:
    config: the config.
    read: the files that are read, see `Task.files`.

  Raises:
    UserError: data.quotes is given, and no file is a table.
  """
  quotes, tfds_dir = config.data.get("quotes", "auto"), config.data.get("tfds_dir", "")
  if quotes != "auto" and not any(path.suffix.lower() in tables.TABLES for path in read or ()):
    raise UserError(
      f"data.quotes={quotes} is for tables ({', '.join(tables.TABLES)}), and data.dataset={config.data.dataset} has "
      "none; leave --config.data.quotes out"
    )
  if tfds_dir and read is not None:
    log.warning("data.tfds_dir=%s has no effect: data.dataset=%s is read from files", tfds_dir, config.data.dataset)


def _parts(config):
  """Settles the model's shape, and the number of steps unless hours limit the run.

  Returns:
    The config, not locked; the parts of the run, one unless there is a curriculum; and a function that makes the task
    of a part.
  """
  config, vocabulary = copy.deepcopy(config).unlock(), None
  if config.init_structure and config.init_from:
    take_structure(config, config.init_from)
    vocabulary = convert.load_tokenizer(config.init_from, optional=bool(config.data.spm))
  model_fields = config.model
  shared = model_fields.share == "all" and model_fields.num_hidden_groups == 1 and not model_fields.unshared_ends
  if config.curriculum.num_hidden_layers and not shared:
    raise UserError("curriculum.num_hidden_layers needs layers that share all their weights; set model.share=all")
  parts = duration.parts(
    config.curriculum, config.batch_size, config.data.seq_length, config.model.num_hidden_layers
  )  # fmt: skip

  distillation, load_teacher = DistillConfig(**config.get("distill", {})), functools.cache(distill.load)

  @functools.cache
  def made(part, first_row):  # The cache tells an argument left out from its default, and would read the data twice.
    part_config = copy.deepcopy(config)
    part_config.batch_size, part_config.data.seq_length = part.batch_size, part.seq_length
    part_config.model.num_hidden_layers = part.num_hidden_layers
    task = tasks.make(part_config, vocabulary, first_row)
    if ranks := _lora_ranks(config):
      task = lora.adapt(task, *ranks.values(), config.init_missing)
    return _distilled(task, distillation, part.seq_length, load_teacher)

  def task_of(part, first_row=0):
    return made(part, first_row)

  last = task_of(parts[-1])
  if _lora_ranks(config):
    config.optimizer.freeze = lora.frozen(last, config.init_missing)
  config.model.vocab_size = last.model.vocab_size
  config.steps = duration.total_steps(
    steps=config.steps, epochs=config.epochs, tokens=config.tokens, hours=config.hours, parts=parts,
    train_rows=last.train_rows if config.epochs else 0,
  )  # fmt: skip
  return config, parts, task_of


def _checked_accumulate(batch_size, accumulate, mesh) -> int:
  rows, remainder = divmod(batch_size, mesh.shape["data"] * mesh.shape["fsdp"])
  if remainder:
    raise UserError(f"curriculum.batch_size: {batch_size} must be divisible by the {mesh.size} devices that split rows")
  if rows % accumulate:
    fit = [n for n in range(1, rows + 1) if rows % n == 0]
    raise UserError(f"accumulate={accumulate} must divide the {rows} rows a device has; use one of {fit}")
  return accumulate


def _steps_in_hours(config, parts, programs, create, mesh) -> int:
  """Returns the number of steps in `config.hours`, by timing some steps on a temporary state."""
  begin, costs = time.perf_counter(), []
  with jax.set_mesh(mesh):
    rate = sharding.everywhere(mesh, 0.0)
    for program in programs:
      train_state, times = create(), []
      batches = iter(program.task.train_batches(0, jax.process_index(), jax.process_count()))
      while len(times) < 5 or (len(times) < 20 and sum(times[1:]) < 10):
        last = time.perf_counter()
        batch = sharding.global_batch(mesh, next(batches))
        train_state, _ = jax.block_until_ready(program.train_step(train_state, batch, rate))
        times.append(time.perf_counter() - last)
      costs.append(statistics.median(times[2:]))  # The first step includes compilation, the second the start of Grain.
    for _ in range(2):  # The first evaluation includes compilation.
      last = time.perf_counter()
      evaluate_program(program, train_state["params"], mesh)
      evaluation = time.perf_counter() - last
    remaining = config.hours * 3600 - (time.perf_counter() - begin)
    steps = duration.steps_in(remaining, parts, costs, evaluation, config.eval_every)
    steps = int(multihost_utils.broadcast_one_to_all(np.int32(steps)))
  log.info("%g hours are %d steps of %.3g s, evaluations included", config.hours, steps, remaining / steps)
  return steps


def evaluate_program(program: Program, params: dict, mesh: jax.sharding.Mesh) -> tuple[dict, dict]:
  """Evaluates parameters on the held-out split of a program's task, see training/held_out.py."""
  batches = program.task.eval_batches(jax.process_index(), jax.process_count())
  return held_out.evaluate(program.eval_step, batches, params, mesh, program.task.score)


def _initial_params(config, task, key) -> dict:
  """Returns the parameters of `init_from`, completed with fresh parameters that it may lack."""
  cfg, loaded = convert.load(config.init_from)
  if cfg.arch != task.model.arch:
    raise UserError(
      f"init_from={config.init_from} is a model of arch={cfg.arch}, and this config's is of arch={task.model.arch}; "
      f"set --config.model.arch={cfg.arch}"
    )
  widths = ("embedding_size", "hidden_size", "intermediate_size", "num_attention_heads")
  differing = [name for name in widths if getattr(cfg, name) != getattr(task.model, name)]
  if differing and not config.init_structure:
    theirs, ours = (", ".join(f"{name}={getattr(c, name)}" for name in differing) for c in (cfg, task.model))
    raise UserError(
      f"init_from={config.init_from} is a model of {theirs}, and this config's has {ours}; to train a model of the "
      "checkpoint's shape, add --config.init_structure=True"
    )
  _check_vocabulary(config, task)
  for name in ("hidden_act", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "share", "unshared_ends"):
    ours, theirs = getattr(task.model, name), getattr(cfg, name)
    if ours != theirs:  # The shapes are equal, but the model would compute another function of the same weights.
      log.warning("Note: model.%s is %r in %s, %r in this config.", name, theirs, config.init_from, ours)
  if not {*task.new} & {*task.unused}:  # The checkpoint's head is trained further, if it has one.
    check_same_task(task, config.init_from)
  new = [*task.new, config.init_missing] if config.init_missing else task.new
  params, summary = convert.fit(jax.device_get(jax.jit(task.init)(key)), loaded, new=new, unused=task.unused)
  log.info("From %s: %s.", config.init_from, summary)
  return params


def _check_moments(config, params, moments):
  """Refuses the optimizer state of a run that is past the end of this one, or of other parameters."""
  if moments["step"] > config.steps:
    raise UserError(
      f"init_optimizer: {config.init_from} is at step {moments['step']}, past the end of this run, steps="
      f"{config.steps}, which counts the steps before it too; try --config.steps={moments['step'] + 1000}"
    )
  ours, theirs = (set(paths.flatten(tree)) for tree in (params, moments["m"]))
  if ours != theirs:
    more = "has no" if ours - theirs else "also has"
    raise UserError(
      f"init_optimizer: {config.init_from} {more} moments of {min(ours - theirs or theirs - ours)}, unlike this run's "
      "parameters; begin with the weights alone: --config.init_optimizer=False"
    )


def _check_vocabulary(config, task):
  """Refuses weights whose rows belong to other pieces than the task's; a loss alone would not show it."""
  ours = task.vocabulary
  if not isinstance(ours, Tokenizer):  # Phonemes.
    return
  theirs = convert.load_tokenizer(config.init_from, optional=True)
  if theirs is None or theirs.pieces == ours.pieces:
    return
  raise UserError(
    f"{config.data.dataset or ours.path} has another vocabulary ({len(ours.pieces)} pieces) than "
    f"init_from={config.init_from} ({len(theirs.pieces)} pieces), so each id would name another piece; prepare "
    f"the text with --spm={shlex.quote(theirs.path)}, or move the weights to the new vocabulary: albert-jax convert "
    f"--checkpoint={shlex.quote(config.init_from)} --spm={shlex.quote(ours.path)} --keep_pieces --out=DIR"
  )


def take_structure(config: ConfigDict, path: str) -> dict:
  """Sets the model's shape in a config to that of a checkpoint; settings of the computation stay.

  Returns:
    The checkpoint's parameters.
  """
  cfg, params = convert.load(path)
  with config.unlocked():
    for name in tasks.STRUCTURE:
      config.model[name] = getattr(cfg, name)
  return params


def check_same_task(task: tasks.Task, path: str) -> None:
  """Refuses a checkpoint whose head is of another task, or has other labels.

  Raises:
    UserError: the task or the labels differ.
  """
  ours, theirs = task.about.get("albert_jax_task", {}), convert.about(path)
  if theirs.get("name") == "fill-mask":  # No fine-tuning task uses the heads of pre-training.
    return
  for name in ("name", "labels"):
    if name in ours and theirs.get(name, ours[name]) != ours[name]:
      raise UserError(
        f"{path} is of another task: its {name} is {theirs[name]!r}, that of the config {ours[name]!r}; give the "
        "config and the data it was trained with"
      )


def write_files(folder: pathlib.Path, contents: Mapping[str, bytes]) -> None:
  """Writes files into a folder, each atomically."""
  for name, content in contents.items():
    files.write(folder / name, content)
