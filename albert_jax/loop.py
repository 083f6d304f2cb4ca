"""The training loop, from top to bottom: settle, restore, data, step, check, evaluate, save, export."""

import contextlib
import json
import logging
import math
import os
import shlex
import time
from collections.abc import Generator
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from albert_jax import curves, model, run, tasks
from albert_jax.errors import UserError, masked, message_lines
from albert_jax.training import flops, goodput, guard, sharding, trackers, watch
from albert_jax.training.best import Best
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.guard import Guard, GuardConfig
from albert_jax.training.optimizer import SMALL_MODEL, SMALL_WIDTH, OptimizerConfig
from albert_jax.training.schedule import peak, warmup_steps
from albert_jax.training.workdir import check_same_run, data_fingerprints, has_begun, open_run, resolve, write_card
from albert_jax.training.writer import METRICS, Writer, is_evaluated, last_evaluation, parse, read

log = logging.getLogger(__name__)
results = logging.getLogger("albert_jax.results")  # Commands print it to stdout, all other loggers to stderr.


def train(config: ConfigDict, workdir: str | os.PathLike, profile: tuple[int, int] | None = None) -> dict[str, float]:
  """Trains by a config, resuming from the newest checkpoint in the run's folder if there is one.

  Args:
    config: see configs/.
    workdir: the folder of the run, a path or gs://BUCKET/FOLDER.
    profile: the first and last step to profile; None for no profile.

  Returns:
    The newest held-out metrics, {name: value}; with config.best, those of the best checkpoint.

  Raises:
    UserError: the config contradicts itself, the data or the checkpoint.
    FloatingPointError: the loss stays NaN or spikes after several rollbacks, see training/guard.py.
    OSError: a file could not be read or written.
  """
  directory = resolve(workdir)
  host, hosts = jax.process_index(), jax.process_count()
  settled = run.settle(config, directory)
  config, task, mesh = settled.config, settled.task, settled.mesh

  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    # Early for a new run, so that weights that are missing or do not fit are an error before the run has a folder.
    is_early = config.init_from and hosts == 1 and not has_begun(directory)
    state: Any = settled.create_state() if is_early else None
    files = stack.enter_context(open_run(directory))
    fingerprints = data_fingerprints(config.data.dataset, task.vocabulary.path, task.files())
    fingerprints |= {"teacher": task.teacher.fingerprint} if task.teacher else {}
    check_same_run(config, fingerprints, directory)
    files.claim()
    checkpoints = Checkpoints(f"{directory}/checkpoints", config.keep_checkpoints, config.keep_every, bool(config.best))
    stack.enter_context(contextlib.closing(checkpoints))

    def restore(step=None):
      return checkpoints.restore(settled.plan.abstract, settled.plan.shardings, step)

    is_new = checkpoints.latest() is None
    if not (is_early and is_new):
      state = settled.create_state() if is_new else restore()
    # The step of a new state is known; reading it would wait until the state is computed.
    start = 0 if is_new and not config.init_optimizer else int(state["step"])
    card = write_card(config, fingerprints, directory, start)
    if host == 0:
      curves.note_baselines(files.path, task.baselines)
    _announce(config, state["params"], mesh, start, directory)

    health = Guard(GuardConfig(**config.guard), files.path, is_new)
    sinks = trackers.start(settled.trackers, files.path, card)
    copy = checkpoints.note(start, METRICS)
    writer = Writer(files.path, start, config.steps, config.log_every, settled.peak, sinks, copy)
    stack.enter_context(contextlib.closing(writer))
    stop_reason = stack.enter_context(watch.stop_requests(hosts))
    alive = stack.enter_context(watch.hang_watchdog(config.hang_minutes))
    trace = stack.enter_context(watch.profiler(profile, files.path / "profile"))
    stack.enter_context(watch.exit_on_error(hosts))

    def check(step, work, numbers):
      """Checks and writes the numbers of a step. It waits for the step, so the loop calls it one step later."""
      sums, scalars = jax.device_get(numbers)
      health.check(step, sums, scalars)
      writer.train(step, work, sums, scalars)
      alive()

    # The loop: dispatch step t, then check step t - 1, so that the device never waits for the host.
    is_complete = has_advised = False
    while not is_complete:
      health.restore_history(checkpoints.note(start, guard.HISTORY))
      metrics, predictions, pending, stop = last_evaluation(files.path, start), {}, None, ""
      best = Best(config.best, config.early_stop, files.path, start)
      stages = () if best.enough() else settled.stages
      batches = _batches(stages, start, health.skipped, host, hosts)
      try:
        for step, stage, batch, waited in batches:
          trace(step, pending)
          batch = sharding.global_batch(mesh, batch)
          learning_rate = sharding.everywhere(mesh, stage.rate(step - 1) * health.rate(step))
          with jax.transfer_guard("disallow"):
            state, numbers = stage.train_step(state, batch, learning_rate)
          checkpoints.open()  # Imports Orbax while the device computes.
          if pending is not None:
            check(*pending)
          teacher = stage.task.teacher and stage.task.teacher.cfg
          work = flops.work(stage.task.model, batch, stage.task.row_flops, teacher)
          pending = (step, (*work, waited), numbers)

          stop = stop_reason()
          is_evaluating = step % config.eval_every == 0 or step == config.steps
          is_saving = step % config.checkpoint_every == 0 or step == config.steps or bool(stop)
          if is_saving or is_evaluating:
            check(*pending)  # No state is saved before its numbers were checked.
            pending = None
          if is_evaluating:
            metrics, predictions = run.evaluate_program(stage, settled.eval_params(state), mesh)
            writer.write(step, "eval", metrics)
            writer.pause()
            has_advised = has_advised or _advise(config, step, metrics, task.baselines)
            is_saving |= best.improved(step, metrics) or best.enough()
          if is_saving or is_evaluating:
            files.push()  # To the bucket, if the run is in one, so that no checkpoint is newer than its numbers.
          if is_saving:
            notes = {"run.json": json.dumps(card, indent=2), guard.HISTORY: health.history(), METRICS: writer.copy()}
            checkpoints.save(step, state, best.scores.get(step), notes)
          if stop or best.enough():
            break
        is_complete = True
      except guard.Alarm as alarm:
        health.roll_back(alarm, checkpoints)
        state = None  # Frees its memory.
        state = settled.create_state() if checkpoints.latest() is None else restore()
        start = int(state["step"])
        writer.rewind(start, checkpoints.note(start, METRICS))
        writer.write(start, "guard", health.numbers())
        files.share()
      finally:
        batches.close()  # Ends the workers, and frees their shared memory.

    if stop and step < config.steps:
      checkpoints.wait()
      writer.finish()
      log.info("Stopped at step %d by %s; saved. The same command resumes from there.", step, stop)
      _show_goodput(card, files.path)
      return metrics
    if best.step and best.step != int(state["step"]):
      state = restore(best.step)
      metrics, predictions = last_evaluation(files.path, best.step), {}
      log.info("The best %s was at step %d; its checkpoint is exported.", config.best, best.step)
    # `steps` was lowered to that of a checkpoint between two evaluations. The copy is the same on every host.
    is_unseen = start == int(state["step"]) == config.steps and not is_evaluated(parse(copy or ""), start)
    if is_unseen or (task.score is not None and not predictions):
      metrics, predictions = run.evaluate_program(settled.stages[-1], settled.eval_params(state), mesh)
      if is_unseen and not is_evaluated(read(files.path), start):
        writer.write(start, "eval", metrics)
    replicate = jax.jit(task.exported, out_shardings=NamedSharding(mesh, P()))
    params = replicate(settled.eval_params(state))
    writer.finish()
    if host == 0:
      _export(task, params, metrics, predictions, files.path, directory, config)
    if start < config.steps:
      _show_goodput(card, files.path)
    if host == 0:  # Last, so that the line above the prompt is the command to type.
      results.info("Next:    %s", next_command(task, directory, task.example() if task.example else ""))
  return metrics


def _batches(stages, start, skipped, host, hosts) -> Generator[tuple[int, run.Stage, dict, float], None, None]:
  """Yields the batches of a run from step `start` to its end.

  Args:
    stages: see run.Run.
    start: the step of the state.
    skipped: numbers of batches to leave out; a batch is a function of its number.
    host: the index of this host.
    hosts: the number of hosts.

  Yields:
    (step from 1, its stage, this host's rows of the batch, seconds waited for them).
  """
  for stage in stages:
    step = max(start, stage.first)
    if step >= stage.last:
      continue
    number = guard.batch_number(step, skipped)
    source = iter(stage.task.train_batches(number, host, hosts))
    while step < stage.last:
      begin = time.perf_counter()
      try:
        batch = next(source)
      except (UserError, OSError, StopIteration):
        raise
      except Exception as error:  # Grain raises several kinds for a worker that was killed.
        raise OSError(
          f"batch {number} could not be made ({message_lines(error)[0][:200]}), perhaps because a worker process of "
          "data.workers ended; the same command resumes from the last checkpoint"
        ) from error
      if number not in skipped:
        step += 1
        yield step, stage, batch, time.perf_counter() - begin
      number += 1


def _advise(config, step, metrics, baselines) -> bool:
  """Warns if no metric beats its baseline after the warm-up and some more steps; returns whether it warned."""
  opt = OptimizerConfig(**config.optimizer)
  patience = warmup_steps(opt, config.steps) + min(10_000, config.steps // 4)
  text = ""
  if step >= min(patience, config.steps):
    rate = peak(opt, config.batch_size) / 2
    if opt.name == "lamb":  # The paper's rate, by the square-root rule of the LAMB paper.
      rate = min(rate, 0.00176 * math.sqrt(config.batch_size / 4096))
    is_small = config.init_from and config.model.hidden_size < SMALL_WIDTH and opt.name != SMALL_MODEL["name"]
    flags = [f"--config.optimizer.{name}={value}" for name, value in SMALL_MODEL.items()] if is_small else []
    text = guard.advice(metrics, baselines, step, rate, bool(config.init_from), " ".join(flags))
    if text and jax.process_index() == 0:
      log.warning("%s", text)
  return bool(text)


def _export(task, params, metrics, predictions, folder, directory, config):
  """Writes the results of a complete run: weights, predictions and curves; logs a table of the held-out metrics."""
  from albert_jax.exports.folder import export_run  # Imported here: it imports every task, which delays the start.

  export_run(
    folder / "export", task.model, jax.device_get(params), vocabulary=task.vocabulary,
    architecture=task.architecture or None, extra=task.about, run=folder,
    run_config=masked(json.loads(config.to_json())), name=directory.rstrip("/").rsplit("/", 1)[-1],
  )  # fmt: skip
  if predictions:
    run.write_files(folder / "predictions", predictions)
  results.info("%s", table(metrics, task.baselines))
  results.info("Weights: %s/export", directory)
  curves.plot([folder], folder / "curves.png")
  results.info("Curves:  %s/curves.png", directory)


def _show_goodput(card, folder):
  """Logs which share of the time the run and this process have trained."""
  if jax.process_index() == 0:
    log.info("%s", goodput.text(*goodput.measure(card, read(folder))))


def next_command(task: tasks.Task, directory: str, text: str = "") -> str:
  """Returns a command to try the model of a complete run.

  Args:
    task: the run's task.
    directory: its workdir.
    text: an input in the language of the run; '' for the example of the task.
  """
  about = task.about.get("albert_jax_task", {})
  name, checkpoint = about.get("name", "fill-mask"), f"--checkpoint={shlex.quote(directory)}"
  prediction = tasks.predictions().get(name)
  if prediction is None or not task.vocabulary:
    return f"albert-jax evaluate {checkpoint}"
  example = '{"text": "A first text.", "pair": "A second text."}' if about.get("pair") else text or prediction.example
  named = "" if "name" in about else f" --task={name}"
  return f"albert-jax predict {checkpoint}{named} {shlex.quote(example)}"


def _announce(config, params, mesh, start, directory):
  """Logs the size of the model, the devices and the steps of the run."""
  if jax.process_index() == 0:
    begin = f"resuming from step {start}" if start else "from step 0"
    steps = (
      f"{begin} to {config.steps}" if start < config.steps else f"complete at step {start}; raise steps to continue"
    )
    log.info(
      "%s parameters on %d %s, %s, in %s",
      f"{model.param_count(params):,}", mesh.size, mesh.devices.flat[0].device_kind, steps, directory,
    )  # fmt: skip


def table(metrics: dict[str, float], baselines: dict[str, tuple[float, str]]) -> str:
  """Returns a table of held-out metrics beside their baselines."""
  lines = [f"{'held-out':<16}{'this run':>10}{'baseline':>10}   baseline is"]
  for name, (value, meaning) in baselines.items():
    if name in metrics:
      lines.append(f"{name:<16}{metrics[name]:>10.4f}{value:>10.4f}   {meaning}")
  return "\n".join(lines)
