"""The whole state of a run: {"step", "params", "opt"}. Shapes first, then arrays, created where they will live."""

import jax
import jax.numpy as jnp

from albert_jax.training import optimizer


def abstract(init, tx, key):
  """Shapes and dtypes of the state, without any array. Args: init: key -> params. tx: gradient transformation."""
  return jax.eval_shape(_new(init, tx), key)


def create(init, tx, key, shardings):
  """The state at step 0, each array made directly in its place."""
  return jax.jit(_new(init, tx), out_shardings=shardings)(key)


def from_params(params, tx, shardings, moments=None):
  """The state with parameters from elsewhere (host arrays), at step 0.

  Args: moments: {"step", "m", "v"} of a run to go on with, or None.
  """

  def new(params, moments):
    state = _state(params, tx)
    if moments is None:
      return state
    opt = optimizer.with_moments(state["opt"], moments["m"], moments["v"])
    return {"step": jnp.asarray(moments["step"], jnp.int32), "params": params, "opt": opt}

  return jax.jit(new, out_shardings=shardings)(params, moments)


def _new(init, tx):
  # A jit of its own is traced once a process, whoever asks for shapes or arrays; building the modules takes a while.
  return lambda key: _state(jax.jit(init)(key), tx)


def _state(params, tx):
  return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": tx.init(params)}
