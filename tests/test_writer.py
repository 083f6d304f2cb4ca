import json

import jax.numpy as jnp
import pytest

from albert_jax.training.writer import Writer, ratios, read


def test_lines_are_means_over_their_window(tmp_path, capsys):
  writer = Writer(tmp_path, 0, 4, 2)
  for step in range(1, 5):
    writer.train(step, 10, {"loss": (jnp.float32(step), jnp.float32(2))}, {"learning_rate": jnp.float32(step)})
  writer.write(4, "eval", {"loss": 1.0})
  writer.close()
  lines = read(tmp_path)
  assert [(line["step"], line["split"], line["loss"]) for line in lines] == [
    (2, "train", 0.75), (4, "train", 1.75), (4, "eval", 1.0),
  ]  # fmt: skip
  assert lines[1]["learning_rate"] == 4
  assert lines[1]["tokens_per_s"] > 0
  assert "step 4/4 loss=1.7500" in capsys.readouterr().err


def test_going_on_drops_what_came_after_and_a_line_cut_short(tmp_path):
  lines = [json.dumps({"step": step, "split": "train"}) for step in (1, 2, 3)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 2, "sp')
  Writer(tmp_path, 2, 4, 2).close()
  assert [line["step"] for line in read(tmp_path)] == [1, 2]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
  writer = Writer(tmp_path, 0, 4, 2)
  with pytest.raises(FloatingPointError, match="mlm_loss is not a finite number at step 1"):
    writer.train(1, 10, {"mlm_loss": (jnp.float32("nan"), 1.0)}, {})
  writer.close()


def test_nothing_to_count_gives_no_number():
  assert ratios({"a": (1.0, 2.0), "b": (0.0, 0.0)}) == {"a": 0.5}


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path):
  writer = Writer(tmp_path, 0, 4, 2)
  with pytest.raises(FloatingPointError, match="grad_norm is not a finite number at step 1"):
    writer.train(1, 10, {"loss": (jnp.float32(1), 1.0)}, {"grad_norm": jnp.float32("inf")})
  writer.close()
