"""The step on many devices: the same numbers on every mesh, and what the compiled code sends between them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from albert_jax import AlbertConfig, UserError, model, paths
from albert_jax.planning import collectives
from albert_jax.tasks import pretrain
from albert_jax.training import optimizer, sharding, state
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.schedule import schedule
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.step import make_train_step

CFG = AlbertConfig(
  vocab_size=64, embedding_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32,
  max_position_embeddings=16, initializer_range=0.1,
)  # fmt: skip
MESHES = {
  "data": MeshConfig(),
  "zero1": MeshConfig(zero1=True),
  "fsdp": MeshConfig(data=4, fsdp=2),
  "tensor": MeshConfig(data=4, tensor=2),
  "all three": MeshConfig(data=2, fsdp=2, tensor=2),
}


def batches(count, rows=16, length=12, slots=3):
  rng = np.random.default_rng(0)
  for _ in range(count):
    yield {
      "input_ids": rng.integers(5, CFG.vocab_size, (rows, length)).astype(np.int32),
      "attention_mask": (np.arange(length)[None] < rng.integers(4, length + 1, (rows, 1))).astype(np.int32),
      "token_type_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
      "mlm_positions": rng.integers(0, 4, (rows, slots)).astype(np.int32),
      "mlm_labels": rng.integers(5, CFG.vocab_size, (rows, slots)).astype(np.int32),
      # Rows differ in how much they count, so that means over parts are not the mean over the whole.
      "mlm_weights": (rng.random((rows, slots)) < rng.random((rows, 1))).astype(np.float32),
      "sop_label": rng.integers(0, 2, rows).astype(np.int32),
      "sop_weight": (rng.random(rows) < 0.7).astype(np.float32),
    }


def make(cfg, mesh_config, devices=None, accumulate=1):
  """

  Returns:
    mesh, step, abstract state, its shardings, function that creates the state.
  """
  mesh = sharding.make_mesh(mesh_config, 16, devices)
  opt = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
  key = jax.random.key(0)
  init = functools.partial(model.init, cfg)
  tx = optimizer.make(opt, model.layer_axes(cfg, jax.eval_shape(init, key)))
  sums, terms = functools.partial(pretrain.sums, cfg), functools.partial(pretrain.terms, 1.0, 1.0)
  abstract = state.abstract(init, tx, key)
  shardings = sharding.shardings(mesh, abstract, mesh_config.zero1)
  step = make_train_step(sums, terms, tx, jax.random.key(1), mesh, shardings, accumulate)
  return mesh, step, abstract, shardings, lambda: state.create(init, tx, key, shardings)


def test_the_step_holds_no_array_of_a_device():
  # On a GPU it would be copied to the host to become a constant of the program, and the training loop forbids copies.
  cfg = dataclasses.replace(CFG, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
  mesh, step, abstract, _, _ = make(cfg, MESHES["data"])
  with jax.set_mesh(mesh):
    traced = step.trace(abstract, next(batches(1)), np.float32(0.01))
  assert not [x for x in traced.jaxpr.consts if isinstance(x, jax.Array)]


def losses(cfg, mesh_config, devices=None, accumulate=1, count=10):
  mesh, step, _, shardings, create = make(cfg, mesh_config, devices, accumulate)
  with jax.set_mesh(mesh):
    train_state, numbers = create(), []
    rate = schedule(OptimizerConfig(learning_rate=0.01, warmup_steps=2), 30)
    for number, batch in enumerate(batches(count)):
      learning_rate = sharding.everywhere(mesh, float(rate(number)))
      train_state, (sums, scalars) = step(train_state, sharding.global_batch(mesh, batch), learning_rate)
      numbers.append([float(sums["loss"][0]), float(scalars["grad_norm"])])
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), train_state, shardings))
  assert step._cache_size() == 1, "the step was compiled more than once"
  return np.array(numbers)


@pytest.fixture(scope="module")
def on_one_device():
  return losses(CFG, MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize(
  "mesh", [name if name == "all three" else pytest.param(name, marks=pytest.mark.slow) for name in MESHES]
)
def test_every_mesh_gives_the_same_losses(mesh, on_one_device):
  np.testing.assert_allclose(losses(CFG, MESHES[mesh]), on_one_device, rtol=1e-5)


@pytest.mark.parametrize(("devices", "accumulate"), [pytest.param(1, 4, marks=pytest.mark.slow), (8, 2)])
def test_micro_batches_give_the_same_losses(devices, accumulate, on_one_device):
  np.testing.assert_allclose(
    losses(CFG, MeshConfig(), jax.devices()[:devices], accumulate), on_one_device, rtol=1e-5
  )  # fmt: skip


@pytest.mark.slow
def test_dropout_does_not_depend_on_the_mesh():
  cfg = dataclasses.replace(CFG, num_hidden_layers=1, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
  np.testing.assert_allclose(
    losses(cfg, MeshConfig(), count=3), losses(cfg, MeshConfig(), jax.devices()[:1], count=3), rtol=1e-5
  )


def compiled(cfg, mesh_config, accumulate=1):
  mesh, step, abstract, shardings, _ = make(cfg, mesh_config, accumulate=accumulate)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  rows = jax.sharding.NamedSharding(mesh, sharding.BATCH)
  batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for k, x in next(batches(1)).items()}
  with jax.set_mesh(mesh):
    return step.lower(abstract, batch, sharding.everywhere(mesh, 0.1)).compile().as_text()


@pytest.mark.parametrize(
  ("dtype", "accumulate"),
  [
    ("bfloat16", 2),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (("float32", 1), ("float32", 2), ("bfloat16", 1))),
  ],
)
def test_one_all_reduce_of_float32_gradients_a_step(dtype, accumulate):
  cfg = dataclasses.replace(CFG, dtype=dtype)
  transfers = collectives(compiled(cfg, MeshConfig(), accumulate))
  parameters = 4 * model.param_count(model.shapes(cfg))
  large = [(where, kind, size) for where, kind, size in transfers if size > 100]
  assert [kind for _, kind, _ in large] == ["all-reduce"], transfers
  assert large[0][0].startswith("ENTRY"), "the gradient is summed over devices inside a loop"
  assert parameters <= large[0][2] <= parameters + 100


def test_weights_are_gathered_once_a_step_under_fsdp():
  transfers = collectives(compiled(CFG, MeshConfig(data=1, fsdp=8)))
  gathered = [size for where, kind, size in transfers if kind == "all-gather" and where.startswith("ENTRY")]
  assert sum(gathered) <= 4 * model.param_count(model.shapes(CFG)) * 2  # Weights in, and norms' helpers; not per layer.
  assert not [where for where, _, size in transfers if size > 100 and not where.startswith("ENTRY")]


def test_state_is_split_where_it_should_be():
  *_, shardings, _ = make(CFG, MeshConfig(data=2, fsdp=2, tensor=2))
  attention, ffn = shardings["params"]["attention"], shardings["params"]["ffn"]
  assert tuple(attention["query"]["kernel"].spec) == ("fsdp", "tensor", None)
  assert tuple(ffn["down"]["kernel"].spec) == ("tensor", "fsdp")
  assert shardings["params"]["sop"]["dense"]["bias"].is_fully_replicated

  *_, shardings, _ = make(CFG, MeshConfig(zero1=True))
  slots = paths.flatten(shardings["opt"])
  assert tuple(slots["1/m/ffn/up/kernel"].spec) == (None, "data")
  assert shardings["params"]["ffn"]["up"]["kernel"].is_fully_replicated


def test_a_state_goes_on_with_the_moments_of_another_run():
  params = model.init(CFG, jax.random.key(0))
  tx = optimizer.make(OptimizerConfig(), model.layer_axes(CFG, params))
  m, v = (jax.tree.map(lambda p, k=k: np.full(p.shape, k, np.float32), params) for k in (0.5, 0.25))
  mesh = sharding.make_mesh(MeshConfig(), 16)
  shardings = sharding.shardings(mesh, jax.eval_shape(lambda: state.from_params(params, tx, None)))
  train_state = state.from_params(params, tx, shardings, {"step": 7, "m": m, "v": v})
  slots = paths.flatten(train_state["opt"])
  assert int(train_state["step"]) == 7
  assert float(slots["1/m/pooler/bias"][0]) == 0.5
  assert float(slots["1/v/pooler/bias"][0]) == 0.25


def test_what_does_not_divide_is_an_error():
  cfg = dataclasses.replace(CFG, hidden_size=12, num_attention_heads=3)
  with pytest.raises(UserError, match=r"mesh\.tensor=2 must divide heads.*attention/.*has shape"):
    make(cfg, MeshConfig(tensor=2))
