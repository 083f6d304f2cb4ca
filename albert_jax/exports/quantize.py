"""int8 that keeps a model's quality: calibration, smoothing, static scales for each use of a shared matrix.

A shared matrix is used in every layer, and what rounding loses in one is what the next begins with. Three things keep
that small. Each use of a matrix has an activation scale of its own, measured on real texts. Channels that are much larger
than the others are divided before rounding, and the matrix's rows multiplied (SmoothQuant, arXiv 2211.10438). Matrices
have a scale for each output channel. Where that is not enough, a place computes in float32 from int8 weights, which
costs time but no space.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from albert_jax import onnx_runtime
from albert_jax.exports import onnx
from albert_jax.exports.onnx import Float, Graph, Weight

# The sum of two products of an unsigned and a signed byte must fit 16 bits, or instructions of processors without VNNI
# (vpmaddubsw of AVX2) saturate: 255 (w1 + w2) <= 32767 for every two neighbours in a column.
PAIR_LIMIT = 128
PLACES = ("attention", "attention/context", "ffn/up", "ffn/down")


@dataclass(frozen=True)
class Recipe:
  """How a graph is quantized.

  Attributes:
    activations: static (a scale for each use, calibrated), shared (one for all uses of a matrix) or dynamic (as naive
      tools do: the range of each batch).
    smoothing: {place: alpha}, by which large channels are moved into the matrix; s = max|x|^alpha / max|w|^(1 - alpha).
    float_places: places that compute in float32 from int8 weights.
    per_channel: a scale for each output of a matrix, not one for all.
    bits: pairs (8 bits, as far as two neighbours cannot saturate), 7, or 8 (saturates on AVX2).
  """

  activations: str = "static"
  smoothing: dict = field(default_factory=lambda: {"attention": 0.65, "ffn/up": 0.65, "attention/context": 0.5})
  float_places: tuple = ()
  per_channel: bool = True
  bits: str = "pairs"


@dataclass
class Use:
  """What calibration saw of one input of products: per channel the smallest, the largest and the mean value [in]."""

  low: np.ndarray
  high: np.ndarray
  total: np.ndarray
  count: int
  weights: tuple[Weight, ...]

  @property
  def site(self) -> tuple[str, ...]:
    return tuple(weight.name for weight in self.weights)


def place_of(use: str) -> str:
  """The place of a use in its layer: layer.3/ffn/up -> ffn/up; projection -> projection."""
  return use.split("/", 1)[1] if use.startswith("layer.") else use


class Observed(Float):
  """Float arithmetic that notes the input of every product.

  Attributes:
    seen: {use: tensor name}.
    weights: {use: [Weight]}.
  """

  def __init__(self):
    self.seen, self.weights = {}, {}

  def inputs(self, graph, use, x):
    self.seen[use] = x
    return x

  def product(self, graph, use, x, weight):
    self.weights.setdefault(use, []).append(weight)
    return super().product(graph, use, x, weight)


def calibrate(cfg, params, batches, **build) -> dict[str, Use]:
  """Ranges of the inputs of all products.

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
  """A matrix [in, out] as (int8 [in, out], float32 scale [out], or [] for one)."""
  high = np.abs(kernel).max(axis=0)
  if recipe.bits == "pairs":
    rows = np.pad(kernel, ((0, len(kernel) % 2), (0, 0))).reshape(-1, 2, kernel.shape[1])
    pairs = np.maximum(np.maximum(rows, 0).sum(axis=1), -np.minimum(rows, 0).sum(axis=1)).max(axis=0)
    # Rounding may raise each of the two by a half.
    scale = np.maximum(high / 127, pairs / (PAIR_LIMIT - 1))
  else:
    scale = high / {"7": 64, "8": 127}[recipe.bits]
  scale = np.maximum(scale if recipe.per_channel else np.full_like(scale, scale.max()), 1e-12).astype(np.float32)
  values = np.clip(np.rint(kernel / scale), -127, 127).astype(np.int8)
  return values, scale if recipe.per_channel else scale[0]


class Int8(Float):
  """Products of bytes, in the form that ONNX Runtime and others fuse: QuantizeLinear, DequantizeLinear, MatMul."""

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
      s = np.maximum(x, 1e-5) ** alpha / np.maximum(w, 1e-5) ** (1 - alpha)
      s = (s / np.exp(np.mean(np.log(s)))).astype(np.float32)
      self.smooth |= dict.fromkeys(names, s)
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
      site = ".".join(self.uses[use].site[0].split(".")[:-1]) + "." + place_of(use).split("/")[-1]
      x = graph.node("Mul", f"{use}/smooth", x, graph.constant(f"{site}.smooth", 1 / self.smooth[use]))
    if self.recipe.activations == "dynamic":
      names = [f"{use}/{name}" for name in ("bytes", "scale", "zero")]
      return graph.node("DequantizeLinear", f"{use}/rounded",
                        *graph.node("DynamicQuantizeLinear", f"{use}/quantize", x, outputs=names))  # fmt: skip
    low, high = self.ranges[use]
    scale = (high - low) / 255
    scale_name = graph.constant(f"{use}/scale", np.float32(scale))
    zero = graph.constant(f"{use}/zero", np.uint8(np.clip(np.rint(-low / scale), 0, 255)))
    y = graph.node("QuantizeLinear", f"{use}/bytes", x, scale_name, zero)
    return graph.node("DequantizeLinear", f"{use}/rounded", y, scale_name, zero)

  def product(self, graph: Graph, use: str, x: str, weight: Weight) -> str:
    kernel = weight.kernel * self.smooth[use][:, None] if use in self.smooth else weight.kernel
    name = f"{weight.name}.kernel"
    if f"{name}.bytes" not in graph.initializers:
      values, scale = quantized(kernel, self.recipe)
      graph.constant(f"{name}.bytes", values), graph.constant(f"{name}.scale", scale)
      if place_of(use) in self.recipe.float_places:
        # Not DequantizeLinear: a Cast and a Mul are computed once, when the file is opened.
        wide = graph.node("Cast", f"{name}/wide", f"{name}.bytes", to=graph.onnx.TensorProto.FLOAT)
        graph.node("Mul", name, wide, f"{name}.scale")
      else:
        zero = graph.constant(f"{name}.zero", np.zeros(scale.shape, np.int8))
        graph.node("DequantizeLinear", name, f"{name}.bytes", f"{name}.scale", zero, axis=1)
    y = graph.node("MatMul", f"{onnx._name(use, weight)}/product", x, name)
    return graph.node("Add", onnx._name(use, weight), y, graph.constant(f"{weight.name}.bias", weight.bias))

  def rows(self, graph: Graph, name: str, table: np.ndarray, ids: str, output: str) -> str:
    self._store(graph, name, table)
    kind = graph.onnx.TensorProto.FLOAT
    wide = graph.node("Cast", f"{output}/wide", graph.node("Gather", f"{output}/bytes", f"{name}.bytes", ids), to=kind)
    return graph.node("Mul", output, wide, graph.node("Gather", f"{output}/scale", f"{name}.scale", ids))

  def table(self, graph: Graph, name: str, table: np.ndarray) -> str:
    self._store(graph, name, table)
    wide = graph.node("Cast", f"{name}/wide", f"{name}.bytes", to=graph.onnx.TensorProto.FLOAT)
    return graph.node("Mul", f"{name}/table", wide, f"{name}.scale")

  def _store(self, graph, name, table):
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, 1e-12).astype(np.float32)
    graph.constant(f"{name}.bytes", np.rint(table / scale).astype(np.int8))
    graph.constant(f"{name}.scale", scale)
