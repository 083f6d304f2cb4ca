"""Properties of the model: each would catch a bug that shapes alone let through."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from albert_jax import VARIANTS, AlbertConfig, UserError, apply, init, model, param_count, paths
from albert_jax.model import attention, layers
from albert_jax.model.albert import structure
from albert_jax.model.config import SHARE
from albert_jax.tasks import pretrain

SMALL = AlbertConfig(
  vocab_size=50, embedding_size=12, hidden_size=16, num_hidden_layers=6, num_attention_heads=4, intermediate_size=24,
  max_position_embeddings=16, initializer_range=0.2,
)  # fmt: skip
COUNTS = {"base": 11_813_810, "large": 17_847_474, "xlarge": 59_021_490, "xxlarge": 223_158_450}
ENCODERS = {"base": 11_683_584, "large": 17_683_968, "xlarge": 58_724_864, "xxlarge": 222_595_584}


def small(**fields):
  return dataclasses.replace(SMALL, **fields)


def make_batch(cfg, rows=3, length=10, tokens=(10, 7, 4), seed=0):
  rng = np.random.default_rng(seed)
  slots = 3
  return {
    "input_ids": jnp.asarray(rng.integers(5, cfg.vocab_size, (rows, length)), jnp.int32),
    "attention_mask": jnp.asarray(np.arange(length)[None] < np.array(tokens)[:, None], jnp.int32),
    "token_type_ids": jnp.asarray(rng.integers(0, cfg.type_vocab_size, (rows, length)), jnp.int32),
    "mlm_positions": jnp.asarray(rng.integers(0, min(tokens), (rows, slots)), jnp.int32),
    "mlm_labels": jnp.asarray(rng.integers(5, cfg.vocab_size, (rows, slots)), jnp.int32),
    "mlm_weights": jnp.asarray(rng.integers(0, 2, (rows, slots)), jnp.float32).at[:, 0].set(1),
    "sop_label": jnp.asarray(rng.integers(0, 2, rows), jnp.int32),
    "sop_weight": jnp.ones(rows),
  }


def loss_of(cfg, params, batch, key=None):
  sums = pretrain.sums(cfg, params, batch, key)
  return sum(c * sums[name][0] for name, c in pretrain.terms(1.0, 1.0, batch).items())


@functools.partial(jax.jit, static_argnums=0)
def grads_of(cfg, params, batch, key=None):
  return jax.grad(lambda params: loss_of(cfg, params, batch, key))(params)


def assert_trees_close(a, b, **tolerance):
  for path, x in paths.flatten(a).items():
    np.testing.assert_allclose(x, paths.flatten(b)[path], err_msg=path, **tolerance)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_originals(name):
  shapes = model.shapes(VARIANTS[name])
  assert param_count(shapes) == COUNTS[name]
  assert param_count({part: shapes[part] for part in shapes if part not in ("mlm", "sop")}) == ENCODERS[name]


def test_depth_does_not_change_the_count():
  assert len({param_count(model.shapes(small(num_hidden_layers=n))) for n in (1, 2, 12, 48)}) == 1


@pytest.mark.parametrize(
  ("share", "attention", "ffn"), [("all", 1, 1), ("attention", 1, 6), ("ffn", 6, 1), ("none", 6, 6)]
)
def test_share_modes_have_the_right_counts(share, attention, ffn):
  shared, many = model.shapes(SMALL), model.shapes(small(share=share))
  assert param_count(many["attention"]) == attention * param_count(shared["attention"])
  assert param_count(many["ffn"]) == ffn * param_count(shared["ffn"])


def test_layers_that_share_matrices_alone_have_their_own_biases_and_norms():
  counts = [param_count(model.shapes(AlbertConfig(share=share))) for share in ("all", "matrices")]
  norms, biases = 2 * 2 * 768, 3 * 768 + 768 + 3072 + 768
  assert counts[1] - counts[0] == 11 * (norms + biases)
  shapes = paths.flatten(model.shapes(small(share="matrices", num_hidden_groups=2)))
  assert shapes["attention/query/kernel"].shape[0] == 2
  assert shapes["attention/query/bias"].shape[0] == shapes["ffn/norm/scale"].shape[0] == 6


def test_bert_base_has_berts_count():
  shapes = model.shapes(VARIANTS["bert_base"])
  assert param_count({part: shapes[part] for part in shapes if part not in ("mlm", "sop")}) == 109_482_240


def of_layer(cfg, name, part, n):
  """Returns the module of layer n: of each parameter the layer's own copy, or its group's."""

  def pick(path, value):
    copies = cfg.copies(name, path[-1].key)
    return value if copies == 1 else value[n if copies == cfg.num_hidden_layers else cfg.group_of(n)]

  graphdef, state = layers.nnx.split(part)
  picked = jax.tree_util.tree_map_with_path(pick, layers.nnx.to_pure_dict(state))
  return layers.nnx.merge(graphdef, picked)


def by_hand(cfg, params, batch, key=None):
  """Returns the sequence output by a plain loop over layers, one copy of the weights after the other.

  It runs operation by operation: all models share these, and compiling a loop of layers takes seconds.
  """
  module = nnx.merge(structure(cfg, model.OPTIONAL)[0], params)
  key_embed, key_layers = layers.split_keys(key, 2)
  x = module.embeddings(batch["input_ids"], batch["token_type_ids"], None, key_embed)
  x = module.projection(x) if module.projection is not None else x
  attend, _ = attention.make(cfg, batch, drops=key is not None)
  for n, key_n in enumerate(layers.split_keys(key_layers, cfg.num_hidden_layers)):
    for i, key_i in enumerate(layers.split_keys(key_n, cfg.inner_group_num)):
      parts = []
      for name in ("attention", "ffn"):
        part = of_layer(cfg, name, getattr(module, name), n)
        parts.append(layers.at(part, i) if cfg.inner_group_num > 1 else part)
      key_attention, key_ffn = layers.split_keys(key_i, 2)
      x = parts[1](parts[0](x, attend, key_attention), key_ffn)
  return x


def slow(values):
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
  "fields",
  [
    {"share": "all"},
    {"share": "none"},
    {"share": "attention", "num_hidden_groups": 2, "hidden_dropout_prob": 0.3},
    {"share": "ffn", "num_hidden_groups": 3, "inner_group_num": 2},
    {"share": "matrices", "unshared_ends": 1},
    {"share": "all", "layer_rank": 2},
    *slow({"share": share} for share in SHARE if share not in ("all", "none")),
    *slow({"share": share, "num_hidden_groups": 2} for share in SHARE),
    *slow([
      {"share": "all", "num_hidden_groups": 2, "inner_group_num": 2},
      {"num_hidden_layers": 1, "share": "none"},
      {"embedding_size": 16},
      {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3},
    ]),
  ],
  ids=str,
)  # fmt: skip
def test_scan_equals_a_loop(fields):
  cfg = small(**{"num_hidden_layers": 3, **fields})
  params, batch = init(cfg, jax.random.key(0)), make_batch(cfg)
  key = jax.random.split(jax.random.key(1), 3)
  expected = by_hand(cfg, params, batch, key if cfg.hidden_dropout_prob else None)
  # Layers are laid out otherwise where a key says that there will be a gradient.
  for key_or_none in (key,) if cfg.hidden_dropout_prob else (None, key):
    np.testing.assert_allclose(apply(cfg, params, batch, key_or_none)["sequence_output"], expected, atol=2e-6)


@pytest.mark.parametrize("share", ["all", *slow(share for share in SHARE if share != "all")])
def test_gradients_do_not_depend_on_how_layers_are_laid_out(share):
  cfg = small(num_hidden_layers=3, share=share)
  params, batch = init(cfg, jax.random.key(0)), make_batch(cfg)
  plain, laid_out = (grads_of(cfg, params, batch, key) for key in (None, jax.random.key(0)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, laid_out)


def test_groups_are_the_originals():
  ends = small(num_hidden_layers=9, num_hidden_groups=2, unshared_ends=2)
  assert [ends.group_of(n) for n in range(9)] == [0, 1, 2, 2, 2, 3, 3, 4, 5]
  cfg = small(num_hidden_layers=12, num_hidden_groups=5)
  assert [cfg.group_of(n) for n in range(12)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]


def test_padding_has_no_influence_and_no_gradient():
  params, batch = init(SMALL, jax.random.key(0)), make_batch(SMALL)
  real = batch["attention_mask"] > 0
  other = {**batch, "input_ids": jnp.where(real, batch["input_ids"], 7)}
  a, b = (apply(SMALL, params, x)["sequence_output"] for x in (batch, other))
  np.testing.assert_array_equal(a[real], b[real])

  positions = params["embeddings"]["position"]["embedding"]
  longest = int(batch["attention_mask"].sum(1).max())
  short = {**batch, "attention_mask": batch["attention_mask"].at[:, longest - 2 :].set(0)}
  gradient = grads_of(SMALL, params, short)["embeddings"]["position"]["embedding"]
  assert gradient.shape == positions.shape
  assert (gradient[: longest - 2] != 0).any()
  assert (gradient[longest - 2 :] == 0).all()


def test_a_row_without_any_token_is_finite():
  params, batch = init(SMALL, jax.random.key(0)), make_batch(SMALL)
  batch["attention_mask"] = batch["attention_mask"].at[2].set(0)
  assert all(jnp.isfinite(x).all() for x in apply(SMALL, params, batch).values())
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(grads_of(SMALL, params, batch)))


def test_packed_rows_compute_what_their_examples_do_alone():
  """Two examples of 6 and 4 tokens in one row, against a row each: outputs and loss are the same."""
  params, batch = init(SMALL, jax.random.key(0)), make_batch(SMALL, rows=2, length=6, tokens=(6, 4))
  flat = lambda x: jnp.concatenate([x[0], x[1, :4]])[None]  # noqa: E731
  packed = {
    "input_ids": flat(batch["input_ids"]),
    "attention_mask": jnp.ones((1, 10), jnp.int32),
    "token_type_ids": flat(batch["token_type_ids"]),
    "segment_ids": jnp.array([[1] * 6 + [2] * 4]),
    "position_ids": jnp.array([[*range(6), *range(4)]]),
    "cls_positions": jnp.array([[0, 6]]),
    "mlm_positions": (batch["mlm_positions"] + jnp.array([[0], [6]])).reshape(1, -1),
    "mlm_labels": batch["mlm_labels"].reshape(1, -1),
    "mlm_weights": batch["mlm_weights"].reshape(1, -1),
    "sop_label": batch["sop_label"][None],
    "sop_weight": batch["sop_weight"][None],
  }
  alone, packed_outputs = apply(SMALL, params, batch), apply(SMALL, params, packed)
  np.testing.assert_allclose(packed_outputs["sop_logits"][0], alone["sop_logits"], atol=1e-5)
  np.testing.assert_allclose(packed_outputs["sequence_output"][0], flat(alone["sequence_output"])[0], atol=1e-5)
  np.testing.assert_allclose(loss_of(SMALL, params, packed), loss_of(SMALL, params, batch), atol=1e-5)


@pytest.fixture(scope="module")
def kept_whole():
  """Returns a model that keeps all it computed forwards, what it takes to run it, and its gradients."""
  cfg = small(num_hidden_layers=3, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, remat="none")
  at = init(cfg, jax.random.key(0)), make_batch(cfg), jax.random.key(1)
  return cfg, at, grads_of(cfg, *at)


@pytest.mark.parametrize(
  "fields",
  [
    {"remat": "dots"},
    *slow([{"remat": "attention"}, {"remat": "full"}, {"scan_unroll": 2}, {"scan_unroll": 3, "remat": "full"}]),
  ],
  ids=str,
)
def test_how_the_backward_pass_computes_changes_nothing(fields, kept_whole):
  cfg, at, expected = kept_whole
  assert_trees_close(expected, grads_of(dataclasses.replace(cfg, **fields), *at), atol=1e-6, rtol=1e-5)


def test_remat_keeps_what_it_names():
  """Stacked over layers for the backward pass: with "dots" no scores, no activations; with "full" only inputs."""

  def kept(remat):
    cfg = small(remat=remat, num_hidden_layers=7)
    params, batch = init(cfg, jax.random.key(0)), make_batch(cfg)
    jaxpr = jax.make_jaxpr(jax.grad(lambda params: loss_of(cfg, params, batch)))(params)
    forward = next(_equations(jaxpr.jaxpr, "scan"))
    return sorted(var.aval.shape[1:] for var in forward.outvars if var.aval.ndim == 4)

  x, wide = (3, 10, 16), (3, 10, 24)
  assert kept("full") == [x]
  assert kept("attention") == [x] * 5
  assert kept("dots") == [x] * 7 + [wide]
  assert len(kept("none")) > 12


@pytest.mark.parametrize("is_transposed", [False, True])
def test_the_product_on_a_cpu_has_the_gradient_of_the_plain_one(is_transposed):
  rng = np.random.default_rng(0)
  tokens, kernel, d_y = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((30, 8), (8, 12), (30, 12)))
  kernel = kernel.T if is_transposed else kernel
  results = [
    jax.jit(lambda t, k, product=product: jax.vjp(lambda t, k: product(t, k, is_transposed), t, k)[1](d_y))(
      tokens, kernel
    )
    for product in (layers._product, layers._product_on_cpu)
  ]
  for plain, ours in zip(*results, strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_close_and_keeps_its_promises():
  params, batch = init(SMALL, jax.random.key(0)), make_batch(SMALL)
  half = small(dtype="bfloat16")
  a, b = apply(SMALL, params, batch), apply(half, params, batch)
  assert b["sequence_output"].dtype == jnp.bfloat16
  assert b["mlm_logits"].dtype == b["sop_logits"].dtype == jnp.float32
  np.testing.assert_allclose(a["sequence_output"], b["sequence_output"].astype(jnp.float32), atol=0.08)
  grads = grads_of(half, params, batch)
  assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_bfloat16_gradients_of_shared_weights_accumulate_in_float32(remat):
  """Summed over 64 layers in bfloat16, they would lose what each layer adds; and the compiled loop must carry float32.

  The weights are cast inside the scanned body. Cast outside, the reverse loop would carry a bfloat16 sum.
  """
  cfg = small(num_hidden_layers=64, dtype="bfloat16", remat=remat)
  params, batch = init(cfg, jax.random.key(0)), make_batch(cfg)
  jaxpr = jax.make_jaxpr(jax.grad(lambda params: loss_of(cfg, params, batch, jax.random.key(0))))(params)
  kernel = params["ffn"]["up"]["kernel"].shape
  # What is stacked over layers has one axis more, so an output of the kernel's own shape is carried; that of `down` is
  # turned, and so has this shape too.
  carried = [
    var.aval.dtype for scan in _equations(jaxpr.jaxpr, "scan") for var in scan.outvars if var.aval.shape == kernel
  ]
  assert carried == [jnp.float32, jnp.float32]


def _equations(jaxpr, name):
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from _equations(inner, name)


def test_without_a_key_nothing_is_dropped_and_with_one_something_is():
  cfg = small(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
  params, batch = init(cfg, jax.random.key(0)), make_batch(cfg)
  plain = [apply(cfg, params, batch)["sequence_output"] for _ in range(2)]
  np.testing.assert_array_equal(*plain)
  np.testing.assert_array_equal(plain[0], apply(SMALL, params, batch)["sequence_output"])
  a, b = (apply(cfg, params, batch, jax.random.key(n))["sequence_output"] for n in (1, 2))
  assert (a != plain[0]).mean() > 0.9
  assert (a != b).mean() > 0.9


def test_a_row_loses_the_same_whatever_the_rows_beside_it():
  cfg = small(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
  params, batch, key = init(cfg, jax.random.key(0)), make_batch(cfg), jax.random.key(1)
  whole = apply(cfg, params, batch, key)["sequence_output"]
  keys = jnp.stack([jax.random.fold_in(key, 2)])
  alone = apply(cfg, params, {name: x[2:] for name, x in batch.items()}, keys)["sequence_output"]
  np.testing.assert_allclose(alone[0], whole[2], atol=1e-6)


def test_one_layer_shared_by_all_may_be_used_fewer_times():
  params, batch = init(SMALL, jax.random.key(0)), make_batch(SMALL)
  fewer = dataclasses.replace(SMALL, num_hidden_layers=2)
  np.testing.assert_allclose(apply(fewer, params, batch)["sequence_output"], by_hand(fewer, params, batch), atol=2e-6)


@pytest.mark.parametrize("fields", [{}, pytest.param({"arch": "modern", "layer_rank": 2}, marks=pytest.mark.slow)])
def test_quantization_noise_is_small_only_in_training_and_lets_the_gradient_through(fields):
  cfg, exact = (small(quantization_noise=noise, num_hidden_layers=2, **fields) for noise in (True, False))
  params, batch, key = init(cfg, jax.random.key(0)), make_batch(cfg), jax.random.key(1)
  noisy, clean = (np.asarray(apply(c, params, batch, key)["sequence_output"]) for c in (cfg, exact))
  assert 1e-4 < np.linalg.norm(noisy - clean) / np.linalg.norm(clean) < 0.05
  np.testing.assert_array_equal(
    apply(cfg, params, batch)["sequence_output"], apply(exact, params, batch)["sequence_output"]
  )
  for a, b in zip(*(jax.tree.leaves(grads_of(c, params, batch, key)) for c in (cfg, exact)), strict=True):
    np.testing.assert_allclose(a, b, atol=0.1 * float(jnp.abs(b).max()) + 1e-6)


def test_dropout_rate_and_mean():
  x = layers.dropout(jnp.ones((10, 10_000)), 0.3, jax.random.split(jax.random.key(0), 10))
  assert abs(float((x == 0).mean()) - 0.3) < 0.01
  assert abs(float(x.mean()) - 1) < 0.01


def test_initialisation_is_truncated_at_two_deviations():
  params = init(small(hidden_size=64, intermediate_size=256, initializer_range=0.02), jax.random.key(0))
  kernel = np.asarray(params["ffn"]["up"]["kernel"])
  assert np.abs(kernel).max() <= 0.04
  assert abs(kernel.std() - 0.02 * 0.8796) < 3e-4  # What is left of the deviation after the cut.
  assert not params["ffn"]["up"]["bias"].any()
  assert (params["ffn"]["norm"]["scale"] == 1).all()


def test_keys_are_those_of_flax():
  ours, flax = layers.Keys(jax.random.key(3)), nnx.Rngs(jax.random.key(3))
  for _ in range(3):
    assert ours.params() == flax.params()


def test_stacked_layers_begin_different():
  kernels = init(small(share="none"), jax.random.key(0))["ffn"]["up"]["kernel"]
  assert kernels.shape == (6, 16, 24)
  assert len({float(k.sum()) for k in kernels}) == 6


def test_logits_only_at_masked_positions():
  params, batch = init(SMALL, jax.random.key(0)), make_batch(SMALL)
  some = apply(SMALL, params, batch)["mlm_logits"]
  every = apply(SMALL, params, {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")})["mlm_logits"]
  assert every.shape == (3, 10, 50)
  np.testing.assert_allclose(some, jnp.take_along_axis(every, batch["mlm_positions"][..., None], axis=1), atol=1e-6)


def test_defaults_of_a_batch():
  params, ids = init(SMALL, jax.random.key(0)), make_batch(SMALL)["input_ids"]
  whole = {"input_ids": ids, "attention_mask": jnp.ones_like(ids), "token_type_ids": jnp.zeros_like(ids)}
  np.testing.assert_array_equal(
    apply(SMALL, params, {"input_ids": ids})["mlm_logits"], apply(SMALL, params, whole)["mlm_logits"]
  )


def test_parts_that_are_not_there_give_no_output():
  params, batch = init(SMALL, jax.random.key(0)), make_batch(SMALL)
  bare = {name: params[name] for name in params if name not in ("pooler", "mlm", "sop")}
  assert set(apply(SMALL, bare, batch)) == {"sequence_output"}
  with pytest.raises(UserError, match="pooler"):
    apply(SMALL, {**bare, "sop": params["sop"]}, batch)
  with pytest.raises(UserError, match="embeddings"):
    apply(SMALL, {name: params[name] for name in params if name != "embeddings"}, batch)


def test_layer_axes_count_what_is_stacked():
  axes = paths.flatten(model.layer_axes(*(lambda c: (c, model.shapes(c)))(small(share="attention", inner_group_num=2))))
  assert axes["attention/query/kernel"] == 1
  assert axes["ffn/up/kernel"] == 2
  assert axes["pooler/kernel"] == 0
  axes = paths.flatten(model.layer_axes(*(lambda c: (c, model.shapes(c)))(small(share="matrices"))))
  assert axes["attention/query/kernel"] == axes["ffn/up/kernel"] == 0
  assert axes["attention/query/bias"] == axes["ffn/norm/scale"] == 1


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"num_attention_heads": 5}, "hidden_size=16 must be divisible by num_attention_heads=5"),
    ({"hidden_act": "swish"}, "hidden_act='swish' is unknown"),
    ({"share": "some"}, "share='some'"),
    ({"dtype": "float16"}, "dtype='float16'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    ({"num_hidden_groups": 7}, "num_hidden_groups=7"),
    ({"unshared_ends": 3}, "unshared_ends=3 leaves 0 of num_hidden_layers=6"),
    ({"unshared_ends": 1, "share": "none"}, "no effect with share=none"),
    ({"layer_rank": 1, "share": "none"}, "layer_rank=1 has no effect"),
    ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0"),
    ({"scan_unroll": -1}, "scan_unroll=-1"),
    ({"quantization_noise": 1}, "quantization_noise=1 must be true or false"),
    ({"attention": "flash"}, "attention='flash'"),
    ({"vocab_size": 1.5}, "vocab_size=1.5"),
  ],
)
def test_nonsense_is_an_error_in_words(fields, words):
  with pytest.raises(UserError, match=words):
    small(**fields)


def test_input_that_does_not_fit_is_an_error_in_words():
  params = init(SMALL, jax.random.key(0))
  for ids, words in (
    (jnp.ones((1, 17), jnp.int32), "17 tokens long, the model has 16 positions"),
    (jnp.full((1, 4), 50, jnp.int32), "reach from 50 to 50"),
    (jnp.full((1, 4), -1, jnp.int32), "reach from -1"),
    (jnp.ones((1, 4)), "whole numbers"),
  ):
    with pytest.raises(UserError, match=words):
      apply(SMALL, params, {"input_ids": ids})


@pytest.mark.parametrize("name", ["attn_mask", "mask", "attention_masks", "token_types", "positions", "mlm_position"])
def test_a_misspelt_key_is_refused(name):
  params = init(SMALL, jax.random.key(0))
  with pytest.raises(UserError, match=f"a batch has no '{name}'"):
    apply(SMALL, params, {"input_ids": jnp.ones((1, 4), jnp.int32), name: jnp.ones((1, 4), jnp.int32)})
