"""Where every array lives: the mesh, the rules, and host batches as global arrays."""

from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from albert_jax import paths
from albert_jax.errors import UserError

# First match wins; the paths of optimizer slots end with the parameter's path, so one table serves the whole state.
# Weights are copied to every device: sharing makes them small (base: 47 MB), so one all-reduce a step is the cost.
DATA_PARALLEL = ((".*", P()),)
BATCH = P(("data", "fsdp"))


@dataclass(frozen=True)
class MeshConfig:
  """How many devices each axis has; -1 is all that the others leave."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


def make_mesh(cfg: MeshConfig, batch_size: int, devices=None):
  """The mesh over all devices. Raises: UserError if the axes do not fit the devices, or the batch the data axes."""
  devices = jax.devices() if devices is None else devices
  sizes = [cfg.data, cfg.fsdp, cfg.tensor]
  if cfg.fsdp != 1 or cfg.tensor != 1:
    raise UserError(f"mesh.fsdp={cfg.fsdp} and mesh.tensor={cfg.tensor}: only 1 is supported so far; use mesh.data=-1")
  if any(size == 0 or size < -1 for size in sizes):
    raise UserError(f"the axes of the mesh must be 1 or more, or -1 for the rest; got {cfg}")
  known = int(np.prod([size for size in sizes if size != -1]))
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
      f"batch_size={batch_size} must divide by the data axes ({rows}); "
      f"try --config.batch_size={max(1, round(batch_size / rows)) * rows}"
    )
  return jax.make_mesh(sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def shardings(mesh, abstract, rules=DATA_PARALLEL):
  """The tree with the NamedSharding of each leaf, by the first rule that matches its path."""
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), paths.first_match(rules, abstract), is_leaf=lambda x: isinstance(x, P)
  )


def global_batch(mesh, batch):
  """Host rows {"name": numpy [B / P, ...]} as arrays [B, ...], rows split over the data axes."""
  sharding = NamedSharding(mesh, BATCH)
  return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
