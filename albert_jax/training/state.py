"""The training state {"step", "params", "opt"}: its shapes, and its arrays created directly where they are stored."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from albert_jax.training import optimizer


def abstract(init: Callable, tx: optax.GradientTransformation, key: jax.Array) -> dict[str, Any]:
  """Returns the shapes and dtypes of the state, without any array.

  Args:
    init: key -> params.
    tx: the gradient transformation.
    key: for `init`.
  """
  return jax.eval_shape(_new(init, tx), key)


def create(init: Callable, tx: optax.GradientTransformation, key: jax.Array, shardings: dict) -> dict[str, Any]:
  """Returns the state at step 0.

  Args:
    init, tx, key: as for `abstract`.
    shardings: where each array is created.
  """
  return jax.jit(_new(init, tx), out_shardings=shardings)(key)


def from_params(
  params: dict, tx: optax.GradientTransformation, shardings: dict | None, moments: dict | None = None
) -> dict[str, Any]:
  """Returns the state with parameters from a checkpoint.

  Args:
    params: host arrays.
    tx: the gradient transformation.
    shardings: where each array of the state is created.
    moments: {"step", "m", "v"} of a run to continue; None begins at step 0.
  """

  def new(params, moments):
    state = _state(params, tx)
    if moments is None:
      return state
    opt = optimizer.with_moments(state["opt"], moments["m"], moments["v"])
    return {"step": jnp.asarray(moments["step"], jnp.int32), "params": params, "opt": opt}

  return jax.jit(new, out_shardings=shardings)(params, moments)


def _new(init, tx):
  # A separate jit is traced once a process, for shapes and arrays; building the modules takes a while.
  return lambda key: _state(jax.jit(init)(key), tx)


def _state(params, tx):
  return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": tx.init(params)}
