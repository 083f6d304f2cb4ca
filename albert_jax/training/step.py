"""The train step: gradients on the devices of the rows, one all-reduce, one update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from albert_jax import nvidia
from albert_jax.training import optimizer
from albert_jax.training.sharding import BATCH, ROWS


def make_train_step(
  sums: Callable,
  terms: Callable,
  tx: optax.GradientTransformation,
  base_key: jax.Array,
  mesh: jax.sharding.Mesh,
  shardings: dict,
  accumulate: int = 1,
) -> Callable:
  """Compiles the step: (state, batch, learning_rate, frozen) -> (state, (sums, scalars)); the old state is donated.

  `frozen`, {} by default, has more parts of the parameters, which have no gradients and are not in the state.

  The loss is the sum of terms[name] * sums[name][0]. Every device computes it on its own rows, with gradients summed in
  float32 over layers, micro-batches and then devices: one all-reduce a step, whatever the backend's compiler does.

  Args:
    sums: (params, batch, keys) -> {name: (total, weight)}, totals being sums over rows. keys: [B], one a row.
    terms: batch -> {name: coefficient}, those of the totals that are minimised; sees the whole batch.
    tx: from training/optimizer.py.
    base_key: dropout keys derive from it and the step.
    mesh: the devices.
    shardings: those of the state, which the step keeps.
    accumulate: micro-batches that a device computes one after the other, to need less memory.
  """

  tx = optax.with_extra_args_support(tx)
  # As a host's array: a key on a GPU would be copied back to become a constant of the program, which the loop forbids.
  key_data = jax.device_get(jax.random.key_data(base_key))

  def gradients(params, batch, keys, coefficients, frozen):
    """Computes gradients of this device's rows; `params` are complete, and the result is equal on all devices."""
    # Marked as different between devices; otherwise each layer's gradient would be summed over devices separately.
    params = jax.lax.pcast(params, ROWS, to="varying")

    def loss(params, batch, keys):
      totals = sums({**params, **frozen}, batch, keys)
      return sum(coefficients[name] * totals[name][0] for name in coefficients), totals

    def add(so_far, rows):
      # The compiler unrolls a loop of one iteration and computes both micro-batches at once, in twice the memory.
      so_far, same = jax.lax.optimization_barrier((so_far, params))
      (value, totals), grads = jax.value_and_grad(loss, has_aux=True)(same, *rows)
      return jax.tree.map(jnp.add, so_far, (grads, value, totals)), None

    # Rows are distributed in turns, so that each micro-batch is similar to the batch.
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (batch, keys))
    first, rest = jax.tree.map(lambda x: x[0], micro), jax.tree.map(lambda x: x[1:], micro)
    (value, totals), grads = jax.value_and_grad(loss, has_aux=True)(params, *first)
    total = (grads, value, totals)
    if accumulate > 1:
      total, _ = jax.lax.scan(add, total, rest)
    return jax.lax.psum(total, ROWS)

  def train_step(state, batch, learning_rate, frozen=None):
    step, params = state["step"], state["params"]
    rows = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
    step_key = jax.random.fold_in(jax.random.wrap_key_data(key_data), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, rows)
    # An axis of size 1 splits nothing, but as an automatic axis it would disable fused kernels.
    manual_axes = {*ROWS, *(axis for axis in mesh.axis_names if mesh.shape[axis] == 1)}
    grads, loss, totals = jax.shard_map(
      gradients, mesh=mesh, in_specs=(P(), BATCH, BATCH, P(), P()), out_specs=P(), axis_names=manual_axes
    )(params, batch, keys, terms(batch), frozen or {})
    updates, opt = tx.update(grads, state["opt"], params, learning_rate=learning_rate)
    scalars = {"grad_norm": optax.tree.norm(grads), "learning_rate": learning_rate}
    scalars |= optimizer.diagnostics(opt, params, updates, learning_rate)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
    return {"step": step + 1, "params": params, "opt": opt}, ({"loss": (loss, 1.0), **totals}, scalars)

  options = nvidia.COMPILER_OPTIONS if mesh.devices.flat[0].platform in nvidia.PLATFORMS else None
  return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)
