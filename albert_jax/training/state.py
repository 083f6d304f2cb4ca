"""The whole state of a run: {"step", "params", "opt"}. Shapes first, then arrays, created where they will live."""

import jax
import jax.numpy as jnp


def abstract(init, tx, key):
  """Shapes and dtypes of the state, without any array. Args: init: key -> params. tx: gradient transformation."""
  return jax.eval_shape(_new(init, tx), key)


def create(init, tx, key, shardings):
  """The state at step 0, each array made directly in its place."""
  return jax.jit(_new(init, tx), out_shardings=shardings)(key)


def from_params(params, tx, shardings):
  """The state at step 0 with parameters from elsewhere (host arrays)."""
  return jax.jit(lambda params: _state(params, tx), out_shardings=shardings)(params)


def _new(init, tx):
  return lambda key: _state(init(key), tx)


def _state(params, tx):
  return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": tx.init(params)}
