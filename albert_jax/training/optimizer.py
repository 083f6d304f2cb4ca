"""The optimizers by name, on optax, and rules on parameter paths for decay, rates and freezing.

The learning rate is not part of the transformation: the train step multiplies by it, from the state's step counter.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from albert_jax import paths
from albert_jax.errors import UserError, did_you_mean
from albert_jax.training.schedule import ENDLESS, SCALES, SHAPES

# Layer norms and biases get no weight decay and, under LAMB, no trust ratio ("LayerNorm", "bias" in the original).
REGULARIZED = (("(^|/)norm/", False), ("(^|/)bias$", False), (".*", True))
# The number of input axes of a hidden weight matrix (H and K in the attention's output); the others are output axes. 0
# for all other parameters: embeddings, the layers that make logits, biases and norms.
INPUT_AXES = (
  ("^attention/output/kernel$", 2),
  ("^(attention|ffn|projection|pooler|mlm)/(.*/)?kernel$", 1),
  (".*", 0),
)
# For fine-tuning a model narrower than SMALL_WIDTH: it learned from 400 rows, and AdamW from 2e-5 to 2e-3 did not
# (docs/benchmarks/tasks.md).
SMALL_WIDTH = 256
SMALL_MODEL = {"name": "muon", "learning_rate": 3e-3, "b1": 0.95}
MUON_RMS = 0.2  # Makes Muon's updates as large as AdamW's, so that AdamW's learning rates apply (arXiv 2502.16982).


# Fields that only some values of another field use.
USERS = {
  "decay_power": ("schedule", ("polynomial", "wsd")),
  "decay_share": ("schedule", ("wsd",)),
  "reference_batch": ("scale_with_batch", ("sqrt", "linear")),
}


@dataclass(frozen=True)
class OptimizerConfig:
  """The settings of the optimizer. Defaults are those of the original, for a batch of 4096 and 125,000 steps."""

  name: str = "lamb"  # lamb, adamw, lion or muon: docs/optimizers.md
  learning_rate: float = 0.00176  # the peak
  scale_with_batch: str = "none"  # sqrt or linear: learning_rate is for reference_batch rows, and scaled to batch_size
  reference_batch: int = 4096
  schedule: str = "polynomial"  # what follows the warm-up: polynomial, cosine, wsd, inverse_sqrt or constant
  warmup_steps: int = 3125  # -1: a tenth of the run
  rewarm_from: int = 0  # the step of a run that is continued with init_optimizer: the schedule begins there
  final_rate: float = 0.0  # share of the peak that is left at the end
  decay_power: float = 1.0  # of polynomial and wsd; 1 is linear
  decay_share: float = 0.1  # of the run, at its end, in which wsd decays
  weight_decay: float = 0.01
  b1: float = 0.9  # of the first moment; the momentum of muon
  b2: float = 0.999  # of the second moment; of lion's only one
  eps: float = 1e-6
  clip_norm: float = 1.0  # of the gradient over all parameters that are trained; inf for none
  textbook: bool = False  # True: lamb and adamw correct bias, and polynomial counts from the end of the warm-up
  rates: str = ""  # factors on the learning rate, by the first pattern in the path: "^embeddings/=0.1,^ffn/=0.5"
  freeze: str = ""  # regular expression: the parameters that stay as they are, as "^embeddings/"
  ema: float = 0.0  # decay of a running mean of the parameters, to evaluate and export; 0 is none

  def __post_init__(self):
    for name, table in {"name": OPTIMIZERS, "schedule": SHAPES, "scale_with_batch": SCALES}.items():
      if getattr(self, name) not in table:
        near = did_you_mean(getattr(self, name), table)
        raise UserError(
          f"optimizer.{name}={getattr(self, name)!r} is unknown; use one of {', '.join(sorted(table))}{near}"
        )
    for name, (expected, holds) in RANGES.items():
      if not holds(getattr(self, name)):
        raise UserError(f"optimizer.{name}={getattr(self, name)} must be {expected}")
    for name, (field, users) in USERS.items():
      if getattr(self, name) != getattr(OptimizerConfig, name) and getattr(self, field) not in users:
        other = f"optimizer.{field}={getattr(self, field)!r}"
        raise UserError(
          f"optimizer.{name}={getattr(self, name)} has no effect with {other}; it is for {', '.join(users)}"
        )
    if self.final_rate and self.schedule in ENDLESS:
      raise UserError(f"optimizer.schedule={self.schedule!r} has no end to decay to; set optimizer.final_rate=0")
    _checked("freeze", self.freeze)
    _factors(self.rates)


def make(cfg: OptimizerConfig, layer_axes: Any) -> optax.GradientTransformation:
  """Returns the gradient transformation, without the learning rate: apply `params - learning_rate * update`.

  With `cfg.ema`, `update` needs the keyword learning_rate, to compute the new parameters.

  Args:
    cfg: the optimizer's config.
    layer_axes: a tree like the parameters: how many leading axes of each only count layers (model.layer_axes).

  Raises:
    UserError: a pattern of `rates` or `freeze` matches nothing, or one of `rates` only what is frozen.
  """
  regularized, inputs = (paths.first_match(rules, layer_axes) for rules in (REGULARIZED, INPUT_AXES))
  kinds = jax.tree.map(Kind, layer_axes, regularized, inputs)
  factors = _matched("rates", (*_factors(cfg.rates), (".*", 1.0)), layer_axes)
  trained = jax.tree.map(lambda _: True, layer_axes)
  if cfg.freeze:
    trained = _matched("freeze", ((cfg.freeze, False), (".*", True)), layer_axes)
    if not any(jax.tree.leaves(trained)):
      raise UserError(f"optimizer.freeze={cfg.freeze!r} matches every parameter, so nothing is left to train")
    rules = paths.first_match((*((pattern, pattern) for pattern, _ in _factors(cfg.rates)), (".*", "")), layer_axes)
    if idle := {*jax.tree.leaves(rules)} - {"", *jax.tree.leaves(_hidden(rules, trained))}:
      raise UserError(
        f"optimizer.rates={cfg.rates!r}: {min(idle)!r} matches only parameters that stay as they are, by "
        "optimizer.freeze or LoRA; leave it out, or freeze less"
      )
    # Frozen parameters are masked below: they have no moments and no mean, and do not count in the norm to clip by.
    kinds, factors = (_hidden(tree, trained) for tree in (kinds, factors))
  # With an infinite norm optax still divides and writes all gradients: an eighth of AdamW's time (docs/performance.md).
  clip = optax.identity() if math.isinf(cfg.clip_norm) else optax.clip_by_global_norm(cfg.clip_norm)
  parts = [clip, *OPTIMIZERS[cfg.name](cfg, kinds)]
  if cfg.rates:
    parts.append(optax.stateless(lambda updates, _: jax.tree.map(lambda u, factor: u * factor, updates, factors)))
  if cfg.ema:
    parts.append(running_mean(cfg.ema))
  tx = optax.chain(*parts)
  if cfg.freeze:
    labels = jax.tree.map(lambda moves: "trained" if moves else "frozen", trained)
    tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
  return tx


@dataclass(frozen=True)
class Kind:
  """Properties of a parameter, see `make`, REGULARIZED, INPUT_AXES."""

  lead: int
  regularized: bool
  inputs: int


def _decay(cfg, kinds):
  return optax.add_decayed_weights(cfg.weight_decay, jax.tree.map(lambda kind: kind.regularized, kinds))


def _adamw(cfg, kinds):
  return adam_direction(cfg), _decay(cfg, kinds)


def _lamb(cfg, kinds):
  return *_adamw(cfg, kinds), trust_ratio(kinds)


def _lion(cfg, kinds):
  return optax.scale_by_lion(cfg.b1, cfg.b2), _decay(cfg, kinds)


def _muon(cfg, kinds):
  def matrix(kind, param):
    if isinstance(param, optax.MaskedNode) or not kind.inputs:
      return None  # Then AdamW moves it.
    axes = tuple(range(kind.lead, param.ndim))
    return optax.contrib.MuonDimensionNumbers(axes[: kind.inputs], axes[kind.inputs :])

  def dimensions(params):
    return jax.tree.map(matrix, kinds, params)

  tx = optax.contrib.muon(
    1.0, beta=cfg.b1, adam_b1=cfg.b1, adam_b2=cfg.b2, eps=cfg.eps, consistent_rms=MUON_RMS,
    muon_weight_dimension_numbers=dimensions,
  )  # fmt: skip
  return tx, optax.scale(-1.0), _decay(cfg, kinds)


OPTIMIZERS = {"lamb": _lamb, "adamw": _adamw, "lion": _lion, "muon": _muon}
# Smaller numbers are 0 in float32, in which the devices compute, and numbers nearer to 1 are 1.
SMALLEST, NEAR_ONE = 1e-30, 1 - 1e-7
RANGES = {
  "learning_rate": (f"from {SMALLEST:g} to 1e3", lambda x: SMALLEST <= x <= 1e3),
  "warmup_steps": ("0 or more, or -1 for a tenth of the run", lambda x: x >= -1),
  "rewarm_from": ("0 or more", lambda x: x >= 0),
  "reference_batch": ("1 or more", lambda x: x >= 1),
  "final_rate": ("from 0 to 1", lambda x: 0 <= x <= 1),
  "decay_power": ("above 0 and up to 1e3", lambda x: 0 < x <= 1e3),
  "decay_share": ("above 0 and up to 1", lambda x: 0 < x <= 1),
  "weight_decay": ("from 0 to 1e3", lambda x: 0 <= x <= 1e3),
  "b1": (f"from 0 to {NEAR_ONE}", lambda x: 0 <= x <= NEAR_ONE),
  "b2": (f"from 0 to {NEAR_ONE}", lambda x: 0 <= x <= NEAR_ONE),
  "eps": (f"from {SMALLEST:g} to 1e3", lambda x: SMALLEST <= x <= 1e3),
  "clip_norm": (f"{SMALLEST:g} or more; inf is for no clipping", lambda x: x >= SMALLEST),
  "ema": (f"from 0 to {NEAR_ONE}", lambda x: 0 <= x <= NEAR_ONE),
}


class AdamState(NamedTuple):
  count: jax.Array  # type: ignore[assignment]  # A tuple has a method of this name; optax' states do the same.
  m: optax.Updates
  v: optax.Updates


def adam_direction(cfg: OptimizerConfig) -> optax.GradientTransformation:
  """Returns adam's m / (sqrt(v) + eps). optax has no form without bias correction, which the original uses."""

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


def with_moments(opt_state: Any, m: Any, v: Any) -> Any:
  """Returns the optimizer state with the moments of a checkpoint.

  Args:
    opt_state: a fresh state.
    m, v: trees like the parameters.

  Raises:
    UserError: the optimizer does not keep Adam's moments.
  """
  if not _states(opt_state, AdamState):
    raise UserError(
      "init_optimizer brings Adam's two moments, which only optimizer.name=lamb and adamw keep; "
      "try --config.init_optimizer=False"
    )
  return jax.tree.map(
    lambda s: AdamState(s.count, _like(s.m, m), _like(s.v, v)) if isinstance(s, AdamState) else s,
    opt_state,
    is_leaf=lambda s: isinstance(s, AdamState),
  )


class TrustRatios(NamedTuple):
  """The trust ratios of the last update, for `diagnostics` only."""

  smallest: jax.Array
  mean: jax.Array
  largest: jax.Array


def trust_ratio(kinds: Any) -> optax.GradientTransformation:
  """Scales each weight matrix by |parameter| / |update| as LAMB; by 1 if either norm is 0.

  optax.scale_by_trust_ratio takes one norm over a whole array. Here an array may hold the matrices of many layers,
  and each must have its own, as if they were separate variables.
  """

  def ratio(update, param, kind):
    axes = tuple(range(kind.lead, param.ndim))
    w, u = (jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True)) for x in (param, update))
    return jnp.where((w > 0) & (u > 0), w / jnp.where(u > 0, u, 1), 1) if kind.regularized else None

  def update(updates, state, params):
    del state
    ratios = jax.tree.map(ratio, updates, params, kinds)
    values = jnp.concatenate([jnp.ravel(r) for r in jax.tree.leaves(ratios)] or [jnp.ones(1)])
    updates = jax.tree.map(lambda u, r: u if r is None else u * r, updates, ratios)
    return updates, TrustRatios(jnp.min(values), jnp.mean(values), jnp.max(values))

  return optax.GradientTransformation(lambda params: TrustRatios(*jnp.ones(3)), update)


def running_mean(decay: float) -> optax.GradientTransformationExtraArgs:
  """Keeps an exponential running mean of the parameters as they are after each update; updates pass through."""
  mean = optax.ema(decay)

  def update(updates, state, params, *, learning_rate, **others):
    del others
    moved = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
    return updates, mean.update(moved, state)[1]

  return optax.GradientTransformationExtraArgs(mean.init, update)


def averaged(cfg: OptimizerConfig, opt_state: Any, params: Any) -> Any:
  """Returns the parameters to evaluate and export: under `cfg.ema` their running mean, else themselves.

  The mean begins at zero and is divided by the sum of its weights so far, 1 - ema ** updates, as in Adam. Parameters
  that are frozen or have had no update yet are those of `params`.
  """
  if not cfg.ema:
    return params
  (state,) = _states(opt_state, optax.EmaState)
  mean = optax.tree.bias_correction(state.ema, cfg.ema, jnp.maximum(state.count, 1))
  return jax.tree.map(
    lambda m, p: p if _is_hidden(m) else jnp.where(state.count > 0, m, p), mean, params, is_leaf=_is_hidden
  )


def diagnostics(opt_state: Any, params: Any, updates: Any, learning_rate: jax.Array | float) -> dict[str, jax.Array]:
  """Scalars that describe an update: |change| / |parameters|, and under LAMB the trust ratios.

  Args:
    opt_state, updates: the results of `tx.update`.
    params: those before the update.
    learning_rate: that of the step.
  """
  scalars = {"update_ratio": learning_rate * optax.tree.norm(updates) / optax.tree.norm(params)}
  for state in _states(opt_state, TrustRatios):
    scalars |= {
      "trust_ratio_min": state.smallest, "trust_ratio_mean": state.mean, "trust_ratio_max": state.largest,
    }  # fmt: skip
  return scalars


def _states(opt_state, kind):
  """Returns the parts of an optimizer's state that are instances of `kind`."""
  return [s for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]


def _is_hidden(node):
  return isinstance(node, optax.MaskedNode)


def _hidden(tree, trained):
  """Returns the tree with optax.MaskedNode in place of parameters that are not trained."""
  return jax.tree.map(lambda moves, leaf: leaf if moves else optax.MaskedNode(), trained, tree)


def _like(held, tree):
  """Returns the tree, masked where `held` is masked."""
  return jax.tree.map(lambda h, leaf: h if _is_hidden(h) else leaf, held, tree, is_leaf=_is_hidden)


def _factors(text):
  """Returns the rules of `rates`: ((pattern, factor), …)."""
  rules = []
  for rule in filter(None, text.split(",")):
    pattern, _, factor = rule.rpartition("=")
    try:
      number = float(factor)
    except ValueError:
      number = math.nan
    if not pattern or not SMALLEST <= number <= 1e3:
      raise UserError(
        f"optimizer.rates={text!r}: {rule!r} must be PATTERN=FACTOR with a factor from {SMALLEST:g} to 1e3, as in "
        "--config.optimizer.rates=^embeddings/=0.1,^ffn/=0.5; what should not move at all is for optimizer.freeze"
      )
    rules.append((_checked("rates", pattern), number))
  return tuple(rules)


def _checked(field, pattern):
  try:
    re.compile(pattern)
  except re.error as error:
    raise UserError(f"optimizer.{field}: {pattern!r} is not a regular expression: {error}") from None
  return pattern


def _matched(field, rules, tree):
  """Calls paths.first_match, and names the config's field in its error."""
  try:
    return paths.first_match(rules, tree)
  except UserError as error:
    raise UserError(f"optimizer.{field}: {error}") from None
