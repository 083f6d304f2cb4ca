"""The OpenAPI document, made from the schemas that check the requests."""

from collections.abc import Callable
from dataclasses import dataclass

import pydantic

from albert_jax import versions
from albert_jax.serve import schemas

_ERRORS = {
  400: "The body is not JSON.", 404: "There is no such model.", 413: "The body, its items or a text are too large.",
  415: "The body is not declared as JSON.", 422: "The body is JSON that does not match the schema.",
  500: "The server failed.", 503: "The server is starting, stopping or full, or the answer took too long.",
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
  """A POST route: path, task, schemas of request and response, function (request, body) -> JSON value, its errors."""

  path: str
  task: str
  request: type[pydantic.BaseModel]
  response: object
  respond: Callable
  summary: str
  failure: type[pydantic.BaseModel] = schemas.Failure


def document(operations: list[Operation], models: dict) -> dict:
  """Returns the OpenAPI 3.1 document of the routes of this server.

  Args:
    operations: the POST routes.
    models: {name: Served}; the names are the values of the field `model`.
  """
  components: dict = {}

  def schema(kind, mode):
    made = pydantic.TypeAdapter(kind).json_schema(mode=mode, ref_template="#/components/schemas/{model}")
    components.update(made.pop("$defs", {}))
    return made

  def content(kind, mode="serialization"):
    return {"application/json": {"schema": schema(kind, mode)}}

  def failures(*codes, kind=schemas.Failure):
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    return {str(code): {"description": _ERRORS[code], "content": content} for code in codes}

  failed: set[type[pydantic.BaseModel]] = {schemas.Failure, *(operation.failure for operation in operations)}
  for body_of_error in failed:
    components[body_of_error.__name__] = schema(body_of_error, "serialization")
  paths: dict = {}
  for path, kind, summary, codes in (
    ("/v1/models", schemas.ModelList, "The models and their tasks.", ()),
    ("/healthz", schemas.State, "Whether the process is alive.", ()),
    ("/readyz", schemas.State, "Whether requests are answered.", (503,)),
  ):
    answers = {"200": {"description": "Success.", "content": content(kind)}} | failures(*codes)
    paths[path] = {"get": {"operationId": path.strip("/").replace("/", "_"), "summary": summary, "responses": answers}}
  text = {"text/plain": {"schema": {"type": "string"}}}
  paths["/metrics"] = {"get": {"operationId": "metrics", "summary": "Prometheus metrics.",
                               "responses": {"200": {"description": "Success.", "content": text}}}}  # fmt: skip
  for operation in operations:
    body = schema(operation.request, "validation")
    if "model" in body["properties"]:
      names = [name for name, model in models.items() if operation.task in model.tasks]
      body["properties"]["model"]["anyOf"][0]["enum"] = names
    answers = {"200": {"description": "Success.", "content": content(operation.response)}}
    paths[operation.path] = {
      "post": {
        "operationId": operation.path.strip("/").replace("/", "_").replace("-", "_"),
        "summary": operation.summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": answers | failures(*_ERRORS, kind=operation.failure),
      }
    }
  return {"openapi": "3.1.0", "info": {"title": "albert-jax", "version": versions.installed()}, "paths": paths,
          "components": {"schemas": components}}  # fmt: skip
