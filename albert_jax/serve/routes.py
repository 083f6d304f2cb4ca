"""What each POST route answers."""

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pydantic
from starlette.requests import Request

from albert_jax.serve import schemas
from albert_jax.serve.state import IN_THREAD, Problem, State


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

  large = sum(map(len, items)) > IN_THREAD if all(isinstance(item, str) for item in items) else True
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
