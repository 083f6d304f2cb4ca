"""How fast this device is: ceilings, training steps, peers, levers, inference."""

import contextlib
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import albert_jax
from albert_jax import convert, model
from albert_jax.bench import FLAGS, contestants, plan
from albert_jax.bench.rows import Rows, Skip, read
from albert_jax.training import flops

WARM_UP = 2  # calls before the clock starts
CHAIN = 20  # products in one program, so that the time to start it is negligible


def machine(rows: Rows, sizes: plan.Plan) -> None:
  """Measures what the device can do at most: matrix products at each size's shapes, and copies."""
  device = jax.devices()[0]
  sizes = plan.TOY if device.platform == "cpu" else sizes
  rows.add("machine", device=device.device_kind, platform=plan.platform(), devices=jax.device_count(),
           cores=os.cpu_count(), albert_jax=albert_jax.__version__, jax=jax.__version__,
           python=platform.python_version())  # fmt: skip
  rows.measure(f"product of {sizes.square} x {sizes.square}, bfloat16", square_product, sizes)
  for size in dict.fromkeys(size for size, _, _ in sizes.steps):
    rows.measure(f"products of {size}'s feed-forward part, bfloat16", layer_products, sizes, size, size=size)
  rows.measure(f"copy of {sizes.copy_floats * 4 / 2**20:,.0f} MiB", copy, sizes)


def square_product(sizes: plan.Plan) -> dict[str, Any]:
  """Times one large matrix product."""
  x = jax.random.normal(jax.random.key(0), (sizes.square, sizes.square), jnp.bfloat16)
  product = jax.jit(lambda x: x @ x)
  seconds = median_s(lambda: product(x).block_until_ready(), sizes.times)
  return _rate(2 * sizes.square**3, seconds)


def layer_products(sizes: plan.Plan, name: str, size: str) -> dict[str, Any]:
  """Times products of the shapes of a feed-forward part, one after the other."""
  cfg = plan.model_of(name)
  x = jax.random.normal(jax.random.key(0), (sizes.product_tokens, cfg.hidden_size), jnp.bfloat16)
  w = jax.random.normal(jax.random.key(1), (cfg.hidden_size, cfg.intermediate_size), jnp.bfloat16)
  scale = jnp.bfloat16(1 / cfg.intermediate_size)  # Keeps the values finite.
  chain = jax.jit(lambda x, w: jax.lax.fori_loop(0, CHAIN, lambda _, y: (y @ w) @ w.T * scale, x))
  seconds = median_s(lambda: chain(x, w).block_until_ready(), sizes.times)
  return _rate(CHAIN * 4 * sizes.product_tokens * cfg.hidden_size * cfg.intermediate_size, seconds) | {"size": size}


def copy(sizes: plan.Plan) -> dict[str, Any]:
  """Times reading and writing a large array."""
  data = jnp.ones(sizes.copy_floats, jnp.float32)
  run = jax.jit(lambda x: x + 1)
  seconds = median_s(lambda: run(data).block_until_ready(), sizes.times)
  return {"ms": 1e3 * seconds, "gb_per_s": 2 * data.nbytes / seconds / 1e9}


def train_steps(rows: Rows, sizes: plan.Plan) -> None:
  """Times our training step at each size and length."""
  for size, count, length in sizes.steps:
    rows.measure(f"{size}, {count} x {length}", train_step, rows, sizes, size, count, length)


def train_step(
  rows: Rows, sizes: plan.Plan, size: str, count: int, length: int, packing: int = 1, **fields: Any
) -> dict[str, Any]:
  """Times our training step.

  Args:
    rows: the rows so far have the measured products.
    sizes: how often it is timed.
    size: name of the model.
    count: rows of the batch.
    length: tokens of a row.
    packing: examples that share a row.
    **fields: of the model.
  """
  cfg = plan.model_of(size, **fields)
  batch = contestants.make_batch(cfg, count, length, plan.masked_slots(length), packing)
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  begin = time.perf_counter()
  step = contestants.Ours(cfg, params, batch)
  compile_s = time.perf_counter() - begin
  numbers = _step_numbers(rows, size, count, length, median_s(step, sizes.times))
  return numbers | {"gib": contestants.program_gib(step.compiled), "compile_s": compile_s}


def peers(rows: Rows, sizes: plan.Plan) -> None:
  """Times plain JAX and transformers in PyTorch at the first size of `steps`."""
  size, count, length = sizes.steps[0]
  kinds = ["SDPA"] + (["compile", "compile, masked slots only"] if sizes.compiles_peers else [])
  for kind in kinds:
    rows.measure(f"PyTorch {kind}, {size}, {count} x {length}", torch_step, rows, sizes, kind)
  if not sizes.compiles_peers:
    rows.add("PyTorch compile", skipped="takes minutes to compile on a CPU; benchmarks/train_step.py measures it")
  rows.measure(f"plain JAX, {size}, {count} x {length}", plain_step, rows, sizes)


def torch_step(rows: Rows, sizes: plan.Plan, kind: str) -> dict[str, Any]:
  """Times the training step of transformers' ALBERT in PyTorch."""
  device = torch_device()
  import torch

  size, count, length = sizes.steps[0]
  cfg = plan.model_of(size)
  batch = contestants.make_batch(cfg, count, length, plan.masked_slots(length))
  begin = time.perf_counter()
  with _exported(cfg) as folder:
    step = contestants.torch_step(folder, batch, "bfloat16", *contestants.TORCH[kind])
  step()
  compile_s = time.perf_counter() - begin
  numbers = _step_numbers(rows, size, count, length, median_s(step, sizes.times)) | {"compile_s": compile_s}
  return numbers | ({"gib": torch.cuda.max_memory_allocated() / 2**30} if device == "cuda" else {})


def plain_step(rows: Rows, sizes: plan.Plan) -> dict[str, Any]:
  """Times the training step that one would write first in JAX."""
  size, count, length = sizes.steps[0]
  cfg = plan.model_of(size)
  batch = contestants.make_batch(cfg, count, length, plan.masked_slots(length))
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  begin = time.perf_counter()
  step, compiled = contestants.plain(cfg, params, batch)
  compile_s = time.perf_counter() - begin
  numbers = _step_numbers(rows, size, count, length, median_s(step, sizes.times))
  return numbers | {"gib": contestants.program_gib(compiled), "compile_s": compile_s}


def levers(rows: Rows, sizes: plan.Plan) -> None:
  """Times our training step with each setting of the model, numbers of rows, and packed rows."""
  size, count, length = sizes.steps[0]
  for name in sizes.levers:
    rows.measure(f"{size}, {count} x {length}, {name}", train_step, rows, sizes, *sizes.steps[0], **plan.LEVERS[name])
  for other in sizes.rows:
    rows.measure(f"{size}, {other} x {length}", train_step, rows, sizes, size, other, length)
  rows.measure(f"{size}, {count} x {length}, 4 packed", train_step, rows, sizes, *sizes.steps[0], packing=4)
  timed = [row for row in read(rows.folder) if row["stage"] == rows.stage and "tokens_per_s" in row]
  if timed:
    best = max(timed, key=lambda row: row["tokens_per_s"])
    rows.add("best", lever=best["row"], tokens_per_s=best["tokens_per_s"])


def compiler_flags(rows: Rows, sizes: plan.Plan) -> None:
  """Times our training step under the compiler flags that this process was started with."""
  size, count, length = sizes.steps[0]
  rows.measure(f"{size}, {count} x {length}, {os.environ[FLAGS]}", train_step, rows, sizes, *sizes.steps[0])


def inference(rows: Rows, sizes: plan.Plan) -> None:
  """Times forward passes of many texts, and of one at a time, beside PyTorch."""
  size = sizes.steps[0][0]
  shapes = [*sizes.forward, *((1, length) for length in sizes.texts)]
  for count, length in shapes:
    rows.measure(f"ours, {size}, {count} x {length}", forward, sizes, count, length)
  kind = "compile" if sizes.compiles_peers else "SDPA"
  for count, length in shapes:
    rows.measure(f"PyTorch {kind}, {size}, {count} x {length}", torch_forward, sizes, count, length)


def forward(sizes: plan.Plan, count: int, length: int) -> dict[str, Any]:
  """Times our forward pass to the pooled output, from arrays on the host to the result on the host."""
  cfg = plan.model_of(sizes.steps[0][0])
  params = {name: part for name, part in model.init(cfg, jax.random.key(0)).items() if name not in ("mlm", "sop")}
  batch = contestants.make_batch(cfg, count, length, 1)
  batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
  begin = time.perf_counter()
  run = jax.jit(lambda params, batch: model.apply(cfg, params, batch)["pooled_output"]).lower(params, batch).compile()
  compile_s = time.perf_counter() - begin
  return _latency(lambda: np.asarray(run(params, batch)), sizes, count, length) | {
    "gib": contestants.program_gib(run), "compile_s": compile_s,
  }  # fmt: skip


def torch_forward(sizes: plan.Plan, count: int, length: int) -> dict[str, Any]:
  """Times the same of transformers' ALBERT in PyTorch, in bfloat16."""
  device = torch_device()
  import torch
  import transformers

  transformers.logging.set_verbosity_error()  # It lists the heads that this model does not have.
  transformers.logging.disable_progress_bar()
  cfg = plan.model_of(sizes.steps[0][0])
  batch = contestants.make_batch(cfg, count, length, 1)
  with _exported(cfg) as folder:
    net: Any = transformers.AlbertModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.bfloat16)
  net = net.to(device).eval()
  net = torch.compile(net) if sizes.compiles_peers else net

  def run():
    tensors = {name: torch.tensor(batch[name]).to(device).long() for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
      return net(**tensors).pooler_output.float().cpu()

  begin = time.perf_counter()
  run()
  compile_s = time.perf_counter() - begin
  return _latency(run, sizes, count, length) | {"compile_s": compile_s}


def torch_device() -> str:
  """PyTorch's name of this device.

  Raises:
    Skip: PyTorch or transformers is not installed, or does not know the device.
  """
  for name in ("torch", "transformers"):
    if not importlib.util.find_spec(name):
      raise Skip(f"{name} is not installed; pip install 'albert-jax[parity]'")
  if plan.platform() == "cpu":
    return "cpu"
  import torch

  if plan.platform() == "gpu" and torch.cuda.is_available():
    return "cuda"
  raise Skip(f"the installed PyTorch does not run on this {plan.platform()}")


def seconds_of(run: Callable[[], Any], times: int) -> list[float]:
  """Seconds of each call, after a warm-up."""
  for _ in range(WARM_UP):
    run()
  seconds = []
  for _ in range(times):
    begin = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - begin)
  return seconds


def median_s(run: Callable[[], Any], times: int) -> float:
  """Returns the median of `seconds_of`."""
  return float(np.median(seconds_of(run, times)))


@contextlib.contextmanager
def _exported(cfg):
  """Yields a temporary folder with a random model, as transformers opens it."""
  with tempfile.TemporaryDirectory() as folder:
    convert.save(f"{folder}/model", cfg, jax.device_get(model.init(cfg, jax.random.key(0))))
    yield f"{folder}/model"


def _rate(operations, seconds):
  """Returns the fields of a program that does so many operations."""
  peak = flops.peak(jax.devices()[0].device_kind, 1)
  numbers = {"ms": 1e3 * seconds, "tflops": operations / seconds / 1e12}
  return numbers | ({"of_datasheet": operations / seconds / peak} if peak else {})


def _step_numbers(rows, size, count, length, seconds):
  """Returns the fields of a training step: its rate, and its share of the measured product of its size."""
  operations = flops.flops_per_step(plan.model_of(size), count, length, plan.masked_slots(length))
  numbers = {"tokens_per_s": count * length / seconds} | _rate(operations, seconds)
  products = [row["tflops"] for row in read(rows.folder) if row.get("size") == size and "tflops" in row]
  return numbers | ({"of_measured": numbers["tflops"] / products[0]} if products else {})


def _latency(run, sizes, count, length):
  """Returns the fields of a forward pass; of a single text with the 99th percentile of ten times as many calls."""
  seconds = seconds_of(run, sizes.times * (10 if count == 1 else 1))
  median = float(np.median(seconds))
  numbers = {"tokens_per_s": count * length / median, "ms": 1e3 * median, "texts_per_s": count / median}
  return numbers | ({"p99_ms": 1e3 * float(np.percentile(seconds, 99))} if count == 1 else {})
