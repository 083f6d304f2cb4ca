"""What every test shares: quick compiles, strict arithmetic, and the real data where ALBERT_DATA names it."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import shutil
import signal

# Most of the time of these tests is compiling. Compiling without optimizations takes a third of the time, and the older
# of XLA's two code generators for CPUs a third of that (docs/log.md). Compiled programs are kept for the other workers,
# the commands that tests start, and the next run. JAX reads both variables when it is imported.
COMPILED = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
# Without the second flag, eight devices on two cores begin two sums over devices in different orders, and XLA aborts.
XLA_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_enable_concurrency_optimized_scheduler=false"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # Later ones have one code generator, and abort.
  XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(XLA_FLAGS))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))

import fsspec  # noqa: E402
import gcs_stand_in  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from albert_jax import copies, curves  # noqa: E402
from albert_jax.training import sharding  # noqa: E402

# How long an example takes depends on how busy the machine is.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Under nohup it is ignored, and tests send it.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # So that meshes can be tested on any machine.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)  # Not each operation that runs by itself.


def pytest_sessionstart(session):
  """Clears the compiled programs when there are many: those of changed programs are never read again."""
  if not hasattr(session.config, "workerinput") and COMPILED.is_dir() and len(os.listdir(COMPILED)) > 5000:
    shutil.rmtree(COMPILED)


def pytest_collection_finish():
  """Collects garbage more rarely, as the commands do: tracing makes many long-lived objects."""
  gc.freeze()
  gc.set_threshold(100_000)


@pytest.fixture(scope="session")
def real_data():
  """Returns the folder of real corpora, vocabularies and checkpoints; tests that use it are marked `realdata`."""
  return pathlib.Path(os.environ["ALBERT_DATA"])


@pytest.fixture(scope="session")
def cloud_storage():
  """The stand-in, and the environment by which programs find it. One for all tests: TensorStore looks for it once."""
  store = gcs_stand_in.Store("bucket")
  with store.running() as environment:
    yield store, environment


@pytest.fixture(scope="module")
def quick_runs():
  """Runs in this process use one device and draw no curves, which saves seconds; both have tests of their own."""
  make_mesh = sharding.make_mesh

  def make_small_mesh(mesh_config, batch_size, devices=None):
    return make_mesh(mesh_config, batch_size, devices or jax.devices()[:1])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh", make_small_mesh)
    patch.setattr(curves, "plot", lambda *args: None)
    yield


@pytest.fixture
def bucket(cloud_storage, tmp_path, monkeypatch):
  """Google Cloud Storage, or what stands in for it, with an empty bucket called `bucket`; on a machine that knows none
  of it yet."""
  if importlib.util.find_spec("gcsfs") is None:
    pytest.skip("needs gcsfs: pip install 'albert-jax[gcs]'")
  store, environment = cloud_storage
  store.objects["bucket"], store.refuse = {}, None
  store.calls.clear()
  for name, value in {**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})  # What it read of the environment was before.
  copies.local.cache_clear()
  return store


def pytest_collection_modifyitems(items):
  if "ALBERT_DATA" not in os.environ:
    skip = pytest.mark.skip(reason="needs real data: set ALBERT_DATA to its folder")
    for item in items:
      if "realdata" in item.keywords:
        item.add_marker(skip)
