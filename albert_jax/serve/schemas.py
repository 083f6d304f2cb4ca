"""Bodies of requests and responses; the OpenAPI document is generated from them."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

TOP_K = 20  # the most answers a request can ask for; the programs are compiled for this many
MASKS = 8  # the most masks in a text; each power of two is a program of its own
OPTIONS = 8  # the most options of a question, for the same reason


class Body(BaseModel):
  """A JSON object. Unknown fields and other types than those declared are refused."""

  model_config = ConfigDict(extra="forbid", strict=True)
  form: ClassVar[str] = ""  # the form of an input, for errors
  most: ClassVar[int] = 0  # the most inputs


class TextPair(Body):
  text: str
  pair: str | None = None


class OneText(Body):
  text: str
  pair: None = None


class BothTexts(Body):
  text: str
  pair: str


class Question(Body):
  question: str
  context: str


class Words(Body):
  tokens: Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=1)]


class Sentences(Body):
  sentences: Annotated[list[str], Field(min_length=1)]


class Choice(Body):
  context: str
  question: str | None = None
  options: Annotated[list[str], Field(min_length=2, max_length=OPTIONS)]


def _whole(value):
  return int(value) if isinstance(value, float) and value.is_integer() else value


def _one_value(value):
  def check(original):
    if original is not value:
      raise ValueError(f"must be {str(value).lower()}")
    return original

  return AfterValidator(check)


# Without the validators, pydantic refuses 7.0, which is an integer in JSON, and accepts 0 as false.
TopCount = Annotated[int, Field(ge=1, le=TOP_K), BeforeValidator(_whole)]
Length = Annotated[int, Field(ge=1, le=20), BeforeValidator(_whole)]
AlwaysTrue = Annotated[bool, Field(json_schema_extra={"const": True}), _one_value(True)]
AlwaysFalse = Annotated[bool, Field(json_schema_extra={"const": False}), _one_value(False)]

Masked = Annotated[str, Field(pattern=r"\[MASK\]", description="A text with one to 8 [MASK] in it.")]
ITEMS = {
  "fill-mask": Masked, "classify": str | TextPair, "answer": Question, "tag": str | Words, "choose": Choice,
  "embed": str, "summarize": str | Sentences,
}  # fmt: skip
FORMS = {
  "fill-mask": "a text with [MASK] in it", "classify": 'a text, or {"text": …, "pair": …}',
  "answer": '{"question": …, "context": …}', "tag": 'a text, or {"tokens": [words]}',
  "choose": f'{{"context": …, "question": …, "options": [2 to {OPTIONS} texts]}}', "embed": "a text",
  "summarize": 'a text, or {"sentences": [texts]}',
}  # fmt: skip


class Options(Body):
  model: Annotated[
    str | None, Field(description="Name of the model; the first that was trained for this task if absent.")
  ] = None


class Truncate(Options):
  truncate: Annotated[bool, Field(description="Cut a text that is longer than the model, instead of refusing it.")] = (
    False
  )


class TopK(Options):
  top_k: Annotated[TopCount, Field(description="How many answers to return.")] = 5


class Summary(Options):
  length: Annotated[Length, Field(description="The most sentences in a summary.")] = 3


OPTIONS_OF: dict[str, type[Options]] = {
  "fill-mask": TopK, "answer": TopK, "classify": Truncate, "embed": Truncate, "choose": Truncate, "summarize": Summary,
}  # fmt: skip


# The inputs of a classifier, by whether its models are for pairs; None: some are, or it is unknown.
CLASSIFIED = {False: str | OneText, True: BothTexts, None: str | TextPair}
CLASSIFIED_FORMS = {False: "a text", True: '{"text": …, "pair": …}', None: FORMS["classify"]}


def request(task: str, max_items: int, pairs: bool | None = None) -> type[BaseModel]:
  """Returns the body of POST /v1/TASK: {"inputs": one or a list, "model", options of the task}.

  Args:
    max_items: the most inputs.
    pairs: whether all classifiers are for pairs of texts; None if they differ.
  """
  is_classify = task == "classify"
  item, form = (CLASSIFIED[pairs], CLASSIFIED_FORMS[pairs]) if is_classify else (ITEMS[task], FORMS[task])

  class Request(OPTIONS_OF.get(task, Options)):  # type: ignore[misc]
    inputs: item | Annotated[list[item], Field(min_length=1, max_length=max_items)]  # type: ignore[valid-type]

  return _named(Request, f"{_camel(task)}Request", form, max_items)


def _named(schema, name, form, most):
  """Sets the schema's name in the document, and the form and number of inputs that errors name; returns it."""
  schema.__name__, schema.form, schema.most = name, form, most
  return schema


def _camel(task):
  return "".join(part.capitalize() for part in task.split("-"))


# Responses. Only their JSON schemas are used, in the document; tests check real responses against them.


class TokenScore(Body):
  token: str
  score: float


class Filled(Body):
  text: str
  filled: str
  masks: list[list[TokenScore]]


class Classified(Body):
  """`label`, `score`, `scores`; with several labels `labels`, `scores`; of a regression only `score`."""

  text: str
  pair: str | None = None
  label: str | None = None
  labels: list[str] | None = None
  score: float | None = None
  scores: dict[str, float] | None = None


class AnswerSpan(Body):
  text: str
  start: int
  end: int
  score: float


class Answered(Body):
  answer: str
  answers: list[AnswerSpan]
  no_answer: float | None


class Entity(Body):
  type: str
  text: str
  start: int
  end: int
  score: float


class Tagged(Body):
  text: str
  entities: list[Entity]


class Chosen(Body):
  choice: int
  text: str
  score: float
  scores: list[float]


class Embedded(Body):
  text: str
  embedding: list[float]


class SummarySentence(Body):
  index: int
  text: str
  score: float


class Summarized(Body):
  summary: str
  sentences: list[SummarySentence]


RESULTS = {"fill-mask": Filled, "classify": Classified, "answer": Answered, "tag": Tagged, "choose": Chosen,
           "embed": Embedded, "summarize": Summarized}  # fmt: skip


def response(task: str) -> type[BaseModel]:
  """Returns the body of an answer of POST /v1/TASK."""
  result = RESULTS[task]

  class Response(Body):
    model: str
    results: list[result]  # type: ignore[valid-type]

  Response.__name__ = f"{_camel(task)}Response"
  return Response


class ServedModel(Body):
  id: str
  object: Literal["model"]
  created: int
  owned_by: str
  tasks: list[str]
  labels: list[str]
  kind: str | None
  pairs: bool | None
  max_tokens: int
  parameters: int


class ModelList(Body):
  object: Literal["list"]
  data: list[ServedModel]


class State(Body):
  status: Literal["ok", "ready"]


class Failure(Body):
  """The body of an error: a sentence, and a word for programs."""

  error: str
  error_type: Literal["invalid", "not_found", "too_large", "unavailable", "internal"]


class OpenaiError(Body):
  message: str
  type: str
  param: None = None
  code: None = None


class OpenaiFailure(Body):
  """The body of an error for clients of OpenAI's API."""

  error: OpenaiError


# Bodies of OpenAI's API and of text-embeddings-inference (TEI).


def openai_embeddings(max_items: int) -> type[BaseModel]:
  """Returns the body of POST /v1/embeddings."""

  class EmbeddingsRequest(Options):
    input: str | Annotated[list[str], Field(min_length=1, max_length=max_items)]
    encoding_format: Literal["float", "base64"] = "float"
    user: Annotated[str | None, Field(description="Accepted and not used.")] = None

  return _named(EmbeddingsRequest, "EmbeddingsRequest", "a text", max_items)


class OneEmbedding(Body):
  object: Literal["embedding"]
  index: int
  embedding: list[float] | str


class Usage(Body):
  prompt_tokens: int
  total_tokens: int


class EmbeddingsResponse(Body):
  object: Literal["list"]
  data: list[OneEmbedding]
  model: str
  usage: Usage


class TeiOptions(Body):
  truncate: bool | None = False
  truncation_direction: Literal["Right", "right"] = "Right"


def tei_embed(max_items: int) -> type[BaseModel]:
  """Returns the body of POST /embed."""

  class EmbedRequest(TeiOptions):
    inputs: str | Annotated[list[str], Field(min_length=1, max_length=max_items)]
    normalize: Annotated[AlwaysTrue, Field(description="Embeddings always have length 1.")] = True
    prompt_name: None = None

  return _named(EmbedRequest, "TeiEmbedRequest", "a text", max_items)


class NoParameters(Body):
  """The parameters that huggingface_hub's client sends by default."""

  function_to_apply: None = None
  top_k: None = None


def tei_predict(max_items: int, pairs: bool | None = None) -> type[BaseModel]:
  """Returns the body of POST /predict; `pairs` as for `request`."""
  least, most = {False: (1, 1), True: (2, 2), None: (1, 2)}[pairs]
  pair = Annotated[list[str], Field(min_length=least, max_length=most, description="A text, or a pair of texts.")]
  item = pair if pairs else str | pair

  class PredictRequest(TeiOptions):
    inputs: item | Annotated[list[pair], Field(min_length=1, max_length=max_items)]  # type: ignore[valid-type]
    parameters: NoParameters | None = None
    raw_scores: Annotated[AlwaysFalse, Field(description="Scores are always probabilities.")] = False

  return _named(PredictRequest, "TeiPredictRequest", "a text, a list of one or two texts", max_items)


class LabelScore(Body):
  score: float
  label: str
