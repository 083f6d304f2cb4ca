"""The picture of runs: what is in it, whatever the runs hold."""

import json
import math

import pytest

from albert_jax import UserError, curves
from albert_jax.commands import plot


def make_run(folder, steps=300, rate=1.0, task="mlm", config=None):
  folder.mkdir(parents=True)
  lines = []
  for step in range(10, steps + 1, 10):
    loss = 3 + 5 * math.exp(-rate * step / 100)
    extra = {"learning_rate": 1e-3, "tokens_per_s": 9000.0 + step, "grad_norm": 1.0, "trust_ratio_min": 1.0}
    lines.append({"step": step, "split": "train", f"{task}_loss": loss + 0.2 * math.sin(step), **extra})
    if step % 50 == 0:
      lines.append({"step": step, "split": "eval", f"{task}_loss": loss, f"{task}_accuracy": 1 / loss})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  curves.note_baselines(folder, {f"{task}_loss": (7.5, "unigram")})
  if config:
    (folder / "config.json").write_text(json.dumps(config))
  return folder


def test_runs_of_several_tasks_are_one_picture(tmp_path, capsys):
  first, second, third = (
    make_run(tmp_path / "a/run"), make_run(tmp_path / "b/run", 500, 2.0), make_run(tmp_path / "ner", task="tag"),
  )  # fmt: skip
  for suffix in ("png", "svg"):
    plot.main([str(first), f"mine={second}", str(third), f"--out={tmp_path}/curves.{suffix}"])
  assert "3 runs: mlm_loss, tag_loss, mlm_accuracy, tag_accuracy" in capsys.readouterr().out
  assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
  assert "</svg>" in (tmp_path / "curves.svg").read_text()


def test_a_picture_without_a_name_is_named_after_its_kind(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  plot.main([str(make_run(tmp_path / "run"))])
  assert "wrote curves.png" in capsys.readouterr().out and (tmp_path / "curves.png").exists()


def test_panels_lines_and_ticks(tmp_path):
  runs = [curves.read_run(make_run(tmp_path / name, 30), name) for name in ("x", "y")]
  figure, metrics = curves.draw(runs)
  assert metrics == ["mlm_loss"]  # No evaluation yet, so no accuracy.
  assert [axes.get_title() for axes in figure.axes] == [
    "mlm loss",
    "learning rate",
    "tokens per second",
    "gradient norm",
  ]
  colours = {line.get_color() for line in figure.axes[0].lines}
  assert {curves.COLOURS[0], curves.COLOURS[1]} < colours
  assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_xticks())
  assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["x", "y"]


def test_baselines_that_differ_have_the_colour_and_the_name_of_their_run(tmp_path):
  first, second = make_run(tmp_path / "wiki"), make_run(tmp_path / "reports")
  curves.note_baselines(second, {"mlm_loss": (6.5, "unigram")})

  def drawn(*folders):
    axes = curves.draw([curves.read_run(folder) for folder in folders])[0].axes[0]
    return {line.get_color() for line in axes.lines if line.get_linestyle() == "--"}, [t.get_text() for t in axes.texts]

  assert drawn(first, first) == ({"0.35"}, ["unigram"])
  assert drawn(first, second) == (set(curves.COLOURS[:2]), ["unigram (wiki)", "unigram (reports)"])


def test_a_run_of_one_line_is_a_point(tmp_path):
  for steps, marker in ((10, "."), (20, "")):
    figure, _ = curves.draw([curves.read_run(make_run(tmp_path / str(steps), steps))])
    assert figure.axes[0].lines[0].get_marker() == marker


def test_metrics_of_one_name_share_a_panel_only_within_a_task(tmp_path):
  def config(task, data, **more):
    return {"task": {"name": task, **more}, "data": {"dataset": data}}

  configs = {
    "a": config("classify", "films"),
    "b": config("classify", "/data/films/"),
    "c": config("classify", "stars"),
    "d": config("glue", "glue_data", dataset="sst-2"),
    "e": config("glue", "glue_data", dataset="mrpc"),
  }
  runs = [curves.read_run(make_run(tmp_path / name, config=settings)) for name, settings in configs.items()]
  figure, _ = curves.draw(runs)
  drawn = {axes.get_title(): {line.get_color() for line in axes.lines} for axes in figure.axes}
  colour = dict(zip(configs, curves.COLOURS, strict=False))
  dash = "0.35"
  assert drawn["mlm loss (classify: films)"] == {colour["a"], colour["b"], dash}
  assert drawn["mlm loss (classify: stars)"] == {colour["c"], dash}
  assert drawn["mlm loss (glue: sst-2)"] == {colour["d"], dash} and "mlm loss (glue: mrpc)" in drawn
  assert len(drawn["learning rate"]) == 5, "the run's own panels show all runs"
  single_task, _ = curves.draw(runs[:2])
  assert single_task.axes[0].get_title() == "mlm loss", "a name is enough if there is one task"


def test_pre_training_runs_share_panels_whatever_they_read(tmp_path):
  runs = [
    curves.read_run(make_run(tmp_path / name, config={"task": {"name": "pretrain"}, "data": {"dataset": name}}))
    for name in ("wiki", "books")
  ]
  assert [axes.get_title() for axes in curves.draw(runs)[0].axes][:2] == ["mlm loss", "mlm accuracy"]


def test_names_tell_runs_apart():
  assert curves.names_of(["/a/one", "/a/two"]) == ["one", "two"]
  assert curves.names_of(["/a/run", "/b/run"]) == ["a/run", "b/run"]


def test_damage_and_mistakes_are_one_line(tmp_path):
  folder = make_run(tmp_path / "run")
  with open(folder / "metrics.jsonl", "a") as file:
    file.write('{"step": 310, "spl')  # Being written.
  (folder / "baselines.json").write_text("{")
  assert curves.read_run(folder).baselines == {}
  for paths, out, message in (
    ([tmp_path / "none"], "x.png", "no metrics.jsonl"),
    ([folder], tmp_path / "x.txt", "ends in one of .png"),
  ):
    with pytest.raises(UserError, match=message):
      curves.plot(paths, out)
  (folder / "metrics.jsonl").write_text("")
  with pytest.raises(UserError, match="no metrics yet"):
    curves.plot([folder], tmp_path / "x.png")


def test_a_constant_is_a_flat_line_on_a_readable_scale():
  lines = [{"step": step, "split": "eval", "mcc": value} for step, value in ((10, 0.0), (20, 1e-17))]
  figure, _ = curves.draw([curves.Run("a", lines, {"mcc": (0.0, "always the same")})])
  low, high = figure.axes[0].get_ylim()
  assert -1 < low < 0 < high < 1 and high - low > 0.5
