"""Pictures of what a model does: the numbers that are drawn, and the files."""

import dataclasses
import json

import jax
import made_up
import numpy as np
import pytest
from small_models import SMALL, random_params

from albert_jax import UserError, model, pictures
from albert_jax.commands import plot


def write_predictions(folder, rows, labels=("no", "yes")):
  """rows: (gold, probability of the second label)."""
  (folder / "predictions").mkdir(parents=True)
  lines = [
    json.dumps({"gold": labels[gold], "probabilities": {labels[0]: 1 - p, labels[1]: p}}) + "\n" for gold, p in rows
  ]
  (folder / "predictions/predictions.jsonl").write_text("".join(lines))
  return folder


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"share": "matrices", "num_hidden_groups": 2},
    {"share": "attention", "inner_group_num": 2},
  ],
  ids=lambda changes: ",".join(changes) or "shared",
)
def test_by_layer_computes_what_the_model_computes(changes):
  cfg = dataclasses.replace(SMALL, **changes)
  params = random_params(cfg)
  batch = {
    "input_ids": np.array([[1, 5, 9, 7, 2], [3, 8, 2, 0, 0]], np.int32),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
    "token_type_ids": np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], np.int32),
  }
  inside = jax.jit(lambda params, batch: model.by_layer(cfg, params, batch))(params, batch)
  N, H = cfg.num_hidden_layers, cfg.num_attention_heads
  assert inside["hidden"].shape == (N + 1, 2, 5, cfg.hidden_size)
  assert inside["attention"].shape == (N * cfg.inner_group_num, 2, H, 5, 5)
  expected = model.apply(cfg, params, batch)["sequence_output"]
  is_token = batch["attention_mask"] > 0
  np.testing.assert_allclose(inside["hidden"][-1][is_token], expected[is_token], rtol=2e-4, atol=2e-4)
  np.testing.assert_allclose(inside["attention"].sum(-1), 1, rtol=1e-5)
  assert not np.any(inside["attention"][:, 1, :, :, 3:]), "padding is not read"


def test_depth_is_cosine_and_distance_over_tokens():
  hidden = np.array([[[[1.0, 0.0], [9.0, 9.0]]], [[[0.0, 2.0], [1.0, 0.0]]], [[[0.0, 3.0], [0.0, 5.0]]]])
  cosine, distance = pictures.depth(hidden, np.array([[True, False]]))
  np.testing.assert_allclose(cosine, [0.0, 1.0], atol=1e-12)
  np.testing.assert_allclose(distance, [5**0.5, 1.0])
  figure = pictures.draw_depth({"a": (cosine, distance), "b": (cosine, distance)})
  line = figure.axes[0].lines[0]
  assert list(line.get_xdata()) == [1, 2]
  np.testing.assert_array_equal(line.get_ydata(), cosine)
  assert len({line.get_color() for line in figure.axes[0].lines}) == len({x.get_marker() for x in figure.axes[0].lines})


def test_confusion_counts_rows_by_right_label_and_answer(tmp_path):
  folder = write_predictions(tmp_path / "run", [(0, 0.1), (0, 0.9), (1, 0.8), (1, 0.7), (1, 0.6)])
  counts = pictures.confusion(pictures.read_predictions(folder))
  np.testing.assert_array_equal(counts, [[1, 1], [0, 3]])
  figure = pictures.draw_confusion(counts, ("no", "yes"))
  axes = figure.axes[0]
  assert [text.get_text() for text in axes.texts] == ["1", "1", "0", "3"]
  np.testing.assert_allclose(axes.images[0].get_array(), [[0.5, 0.5], [0, 1]])
  assert [tick.get_text() for tick in axes.get_yticklabels()] == ["no", "yes"]


def test_reliability_of_a_calibrated_and_an_overconfident_model(tmp_path):
  # Of ten answers at 0.8, eight are right.
  good = pictures.read_predictions(write_predictions(tmp_path / "good", [(1, 0.81)] * 8 + [(0, 0.81)] * 2))
  sure, right, counts, error = pictures.reliability(good)
  assert (sure[0], right[0], counts[0]) == (pytest.approx(0.81), pytest.approx(0.8), 10)
  assert error == pytest.approx(0.01)
  bad = pictures.read_predictions(write_predictions(tmp_path / "bad", [(1, 1.0)] * 5 + [(0, 1.0)] * 5))
  assert pictures.reliability(bad)[3] == pytest.approx(0.5)
  figure = pictures.draw_reliability({"good": pictures.reliability(good), "bad": pictures.reliability(bad)})
  diagonal, first, second = figure.axes[0].lines
  assert list(diagonal.get_xdata()) == [0, 1] and list(first.get_ydata()) == [pytest.approx(0.8)]
  assert first.get_color() != second.get_color()


def test_the_command_draws_every_kind(tmp_path, capsys):
  run = write_predictions(tmp_path / "run", [(0, 0.1), (1, 0.8)])
  checkpoint = made_up.checkpoint(tmp_path)
  text = "--text=bada kefe gigo."
  for out, args in {
    "attention.png": ["--kind=attention", str(checkpoint), text],
    "depth.svg": ["--kind=depth", f"a={checkpoint}", f"b={checkpoint}", text, "--text=bu."],
    "confusion.png": ["--kind=confusion", str(run)],
    "reliability.svg": ["--kind=reliability", f"mine={run}", f"again={run}"],
  }.items():
    plot.main([*args, f"--out={tmp_path / out}"])
    head = (tmp_path / out).read_bytes()[:300]
    assert head.startswith(b"\x89PNG") if out.endswith("png") else b"<svg" in head or b"DOCTYPE svg" in head
  printed = capsys.readouterr().out
  assert "2 layers of 4 heads" in printed and "2 of 2 rows are right" in printed and "mine: expected" in printed


def test_mistakes_are_one_line(tmp_path):
  run = write_predictions(tmp_path / "run", [(0, 0.1)])
  out = f"--out={tmp_path}/x.png"
  for args, message in {
    ("--kind=attention", "x"): "needs a text",
    ("--kind=attention", "x", "y", "--text=a"): "draws one checkpoint, got 2",
    ("--kind=attention", "x", "--text=a", "--text=b"): "draws one text, got 2",
    ("--kind=confusion", str(run), "--text=a"): "leave it out with --kind=confusion",
    ("--kind=confusion", str(tmp_path)): "give a complete run of a classifier",
    ("--kind=depth", str(tmp_path), "--text=a"): "holds no checkpoint",
  }.items():
    with pytest.raises(UserError, match=message):
      plot.main([*args, out])
  with pytest.raises(UserError, match=r"ends in one of \.png"):
    pictures.plot_confusion(run, tmp_path / "x.txt")
  (run / "predictions/predictions.jsonl").write_text('{"index": 1, "prediction": 2.5}\n')
  with pytest.raises(UserError, match="line 1: expected an object with gold and probabilities"):
    pictures.plot_confusion(run, tmp_path / "x.png")
  (run / "predictions/predictions.jsonl").write_text('{"gold": ["a"], "probabilities": {"a": 1.0}}\n')
  with pytest.raises(UserError, match="expected one label a row"):
    pictures.plot_confusion(run, tmp_path / "x.png")
