"""int8 that keeps a model's quality: calibration, smoothing, static scales for each use of a shared matrix.

A shared matrix is used in every layer, so rounding errors add up over the layers. Three things keep them small. Each
use of a matrix has its own activation scale, measured on real texts. Channels that are much larger than the others
are divided before rounding, and the matrix's rows multiplied (SmoothQuant, arXiv 2211.10438). Matrices have a scale for
each output channel. If the loss is still too large, a place computes in float32 from int8 weights, which costs time but
no space.
"""

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from albert_jax import onnx_runtime
from albert_jax.data.speech.symbols import Symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.exports import calibration, labelled, onnx
from albert_jax.exports.onnx import Float, Graph, Weight
from albert_jax.model import AlbertConfig, quantization
from albert_jax.types import Params

CALIBRATION_ROWS = 256  # of the file, for the ranges; the others are held out to measure on


@dataclass(frozen=True)
class Recipe:
  """How a graph is quantized.

  Attributes:
    activations: static (a scale for each use, calibrated) or shared (one for all uses of a matrix).
    smoothing: {place: alpha}, by which large channels are moved into the matrix, see model.quantization.SMOOTHING.
    float_places: places that compute in float32 from int8 weights.
    bits: pairs (8 bits, as far as two neighbours cannot saturate), 7, or 8 (saturates on AVX2).
  """

  activations: str = "static"
  smoothing: dict = field(default_factory=lambda: dict(quantization.SMOOTHING))
  float_places: tuple = ()
  bits: str = "pairs"


# Tried in this order, until the loss is small enough. Each is slower and nearer to float32 than the one before.
RECIPES = {
  "int8": Recipe(),
  "int8, feed-forward output in float32": Recipe(float_places=("ffn/down",)),
  "int8, feed-forward output and attention's inputs in float32": Recipe(float_places=("ffn/down", "attention")),
}


@dataclass
class Use:
  """Statistics of one input of products: per channel the smallest, the largest and the summed value [in]."""

  low: np.ndarray
  high: np.ndarray
  total: np.ndarray
  count: int
  weights: tuple[Weight, ...]

  @property
  def site(self) -> tuple[str, ...]:
    return tuple(weight.name for weight in self.weights)


def place_of(use: str) -> str:
  """Returns the place of a use in its layer: layer.3/ffn/up -> ffn/up; projection -> projection."""
  return use.split("/", 1)[1] if use.startswith("layer.") else use


class Observed(Float):
  """Float arithmetic that records the input of every product.

  Attributes:
    seen: {use: tensor name}.
    weights: {use: [Weight]}.
  """

  def __init__(self):
    self.seen, self.weights = {}, {}

  def inputs(self, graph: Any, use: str, x: Any) -> Any:
    self.seen[use] = x
    return x

  def product(self, graph: Any, use: str, x: Any, weight: Any) -> Any:
    self.weights.setdefault(use, []).append(weight)
    return super().product(graph, use, x, weight)


def calibrate(cfg: AlbertConfig, params: Params, batches: list[dict], **build: Any) -> dict[str, Use]:
  """Measures the ranges of the inputs of all products.

  Args:
    cfg, params, build: as for `onnx.build`.
    batches: dicts of inputs without padding, so that no padding is measured.

  Returns:
    {use: Use}.
  """
  observed = Observed()
  model = onnx.build(cfg, params, arithmetic=observed, **build)
  names = list(dict.fromkeys(observed.seen.values()))
  helper = onnx.require().helper
  del model.graph.output[:]
  model.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
  session = onnx_runtime.session(model)
  stats = {}
  for batch in batches:
    for name, value in onnx_runtime.run(session, batch).items():
      value = value.reshape(-1, value.shape[-1])
      low, high, total = value.min(axis=0), value.max(axis=0), value.sum(axis=0, dtype=np.float64)
      if name in stats:
        before = stats[name]
        low, high, total = np.minimum(low, before[0]), np.maximum(high, before[1]), total + before[2]
      stats[name] = (low, high, total, len(value) + (stats[name][3] if name in stats else 0))
  return {use: Use(*stats[name], tuple(observed.weights[use])) for use, name in observed.seen.items()}


def quantized(kernel: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
  """Quantizes a matrix [in, out]; returns int8 [in, out] and its float32 scales [out]."""
  if recipe.bits == "pairs":
    scale = quantization.column_scales(kernel, np)
  else:
    scale = np.abs(kernel).max(axis=0) / {"7": 64, "8": 127}[recipe.bits]
  scale = float16_above(scale)
  return np.clip(np.rint(kernel / scale), -127, 127).astype(np.int8), scale


def float16_above(scale: np.ndarray) -> np.ndarray:
  """Rounds scales up to positive numbers of float16, in which files store them; returns float32."""
  rounded = scale.astype(np.float16)
  above = np.where(rounded < np.maximum(scale, 1e-12), np.nextafter(rounded, np.float16(np.inf)), rounded)
  return above.astype(np.float32)


class Int8(Float):
  """Products of unsigned bytes (activations) and signed bytes (matrices), summed in 32 bits: MatMulInteger."""

  def __init__(self, recipe: Recipe, uses: dict[str, Use]):
    self.recipe, self.uses = recipe, uses
    sites = {}
    for name, use in uses.items():
      sites.setdefault(use.site, []).append(name)
    self.smooth = {}
    for names in sites.values():
      alpha = recipe.smoothing.get(place_of(names[0]))
      if alpha is None or place_of(names[0]) in recipe.float_places:
        continue
      x = np.max([np.maximum(np.abs(uses[n].low), np.abs(uses[n].high)) for n in names], axis=0)
      w = np.max([np.abs(weight.kernel).max(axis=1) for weight in uses[names[0]].weights], axis=0)
      self.smooth |= dict.fromkeys(names, quantization.smoothing(x, w, alpha, np).astype(np.float32))
    self.ranges = {}
    for names in sites.values():
      ranges = {n: self._range(n) for n in names}
      if recipe.activations == "shared":
        every = (min(r[0] for r in ranges.values()), max(r[1] for r in ranges.values()))
        ranges = dict.fromkeys(names, every)
      self.ranges |= ranges

  def _range(self, use):
    s = self.smooth.get(use, np.float32(1))
    low, high = (self.uses[use].low / s).min(), (self.uses[use].high / s).max()
    return float(min(low, 0)), float(max(high, 1e-6, low + 1e-6))

  def inputs(self, graph: Graph, use: str, x: str) -> str:
    if place_of(use) in self.recipe.float_places:
      return x
    if use in self.smooth:
      x = graph.node(
        "Mul", f"{use}/smooth", x, graph.constant(f"{self.uses[use].site[0]}.smooth", 1 / self.smooth[use])
      )
    low, high = self.ranges[use]
    scale = (high - low) / 255
    graph.constant(f"{use}/scale", np.float32(scale))
    graph.constant(f"{use}/zero", np.uint8(np.clip(np.rint(-low / scale), 0, 255)))
    return graph.node("QuantizeLinear", f"{use}/bytes", x, f"{use}/scale", f"{use}/zero")

  def product(self, graph: Graph, use: str, x: str, weight: Weight) -> str:
    kernel = weight.kernel * self.smooth[use][:, None] if use in self.smooth else weight.kernel
    name, out = f"{weight.name}.kernel", onnx.product_name(use, weight)
    is_stored = f"{name}.bytes" in graph.initializers
    if not is_stored:
      values, scales = quantized(kernel, self.recipe)
      graph.constant(f"{name}.bytes", values)
      self.small(graph, f"{name}.scale", scales)
    scale = f"{name}.scale/wide"
    if place_of(use) in self.recipe.float_places:
      if not is_stored:  # A runtime computes this once, when it opens the file, as nothing here depends on the input.
        wide = graph.node("Cast", f"{name}/wide", f"{name}.bytes", to=graph.onnx.TensorProto.FLOAT)
        graph.node("Mul", name, wide, scale)
      y = graph.node("MatMul", f"{out}/product", x, name)
    else:
      # Not QuantizeLinear, DequantizeLinear, MatMul: ONNX Runtime makes a Gemm of the product and its bias before it
      # looks for bytes, and then computes in float32.
      y = graph.node("MatMulInteger", f"{out}/product", x, f"{name}.bytes", f"{use}/zero")
      y = graph.node("Cast", f"{out}/float", y, to=graph.onnx.TensorProto.FLOAT)
      y = graph.node("Mul", f"{out}/scaled", y, graph.node("Mul", f"{out}/scale", f"{use}/scale", scale))
    if weight.bias is None:
      return y
    return graph.node("Add", out, y, self.small(graph, f"{weight.bias_name}.bias", weight.bias))

  def small(self, graph: Graph, name: str, values: np.ndarray) -> str:
    if name not in graph.initializers:
      graph.constant(name, values.astype(np.float16))
      graph.node("Cast", f"{name}/wide", name, to=graph.onnx.TensorProto.FLOAT)
    return f"{name}/wide"

  def rows(self, graph: Graph, name: str, table: np.ndarray, ids: str, output: str) -> str:
    self._store(graph, name, table)
    kind = graph.onnx.TensorProto.FLOAT
    wide = graph.node("Cast", f"{output}/wide", graph.node("Gather", f"{output}/bytes", f"{name}.bytes", ids), to=kind)
    scale = graph.node("Gather", f"{output}/scale", f"{name}.scale", ids)
    return graph.node("Mul", output, wide, graph.node("Cast", f"{output}/scale/wide", scale, to=kind))

  def table(self, graph: Graph, name: str, table: np.ndarray) -> str:
    self._store(graph, name, table)
    wide = graph.node("Cast", f"{name}/wide", f"{name}.bytes", to=graph.onnx.TensorProto.FLOAT)
    scale = graph.node("Cast", f"{name}.scale/wide", f"{name}.scale", to=graph.onnx.TensorProto.FLOAT)
    return graph.node("Mul", f"{name}/table", wide, scale)

  def _store(self, graph, name, table):
    scale = float16_above(np.abs(table).max(axis=1, keepdims=True) / 127)
    graph.constant(f"{name}.bytes", np.rint(table / scale).astype(np.int8))
    graph.constant(f"{name}.scale", scale.astype(np.float16))


def compact(model: Any) -> None:
  """Shortens names inside a ModelProto, except of inputs, outputs and weights: saves 0.1 MB of a base model."""
  graph = model.graph
  kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)} | {""}
  numbers = {}
  for node in graph.node:
    node.ClearField("name")
    for names in (node.input, node.output):
      for i, name in enumerate(names):
        if name not in kept:
          names[i] = numbers.setdefault(name, f"{len(numbers):x}")


def write(
  folder: str | os.PathLike,
  cfg: AlbertConfig,
  params: Params,
  vocabulary: Any,
  about: dict,
  *,
  texts: str,
  max_loss: float,
  task: str,
  pooling: str,
  starts: int = 5,
  ends: int = 5,
  fields: str = "text",
  label: str = "label",
  metadata: Any = None,
  say: Callable[[str], None] = lambda line: None,
) -> dict:
  """Writes `folder`/onnx/model_int8.onnx, by the first of RECIPES that loses at most `max_loss`.

  Args:
    folder: the folder of the export.
    cfg, params, task, pooling, starts, ends, metadata: as for `onnx.build`.
    vocabulary, about, fields, label: as for `calibration.read`.
    texts: a file, see `calibration.read`; with the labels of `tag`, `answer` or `choose`, see `labelled.read`. Random
      CALIBRATION_ROWS of its rows (at most half) give the ranges, the others measure the loss.
    max_loss: points of the metric, of 100.
    say: called with a line for each recipe that was tried.

  Returns:
    {"recipe", "metric", "float32", "int8", "loss", "rows": held-out rows, "tried": {recipe: loss}}.

  Raises:
    UserError: every recipe loses more, or the task cannot be measured.
  """
  if not isinstance(vocabulary, (Tokenizer, Symbols)):
    raise UserError("quantize=int8 cannot measure a model without a vocabulary; leave --quantize out")
  build = {"task": task, "pooling": pooling, "starts": starts, "ends": ends, "metadata": metadata}
  exact = onnx.build(cfg, params, **build)
  examples = labelled.read(texts, task) if isinstance(vocabulary, Tokenizer) else None
  if examples:
    calibration.check_count(texts, len(examples.items))
    for flag, value, default in (("fields", fields, "text"), ("label", label, "label")):
      if value != default:
        raise UserError(
          f"--{flag}={value} has no effect on {texts}, whose form names its own fields; leave --{flag} out"
        )
    count, order = _shuffled(len(examples.items))

    def answers(graph, index):
      items = [examples.items[i] for i in index]
      return labelled.answers(graph, cfg, params, vocabulary, about, task, items)

    calibration_rows = answers(exact, order[:count])[1][:CALIBRATION_ROWS]
    held_out = order[count:].tolist()
    float_percent = examples.percent(held_out, answers(exact, held_out)[0])

    def measure(graph):
      return examples.metric, float_percent, examples.percent(held_out, answers(graph, held_out)[0])
  else:
    longest = min(about.get("seq_length") or cfg.max_position_embeddings, cfg.max_position_embeddings)
    sample = calibration.read(texts, vocabulary, about, fields=fields, label=label, longest=longest)
    count, order = _shuffled(len(sample.rows))
    calibration_rows, held_out = [sample.rows[i] for i in order[:count]], order[count:].tolist()
    rows = [sample.rows[i] for i in held_out]
    gold = None if sample.gold is None else sample.gold[held_out]
    kind = about.get("kind", "classification")
    reference = calibration.outputs(onnx_runtime.session(exact), rows)

    def measure(graph):
      return calibration.score(
        task, kind, rows, gold, calibration.outputs(onnx_runtime.session(graph), rows), reference
      )

  batches = [calibration.batch_of([row]) for row in calibration_rows]
  if task == "choose":  # Each row becomes a question with one option.
    batches = [{name: value[None] for name, value in batch.items()} for batch in batches]
  uses = calibrate(cfg, params, batches, **build)
  tried = {}
  for name, recipe in RECIPES.items():
    graph = onnx.build(cfg, params, arithmetic=Int8(recipe, uses), **build)
    metric, float_score, int8_score = measure(graph)
    tried[name] = float_score - int8_score
    say(f"{name}: {metric} {float_score:.2f} -> {int8_score:.2f} on {len(held_out):,} held-out rows")
    if tried[name] <= max_loss:
      path = pathlib.Path(folder) / onnx_runtime.FILES["int8"]
      path.parent.mkdir(exist_ok=True)
      compact(graph)
      path.write_bytes(graph.SerializeToString())
      return {"recipe": name, "metric": metric, "float32": float_score, "int8": int8_score,
              "loss": float_score - int8_score, "rows": len(held_out),
              "tried": tried}  # fmt: skip
  listed = "; ".join(f"{name} {loss:.2f}" for name, loss in tried.items())
  raise UserError(
    f"int8 loses more than --max_loss={max_loss:g} points of {metric} ({listed}), so nothing is written; calibrate "
    f"with more texts like those the model will see ({count} were used), or allow more, as "
    f"--max_loss={min(tried.values()) + 0.1:.1f}"
  )


def _shuffled(rows):
  """Returns how many rows to calibrate on, and the rows in another order, as files are often sorted by label."""
  return min(CALIBRATION_ROWS, rows // 2), np.random.default_rng(0).permutation(rows)
