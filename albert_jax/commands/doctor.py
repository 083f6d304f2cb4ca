"""`albert-jax doctor`: shows the machine, tests training on it, and lists missing packages."""

import glob
import importlib.util
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator

import numpy as np

import albert_jax
from albert_jax import files
from albert_jax.commands import common
from albert_jax.errors import one_line
from albert_jax.versions import NOT_INSTALLED, installed

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "array-record",
            "sentencepiece", "safetensors", "numpy")  # fmt: skip
NEEDED_BYTES = 5 << 30  # Less room is reported: a checkpoint of xlarge with LAMB's slots is 0.7 GB.


def main(argv: list[str]) -> int:
  """Prints the report; returns 1 if the self-test failed."""
  parser = common.parser(
    "doctor",
    "Prints versions, devices, memory and room on disk, trains a tiny model for one step, saves and restores it, and "
    "lists what is missing for TPUs, GPUs, buckets, Weights & Biases and the Hub, with the command that brings it.",
    "albert-jax doctor",
  )
  parser.add_argument("--json", default="", metavar="FILE", help="write the report there too")
  args = parser.parse_args(argv)
  report: dict[str, dict[str, str]] = {"self_test": {}}
  for title, facts_of in {"versions": versions, "machine": machine}.items():
    print(title, flush=True)
    report[title] = facts_of()
    for name, value in report[title].items():
      print(f"  {name:22} {value}")
  print("self-test (compiles a tiny model: seconds, and up to a minute on a busy machine)")
  for name, result in self_test():
    if not result:  # The test begins.
      print(f"  {name:22} ", end="", flush=True)
      continue
    report["self_test"][name] = result.removeprefix("ok, ")
    print(result, flush=True)
  print("optional")
  report["missing"] = missing()
  for name, remedy in report["missing"].items():
    print(f"  {name:22} {remedy or 'ok'}")
  failed = [name for name, result in report["self_test"].items() if not result.endswith(" s")]
  if args.json:
    files.write_json(args.json, report)
  print(f"\nalbert-jax does not work here: {', '.join(failed)}" if failed else "\nalbert-jax works on this machine.")
  return 1 if failed else 0


def versions() -> dict[str, str]:
  """Returns {package: version} of the packages that training needs."""
  versions_of = {"albert-jax": albert_jax.__version__, "python": platform.python_version()}
  for name in PACKAGES:
    version = installed(name)
    versions_of[name] = "not installed; type: pip install albert-jax" if version == NOT_INSTALLED else version
  return versions_of


def machine() -> dict[str, str]:
  """Returns devices, processors, memory, and room on disk."""
  import jax

  facts = {}
  try:
    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds)))
    facts["devices"] = f"{devices} ({jax.default_backend()})"
    if stats := jax.local_devices()[0].memory_stats():
      facts["device memory"] = f"{stats.get('bytes_limit', 0) / 2**30:.1f} GiB each"
  except RuntimeError as error:  # A platform that does not start, as with a driver that is too old.
    facts["devices"] = f"none: {one_line(error)}; type: unset JAX_PLATFORMS"
  facts["processors"] = f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"
  facts["memory"] = _memory()
  for name, folder in {"disk here": pathlib.Path.cwd(), "disk of the cache": files.cache()}.items():
    while not folder.exists():
      folder = folder.parent
    free = shutil.disk_usage(folder).free
    facts[name] = f"{free / 2**30:.1f} GiB free in {folder}" + (" (little)" if free < NEEDED_BYTES else "")
  if not os.access(pathlib.Path.cwd(), os.W_OK):
    facts["disk here"] += "; this folder cannot be written to"
  return facts


def _memory():
  try:
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
  except OSError:
    return "unknown"
  kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
  return f"{kib.get('MemAvailable', 0) / 2**20:.1f} of {kib.get('MemTotal', 0) / 2**20:.1f} GiB available"


def self_test() -> Iterator[tuple[str, str]]:
  """Trains a tiny model, and stops at the first error.

  Yields:
    (test, '') before each test, and (test, its result) after it: "ok, SECONDS s" or "FAILED: REASON".
  """
  with tempfile.TemporaryDirectory(prefix="albert_jax.doctor.") as folder:
    state = {}
    for name, part in {
      "forward": _forward, "one training step": _step, "save": _save, "restore": _restore,
    }.items():  # fmt: skip
      begin, error = time.perf_counter(), ""
      yield name, ""
      try:
        part(state, folder)
      except Exception as failure:  # The report shows any failure of this machine.
        error = f"FAILED: {one_line(failure)}"
      yield name, error or f"ok, {time.perf_counter() - begin:.1f} s"
      if error:
        break
    if "checkpoints" in state:
      state["checkpoints"].close()


def _forward(state, folder):
  import jax

  from albert_jax.tasks import pretrain
  from albert_jax.training import optimizer, sharding

  config = common.load_config("pretrain:tiny")
  devices = jax.device_count()
  config.batch_size = 4 * devices
  config.data.seq_length = 32
  config.model.update({
    "vocab_size": 64, "hidden_size": 32, "embedding_size": 16, "num_attention_heads": 2, "intermediate_size": 64,
    "num_hidden_layers": 2, "max_position_embeddings": 32,
  })  # fmt: skip
  task = pretrain.sketch(config)
  draw = np.random.default_rng(0)
  batch = {name: draw.integers(0, 2, shape).astype(dtype) for name, (shape, dtype) in task.arrays.items()}
  batch |= {name: np.ones_like(batch[name]) for name in ("attention_mask", "mlm_weights", "sop_weight")}
  for name in ("input_ids", "mlm_labels"):
    batch[name] = draw.integers(5, 64, batch[name].shape).astype(np.int32)
  mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh), config.batch_size)
  key = jax.random.key(0)
  params = jax.jit(task.init)(key)
  total, weight = jax.jit(lambda params, batch: task.sums(params, batch, None))(params, batch)["mlm_loss"]
  loss = float(total) / float(weight)
  if not 2 < loss < 8:
    raise ArithmeticError(f"the loss of a fresh model of 64 tokens is {loss}; expected about ln 64 = 4.2")
  state |= {"task": task, "batch": batch, "mesh": mesh, "key": key, "loss": loss}
  state["optimizer"] = optimizer.OptimizerConfig(name="adamw", textbook=True, warmup_steps=0)


def _step(state, folder):
  import jax

  from albert_jax import model
  from albert_jax.training import optimizer, sharding
  from albert_jax.training import state as states
  from albert_jax.training.step import make_train_step

  task, mesh, key = state["task"], state["mesh"], state["key"]
  with jax.set_mesh(mesh):
    tx = optimizer.make(state["optimizer"], model.layer_axes(task.model, jax.eval_shape(task.init, key)))
    abstract = states.abstract(task.init, tx, key)
    shardings = sharding.shardings(mesh, abstract)
    train_step = make_train_step(task.sums, task.terms, tx, key, mesh, shardings)
    batch, losses = sharding.global_batch(mesh, state["batch"]), []
    held = states.create(task.init, tx, key, shardings)
    for _ in range(2):
      held, (sums, _) = train_step(held, batch, sharding.everywhere(mesh, 1e-2))
      total, weight = jax.device_get(sums["mlm_loss"])
      losses.append(float(total) / float(weight))
  if not losses[1] < losses[0]:
    raise ArithmeticError(f"a step did not lower the loss of its own batch: {losses[0]} to {losses[1]}")
  state |= {"held": held, "abstract": abstract, "shardings": shardings}


def _save(state, folder):
  from albert_jax.training.checkpoint import Checkpoints

  state["checkpoints"] = Checkpoints(f"{folder}/checkpoints", 1)
  state["checkpoints"].save(2, state["held"])
  state["checkpoints"].wait()


def _restore(state, folder):
  import jax

  restored = state["checkpoints"].restore(state["abstract"], state["shardings"])
  same = jax.tree.map(lambda a, b: np.array_equal(a, b), jax.device_get(state["held"]), jax.device_get(restored))
  if not all(jax.tree.leaves(same)):
    raise ArithmeticError("the restored state is not the saved one")


def missing() -> dict[str, str]:
  """Returns {feature: the command that installs it, '' if it is installed}."""
  return {
    "TPU": _tpu(),
    "GPU": _gpu(),
    "gs:// buckets": _package("gcsfs", "gcs") or _credentials(),
    "plan": _package("libtpu", "plan"),
    "export to ONNX": _package("onnx", "onnx"),
    "serve": _package("starlette", "serve"),
    "Weights & Biases": _package("wandb", "wandb") or _wandb(),
    "Hugging Face Hub": _package("huggingface_hub", "hub"),
    "PL-BERT from text": _package("phonemizer", "speech"),
  }


def _package(module: str, extra: str) -> str:
  return "" if importlib.util.find_spec(module) else f"type: pip install 'albert-jax[{extra}]'"


def _tpu():
  if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
    return "no TPU on this machine"
  return _not_used("tpu", "tpu", "libtpu")


def _gpu():
  if not glob.glob("/dev/nvidia[0-9]*"):
    return "no NVIDIA GPU on this machine"
  return _not_used("gpu", "gpu", "jax_plugins")


def _not_used(backend, extra, module):
  import jax

  try:
    if jax.default_backend() == backend:
      return ""
  except RuntimeError:  # `machine` shows the error.
    pass
  if os.environ.get("JAX_PLATFORMS"):
    return f"not used, as JAX_PLATFORMS={os.environ['JAX_PLATFORMS']}; type: unset JAX_PLATFORMS"
  return _package(module, extra) or "JAX does not find it; check the driver, as with nvidia-smi"


def _credentials():
  default = pathlib.Path("~/.config/gcloud/application_default_credentials.json").expanduser()
  if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or default.is_file() or os.environ.get("STORAGE_EMULATOR_HOST"):
    return ""
  return "no credentials (a VM of Google Cloud needs none); type: gcloud auth application-default login"


def _wandb():
  netrc = pathlib.Path("~/.netrc").expanduser()
  if os.environ.get("WANDB_API_KEY") or (netrc.is_file() and "api.wandb.ai" in netrc.read_text("utf-8", "replace")):
    return ""
  return "not logged in; type: wandb login"
