"""What the routes of the server share: its settings, models and metrics."""

from dataclasses import dataclass
from typing import Any

import prometheus_client as prometheus

from albert_jax.serve.batching import Batcher
from albert_jax.serve.models import Served

IN_THREAD = 32768  # Larger bodies, in bytes, are parsed in a thread, so that they do not block the event loop.


@dataclass(frozen=True)
class Settings:
  """The settings of `albert-jax serve`. Sizes are in bytes, times in seconds."""

  host: str = "127.0.0.1"
  port: int = 8000
  batch_size: int = 64  # the most items run together
  window: float = 0.002  # The first item of a batch waits so long for others.
  max_body: int = 1 << 20
  max_items: int = 256  # in a request
  max_tokens: int = 32768  # in a request
  max_queue: int = 1024  # items that wait
  max_connections: int = 1024
  timeout: float = 30.0  # of a request, and of the drain
  drain: float = 1.0  # New connections are still answered so long after SIGTERM.
  cors: tuple[str, ...] = ()  # origins
  page: bool = True
  warm_up: bool = True
  reuse_port: bool = False  # share the port with other servers that set this, and listen only once ready


class Problem(Exception):
  """The request is answered with an error: a status, a kind of schemas.Failure, and one sentence."""

  def __init__(self, status: int, kind: str, sentence: str):
    super().__init__(sentence)
    self.status, self.kind, self.sentence = status, kind, sentence


class State:
  """What the routes share.

  Attributes:
    models: {name: Served}, in the order of the command line.
    programs: how many programs the warm-up compiles.
    compiled: how many of them are compiled.
    ready: whether all are.
    draining: whether the process was told to stop.
    failure: the error of a model that cannot run, after which the server stops; None for none.
  """

  def __init__(self, models: dict[str, Served], settings: Settings):
    self.models, self.settings = models, settings
    self.programs, self.compiled = 0, 0
    self.ready, self.draining = False, False
    self.failure: Exception | None = None
    self.metrics = Metrics(self)
    self.batcher = Batcher(settings.batch_size, settings.window, settings.max_queue, self.metrics.batch)

  def model(self, name: str | None, task: str) -> Served:
    able = [model for model in self.models.values() if task in model.tasks]
    if name is None and able:  # Models that were trained for the task come first.
      return next((model for model in able if next(iter(model.tasks)) == task), able[0])
    for model in able:
      if model.name == name:
        return model
    names = ", ".join(model.name for model in able) or "none"
    what = f"there is no model {str(name)[:60]!r}" if name not in self.models else f"the model {name!r} is not"
    raise Problem(404, "not_found", f"{what} for {task}; there are: {names}")


class Metrics:
  """Prometheus metrics. Labels are routes, models and tasks of this server, never values from a client."""

  def __init__(self, state: State):
    prometheus.disable_created_metrics()
    self.registry = registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=registry)
    names, seconds = (
      ("route", "model", "status"),
      (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    )
    self.requests = prometheus.Counter("albert_jax_requests", "Requests that were answered.", names, registry=registry)
    self.latency = prometheus.Histogram(
      "albert_jax_request_seconds", "Time from the first byte of a request to its answer.", ("route",),
      buckets=seconds, registry=registry,
    )  # fmt: skip
    self.items = prometheus.Counter(
      "albert_jax_items", "Inputs that were answered.", ("model", "task"), registry=registry
    )
    self.tokens = prometheus.Counter(
      "albert_jax_tokens", "Tokens of these inputs.", ("model", "task"), registry=registry
    )
    self.batch_items = prometheus.Histogram(
      "albert_jax_batch_items", "Items that ran together.", ("model", "task"), buckets=(1, 2, 4, 8, 16, 32, 64, 128),
      registry=registry,
    )  # fmt: skip
    self.batch_seconds = prometheus.Histogram(
      "albert_jax_batch_seconds", "Time of a batch in the model.", ("model", "task"), buckets=seconds, registry=registry
    )
    prometheus.Gauge("albert_jax_queue_items", "Items that wait.", registry=registry).set_function(
      lambda: state.batcher.waiting
    )
    prometheus.Gauge("albert_jax_ready", "1 once all programs are compiled.", registry=registry).set_function(
      lambda: float(state.ready and not state.draining)
    )

  def batch(self, key: Any, count: int, seconds: float) -> None:
    model, task = key[:2]
    self.batch_items.labels(model, task).observe(count)
    self.batch_seconds.labels(model, task).observe(seconds)
