"""Checkpoints of the state. The only file that knows Orbax."""

import jax
from orbax.checkpoint import v1 as ocp


class Checkpoints:
  """The checkpoints of one run: one folder a step, written in the background, each visible only when complete."""

  def __init__(self, directory, keep: int):
    """Args: directory: path, made if absent. keep: how many of the newest are kept."""
    self._orbax = ocp.training.Checkpointer(
      directory,
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,  # What a killed run left half-written.
    )

  def latest(self) -> int | None:
    """The newest step that is complete, or None."""
    return None if self._orbax.latest is None else self._orbax.latest.step

  def save(self, step: int, state):
    """Starts writing `state` and returns; nothing happens where this step is there already."""
    if self.latest() != step:
      # Without `force` Orbax leaves a save out, silently, while the one before is still being written.
      self._orbax.save_async(step, state, force=True)

  def restore(self, abstract, shardings):
    """The newest state, placed by `shardings`, which may be those of another mesh than the one that saved it."""
    target = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, shardings
    )
    return self._orbax.load(None, target)

  def close(self):
    """Waits for what is being written."""
    self._orbax.close()
