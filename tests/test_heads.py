"""The loss that all heads share, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.tasks.heads import cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32) * 4
LABELS = np.random.default_rng(1).integers(0, 7, (3, 5)).astype(np.int32)
WEIGHTS = np.random.default_rng(2).integers(0, 3, (3, 5)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_hits_and_gradient_are_those_of_the_definition(smoothing):
  def defined(logits):
    target = (1 - smoothing) * jax.nn.one_hot(LABELS, 7) + smoothing / 7
    return -jnp.sum(WEIGHTS[..., None] * target * jax.nn.log_softmax(logits))

  (loss, weight), (hits, _) = cross_entropy(LOGITS, LABELS, WEIGHTS, smoothing)
  np.testing.assert_allclose(loss, defined(LOGITS), rtol=1e-6)
  assert weight == WEIGHTS.sum()
  assert hits == (WEIGHTS * (LOGITS.argmax(-1) == LABELS)).sum()
  gradient = jax.grad(lambda x: cross_entropy(x, LABELS, WEIGHTS, smoothing)[0][0])(LOGITS)
  np.testing.assert_allclose(gradient, jax.grad(defined)(LOGITS), atol=1e-6)


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_that_does_not_exist_makes_the_loss_nan_and_is_no_hit(label):
  labels = LABELS.copy()
  labels[0, 0] = label
  (loss, _), (hits, _) = cross_entropy(LOGITS, labels, np.ones((3, 5), np.float32))
  assert np.isnan(loss)
  assert hits == (LOGITS.argmax(-1) == labels).sum()


def test_large_logits_do_not_overflow():
  (loss, _), _ = cross_entropy(np.float32([[1e30, 0.0]]), np.int32([1]), np.float32([1]))
  assert loss == np.float32(1e30)
