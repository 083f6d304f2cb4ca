"""Checks of what this device computes: against float32 on the host's CPU, and against a second run."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax import model
from albert_jax.bench import contestants, plan
from albert_jax.bench.rows import Rows, Skip, checked
from albert_jax.model import attention
from albert_jax.tasks import pretrain
from albert_jax.training.optimizer import OptimizerConfig

# A check passes up to these relative errors. Rounding to bfloat16 is an error of 0.4 %, which adds up over layers.
EXACT, KERNEL, BFLOAT16 = 1e-4, 0.02, 0.05
LAMB_STEPS = 10
LAYERS = 4  # of the checked models: each more has to be compiled too, and they are alike


def correctness(rows: Rows, sizes: plan.Plan) -> None:
  """Runs every check of one process."""
  for dtype, limit in (("float32", EXACT), ("bfloat16", BFLOAT16)):
    rows.measure(f"forward pass in {dtype} against the host CPU in float32", golden, sizes, dtype, limit)
  for kernel in ("cudnn", "pallas"):
    for kind in ("padded", "packed"):
      name = f"attention={kernel}, {kind} rows: output and gradients against the plain form"
      rows.measure(name, fused_attention, sizes, kernel, kind)
  reference = functools.cache(lambda: loss_and_gradients(sizes, "float32", "xla"))
  for form in ("xla", "cudnn", "pallas"):
    name = f"bfloat16 with attention={form}, dropout on: gradients of the model against float32"
    rows.measure(name, gradients, sizes, form, reference)
  rows.measure(f"{LAMB_STEPS} LAMB steps in float32: losses against the host CPU", lamb, sizes)
  rows.measure("the same 3 steps twice: parameters that differ", repeated, sizes)


def golden(sizes: plan.Plan, dtype: str, limit: float) -> dict[str, Any]:
  """Compares the outputs of a forward pass; the reference is computed in float32 by the plain form on the host CPU."""
  size, rows, length = sizes.check
  batch = _padded_batch(_model(size), rows, length)
  with jax.default_device(_host()):
    params = jax.device_get(model.init(_model(size), jax.random.key(0)))
    reference = _outputs(_model(size, dtype="float32", attention="xla"), params, batch)
  with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
    outputs = _outputs(_model(size, dtype=dtype), params, batch)
  mask = batch["attention_mask"][:, :, None]
  for result in (outputs, reference):
    result["sequence_output"] = result["sequence_output"] * mask  # Outputs at padding mean nothing.
  errors = {name: relative_error(outputs[name], value) for name, value in reference.items()}
  worst = max(errors, key=errors.__getitem__)
  return checked(errors[worst], limit) | {"worst": worst}


def fused_attention(sizes: plan.Plan, kernel: str, kind: str) -> dict[str, Any]:
  """Compares context and gradients of a kernel in bfloat16 with the plain form in float32."""
  size, rows, length = sizes.check
  cfg = _model(size)
  batch = _padded_batch(cfg, rows, length, packing=3 if kind == "packed" else 1)
  _check_kernel(kernel, cfg, batch)
  reference = _attend("xla", _model(size, dtype="float32"), batch)
  errors, plain = (
    [relative_error(a, b) for a, b in zip(_attend(form, cfg, batch), reference, strict=True)]
    for form in (kernel, "xla")
  )
  return checked(max(errors), KERNEL) | {"plain_form": max(plain)}


def gradients(sizes: plan.Plan, form: str, reference: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
  """Compares the gradients of the pre-training loss with the reference: `loss_and_gradients` in float32."""
  size, rows, length = sizes.check
  cfg = _model(size, attention=form)
  _check_kernel(form, cfg, _padded_batch(cfg, rows, length))
  loss, grads = loss_and_gradients(sizes, "bfloat16", form)
  expected_loss, expected = reference()
  return checked(relative_error(grads, expected), BFLOAT16) | {"loss_difference": loss - expected_loss}


def loss_and_gradients(sizes: plan.Plan, dtype: str, form: str) -> tuple[float, np.ndarray]:
  """Computes the pre-training loss with dropout of hidden states, and all gradients in one vector.

  Dropout masks are the same for every dtype and form of attention.
  """
  size, rows, length = sizes.check
  cfg = _model(size, dtype=dtype, attention=form, hidden_dropout_prob=0.1)
  batch = _padded_batch(cfg, rows, length)

  def total(params):
    sums = pretrain.sums(cfg, params, batch, jax.random.key(1))
    return sum(factor * sums[name][0] for name, factor in pretrain.terms(1.0, 1.0, batch).items())

  with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
    loss, grads = jax.device_get(jax.jit(jax.value_and_grad(total))(model.init(cfg, jax.random.key(0))))
  return float(loss), np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)])


def lamb(sizes: plan.Plan) -> dict[str, Any]:
  """Compares the losses of ten LAMB steps with those of the host CPU."""
  size, rows, length = sizes.check
  cfg = _model("tiny" if size != "toy" else size, dtype="float32", attention="xla")
  batch = _padded_batch(cfg, rows, min(length, 128))
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  opt = OptimizerConfig(name="lamb", warmup_steps=0)

  def losses(device):
    with jax.default_matmul_precision("highest"):
      step = contestants.Ours(cfg, params, batch, opt, [device])
    return np.array([step() for _ in range(LAMB_STEPS)])

  device_losses, host_losses = losses(jax.devices()[0]), losses(_host())
  return checked(np.abs(device_losses / host_losses - 1).max(), EXACT) | {
    "first_loss": host_losses[0],
    "last_loss": host_losses[-1],
  }


def repeated(sizes: plan.Plan) -> dict[str, Any]:
  """Counts the arrays of the state that differ between two runs of the same three steps, with dropout."""
  size, rows, length = sizes.check
  cfg = _model(size, hidden_dropout_prob=0.1)
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  batch = _padded_batch(cfg, rows, length)
  step = contestants.Ours(cfg, params, batch)
  shardings = jax.tree.map(lambda x: x.sharding, step.state)
  first, hashes = jax.tree.map(np.array, step.state), []  # Copies: a step reuses the memory of the state.
  for _ in range(2):
    step.state = jax.tree.map(lambda x, sharding: jax.device_put(x.copy(), sharding), first, shardings)
    for _ in range(3):
      step()
    hashes.append([hashlib.sha256(np.asarray(x).tobytes()).digest() for x in jax.tree.leaves(step.state)])
  return checked(sum(a != b for a, b in zip(*hashes, strict=True)), 0)


def _model(size, **fields):
  depth = min(LAYERS, plan.model_of(size).num_hidden_layers)
  return plan.model_of(size, num_hidden_layers=depth, **fields)


def relative_error(value: Any, reference: Any) -> float:
  """Returns the norm of the difference, as a share of the reference's norm."""
  value, reference = (np.asarray(x, np.float32) for x in (value, reference))
  return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def _host():
  try:
    return jax.devices("cpu")[0]
  except RuntimeError as error:
    raise Skip("JAX_PLATFORMS leaves out the host's CPU, which computes the reference; unset it") from error


def _padded_batch(cfg, rows, length, packing=1):
  """Returns a batch whose first row is full and whose others end in padding."""
  batch = contestants.make_batch(cfg, rows, length, plan.masked_slots(length), packing)
  tokens = np.full((rows, 1), length)
  tokens[1:, 0] = length - 1 - np.arange(rows - 1) * length // (2 * rows) - length // 8
  batch["attention_mask"] = (np.arange(length) < tokens).astype(np.int32)
  batch["mlm_weights"] = (batch["mlm_positions"] < tokens).astype(np.float32)
  if packing > 1:
    batch["segment_ids"] = batch["segment_ids"] * batch["attention_mask"]
  return batch


def _check_kernel(kernel, cfg, batch):
  refuses: Callable = attention.REFUSALS.get(kernel, lambda *_: "")
  if why := refuses(cfg, batch, False):
    raise Skip(f"attention={kernel} {why}")


def _outputs(cfg, params, batch):
  names = ("input_ids", "attention_mask", "token_type_ids", "mlm_positions")
  run = jax.jit(lambda params, batch: model.apply(cfg, params, batch))
  outputs = jax.device_get(run(params, {name: batch[name] for name in names}))
  return {name: np.asarray(value, np.float32) for name, value in outputs.items()}


def _attend(form, cfg, batch):
  """Returns [context, gradients of q, k and v] as float32 numpy; padding is left out."""
  shape = (*batch["input_ids"].shape, cfg.hidden_size)
  mask = jnp.asarray(batch["attention_mask"])[:, :, None]
  q, k, v, weight = (
    x.astype(jnp.bfloat16).astype(cfg.dtype) for x in jax.random.normal(jax.random.key(0), (4, *shape))
  )
  batch = {name: jnp.asarray(value) for name, value in batch.items()}

  @jax.jit
  def run(q, k, v):
    attend, _ = attention.ATTENTION[form](cfg, batch)
    context, backward = jax.vjp(lambda q, k, v: attend(q, k, v, None) * mask.astype(q.dtype), q, k, v)
    return [x.astype(jnp.float32) for x in (context, *backward(weight))]

  with jax.default_matmul_precision("highest" if cfg.dtype == "float32" else "default"):
    return jax.device_get(run(q, k, v))
