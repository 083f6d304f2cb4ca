"""THE training loop. Read it from top to bottom: task, mesh, state, data, step, look, evaluate, save."""

import contextlib
import copy
import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from albert_jax import convert, curves, model, tasks
from albert_jax.errors import UserError
from albert_jax.evaluation import evaluate, make_eval_step, same_task, with_structure, write_files
from albert_jax.training import duration, flops, guard, optimizer, sharding, state, trackers, watch, workdir
from albert_jax.training.best import Best
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.guard import Guard, GuardConfig
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.schedule import peak, schedule
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.step import make_train_step
from albert_jax.training.writer import Writer, last_evaluation


def train(config, folder, profile: tuple[int, int] | None = None) -> dict:
  """Trains by `config` (see configs/) in `folder`, going on from its newest checkpoint if there is one.

  Args: folder: a path, or gs://BUCKET/FOLDER. profile: the first and last step of which to write a profile.
  Returns: the newest held-out metrics, {"name": value}; with config.best, those of the best checkpoint.
  Raises: UserError for a config that contradicts itself, the data or the checkpoint; FloatingPointError when the run is
    sick, see training/guard.py, and going back has not helped.
  """
  place = workdir.place(folder)
  host, hosts = jax.process_index(), jax.process_count()
  run = _settle(config, place)
  config, task, mesh = run.config, run.task, run.mesh

  with contextlib.ExitStack() as stack:
    home = stack.enter_context(workdir.opened(place))
    workdir.same_run(config, place)
    home.claim()
    folder = home.folder
    stack.enter_context(jax.set_mesh(mesh))
    saved = Checkpoints(f"{place}/checkpoints", config.keep_checkpoints, config.keep_every, bool(config.best))
    stack.enter_context(contextlib.closing(saved))
    is_new = saved.latest() is None
    now = run.begin() if is_new else saved.restore(run.abstract, run.places)
    # A new state is still being computed, and to read its step would be to wait for it.
    start = 0 if is_new and not config.init_optimizer else int(now["step"])
    card = workdir.card(config, task.vocabulary.path, place, start)
    _announce(config, now["params"], mesh, start, place)

    health = Guard(GuardConfig(**config.guard), folder, is_new)
    writer = Writer(folder, start, config.steps, config.log_every, run.peak, trackers.start(run.sinks, folder, card))
    stack.enter_context(contextlib.closing(writer))
    asked_to_stop = stack.enter_context(watch.asked_to_stop(hosts))
    alive = stack.enter_context(watch.stacks(config.hang_minutes))
    trace = stack.enter_context(watch.trace(profile, folder / "profile"))
    stack.enter_context(watch.together(hosts))

    def look(step, work, numbers):
      """At what came of a step. Waits for it, and so is called one step behind the device."""
      sums, scalars = jax.device_get(numbers)
      health.look(step, sums, scalars)
      writer.train(step, work, sums, scalars)
      alive()

    # The loop: dispatch step t, then look at step t - 1, so that the device never waits for the host.
    complete = False
    while not complete:
      health.recall(saved.note(start, guard.HISTORY))
      held_out, files, before, stop = last_evaluation(folder, start), {}, None, ""
      best = Best(config.best, config.early_stop, folder, start)
      batches = () if best.enough() else _batches(run.stages, start, health.skipped, host, hosts)
      try:
        for step, stage, batch, waited in batches:
          trace(step, before)
          batch = sharding.global_batch(mesh, batch)
          learning_rate = sharding.everywhere(mesh, stage.rate(step - 1) * health.rate(step))
          with jax.transfer_guard("disallow"):
            now, numbers = stage.train_step(now, batch, learning_rate)
          saved.open()  # Now that the device is at work.
          if before is not None:
            look(*before)
          before = (step, (*flops.work(stage.task.model, batch, stage.task.row_flops), waited), numbers)

          stop = asked_to_stop()
          evaluating = step % config.eval_every == 0 or step == config.steps
          saving = step % config.checkpoint_every == 0 or step == config.steps or bool(stop)
          if saving or evaluating:
            look(*before)  # A state that is sick is never saved.
            before = None
          if evaluating:
            held_out, files = evaluate(stage.task, stage.eval_step, run.weights(now), mesh)
            writer.write(step, "eval", held_out)
            writer.pause()
            _advise(config, step, held_out, task.baselines)
            saving |= best.improved(step, held_out) or best.enough()
          if saving or evaluating:
            home.push()  # To the bucket, if the run is in one; so the checkpoint is never newer than its numbers.
          if saving:
            notes = {"run.json": json.dumps(card, indent=2), guard.HISTORY: health.remember()}
            saved.save(step, now, best.scores.get(step), notes)
          if stop or best.enough():
            break
        complete = True
      except guard.Alarm as alarm:
        health.go_back(alarm, saved)
        now = None  # It is sick, and its memory is needed.
        now = run.begin() if saved.latest() is None else saved.restore(run.abstract, run.places)
        start = int(now["step"])
        writer.rewind(start)
        writer.write(start, "guard", health.numbers())
        home.share()

    if stop and step < config.steps:
      print(f"Stopped at step {step} by {stop}; saved. The same command goes on from there.", file=sys.stderr)
      return held_out
    if config.best and best.step != int(now["step"]):
      now = saved.restore(run.abstract, run.places, best.step)
      held_out, files = last_evaluation(folder, best.step), {}
      print(f"The best {config.best} was at step {best.step}; that one is exported.", file=sys.stderr)
    if task.score is not None and not files:
      held_out, files = evaluate(task, run.stages[-1].eval_step, run.weights(now), mesh)
    params = jax.jit(lambda params: params, out_shardings=NamedSharding(mesh, P()))(run.weights(now))
    if host == 0:
      _finish(task, params, held_out, files, folder, place)
  return held_out


@dataclass
class _Run:
  """What a config means, settled before the first array exists.

  begin() -> the state at step 0. weights(state) -> the parameters to evaluate and export. abstract, places: shapes and
  shardings of the state. peak: operations a second all devices could do, or None. sinks: see training/trackers.py.
  """

  config: ConfigDict
  task: tasks.Task
  mesh: jax.sharding.Mesh
  stages: list
  begin: Callable
  weights: Callable
  abstract: dict
  places: dict
  peak: float | None
  sinks: dict


def _settle(config, place) -> _Run:
  """Tasks, mesh, optimizer, steps. Raises: UserError for all that can be found wrong with a config."""
  _check_numbers(config)
  config, parts, task_of = _tasks(config)
  task, opt = task_of(parts[-1]), OptimizerConfig(**config.optimizer)
  mesh = sharding.make_mesh(MeshConfig(**config.mesh), config.batch_size)
  # As one program: each that has to be found among those compiled before takes its time.
  key_init, key_step = jax.jit(lambda: tuple(jax.random.split(jax.random.key(config.seed))))()
  tx = optimizer.make(opt, model.layer_axes(task.model, jax.eval_shape(jax.jit(task.init), key_init)))
  abstract = state.abstract(task.init, tx, key_init)
  places = sharding.shardings(mesh, abstract, config.mesh.zero1)
  # Placed as the parameters are: left to the compiler, evaluation might be compiled for a second placement.
  averaged = jax.jit(functools.partial(optimizer.averaged, opt), out_shardings=places["params"])

  def begin():
    if config.init_from:
      moments = convert.load_optimizer(config.init_from) if config.init_optimizer else None
      return state.from_params(_given(config, task, key_init), tx, places, moments)
    return state.create(task.init, tx, key_init, places)

  programs = []
  for part in parts:
    its = task_of(part)
    micro = _micro_batches(part.batch_size, config.accumulate, mesh)
    train_step = make_train_step(its.sums, its.terms, tx, key_step, mesh, places, micro)
    programs.append(_Program(its, train_step, make_eval_step(its)))
  if config.hours:
    create = functools.partial(state.create, task.init, tx, key_init, places)
    config.steps = workdir.settled_steps(config, place) or _steps_in(config, parts, programs, create, mesh)
  stages = [
    _Stage(
      task_of(parts[s.part], s.first_row), programs[s.part].train_step, programs[s.part].eval_step, s.first, s.last,
      schedule(opt, config.steps, parts[s.part].batch_size),
    )
    for s in duration.stages(parts, config.steps)
  ]  # fmt: skip
  return _Run(
    config=config.lock(), task=task, mesh=mesh, stages=stages, begin=begin, abstract=abstract, places=places,
    weights=lambda now: averaged(now["opt"], now["params"]) if opt.ema else now["params"],
    peak=flops.peak(mesh.devices.flat[0].device_kind, mesh.size), sinks=trackers.find(config.log_to),
  )  # fmt: skip


def _check_numbers(config):
  """Raises: UserError for what would only show in the loop, as a division by zero or as checkpoints that vanish."""
  for name in ("batch_size", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints"):
    if config[name] < 1:
      never = "; for none before the last step, one above the number of steps" if name.endswith("every") else ""
      raise UserError(f"{name}={config[name]} must be 1 or more{never}")
  for name in ("eval_batches", "keep_every", "early_stop", "hang_minutes"):
    if config[name] < 0:
      raise UserError(f"{name}={config[name]} must be 0 or more; what 0 means is said in configs/common.py")
  if config.early_stop and not config.best:
    raise UserError(f"early_stop={config.early_stop} needs a metric to go by; give one, as --config.best=mlm_loss")


@dataclass
class _Program:
  """What a part of the run computes."""

  task: tasks.Task
  train_step: Callable
  eval_step: Callable


@dataclass
class _Stage(_Program):
  """Steps [first, last) of the run, and their learning rate."""

  first: int
  last: int
  rate: Callable


def _tasks(config):
  """Settles what a config leaves open: the model's shape, and the number of steps unless hours limit it.

  Returns: the config, not locked; the parts of the run, one unless there is a curriculum; and a function that makes the
  task of a part.
  """
  config, vocabulary = copy.deepcopy(config).unlock(), None
  if config.init_structure and config.init_from:
    with_structure(config, config.init_from)
    vocabulary = convert.load_tokenizer(config.init_from, optional=bool(config.data.spm))
  shared = config.model.share == "all" and config.model.num_hidden_groups == 1
  if config.curriculum.num_hidden_layers and not shared:
    raise UserError("curriculum.num_hidden_layers needs layers that share all their weights; set model.share=all")
  parts = duration.parts(
    config.curriculum, config.batch_size, config.data.seq_length, config.model.num_hidden_layers
  )  # fmt: skip

  @functools.cache
  def task_of(part, first_row=0):
    own = copy.deepcopy(config)
    own.batch_size, own.data.seq_length = part.batch_size, part.seq_length
    own.model.num_hidden_layers = part.num_hidden_layers
    return tasks.make(own, vocabulary, first_row)

  config.steps = duration.total_steps(
    steps=config.steps, epochs=config.epochs, tokens=config.tokens, hours=config.hours, parts=parts,
    train_rows=task_of(parts[-1]).train_rows if config.epochs else 0,
  )  # fmt: skip
  return config, parts, task_of


def _steps_in(config, parts, programs, create, mesh) -> int:
  """How many steps `config.hours` allow, by the time that some take on a state that is thrown away."""
  begin, costs = time.perf_counter(), []
  with jax.set_mesh(mesh):
    rate = sharding.everywhere(mesh, 0.0)
    for program in programs:
      now, times = create(), []
      batches = iter(program.task.train_batches(0, jax.process_index(), jax.process_count()))
      while len(times) < 5 or (len(times) < 20 and sum(times[1:]) < 10):
        last = time.perf_counter()
        batch = sharding.global_batch(mesh, next(batches))
        now, _ = jax.block_until_ready(program.train_step(now, batch, rate))
        times.append(time.perf_counter() - last)
      costs.append(statistics.median(times[2:]))  # The first waits for the compiler, the second for Grain.
    for _ in range(2):  # And here too the first one does.
      last = time.perf_counter()
      evaluate(program.task, program.eval_step, now["params"], mesh)
      evaluation = time.perf_counter() - last
    left = config.hours * 3600 - (time.perf_counter() - begin)
    steps = duration.steps_in(left, parts, costs, evaluation, config.eval_every)
    steps = int(multihost_utils.broadcast_one_to_all(np.int32(steps)))
  print(f"{config.hours:g} hours are {steps} steps of {left / steps:.3g} s, evaluations included", file=sys.stderr)
  return steps


def _batches(stages, start, skipped, host, hosts):
  """(step counted from 1, its stage, this host's rows of its batch, seconds it took to come), from `start` to the end.

  Args: skipped: numbers of batches to leave out; the data itself is a function of the batch's number.
  """
  for stage in stages:
    step = max(start, stage.first)
    if step < stage.last:
      number = guard.batch_number(step, skipped)
      source = iter(stage.task.train_batches(number, host, hosts))
    while step < stage.last:
      begin = time.perf_counter()
      batch = next(source)
      if number not in skipped:
        step += 1
        yield step, stage, batch, time.perf_counter() - begin
      number += 1


def _advise(config, step, held_out, baselines):
  """Says so where a run is stuck, once it has had its chance."""
  opt = OptimizerConfig(**config.optimizer)
  chance = opt.warmup_steps + min(10_000, config.steps // 4)
  if step >= min(chance, config.steps) and jax.process_index() == 0:
    lower = peak(opt, config.batch_size) / 2
    if opt.name == "lamb":  # The paper's rate, by the square-root rule of the LAMB paper.
      lower = min(lower, 0.00176 * math.sqrt(config.batch_size / 4096))
    if text := guard.advice(held_out, baselines, lower, bool(config.init_from)):
      print(text, file=sys.stderr)


def _micro_batches(batch_size, accumulate, mesh) -> int:
  rows, rest = divmod(batch_size, mesh.shape["data"] * mesh.shape["fsdp"])
  if rest:
    raise UserError(f"curriculum.batch_size: {batch_size} must divide by the {mesh.size} devices that split rows")
  if accumulate < 1 or rows % accumulate:
    fit = [n for n in range(1, rows + 1) if rows % n == 0]
    raise UserError(f"accumulate={accumulate} must divide the {rows} rows a device has; use one of {fit}")
  return accumulate


def _finish(task, params, held_out, files, folder, place):
  """What a complete run leaves: weights for others, answers, the curves, and a table on stdout."""
  convert.save(
    folder / "export", task.model, jax.device_get(params), vocabulary=task.vocabulary, overwrite=True,
    architecture=task.architecture or None, extra=task.about,
  )  # fmt: skip
  if files:
    write_files(folder / "predictions", files)
  print(table(held_out, task.baselines))
  print(f"Weights: {place}/export")
  if curves.plot(folder, task.baselines):
    print(f"Curves:  {place}/curves.png")


def _given(config, task, key):
  """The parameters to begin with: those of `init_from`, and fresh ones where it may lack them."""
  cfg, loaded = convert.load(config.init_from)
  for name in ("hidden_act", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "share"):
    here, there = getattr(task.model, name), getattr(cfg, name)
    if here != there:  # Shapes do not show it, and the result would be another function of the same weights.
      print(f"Note: model.{name} is {there!r} in {config.init_from}, {here!r} in this config.", file=sys.stderr)
  if not {*task.new} & {*task.unused}:  # Its head, if it has one, is gone on with.
    same_task(task, config.init_from)
  new = [*task.new, config.init_missing] if config.init_missing else task.new
  params, line = convert.fit(jax.device_get(jax.jit(task.init)(key)), loaded, new=new, unused=task.unused)
  print(f"From {config.init_from}: {line}.", file=sys.stderr)
  return params


def _announce(config, params, mesh, start, place):
  """One line that says what is about to happen."""
  if jax.process_index() == 0:
    devices = f"{mesh.size} {mesh.devices.flat[0].device_kind}"
    begin = f"going on from step {start}" if start else "from step 0"
    what = f"{begin} to {config.steps}" if start < config.steps else f"complete at step {start}; raise steps to go on"
    print(f"{model.param_count(params):,} parameters on {devices}, {what}, in {place}", file=sys.stderr)


def join(coordinator: str, processes: int, process: int):
  """Makes this process one of several, if it is: by the arguments, or by what launch/tpu.sh, a pod or SLURM says.

  A host that is not heard of for a minute is taken for dead, and then all others end.
  """
  said = os.environ.get
  if coordinator:
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=60)
  elif (
    "," in said("TPU_WORKER_HOSTNAMES", "")
    or max(int(said("ALBERT_JAX_PROCESSES", "1")), int(said("SLURM_NTASKS", "1"))) > 1
  ):
    jax.distributed.initialize(heartbeat_timeout_seconds=60)  # Which asks the cluster who it is.


def table(metrics, baselines) -> str:
  """Held-out metrics beside what they would be without learning."""
  lines = [f"{'held-out':<16}{'this run':>10}{'baseline':>10}   baseline is"]
  for name, (value, what) in baselines.items():
    if name in metrics:
      lines.append(f"{name:<16}{metrics[name]:>10.4f}{value:>10.4f}   {what}")
  return "\n".join(lines)
