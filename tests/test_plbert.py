"""The task plbert: its loss against a plain statement of PL-BERT's, masking, and what a run leaves."""

import copy
import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_phonemes import make, write_lines
from test_styletts2 import open_as_styletts2

import albert_jax
from albert_jax import __main__, loop, model, planning, tasks
from albert_jax.configs import plbert as configs
from albert_jax.data import records
from albert_jax.data.speech import audit, batching, lexicon, symbols
from albert_jax.data.speech.batching import SpeechConfig
from albert_jax.errors import UserError
from albert_jax.tasks import heads, plbert
from albert_jax.training import sharding

CFG = model.AlbertConfig(
  vocab_size=178, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
  max_position_embeddings=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """Returns a dataset of made-up words, of which many have no target."""
  folder = tmp_path_factory.mktemp("plbert")
  make(folder, words=40, validation_fraction=0.2)
  return str(folder / "dataset")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
  """Returns a dataset of documents that are shorter than rows of 256."""
  folder = tmp_path_factory.mktemp("short")
  make(folder, source=write_lines(folder / "lines.jsonl", documents=80, lines=1), words=40, validation_fraction=0.2)
  return str(folder / "dataset")


@pytest.fixture
def packed(short):
  return SpeechConfig(short, seq_length=256, packing=4)


def batch_of(dataset, rows=8, slots=0, **fields):
  cfg = SpeechConfig(dataset, **{"seq_length": 64} | fields)
  return batching.batch_maker(cfg, batch_size=rows, seed=3, word_slots=slots).explain(0)


def config_of(dataset, **fields):
  config = configs.get_config("small")
  config.update({
    "steps": 6, "batch_size": 8, "log_every": 2, "eval_every": 3, "checkpoint_every": 3, "eval_batches": 2,
    "data": {"dataset": dataset, "seq_length": 64}, "model": {**dataclasses.asdict(CFG)},
    "optimizer": {"warmup_steps": 2}, "curriculum": {"seq_length": "", "batch_size": ""},
  })  # fmt: skip
  config.update(fields)
  return config


class TestLoss:
  @pytest.mark.parametrize("slots", [0, 16])
  def test_it_is_that_of_a_plain_statement_in_pytorch(self, dataset, slots):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    words = batching.describe(dataset)["vocabulary"]["words"]
    params = plbert.init(CFG, words, jax.random.key(0))
    batch, _ = batch_of(dataset, slots=slots)
    batch["phoneme_weights"][2] = 0  # a row without masked words
    sums = plbert.sums(CFG, 32, params, batch, None)
    coefficients = plbert.terms(1.0, 1.0, batch)
    ours = sum(coefficients[name] * sums[name][0] for name in coefficients)

    # The loop of PL-BERT as its facts are: rows one by one, at their own lengths.
    hidden = albert_jax.apply(CFG, params, batch)["sequence_output"]
    hidden = torch.tensor(np.asarray(hidden))
    head = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), {name: params[name] for name in ("phoneme", "word")})
    phonemes, spelled = (hidden @ head[name]["kernel"] + head[name]["bias"] for name in ("phoneme", "word"))
    loss_words, loss_phonemes, sizes = 0.0, 0.0, 1
    entropy = torch.nn.CrossEntropyLoss(ignore_index=lexicon.UNKNOWN)
    for row in range(len(hidden)):
      length = int(batch["attention_mask"][row].sum())
      targets = torch.tensor(batch["word_labels"][row], dtype=torch.long)
      at = torch.tensor(batch["word_positions"][row], dtype=torch.long) if slots else torch.arange(length)
      targets = targets if slots else targets[:length]
      if slots:
        at, targets = (x[batch["word_weights"][row] > 0] for x in (at, targets))
      loss_words += entropy(spelled[row, at], targets)
      masked = torch.tensor(np.flatnonzero(batch["phoneme_weights"][row]))
      if len(masked):
        labels = torch.tensor(batch["phoneme_labels"][row], dtype=torch.long)
        loss_phonemes += torch.nn.functional.cross_entropy(phonemes[row, masked], labels[masked])
        sizes += 1
    theirs = loss_words / len(hidden) + loss_phonemes / sizes
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)

  @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
  def test_in_chunks_it_has_the_loss_and_gradient_of_the_whole(self, dtype):
    rng = np.random.default_rng(0)
    B, P, D, C = 3, 10, 8, 21
    x, kernel, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((B, P, D), (D, C), (C,)))
    labels, weights = jnp.asarray(rng.integers(0, C, (B, P))), jnp.asarray(rng.random((B, P)), jnp.float32)

    def whole(x, kernel, bias):
      logits = jnp.einsum("bpd,dc->bpc", x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
      return 3 * heads.cross_entropy(logits + bias[None, None], labels, weights)[0][0]

    def chunked(x, kernel, bias, chunk):
      return 3 * heads.chunked_cross_entropy(x.astype(dtype), kernel, bias, labels, weights, chunk)[0]

    expected, gradient = jax.jit(jax.value_and_grad(whole, (0, 1, 2)))(x, kernel, bias)
    for chunk in (1, 15, 1000):
      value, ours = jax.jit(jax.value_and_grad(chunked, (0, 1, 2)), static_argnums=3)(x, kernel, bias, chunk)
      assert value == pytest.approx(float(expected), rel=1e-5)
      for a, b in zip(ours, gradient, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 if dtype == jnp.float32 else 0.1)
    outside = labels.at[1, 2].set(C)
    assert np.isnan(heads.chunked_cross_entropy(x.astype(dtype), kernel, bias, outside, weights, 15)[0])

  def test_an_unknown_word_costs_nothing(self, dataset):
    batch, rows = batch_of(dataset)
    is_unknown = rows.is_token & ~rows.is_space & (batch["word_labels"] == lexicon.UNKNOWN)
    assert is_unknown.any() and not batch["word_weights"][is_unknown].any()
    np.testing.assert_allclose(batch["word_weights"].sum(axis=1), 1, rtol=1e-5)


class TestRows:
  def test_a_row_is_the_phonemes_of_its_words_with_spaces(self, dataset):
    batch, rows = batch_of(dataset, seq_length=4000)
    words, table = lexicon.load(dataset), symbols.load(dataset)
    for row in range(len(rows.ids)):
      text = "".join(table.pieces[i] for i in rows.ids[row][rows.is_token[row]])
      starts = np.flatnonzero(np.append(True, rows.is_space[row][:-1]) & rows.is_token[row])
      assert text == "".join(words.phonemes[e] + " " for e in rows.entry[row][starts])
      names = [words.words[e] for e in rows.entry[row][starts]]
      targets = lexicon.load_targets(dataset)
      labels = [targets[t] for t in batch["word_labels"][row][starts]]
      assert all(label in (name, "<unknown>") for label, name in zip(labels, names, strict=True))

  def test_whole_words_are_masked_80_10_10(self, dataset):
    cfg = SpeechConfig(dataset, seq_length=64)
    maker = batching.batch_maker(cfg, batch_size=256, seed=0)
    words, table = lexicon.load(dataset), symbols.load(dataset)
    counts = {"all": 0, "chosen": 0, "mask": 0, "kept": 0}
    for step in range(8):
      batch, rows = maker.explain(step)
      assert (rows.shown[~rows.is_chosen] == rows.ids[~rows.is_chosen]).all()
      assert (batch["phoneme_weights"] > 0).tolist() == rows.is_chosen.tolist()
      word = np.cumsum(np.pad(rows.is_space, ((0, 0), (1, 0)))[:, :-1], axis=1)
      for row in range(len(rows.ids)):
        for number in range(1, word[row].max()):  # not the first and last, of which a part may be outside
          at = (word[row] == number) & rows.is_token[row] & ~rows.is_space[row]
          if not at.any():
            continue
          assert rows.is_chosen[row][at].all() or not rows.is_chosen[row][at].any()
          counts["all"] += 1
          if rows.is_chosen[row][at].all():
            shown = rows.shown[row][at]
            counts["chosen"] += 1
            counts["mask"] += (shown == table.mask_id).all()
            counts["kept"] += (shown == rows.ids[row][at]).all()
            assert (shown == table.mask_id).all() or not (shown == table.mask_id).any()
            assert set(shown) <= set(words.symbols) | {table.mask_id}
    assert counts["chosen"] / counts["all"] == pytest.approx(0.15, abs=0.01)
    assert counts["mask"] / counts["chosen"] == pytest.approx(0.8, abs=0.03)
    assert counts["kept"] / counts["chosen"] == pytest.approx(0.1, abs=0.03)

  def test_a_row_does_not_depend_on_the_batch_nor_on_hosts(self, dataset):
    cfg = SpeechConfig(dataset, seq_length=64)
    whole = batching.batch_maker(cfg, batch_size=8, seed=1, word_slots=8)(3)
    halves = [batching.batch_maker(cfg, batch_size=8, seed=1, word_slots=8, host=h, hosts=2)(3) for h in (0, 1)]
    ones = [batching.batch_maker(cfg, batch_size=1, seed=1, word_slots=8)(24 + i) for i in range(8)]
    for name, array in whole.items():
      np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))
      np.testing.assert_array_equal(array, np.concatenate([part[name] for part in ones]))

  @pytest.mark.slow
  def test_worker_processes_make_the_same_batches(self, dataset):
    def first_three(workers):
      cfg = SpeechConfig(dataset, seq_length=64, workers=workers)
      batches = batching.train_batches(cfg, batch_size=4, seed=1, word_slots=8, start_step=5)
      return [next(batches) for _ in range(3)]

    for a, b in zip(first_three(0), first_three(2), strict=True):
      for name in a:
        np.testing.assert_array_equal(a[name], b[name])

  def test_windows_move_from_epoch_to_epoch(self, dataset):
    cfg = SpeechConfig(dataset, seq_length=64)
    source = batching.datasets.open_split(dataset, "train")
    batch = records.unpack(batching.datasets.fetch(source, [0] * 50))
    rows = batching.make_rows(batch, np.arange(50), 0, cfg, lexicon.load(dataset), symbols.load(dataset))
    assert len({row.tobytes() for row in rows.ids}) > 25
    assert rows.is_token.all()

  def test_positions_of_the_word_loss_are_counted_ones_without_repetition(self, dataset):
    batch, rows = batch_of(dataset, rows=64, slots=16)
    assert batch["word_positions"].shape == (64, 16)
    for row in range(64):
      used = batch["word_positions"][row][batch["word_weights"][row] > 0]
      assert len(set(used.tolist())) == len(used) and rows.is_token[row][used].all()
    spread = np.bincount(batch["word_positions"][batch["word_weights"] > 0], minlength=64)
    assert (spread > 0).sum() > 55


@pytest.mark.parametrize("field", ["split", "validation_split"])
def test_a_split_is_checked_before_a_run_begins(dataset, field):
  config = config_of(dataset)
  config.data[field] = "nope"
  with pytest.raises(UserError, match="nope"):
    plbert.make(config)


@pytest.mark.usefixtures("quick_runs")
class TestRun:
  @pytest.mark.slow
  def test_it_resumes_exactly_and_is_exported(self, dataset, tmp_path, caplog):
    half = config_of(dataset, steps=3)
    half.optimizer.update({"schedule": "constant", "decay_share": 0.1})
    again = copy.deepcopy(half)
    again.steps = 6
    loop.train(half, str(tmp_path / "parts"))
    loop.train(again, str(tmp_path / "parts"))
    caplog.set_level("INFO", "albert_jax")
    loop.train(again, str(tmp_path / "one"))
    shown = caplog.text
    assert "phoneme_accuracy" in shown and "always the most frequent symbol" in shown
    lines = [json.loads(line) for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["split"] == "eval"][-1]
    assert {"phoneme_loss", "phoneme_accuracy", "word_loss", "word_accuracy"} <= held_out.keys()
    first, second = (albert_jax.load(tmp_path / name) for name in ("parts", "one"))
    for a, b in zip(jax.tree.leaves(first[1]), jax.tree.leaves(second[1]), strict=True):
      np.testing.assert_array_equal(a, b)

    export = tmp_path / "one/export"
    assert symbols.load(export).pieces == symbols.load(dataset).pieces
    assert lexicon.load_targets(export) == lexicon.load_targets(dataset)
    assert json.loads((export / "config.json").read_text())["architectures"] == ["AlbertModel"]

    folder = tmp_path / "plbert"
    assert __main__.main(["export", f"--checkpoint={tmp_path / 'one'}", f"--out={folder}", "--to=styletts2"]) == 0
    assert (folder / "step_6.t7").is_file() and lexicon.load_targets(folder) == lexicon.load_targets(dataset)
    torch = pytest.importorskip("torch")
    ids = batch_of(dataset, rows=2)[0]["input_ids"]
    with torch.no_grad():
      theirs = open_as_styletts2(folder)(torch.tensor(ids)).last_hidden_state.numpy()
    ours = albert_jax.apply(*second, {"input_ids": ids})["sequence_output"]
    np.testing.assert_allclose(ours, theirs, atol=2e-5)

  @pytest.mark.slow
  def test_it_begins_with_an_encoder_without_heads(self, dataset, tmp_path):
    params = {name: part for name, part in model.init(CFG, jax.random.key(7)).items() if name not in ("mlm", "sop")}
    albert_jax.save(tmp_path / "encoder", CFG, params, vocabulary=symbols.load("styletts2"))
    config = config_of(dataset, steps=1, init_from=str(tmp_path / "encoder"))
    config.optimizer.warmup_steps = 0
    config.optimizer.learning_rate = 1e-30
    loop.train(config, str(tmp_path / "run"))
    _, back = albert_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(
      back["embeddings"]["word"]["embedding"], params["embeddings"]["word"]["embedding"]
    )  # fmt: skip

  def test_another_symbol_table_is_refused(self, dataset, tmp_path):
    albert_jax.save(tmp_path / "x", CFG, model.init(CFG, jax.random.key(7)), vocabulary=symbols.load("kokoro"))
    with pytest.raises(UserError, match="another symbol table"):
      tasks.make(config_of(dataset, init_from=str(tmp_path / "x")))

  def test_a_dataset_of_text_and_one_of_phonemes_are_not_mixed_up(self, dataset, tmp_path):
    from made_up import dataset as text_dataset
    from made_up import documents

    text = text_dataset(tmp_path, documents(20))
    with pytest.raises(UserError, match="holds text, not phonemes"):
      tasks.make(config_of(str(text)))
    from albert_jax.data import datasets

    with pytest.raises(UserError, match="holds phonemes, not text"):
      datasets.tokenizer(dataset)

  @pytest.mark.parametrize(
    ("change", "message"),
    [
      ({"loss": {"word_positions": 0.0}}, "loss.word_positions=0.0 must be a share"),
      ({"data": {"mask_rate": 0.0}}, "leaves no phoneme to learn"),
      ({"data": {"dataset": "absent"}}, "data.dataset=absent is no dataset; make one with: albert-jax phonemes"),
      ({"model": {"vocab_size": 99}}, "try --config.model.vocab_size=178"),
      ({"data": {"seq_length": 512}}, "exceeds model.max_position_embeddings=64"),
      ({"data": {"mask_share": 0.95}}, "add up to more than 1"),
    ],
  )
  def test_what_cannot_be_is_one_line(self, dataset, change, message):
    with pytest.raises(UserError, match=message):
      tasks.make(config_of(dataset, **change))


class TestPacking:
  def test_a_packed_row_has_the_losses_of_its_examples_alone(self, packed):
    cfg = dataclasses.replace(CFG, max_position_embeddings=256)
    batch, rows = batching.batch_maker(packed, batch_size=6, seed=3).explain(0)
    alone = []
    for row in range(6):
      for segment in range(1, rows.segment_ids[row].max() + 1):
        at = np.flatnonzero(rows.segment_ids[row] == segment)
        fields = {name: getattr(rows, name)[row] for name in batching.Rows._fields[:6]}
        alone.append({name: np.pad(values[at], (0, 256 - len(at))) for name, values in fields.items()})
    assert len(alone) > 12 and batch["weight"].sum() == len(alone)
    alone_rows = batching.Rows(**{name: np.stack([row[name] for row in alone]) for name in alone[0]})
    alone_batch = batching.make_batch(alone_rows, np.arange(len(alone)), 3, lexicon.load(packed.dataset))
    params = plbert.init(cfg, batching.describe(packed.dataset)["vocabulary"]["words"], jax.random.key(0))
    params["embeddings"]["position"]["embedding"] *= 20  # else the positions hardly matter

    def losses(batch):
      sums = jax.jit(functools.partial(plbert.sums, cfg, 256))(params, batch, None)
      coefficients = plbert.terms(1.0, 1.0, batch)
      return {name: float(sums[name][0] * coefficients[name]) for name in coefficients}, sums

    ours, sums = losses(batch)
    expected, expected_sums = losses(alone_batch)
    for name, loss in expected.items():
      assert ours[name] == pytest.approx(loss, abs=1e-5), name
    for name in ("phoneme_accuracy", "word_accuracy"):
      assert [float(x) for x in sums[name]] == [float(x) for x in expected_sums[name]]

  def test_drawn_positions_stand_for_those_of_all_examples(self, packed):
    maker = batching.batch_maker(packed, batch_size=32, seed=0, word_slots=64)
    batch = maker(0)
    whole = batching.batch_maker(packed, batch_size=32, seed=0)(0)["word_weights"]
    position = batch["word_positions"]
    share = np.minimum(1, 64 / (whole > 0).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(batch["word_weights"], np.take_along_axis(whole, position, axis=1) / share, rtol=1e-6)
    totals = [maker(step)["word_weights"].sum() / maker(step)["weight"].sum() for step in range(20)]
    assert np.mean(totals) == pytest.approx(1, abs=0.03)

  def test_every_record_is_in_one_row_an_epoch_and_rows_are_full(self, packed):
    plain = dataclasses.replace(packed, packing=1)
    sizes = batching.datasets.lengths(packed.dataset, "train")[:, 1]
    source = batching.datasets.open_split(packed.dataset, "train")
    batch = records.unpack(batching.datasets.fetch(source, list(range(len(source)))))
    rows = batching.make_rows(
      batch, np.arange(len(source)), 0, plain, lexicon.load(packed.dataset), symbols.load(packed.dataset)
    )
    np.testing.assert_array_equal(sizes, rows.is_token.sum(axis=1))
    held_out = list(batching.eval_batches(packed, batch_size=4, seed=0))
    alone = list(batching.eval_batches(plain, batch_size=4, seed=0))
    assert sum(b["weight"].sum() for b in held_out) == sum(b["weight"].sum() for b in alone)
    assert sum(b["attention_mask"][b["weight"] > 0].sum() for b in held_out) == sum(
      b["attention_mask"][b["weight"] > 0].sum() for b in alone
    )
    numbers, rows = audit.measure(packed, 256)
    assert numbers["padding_share"] < 0.1 < 0.4 < audit.measure(plain, 256)[0]["padding_share"]
    assert (rows.position_ids[:, 1:] > rows.position_ids[:, :-1]).mean() > 0.9

  def test_a_row_does_not_depend_on_the_batch_nor_on_hosts(self, packed):
    options = {"seed": 1, "word_slots": 8}
    whole = batching.batch_maker(packed, batch_size=8, **options)(3)
    halves = [batching.batch_maker(packed, batch_size=8, **options, host=h, hosts=2)(3) for h in (0, 1)]
    ones = [batching.batch_maker(packed, batch_size=1, **options)(24 + i) for i in range(8)]
    for name, array in whole.items():
      np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))
      np.testing.assert_array_equal(array, np.concatenate([part[name] for part in ones]))

  def test_a_dataset_without_sizes_in_symbols_is_refused(self, short, tmp_path):
    shutil.copytree(short, tmp_path / "old")
    lengths = np.load(tmp_path / "old/lengths-train.npy")
    lengths[:, 1] = 1
    np.save(tmp_path / "old/lengths-train.npy", lengths)
    with pytest.raises(UserError, match="make it again with albert-jax phonemes"):
      batching.batch_maker(SpeechConfig(str(tmp_path / "old"), seq_length=256, packing=4), batch_size=4, seed=0)

  def test_a_run_is_packed(self, short, tmp_path):
    config = config_of(short, steps=2, eval_every=2, checkpoint_every=2)
    config.data.packing, config.loss.word_chunk, config.optimizer.warmup_steps = 4, 64, 0
    loop.train(config, str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["word_loss"] for line in lines]).all()


class TestPlanning:
  @pytest.mark.parametrize(("share", "packing"), [(1.0, 1), (0.25, 1), (0.25, 4)])
  def test_the_sketch_of_a_batch_is_the_batch(self, dataset, share, packing):
    config = config_of(dataset, loss={"word_positions": share})
    config.data.packing = packing
    batch = next(iter(tasks.make(config).train_batches(0, 0, 1)))
    sketch = tasks.sketch(config)
    assert sketch.arrays == {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert sketch.row_flops == tasks.make(config).row_flops

  def test_a_plan_needs_no_dataset(self):
    config = configs.get_config("base")
    sketch = tasks.sketch(config)
    params = jax.eval_shape(sketch.init, jax.random.key(0))
    assert params["word"]["kernel"].shape == (768, 30_002)
    mesh = sharding.make_mesh(sharding.MeshConfig(), config.batch_size)
    step, arguments = planning.abstract_step(config, sketch, mesh)
    with jax.set_mesh(mesh):
      step.lower(*arguments)


class TestAudit:
  def test_it_shows_words_with_phonemes_and_says_what_is_wrong(self, dataset, capsys, tmp_path):
    argv = ["audit", dataset, "--examples=256", "--show=2", f"--json={tmp_path / 'audit.json'}"]
    code = __main__.main(argv)
    out = capsys.readouterr().out
    numbers = json.loads((tmp_path / "audit.json").read_text())
    assert "strangest words: " in out and "/{" in out
    assert code == 1 and numbers["problems"] == ["padding_share"] and "OUT OF RANGE: documents are shorter" in out
    assert numbers["mask_rate"] == pytest.approx(0.15, abs=0.02)
    assert __main__.main([*argv, "--config=configs/pretrain.py:tiny"]) == 2

  def test_words_that_the_window_cuts_are_marked(self, tmp_path):
    lines = [{"document": i, "words": ["ab", "cd"] * 50, "phonemes": ["xyz", "tuv"] * 50} for i in range(4)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    make(tmp_path, source=tmp_path / "x.jsonl", validation_fraction=0.25)
    dataset = str(tmp_path / "dataset")
    maker = batching.batch_maker(SpeechConfig(dataset, seq_length=9, mask_rate=0.0), batch_size=16, seed=0)
    rows = maker.explain(0)[1]
    expected = {
      "ab/xyz cd/tuv ab/x…", "ab/…yz cd/tuv ab/xy…", "ab/…z cd/tuv ab/xyz", "cd/tuv ab/xyz",
      "cd/tuv ab/xyz cd/t…", "cd/…uv ab/xyz cd/tu…", "cd/…v ab/xyz cd/tuv", "ab/xyz cd/tuv",
    }  # fmt: skip
    shown = {audit.show_row(rows, row, dataset) for row in range(16)}
    assert shown <= expected and any("…" in row for row in shown)

  def test_words_of_one_target_are_noticed(self, tmp_path):
    lines = [{"document": i, "words": ["a"] * 200, "phonemes": ["x"] * 200} for i in range(4)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    make(tmp_path, source=tmp_path / "x.jsonl", validation_fraction=0.25)
    cfg = SpeechConfig(str(tmp_path / "dataset"), seq_length=64)
    numbers, _ = audit.measure(cfg, 256)
    wrong = [check.name for check in audit.checks(numbers, cfg) if not check.is_fine]
    assert wrong == ["word_entropy"]

  def test_the_strangest_words_are_those_unlike_the_others(self, tmp_path):
    words = ["".join(c) for c in ("aba", "abab", "baba", "bab", "ababa", "bababa")] * 20 + ["qzx"]
    lines = [{"document": i, "words": words, "phonemes": words} for i in range(4)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    make(tmp_path, source=tmp_path / "x.jsonl", validation_fraction=0.25)
    assert audit.strangest(str(tmp_path / "dataset"), 1)[0][0] == "qzx"
