"""The optimizers by hand in numpy or against optax's own, and what rules on paths do to them."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from albert_jax import AlbertConfig, model, paths
from albert_jax.errors import UserError
from albert_jax.tasks import pretrain
from albert_jax.training import optimizer, sharding, state
from albert_jax.training.checkpoint import Checkpoints
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.sharding import MeshConfig

# Named and shaped as the model's: two layers in one array, kernels of three axes.
SHAPES = {
  "embeddings/word/embedding": (7, 4),
  "attention/query/kernel": (2, 4, 2, 3),
  "attention/output/kernel": (2, 2, 3, 4),
  "ffn/up/kernel": (4, 5),
  "ffn/up/bias": (5,),
  "ffn/norm/scale": (4,),
}
LEAD = paths.unflatten({path: int(path.startswith("attention")) for path in SHAPES})
DECAYED = paths.unflatten({path: path.endswith(("kernel", "embedding")) for path in SHAPES})


def random_tree(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return paths.unflatten({path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()})


@pytest.fixture
def params():
  return random_tree(SHAPES)


def gradients(params, count):
  shapes = {path: p.shape for path, p in paths.flatten(params).items()}
  return [random_tree(shapes, seed) for seed in range(1, count + 1)]


def run(tx, params, grads, learning_rate=0.1):
  """Steps on given gradients.

  Returns:
    the last updates, the state, the parameters after each step.
  """
  opt, after = tx.init(params), []

  @jax.jit
  def step(params, opt, g):
    updates, opt = tx.update(g, opt, params, learning_rate=learning_rate)
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates), opt, updates

  for g in grads:
    params, opt, updates = step(params, opt, g)
    after.append(params)
  return updates, opt, after


def assert_close(actual, expected, rtol=2e-5, atol=1e-6):
  actual, expected = paths.flatten(actual), paths.flatten(expected)
  assert actual.keys() == expected.keys()
  for path in actual:
    np.testing.assert_allclose(actual[path], expected[path], rtol=rtol, atol=atol, err_msg=path)


def by_hand(params, grads, *, lamb, textbook):
  """Returns the update after `grads` at fixed `params`, by the formulas of lamb_optimizer.py and optimization.py."""
  norms = [np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(tree))) for tree in grads]

  def updated(path, p):
    m = v = 0
    for tree, norm in zip(grads, norms, strict=True):
      g = np.asarray(paths.flatten(tree)[path], np.float64) / max(1.0, norm)
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    if textbook:
      m, v = m / (1 - 0.9 ** len(grads)), v / (1 - 0.999 ** len(grads))
    update = m / (np.sqrt(v) + 1e-6)
    p = np.asarray(p, np.float64)
    if path.endswith(("kernel", "embedding")):
      update = update + 0.01 * p
      if lamb and path.startswith("attention"):
        return np.stack([u * np.linalg.norm(x) / np.linalg.norm(u) for u, x in zip(update, p, strict=True)])
      if lamb:
        update = update * np.linalg.norm(p) / np.linalg.norm(update)
    return update

  return jax.tree.map(updated, paths.names(params), params)


@pytest.mark.parametrize("name", ["lamb", "adamw"])
@pytest.mark.parametrize("textbook", [False, True])
def test_updates_are_those_of_the_formulas(name, textbook, params):
  grads = gradients(params, 3)
  tx = optimizer.make(OptimizerConfig(name=name, textbook=textbook), LEAD)
  updates, *_ = run(tx, params, grads, learning_rate=0.0)
  assert_close(updates, by_hand(params, grads, lamb=name == "lamb", textbook=textbook))


PLAIN = {
  "embeddings/word/embedding": (7, 4),
  "attention/output/kernel": (1, 130, 129),
  "ffn/up/kernel": (128, 140),
  "ffn/up/bias": (5,),
  "ffn/norm/scale": (4,),
}
PLAIN_DECAYED = paths.unflatten({path: path.endswith(("kernel", "embedding")) for path in PLAIN})
HIDDEN = paths.unflatten(
  {
    "embeddings/word/embedding": None,
    "attention/output/kernel": optax.contrib.MuonDimensionNumbers((0, 1), 2),
    "ffn/up/kernel": optax.contrib.MuonDimensionNumbers(),
    "ffn/up/bias": None,
    "ffn/norm/scale": None,
  }
)
THEIRS = {  # optax's own, at learning rate 1
  "adamw": lambda: optax.adamw(1.0, 0.9, 0.99, 1e-6, weight_decay=0.01, mask=PLAIN_DECAYED),
  "lion": lambda: optax.lion(1.0, 0.9, 0.99, weight_decay=0.01, mask=PLAIN_DECAYED),
  "muon": lambda: optax.contrib.muon(
    1.0, beta=0.9, adam_b1=0.9, adam_b2=0.99, eps=1e-6, consistent_rms=0.2, muon_weight_dimension_numbers=HIDDEN
  ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_it_is_optax(name):
  params, lead = random_tree(PLAIN), paths.unflatten(dict.fromkeys(PLAIN, 0))
  cfg = OptimizerConfig(name=name, textbook=True, b2=0.99, weight_decay=0.0 if name == "muon" else 0.01)
  grads = gradients(params, 3)
  ours, *_ = run(optimizer.make(cfg, lead), params, grads, learning_rate=0.0)
  theirs, *_ = run(optax.chain(optax.clip_by_global_norm(1.0), THEIRS[name]()), params, grads, learning_rate=0.0)
  assert_close(ours, jax.tree.map(jnp.negative, theirs))


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_decay_is_added_where_it_belongs(name, params):
  grads = gradients(params, 2)
  without, with_decay = (
    run(optimizer.make(OptimizerConfig(name=name, weight_decay=d), LEAD), params, grads, learning_rate=0.0)[0]
    for d in (0.0, 0.5)
  )
  assert_close(with_decay, jax.tree.map(lambda u, p, d: u + 0.5 * p * d, without, params, DECAYED))


STACKED = {
  "embeddings/word/embedding": (130, 4),
  "attention/query/kernel": (2, 128, 4, 32),
  "attention/output/kernel": (2, 4, 32, 130),
  "attention/output/bias": (2, 130),
  "ffn/up/kernel": (2, 2, 129, 131),
  "ffn/norm/scale": (2, 2, 4),
}


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_layers_in_one_array_move_as_the_plain_matrices_they_are(name):
  lead = {path: 1 if path.startswith("attention") else 2 if path.startswith("ffn") else 0 for path in STACKED}

  def plain(tree):
    """Returns every layer's weight under a name of its own, kernels with one axis in and one out."""
    flat = {}
    for path, x in paths.flatten(tree).items():
      for index in np.ndindex(x.shape[: lead[path]]):
        matrix = x[index]
        if path == "attention/query/kernel":
          matrix = matrix.reshape(128, 128)
        elif path == "attention/output/kernel":
          matrix = matrix.reshape(1, 128, 130)
        *parents, last = path.split("/")
        copy = "".join(map(str, index))
        # Only attention/output/kernel itself has its axes in that order, so one layer stays there.
        name = "/".join(parents) if index == (0,) or not index else "/".join([parents[0], "more" + copy, *parents[1:]])
        if path == "attention/output/kernel" and index == (1,):
          matrix = matrix.reshape(128, 130)
        flat[f"{name}/{last}"] = matrix
    return paths.unflatten(flat)

  # Sizes differ from layer to layer, or one norm over all of them would do.
  params = jax.tree.map(lambda p, n: p * jnp.linspace(1, 9, p.shape[0]).reshape(-1, *[1] * (p.ndim - 1)) if n else p,
                        random_tree(STACKED), paths.unflatten(lead))  # fmt: skip
  grads = gradients(params, 3)
  tx = optimizer.make(OptimizerConfig(name=name), paths.unflatten(lead))
  ours, *_ = run(tx, params, grads, learning_rate=0.0)
  alone = optimizer.make(OptimizerConfig(name=name), jax.tree.map(lambda _: 0, plain(params)))
  theirs, *_ = run(alone, plain(params), [plain(g) for g in grads], learning_rate=0.0)
  assert_close(plain(ours), theirs, rtol=1e-3 if name == "muon" else 1e-4, atol=1e-5)


def test_a_parameter_that_is_all_zero_moves(params):
  params["ffn"]["up"]["kernel"] = jnp.zeros((4, 5))
  updates, *_ = run(optimizer.make(OptimizerConfig(name="lamb"), LEAD), params, gradients(params, 1))
  assert jnp.isfinite(updates["ffn"]["up"]["kernel"]).all()
  assert updates["ffn"]["up"]["kernel"].any()


# The running mean of the parameters.


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_the_running_mean_is_the_weighted_mean_of_the_parameters(name, params):
  cfg = OptimizerConfig(name=name, ema=0.9)
  tx = optimizer.make(cfg, LEAD)
  assert_close(optimizer.averaged(cfg, tx.init(params), params), params, rtol=0, atol=0)
  _, opt, after = run(tx, params, gradients(params, 4))
  weights = 0.1 * 0.9 ** np.arange(4)[::-1]
  expected = jax.tree.map(lambda *ps: sum(w * p for w, p in zip(weights, ps, strict=True)) / weights.sum(), *after)
  assert_close(jax.jit(functools.partial(optimizer.averaged, cfg))(opt, after[-1]), expected)


def test_the_running_mean_changes_no_step(params):
  without, with_mean = (
    run(optimizer.make(OptimizerConfig(ema=ema), LEAD), params, gradients(params, 3))[2][-1] for ema in (0.0, 0.9)
  )
  assert_close(without, with_mean, rtol=0, atol=0)
  assert optimizer.averaged(OptimizerConfig(), (), params) is params


# Rules on paths.


@pytest.mark.parametrize(
  ("name", "pattern"),
  [(name, "^embeddings/") for name in optimizer.OPTIMIZERS]
  + [(name, "kernel|embedding|norm") for name in ("lamb", "muon")]
  + [("muon", "^(attention|ffn)/.*kernel"), ("lamb", "bias|norm")],
)
def test_what_is_frozen_stays_bit_for_bit(name, pattern, params):
  cfg = OptimizerConfig(name=name, freeze=pattern, ema=0.9, weight_decay=0.5)
  tx = optimizer.make(cfg, LEAD)
  _, opt, after = run(tx, params, gradients(params, 3))
  mean = paths.flatten(optimizer.averaged(cfg, opt, after[-1]))
  before, after = paths.flatten(params), paths.flatten(after[-1])
  frozen = set(paths.flatten(paths.first_match(((pattern, True), (".*", False)), params)).items())
  for path, is_frozen in frozen:
    assert np.array_equal(before[path], after[path]) == is_frozen, path
    assert np.array_equal(before[path], mean[path]) == is_frozen, path
    assert any(slot.endswith(path) for slot in paths.flatten(opt)) == (not is_frozen), path


def test_what_is_frozen_has_no_part_in_the_norm_to_clip_by(params):
  grads = gradients(params, 1)
  tx = optimizer.make(OptimizerConfig(name="adamw", eps=1.0, freeze="^embeddings/"), LEAD)
  expected, *_ = run(tx, params, grads)
  grads[0]["embeddings"]["word"]["embedding"] *= jnp.nan
  assert_close(run(tx, params, grads)[0], expected)


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_rates_are_factors_on_the_update(name, params):
  grads = gradients(params, 2)
  plain, *_ = run(optimizer.make(OptimizerConfig(name=name), LEAD), params, grads, learning_rate=0.0)
  cfg = OptimizerConfig(name=name, rates="^embeddings/=0.1,bias$=2,^ffn/=0.5")
  scaled, *_ = run(optimizer.make(cfg, LEAD), params, grads, learning_rate=0.0)
  factor = {"embeddings/word/embedding": 0.1, "ffn/up/bias": 2.0, "ffn/up/kernel": 0.5, "ffn/norm/scale": 0.5}
  expected = {path: u * factor.get(path, 1.0) for path, u in paths.flatten(plain).items()}
  assert_close(scaled, paths.unflatten(expected))


@pytest.mark.parametrize("field", ["freeze", "rates"])
def test_a_pattern_that_matches_nothing_is_an_error_that_lists_the_parameters(field):
  cfg = OptimizerConfig(**{field: "^embedings/" + ("=0.1" if field == "rates" else "")})
  with pytest.raises(UserError, match=rf"optimizer\.{field}: .*embedings/(.|\n)*embeddings/word/embedding"):
    optimizer.make(cfg, LEAD)


def test_a_rate_of_what_is_frozen_is_an_error():
  with pytest.raises(UserError, match=r"rates=.*: '\^embeddings/' matches only parameters that stay as they are"):
    optimizer.make(OptimizerConfig(freeze="^embeddings/", rates="bias$=2,^embeddings/=0.5"), LEAD)
  for rates in ("(^embeddings/|bias$)=2", "^(?!embeddings/)=2"):  # Also of others, or of all others.
    optimizer.make(OptimizerConfig(freeze="^embeddings/", rates=rates), LEAD)


def test_freezing_everything_is_an_error():
  with pytest.raises(UserError, match="nothing is left to train"):
    optimizer.make(OptimizerConfig(freeze="/"), LEAD)


# Looking at it.


def test_diagnostics(params):
  grads = gradients(params, 1)
  updates, opt, after = run(optimizer.make(OptimizerConfig(name="lamb"), LEAD), params, grads)
  numbers = optimizer.diagnostics(opt, params, updates, 0.1)
  moved = optax.tree.norm(jax.tree.map(jnp.subtract, after[0], params))
  np.testing.assert_allclose(numbers["update_ratio"], moved / optax.tree.norm(params), rtol=1e-4)
  unscaled, *_ = run(optimizer.make(OptimizerConfig(name="adamw"), LEAD), params, grads)
  ratios = []
  for path, lead in paths.flatten(LEAD).items():
    if paths.flatten(DECAYED)[path]:
      u, p = (np.asarray(paths.flatten(tree)[path]) for tree in (unscaled, params))
      layers = zip(u, p, strict=True) if lead else [(u, p)]
      ratios += [np.linalg.norm(p) / np.linalg.norm(u) for u, p in layers]
  assert len(ratios) == 6
  for name, expected in {"min": min(ratios), "mean": np.mean(ratios), "max": max(ratios)}.items():
    np.testing.assert_allclose(numbers[f"trust_ratio_{name}"], expected, rtol=1e-5)
  _, opt, _ = run(optimizer.make(OptimizerConfig(name="lion"), LEAD), params, grads)
  assert set(optimizer.diagnostics(opt, params, updates, 0.1)) == {"update_ratio"}


# Mistakes.


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "adam"}, r"optimizer\.name='adam' is unknown; use one of adamw, lamb, lion, muon; did you mean adamw"),
    ({"schedule": "linear"}, r"optimizer\.schedule='linear' is unknown; use one of constant, cosine, "),
    ({"scale_with_batch": "square"}, r"unknown; use one of linear, none, sqrt"),
    ({"learning_rate": 0.0}, r"optimizer\.learning_rate=0\.0 must be from 1e-30 to 1e3"),
    ({"learning_rate": 1e-50}, "must be from 1e-30 to 1e3"),
    ({"learning_rate": float("nan")}, "must be from 1e-30 to 1e3"),
    ({"final_rate": 1.5}, "must be from 0 to 1"),
    ({"final_rate": 0.1, "schedule": "constant"}, r"no end to decay to; set optimizer\.final_rate=0"),
    ({"decay_share": 0.0}, "must be above 0 and up to 1"),
    ({"decay_power": 0.0}, "must be above 0"),
    ({"decay_share": 0.3}, r"decay_share=0\.3 has no effect with optimizer\.schedule='polynomial'; it is for wsd"),
    ({"decay_power": 2.0, "schedule": "cosine"}, "has no effect with .*; it is for polynomial, wsd"),
    ({"reference_batch": 256}, "has no effect with .*; it is for sqrt, linear"),
    ({"weight_decay": -0.1}, "must be from 0 to 1e3"),
    ({"b1": 1.0}, "must be from 0 to 0.9999999"),
    ({"b2": -0.1}, "must be from 0 to 0.9999999"),
    ({"b2": 1 - 1e-12}, "must be from 0 to 0.9999999"),
    ({"eps": 1e-50}, "must be from 1e-30 to 1e3"),
    ({"clip_norm": 0.0}, "inf is for no clipping"),
    ({"ema": 1.0}, "must be from 0 to 0.9999999"),
    ({"reference_batch": 0}, "must be 1 or more"),
    ({"warmup_steps": -2}, "must be 0 or more, or -1 for a tenth of the run"),
    ({"rewarm_from": -1}, "must be 0 or more"),
    ({"freeze": "("}, r"optimizer\.freeze: '\(' is not a regular expression"),
    ({"rates": "(=1"}, r"optimizer\.rates: '\(' is not a regular expression"),
    ({"rates": "ffn"}, r"'ffn' must be PATTERN=FACTOR"),
    ({"rates": "ffn=0"}, "for optimizer.freeze"),
    ({"rates": "ffn=1e-50"}, "a factor from 1e-30 to 1e3"),
    ({"rates": "ffn=inf"}, "a factor from 1e-30 to 1e3"),
    ({"rates": "ffn=half"}, "must be PATTERN=FACTOR"),
    ({"rates": "=1"}, "must be PATTERN=FACTOR"),
  ],
)
def test_a_field_that_makes_no_sense_is_an_error(fields, message):
  with pytest.raises(UserError, match=message):
    OptimizerConfig(**fields)


def test_the_limits_are_numbers_of_float32():
  assert np.float32(optimizer.SMALLEST) > np.finfo(np.float32).tiny
  assert np.float32(optimizer.NEAR_ONE) < 1


def test_every_number_is_checked():
  numbers = {name for name, value in vars(OptimizerConfig()).items() if type(value) in (int, float)}
  assert numbers == set(optimizer.RANGES)


def test_no_clipping(params):
  grads = gradients(params, 1)

  def update(clip_norm):
    return run(optimizer.make(OptimizerConfig(name="adamw", eps=1.0, clip_norm=clip_norm), LEAD), params, grads)[0]

  assert_close(update(float("inf")), update(1e9), rtol=0, atol=0)
  assert optax.tree.norm(update(0.01)) < 0.5 * optax.tree.norm(update(float("inf")))


# With the model, on a mesh.

CFG = AlbertConfig(
  vocab_size=64, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
  max_position_embeddings=16, initializer_range=0.1,
)  # fmt: skip
RATES = {"lamb": 0.02, "adamw": 0.01, "lion": 0.002, "muon": 0.01}


def small_batch(rows=16, length=12, slots=3):
  rng = np.random.default_rng(0)
  return {
    "input_ids": rng.integers(5, CFG.vocab_size, (rows, length)).astype(np.int32),
    "attention_mask": np.ones((rows, length), np.int32),
    "token_type_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    "mlm_positions": rng.integers(0, length, (rows, slots)).astype(np.int32),
    "mlm_labels": rng.integers(5, CFG.vocab_size, (rows, slots)).astype(np.int32),
    "mlm_weights": np.ones((rows, slots), np.float32),
    "sop_label": rng.integers(0, 2, rows).astype(np.int32),
    "sop_weight": np.ones(rows, np.float32),
  }


@pytest.fixture(scope="module")
def loss_and_gradients():
  batch = small_batch()

  def loss_of(params):
    sums = pretrain.sums(CFG, params, batch, None)
    return sum(c * sums[name][0] for name, c in pretrain.terms(1.0, 1.0, batch).items())

  return jax.jit(jax.value_and_grad(loss_of))


@pytest.fixture(scope="module")
def small_model():
  return model.init(CFG, jax.random.key(0))


@contextlib.contextmanager
def on_a_mesh(params, mesh_config, **fields):
  """

  Yields:
    the compiled update (state, gradients) -> state, the state, its shapes and its shardings.
  """
  cfg = OptimizerConfig(**fields)
  tx = optimizer.make(cfg, model.layer_axes(CFG, params))
  mesh = sharding.make_mesh(mesh_config, 16, jax.devices()[:4])
  abstract = state.abstract(lambda key: params, tx, jax.random.key(0))
  shardings = sharding.shardings(mesh, abstract, mesh_config.zero1)

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
  def update(train_state, grads):
    updates, opt = tx.update(grads, train_state["opt"], train_state["params"], learning_rate=cfg.learning_rate)
    params = jax.tree.map(lambda p, u: p - cfg.learning_rate * u, train_state["params"], updates)
    return {"step": train_state["step"] + 1, "params": params, "opt": opt}

  with jax.set_mesh(mesh):
    yield update, state.from_params(params, tx, shardings), abstract, shardings


@pytest.mark.parametrize(
  "name", [name if name == "lamb" else pytest.param(name, marks=pytest.mark.slow) for name in optimizer.OPTIMIZERS]
)
def test_it_learns_on_four_devices_with_split_slots(name, small_model, loss_and_gradients):
  with on_a_mesh(small_model, MeshConfig(zero1=True), name=name, learning_rate=RATES[name], ema=0.5) as made:
    update, train_state, abstract, shardings = made
    losses = []
    for _ in range(30):
      loss, grads = loss_and_gradients(train_state["params"])
      train_state = update(train_state, grads)
      losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.5, losses
    shapes, expected = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (train_state, abstract))
    assert shapes == expected
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), train_state, shardings))
    assert update._cache_size() == 1
  split = [path for path, place in paths.flatten(shardings["opt"]).items() if not place.is_fully_replicated]
  assert any(path.endswith("/ffn/up/kernel") for path in split)


def test_slots_are_split_as_their_parameters_are():
  kernel = "attention/query/kernel"
  for name, kinds in {"muon": ("mu", "ema")}.items():
    tx = optimizer.make(OptimizerConfig(name=name, ema=0.5), model.layer_axes(CFG, model.shapes(CFG)))
    abstract = state.abstract(functools.partial(model.init, CFG), tx, jax.random.key(0))
    shardings = sharding.shardings(sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), 8), abstract)
    slots = {path: place.spec for path, place in paths.flatten(shardings["opt"]).items()}
    for kind in kinds:
      (spec,) = (spec for path, spec in slots.items() if path.endswith(f"/{kind}/{kernel}"))
      assert spec == shardings["params"]["attention"]["query"]["kernel"].spec == P("fsdp", "tensor", None)


@pytest.mark.parametrize("name", [pytest.param("lion", marks=pytest.mark.slow), "muon"])
def test_a_state_is_saved_and_restored_whole(name, small_model, tmp_path):
  made = on_a_mesh(small_model, MeshConfig(zero1=True), name=name, ema=0.5, freeze="^embeddings/")
  with made as (_, train_state, abstract, shardings):
    train_state = jax.tree.map(lambda x: x + 1, train_state)
    before = paths.flatten(jax.device_get(train_state))
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints", keep=1)) as saved:
      saved.save(1, train_state)
      after = paths.flatten(jax.device_get(saved.restore(abstract, shardings)))
  assert before.keys() == after.keys()
  for path, value in before.items():
    np.testing.assert_array_equal(value, after[path], err_msg=path)


def test_moments_from_elsewhere(params):
  moments = [jax.tree.map(lambda p, k=k: jnp.full(p.shape, k), params) for k in (0.5, 0.25)]
  tx = optimizer.make(OptimizerConfig(freeze="^embeddings/"), LEAD)
  opt = optimizer.with_moments(tx.init(params), *moments)
  assert jax.tree.structure(opt) == jax.tree.structure(tx.init(params))
  first_values = {path: float(x.ravel()[0]) for path, x in paths.flatten(opt).items() if path.endswith("ffn/up/bias")}
  assert sorted(first_values.values()) == [0.25, 0.5]
  for name in ("lion", "muon"):
    with pytest.raises(UserError, match=r"only optimizer\.name=lamb and adamw keep"):
      optimizer.with_moments(optimizer.make(OptimizerConfig(name=name), LEAD).init(params), *moments)
