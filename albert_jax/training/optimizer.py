"""LAMB and AdamW as the original has them (optimization.py, lamb_optimizer.py), on optax.

The learning rate is not part of the transformation: the step multiplies it in, from the one step counter there is.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from albert_jax import paths
from albert_jax.errors import UserError

# Layer norms and biases get no weight decay and, under LAMB, no trust ratio ("LayerNorm", "bias" in the original).
REGULARIZED = (("(^|/)norm/", False), ("(^|/)bias$", False), (".*", True))


@dataclass(frozen=True)
class OptimizerConfig:
  """How parameters move. Defaults are the original's, but for its batch of 4096 and 125,000 steps."""

  name: str = "lamb"
  learning_rate: float = 0.00176  # the peak
  warmup_steps: int = 3125
  weight_decay: float = 0.01
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-6
  clip_norm: float = 1.0  # of the gradient over all parameters
  decay_power: float = 1.0  # of the polynomial decay to zero; 1 is linear
  textbook: bool = False  # True: bias correction, and decay counted from the end of the warm-up

  def __post_init__(self):
    if self.name not in OPTIMIZERS:
      raise UserError(f"optimizer.name={self.name!r} is unknown; use one of {sorted(OPTIMIZERS)}")


def schedule(cfg: OptimizerConfig, steps: int):
  """The learning rate as a function of the step, counted from 0.

  Linear warm-up to the peak, then polynomial decay to zero at `steps`. The original counts the decay from step 0, so
  the rate falls at once from the peak to peak * (1 - warmup / steps) when the warm-up ends.
  Raises: UserError where the warm-up is not shorter than the run.
  """
  warmup = cfg.warmup_steps
  if not 0 <= warmup < steps:
    raise UserError(
      f"optimizer.warmup_steps={warmup} must be below steps={steps}; try --config.optimizer.warmup_steps={steps // 10}"
    )
  start = warmup if cfg.textbook else 0

  def learning_rate(step):
    step = jnp.asarray(step, jnp.float32)
    left = jnp.clip(1 - (step - start) / (steps - start), 0, 1) ** cfg.decay_power
    return cfg.learning_rate * jnp.where(step < warmup, step / max(warmup, 1), left)

  return learning_rate


def make(cfg: OptimizerConfig, layer_axes):
  """The gradient transformation, without the learning rate: apply `params - learning_rate * update`.

  Args: layer_axes: tree like the parameters, how many leading axes of each only count layers (model.layer_axes).
  """
  regularized = paths.first_match(REGULARIZED, layer_axes)
  return optax.chain(optax.clip_by_global_norm(cfg.clip_norm), *OPTIMIZERS[cfg.name](cfg, regularized, layer_axes))


def _adamw(cfg, regularized, layer_axes):
  del layer_axes
  return adam_direction(cfg), optax.add_decayed_weights(cfg.weight_decay, regularized)


def _lamb(cfg, regularized, layer_axes):
  return *_adamw(cfg, regularized, layer_axes), trust_ratio(regularized, layer_axes)


OPTIMIZERS = {"lamb": _lamb, "adamw": _adamw}


class AdamState(NamedTuple):
  count: jax.Array
  m: optax.Updates
  v: optax.Updates


def adam_direction(cfg: OptimizerConfig):
  """Adam's m / (sqrt(v) + eps). What optax lacks is the original's form without bias correction."""

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params=None):
    del params
    m = optax.tree.update_moment(grads, state.m, cfg.b1, 1)
    v = optax.tree.update_moment(grads, state.v, cfg.b2, 2)
    count = state.count + 1
    m_hat, v_hat = m, v
    if cfg.textbook:
      m_hat = optax.tree.bias_correction(m, cfg.b1, count)
      v_hat = optax.tree.bias_correction(v, cfg.b2, count)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + cfg.eps), m_hat, v_hat)
    return direction, AdamState(count, m, v)

  return optax.GradientTransformation(init, update)


def with_moments(opt_state, m, v):
  """The optimizer state with moments from elsewhere: trees like the parameters."""
  return jax.tree.map(
    lambda s: AdamState(s.count, m, v) if isinstance(s, AdamState) else s,
    opt_state,
    is_leaf=lambda s: isinstance(s, AdamState),
  )


def trust_ratio(adapted, layer_axes):
  """LAMB's scaling by |parameter| / |update| of each weight matrix; 1 where either norm is 0.

  optax.scale_by_trust_ratio takes one norm over a whole array. Here an array may hold the matrices of many layers,
  and each must have its own, as if they were separate variables.
  Args: adapted: tree of bools, which parameters are scaled. layer_axes: tree of ints, see `make`.
  """

  def scale(update, param, adapt, lead):
    if not adapt:
      return update
    axes = tuple(range(lead, param.ndim))
    w, u = (jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True)) for x in (param, update))
    return update * jnp.where((w > 0) & (u > 0), w / jnp.where(u > 0, u, 1), 1)

  def update(updates, state, params):
    return jax.tree.map(scale, updates, params, adapted, layer_axes), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
