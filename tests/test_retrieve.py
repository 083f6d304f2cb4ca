"""Embeddings: the same loss and step on any mesh, ranks and metrics by hand, and no answer that is its own negative."""

import json

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import optax
import pytest

from albert_jax import tasks
from albert_jax.configs import retrieve as retrieve_config
from albert_jax.errors import UserError
from albert_jax.tasks import retrieve
from albert_jax.training import sharding, state
from albert_jax.training.step import make_train_step

PAIRS = [("badefi gu", "lo ba"), ("muni", "ka ba gu"), ("lo lo", "lo ba"), ("ba", "gu gu gu gu"), ("kade", "de"),
         ("gu muni", "ba"), ("lo", "ka"), ("defi", "badefi lo")]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pairs")
  made_up.vocabulary(folder)
  for name in ("train", "dev"):
    lines = [json.dumps({"query": query, "answer": answer}) for query, answer in PAIRS]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    scored = [f"{query}\t{answer}\t{i % 6}" for i, (query, answer) in enumerate(PAIRS)]
    (folder / f"{name}_scored.tsv").write_text("\n".join(["query\tanswer\tscore", *scored]))
  return folder


def config(folder, **overrides):
  config = retrieve_config.get_config("tiny")
  config.model.update({"vocab_size": 400, "hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 1,
                       "intermediate_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64})  # fmt: skip
  config.data.update({"dataset": str(folder), "spm": str(folder), "seq_length": 64})
  config.batch_size = 8
  config.update_from_flattened_dict(overrides)
  return config


SCORED = {"data.split": "train_scored.tsv", "data.validation_split": "dev_scored.tsv", "task.score_range": "0,5"}


@pytest.fixture(scope="module")
def task(folder):
  return tasks.make(config(folder))


@pytest.fixture(scope="module")
def params(task):
  """Spread out: with fresh parameters all embeddings are nearly the same."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), jnp.float32), shapes)


def embedded(task, params, pooling="mean"):
  texts = [text for pair in PAIRS for text in pair]
  results = retrieve.embed(task.model, params, task.vocabulary, texts, pooling=pooling)
  vectors = np.array([result["embedding"] for result in results])
  return vectors[::2], vectors[1::2]


def test_embeddings_are_of_length_one_and_ignore_padding(task, params):
  texts = ["badefi gu", "gu " * 60, ""]
  for pooling in retrieve.POOLING:
    results = retrieve.embed(task.model, params, task.vocabulary, texts, pooling=pooling, seq_length=64)
    vectors = np.array([result["embedding"] for result in results])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    alone = retrieve.embed(task.model, params, task.vocabulary, texts[:1], pooling=pooling, batch_size=1)
    np.testing.assert_allclose(alone[0]["embedding"], vectors[0], atol=1e-5)
  with pytest.raises(UserError, match="pooling='max' is unknown"):
    retrieve.embed(task.model, params, task.vocabulary, texts, pooling="max")


def test_the_loss_is_that_of_finding_ones_own_among_the_others(task, params):
  (batch,) = task.eval_batches(0, 1)
  queries, answers = embedded(task, params)
  logits = queries @ answers.T / 0.05

  def loss(logits, texts):
    """Of each row, with equal texts in other rows left out."""
    losses, hits = [], []
    for i in range(len(PAIRS)):
      negatives = [j for j in range(len(PAIRS)) if j == i or texts[j] != texts[i]]
      losses.append(np.log(np.sum(np.exp(logits[i, negatives]))) - logits[i, i])
      hits.append(logits[i, i] >= logits[i, negatives].max())
    return np.sum(losses), np.sum(hits)

  (to_answers, hits), (to_queries, _) = loss(logits, [a for _, a in PAIRS]), loss(logits.T, [q for q, _ in PAIRS])
  sums = task.sums(params, batch, None)
  assert float(sums["loss"][0]) == pytest.approx((to_answers + to_queries) / 2, rel=1e-4)
  assert float(sums["in_batch_accuracy"][0]) == hits
  assert float(sums["loss"][1]) == 8


def test_rows_that_fill_up_are_no_negatives(folder, task, params):
  (batch,) = tasks.make(config(folder, batch_size=16)).eval_batches(0, 1)
  (alone,) = task.eval_batches(0, 1)
  assert batch["weight"].sum() == 8
  # The rows that fill up are given a text of their own, which would be a negative if it counted.
  batch["input_ids"][8:], batch["answer"][8:], batch["query"][8:] = 7, 1000, 1001
  sums, expected = task.sums(params, batch, None), task.sums(params, alone, None)
  for name in expected:
    assert float(sums[name][0]) == pytest.approx(float(expected[name][0]), rel=1e-5), name


def test_a_step_is_the_same_on_any_mesh(folder, params):
  """Also where the axes that split rows are two: the answers of all devices are gathered."""
  task = tasks.make(config(folder, batch_size=16))
  batch = next(iter(task.train_batches(0, 0, 1)))
  tx = optax.identity()  # Plain gradient descent.
  results = {}
  for data, fsdp in ((1, 1), (4, 2)):
    mesh = sharding.make_mesh(sharding.MeshConfig(data, fsdp), 16, jax.devices()[: data * fsdp])
    shardings = sharding.shardings(mesh, state.abstract(task.init, tx, jax.random.key(0)))
    with jax.set_mesh(mesh):
      old = state.from_params(jax.device_get(params), tx, shardings)
      step = make_train_step(task.sums, task.terms, tx, jax.random.key(1), mesh, shardings)
      new, (sums, _) = step(old, sharding.global_batch(mesh, batch), sharding.everywhere(mesh, 1.0))
      results[data, fsdp] = jax.device_get((new["params"], sums))
  (expected, sums), (actual, actual_sums) = results.values()
  assert float(sums["loss"][0]) > 0.01
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), sums, actual_sums)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), expected, actual)


# Scores.


def test_ranks_by_hand():
  query_texts, answer_texts = ["q", "q", "r", "s"], ["a", "b", "c", "a"]
  answers = np.array([[1.0, 0], [0.8, 0.6], [0, 1], [1, 0]])
  queries = np.array([[1.0, 0], [1, 0], [0.6, 0.8], [0, 1]])
  # q finds a first, and b is then not behind it; r finds b (0.96) before c (0.8); s finds c and b before a.
  assert retrieve.own_ranks(queries, answers, query_texts, answer_texts).tolist() == [1, 1, 2, 3]
  assert retrieve.rank_metrics(np.array([1, 1, 2, 8])) == {
    "mrr": pytest.approx((1 + 1 + 1 / 2 + 1 / 8) / 4), "recall@1": 0.5, "recall@5": 0.75, "recall@10": 1.0,
  }  # fmt: skip


def test_embeddings_that_are_all_the_same_find_nothing():
  same = np.ones((5, 3)) / np.sqrt(3)
  assert retrieve.own_ranks(same, same, list("vwxyz"), list("abcde")).tolist() == [5] * 5


def test_pairs_are_ranked_and_scored_pairs_correlated(folder, task, params):
  queries, answers = embedded(task, params)
  numbers, files = task.score({"query": list(queries), "answer": list(answers)})
  assert set(numbers) == set(task.baselines) == {"mrr", "recall@1", "recall@5", "recall@10"}
  assert task.baselines["recall@1"] == (pytest.approx(1 / 7), "guessing among 7 answers")
  lines = [json.loads(line) for line in files["predictions.jsonl"].decode().splitlines()]
  assert numbers["mrr"] == pytest.approx(np.mean([1 / line["rank"] for line in lines]))
  assert lines[1]["cosine"] == pytest.approx(float(queries[1] @ answers[1]), abs=1e-6)

  scored = tasks.make(config(folder, **SCORED))
  numbers, files = scored.score({"query": list(queries), "answer": list(answers)})
  assert set(numbers) == {"spearman", "pearson"}
  gold = [i % 6 for i in range(8)]
  assert numbers["pearson"] == pytest.approx(np.corrcoef(gold, np.sum(queries * answers, axis=1))[0, 1])
  broken = [np.full(16, np.nan), *queries[1:]]
  with pytest.raises(UserError, match="not finite"):
    scored.score({"query": broken, "answer": list(answers)})


def test_scores_are_scaled_and_checked(folder):
  data = config(folder).data
  assert retrieve.read(
    data, "train_scored.tsv", retrieve.Settings("mean", 0.05, "0,5")
  ).scores.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 0, 0.2])
  assert retrieve.read(data, "train", retrieve.Settings("mean", 0.05, "0,5")).scores is None
  with pytest.raises(
    UserError, match=r"line 4 has the score 2, outside of task.score_range=0,1; try .*score_range=0,5"
  ):
    retrieve.read(data, "train_scored.tsv", retrieve.Settings("mean", 0.05, "0,1"))
  with pytest.raises(UserError, match="must be two numbers"):
    retrieve.read(data, "train_scored.tsv", retrieve.Settings("mean", 0.05, "five"))
  with pytest.raises(UserError, match=r"train has no scores in 'score' and dev_scored.tsv has some"):
    tasks.make(config(folder, **{**SCORED, "data.split": "train"}))
  (folder / "lacking.jsonl").write_text('{"query": "a", "answer": "b", "score": 1}\n{"query": "a", "answer": "b"}\n')
  with pytest.raises(
    UserError, match="line 2: null is no number; expected a score, which every row needs, or none has"
  ):
    retrieve.read(data, "lacking.jsonl", retrieve.Settings("mean", 0.05, "0,5"))


def test_a_column_of_scores_that_was_asked_for_is_there(folder):
  data, settings = config(folder, **{"data.score_field": "scores"}).data, retrieve.Settings("mean", 0.05, "0,5")
  with pytest.raises(UserError, match=r"no column 'scores'; .*data\.query_field=.*data\.score_field="):
    retrieve.read(data, "train_scored.tsv", settings)
  assert retrieve.read(data, "train_scored.tsv", settings, may_hide=True).scores is None


def test_scores_that_are_all_minus_one_are_hidden(folder, tmp_path):
  (tmp_path / "test.tsv").write_text("query\tanswer\tscore\na\tb\t-1\nc\td\t-1\n")
  data, settings = config(folder).data, retrieve.Settings("mean", 0.05, "0,5")
  assert retrieve.read(data, str(tmp_path / "test.tsv"), settings, may_hide=True).scores is None
  with pytest.raises(UserError, match="score -1, outside"):
    retrieve.read(data, str(tmp_path / "test.tsv"), settings)
  wide = retrieve.Settings("mean", 0.05, "-1,1")
  assert retrieve.read(data, str(tmp_path / "test.tsv"), wide, may_hide=True).scores.tolist() == [0, 0]


def test_a_micro_batch_needs_something_to_choose_from(folder):
  with pytest.raises(UserError, match="two rows a micro-batch"):
    tasks.make(config(folder, accumulate=8))


def test_scored_pairs_are_learnt_by_the_squared_error(folder, params):
  task = tasks.make(config(folder, **SCORED))
  (batch,) = task.eval_batches(0, 1)
  queries, answers = embedded(task, params)
  gold = np.array([i % 6 for i in range(8)]) / 5
  sums = task.sums(params, batch, None)
  assert set(sums) == {"loss"}
  assert float(sums["loss"][0]) == pytest.approx(np.sum((np.sum(queries * answers, axis=1) - gold) ** 2), rel=1e-4)
