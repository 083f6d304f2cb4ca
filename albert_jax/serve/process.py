"""The process of the server: its port, signals and log."""

import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from albert_jax import signals
from albert_jax.errors import UserError
from albert_jax.serve.app import create
from albert_jax.serve.models import Served
from albert_jax.serve.state import Settings, State

KEEP_ALIVE = 30  # seconds for which a connection may stay open without a request


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
  """A connection that closes if no complete head of a request arrives in time; uvicorn waits without limit."""

  seconds: float = KEEP_ALIVE  # A head that began after a request may take up to twice as long.

  def connection_made(self, transport: asyncio.Transport) -> None:
    super().connection_made(transport)
    self._timer = self.loop.call_later(self.seconds, self._check, None)

  def connection_lost(self, exc: Exception | None) -> None:
    self._timer.cancel()
    super().connection_lost(exc)

  def _check(self, cycle):
    # A cycle is a request with its answer. If it is the one of the last check, none has begun since.
    waits = self.cycle is None or self.cycle.response_complete
    if waits and self.cycle is cycle:
      self.transport.close()
    else:
      self._timer = self.loop.call_later(self.seconds, self._check, self.cycle)


class _Server(uvicorn.Server):
  """A server that drains on SIGTERM and Ctrl-C, and then returns; so it does if a model cannot run."""

  state: State
  log: Callable[[dict], None]

  def capture_signals(self):
    return signals.handled(self.handle_exit)

  async def on_tick(self, counter: int) -> bool:
    return await super().on_tick(counter) or self.state.failure is not None

  def handle_exit(self, sig, frame) -> None:
    if self.state.draining:  # A second signal skips the drain.
      self.force_exit = sig == signal.SIGINT
      self.should_exit = True
      return
    self.state.draining = True
    self.log({"event": "draining", "signal": signal.Signals(sig).name})
    delay = self.state.settings.drain if sig == signal.SIGTERM and self.started else 0
    asyncio.get_running_loop().call_soon_threadsafe(
      lambda: asyncio.get_running_loop().call_later(delay, setattr, self, "should_exit", True)
    )


def listen(settings: Settings) -> socket.socket:
  """Opens the port.

  Raises:
    UserError: the port cannot be opened.
  """
  try:
    family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
    if not settings.reuse_port:
      return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    sock = socket.socket(family)  # Bound but not listening: it gets no connections yet.
    try:
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
      sock.bind((settings.host, settings.port))
    except OSError:
      sock.close()
      raise
    return sock
  except (OSError, OverflowError) as error:
    number = getattr(error, "errno", None) or 0
    # Error numbers of name look-ups are negative.
    reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
    raise UserError(
      f"cannot listen on {settings.host}:{settings.port} ({reason}); give another --port, or --port=0 for any free one"
    ) from error


def log_line(record: dict) -> None:
  """Writes one JSON object a line to stderr."""
  line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record}
  print(json.dumps(line), file=sys.stderr, flush=True)


class _Handler(logging.Handler):
  """Writes uvicorn's messages as lines of the log, without their arguments, which may come from a client."""

  def emit(self, record) -> None:
    log_line({"event": "uvicorn", "level": record.levelname.lower(), "message": record.msg})


def run(checkpoints: dict[str, str], settings: Settings, backend: str = "jax", dtype: str = "") -> None:
  """Serves until SIGTERM or Ctrl-C; requests that were accepted before are answered.

  Args:
    checkpoints: {name: path}.
    settings: limits and switches.
    backend, dtype: as for albert_jax.pipeline.

  Raises:
    UserError: a checkpoint or the port cannot be used, or a model cannot run.
  """
  with listen(settings) as sock:
    settings = dataclasses.replace(settings, port=sock.getsockname()[1])
    models = {}
    for name, path in checkpoints.items():
      log_line({"event": "loading", "model": name})
      models[name] = Served(name, path, batch_size=settings.batch_size, backend=backend, dtype=dtype)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    tasks = "; ".join(f"{name}: {', '.join(model.tasks)}" for name, model in models.items())
    announcement = f"http://{host}:{settings.port}/ serves {tasks}"
    app = create(models, settings, log_line, lambda: print(announcement, flush=True))
    config = uvicorn.Config(
      app, http=TimedProtocol, log_config=None, access_log=False, server_header=False,
      limit_concurrency=settings.max_connections, timeout_keep_alive=KEEP_ALIVE,
      timeout_graceful_shutdown=max(1, round(settings.timeout)),
    )  # fmt: skip
    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [_Handler(logging.WARNING)], False
    server = _Server(config)
    server.state, server.log = app.state.server, log_line
    server.run(sockets=[sock])
    if failure := app.state.server.failure:
      raise failure
    log_line({"event": "stopped"})
