"""How int8 exports round the factors of matrix products, and the same rounding as noise in training.

exports/quantize.py uses the same rules, so a model trained with the noise has seen the rounding of its export.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

# The sum of two products of an unsigned and a signed byte must fit 16 bits, or instructions of processors without VNNI
# (vpmaddubsw of AVX2) saturate: 255 (w1 + w2) <= 32767 for every two neighbours in a column.
PAIR_LIMIT = 128
# {products: alpha}. Channels of the input that are much larger than others are divided by
# s = max|x|^alpha / max|w|^(1 - alpha) before rounding, and the rows of the matrix multiplied (arXiv 2211.10438).
SMOOTHING = {"attention": 0.65, "ffn/up": 0.8}
_PLACES = {"query": "attention", "key": "attention", "value": "attention", "up": "ffn/up", "gate": "ffn/up"}


def smoothing(x_I: Any, w_I: Any, alpha: float, xp: ModuleType) -> Any:
  """Returns s [in], with a geometric mean of 1.

  Args:
    x_I: the largest absolute value of each channel of the input.
    w_I: the largest absolute value of each row of the matrix.
    alpha: see SMOOTHING.
    xp: numpy or jax.numpy.
  """
  s_I = xp.maximum(x_I, 1e-5) ** alpha / xp.maximum(w_I, 1e-5) ** (1 - alpha)
  return s_I / xp.exp(xp.mean(xp.log(s_I)))


def column_scales(kernel_IO: Any, xp: ModuleType) -> Any:
  """Returns the scale of each column of a matrix [in, out], such that no two neighbours can saturate."""
  rows = xp.pad(kernel_IO, ((0, len(kernel_IO) % 2), (0, 0))).reshape(-1, 2, kernel_IO.shape[1])
  pairs_O = xp.maximum(xp.maximum(rows, 0).sum(axis=1), -xp.minimum(rows, 0).sum(axis=1)).max(axis=0)
  # Rounding may raise each of the two by a half.
  return xp.maximum(xp.abs(kernel_IO).max(axis=0) / 127, pairs_O / (PAIR_LIMIT - 1))


def rounded(x_TI: jax.Array, kernel_IO: jax.Array, matrix: str) -> tuple[jax.Array, jax.Array]:
  """Rounds both factors of a product as int8 does; the gradient is that without rounding (straight-through).

  The range of the input is that of this batch, where an export has that of its calibration texts.

  Args:
    x_TI: the input [tokens, in].
    kernel_IO: the matrix [in, out].
    matrix: its name in a layer, such as "query".

  Returns:
    the factors, of the dtypes of the arguments. With smoothing, their product alone is that of the arguments.
  """
  x, kernel = x_TI.astype(jnp.float32), kernel_IO.astype(jnp.float32)
  if matrix in _PLACES:
    x_I, w_I = jnp.abs(x).max(axis=0), jnp.abs(kernel).max(axis=1)
    s_I = jax.lax.stop_gradient(smoothing(x_I, w_I, SMOOTHING[_PLACES[matrix]], jnp))
    x, kernel = x / s_I[None, :], kernel * s_I[:, None]
  low, high = jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 1e-6)
  scale = (high - low) / 255
  zero = jnp.rint(-low / scale)
  x_bytes = jnp.clip(jnp.rint(x / scale) + zero, 0, 255)
  scale_O = jnp.maximum(column_scales(kernel, jnp), 1e-12)[None, :]
  return (
    _straight_through(x, (x_bytes - zero) * scale).astype(x_TI.dtype),
    _straight_through(kernel, jnp.rint(kernel / scale_O) * scale_O).astype(kernel_IO.dtype),
  )


def _straight_through(exact, rounded):
  return exact + jax.lax.stop_gradient(rounded - exact)
