"""An ONNX graph of a model, built from its parameters with `onnx.helper`.

No tracer is involved, so a matrix that several layers share is one initializer, however many nodes use it. Layers are
unrolled: a quantized graph has its own activation scales for each use of a shared matrix. Only operators of the
standard domain are used.

Hidden states are [tokens, D] inside the graph, because a 2-D product with its bias is one operator (Gemm).
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from albert_jax import paths
from albert_jax.convert import mapping
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, modern

OPSET = 20  # The first with Gelu; ONNX 1.15, ONNX Runtime 1.17.
IR_VERSION = 9
LARGEST = 2**31 - 2**20  # bytes that a protobuf message can hold
LOWEST = float(np.finfo(np.float32).min)
NEVER = -1e30  # The logit of a position where no answer may start or end.
POOLING = ("mean", "cls")
# The values of `task`; '' derives the outputs from the parameters alone.
TASKS = ("", "fill-mask", "classify", "answer", "tag", "choose", "embed", "summarize")


@dataclass(frozen=True)
class Weight:
  """One matrix of the model and its bias.

  Attributes:
    name: the name of the kernel's initializer, without `.kernel`.
    kernel: float32 [in, out].
    bias: float32 [out]; None for a matrix without one.
    bias_name: the name of the bias's initializer, without `.bias`; not `name` where layers share the kernel alone.
  """

  name: str
  kernel: np.ndarray
  bias: np.ndarray | None
  bias_name: str


class Graph:
  """Nodes and initializers of a graph under construction. A tensor has the name of the node that computes it."""

  def __init__(self):
    import onnx

    self.onnx = onnx
    self.nodes, self.initializers, self.inputs, self.outputs = [], {}, [], []

  def constant(self, name: str, array: Any) -> str:
    """Adds an initializer, unless its name exists already; returns the name."""
    if name not in self.initializers:
      self.initializers[name] = np.asarray(array, order="C")
    return name

  def ints(self, *values: int) -> str:
    """Returns an int64 vector as an initializer."""
    return self.constant("ints_" + "_".join(map(str, values)).replace("-", "m"), np.array(values, np.int64))

  def node(self, op: str, name: str, *inputs: str, outputs: Any = None, **attributes: Any) -> Any:
    """Adds a node; returns the name of its output, or the list of `outputs`."""
    names = [name] if outputs is None else list(outputs)
    self.nodes.append(self.onnx.helper.make_node(op, list(inputs), names, name=name, **attributes))
    return name if outputs is None else names

  def input(self, name: str, axes: tuple, kind: Any = np.int64) -> str:
    self.inputs.append(self._value(name, axes, kind))
    return name

  def output(self, name: str, source: str, axes: tuple, kind: Any = np.float32) -> None:
    if name != source:
      self.node("Identity", name, source)
    self.outputs.append(self._value(name, axes, kind))

  def _value(self, name, axes, kind):
    helper = self.onnx.helper
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), axes)

  def model(self, doc: str, metadata: dict) -> Any:
    """Returns the ModelProto."""
    helper, size = self.onnx.helper, sum(array.nbytes for array in self.initializers.values())
    if size > LARGEST:
      raise UserError(f"the weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2 GiB")
    tensors = [self.onnx.numpy_helper.from_array(array, name) for name, array in self.initializers.items()]
    graph = helper.make_graph(self.nodes, "albert", self.inputs, self.outputs, tensors)
    model = helper.make_model(
      graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="albert_jax",
      doc_string=doc,
    )  # fmt: skip
    helper.set_model_props(model, metadata)
    return model


class Float:
  """Computes products in float32. A subclass for other arithmetic overrides these methods."""

  def inputs(self, graph: Graph, use: str, x: str) -> str:
    """Returns the input of the products of `use`; called once for products that share an input `x`."""
    return x

  def product(self, graph: Graph, use: str, x: str, weight: Weight) -> str:
    """Adds a product x [tokens, in] -> [tokens, out]. `use` names the input (see `inputs`), weight.name the matrix."""
    kernel = graph.constant(f"{weight.name}.kernel", weight.kernel)
    biases = [] if weight.bias is None else [self.small(graph, f"{weight.bias_name}.bias", weight.bias)]
    return graph.node("Gemm", product_name(use, weight), x, kernel, *biases)

  def rows(self, graph: Graph, name: str, table: np.ndarray, ids: str, output: str) -> str:
    """Adds a lookup of rows of an embedding table [n, E]."""
    return graph.node("Gather", output, graph.constant(name, table), ids, axis=0)

  def table(self, graph: Graph, name: str, table: np.ndarray) -> str:
    """Returns a whole table [n, E] in float32."""
    return graph.constant(name, table)

  def small(self, graph: Graph, name: str, values: np.ndarray) -> str:
    """Returns a bias, or a factor of a low-rank difference, in float32."""
    return graph.constant(name, values)


def product_name(use: str, weight: Weight) -> str:
  """Returns the name of a product's result."""
  return f"{use}/{weight.name.rsplit('.', 1)[-1]}"


def require() -> Any:
  """Imports onnx, or raises a UserError that names the extra."""
  try:
    import onnx
  except ImportError:
    raise UserError("ONNX files need the onnx package; install it with: pip install 'albert-jax[onnx]'") from None
  return onnx


def build(
  cfg: AlbertConfig, params: dict, *, task: str = "", pooling: str = "", packed: bool = False, starts: int = 5,
  ends: int = 5, arithmetic: Float | None = None, metadata: dict | None = None,
) -> Any:  # fmt: skip
  """Builds the ONNX model of `albert_jax.apply` and of the heads in `params`.

  Inputs are int64 [batch, sequence]: input_ids, attention_mask and token_type_ids, as transformers names them; for
  task="choose" [batch, choices, sequence]. Outputs, for the parts and heads in `params`:

    last_hidden_state [batch, sequence, D], pooler_output [batch, D]
    logits: of the classifier, per row, per token (tag) or per choice; without one, of the masked language model
    prediction_logits: of the masked language model, beside a classifier
    sop_logits [batch, 2]
    start_logits, end_logits [batch, sequence]: the "span" head
    start_index, start_score [batch, K], end_index, end_score [batch, K, J], null [batch]: the "squad_v2" head, whose
      graph has one more input, allowed [batch, sequence]: 1 where an answer may start or end
    sentence_logits [batch, sequence]: the "sentence" head, read at each sentence's [CLS]
    sentence_embedding [batch, D]: of length 1, with `pooling`

  Args:
    cfg: the model; `dtype` is ignored, the graph computes in float32.
    params: a parameter tree, as `albert_jax.load` returns it.
    task: a name in TASKS; it says whether a classifier is of rows, tokens or choices.
    pooling: mean or cls, for sentence_embedding; '' for none.
    packed: rows hold several examples. The inputs are then input_ids, token_type_ids, segment_ids, position_ids
      [batch, sequence] and cls_positions [batch, segments], as in `albert_jax.apply`; pooler_output is
      [batch, segments, D].
    starts, ends: K and J of the "squad_v2" head.
    arithmetic: how products are computed; None is float32.
    metadata: {name: text} to store in the file.

  Returns:
    onnx.ModelProto.

  Raises:
    UserError: onnx is not installed, a value is unknown, `packed` is set for a model with a task's head, or the
      weights exceed 2 GiB.
  """
  require()
  if task not in TASKS:
    raise UserError(f"task={task!r} is unknown; use one of {', '.join(TASKS[1:])}")
  if pooling not in ("", *POOLING):
    raise UserError(f"pooling={pooling!r} is unknown; use one of {', '.join(POOLING)}")
  builder = _Builder(cfg, params, arithmetic or Float())
  builder.read_inputs(task, packed)
  builder.encode()
  builder.heads(task, pooling, starts, ends)
  doc = (
    f"ALBERT, {cfg.num_hidden_layers} layers, unrolled; matrices that layers share are stored once. "
    "The query's weights are divided by the square root of the head size."
  )
  return builder.graph.model(doc, {"task": task, "pooling": pooling, "packed": json.dumps(packed)} | (metadata or {}))


class _Builder:
  def __init__(self, cfg, params, arithmetic):
    self.cfg, self.arithmetic, self.graph = cfg, arithmetic, Graph()
    self.is_modern = cfg.arch == "modern"
    self.params = {path: np.asarray(leaf, np.float32) for path, leaf in paths.flatten(params).items()}
    self.parts = set(params)

  # Inputs.

  def read_inputs(self, task, packed) -> None:
    g, self.packed, self.lead = self.graph, packed, ("batch",)
    if packed and (task == "choose" or self.parts & {"classifier", "span", "squad_v2", "sentence"}):
      raise UserError("packed rows are for models without a task's head, as in pre-training; leave packed out")
    self.choices = task == "choose"
    axes = ("batch", "choices", "sequence") if self.choices else ("batch", "sequence")
    names = ("input_ids", "token_type_ids", "segment_ids", "position_ids") if packed else (
      "input_ids", "attention_mask", "token_type_ids")  # fmt: skip
    batch = {name: g.input(name, axes) for name in names}
    if packed:
      self.cls = g.input("cls_positions", ("batch", "segments"))
    if self.choices:
      self.shape_of_choices = g.node("Shape", "choices/shape", "input_ids", start=0, end=2)
      length = g.node("Shape", "choices/length", "input_ids", start=2, end=3)
      flat = g.node("Concat", "choices/flat_shape", g.ints(-1), length, axis=0)
      batch = {name: g.node("Reshape", f"choices/{name}", name, flat) for name in names}
      self.lead = ("batch*choices",)
    self.batch = batch
    self.shape = g.node("Shape", "shape", batch["input_ids"])  # [B, L]
    self.length = g.node("Gather", "length", self.shape, g.ints(1), axis=0)

  # The encoder.

  def encode(self) -> None:
    g, cfg, rows = self.graph, self.cfg, self.arithmetic.rows
    word = rows(g, "embeddings.word", self.params["embeddings/word/embedding"], self.batch["input_ids"], "words")
    types = self.params["embeddings/token_type/embedding"]
    kind = g.constant("embeddings.token_type", types)
    if len(types) > 1:  # Else all tokens have one type, whatever their number, as in the model.
      kind = g.node("Gather", "types", kind, self.batch["token_type_ids"], axis=0)
    x = g.node("Add", "embeddings/words_and_types", word, kind)
    if self.is_modern or not self.packed:
      self.range = g.node("Range", "position_range", g.constant("zero", np.int64(0)), self._scalar(self.length),
                          g.constant("one", np.int64(1)))  # fmt: skip
    positions = self.batch["position_ids"] if self.packed else self.range
    if self.is_modern:
      self._rotation(positions)
    else:
      table = self.params["embeddings/position/embedding"]
      x = g.node("Add", "embeddings/sum", x, rows(g, "embeddings.position", table, positions, "positions"))
    x = self._norm("embeddings", "embeddings/norm", x)
    x = self._flat(x, cfg.embedding_size, "embeddings/tokens")
    if "projection" in self.parts:
      x = self._product("projection", x, self._weight("projection"))
    masks = self._masks()
    for n in range(cfg.num_hidden_layers):
      mask = masks[cfg.window_of(n)]
      for i in range(cfg.inner_group_num):
        use = f"layer.{n}" if cfg.inner_group_num == 1 else f"layer.{n}.{i}"
        x = self._ffn(n, i, f"{use}/ffn", self._attention(n, i, f"{use}/attention", x, mask))
    self.x = self._norm("norm", "norm", x) if self.is_modern else x
    shape = g.node("Concat", "hidden_shape", self.shape, g.ints(cfg.hidden_size), axis=0)
    self.hidden = g.node("Reshape", "hidden", self.x, shape)  # [B, L, D]

  def _attention(self, n, i, use, x, mask):
    g, cfg = self.graph, self.cfg
    H, K = cfg.num_attention_heads, cfg.head_size
    heads = g.constant("heads_shape", np.array([H, K], np.int64))
    if "split_shape" not in {node.name for node in g.nodes}:
      g.node("Concat", "split_shape", self.shape, heads, axis=0)  # [B, L, H, K]
    source = self._norm(use, "attention/norm", x, n, i) if self.is_modern else x
    orders = {"query": (0, 2, 1, 3), "key": (0, 2, 3, 1), "value": (0, 2, 1, 3)}
    products = self._layer_products(use, source, [f"attention/{name}" for name in orders], n, i)
    turned = {}
    for (name, order), y in zip(orders.items(), products, strict=True):
      y = g.node("Reshape", f"{use}/{name}/split", y, "split_shape")
      if self.is_modern and name != "value":
        y = self._rotated(f"{use}/{name}", y)
      turned[name] = g.node("Transpose", f"{use}/{name}/heads", y, perm=order)
    scores = g.node("MatMul", f"{use}/scores", turned["query"], turned["key"])
    scores = g.node("Add", f"{use}/scores/masked", scores, mask)
    weights_BHLl = g.node("Softmax", f"{use}/probabilities", scores, axis=-1)
    context = g.node("MatMul", f"{use}/context", weights_BHLl, turned["value"])
    context = g.node("Transpose", f"{use}/context/turned", context, perm=(0, 2, 1, 3))
    context = self._flat(context, cfg.hidden_size, f"{use}/context/tokens")
    (y,) = self._layer_products(f"{use}/context", context, ["attention/output"], n, i)
    y = g.node("Add", f"{use}/residual", x, y)
    return y if self.is_modern else self._norm(use, "attention/norm", y, n, i)

  def _ffn(self, n, i, use, x):
    g = self.graph
    source = self._norm(use, "ffn/norm", x, n, i) if self.is_modern else x
    up, *gate = self._layer_products(f"{use}/up", source, ["ffn/up", "ffn/gate"][: 1 + self.is_modern], n, i)
    y = self._activation(f"{use}/activation", up)
    y = g.node("Mul", f"{use}/gated", y, *gate) if gate else y
    (y,) = self._layer_products(f"{use}/down", y, ["ffn/down"], n, i)
    y = g.node("Add", f"{use}/residual", x, y)
    return y if self.is_modern else self._norm(use, "ffn/norm", y, n, i)

  def _rotation(self, positions):
    """Makes the factors of `_rotated` [B or none, L, 1, K], as `model.modern.rotation`."""
    g = self.graph
    wide = g.node("Cast", "rotation/positions", positions, to=g.onnx.TensorProto.FLOAT)
    wide = g.node("Unsqueeze", "rotation/rows", wide, g.ints(-2, -1))
    angles = g.node("Mul", "rotation/angles", wide, g.constant("rotation.speeds", modern.speeds(self.cfg)))
    cos, sin = g.node("Cos", "rotation/cos", angles), g.node("Sin", "rotation/sin", angles)
    self.same = g.node("Concat", "rotation/same", cos, cos, axis=-1)
    self.swapped = g.node("Concat", "rotation/swapped", g.node("Neg", "rotation/minus_sin", sin), sin, axis=-1)

  def _rotated(self, name, y):
    """Rotates the columns k and k + K/2 of y [B, L, H, K]."""
    g = self.graph
    halves = g.node("Split", f"{name}/halves", y, outputs=(f"{name}/first", f"{name}/second"), axis=-1, num_outputs=2)
    swapped = g.node("Concat", f"{name}/halves_swapped", *reversed(halves), axis=-1)
    return g.node("Add", f"{name}/rotated", g.node("Mul", f"{name}/same", y, self.same),
                  g.node("Mul", f"{name}/swapped", swapped, self.swapped))  # fmt: skip

  def _masks(self):
    """Makes the biases of the scores [B, H, L, l]: 0 where position l may be attended to, else the lowest number.

    Returns:
      {window: its name}, for the windows of all layers; None is all positions.
    """
    g, allowed, names = self.graph, self._allowed(), {}
    for window in dict.fromkeys(map(self.cfg.window_of, range(self.cfg.num_hidden_layers))):
      name, within = "mask", allowed
      if window is not None:
        name = f"mask/window_{window}"
        rows, columns = (g.node("Unsqueeze", f"{name}/{axis}", self.range, g.ints(axis)) for axis in (1, 0))
        distance = g.node("Abs", f"{name}/distance", g.node("Sub", f"{name}/difference", rows, columns))
        near = g.node("LessOrEqual", f"{name}/near", distance, g.constant(f"window_{window}", np.int64(window)))
        within = g.node("And", f"{name}/allowed", allowed, near)
      names[window] = g.node("Where", name, within, g.constant("mask.open", np.float32(0)),
                             g.constant("mask.closed", np.float32(LOWEST)))  # fmt: skip
    return names

  def _allowed(self):
    """Returns whether position l exists and is of the same example: [B, 1, 1 or L, l]."""
    g = self.graph
    if self.packed:
      rows = g.node("Unsqueeze", "mask/rows", "segment_ids", g.ints(2))
      columns = g.node("Unsqueeze", "mask/columns", "segment_ids", g.ints(1))
      same = g.node("Equal", "mask/same", rows, columns)
      exists = g.node("Greater", "mask/exists", columns, g.constant("zero", np.int64(0)))
      return g.node("Unsqueeze", "mask/allowed", g.node("And", "mask/both", same, exists), g.ints(1))
    exists = g.node("Greater", "mask/exists", self.batch["attention_mask"], g.constant("zero", np.int64(0)))
    return g.node("Unsqueeze", "mask/allowed", exists, g.ints(1, 2))

  # Heads.

  def heads(self, task, pooling, starts, ends) -> None:
    g, D, C = self.graph, self.cfg.hidden_size, None
    lead = self.lead
    g.output("last_hidden_state", self.hidden, (*lead, "sequence", D))
    pooled = None
    if "pooler" in self.parts:
      pooled = self._pool()
      g.output("pooler_output", pooled, (*lead, "segments", D) if self.packed else (*lead, D))
    if "classifier" in self.parts:
      weight = self._weight("classifier")
      C = len(weight.bias)
      if task == "choose":
        scores = self._product("classifier", pooled, weight)
        g.output("logits", g.node("Reshape", "choices/logits", scores, self.shape_of_choices), ("batch", "choices"))
      elif pooled is not None and task != "tag":
        g.output("logits", self._product("classifier", pooled, weight), ("batch", C))
      else:
        self._token_output("logits", self._product("classifier", self.x, weight), C)
    if "mlm" in self.parts:
      self._mlm("logits" if C is None else "prediction_logits")
    if "sop" in self.parts and pooled is not None:
      g.output("sop_logits", self._small("sop/dense", pooled), (*lead, "segments", 2) if self.packed
               else (*lead, 2))  # fmt: skip
    if "span" in self.parts:
      y = self._product("span", self.x, self._weight("span"))
      for k, name in enumerate(("start_logits", "end_logits")):
        column = g.node("Gather", f"{name}/column", y, g.constant(f"index_{k}", np.int64(k)), axis=1)
        g.output(name, g.node("Reshape", f"{name}/rows", column, self.shape), (*lead, "sequence"))
    if "sentence" in self.parts:
      y = self._product("sentence", self.x, self._weight("sentence"))
      g.output("sentence_logits", g.node("Reshape", "sentence/rows", y, self.shape), (*lead, "sequence"))
    if "squad_v2" in self.parts:
      self._beam(starts, ends)
    if pooling:
      self._embedding(pooling)

  def _pool(self):
    g = self.graph
    if self.packed:
      ids = g.node("Unsqueeze", "pooler/ids", self.cls, g.ints(2))
      shape = g.node("Concat", "pooler/ids_shape", g.node("Shape", "pooler/segments", self.cls),
                     g.ints(self.cfg.hidden_size), axis=0)  # fmt: skip
      first = g.node("GatherElements", "pooler/first", self.hidden, g.node("Expand", "pooler/wide", ids, shape), axis=1)
      y = self._product("pooler", self._flat(first, self.cfg.hidden_size, "pooler/flat"), self._weight("pooler"))
      return g.node("Tanh", "pooled", g.node("Reshape", "pooler/rows", y, shape))
    first = g.node("Gather", "pooler/first", self.hidden, g.constant("zero", np.int64(0)), axis=1)
    return g.node("Tanh", "pooled", self._product("pooler", first, self._weight("pooler")))

  def _mlm(self, name):
    g, cfg = self.graph, self.cfg
    y = self._activation("mlm/activation", self._product("mlm", self.x, self._weight("mlm/dense")))
    y = self._norm("mlm", "mlm/norm", y)
    table = self.arithmetic.table(g, "embeddings.word", self.params["embeddings/word/embedding"])
    y = g.node("Gemm", "mlm/decoder", y, table, self.arithmetic.small(g, "mlm.bias", self.params["mlm/bias"]), transB=1)
    self._token_output(name, y, cfg.vocab_size)

  def _embedding(self, pooling):
    g = self.graph
    if pooling == "cls":
      x = g.node("Gather", "embedding/first", self.hidden, g.constant("zero", np.int64(0)), axis=1)
    else:
      mask = g.node("Cast", "embedding/mask", self.batch["attention_mask"], to=self.graph.onnx.TensorProto.FLOAT)
      mask = g.node("Unsqueeze", "embedding/column", mask, g.ints(2))
      total = g.node("ReduceSum", "embedding/total", g.node("Mul", "embedding/kept", self.hidden, mask), g.ints(1),
                     keepdims=0)  # fmt: skip
      count = g.node("ReduceSum", "embedding/count", mask, g.ints(1), keepdims=0)
      count = g.node("Max", "embedding/at_least_one", count, g.constant("one.float", np.float32(1)))
      x = g.node("Div", "embedding/mean", total, count)
    norm = g.node("ReduceL2", "embedding/norm", x, g.ints(1), keepdims=1)
    norm = g.node("Max", "embedding/norm_above_zero", norm, g.constant("least_norm", np.float32(1e-6)))
    g.output("sentence_embedding", g.node("Div", "embedding/unit", x, norm), (*self.lead, self.cfg.hidden_size))

  def _beam(self, starts, ends):
    """The head for SQuAD 2.0, as `tasks.squad.heads.beam_spans`."""
    g, D = self.graph, self.cfg.hidden_size
    allowed = g.node("Greater", "beam/allowed", g.input("allowed", ("batch", "sequence")),
                     g.constant("zero", np.int64(0)))  # fmt: skip
    never = g.constant("never", np.float32(NEVER))

    def log_softmax(name, logits, mask):
      return g.node("LogSoftmax", name, g.node("Where", f"{name}/masked", mask, logits, never), axis=-1)

    def best(name, values, count):
      k = g.node("Min", f"{name}/count", self.length, g.ints(count))
      return g.node("TopK", name, values, k, outputs=(f"{name}_score", f"{name}_index"), axis=-1)

    logits = self._small("squad_v2/start", self.x)
    start = log_softmax("beam/start", g.node("Reshape", "beam/start/rows", logits, self.shape), allowed)
    start_score, start_index = best("start", start, starts)
    # The dense layer over [x; start] is the sum of a product with x and one with the start.
    kernel, bias = self.params["squad_v2/end/dense_0/kernel"], self.params["squad_v2/end/dense_0/bias"]
    x_name, s_name = "squad_v2.end.dense_0.token", "squad_v2.end.dense_0.start"
    x_part = Weight(x_name, kernel[:D], np.zeros(D, np.float32), x_name)
    s_part = Weight(s_name, kernel[D:], bias, s_name)
    wide = g.node("Concat", "beam/wide", g.node("Shape", "beam/starts_shape", start_index), g.ints(D), axis=0)
    ids = g.node("Expand", "beam/ids", g.node("Unsqueeze", "beam/ids_column", start_index, g.ints(2)), wide)
    chosen = g.node("GatherElements", "beam/chosen", self.hidden, ids, axis=1)  # [B, K, D]
    from_start = Float().product(g, "beam/end", self._flat(chosen, D, "beam/chosen/flat"), s_part)
    from_start = g.node("Unsqueeze", "beam/end/start_rows", g.node("Reshape", "beam/end/starts", from_start, wide),
                        g.ints(2))  # fmt: skip
    from_x = g.node("Reshape", "beam/end/tokens", Float().product(g, "beam/end", self.x, x_part), "hidden_shape")
    from_x = g.node("Unsqueeze", "beam/end/token_columns", from_x, g.ints(1))
    h = g.node("Tanh", "beam/end/tanh", g.node("Add", "beam/end/sum", from_x, from_start))  # [B, K, L, D]
    norm = [g.constant(f"squad_v2.end.norm.{name}", self.params[f"squad_v2/end/norm/{name}"])
            for name in ("scale", "bias")]  # fmt: skip
    h = g.node("LayerNormalization", "beam/end/norm", h, *norm, axis=-1, epsilon=1e-12)
    kernel = g.constant("squad_v2.end.dense_1.kernel", self.params["squad_v2/end/dense_1/kernel"])
    y = g.node("Squeeze", "beam/end/column", g.node("MatMul", "beam/end/dense_1", h, kernel), g.ints(-1))
    y = g.node("Add", "beam/end/logits", y, g.constant("squad_v2.end.dense_1.bias",
                                                       self.params["squad_v2/end/dense_1/bias"]))  # fmt: skip
    end = log_softmax("beam/end", y, g.node("Unsqueeze", "beam/end/allowed", allowed, g.ints(1)))
    end_score, end_index = best("end", end, ends)
    # The no-answer logit, from [CLS] and the mean of all tokens, weighted by their start probability.
    likely = g.node("Unsqueeze", "beam/null/likely", g.node("Exp", "beam/null/start", start), g.ints(1))
    mean = g.node("Squeeze", "beam/null/mean", g.node("MatMul", "beam/null/sum", likely, self.hidden), g.ints(1))
    first = g.node("Gather", "beam/null/first", self.hidden, g.constant("zero", np.int64(0)), axis=1)
    both = g.node("Concat", "beam/null/both", mean, first, axis=-1)
    h = g.node("Tanh", "beam/null/tanh", self._small("squad_v2/answer/dense_0", both))
    kernel = g.constant("squad_v2.answer.dense_1.kernel", self.params["squad_v2/answer/dense_1/kernel"])
    null = g.node("Squeeze", "beam/null/logit", g.node("MatMul", "beam/null/dense_1", h, kernel), g.ints(-1))
    for name, source in {"start_index": start_index, "start_score": start_score}.items():
      g.output(name, source, ("batch", "starts"), np.int64 if name.endswith("index") else np.float32)
    for name, source in {"end_index": end_index, "end_score": end_score}.items():
      g.output(name, source, ("batch", "starts", "ends"), np.int64 if name.endswith("index") else np.float32)
    g.output("null", null, ("batch",))

  # Parts.

  def _index(self, path, n, i):
    """Returns the index of the copy that inner layer i of layer n uses, on the leading axes of a parameter."""
    cfg, part, leaf = self.cfg, path.split("/")[0], path.rsplit("/", 1)[-1]
    if part not in ("attention", "ffn"):
      return ()
    index = (mapping.copy_of(cfg, part, n, leaf),) if cfg.copies(part, leaf) > 1 else ()
    return (*index, i) if cfg.inner_group_num > 1 else index

  def _weight(self, path, n=0, i=0):
    """Returns the matrix at `path`: for a part of a layer, the copy of inner layer i of layer n."""
    kernel, bias = (self._leaf(f"{path}/{leaf}", n, i) for leaf in ("kernel", "bias"))
    kernel = kernel.reshape(-1, kernel.shape[-1]) if path == "attention/output" else kernel.reshape(len(kernel), -1)
    scale = self._scale(path)
    name, bias_name = (_dotted(path, self._index(f"{path}/{leaf}", n, i)) for leaf in ("kernel", "bias"))
    return Weight(name, kernel * scale, None if bias is None else bias.reshape(-1) * scale, bias_name)

  def _leaf(self, path, n, i):
    """Returns the copy of a parameter that inner layer i of layer n uses; None if the model has no such parameter."""
    return self.params[path][self._index(path, n, i)] if path in self.params else None

  def _scale(self, path):
    """Returns the factor of the matrix at `path`, which spares the graph a product with it in each layer."""
    if path == "attention/query":
      return np.float32(self.cfg.head_size**-0.5)
    is_added = self.is_modern and path in ("attention/output", "ffn/down")
    return np.float32(modern.residual_scale(self.cfg, path.split("/")[0]) if is_added else 1)

  def _layer_products(self, use, x, names, n, i):
    """Multiplies x with matrices of inner layer i of layer n; returns the products."""
    g, results = self.graph, []
    inputs = self.arithmetic.inputs(g, use, x)
    for path in names:
      weight = self._weight(path, n, i)
      y = self.arithmetic.product(g, use, inputs, weight)
      if self.cfg.layer_rank:
        name, difference = product_name(use, weight), x
        for leaf, scale in (("a", np.float32(1)), ("b", self._scale(path))):
          stored = f"{_dotted(path, self._index(f'{path}/{leaf}', n, i))}.{leaf}"
          factor = self.arithmetic.small(g, stored, self._leaf(f"{path}/{leaf}", n, i) * scale)
          difference = g.node("MatMul", f"{name}/{leaf}", difference, factor)
        y = g.node("Add", f"{name}/sum", y, difference)
      results.append(y)
    return results

  def _product(self, use, x, weight):
    return self.arithmetic.product(self.graph, use, self.arithmetic.inputs(self.graph, use, x), weight)

  def _small(self, path, x):
    """Adds a product that is always in float32, because it is too small to gain from int8."""
    weight = self._weight(path)
    g = self.graph
    y = g.node("MatMul", f"{weight.name}/product", x, g.constant(f"{weight.name}.kernel", weight.kernel))
    return g.node("Add", f"{weight.name}/sum", y, g.constant(f"{weight.bias_name}.bias", weight.bias))

  def _norm(self, use, path, x, n=0, i=0):
    name = ".".join([*path.split("/"), *map(str, self._index(f"{path}/scale", n, i))])
    values = {key: self._leaf(f"{path}/{key}", n, i) for key in ("scale", "bias")}
    vectors = [self.graph.constant(f"{name}.{key}", value) for key, value in values.items() if value is not None]
    return self.graph.node("LayerNormalization", f"{use}/norm", x, *vectors, axis=-1, epsilon=self.cfg.layer_norm_eps)

  def _activation(self, name, x):
    g, kind = self.graph, self.cfg.hidden_act
    if kind == "relu":
      return g.node("Relu", name, x)
    return g.node("Gelu", name, x, approximate={"gelu": "none", "gelu_new": "tanh"}[kind])

  def _flat(self, x, width, name):
    return self.graph.node("Reshape", name, x, self.graph.ints(-1, width))

  def _token_output(self, name, y, width):
    g = self.graph
    shape = g.node("Concat", f"{name}/shape", self.shape, g.ints(width), axis=0)
    g.output(name, g.node("Reshape", f"{name}/rows", y, shape), (*self.lead, "sequence", width))

  def _scalar(self, vector):
    return self.graph.node("Squeeze", f"{vector}/scalar", vector, self.graph.ints(0))


def _dotted(path, index):
  """Returns the initializer's name of a parameter: its path, with the index before the last name."""
  *parents, last = path.split("/")
  return ".".join([*parents, *map(str, index), last])
