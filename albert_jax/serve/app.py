"""The HTTP application: routes, limits, errors, logs, metrics, and the process that runs it."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import signal
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import prometheus_client as prometheus
import pydantic
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from albert_jax import signals
from albert_jax.errors import UserError
from albert_jax.serve import openapi, schemas
from albert_jax.serve.batching import Batcher, Busy
from albert_jax.serve.models import Served, TooLong

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
OPENAI = "/v1/embeddings"
PROBES = ("/healthz", "/readyz", "/metrics")
_IN_THREAD = 32768  # Larger bodies, in bytes, are parsed in a thread, so that they do not block the event loop.


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
    ready: whether all programs are compiled.
    draining: whether the process was told to stop.
  """

  def __init__(self, models: dict[str, Served], settings: Settings):
    self.models, self.settings = models, settings
    self.ready, self.draining = False, False
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


# Requests.


async def _body(request: Request, schema, limit: int):
  """Returns the body of a request, checked against a schema.

  Raises:
    Problem.
  """
  if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
    raise Problem(415, "invalid", "send the body as JSON, with the header Content-Type: application/json")
  too_large = Problem(413, "too_large", f"the body is larger than {limit:,} bytes; send fewer or shorter inputs")
  declared = request.headers.get("content-length", "0")
  if declared.isdigit() and int(declared) > limit:
    raise too_large
  chunks, size = [], 0
  async for chunk in request.stream():
    size += len(chunk)
    if size > limit:
      raise too_large
    chunks.append(chunk)
  body = b"".join(chunks)
  check = _check if size <= _IN_THREAD else _threaded(_check)
  result = check(schema, body)
  return await result if asyncio.iscoroutine(result) else result


def _threaded(function):
  return lambda *args: asyncio.to_thread(function, *args)


def _check(schema, body: bytes):
  try:
    return schema.model_validate_json(body)
  except pydantic.ValidationError as error:
    raise _problem(schema, error) from None


def _problem(schema, error: pydantic.ValidationError) -> Problem:
  """Returns the first error of a body as one sentence."""
  errors = error.errors(include_url=False, include_input=False)
  first = errors[0]
  field = str(first["loc"][0]) if first["loc"] else ""
  if first["type"] == "json_invalid":
    return Problem(400, "invalid", f"the body is not JSON ({first['msg'].removeprefix('Invalid JSON: ')})")
  for problem in errors:
    if problem["type"] == "too_long" and problem["ctx"]["max_length"] == schema.most:
      count, most = problem["ctx"]["actual_length"], problem["ctx"]["max_length"]
      return Problem(
        413, "too_large", f"{field!r} has {count} items, more than the {most} this server takes; send fewer"
      )
  if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
    return Problem(422, "invalid", f"there is no field {field[:60]!r}; there are {', '.join(schema.model_fields)}")
  if first["type"] == "missing" and len(first["loc"]) == 1:
    return Problem(422, "invalid", f"the field {field!r} is missing")
  if field in ("inputs", "input"):
    return Problem(422, "invalid", f"{field!r} must be {schema.form}, or a list of such, not an empty one")
  message = first["msg"][0].lower() + first["msg"][1:]
  return Problem(422, "invalid", f"{field!r}: {message}" if field else f"the body: {message}")


async def _answers(
  state: State, request: Request, task: str, name: str | None, items: list, truncate=False, length=None
):
  """Runs the inputs of a request.

  Args:
    name: the model's name; None for the first model of the task.
    items: the inputs, as JSON values.
    truncate: whether long inputs are cut.
    length: the number of sentences of a summary.

  Returns:
    (Served, results, number of tokens).

  Raises:
    Problem, Busy, UserError.
  """
  model = state.model(name, task)
  if state.draining and not state.ready:
    raise Problem(503, "unavailable", "the server is stopping; send the request to another")
  if not state.ready:
    raise Problem(503, "unavailable", "the server compiles its programs; wait until GET /readyz answers 200")

  def read():
    values, tokens = [], 0
    for item in items:
      value, count = model.read(task, item, truncate)
      values.append(value)
      tokens += count
    return values, tokens

  large = sum(map(len, items)) > _IN_THREAD if all(isinstance(item, str) for item in items) else True
  values, tokens = await asyncio.to_thread(read) if large else read()
  if tokens > state.settings.max_tokens:
    most = state.settings.max_tokens
    raise Problem(413, "too_large", f"the inputs have {tokens:,} tokens; this server takes {most:,} in a request")
  options = {} if length is None else {"sentences": length}
  request.scope["albert_jax"] |= {"model": model.name, "task": task, "items": len(items), "tokens": tokens}
  pipe = model.tasks[task]
  results = await state.batcher.submit((model.name, task, length), lambda batch: pipe.run(batch, **options), values)
  state.metrics.items.labels(model.name, task).inc(len(items))
  state.metrics.tokens.labels(model.name, task).inc(tokens)
  return model, results, tokens


def _plain(item):
  return item.model_dump(exclude_none=True) if isinstance(item, pydantic.BaseModel) else item


def task_route(state: State, task: str) -> Callable[[Request, pydantic.BaseModel], Awaitable[object]]:
  """Returns the function of POST /v1/TASK."""

  async def respond(request, body):
    items = [_plain(item) for item in (body.inputs if isinstance(body.inputs, list) else [body.inputs])]
    model, results, _ = await _answers(
      state, request, task, body.model, items, getattr(body, "truncate", False), getattr(body, "length", None)
    )
    if isinstance(body, schemas.TopK):
      name = "masks" if task == "fill-mask" else "answers"
      cut = (lambda masks: [mask[: body.top_k] for mask in masks]) if task == "fill-mask" else (
        lambda results: results[: body.top_k]
      )  # fmt: skip
      results = [result | {name: cut(result[name])} for result in results]
    return {"model": model.name, "results": results}

  return respond


def openai_route(state: State) -> Any:
  """Returns the function of POST /v1/embeddings, for clients of OpenAI's API."""

  async def respond(request, body):
    items = body.input if isinstance(body.input, list) else [body.input]
    model, results, tokens = await _answers(state, request, "embed", body.model, items)
    vectors = [result["embedding"] for result in results]
    if body.encoding_format == "base64":
      vectors = [base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() for vector in vectors]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model.name, "usage": usage}

  return respond


def tei_embed_route(state: State) -> Any:
  """Returns the function of POST /embed, for clients of text-embeddings-inference."""

  async def respond(request, body):
    items = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    _, results, _ = await _answers(state, request, "embed", None, items, bool(body.truncate))
    return [result["embedding"] for result in results]

  return respond


def tei_predict_route(state: State) -> Any:
  """Returns the function of POST /predict, for clients of text-embeddings-inference."""

  async def respond(request, body):
    batch = isinstance(body.inputs, list) and isinstance(body.inputs[0], list)
    items = body.inputs if batch else [body.inputs]
    items = [[item] if isinstance(item, str) else item for item in items]
    items = [item[0] if len(item) == 1 else {"text": item[0], "pair": item[1]} for item in items]
    model, results, _ = await _answers(state, request, "classify", None, items, bool(body.truncate))
    lists = []
    for result in results:
      scores = result.get("scores") or {(model.labels or ["LABEL_0"])[0]: result["score"]}
      lists.append([{"score": score, "label": label} for label, score in scores.items()])
    return lists if batch else lists[0]

  return respond


def _endpoint(state: State, schema, respond):
  """Returns the function of a route: it reads the body, applies limits, and turns errors of `respond` into answers."""

  async def endpoint(request: Request) -> Response:
    try:
      async with asyncio.timeout(state.settings.timeout):
        body = await _body(request, schema, state.settings.max_body)
        return JSONResponse(await _unless_left(request, respond(request, body)))
    except TimeoutError:
      sentence = f"no answer within {state.settings.timeout:g} seconds; try again, or send fewer inputs"
      raise Problem(503, "unavailable", sentence) from None
    except Busy:
      raise Problem(503, "unavailable", "the queue is full; try again in a second") from None
    except TooLong as error:
      raise Problem(413, "too_large", str(error)) from None
    except UserError as error:
      raise Problem(422, "invalid", str(error)) from None

  return endpoint


async def _unless_left(request: Request, work: Awaitable[object]) -> object:
  """Returns the result of `work`, which is cancelled if the client leaves.

  Raises:
    ClientDisconnect: the client left.
  """

  async def left():
    while (await request.receive())["type"] != "http.disconnect":
      pass

  tasks = [asyncio.ensure_future(work), asyncio.ensure_future(left())]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not tasks[0].done():
      raise ClientDisconnect
    return tasks[0].result()
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _failure(status: int, kind: str, sentence: str, for_openai: bool = False) -> JSONResponse:
  # A message may quote a lone surrogate, which UTF-8 cannot encode.
  sentence = sentence.encode("utf-8", "replace").decode()
  headers = {"Retry-After": "1"} if status == 503 else {}
  body: dict[str, Any] = {"error": sentence, "error_type": kind}
  if for_openai:
    body = {"error": {"message": sentence, "type": kind, "param": None, "code": None}}
  return JSONResponse(body, status, headers)


async def _on_problem(request: Request, error: Problem) -> Response:
  return _failure(error.status, error.kind, error.sentence, request.url.path == OPENAI)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
  sentences = {404: ("not_found", "there is no such path; GET /openapi.json lists them"),
               405: ("invalid", "the path does not take this method; GET /openapi.json lists them")}  # fmt: skip
  kind, sentence = sentences.get(error.status_code, ("invalid", str(error.detail)))
  response = _failure(error.status_code, kind, sentence)
  response.headers.update(error.headers or {})
  return response


# The application.


class Outer:
  """The outermost ASGI middleware: checks the host, counts, logs a line, and hides the text of exceptions."""

  def __init__(self, app: Any, state: State, log: Callable[[dict], None]):
    self.app, self.state, self.log = app, state, log

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
      await self.app(scope, receive, send)
      return
    started, status, identity = time.monotonic(), 500, uuid.uuid4().hex[:16]
    scope["albert_jax"] = notes = {}

    async def send_noted(message):
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
        headers = [(b"x-request-id", identity.encode()), (b"x-content-type-options", b"nosniff")]
        if self.state.draining:  # The client reconnects, to the next process.
          headers.append((b"connection", b"close"))
        message = message | {"headers": [*message["headers"], *headers]}
      await send(message)

    try:
      if self._foreign(scope):
        response = _failure(403, "invalid", "this server answers requests for localhost only; start it with --host")
        await response(scope, receive, send_noted)
      else:
        await self.app(scope, receive, send_noted)
    except ClientDisconnect:
      status = 499
    except Exception as error:
      # An exception may quote a text, so only its place is logged.
      frame = traceback.extract_tb(error.__traceback__)[-1]
      notes["fault"] = f"{type(error).__name__} at {pathlib.Path(frame.filename).name}:{frame.lineno}"
      with contextlib.suppress(Exception):
        sentence = "the server failed on this request; its log names the place"
        await _failure(500, "internal", sentence, scope["path"] == OPENAI)(scope, receive, send_noted)
    seconds = time.monotonic() - started
    route = getattr(scope.get("route"), "path", "other")
    self.state.metrics.requests.labels(route, notes.get("model", ""), status).inc()
    self.state.metrics.latency.labels(route).observe(seconds)
    if status == 200 and route in PROBES:  # Probes arrive every few seconds.
      return
    self.log({"event": "request", "id": identity, "method": scope["method"], "route": route, "status": status,
              "ms": round(1000 * seconds, 1), **notes})  # fmt: skip

  def _foreign(self, scope) -> bool:
    """Returns whether a page elsewhere reached a loopback server by a name that resolves here (DNS rebinding)."""
    if self.state.settings.host not in LOOPBACK:
      return False
    host = next((value.decode("latin1") for name, value in scope["headers"] if name == b"host"), "localhost")
    return re.sub(r":\d+$", "", host).lower() not in LOOPBACK


def create(
  models: dict[str, Served],
  settings: Settings,
  log: Callable[[dict], None] = lambda record: None,
  on_start: Callable[[], None] = lambda: None,
) -> Starlette:
  """Returns the ASGI application.

  Args:
    models: {name: Served}.
    settings: limits and switches.
    log: called with a dict for each request and event; no dict contains a text.
    on_start: called when the application is about to take requests.

  Returns:
    the application; `application.state.server` is its State.
  """
  state = State(models, settings)
  page = (pathlib.Path(__file__).parent / "page.html").read_text("utf-8")
  operations = _operations(state)
  document = openapi.document(operations, models)

  async def healthz(request):
    return JSONResponse({"status": "ok"})

  async def readyz(request):
    if state.draining:
      return _failure(503, "unavailable", "the server is stopping")
    if not state.ready:
      return _failure(503, "unavailable", "the server compiles its programs")
    return JSONResponse({"status": "ready"})

  async def metrics(request):
    return Response(prometheus.generate_latest(state.metrics.registry), media_type=prometheus.CONTENT_TYPE_LATEST)

  async def list_models(request):
    return JSONResponse({"object": "list", "data": [model.describe() for model in models.values()]})

  async def openapi_json(request):
    return JSONResponse(document)

  async def index(request):
    return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy(page)})

  gets = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/v1/models": list_models,
          "/openapi.json": openapi_json} | ({"/": index} if settings.page else {})  # fmt: skip
  routes = [Route(path, function, methods=["GET"]) for path, function in gets.items()]
  routes += [Route(op.path, _endpoint(state, op.request, op.respond), methods=["POST"]) for op in operations]
  middleware = [Middleware(Outer, state=state, log=log)]
  if settings.cors:
    middleware.append(Middleware(CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"],
                                 allow_headers=["content-type", "authorization"]))  # fmt: skip

  @contextlib.asynccontextmanager
  async def lifespan(app):
    state.batcher.start()
    task = asyncio.create_task(_warm_up(state, log))
    if settings.reuse_port:
      await asyncio.wait([task])
    if not state.draining:
      on_start()
    yield
    state.draining = True
    await asyncio.wait([task])
    await state.batcher.stop()

  handlers: dict[Any, Any] = {Problem: _on_problem, HTTPException: _on_http_exception}
  app = Starlette(
    routes=routes, middleware=middleware, lifespan=lifespan,
    exception_handlers=handlers,
  )  # fmt: skip
  app.state.server = state
  return app


def _operations(state: State) -> list[openapi.Operation]:
  """Returns the POST routes: those for which there is a model."""
  most, operations = state.settings.max_items, []
  tasks = [task for task in schemas.ITEMS if any(task in model.tasks for model in state.models.values())]
  kinds = {model.tasks["classify"].options.get("pair") for model in state.models.values() if "classify" in model.tasks}
  pairs = kinds.pop() if len(kinds) == 1 else None
  for task in tasks:
    operations.append(openapi.Operation(
      f"/v1/{task}", task, schemas.request(task, most, pairs), schemas.response(task), task_route(state, task),
      f"Runs the task {task} on texts.",
    ))  # fmt: skip
  if "embed" in tasks:
    operations.append(openapi.Operation(
      OPENAI, "embed", schemas.openai_embeddings(most), schemas.EmbeddingsResponse, openai_route(state),
      "Embeddings, for clients of OpenAI's API.", schemas.OpenaiFailure,
    ))  # fmt: skip
    operations.append(openapi.Operation(
      "/embed", "embed", schemas.tei_embed(most), list[list[float]], tei_embed_route(state),
      "Embeddings, for clients of text-embeddings-inference.",
    ))  # fmt: skip
  if "classify" in tasks:
    first = state.model(None, "classify").tasks["classify"]  # /predict has no field `model`.
    operations.append(openapi.Operation(
      "/predict", "classify", schemas.tei_predict(most, first.options.get("pair")),
      list[schemas.LabelScore] | list[list[schemas.LabelScore]], tei_predict_route(state),
      "Classification, for clients of text-embeddings-inference.",
    ))  # fmt: skip
  return operations


async def _warm_up(state: State, log):
  """Compiles every program, in the model's thread, and sets `ready`."""
  loop, started, count = asyncio.get_running_loop(), time.monotonic(), 0
  if state.settings.warm_up:
    for model in state.models.values():
      for compile_one in model.warm_up(state.settings.batch_size):
        if state.draining:
          return
        await loop.run_in_executor(state.batcher.thread, compile_one)
        count += 1
  state.ready = True
  log({"event": "ready", "seconds": round(time.monotonic() - started, 1), "programs": count})


def policy(page: str) -> str:
  """Returns a Content-Security-Policy: only the page's own script and style run; other hosts are not contacted."""
  hashes = {
    tag: " ".join(
      f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
      for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    )
    for tag in ("script", "style")
  }
  return (
    f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  )


# The process.


class _Server(uvicorn.Server):
  """A server that drains on SIGTERM and Ctrl-C, and then returns."""

  state: State
  log: Callable[[dict], None]

  def capture_signals(self):
    return signals.handled(self.handle_exit)

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
    UserError: a checkpoint or the port cannot be used.
  """
  with listen(settings) as sock:
    settings = dataclasses.replace(settings, port=sock.getsockname()[1])
    models = {
      name: Served(name, path, batch_size=settings.batch_size, backend=backend, dtype=dtype)
      for name, path in checkpoints.items()
    }
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    tasks = "; ".join(f"{name}: {', '.join(model.tasks)}" for name, model in models.items())
    announcement = f"http://{host}:{settings.port}/ serves {tasks}"
    app = create(models, settings, log_line, lambda: print(announcement, flush=True))
    config = uvicorn.Config(
      app, log_config=None, access_log=False, server_header=False, limit_concurrency=settings.max_connections,
      timeout_keep_alive=30, timeout_graceful_shutdown=max(1, round(settings.timeout)),
    )  # fmt: skip
    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [_Handler(logging.WARNING)], False
    server = _Server(config)
    server.state, server.log = app.state.server, log_line
    server.run(sockets=[sock])
    log_line({"event": "stopped"})
