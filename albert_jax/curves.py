"""Draws the training curves of one or more runs."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from albert_jax import files, strict_json
from albert_jax.errors import UserError

PRETRAINING = ("pretrain", "plbert")  # tasks whose runs share panels also with different datasets
BASELINES_FILE = "baselines.json"  # in a workdir: {metric: [value, what it is]}
FORMATS = (".png", ".svg", ".pdf")
# Colours that colour-blind readers tell apart (Okabe and Ito), and markers for print without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
# Panels after those of the task, and their titles.
_OF_THE_RUN = {"learning_rate": "learning rate", "tokens_per_s": "tokens per second", "grad_norm": "gradient norm"}
# Fields of metrics.jsonl that are not metrics of the task.
_NO_METRICS = ("step", "split", "update_ratio", "trust_ratio", "input_stall", "tokens", "memory_gib", "mfu", "skipped",
               "alarm")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
  """The name, metrics and baselines of a run, for drawing.

  Attributes:
    name: its name in the legend.
    lines: those of its metrics.jsonl.
    baselines: {metric: (value, what it is)}.
    task: what its metrics are of, such as "classify: reviews"; runs of different tasks do not share a panel. '' if not
      known.
  """

  name: str
  lines: list[dict[str, Any]]
  baselines: Mapping[str, tuple[float, str]]
  task: str = ""


def read_run(workdir: str | os.PathLike, name: str = "") -> Run:
  """Reads the metrics of a run; the run may still be training.

  Args:
    workdir: the run's folder, here or in a store.
    name: its name in the legend; '' for the folder's.

  Raises:
    UserError: there are no metrics.
  """
  path = files.user_path(workdir).rstrip("/")
  if not files.exists(f"{path}/metrics.jsonl"):
    raise UserError(f"{path} has no metrics.jsonl; give the workdir of a run, as runs/base")
  objects = strict_json.sound_objects(files.read(f"{path}/metrics.jsonl").decode("utf-8", "replace"))
  lines = [
    {name: value for name, value in line.items() if value is not None}
    for line in objects if isinstance(line.get("step"), int)
  ]  # fmt: skip
  if not lines:
    raise UserError(f"{path}/metrics.jsonl holds no metrics yet; wait for the run's first line")
  baselines = {}
  if files.exists(f"{path}/{BASELINES_FILE}"):
    try:
      noted = strict_json.loads(files.read(f"{path}/{BASELINES_FILE}"), BASELINES_FILE, dict)
      baselines = {str(metric): (float(value), str(meaning)) for metric, (value, meaning) in noted.items()}
    except (ValueError, TypeError, AttributeError):
      baselines = {}
  return Run(name or os.path.basename(os.path.abspath(path)), lines, baselines, _task(f"{path}/config.json"))


def _task(path):
  """Returns the task in a run's config; of fine-tuning with its dataset, whose metrics are not those of another."""
  try:
    config = strict_json.loads_or_none(files.read(path))
    name = str(config["task"]["name"])
    if name in PRETRAINING:
      return name
    dataset = config["task"].get("dataset") or str(config["data"]["dataset"]).rstrip("/").rsplit("/", 1)[-1]
  except (OSError, TypeError, KeyError, AttributeError):  # No run's config, or an old or damaged one.
    return ""
  return f"{name}: {dataset}"


def note_baselines(workdir: str | os.PathLike, baselines: Mapping[str, tuple[float, str]]) -> None:
  """Writes the baselines of a run's task beside its metrics, for the picture."""
  files.write_json(f"{workdir}/{BASELINES_FILE}", {name: list(entry) for name, entry in baselines.items()})


def plot(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike, names: Sequence[str] = ()) -> list[str]:
  """Draws runs in one figure: a panel for each metric of each task, learning rate, throughput and gradient norm.

  Held-out values are solid lines with markers, training values thin lines, baselines dashed. Runs of different tasks
  have panels of their own, even for metrics of one name: the loss of one task says nothing about that of another.

  Args:
    workdirs: folders of runs.
    out: the picture, .png, .svg or .pdf.
    names: names of the runs; by default those of their folders, with the folder above where two are equal.

  Returns:
    The metrics that are drawn.

  Raises:
    UserError: a run has no metrics, or `out` is of another kind.
  """
  if pathlib.PurePath(out).suffix not in FORMATS:
    raise UserError(f"--out={out}: a picture ends in one of {', '.join(FORMATS)}, as --out=curves.png")
  runs = [read_run(path, name) for path, name in zip(workdirs, names or names_of(workdirs), strict=True)]
  figure, metrics = draw(runs)
  files.write_figure(out, figure)
  return metrics


def draw(runs: Sequence[Run]) -> tuple[Any, list[str]]:
  """Returns a matplotlib figure of runs, and the names of its panels."""
  from matplotlib.figure import Figure  # Takes a second to import, and only a run's end needs it.
  from matplotlib.lines import Line2D
  from matplotlib.ticker import MaxNLocator

  metrics = _metrics(runs)
  panels = [(name, numbers) for name in metrics for numbers in _by_task(name, runs)]
  everything = list(range(len(runs)))
  panels += [(name, everything) for name in _OF_THE_RUN if any(name in line for run in runs for line in run.lines)]
  if not panels:
    raise UserError(f"{', '.join(run.name for run in runs)}: there are no numbers to draw in metrics.jsonl")
  columns = min(3, len(panels))
  rows = math.ceil(len(panels) / columns)
  figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.6), layout="constrained")
  for i, (name, numbers) in enumerate(panels):
    axes, noted = figure.add_subplot(rows, columns, i + 1), set()
    for k in numbers:
      run, colour, marker = runs[k], COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
      steps, values = _points(run, "train", name)
      dot = "." if len(steps) == 1 else ""  # A line of one point would not be seen.
      axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.6, marker=dot)
      steps, values = _points(run, "eval", name)
      every = max(1, len(steps) // 12)
      axes.plot(steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, markevery=every)
      if name in run.baselines:
        value, meaning = run.baselines[name]
        # Runs on other data have other baselines; each then has the colour of its run.
        is_shared = len({runs[j].baselines[name] for j in numbers if name in runs[j].baselines}) == 1
        axes.axhline(value, color="0.35" if is_shared else colour, linestyle="--", linewidth=1)
        if (value, meaning) not in noted:
          is_left = len(noted) % 2 == 1  # Baselines of two runs are near each other.
          axes.annotate(
            meaning if is_shared else f"{meaning} ({run.name})", (0.01 if is_left else 1, value),
            xycoords=("axes fraction", "data"), ha="left" if is_left else "right", va="bottom", fontsize=7,
            color="0.15" if is_shared else colour,
          )  # fmt: skip
          noted.add((value, meaning))
    title, first = _OF_THE_RUN.get(name, name.replace("_", " ")), runs[numbers[0]]
    is_split = sum(panel == name for panel, _ in panels) > 1
    axes.set_title(f"{title} ({first.task or first.name})" if is_split else title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.margins(x=0.02, y=0.1)
    low, high = axes.get_ylim()
    if high - low < 1e-6 * max(1, abs(high)):  # A constant, which would fill the panel with its rounding errors.
      axes.set_ylim(low - 0.5, high + 0.5)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
  handles = [
    Line2D([], [], color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], markersize=4, label=run.name)
    for k, run in enumerate(runs)
  ]
  handles += [
    Line2D([], [], color="0.2", linewidth=1.8, label="held-out"),
    Line2D([], [], color="0.2", linewidth=0.8, alpha=0.6, label="training"),
    Line2D([], [], color="0.35", linewidth=1, linestyle="--", label="baseline"),
  ]
  figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(handles)), frameon=False, fontsize=8)
  return figure, metrics


def _metrics(runs):
  """Returns the metrics of the runs' tasks: those with a baseline first, then all that were evaluated, then losses."""
  names = [name for run in runs for name in run.baselines]
  for split in ("eval", "train"):
    for run in runs:
      for line in run.lines:
        if line.get("split") == split:
          names += [name for name in line if split == "eval" or name.endswith(("loss", "accuracy"))]
  written = {name for run in runs for line in run.lines for name, value in line.items() if _is_number(value)}
  names = [name for name in dict.fromkeys(names) if name in written and name not in _OF_THE_RUN]
  return [name for name in names if not name.startswith(_NO_METRICS)]


def _by_task(name, runs):
  """Returns the indices of the runs that have a metric, as a list for each task."""
  tasks: dict[str, list[int]] = {}
  for number, run in enumerate(runs):
    if any(_is_number(line.get(name)) for line in run.lines):
      tasks.setdefault(run.task, []).append(number)
  return list(tasks.values())


def _points(run, split, name):
  """Steps and values of a metric; a step that was repeated after a rollback has its last value."""
  points = {line["step"]: line[name] for line in run.lines if line.get("split") == split and _is_number(line.get(name))}
  return list(points), list(points.values())


def _is_number(value):
  return isinstance(value, int | float) and not isinstance(value, bool)


def names_of(workdirs: Sequence[str | os.PathLike]) -> list[str]:
  """Returns unique names of runs: those of their folders, with parent folders where these are equal."""
  parts = [os.path.abspath(path).split("/") for path in workdirs]
  for depth in range(1, max(map(len, parts)) + 1):
    names = ["/".join(part[-depth:]) for part in parts]
    if len(set(names)) == len(names):
      break
  return names
