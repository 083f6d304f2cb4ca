"""arch=modern: the layer against a plain statement of it in PyTorch, and what must hold of any model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import assert_same, random_params

import albert_jax
from albert_jax import AlbertConfig, UserError, apply, init, model, paths
from albert_jax.convert import google_tf1, hf, styletts2, surgery
from albert_jax.exports import outputs
from albert_jax.model import attention, modern
from albert_jax.model.config import WINDOW
from albert_jax.training import flops

SMALL = AlbertConfig(
  arch="modern", vocab_size=50, embedding_size=12, hidden_size=16, num_hidden_layers=5, num_attention_heads=4,
  intermediate_size=24, max_position_embeddings=2048, initializer_range=0.3,
)  # fmt: skip


def small(**fields):
  return dataclasses.replace(SMALL, **fields)


def make_batch(rows=2, length=200, tokens=(200, 150), seed=0):
  rng = np.random.default_rng(seed)
  return {
    "input_ids": jnp.asarray(rng.integers(5, 50, (rows, length)), jnp.int32),
    "attention_mask": jnp.asarray(np.arange(length)[None] < np.array(tokens)[:, None], jnp.int32),
    "token_type_ids": jnp.asarray(rng.integers(0, 2, (rows, length)), jnp.int32),
  }


def in_torch(cfg, params, batch):
  """Returns the sequence output of a model whose layers share everything, from the papers' formulas."""
  torch = pytest.importorskip("torch")
  from torch.nn import functional as F

  p = {path: torch.tensor(np.asarray(x)) for path, x in paths.flatten(params).items()}
  ids, types, is_token = (torch.tensor(np.asarray(batch[name])).long() for name in
                          ("input_ids", "token_type_ids", "attention_mask"))  # fmt: skip
  (B, L), D, H, K = ids.shape, cfg.hidden_size, cfg.num_attention_heads, cfg.head_size
  x = p["embeddings/word/embedding"][ids] + p["embeddings/token_type/embedding"][types]
  x = F.layer_norm(x, x.shape[-1:], p["embeddings/norm/scale"], p["embeddings/norm/bias"], cfg.layer_norm_eps)
  x = x @ p["projection/kernel"] + p["projection/bias"]
  place = torch.arange(L)
  # A complex number for each pair of columns, turned by position times speed.
  turn = torch.exp(1j * place[:, None] * 10_000.0 ** (-2 * torch.arange(K // 2) / K))

  def rotated(x):
    x = x.view(B, L, H, K)
    x = torch.complex(x[..., : K // 2], x[..., K // 2 :]) * turn[None, :, None]
    return torch.cat([x.real, x.imag], -1).transpose(1, 2).to(torch.float32)

  def norm(x, part):
    return F.layer_norm(x, (D,), p[f"{part}norm/scale"], None, cfg.layer_norm_eps)

  for n in range(cfg.num_hidden_layers):
    h = norm(x, "attention/")
    q, k, v = (h @ p[f"attention/{name}/kernel"].reshape(D, D) for name in ("query", "key", "value"))
    scores = rotated(q) @ rotated(k).transpose(2, 3) / K**0.5
    seen = is_token[:, None, None, :].bool()
    if n % 3:
      seen = seen & ((place[:, None] - place).abs() <= 64)
    context = scores.masked_fill(~seen, -1e30).softmax(-1) @ v.view(B, L, H, K).transpose(1, 2)
    context = context.transpose(1, 2).reshape(B, L, D)
    x = x + context @ p["attention/output/kernel"].reshape(D, D) / cfg.num_hidden_layers
    h = norm(x, "ffn/")
    h = F.gelu(h @ p["ffn/up/kernel"], approximate="tanh") * (h @ p["ffn/gate/kernel"])
    x = x + h @ p["ffn/down/kernel"] / cfg.num_hidden_layers
  return norm(x, "").numpy()


@pytest.mark.parametrize(("length", "tokens"), [(40, (40, 31)), (200, (200, 150)), (300, (300, 129))])
def test_a_shared_layer_computes_the_papers_formulas(length, tokens):
  """Rows within the window, rows with a band, and rows in blocks."""
  params, batch = init(SMALL, jax.random.key(0)), make_batch(length=length, tokens=tokens)
  expected, actual = in_torch(SMALL, params, batch), apply(SMALL, params, batch)["sequence_output"]
  real = np.asarray(batch["attention_mask"], bool)
  np.testing.assert_allclose(actual[real], expected[real], atol=1e-5)
  assert np.abs(expected).max() > 0.5


def test_layers_have_no_biases_and_the_model_no_table_of_positions():
  flat = paths.flatten(model.shapes(SMALL))
  assert "ffn/gate/kernel" in flat
  assert not [path for path in flat if path.startswith(("attention/", "ffn/", "norm/")) and path.endswith("bias")]
  assert not [path for path in flat if "position" in path]


def test_what_a_layer_adds_is_scaled_by_how_often_its_weights_are_used():
  assert modern.residual_scale(small(num_hidden_layers=12), "ffn") == 1 / 12
  assert modern.residual_scale(small(num_hidden_layers=16, share="none"), "ffn") == 1 / 4
  assert modern.residual_scale(small(num_hidden_layers=16, share="attention"), "attention") == 1 / 16


@pytest.mark.parametrize("length", [40, 200, 300])
def test_padding_has_no_influence(length):
  params, batch = init(SMALL, jax.random.key(0)), make_batch(length=length, tokens=(length, length - 30))
  real = batch["attention_mask"] > 0
  other = {**batch, "input_ids": jnp.where(real, batch["input_ids"], 7)}
  a, b = (apply(SMALL, params, x)["sequence_output"] for x in (batch, other))
  np.testing.assert_array_equal(a[real], b[real])
  short = {name: x[1:, : length - 30] for name, x in batch.items()}
  np.testing.assert_allclose(apply(SMALL, params, short)["sequence_output"][0], a[1, : length - 30], atol=1e-5)


@pytest.mark.parametrize("length", [250, 700])
def test_local_layers_see_their_window_alone(length, monkeypatch):
  """Without global layers, what one token changes reaches one window further with each layer, and no further."""
  monkeypatch.setattr(AlbertConfig, "window_of", lambda self, n: WINDOW)
  cfg = small(num_hidden_layers=3)
  params, batch = init(cfg, jax.random.key(0)), make_batch(1, length, (length,))
  other = {**batch, "input_ids": batch["input_ids"].at[0, 10].set(7)}
  a, b = (np.asarray(apply(cfg, params, x)["sequence_output"][0]) for x in (batch, other))
  reach = 10 + 3 * WINDOW
  assert (a[reach] != b[reach]).any()
  np.testing.assert_array_equal(a[reach + 1 :], b[reach + 1 :])


@pytest.mark.parametrize(("length", "packed"), [(257, True), (384, False), (500, False)])
def test_blocks_compute_what_a_band_does(length, packed):
  """Context and gradients, with lengths that blocks do not divide."""
  cfg, batch = small(), make_batch(length=length, tokens=(length, 130))
  if packed:
    batch["segment_ids"] = batch["attention_mask"] * (1 + (jnp.arange(length) > 100))[None]
  q, k, v, d = jax.random.normal(jax.random.key(0), (4, 2, length, 16)) * batch["attention_mask"][None, :, :, None]

  def run(attend):
    context, back = jax.vjp(lambda q, k, v: attend(q, k, v, None), q, k, v)
    return context * batch["attention_mask"][:, :, None], *back(d)

  blocks, _ = attention.make(cfg, batch, False, WINDOW)
  band, _ = attention.make(cfg, batch, True, WINDOW)  # With dropout of weights; there are no keys, so none are dropped.
  assert blocks.func is not band.func
  for a, b in zip(run(blocks), run(band), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_packed_rows_compute_what_their_examples_do_alone():
  params, batch = init(SMALL, jax.random.key(0)), make_batch(length=180, tokens=(180, 120))
  flat = lambda x: jnp.concatenate([x[0], x[1, :120]])[None]  # noqa: E731
  packed = {name: flat(batch[name]) for name in ("input_ids", "attention_mask", "token_type_ids")} | {
    "segment_ids": jnp.array([[1] * 180 + [2] * 120]),
    "position_ids": jnp.array([[*range(180), *range(120)]]),
    "cls_positions": jnp.array([[0, 180]]),
  }
  alone, in_a_row = apply(SMALL, params, batch), apply(SMALL, params, packed)
  np.testing.assert_allclose(in_a_row["sequence_output"][0], flat(alone["sequence_output"])[0], atol=1e-5)
  np.testing.assert_allclose(in_a_row["sop_logits"][0], alone["sop_logits"], atol=1e-5)


FORMS = [
  {}, {"share": "matrices"}, {"share": "none"}, {"share": "all", "num_hidden_layers": 6, "unshared_ends": 1},
  {"share": "matrices", "layer_rank": 2}, {"num_hidden_groups": 2, "inner_group_num": 2}, {"share": "ffn"},
]  # fmt: skip


@pytest.mark.parametrize("is_training", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_the_loop_computes_what_layer_by_layer_does(fields, is_training):
  """by_layer runs one layer after the other, with the attention of each from its number. In training the layout of
  layers is another."""
  cfg = small(**fields)
  params, batch = random_params(cfg), make_batch(length=100, tokens=(100, 80))
  hidden = np.asarray(model.by_layer(cfg, params, batch)["hidden"][-1])
  norm = np.asarray(params["norm"]["scale"])
  hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True)) * norm
  real = np.asarray(batch["attention_mask"]) > 0
  actual = apply(cfg, params, batch, jax.random.key(0) if is_training else None)["sequence_output"]
  np.testing.assert_allclose(actual[real], hidden[real], atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("fields", "remats"),
  [({}, ("none", "dots", "full")), ({"share": "matrices", "layer_rank": 2}, ("none", "dots")),
   ({"share": "all", "num_hidden_layers": 6, "unshared_ends": 1}, ("full",)), ({"share": "none"}, ("dots",))],
  ids=str,
)  # fmt: skip
def test_gradients_are_finite_and_do_not_depend_on_what_is_recomputed(fields, remats):
  """Each is a compile of seven seconds, so what is recomputed is compared for two forms."""
  batch = make_batch(length=100, tokens=(100, 80))
  results = []
  for remat in remats:
    cfg = small(**fields, remat=remat, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    params = init(cfg, jax.random.key(0))

    def loss(params, cfg=cfg):
      out = apply(cfg, params, batch, jax.random.key(1))
      return (out["mlm_logits"] ** 2).mean() + (out["sop_logits"] ** 2).mean()

    results.append(jax.jit(jax.grad(loss))(params))
  for path, g in paths.flatten(results[0]).items():
    assert np.isfinite(g).all(), path
    assert np.abs(g).max() > 0 or path.endswith("/a"), path
    for other in results[1:]:
      np.testing.assert_allclose(g, paths.flatten(other)[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_operations_count_three_matrices_and_the_window():
  cfg, plain = small(num_hidden_layers=6), small(num_hidden_layers=6, arch="albert")
  D, F, L = 16, 24, 1000
  more = 6 * 2 * L * D * F - 4 * 4 * L * D * (L - (2 * WINDOW + 1))
  assert flops.flops_per_step(cfg, 1, L, 0) - flops.flops_per_step(plain, 1, L, 0) == 3 * more


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_a_saved_model_is_read_again_and_not_opened_by_transformers(fields, tmp_path):
  cfg = small(**fields)
  params = random_params(cfg)
  albert_jax.save(tmp_path / "model", cfg, params)
  assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == hf.OWN_TYPE
  read_cfg, read = albert_jax.load(tmp_path / "model")
  assert read_cfg == cfg
  assert_same(read, params)


@pytest.mark.parametrize("target", ["Google", "StyleTTS2"])
def test_formats_that_cannot_express_it_refuse_it_in_one_line(target, tmp_path):
  save = {"Google": google_tf1.save, "StyleTTS2": styletts2.save}[target]
  with pytest.raises(UserError, match=r"arch=modern: .* has no rotary positions") as error:
    save(tmp_path / "model", SMALL, random_params(SMALL))
  assert "\n" not in str(error.value)
  assert not (tmp_path / "model").exists()


def test_stablehlo_computes_the_same_for_any_length():
  params = random_params(SMALL, parts=("pooler",))
  file = jax.export.deserialize(outputs.exported(SMALL, params).serialize())
  for length in (10, 100, 300):
    batch = make_batch(length=length, tokens=(length, length - 5))
    expected = apply(SMALL, params, batch)["sequence_output"]
    actual = file.call(batch)["last_hidden_state"]
    real = batch["attention_mask"] > 0
    np.testing.assert_allclose(actual[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"arch": "albert", "layer_rank": 2}])
def test_an_exported_folder_is_for_every_runtime_but_transformers(fields, tmp_path):
  pytest.importorskip("onnx")
  pytest.importorskip("onnxruntime")
  from albert_jax.exports import folder

  cfg = small(**fields)
  albert_jax.save(tmp_path / "model", cfg, init(cfg, jax.random.key(0)))
  report = folder.export(tmp_path / "model", tmp_path / "out", tokenizer=False, pooling="mean")
  assert {"config.json", "model.safetensors", "onnx/model.onnx", "stablehlo/model.jax"} <= report["files"].keys()
  assert "modules.json" not in report["files"]
  card = (tmp_path / "out/README.md").read_text()
  assert ("arch=modern" in card) == (cfg.arch == "modern")
  assert "onnxruntime" in card and "import AutoModel" not in card and 'library_name: "albert-jax"' in card


def test_it_can_be_given_more_positions():
  params = random_params(SMALL)
  cfg, longer = surgery.longer(SMALL, params, 8192)
  assert cfg.max_position_embeddings == 8192
  assert_same(longer, params)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_model_that_shares_less_computes_the_same(rank):
  """What a layer adds has another scale then, so its matrices change."""
  old = small(layer_rank=rank)
  params, batch = init(old, jax.random.key(0)), make_batch(length=50, tokens=(50, 40))
  expected = apply(old, params, batch)["sequence_output"]
  for share in ("ffn", "none") if not rank else ("none",):
    cfg, less = surgery.restructured(old, jax.tree.map(np.asarray, params), share=share)
    np.testing.assert_allclose(apply(cfg, less, batch)["sequence_output"], expected, atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"arch": "newest"}, "arch='newest' is unknown; use one of albert, modern"),
    ({"hidden_size": 12, "num_attention_heads": 4}, "is an odd 3; use another num_attention_heads"),
  ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    small(**fields)


def test_a_kernel_without_a_window_is_refused():
  cfg = small(attention="pallas")
  batch = make_batch(length=128, tokens=(128, 100))
  with pytest.raises(UserError, match="attention=pallas has no local attention"):
    apply(cfg, random_params(cfg), batch)


def test_cudnn_is_given_the_window_as_a_mask(monkeypatch):
  """cuDNN itself needs a GPU; a stand-in with its signature computes from what it is given."""
  real, shapes = jax.nn.dot_product_attention, []

  def stand_in(q, k, v, mask, implementation):
    assert implementation == "cudnn"
    shapes.append(mask.shape)
    return real(q, k, v, mask=mask)

  params, batch = random_params(SMALL), make_batch()
  expected = apply(SMALL, params, batch)["sequence_output"]
  monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
  monkeypatch.setattr(attention, "_no_cudnn", lambda *_: "")
  monkeypatch.setitem(attention.REFUSALS, "cudnn", lambda *_: "")
  monkeypatch.setattr(attention.nvidia, "mark_attention_deterministic", lambda: None)
  actual = apply(small(attention="cudnn"), params, batch)["sequence_output"]
  assert set(shapes) == {(2, 1, 200, 200)}
  on = batch["attention_mask"] > 0
  np.testing.assert_allclose(actual[on], expected[on], atol=1e-4, rtol=1e-4)
