"""The HTTP application: paths, limits, errors, and a line of the log for each request."""

import asyncio
import base64
import contextlib
import hashlib
import pathlib
import re
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import prometheus_client as prometheus
import pydantic
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from albert_jax.errors import UserError
from albert_jax.serve import openapi, routes, schemas
from albert_jax.serve.batching import Busy
from albert_jax.serve.models import Served, TooLong
from albert_jax.serve.state import IN_THREAD, Problem, Settings, State

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
OPENAI = "/v1/embeddings"
# Bytes of a body that is too large, which are read and not kept: a client that is still sending when the connection
# closes sees a reset instead of the answer.
DISCARDED = 64 << 20
PROGRESS_SECONDS = 5  # between lines of the log while programs compile
PROBES = ("/healthz", "/readyz", "/metrics")


# Requests.


async def _body(request: Request, schema, limit: int):
  """Returns the body of a request, checked against a schema.

  Raises:
    Problem.
  """
  if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
    raise Problem(415, "invalid", "send the body as JSON, with the header Content-Type: application/json")
  if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
    raise Problem(415, "invalid", f"send the body as it is, not with Content-Encoding: {encoding[:60]}")
  too_large = Problem(413, "too_large", f"the body is larger than {limit:,} bytes; send fewer or shorter inputs")
  declared = request.headers.get("content-length", "0")
  announced = int(declared) if declared.isdigit() else 0
  # curl asks before it sends a large body.
  if announced > limit and (announced > DISCARDED or "expect" in request.headers):
    raise too_large
  chunks, size = [], 0
  async for chunk in request.stream():
    size += len(chunk)
    if size <= limit:
      chunks.append(chunk)
    elif size > max(limit, DISCARDED):
      raise too_large
  if size > limit:
    raise too_large
  body = b"".join(chunks)
  check = _check if size <= IN_THREAD else _threaded(_check)
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
      return _failure(503, "unavailable", f"the server compiles its programs: {state.compiled} of {state.programs}")
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
  paths = [Route(path, function, methods=["GET"]) for path, function in gets.items()]
  paths += [Route(op.path, _endpoint(state, op.request, op.respond), methods=["POST"]) for op in operations]
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
  app = Starlette(routes=paths, middleware=middleware, lifespan=lifespan, exception_handlers=handlers)
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
      f"/v1/{task}", task, schemas.request(task, most, pairs), schemas.response(task), routes.task_route(state, task),
      f"Runs the task {task} on texts.",
    ))  # fmt: skip
  if "embed" in tasks:
    operations.append(openapi.Operation(
      OPENAI, "embed", schemas.openai_embeddings(most), schemas.EmbeddingsResponse, routes.openai_route(state),
      "Embeddings, for clients of OpenAI's API.", schemas.OpenaiFailure,
    ))  # fmt: skip
    operations.append(openapi.Operation(
      "/embed", "embed", schemas.tei_embed(most), list[list[float]], routes.tei_embed_route(state),
      "Embeddings, for clients of text-embeddings-inference.",
    ))  # fmt: skip
  if "classify" in tasks:
    first = state.model(None, "classify").tasks["classify"]  # /predict has no field `model`.
    operations.append(openapi.Operation(
      "/predict", "classify", schemas.tei_predict(most, first.options.get("pair")),
      list[schemas.LabelScore] | list[list[schemas.LabelScore]], routes.tei_predict_route(state),
      "Classification, for clients of text-embeddings-inference.",
    ))  # fmt: skip
  return operations


async def _warm_up(state: State, log):
  """Compiles every program, in the model's thread, and sets `ready`; or sets `failure`."""
  try:
    await _compile(state, log)
  except Exception as error:
    state.failure, state.draining = error, True


async def _compile(state, log):
  loop, started = asyncio.get_running_loop(), time.monotonic()
  models = state.models.values() if state.settings.warm_up else ()
  programs = [compile_one for model in models for compile_one in model.warm_up(state.settings.batch_size)]
  state.programs, logged = len(programs), started
  for compile_one in programs:
    if state.draining:
      return
    await loop.run_in_executor(state.batcher.thread, compile_one)
    state.compiled += 1
    if time.monotonic() - logged >= PROGRESS_SECONDS:
      logged = time.monotonic()
      log({"event": "compiling", "compiled": state.compiled, "programs": state.programs})
  state.ready = True
  log({"event": "ready", "seconds": round(time.monotonic() - started, 1), "programs": state.programs})


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
