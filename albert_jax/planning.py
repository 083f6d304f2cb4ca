"""Estimates memory, traffic and step time on another machine, from the train step compiled for it."""

import logging
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from albert_jax import model, run, tasks
from albert_jax.errors import UserError, message_lines
from albert_jax.training import duration, sharding
from albert_jax.training.flops import CHIPS, Chip, flops_per_step
from albert_jax.training.sharding import MeshConfig

log = logging.getLogger(__name__)

GIB = 1 << 30


def plan(config: ConfigDict, topology: str, mfu: float = 0.5) -> dict[str, Any]:
  """Compiles the train step of a pre-training config for a machine, and analyses the program.

  Args:
    config: see configs/pretrain.py; `data.dataset` is not needed.
    topology: the machine as KIND:SHAPE, such as "v5e:4x4" or "h200:8".
    mfu: the share of the chips' peak that the estimate of the step time assumes.

  Returns:
    Plain numbers; `describe` explains them. "fits" is False if the compiler ran out of memory.

  Raises:
    UserError: the machine is unknown, or the config contradicts itself.
  """
  run.check(config)
  sketch = run.sketch(config)
  chip, chips, devices = machine(topology)
  mesh = sharding.make_mesh(MeshConfig(**config.mesh), config.batch_size, devices)
  rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
  if rows % config.accumulate:
    raise UserError(f"accumulate={config.accumulate} must divide the {rows} rows a device has")

  step, arguments = abstract_step(config, sketch, mesh)
  start = time.perf_counter()
  numbers = {
    "topology": topology, "chips": chips,
    "devices": len(devices), "batch_size": config.batch_size, "rows_per_device": rows,
    "accumulate": config.accumulate, "remat": sketch.model.remat, "dtype": sketch.model.dtype, "memory_gib": chip.gib,
    "parameters": model.param_count(arguments[0]["params"]),
  }  # fmt: skip
  try:
    with jax.set_mesh(mesh):
      compiled = step.lower(*arguments).compile(OPTIONS.get(devices[0].platform))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    needed_gib = re.search(r"\(([\d.]+)G\) exceeds|Used ([\d.]+)G of", str(error))
    return {
      **numbers, "fits": False,
      **({"needed_gib": float(needed_gib[1] or needed_gib[2])} if needed_gib else {}),
    }  # fmt: skip
  memory = compiled.memory_analysis()
  try:
    hlo = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f"jaxlib cannot read the program that the compiler for {topology} wrote: {message_lines(error)[0][:120]}; libtpu "
      "may be newer than jax: pip install 'albert-jax[plan]' installs the one that belongs to it"
    ) from error
  transfers = [(kind, size) for _, kind, size in collectives(hlo)]
  needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.generated_code_size_in_bytes
  flops = flops_per_step(sketch.model, config.batch_size, config.data.seq_length, sketch.slots)
  flops += config.batch_size * sketch.row_flops
  if sketch.teacher:
    flops += flops_per_step(sketch.teacher.cfg, config.batch_size, config.data.seq_length, sketch.slots) / 3
  reduced = sum(size for kind, size in transfers if kind == "all-reduce")
  compute = flops / (chips * chip.teraflops * 1e12)
  # A ring sends each byte about twice.
  communicate = 2 * sum(size for _, size in transfers) / (chip.link_gb_per_s * 1e9) if len(devices) > 1 else 0.0
  seconds = compute / mfu + communicate
  return {
    **numbers,
    "fits": needed <= chip.gib * GIB,
    "needed_gib": needed / GIB,
    "temp_gib": memory.temp_size_in_bytes / GIB,
    "argument_gib": memory.argument_size_in_bytes / GIB,
    "flops_per_step": flops,
    "estimated_cycles": cycles(hlo),
    "all_reduce_count": sum(kind == "all-reduce" and size > 1000 for kind, size in transfers),
    "all_reduce_bytes": reduced,
    "collective_bytes": sum(size for _, size in transfers),
    "compile_s": time.perf_counter() - start,
    "assumed_mfu": mfu,
    "step_s_at_least": compute,
    "step_s_estimate": seconds,
    "run_hours_estimate": seconds * _steps(config) / 3600,
  }


def _steps(config) -> int:
  """Returns the steps of the run; 0 if they depend on its data or its machine."""
  if config.epochs or config.hours:
    return 0
  parts = duration.parts(config.curriculum, config.batch_size, config.data.seq_length, config.model.num_hidden_layers)
  limits = {name: config[name] for name in duration.LIMITS}
  return duration.total_steps(**limits, train_rows=0, parts=parts)


def largest_batch(config: ConfigDict, topology: str, first: dict[str, Any]) -> dict[str, int]:
  """Finds the largest number of rows that a device can process at a time; each try is compiled.

  Memory grows nearly linearly with the rows, so a line through two results gives the next try; the compiler reports
  the memory also if it is too large. Above 16 rows, only multiples of 8 are tried.

  Args:
    config: as for `plan`.
    topology: as for `plan`.
    first: the plan of the config.

  Returns:
    {"largest_micro_batch", "largest_batch_size"}.
  """
  config = config.copy_and_resolve_references()
  ways = first["batch_size"] // first["rows_per_device"]
  low, high = 0, math.inf
  needed: dict[int, float] = {}
  rows, numbers = first["rows_per_device"] // first["accumulate"], first
  while True:
    low, high = (max(low, rows), high) if numbers["fits"] else (low, min(high, rows))
    if "needed_gib" in numbers:
      needed[rows] = numbers["needed_gib"]
    unit = 8 if low >= 16 else 1
    if high - low <= unit:
      return {"largest_micro_batch": low, "largest_batch_size": low * ways * first["accumulate"]}
    near = sorted(needed, key=lambda r: abs(needed[r] - first["memory_gib"]))[:2]
    if len(near) == 2 and needed[near[0]] != needed[near[1]]:
      a_row = (needed[near[0]] - needed[near[1]]) / (near[0] - near[1])
      rows = int(near[0] + (first["memory_gib"] - needed[near[0]]) / a_row)
    else:
      rows = low * 2 if high == math.inf else high // 2
    rows = rows // unit * unit
    rows = int(min(max(rows, low + unit), high - 1 if high - 1 - low < unit else high - unit, 4096))
    config.batch_size = rows * ways * first["accumulate"]
    numbers = plan(config, topology)
    log.info("%d rows: %s", rows, "fits" if numbers["fits"] else "does not fit")


def cycles(hlo: str) -> int:
  """Returns the TPU compiler's estimate of a step in cycles: the sum over fused operations, times their loops.

  The estimate leaves out Pallas kernels and waiting for other chips. Use it to compare two programs.

  Args:
    hlo: the text of a compiled program.

  Returns:
    The cycles; 0 if the compiler gives no estimates.
  """
  bodies: dict[str, list[str]] = {}
  name = entry = ""
  for line in hlo.splitlines():
    if line and not line.startswith((" ", "}")):
      match = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)
      name = match[1] if match else ""
      entry = name if line.startswith("ENTRY") else entry
      bodies[name] = []
    elif name:
      bodies[name].append(line)

  def count(name):
    total = 0
    for line in bodies.get(name, ()):
      if match := re.search(r'estimated_cycles":"(\d+)"', line):
        total += int(match[1])
      if " while(" in line:
        condition, body = (re.search(rf"{part}=%?([\w.\-]+)", line)[1] for part in ("condition", "body"))
        turns = [int(n) for n in re.findall(r"constant\((\d+)\)", "\n".join(bodies[condition]))]
        total += max(turns, default=1) * count(body)
      elif match := re.search(r" call\(.*to_apply=%?([\w.\-]+)", line):
        total += count(match[1])
    return total

  return count(entry)


def collectives(hlo: str) -> list[tuple[str, str, int]]:
  """Returns [(computation, kind, bytes)] of every operation in compiled code that sends data between devices."""
  operations, computation = [], ""
  pattern = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
  width = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2}
  for line in hlo.splitlines():
    if line and not line.startswith((" ", "}")):
      computation = line.split(" (")[0]
    if match := pattern.search(line):
      shapes = re.findall(r"(pred|bf16|f16|[fsu]32|[su]8)\[([\d,]*)\]", match[1])
      sizes = [width.get(kind, 4) * math.prod(int(n) for n in shape.split(",") if n) for kind, shape in shapes]
      operations.append((computation, match[2], sum(sizes)))
  return operations


def advice(numbers: Mapping[str, Any]) -> list[str]:
  """Returns flags to try if a plan does not fit, cheapest first."""
  if numbers["fits"]:
    return []
  lines, rows = [], numbers["rows_per_device"]
  largest = numbers.get("largest_micro_batch")
  if largest:
    parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= largest)
    lines.append(
      f"--config.accumulate={parts}: {rows // parts} rows at a time, the same result; {largest} were compiled, and fit"
    )
  elif largest is None and rows > numbers["accumulate"]:
    lines.append(f"--config.accumulate={numbers['accumulate'] * 2}: half the rows at a time, the same result")
  if numbers["dtype"] == "float32":
    lines.append("--config.model.dtype=bfloat16: half the activations")
  if numbers["remat"] != "full":
    lines.append("--config.model.remat=full: about a third more computing, far less memory")
  return [*lines, "--config.mesh.zero1=True or --config.mesh.fsdp=N: split the state over devices"]


def describe(numbers: Mapping[str, Any], price: float | None) -> str:
  """Returns the numbers of a plan as text.

  Args:
    numbers: see `plan`.
    price: of a chip for an hour; None leaves the cost out.
  """
  n = numbers
  lines = [f"{n['topology']}: {n['devices']} devices, batch {n['batch_size']}, {n['rows_per_device']} rows a device"]
  if "largest_micro_batch" in n:
    lines.append(
      f"largest that fits: {n['largest_micro_batch']} rows a device at a time, a batch of {n['largest_batch_size']}"
    )
  needed = f"{n['needed_gib']:.2f} of {n['memory_gib']:g} GiB a device" if "needed_gib" in n else "too much memory"
  lines.append(f"fits:             {'yes' if n['fits'] else 'NO'}, {needed}")
  if "temp_gib" in n:
    lines += [
      f"                  temporaries {n['temp_gib']:.2f}, state and batch {n['argument_gib']:.2f} GiB",
      f"a step:           {n['flops_per_step'] / 1e12:,.1f} TFLOP, no recomputation counted",
      f"between devices:  {n['collective_bytes'] / 1e6:,.1f} MB a step, {n['all_reduce_count']} large all-reduce",
      f"a step takes:     at least {n['step_s_at_least'] * 1e3:,.1f} ms at the datasheet's peak;",
      f"                  {n['step_s_estimate'] * 1e3:,.1f} ms is an ESTIMATE, for an MFU of {n['assumed_mfu']}",
    ]
    if n["run_hours_estimate"]:
      lines.append(f"the run takes:    {n['run_hours_estimate']:,.1f} hours by that estimate")
    if price is not None and n["run_hours_estimate"]:
      cost = n["run_hours_estimate"] * n["chips"] * price
      lines.append(f"and costs:        {cost:,.0f} at {price} a chip and hour")
    lines.append(f"compiled in:      {n['compile_s']:.0f} s")
  return "\n".join([*lines, *(f"  try {line}" for line in advice(n))])


# The description of a GPU for the compiler: threads, registers and caches from NVIDIA's tuning guides for Ampere and
# Hopper; all other values are the same for both.
_GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048
  fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 core_count: {cores} clock_rate_ghz: {ghz}
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin} cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "NVIDIA {name}"
"""
_HOPPER = {"major": 9, "cores": 132, "fpus": 128, "ghz": 1.98, "cache": 50 << 20, "shared": 233472, "optin": 232448}
_AMPERE = {"major": 8, "cores": 108, "fpus": 64, "ghz": 1.41, "cache": 40 << 20, "shared": 167936, "optin": 166912}
GPUS = {
  "a100": {**_AMPERE, "name": "A100-SXM4-80GB", "bandwidth": 2039 * 10**9, "memory": 80 << 30},
  "h100": {**_HOPPER, "name": "H100 80GB HBM3", "bandwidth": 3350 * 10**9, "memory": 80 << 30},
  "h200": {**_HOPPER, "name": "H200", "bandwidth": 4800 * 10**9, "memory": 141 * 10**9},
}
# Without a GPU to time kernels on, the compiler chooses them by its cost model.
OPTIONS = {"gpu": {"xla_gpu_shard_autotuning": False}}


def machine(topology: str) -> tuple[Chip, int, list]:
  """Returns the devices of a machine to compile for.

  Args:
    topology: KIND:SHAPE, as "v5e:4x4", "h200:8" or "h100:4x8" (4 hosts of 8).

  Returns:
    (the chip, the number of chips, the devices).

  Raises:
    UserError: the kind or the shape is unknown, or the compiler for it is not installed.
  """
  kind, _, shape = topology.partition(":")
  if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?" if kind in GPUS else r"[1-9]\d*(x[1-9]\d*)+", shape):
    raise UserError(
      f"--topology={topology} is unknown; use KIND:SHAPE with a kind of {', '.join(CHIPS)}, as v5e:4x4 or h200:8"
    )
  chips = math.prod(int(n) for n in shape.split("x"))
  # Otherwise libtpu waits for an answer from the cloud, and cannot be loaded by two processes.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  from jax.experimental import topologies

  if kind in GPUS:
    hosts, _, devices = shape.rpartition("x")
    options = {"platform": "cuda", "topology": f"1x{hosts or 1}x{devices}", "target_config": _GPU.format(**GPUS[kind])}
    needs = "the CUDA plugin: pip install 'albert-jax[gpu]'; shapes are as h200:8 or h100:4x8"
  else:
    options = {"platform": "tpu", "topology_name": topology}
    if kind == "v4":  # Two cores are one device, as on a real machine; this is the default for v5p.
      options["chip_config_name"] = "megacore"
    needs = "libtpu: pip install 'albert-jax[plan]'; shapes are as v5e:4x4, v5p:2x2x1"
  try:
    return CHIPS[kind], chips, list(topologies.get_topology_desc(**options).devices)
  except Exception as error:
    raise UserError(f"cannot compile for {topology}: {message_lines(error)[0]}. It needs {needs}") from error


def abstract_step(config: ConfigDict, sketch: tasks.Sketch, mesh: jax.sharding.Mesh) -> tuple[Any, tuple[Any, ...]]:
  """Returns the train step that a run of this config compiles, and its arguments as shapes placed on `mesh`.

  Returns:
    (the jitted step, (state, batch, learning rate)); with a teacher, a fourth argument holds its parameters.
  """
  plan = run.plan_state(config, sketch, mesh)
  step = run.train_step(plan, sketch, mesh, config.accumulate)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plan.abstract, plan.shardings
  )  # fmt: skip
  rows = NamedSharding(mesh, sharding.BATCH)
  batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, (shape, dtype) in sketch.arrays.items()}
  rate = jax.ShapeDtypeStruct((), np.float32, sharding=NamedSharding(mesh, P()))
  placed = run.frozen_shardings(sketch, mesh)
  frozen = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    {"teacher": sketch.teacher.params} if sketch.teacher else {}, placed,
  )  # fmt: skip
  return step, (state, batch, rate, *([frozen] if frozen else []))
