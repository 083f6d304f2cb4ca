import json
import logging
import time

import numpy as np
import pytest

from albert_jax.training.writer import Writer, is_evaluated, last_evaluation, ratios, read


def test_lines_are_means_over_their_window(tmp_path, caplog):
  caplog.set_level(logging.INFO, "albert_jax")
  writer = Writer(tmp_path, 0, 4, 2)
  for step in range(1, 5):
    writer.train(step, (10, 0.0, 0.0), {"loss": (np.float32(step), np.float32(2))}, {"learning_rate": np.float32(step)})
  writer.write(4, "eval", {"loss": 1.0})
  writer.close()
  lines = read(tmp_path)
  assert [(line["step"], line["split"], line["loss"]) for line in lines] == [
    (2, "train", 0.75), (4, "train", 1.75), (4, "eval", 1.0),
  ]  # fmt: skip
  assert [line.get("tokens") for line in lines] == [20, 20, None]
  assert lines[1]["learning_rate"] == 4
  assert lines[1]["tokens_per_s"] > 0
  assert "step 4/4 loss=1.7500" in caplog.text


def test_going_on_drops_what_came_after_and_a_line_cut_short(tmp_path):
  lines = [json.dumps({"step": step, "split": "train"}) for step in (1, 2, 3)]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 2, "sp')
  Writer(tmp_path, 2, 4, 2).close()
  assert [line["step"] for line in read(tmp_path)] == [1, 2]


def test_nothing_to_count_gives_no_number():
  assert ratios({"a": (1.0, 2.0), "b": (0.0, 0.0)}) == {"a": 0.5}


def test_speed_counts_from_the_first_step_on(tmp_path):
  writer = Writer(tmp_path, 0, 3, 3, peak=1e3)
  for step in range(1, 4):
    writer.train(step, (10, 1e3, 0.1 * step), {"loss": (1.0, 1.0)}, {})
    time.sleep(0.05)
  writer.close()
  (line,) = read(tmp_path)
  seconds = 20 / line["tokens_per_s"]  # Those of steps 2 and 3: the first one's time is the compiler's.
  assert 0.05 < seconds < 5
  # The loop looks at a step when the next one has begun: step 2 had waited for its batch before the clock began.
  assert line["input_stall"] == pytest.approx(0.3 / seconds, rel=1e-6)
  assert line["mfu"] == pytest.approx(2e3 / 1e3 / seconds, rel=1e-6)


def test_after_a_pause_the_clock_begins_with_the_next_step(tmp_path):
  writer = Writer(tmp_path, 0, 4, 1)
  for step in range(1, 5):
    writer.train(step, (10, 0.0, 0.0), {"loss": (1.0, 1.0)}, {})
    if step == 2:
      writer.pause()
  writer.close()
  assert [("tokens_per_s" in line, "mfu" in line) for line in read(tmp_path)] == [
    (False, False), (True, False), (False, False), (True, False),
  ]  # fmt: skip


def test_going_back_drops_lines_and_what_was_summed(tmp_path):
  writer = Writer(tmp_path, 0, 6, 2)
  for step in range(1, 6):
    writer.train(step, (1, 0.0, 0.0), {"loss": (1.0, 1.0)}, {})
  writer.rewind(2)
  writer.write(2, "guard", {"alarm_step": 6})
  for step in range(3, 5):
    writer.train(step, (1, 0.0, 0.0), {"loss": (2.0, 1.0)}, {})
  writer.close()
  assert [(line["step"], line["split"], line.get("loss")) for line in read(tmp_path)] == [
    (2, "train", 1.0), (2, "guard", None), (4, "train", 2.0),
  ]  # fmt: skip


def test_the_newest_evaluation_up_to_a_step(tmp_path):
  writer = Writer(tmp_path, 0, 6, 2)
  for step in (2, 4):
    writer.write(step, "eval", {"loss": step / 2})
  writer.close()
  assert last_evaluation(tmp_path, 1) == {}
  assert last_evaluation(tmp_path, 3) == {"loss": 1.0}
  assert last_evaluation(tmp_path, 9) == {"loss": 2.0}
  assert is_evaluated(read(tmp_path), 2) and not is_evaluated(read(tmp_path), 3)


@pytest.mark.parametrize(
  "line",
  [
    "5",
    "[1]",
    '{"step": 2}',
    '{"step": 2, "split": 3}',
    '{"split": "eval"}',
    '{"step": 2, "split": "eval", "loss": "x"}',
  ],
)
def test_lines_of_another_kind_end_what_is_read(tmp_path, line):
  whole = '{"step": 1, "split": "eval", "loss": 0.5}'
  (tmp_path / "metrics.jsonl").write_text(f"{whole}\n{line}\n{whole}\n")
  assert last_evaluation(tmp_path, 5) == {"loss": 0.5}
  assert len(read(tmp_path)) == 1


def test_every_tracker_gets_every_line(tmp_path):
  lines = []

  class Tracker:
    def write(self, *line):
      lines.append(line)

    def close(self):
      lines.append("closed")

  writer = Writer(tmp_path, 0, 1, 1, trackers=[Tracker()])
  writer.write(1, "eval", {"loss": 2.0})
  writer.close()
  assert lines == [(1, "eval", {"loss": 2.0}), "closed"]


def test_events_can_be_read_and_a_full_disk_only_ends_them(tmp_path, caplog, monkeypatch):
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import RecordWriter

  events = []
  real = RecordWriter.write

  def write(self, data):
    if len(events) == 3:
      raise OSError(28, "No space left on device")
    events.append(event_pb2.Event.FromString(data))
    real(self, data)

  monkeypatch.setattr(RecordWriter, "write", write)
  writer = Writer(tmp_path, 0, 4, 1)
  for step in (1, 2, 3, 4):
    writer.write(step, "eval", {"loss": 0.5 * step, "accuracy": 1.0})
  writer.close()
  assert [line["step"] for line in read(tmp_path)] == [1, 2, 3, 4]
  assert caplog.text.count("No more TensorBoard events are written: OSError") == 1
  assert events[1].session_log.status == event_pb2.SessionLog.START
  assert {value.tag: value.simple_value for value in events[2].summary.value} == {
    "eval/loss": 0.5,
    "eval/accuracy": 1.0,
  }


def test_lines_that_were_lost_come_back_from_the_checkpoint(tmp_path, caplog):
  lines = [json.dumps({"step": step, "split": "train"}) for step in (1, 2, 3, 4)]
  copy = "\n".join(lines[:3]) + "\n"
  for text in ("", lines[0] + "\n", "\0\0\0", copy[:-5]):
    (tmp_path / "metrics.jsonl").write_text(text)
    Writer(tmp_path, 3, 4, 1, copy=copy).close()
    assert (tmp_path / "metrics.jsonl").read_text() == copy
    assert "had lost" in caplog.text
    caplog.clear()
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  Writer(tmp_path, 3, 4, 1, copy=copy).close()
  assert (tmp_path / "metrics.jsonl").read_text() == copy
  assert not caplog.text
  (tmp_path / "metrics.jsonl").unlink()
  Writer(tmp_path, 3, 4, 1).close()
  assert "no line up to step 3" in caplog.text


def test_loss_and_speed_come_first_and_fit_a_terminal(tmp_path, monkeypatch):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  writer = Writer(tmp_path, 0, 1000, 1)
  assert "compiling" in str(writer.bar)
  names = ["mlm_accuracy", "mlm_loss", "sop_accuracy", "sop_loss"]
  writer.write(1, "train", {**dict.fromkeys(names, 0.5), "loss": 6.5, "tokens_per_s": 123456.0})
  text = str(writer.bar)
  writer.close()
  assert text.startswith("step 0/1000, loss=6.5000 tokens_per_s=123,456 [")
  assert len(text) <= 80
