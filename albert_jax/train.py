"""THE training loop. Read it from top to bottom: task, mesh, state, data, step, log, evaluate, save."""

import contextlib
import copy
import fcntl
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from albert_jax import cli, convert, curves, model, tasks
from albert_jax.errors import UserError
from albert_jax.evaluate import evaluate, make_eval_step, same_task, with_structure, write_files
from albert_jax.training import duration, optimizer, sharding, state
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.schedule import schedule
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.step import make_train_step
from albert_jax.training.writer import Writer, read

# What may differ between a run and its continuation: how it is watched and computed, not what is computed.
FREE = ("steps", "epochs", "tokens", "log_every", "eval_every", "eval_batches", "checkpoint_every", "keep_",
        "early_stop", "init_", "accumulate", "data.workers", "model.remat", "mesh.")  # fmt: skip


def train(config, workdir) -> dict:
  """Trains by `config` (see configs/) in the folder `workdir`, going on from its newest checkpoint if there is one.

  Returns: the newest held-out metrics, {"name": value}; with config.best, those of the best checkpoint.
  Raises: UserError for a config that contradicts itself, the data or the checkpoint; FloatingPointError when the loss
    is no longer a number.
  """
  if "://" in str(workdir):
    raise UserError(f"--workdir={workdir}: only folders are supported so far; mount the bucket and give its path")
  workdir = pathlib.Path(workdir).absolute()
  host, hosts = jax.process_index(), jax.process_count()

  # Tasks, mesh, optimizer: everything that can be wrong is found before the first array exists.
  config, stages = _stages(config)
  task, last_stage = stages[-1].task, stages[-1]
  mesh = sharding.make_mesh(MeshConfig(**config.mesh), config.batch_size)
  opt = OptimizerConfig(**config.optimizer)
  key_init, key_step = jax.random.split(jax.random.key(config.seed))
  tx = optimizer.make(opt, model.layer_axes(task.model, jax.eval_shape(task.init, key_init)))
  abstract = state.abstract(task.init, tx, key_init)
  places = sharding.shardings(mesh, abstract, config.mesh.zero1)
  for stage in stages:
    micro = _micro_batches(stage.batch_size, config.accumulate, mesh)
    stage.train_step = make_train_step(stage.task.sums, stage.task.terms, tx, key_step, mesh, places, micro)
    stage.eval_step = make_eval_step(stage.task)
    stage.rate = schedule(opt, config.steps, stage.batch_size)

  with contextlib.ExitStack() as stack:
    stack.enter_context(_alone(workdir))
    _same_run(config, workdir)
    stack.enter_context(jax.set_mesh(mesh))
    saved = Checkpoints(workdir / "checkpoints", config.keep_checkpoints, config.keep_every, bool(config.best))
    stack.enter_context(contextlib.closing(saved))
    # State: the newest checkpoint, given weights, or fresh arrays made in their place.
    if saved.latest() is not None:
      now = saved.restore(abstract, places)
    elif config.init_from:
      moments = convert.load_optimizer(config.init_from) if config.init_optimizer else None
      now = state.from_params(_given(config, task, key_init), tx, places, moments)
    else:
      now = state.create(task.init, tx, key_init, places)
    start = int(now["step"])
    _announce(config, task, mesh, start, workdir)

    # The loop: dispatch step t, then look at step t - 1, so that the device never waits for the host.
    writer = Writer(workdir, start, config.steps, config.log_every)
    with contextlib.closing(writer), _asked_to_stop(hosts) as asked_to_stop:
      held_out, files, before, stop = _last_evaluation(workdir, start), {}, None, ""
      best = _Best(config.best, config.early_stop, workdir, start)
      for step, stage, batch in () if best.enough() else _batches(stages, start, host, hosts):
        batch = sharding.global_batch(mesh, batch)
        learning_rate = sharding.everywhere(mesh, stage.rate(step - 1))
        with jax.transfer_guard("disallow"):
          now, numbers = stage.train_step(now, batch, learning_rate)
        if before is not None:
          writer.train(*before)
        before = (step, stage.batch_size * stage.seq_length, *numbers)

        stop = asked_to_stop(step)
        evaluating = step % config.eval_every == 0 or step == config.steps
        saving = step % config.checkpoint_every == 0 or step == config.steps or bool(stop)
        if saving or evaluating:
          writer.train(*before)  # Raises where the loss is not a number: such a state is never saved.
          before = None
        if evaluating:
          held_out, files = evaluate(stage.task, stage.eval_step, now["params"], mesh)
          writer.write(step, "eval", held_out)
          writer.pause()
          saving |= best.improved(step, held_out) or best.enough()
        if saving:
          saved.save(step, now, best.scores.get(step))
        if stop or best.enough():
          break

    if stop and step < config.steps:
      print(f"Stopped at step {step} by {stop}; saved. The same command goes on from there.", file=sys.stderr)
      return held_out
    if config.best and best.step != int(now["step"]):
      now = saved.restore(abstract, places, best.step)
      held_out, files = _last_evaluation(workdir, best.step), {}
      print(f"The best {config.best} was at step {best.step}; that one is exported.", file=sys.stderr)
    if task.score is not None and not files:
      held_out, files = evaluate(task, last_stage.eval_step, now["params"], mesh)
    params = jax.jit(lambda params: params, out_shardings=NamedSharding(mesh, P()))(now["params"])
    if host == 0:
      _finish(task, params, held_out, files, workdir)
  return held_out


@dataclass
class _Stage:
  """Steps [first, last) of the run, with what they train and how."""

  first: int
  last: int
  batch_size: int
  seq_length: int
  task: tasks.Task
  train_step: Callable | None = None
  eval_step: Callable | None = None
  rate: Callable | None = None


def _stages(config):
  """The config with everything in it settled, and the stages of the run: one, unless there is a curriculum."""
  config, vocabulary = copy.deepcopy(config).unlock(), None
  if config.init_structure and config.init_from:
    with_structure(config, config.init_from)
    vocabulary = convert.load_tokenizer(config.init_from)
  final = {"batch_size": config.batch_size, "seq_length": config.data.seq_length,
           "num_hidden_layers": config.model.num_hidden_layers}  # fmt: skip
  parts = duration.shares(config.curriculum.to_dict(), final)
  shared = config.model.share == "all" and config.model.num_hidden_groups == 1
  if config.curriculum.num_hidden_layers and not shared:
    raise UserError("curriculum.num_hidden_layers needs layers that share all their weights; set model.share=all")
  found = {}

  def task_of(values, first_row):
    """Stages that differ in their rows only are the same task."""
    stage = copy.deepcopy(config)
    stage.batch_size, stage.data.seq_length = values["batch_size"], values["seq_length"]
    stage.model.num_hidden_layers = values["num_hidden_layers"]
    key = (*values.values(), first_row)
    found[key] = found.get(key) or tasks.make(stage, vocabulary, first_row)
    return found[key]

  train_rows = task_of(final, 0).train_rows if config.epochs else 0
  config.steps = duration.total_steps(
    steps=config.steps, epochs=config.epochs, tokens=config.tokens, train_rows=train_rows, parts=parts
  )
  stages = [
    _Stage(s.first, s.last, s.batch_size, s.seq_length,
           task_of({name: getattr(s, name) for name in final}, s.rows_before - s.first * s.batch_size))
    for s in duration.stages(parts, config.steps)
  ]  # fmt: skip
  return config.lock(), stages


def _batches(stages, start, host, hosts):
  """(step counted from 1, its stage, this host's rows of its batch), from `start` to the end of the run."""
  for stage in stages:
    if start < stage.last:
      first = max(start, stage.first)
      steps = range(first + 1, stage.last + 1)
      for step, batch in zip(steps, stage.task.train_batches(first, host, hosts), strict=False):
        yield step, stage, batch


class _Best:
  """Which evaluation was the best by one metric; losses are better when lower."""

  def __init__(self, metric: str, patience: int, workdir, start: int):
    """Args: metric: '' for none. patience: evaluations without a new best that are `enough`; 0: never."""
    self.metric, self.patience, self.step, self.value = metric, patience, 0, None
    self.scores, self.evaluations = {}, []
    if patience and not metric:
      raise UserError(f"early_stop={patience} needs a metric to go by; give one such as --config.best=mlm_loss")
    for line in read(workdir):  # What a run that was cut off had found.
      if line["split"] == "eval" and line["step"] <= start:
        self.improved(line["step"], line)

  def improved(self, step, numbers) -> bool:
    """Takes the numbers of an evaluation, and says whether they are the best so far."""
    self.evaluations.append(step)
    if not self.metric:
      return False
    if self.metric not in numbers:
      raise UserError(f"best={self.metric!r} is not among the held-out numbers: {', '.join(sorted(numbers))}")
    value = -numbers[self.metric] if self.metric.endswith("loss") else numbers[self.metric]
    better = self.value is None or value > self.value
    if better:  # Only these are scored, so that of two equally good checkpoints the one named here is kept.
      self.step, self.value, self.scores[step] = step, value, value
    return better

  def enough(self) -> bool:
    """Whether so many evaluations brought nothing better that the run may end."""
    return bool(self.patience) and sum(at > self.step for at in self.evaluations) >= self.patience


def _micro_batches(batch_size, accumulate, mesh) -> int:
  rows, rest = divmod(batch_size, mesh.shape["data"] * mesh.shape["fsdp"])
  if rest:
    raise UserError(f"curriculum.batch_size: {batch_size} must divide by the {mesh.size} devices that split rows")
  if accumulate < 1 or rows % accumulate:
    fit = [n for n in range(1, rows + 1) if rows % n == 0]
    raise UserError(f"accumulate={accumulate} must divide the {rows} rows a device has; use one of {fit}")
  return accumulate


def _finish(task, params, held_out, files, workdir):
  """What a complete run leaves: weights for others, answers, the curves, and a table on stdout."""
  convert.save(
    workdir / "export", task.model, jax.device_get(params), vocabulary=task.vocabulary, overwrite=True,
    architecture=task.architecture or None, extra=task.about,
  )  # fmt: skip
  if files:
    write_files(workdir / "predictions", files)
  curves.plot(workdir, task.baselines)
  print(table(held_out, task.baselines))
  print(f"Weights: {workdir / 'export'}\nCurves:  {workdir / 'curves.png'}")


@contextlib.contextmanager
def _alone(workdir):
  """Holds the folder of a run, so that no second one writes there; the system lets go of it when this process ends."""
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / ".lock", "w") as lock:
    if jax.process_index() == 0:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise UserError(f"{workdir} is in use by another run; wait for its end, or give another --workdir") from None
    yield


def _same_run(config, workdir):
  """Writes `config.json`, or finds the same one there. Raises: UserError that names the fields that differ."""
  path = workdir / "config.json"
  new = json.loads(config.to_json())
  if path.exists() and (workdir / "checkpoints").exists():
    old = json.loads(path.read_text())
    ours, theirs = _flat(new), _flat(old)
    changed = [
      f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
      for name in sorted({*ours, *theirs})
      if ours.get(name) != theirs.get(name) and not name.startswith(FREE)
    ]
    if changed:
      raise UserError(
        f"{workdir} holds a run with another config:\n  " + "\n  ".join(changed) + "\n"
        "Give the same values to go on with it, or another --workdir to start anew."
      )
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(new, indent=2) + "\n")
    temporary.replace(path)


def _flat(tree, prefix=""):
  return {
    name: leaf
    for key, value in tree.items()
    for name, leaf in (_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}).items()
  }


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


def _announce(config, task, mesh, start, workdir):
  """One line that says what is about to happen."""
  if jax.process_index() == 0:
    devices = f"{mesh.size} {mesh.devices.flat[0].device_kind}"
    size = model.param_count(jax.eval_shape(task.init, jax.random.key(0)))
    begin = f"going on from step {start}" if start else "from step 0"
    what = f"{begin} to {config.steps}" if start < config.steps else f"complete at step {start}; raise steps to go on"
    print(f"{size:,} parameters on {devices}, {what}, in {workdir}", file=sys.stderr)


def _last_evaluation(workdir, step):
  """The newest held-out metrics of a run up to `step`, {} if there are none."""
  lines = [line for line in read(workdir) if line["split"] == "eval" and line["step"] <= step]
  return {k: v for k, v in lines[-1].items() if k not in ("step", "split")} if lines else {}


@contextlib.contextmanager
def _asked_to_stop(hosts):
  """Yields a function of the step that says why to stop after it, if SIGTERM or Ctrl-C has come; else ''.

  Of several hosts only some may be told. JAX then finds a step at which all of them stop.
  """
  if hosts > 1:
    yield lambda step: "a notice of preemption" if multihost_utils.reached_preemption_sync_point(step) else ""
    return
  asked = []

  def note(number, _):
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt  # The second Ctrl-C means now.
    asked.append(signal.Signals(number).name)

  before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield lambda step: asked[0] if asked else ""
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def join(coordinator: str, processes: int, process: int):
  """Makes this process one of several, if it is: by the arguments, or by what launch/tpu.sh, a pod or SLURM says."""
  said = os.environ.get
  if coordinator:
    jax.distributed.initialize(coordinator, processes, process)
  elif (
    "," in said("TPU_WORKER_HOSTNAMES", "")
    or max(int(said("ALBERT_JAX_PROCESSES", "1")), int(said("SLURM_NTASKS", "1"))) > 1
  ):
    jax.distributed.initialize()  # Which asks the cluster who it is.


def table(metrics, baselines) -> str:
  """Held-out metrics beside what they would be without learning."""
  lines = [f"{'held-out':<16}{'this run':>10}{'baseline':>10}   baseline is"]
  for name, (value, what) in baselines.items():
    if name in metrics:
      lines.append(f"{name:<16}{metrics[name]:>10.4f}{value:>10.4f}   {what}")
  return "\n".join(lines)


def main(argv):
  parser = cli.parser(
    "train",
    "Trains a model in a folder: checkpoints, metrics.jsonl, TensorBoard events, and at the end curves.png and\n"
    "export/, a Hugging Face directory. Run again, it goes on from the newest checkpoint.",
    "albert-jax train --config=configs/pretrain.py:tiny --config.data.dataset=DIR --workdir=RUN",
  )
  parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of this run")
  several = parser.add_argument_group("several processes (found by themselves on TPU pods and SLURM)")
  several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="where process 0 listens")
  several.add_argument("--processes", type=int, metavar="N", help="how many there are")
  several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
  args, config = cli.parse_with_config(parser, argv)
  if args.coordinator and (args.processes is None or args.process is None):
    raise UserError("--coordinator needs --processes=N and --process=I")
  join(args.coordinator, args.processes, args.process)
  train(config, args.workdir)
