"""The mesh, the sharding rules, and global arrays of host batches."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from albert_jax import paths
from albert_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes over which the rows of a batch are split
BATCH = P(ROWS)

# The sharding of the last axes of a weight; an axis of size 1 splits nothing, so one table serves every strategy. The
# first match applies; paths of optimizer slots end with the path of their parameter. Under `fsdp`, each device stores a
# part and the step gathers the weights once; under `tensor`, heads and feed-forward units stay on their devices.
RULES = (
  (r"attention/(query|key|value)/kernel$", P("fsdp", "tensor", None)),  # D H K
  (r"attention/output/kernel$", P("tensor", None, "fsdp")),  # H K D
  (r"ffn/(up|gate)/kernel$", P("fsdp", "tensor")),  # D F
  (r"ffn/down/kernel$", P("tensor", "fsdp")),  # F D
  (r"/(kernel|embedding)$", P(None, "fsdp")),
  (".*", P()),
)
# Of layers with biases, which arch=modern has not.
BIAS_RULES = (
  (r"attention/(query|key|value)/bias$", P("tensor", None)),
  (r"ffn/up/bias$", P("tensor")),
)


@dataclass(frozen=True)
class MeshConfig:
  """The number of devices of each axis (-1: all remaining ones), and whether optimizer slots are split too."""

  data: int = -1  # copies of the weights
  fsdp: int = 1  # each device stores a part of weights and slots, and computes with all of them
  tensor: int = 1  # each device computes a part of every layer; together they are of one host
  zero1: bool = False  # optimizer slots are split over `data`; each device updates its part


def make_mesh(cfg: MeshConfig, batch_size: int, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """Returns the mesh over all devices.

  Args:
    cfg: the size of each axis.
    batch_size: rows over all devices.
    devices: None for those that are here.

  Raises:
    UserError: the axes do not fit the devices, or the batch does not divide by the axes that split rows.
  """
  devices = jax.devices() if devices is None else devices
  sizes = [cfg.data, cfg.fsdp, cfg.tensor]
  if any(size == 0 or size < -1 for size in sizes):
    raise UserError(f"the axes of the mesh must be 1 or more, or -1 for the rest; got {cfg}")
  known = math.prod(size for size in sizes if size != -1)
  fits = len(devices) % known == 0 if sizes.count(-1) == 1 else -1 not in sizes and known == len(devices)
  if not fits:
    raise UserError(
      f"mesh data={cfg.data} fsdp={cfg.fsdp} tensor={cfg.tensor} does not fit {len(devices)} devices; "
      f"try --config.mesh.data=-1 --config.mesh.fsdp=1 --config.mesh.tensor=1"
    )
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  rows = sizes[0] * sizes[1]
  if batch_size % rows:
    raise UserError(
      f"batch_size={batch_size} must be divisible by the axes that split rows, data x fsdp = {rows}; "
      f"try --config.batch_size={max(1, round(batch_size / rows)) * rows}"
    )
  mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
  if not _hosts_have_own_rows(mesh.devices):
    # Host by host instead of by the wiring.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    mesh = jax.sharding.Mesh(np.array(ordered).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)
    if not _hosts_have_own_rows(mesh.devices):
      raise UserError(
        f"mesh.tensor={sizes[2]} would put the same rows on several hosts, and each makes rows of its own; it must "
        "divide the devices of a host. Try --config.mesh.tensor=1, and mesh.fsdp where a model does not fit a device"
      )
  return mesh


def _hosts_have_own_rows(devices):
  """Returns whether all devices of [data, fsdp, tensor] that compute the same rows belong to one host."""
  return all(len({device.process_index for device in row}) == 1 for row in devices.reshape(-1, devices.shape[-1]))


def shardings(mesh: jax.sharding.Mesh, abstract: dict, zero1: bool = False) -> dict:
  """Returns the tree with the NamedSharding of each leaf.

  Args:
    mesh: the devices.
    abstract: a state or parameters, arrays or their shapes.
    zero1: whether optimizer slots are split over `data` too.

  Raises:
    UserError: `tensor` does not divide the heads or the feed-forward units.
  """
  has_biases = any(re.search(BIAS_RULES[0][0], path) for path in jax.tree.leaves(paths.names(abstract)))
  specs = paths.first_match((*BIAS_RULES, *RULES) if has_biases else RULES, abstract)
  weights = paths.flatten(abstract["params"]) if "opt" in abstract else {}

  def sharding_of(path, leaf, spec):
    if path.startswith("opt/") and not _is_like_its_weight(path, leaf, weights):
      return NamedSharding(mesh, P())
    return NamedSharding(mesh, _spec(mesh, path, leaf.shape, spec, zero1))

  return jax.tree.map(sharding_of, paths.names(abstract), abstract, specs)


def _is_like_its_weight(path, slot, weights):
  """Returns whether an optimizer slot has the shape of its parameter; counters do not."""
  names = path.split("/")
  weight = next((w for i in range(len(names)) if (w := weights.get("/".join(names[i:]))) is not None), None)
  return weight is not None and weight.shape == slot.shape


def _spec(mesh, path, shape, spec, zero1):
  """Returns the spec of a leaf: the rule for the last axes, without mesh axes of size 1; ZeRO-1 splits one more."""
  axes = [None] * (len(shape) - len(spec)) + [axis if axis and mesh.shape[axis] > 1 else None for axis in spec]
  for i, (size, axis) in enumerate(zip(shape, axes, strict=True)):
    if axis and size % mesh.shape[axis]:
      if axis == "tensor":
        raise UserError(
          f"mesh.tensor={mesh.shape[axis]} must divide heads and feed-forward units; {path} has shape {list(shape)}. "
          f"Try a number that divides {size}, or mesh.tensor=1"
        )
      axes[i] = None  # `fsdp` only decides where a weight is stored; what does not divide is stored whole.
  if zero1 and path.startswith("opt/"):
    free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape["data"] == 0]
    if free:  # What does not divide is a bias or a norm: small.
      axes[max(free, key=lambda i: shape[i])] = "data"
  return P(*axes)


def global_batch(mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Makes global arrays [B, ...] of this host's rows {name: [B / P, ...]}, split over `data` and `fsdp`."""
  sharding = NamedSharding(mesh, BATCH)
  return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def everywhere(mesh: jax.sharding.Mesh, value: float) -> jax.Array:
  """Returns a number as a replicated float32 scalar."""
  return jax.make_array_from_process_local_data(NamedSharding(mesh, P()), np.float32(value))
