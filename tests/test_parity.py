"""Against transformers: the same outputs, both ways, and the same training. Skipped where it is not installed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import assert_same, random_params

import albert_jax
from albert_jax.convert import hf
from albert_jax.data.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="parity with transformers: pip install albert-jax[parity]")
transformers = pytest.importorskip("transformers", reason="parity with transformers: pip install albert-jax[parity]")
transformers.utils.logging.disable_progress_bar()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# Architecture: (parts, task heads, {our output: theirs}, labels in its config)
HEADS = {
  "AlbertModel": (("pooler",), {}),
  "AlbertForPreTraining": (("pooler", "mlm", "sop"), {}),
  "AlbertForMaskedLM": (("mlm",), {}),
  "AlbertForSequenceClassification": (("pooler",), {"classifier": 3}),
  "AlbertForTokenClassification": ((), {"classifier": 5}),
  "AlbertForQuestionAnswering": ((), {"span": 2}),
  "AlbertForMultipleChoice": (("pooler",), {"classifier": 1}),
}


@st.composite
def configs(draw):
  heads = draw(st.integers(1, 3))
  layers = draw(st.integers(1, 4))
  return albert_jax.AlbertConfig(
    vocab_size=draw(st.integers(10, 40)),
    embedding_size=draw(st.sampled_from([2, 3, 5, 7])),
    hidden_size=heads * draw(st.sampled_from([4, 6])),
    num_hidden_layers=layers,
    num_hidden_groups=draw(st.integers(1, layers)),
    inner_group_num=draw(st.integers(1, 2)),
    num_attention_heads=heads,
    intermediate_size=draw(st.integers(3, 20)),
    hidden_act=draw(st.sampled_from(["gelu", "gelu_new", "relu"])),
    max_position_embeddings=16,
    type_vocab_size=draw(st.integers(1, 3)),
    share=draw(st.sampled_from(["all", "all", "attention", "ffn", "none"])),
  )


def make_batch(cfg, seed, padded=True, rows=3, length=9):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, length + 1, rows) if padded else np.full(rows, length)
  return {
    "input_ids": rng.integers(0, cfg.vocab_size, (rows, length)).astype(np.int32),
    "attention_mask": (np.arange(length) < tokens[:, None]).astype(np.int32),
    "token_type_ids": rng.integers(0, cfg.type_vocab_size, (rows, length)).astype(np.int32),
  }


def to_torch(batch):
  return {name: torch.tensor(value, dtype=torch.long) for name, value in batch.items()}


def our_outputs(cfg, params, batch):
  """Returns everything our model and its heads say about a batch."""
  out = dict(albert_jax.apply(cfg, params, batch))
  for head, source in (("classifier", "pooled_output"), ("classifier", "sequence_output"), ("span", "sequence_output")):
    if head in params and source in out:
      out[f"{head} of {source}"] = out[source] @ params[head]["kernel"] + params[head]["bias"].reshape(
        (1,) * (out[source].ndim - 1) + (-1,)
      )
  return {name: np.asarray(value) for name, value in out.items()}


def their_outputs(architecture, model, batch):
  model.eval()
  inputs = to_torch(batch)
  if architecture == "AlbertForMultipleChoice":
    inputs = {name: value[None] for name, value in inputs.items()}  # the rows are choices of one question
  with torch.no_grad():
    out = model(**inputs)
  numbers = {name: value.numpy() for name, value in out.items()}
  return {
    "AlbertModel": lambda: {
      "sequence_output": numbers["last_hidden_state"],
      "pooled_output": numbers["pooler_output"],
    },
    "AlbertForPreTraining": lambda: {
      "mlm_logits": numbers["prediction_logits"],
      "sop_logits": numbers["sop_logits"],
    },
    "AlbertForMaskedLM": lambda: {"mlm_logits": numbers["logits"]},
    "AlbertForSequenceClassification": lambda: {"classifier of pooled_output": numbers["logits"]},
    "AlbertForTokenClassification": lambda: {"classifier of sequence_output": numbers["logits"]},
    "AlbertForQuestionAnswering": lambda: {
      "span of sequence_output": np.stack([numbers["start_logits"], numbers["end_logits"]], -1)
    },
    "AlbertForMultipleChoice": lambda: {"classifier of pooled_output": numbers["logits"].T},
  }[architecture]()


def assert_agree(ours, theirs, mask):
  for name, expected in theirs.items():
    # What a position that is no token holds means nothing; the two treat it alike all the same, but for rounding.
    keep = mask > 0 if expected.ndim == 3 else slice(None)
    np.testing.assert_allclose(ours[name][keep], expected[keep], atol=1e-5, rtol=0, err_msg=name)


QUICK = ("AlbertForPreTraining", "AlbertForSequenceClassification", "AlbertForQuestionAnswering")


@pytest.mark.parametrize(
  "architecture", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HEADS]
)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))  # For each, a model is compiled.
@given(cfg=configs(), seed=st.integers(0, 2**16), padded=st.booleans())
def test_what_we_write_they_run_and_write_back(tmp_path_factory, architecture, cfg, seed, padded):
  parts, heads = HEADS[architecture]
  params = jax.tree.map(lambda x: 0.3 * x, random_params(cfg, parts, heads, seed))
  batch = make_batch(cfg, seed, padded)
  ours = our_outputs(cfg, params, batch)
  folder = tmp_path_factory.mktemp("parity")
  hf.save(folder / "ours", cfg, params, architecture=architecture)

  kind = getattr(transformers, architecture)
  model, info = kind.from_pretrained(folder / "ours", output_loading_info=True)
  assert not any(info.values()), info
  assert type(model) is type(transformers.AutoModel.from_pretrained(folder / "ours")) or architecture != "AlbertModel"
  assert_agree(ours, their_outputs(architecture, model, batch), batch["attention_mask"])

  model.save_pretrained(folder / "theirs")
  read_cfg, read = albert_jax.load(folder / "theirs")
  assert read_cfg == cfg
  assert_same(read, params)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", HEADS)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(cfg=configs(), seed=st.integers(0, 2**16))
def test_what_they_made_we_run(tmp_path_factory, architecture, cfg, seed):
  """Models that transformers initialised, from its own config."""
  torch.manual_seed(seed)
  fields = {name: getattr(cfg, name) for name in hf.configs.FIELDS}
  labels = next(iter(HEADS[architecture][1].values()), 2)
  config = transformers.AlbertConfig(**{**fields, "initializer_range": 0.3}, num_labels=max(labels, 2))
  model = getattr(transformers, architecture)(config)
  folder = tmp_path_factory.mktemp("parity")
  model.save_pretrained(folder / "theirs")
  read_cfg, read = albert_jax.load(folder / "theirs")
  assert read_cfg == dataclasses.replace(cfg, share="all", initializer_range=0.3)
  batch = make_batch(cfg, seed)
  assert_agree(our_outputs(read_cfg, read, batch), their_outputs(architecture, model, batch), batch["attention_mask"])


@pytest.mark.parametrize("hidden_act", ["gelu_new", pytest.param("relu", marks=pytest.mark.slow)])
def test_the_same_training(tmp_path, hidden_act):
  """Twenty steps of AdamW from the same weights on the same batches, without dropout: the same losses."""
  cfg = albert_jax.AlbertConfig(
    vocab_size=60, embedding_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=32,
    max_position_embeddings=16, hidden_act=hidden_act, initializer_range=0.1,
  )  # fmt: skip
  params = jax.tree.map(np.asarray, albert_jax.init(cfg, jax.random.key(0)))
  # transformers' config has one dropout more, that of its sentence-order head.
  written = dataclasses.replace(cfg, classifier_dropout_prob=0.0)
  hf.save(tmp_path / "start", written, params)
  model = transformers.AlbertForPreTraining.from_pretrained(tmp_path / "start")
  model.train()
  theirs = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)
  ours = optax.adamw(3e-3, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01)

  def loss_of(params, batch):
    out = albert_jax.apply(cfg, params, batch)
    mlm = optax.softmax_cross_entropy_with_integer_labels(out["mlm_logits"], jnp.maximum(batch["labels"], 0))
    used = (batch["labels"] >= 0).astype(jnp.float32)
    sop = optax.softmax_cross_entropy_with_integer_labels(out["sop_logits"], batch["sop"])
    return (mlm * used).sum() / used.sum() + sop.mean()

  @jax.jit
  def step(params, state, batch):
    loss, grads = jax.value_and_grad(loss_of)(params, batch)
    updates, state = ours.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  state = ours.init(params)
  our_losses, their_losses = [], []
  for seed in range(20):
    rng = np.random.default_rng(seed)
    batch = make_batch(cfg, seed, rows=8)
    batch["input_ids"] = np.maximum(batch["input_ids"], 1)  # torch gives the padding row no gradient
    labels = np.where((rng.random(batch["input_ids"].shape) < 0.3) & (batch["attention_mask"] > 0), 7, -100)
    labels[0, 0] = 5
    sop = rng.integers(0, 2, 8)
    params, state, loss = step(params, state, batch | {"labels": labels.astype(np.int32), "sop": sop.astype(np.int32)})
    our_losses.append(float(loss))

    theirs.zero_grad()
    loss = model(**to_torch(batch), labels=torch.tensor(labels), sentence_order_label=torch.tensor(sop)).loss
    loss.backward()
    theirs.step()
    their_losses.append(loss.item())
  np.testing.assert_allclose(our_losses, their_losses, atol=1e-4, rtol=0)
  assert our_losses[-1] < our_losses[0] - 1


@pytest.mark.realdata
def test_a_model_somebody_trained(real_data):
  """The Japanese tagger: its reference logits were computed by another implementation (ONNX)."""
  folder = real_data / "checkpoint/albert_ja_pos/unidic_lite_256"
  cfg, params = albert_jax.load(folder)
  assert params.keys() == {"embeddings", "projection", "attention", "ffn", "mlm"}
  with np.load(folder / "onnx_reference.npz") as reference:
    arrays = dict(reference)
  batch = {name: arrays[name].astype(np.int32) for name in ("input_ids", "attention_mask")}
  logits = np.asarray(albert_jax.apply(cfg, params, batch)["mlm_logits"])
  real = arrays["attention_mask"] > 0
  np.testing.assert_allclose(logits[:, :, :18][real], arrays["logits_first18"][real], atol=5e-4, rtol=0)
  np.testing.assert_allclose(logits[:4][real[:4]], arrays["logits_full_first4"][real[:4]], atol=5e-4, rtol=0)
  np.testing.assert_array_equal(logits.argmax(-1)[real], arrays["pred"][real])


@pytest.mark.realdata
def test_their_tokenizer_cuts_as_ours(tmp_path, real_data):
  """Opened from what we export; a bare spiece.model they would read differently in most sentences."""
  vocabulary = Tokenizer(real_data / "vocab/albert_en_30k")
  cfg = albert_jax.AlbertConfig(
    vocab_size=30000, embedding_size=2, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
  )
  hf.save(tmp_path / "model", cfg, random_params(cfg, ()), vocabulary=vocabulary)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
  lines = (real_data / "pretrain/wiki_en/wiki_en_00.txt").read_text("utf-8").splitlines()[:2000]
  lines += [
    "``quoted'' (x)-y",
    "In 2010, Paris",
    "\u0130stanbul fals\u00e9 \u00bd \ufb01",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
  ]
  lines += ["x\x1cy \x85 \u2028z", "", "  "]
  same = [
    a == b
    for a, b in zip(theirs(lines, add_special_tokens=False)["input_ids"], vocabulary.encode_batch(lines), strict=True)
  ]
  assert sum(same) >= len(lines) - 1 and all(same[2000:])
  pair = theirs("the [MASK] is", "new")
  cls, sep = vocabulary.cls_id, vocabulary.sep_id
  assert pair["input_ids"] == [
    cls,
    *vocabulary.encode("the [MASK] is", specials=True),
    sep,
    *vocabulary.encode("new"),
    sep,
  ]
  assert pair["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.realdata
@pytest.mark.parametrize(
  ("text", "ours", "sentencepiece", "theirs"),
  [
    ("fals\u00e9", "▁false", "▁fal s <unk>", "▁false"),
    ("In 2010, Paris", "▁in ▁2010 , ▁paris", "▁ <unk> n ▁2010, ▁ <unk> aris", "▁in ▁2010, ▁paris"),
    ("he said ``yes''", "▁he ▁said ▁ <unk> yes ' '", "▁he ▁said ▁ <unk> yes ' '", '▁he ▁said ▁ " yes "'),
    ("(a)-b", "▁ ( a ) - b", "▁ ( a ) - b", "( ▁a ) - ▁b"),
    ("the [MASK]", "▁the ▁[ mask ]", "▁the ▁[ <unk> ]", "▁the [MASK]"),
    ("a <pad>", "▁a ▁ <unk> pad <unk>", "▁a ▁ <unk> pad <unk>", "▁a <pad>"),
    ("x\x1cy", "▁x ▁ y", "▁ xy", "▁ xy"),
  ],
)
def test_the_table_of_differences_is_true(real_data, text, ours, sentencepiece, theirs):
  """docs/tokenizer.md, for transformers' tokenizer made from a bare spiece.model."""
  folder = real_data / "vocab/albert_en_30k"
  tokenizer = Tokenizer(folder)
  hugging_face = transformers.AlbertTokenizer.from_pretrained(folder)
  results = [
    tokenizer.encode(text),
    tokenizer._model.encode(text),
    hugging_face(text, add_special_tokens=False)["input_ids"],
  ]
  assert [" ".join(tokenizer.pieces[i] for i in ids) for ids in results] == [ours, sentencepiece, theirs]
