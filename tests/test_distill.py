"""Distillation: its losses against numpy, what it trains and leaves, and what it refuses."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from scipy import special
from small_models import SMALL, random_params

from albert_jax import UserError, convert, model, paths, planning, run
from albert_jax.__main__ import main
from albert_jax.commands import common
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.tasks import distill, pretrain
from albert_jax.tasks.base import Sketch, Teacher
from albert_jax.tasks.distill import DistillConfig
from albert_jax.training import optimizer, sharding, state
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.step import make_train_step
from albert_jax.training.writer import read

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
STUDENT = dataclasses.replace(SMALL, num_hidden_layers=2, hidden_dropout_prob=0.1)
TEACHER = dataclasses.replace(SMALL, num_hidden_layers=3, hidden_size=24, num_attention_heads=2)
ALL = DistillConfig("somewhere", 3.0, label_weight=0.5, logit_weight=2.0, hidden_weight=0.7, relation_weight=1.5)


def divergence(teacher, student):
  log_p, log_q = special.log_softmax(teacher, -1), special.log_softmax(student, -1)
  return np.sum(np.exp(log_p) * (log_p - log_q), -1)


# Losses.


def test_answers_are_compared_by_kl_divergence_at_a_temperature():
  student, teacher = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
  classes = distill.answer_loss("classes", student, teacher, 2.0)
  np.testing.assert_allclose(classes, 4 * divergence(teacher / 2, student / 2), rtol=1e-5)
  p, q = special.expit(teacher / 2), special.expit(student / 2)
  binary = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
  np.testing.assert_allclose(distill.answer_loss("labels", student, teacher, 2.0), 4 * binary.mean(-1), rtol=1e-4)
  number = distill.answer_loss("number", student[:, :1], teacher[:, :1], 2.0)
  np.testing.assert_allclose(number, (student - teacher)[:, 0] ** 2, rtol=1e-5)


def test_an_answer_that_is_not_allowed_costs_nothing_and_has_no_gradient():
  never = jnp.full((1, 1), jnp.finfo(jnp.float32).min)
  student, teacher = jnp.concatenate([jnp.array([[1.0, 2.0]]), never], 1), jnp.concatenate([jnp.ones((1, 2)), never], 1)
  loss, gradient = jax.value_and_grad(lambda x: distill.answer_loss("classes", x, teacher, 0.1)[0])(student)
  np.testing.assert_allclose(loss, 0.01 * divergence(np.ones(2) * 10, np.array([10.0, 20.0])), rtol=1e-5)
  assert np.isfinite(gradient).all() and gradient[0, 2] == 0


def test_hidden_states_are_compared_with_the_layer_at_the_same_relative_depth():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(3, 2, 4, 6)), rng.normal(size=(5, 2, 4, 8))
  projection = {"kernel": rng.normal(size=(6, 8)), "bias": rng.normal(size=8)}
  expected = [(student[n] @ projection["kernel"] + projection["bias"] - teacher[2 * n]) ** 2 for n in (1, 2)]
  with jax.numpy_rank_promotion("raise"):
    loss = distill.hidden_loss(projection, jnp.array(student), jnp.array(teacher))
  np.testing.assert_allclose(loss, np.mean(expected, axis=(0, -1)), rtol=1e-4)


def test_relations_are_those_of_minilm():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(3, 1, 5, 8)), rng.normal(size=(3, 1, 5, 12))
  segments = np.array([[1, 1, 1, 2, 0]])
  heads_of = 4
  expected = np.zeros(5)
  for s, t in zip(student, teacher, strict=True):
    for head in range(heads_of):
      scores = []
      for x in (t[0], s[0]):
        part = np.split(x, heads_of, axis=-1)[head]
        scores.append(part @ part.T / np.sqrt(part.shape[-1]))
      for position, reads in enumerate([[0, 1, 2], [0, 1, 2], [0, 1, 2], [3]]):
        expected[position] += divergence(scores[0][position, reads], scores[1][position, reads])
  loss = distill.relation_loss(*(tuple(map(jnp.array, x)) for x in (student, teacher)), segments, heads_of)
  np.testing.assert_allclose(loss[0, :4], expected[:4] / (3 * heads_of), rtol=1e-4, atol=1e-6)


# A task.


def sketch(cfg=STUDENT):
  return Sketch(
    model=cfg, init=functools.partial(model.init, cfg), sums=functools.partial(pretrain.sums, cfg),
    terms=functools.partial(pretrain.terms, 1.0, 0.5), arrays={}, slots=3, answers=pretrain.answers(1.0, 0.5),
  )  # fmt: skip


def teacher(cfg=TEACHER, **parts):
  return Teacher("somewhere", cfg, {**random_params(cfg, **parts)}, Tokenizer, {}, "")


def batch(rows=8, length=12, slots=3):
  rng = np.random.default_rng(0)
  return {
    "input_ids": rng.integers(5, SMALL.vocab_size, (rows, length)).astype(np.int32),
    "attention_mask": (np.arange(length)[None] < rng.integers(4, length + 1, (rows, 1))).astype(np.int32),
    "token_type_ids": rng.integers(0, 2, (rows, length)).astype(np.int32),
    "mlm_positions": rng.integers(0, 4, (rows, slots)).astype(np.int32),
    "mlm_labels": rng.integers(5, SMALL.vocab_size, (rows, slots)).astype(np.int32),
    "mlm_weights": (rng.random((rows, slots)) < 0.6).astype(np.float32),
    "sop_label": rng.integers(0, 2, rows).astype(np.int32),
    "sop_weight": (rng.random(rows) < 0.7).astype(np.float32),
  }


@pytest.mark.slow
def test_the_loss_of_pretraining_is_the_sum_of_all_terms():
  source = teacher()
  task = distill.adapt(sketch(dataclasses.replace(STUDENT, hidden_dropout_prob=0.0)), ALL, 12, lambda path: source)
  params, data = jax.tree.map(np.asarray, task.init(jax.random.key(0))), batch()
  keys = jax.random.split(jax.random.key(0), 8)
  sums = jax.jit(task.sums)({**params, "teacher": task.teacher.params}, data, keys)
  terms = task.terms(data)
  loss = sum(terms[name] * sums[name][0] for name in terms)

  def ratio(losses, weights):
    return np.sum(np.asarray(losses) * weights) / weights.sum()

  out = [model.apply(cfg, p, data) for cfg, p in ((task.model, params), (TEACHER, source.params))]
  layers = [model.by_layer(cfg, p, data)["hidden"] for cfg, p in ((task.model, params), (TEACHER, source.params))]
  tokens = data["attention_mask"].astype(np.float32)
  mlm, sop = (np.stack([o[name] for o in out]) for name in ("mlm_logits", "sop_logits"))
  relation = distill.relation_loss(
    *(model.last_projections(cfg, p, x[-2]) for cfg, p, x in zip(
      (task.model, TEACHER), (params, source.params), layers, strict=True)), data["attention_mask"], 3,
  )  # fmt: skip
  labelled = pretrain.sums(task.model, params, data, None)
  expected = (
    0.5 * ratio(labelled["mlm_loss"][0] / data["mlm_weights"].sum(), np.ones(1))
    + 0.25 * ratio(labelled["sop_loss"][0] / data["sop_weight"].sum(), np.ones(1))
    + 2.0 * ratio(9 * divergence(mlm[1] / 3, mlm[0] / 3), data["mlm_weights"])
    + 1.0 * ratio(9 * divergence(sop[1] / 3, sop[0] / 3), data["sop_weight"])
    + 0.7 * ratio(distill.hidden_loss(params["distill"], *layers), tokens)
    + 1.5 * ratio(relation, tokens)
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.slow
def test_no_gradient_reaches_the_teacher_and_evaluation_does_without_it():
  source = teacher()
  task = distill.adapt(sketch(), ALL, 12, lambda path: source)
  params, data, keys = task.init(jax.random.key(0)), batch(), jax.random.split(jax.random.key(0), 8)

  @jax.jit
  @jax.grad
  def gradient_of(params):
    sums, terms = task.sums(params, data, keys), task.terms(data)
    return sum(terms[name] * sums[name][0] for name in terms)

  gradients = paths.flatten(gradient_of({**params, "teacher": task.teacher.params}))
  for path, gradient in gradients.items():
    assert np.any(gradient) != path.startswith("teacher/"), path
  plain = pretrain.sums(STUDENT, params, data, None)
  assert jax.tree.map(float, task.sums({**params}, data, None)) == jax.tree.map(float, plain)


@pytest.fixture(scope="module")
def losses():
  """Returns a function that makes three steps: losses(mesh config, number of devices) -> the losses of each step."""
  student = dataclasses.replace(STUDENT, num_attention_heads=2)
  source = teacher()
  task = distill.adapt(sketch(student), dataclasses.replace(ALL, relation_heads=3), 12, lambda path: source)

  def losses(mesh_config, devices):
    mesh = sharding.make_mesh(mesh_config, 8, jax.devices()[:devices])
    opt, key = OptimizerConfig(name="adamw", learning_rate=0.01), jax.random.key(0)
    tx = optimizer.make(opt, model.layer_axes(task.model, jax.eval_shape(task.init, key)))
    shardings = sharding.shardings(mesh, state.abstract(task.init, tx, key))
    step = make_train_step(task.sums, task.terms, tx, jax.random.key(1), mesh, shardings, 2)
    with jax.set_mesh(mesh):
      train_state, numbers = state.create(task.init, tx, key, shardings), []
      frozen = jax.device_put({"teacher": task.teacher.params}, run.frozen_shardings(task, mesh))
      for _ in range(3):
        data = sharding.global_batch(mesh, batch())
        train_state, (sums, _) = step(train_state, data, sharding.everywhere(mesh, 0.01), frozen)
        numbers.append({name: float(total / weight) for name, (total, weight) in sums.items()})
    return numbers

  return losses


@pytest.fixture(scope="module")
def on_one_device(losses):
  return losses(MeshConfig(data=1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("mesh_config", [MeshConfig(data=2), MeshConfig(data=1, fsdp=2)], ids=["data", "fsdp"])
def test_two_devices_compute_the_same_losses_as_one(mesh_config, losses, on_one_device):
  double = losses(mesh_config, 2)
  assert {"distill_mlm", "distill_sop", "distill_hidden", "distill_relations"} <= on_one_device[0].keys()
  for a, b in zip(on_one_device, double, strict=True):
    assert a == pytest.approx(b, rel=2e-4)
  assert on_one_device[2]["loss"] < on_one_device[0]["loss"]


# Runs.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return made_up.checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return made_up.yes_or_no(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, data, quick_runs):
  """A trained teacher that is wider and deeper than the student."""
  folder = tmp_path_factory.mktemp("teacher")
  wide = made_up.checkpoint(folder, hidden_size=48, num_hidden_layers=3)
  assert main(["train", *flags(wide, data), f"--workdir={folder}/run"]) == 0
  return folder / "run"


def flags(checkpoint, data, **overrides):
  values = {
    "init_from": checkpoint, "data__dataset": data, "data__seq_length": 16, "batch_size": 16, "epochs": 0, "steps": 4,
    "eval_every": 4, "checkpoint_every": 2, "log_every": 1, "optimizer__learning_rate": 1e-2, **overrides,
  }  # fmt: skip
  return [f"--config={CONFIGS}/classify.py:base", *(f"--config.{k.replace('__', '.')}={v}" for k, v in values.items())]


@pytest.mark.slow
def test_a_run_learns_from_its_teacher_and_resumes_exactly(checkpoint, classifier, data, tmp_path, quick_runs, capsys):
  options = {"distill__teacher": classifier, "distill__hidden_weight": 1.0, "distill__relation_weight": 1.0}
  options |= {"optimizer__schedule": "constant"}  # Which does not depend on the number of steps.
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  for workdir, steps in ((parts, 2), (parts, 4), (whole, 4)):
    assert main(["train", *flags(checkpoint, data, **options, steps=steps), f"--workdir={workdir}"]) == 0
  first, second = (paths.flatten(convert.load(path)[1]) for path in (parts, whole))
  for path, value in first.items():
    np.testing.assert_array_equal(value, second[path], err_msg=path)
  assert not [path for path in first if path.startswith(("distill", "teacher"))]
  (last,) = (line for line in read(whole) if line["split"] == "train" and line["step"] == 4)
  assert {"distill_answer", "distill_hidden", "distill_relations"} <= last.keys()
  capsys.readouterr()
  assert main(["evaluate", f"--checkpoint={whole}"]) == 0
  assert "accuracy" in json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_teacher(checkpoint, classifier, data, tmp_path, quick_runs, capsys):
  folder = tmp_path / "teacher"
  cfg, params = convert.load(classifier)
  vocabulary = convert.load_tokenizer(classifier)

  def write(scale):
    changed = jax.tree.map(lambda x: x * scale, params)
    convert.save(folder, cfg, changed, vocabulary=vocabulary, overwrite=True)

  write(1.0)
  options = {"distill__teacher": folder, "distill__logit_weight": 0.0, "distill__hidden_weight": 1.0}
  assert main(["train", *flags(checkpoint, data, **options, steps=2), f"--workdir={tmp_path}/run"]) == 0
  write(0.5)
  capsys.readouterr()
  assert main(["train", *flags(checkpoint, data, **options, steps=4), f"--workdir={tmp_path}/run"]) == 2
  assert "the contents of the teacher changed" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    ({"distill__teacher": "nowhere"}, "nothing at 'nowhere'"),
    ({"distill__hidden_weight": 1.0}, "distill.hidden_weight=1.0 has no effect without a teacher"),
    ({"distill__teacher": "TEACHER", "distill__logit_weight": 0.0}, "has nothing to teach"),
    ({"distill__teacher": "TEACHER", "distill__temperature": 0.0}, "distill.temperature=0.0 must be from 0.01"),
    ({"distill__teacher": "TEACHER", "distill__relation_heads": 2}, "has no effect with distill.relation_weight=0"),
    ({"distill__teacher": "TEACHER", "distill__temperature": 3.0, "distill__logit_weight": 0.0,
      "distill__hidden_weight": 1.0}, "distill.temperature=3.0 has no effect with distill.logit_weight=0"),
    ({"distill__teacher": "CHECKPOINT"}, "has no 'classifier', which its answers need"),
    ({"distill__teacher": "TEACHER", "task__labels": "yes,no"}, "its labels is ['no', 'yes'], here ['yes', 'no']"),
    ({"distill__teacher": "TEACHER", "distill__relation_weight": 1.0, "distill__relation_heads": 5},
     "distill.relation_heads=5 must divide both hidden_size=32 and the teacher's 48; try"),
    ({"distill__teacher": "OTHER"}, "has another vocabulary"),
    ({"distill__least_layers": 2}, "distill.least_layers=2 must be below num_hidden_layers=2; try 1"),
    ({"distill__least_layers": 1, "distill__logit_weight": 0.0}, "has no effect with distill.logit_weight=0"),
    ({"distill__teacher": "SHORT"}, "has 8 positions, fewer than data.seq_length=16"),
  ],
  ids=str,
)  # fmt: skip
def test_what_it_refuses(checkpoint, classifier, data, tmp_path, capsys, overrides, words):
  if overrides.get("distill__teacher") == "OTHER":
    cfg = dataclasses.replace(SMALL, vocab_size=300)
    (tmp_path / "other").mkdir()
    vocabulary = made_up.vocabulary(tmp_path / "other", 300)
    convert.save(tmp_path / "OTHER", cfg, random_params(cfg), vocabulary=vocabulary)
  if overrides.get("distill__teacher") == "SHORT":
    (tmp_path / "short").mkdir()
    (made_up.checkpoint(tmp_path / "short", max_position_embeddings=8)).rename(tmp_path / "SHORT")
  names = {"TEACHER": classifier, "CHECKPOINT": checkpoint, "OTHER": tmp_path / "OTHER", "SHORT": tmp_path / "SHORT"}
  overrides = {key: names.get(value, value) for key, value in overrides.items()}
  assert main(["train", *flags(checkpoint, data, **overrides), f"--workdir={tmp_path}/run"]) == 2
  error = capsys.readouterr().err
  assert words in error and "Traceback" not in error
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_plan_counts_the_teacher(tmp_path):
  config = common.load_config(f"{CONFIGS}/pretrain.py:tiny")
  config.model.vocab_size = config.model.max_position_embeddings = 128
  cfg = dataclasses.replace(SMALL, vocab_size=128, max_position_embeddings=128, hidden_size=48)
  convert.save(
    tmp_path / "teacher", cfg, model.init(cfg, jax.random.key(0)), vocabulary=made_up.vocabulary(tmp_path, 128)
  )
  mesh = sharding.make_mesh(MeshConfig(data=1), config.batch_size, jax.devices()[:1])
  plain = planning.abstract_step(config, run.sketch(config), mesh)
  config.distill.teacher = str(tmp_path / "teacher")
  step, arguments = planning.abstract_step(config, task := run.sketch(config), mesh)
  assert len(plain[1]) == 3 and jax.tree.map(np.shape, arguments[3]["teacher"]) == jax.tree.map(
    np.shape, task.teacher.params
  )
  with jax.set_mesh(mesh):
    memory = [each.lower(*args).compile().memory_analysis() for each, args in (plain, (step, arguments))]
  more = memory[1].argument_size_in_bytes - memory[0].argument_size_in_bytes
  assert more >= 4 * model.param_count(task.teacher.params)


def test_answers_after_fewer_layers_imitate_those_after_all():
  cfg = dataclasses.replace(STUDENT, num_hidden_layers=4, hidden_dropout_prob=0.0)
  task = distill.adapt_depth(sketch(cfg), DistillConfig(least_layers=3, temperature=2.0))  # Always 3 of 4 layers.
  params, data = random_params(cfg), batch()
  sums = jax.jit(task.sums)(params, data, jax.random.split(jax.random.key(0), 8))
  out = [model.apply(dataclasses.replace(cfg, num_hidden_layers=n), params, data) for n in (4, 3)]
  logits = [np.asarray(o["mlm_logits"]) / 2 for o in out]
  expected = np.sum(4 * divergence(*logits) * data["mlm_weights"])
  np.testing.assert_allclose(sums["depth_mlm"][0], expected, rtol=1e-3)
  assert {"mlm_loss", "sop_loss", "depth_mlm", "depth_sop"} == {*task.terms(data)}


def test_a_teacher_and_fewer_layers_work_at_once():
  source = teacher()
  both = distill.adapt_depth(distill.adapt(sketch(), ALL, 12, lambda path: source), DistillConfig(least_layers=1))
  params = {**both.init(jax.random.key(0)), "teacher": both.teacher.params}
  sums = jax.eval_shape(both.sums, params, batch(), jax.random.split(jax.random.key(0), 8))
  assert (
    {"depth_mlm", "distill_mlm", "distill_hidden", "distill_relations"}
    <= {*sums}
    == {*both.terms(batch())} | {"mlm_accuracy", "sop_accuracy"}
  )


def test_only_tasks_with_answers_have_a_teacher():
  task = dataclasses.replace(sketch(), answers={})
  with pytest.raises(UserError, match="has no answers that another model could teach"):
    distill.adapt(task, ALL, 12, lambda path: teacher())


def test_hidden_states_are_recorded_in_every_layout():
  ids = jnp.asarray(batch()["input_ids"])
  for fields in ({}, {"share": "none"}, {"num_hidden_groups": 2}, {"unshared_ends": 1}, {"inner_group_num": 2}):
    cfg = dataclasses.replace(SMALL, **fields)
    params = random_params(cfg)
    with model.recorded(keeps_hidden=True) as calls:
      out = model.apply(cfg, params, {"input_ids": ids})
    assert "hidden" not in out
    expected = model.by_layer(cfg, params, {"input_ids": ids})["hidden"]
    np.testing.assert_allclose(calls[0].out["hidden"], expected, atol=1e-4)
