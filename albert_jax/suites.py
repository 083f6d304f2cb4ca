"""Runs several fine-tuning tasks with several seeds each, and compares the results with published numbers.

Each run is an `albert-jax train` process, so its memory is free afterwards and Ctrl-C makes it save. A repeated call
skips finished runs and resumes the others.
"""

import logging
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from albert_jax import configs, convert, files, strict_json
from albert_jax.convert import hub
from albert_jax.errors import UserError
from albert_jax.model import VARIANTS, AlbertConfig
from albert_jax.training.best import Best
from albert_jax.training.writer import read

log = logging.getLogger(__name__)

CONFIGS = pathlib.Path(configs.__path__[0])
SHAPE = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "embedding_size")


@dataclass(frozen=True)
class Row:
  """One task of the suite.

  Attributes:
    config: FILE:VARIANT in configs/.
    folders: the names of its folder in --data.
    tfds: the TFDS name without --data; '' for that of the config, None if TFDS lacks the task.
    metrics: {name in the held-out numbers: (title in the table, factor to percent)}.
    after_mnli: the paper starts this task from its MNLI model.
  """

  config: str
  folders: tuple[str, ...]
  tfds: str | None
  metrics: dict[str, tuple[str, float]]
  after_mnli: bool = False


def _glue(folder, name, metrics, after_mnli=False):
  return Row(f"glue.py:{name}", (f"glue/{folder}", folder), "", metrics, after_mnli)


_ACCURACY = {"accuracy": ("accuracy", 100)}
_MNLI = {"accuracy": ("accuracy, matched", 100), "accuracy_mismatched": ("accuracy, mismatched", 100)}
TASKS = {
  "mnli": _glue("MNLI", "mnli", _MNLI),
  "qnli": _glue("QNLI", "qnli", _ACCURACY),
  "qqp": _glue("QQP", "qqp", {"accuracy": ("accuracy", 100), "f1": ("F1", 100)}),
  "rte": _glue("RTE", "rte", _ACCURACY, True),
  "sst-2": _glue("SST-2", "sst-2", _ACCURACY),
  "mrpc": _glue("MRPC", "mrpc", {"accuracy": ("accuracy", 100), "f1": ("F1", 100)}, True),
  "cola": _glue("CoLA", "cola", {"mcc": ("Matthews correlation", 100)}),
  "sts-b": _glue("STS-B", "sts-b", {"pearson": ("Pearson", 100), "spearman": ("Spearman", 100)}, True),
  "wnli": _glue("WNLI", "wnli", _ACCURACY),
  "squad1.1": Row("squad.py:base-1.1", ("squad1.1", "squad_v1"), "squad/v1.1",
                  {"f1": ("F1", 1), "exact": ("exact match", 1)}),
  "squad2.0": Row("squad.py:base", ("squad2.0", "squad_v2"), "squad/v2.0",
                  {"best_f1": ("F1", 1), "best_exact": ("exact match", 1)}),
  "race": Row("race.py:base", ("race", "RACE"), None, {"accuracy": ("accuracy", 100)}),
}  # fmt: skip
GROUPS = {"glue": tuple(TASKS)[:9], "squad": ("squad1.1", "squad2.0"), "race": ("race",)}

# Published results on the development sets, in percent, single models; RACE on its test set.
README, PAPER = "google-research/albert, README", "arXiv 1909.11942"
_FIVE = (("squad1.1", "f1"), ("squad1.1", "exact"), ("squad2.0", "best_f1"), ("squad2.0", "best_exact"),
         ("mnli", "accuracy"), ("sst-2", "accuracy"), ("race", "accuracy"))  # fmt: skip
_EIGHT = (("mnli", "accuracy"), ("qnli", "accuracy"), ("qqp", "accuracy"), ("rte", "accuracy"), ("sst-2", "accuracy"),
          ("mrpc", "accuracy"), ("cola", "mcc"), ("sts-b", "pearson"))  # fmt: skip
PUBLISHED = (
  # size, version, source, {(task, metric): value}
  ("base", "v2", README, dict(zip(_FIVE, (90.2, 83.2, 82.1, 79.3, 84.6, 92.9, 66.8), strict=True))),
  ("large", "v2", README, dict(zip(_FIVE, (91.8, 85.2, 84.9, 81.8, 86.5, 94.9, 75.2), strict=True))),
  ("xlarge", "v2", README, dict(zip(_FIVE, (92.9, 86.4, 87.9, 84.1, 87.9, 95.4, 80.7), strict=True))),
  ("xxlarge", "v2", README, dict(zip(_FIVE, (94.6, 89.1, 89.8, 86.9, 90.6, 96.8, 86.8), strict=True))),
  ("base", "v1", README, dict(zip(_FIVE, (89.3, 82.3, 80.0, 77.1, 81.6, 90.3, 64.0), strict=True))),
  ("large", "v1", README, dict(zip(_FIVE, (90.6, 83.9, 82.3, 79.4, 83.5, 91.7, 68.5), strict=True))),
  ("xlarge", "v1", README, dict(zip(_FIVE, (92.5, 86.1, 86.1, 83.1, 86.4, 92.4, 74.8), strict=True))),
  ("xxlarge", "v1", README, dict(zip(_FIVE, (94.8, 89.3, 90.2, 87.4, 90.8, 96.9, 86.5), strict=True))),
  ("xxlarge", "v1", README, dict(zip(_EIGHT, (90.8, 95.3, 92.2, 89.2, 96.9, 90.9, 71.4, 93.0), strict=True))),
  ("bert_base", "", f"{PAPER}, table 2", dict(zip(_FIVE, (90.4, 83.2, 80.4, 77.6, 84.5, 92.8, 68.2), strict=True))),
  ("bert_large", "", f"{PAPER}, table 2", dict(zip(_FIVE, (92.2, 85.5, 85.0, 82.2, 86.6, 93.0, 73.9), strict=True))),
)


def suite(
  tasks: Sequence[str],
  checkpoint: str,
  out: str | pathlib.Path,
  *,
  seeds: int = 5,
  data: Sequence[str] = (),
  overrides: Sequence[str] = (),
  version: str = "v2",
  mnli: str = "",
) -> dict:
  """Fine-tunes a checkpoint on each task with each seed, and writes `suite.json` and `suite.md` in `out` after each.

  Args:
    tasks: names in TASKS or GROUPS.
    checkpoint: a checkpoint of any kind, see `albert_jax.load`.
    out: the folder of all runs.
    seeds: how many seeds of each task to run, from 0.
    data: folders of official files, each as DIR or TASK=DIR; () for the TFDS names of the configs.
    overrides: `--config.x=y` flags for every run.
    version: the published weights to compare with, v1 or v2.
    mnli: a run of MNLI from which RTE, STS-B and MRPC start; '' for the best one of this suite.

  Returns:
    The contents of suite.json.

  Raises:
    UserError: an argument is wrong, or a run reports a mistake of the user.
  """
  if files.is_url(out):
    raise UserError(f"--out={out} must be a folder of this machine")
  names, out = _named(tasks), pathlib.Path(out)
  if seeds < 1:
    raise UserError(f"--seeds={seeds} must be 1 or more")
  if mnli and not any(TASKS[name].after_mnli for name in names):
    after = ", ".join(name for name, row in TASKS.items() if row.after_mnli)
    raise UserError(f"--mnli={mnli} is the start of {after}, and --tasks={','.join(tasks)} has none; leave --mnli out")
  size = size_of(convert.load(checkpoint)[0])
  datasets = {name: _data(name, data) for name in names}
  results, failed = {}, []
  for name in names:
    for seed in range(seeds):
      start = _start(name, checkpoint, mnli, results.get("mnli"), out, "mnli" in names)
      if start is None:
        failed.append(f"{name}, seed {seed}: no run of MNLI to start from")
        continue
      flags = [f"--config.init_from={start}", f"--config.seed={seed}"]
      flags += [f"--config.data.dataset={datasets[name]}"] if datasets[name] else []
      numbers = _run(name, seed, [*flags, *overrides], out / name / f"seed-{seed}")
      if isinstance(numbers, str):
        failed.append(f"{name}, seed {seed}: {numbers}")
      else:
        results.setdefault(name, {})[seed] = numbers
      summary = {"checkpoint": str(checkpoint), "size": size, "seeds": seeds, "rows": rows(results, size, version),
               "failed": failed}  # fmt: skip
      files.write_json(out / "suite.json", summary)
      files.write(out / "suite.md", table(summary))
  return summary


def _named(tasks):
  """Returns the names of tasks with groups expanded; MNLI comes first."""
  unknown = [name for name in tasks if name not in TASKS and name not in GROUPS]
  if unknown or not tasks:
    raise UserError(
      f"--tasks: no task {', '.join(unknown) or 'given'}; use {', '.join(dict.fromkeys([*GROUPS, *TASKS]))}; for "
      "a table of your own, run albert-jax train --config=classify:base once for each setting, and compare the runs "
      "with albert-jax plot"
    )
  names = list(dict.fromkeys(name for entry in tasks for name in GROUPS.get(entry, (entry,))))
  return sorted(names, key=lambda name: name != "mnli")


def _data(name, data):
  """Returns the folder of a task's official files, or its TFDS name; '' for the dataset of its config."""
  parts = [entry.partition("=") for entry in data]
  if wrong := next((task for task, equals, _ in parts if equals and task not in TASKS), None):
    raise UserError(f"--data={wrong}=…: no task {wrong!r}; expected one of {', '.join(TASKS)}, as --data={name}=DIR")
  named = [path for task, equals, path in parts if equals and task == name]
  if named:
    if not files.is_url(named[-1]) and not pathlib.Path(named[-1]).expanduser().exists():
      raise UserError(f"--data={name}={named[-1]}: there is no such folder; give that of the task's files")
    return named[-1]
  folders = [pathlib.Path(entry) / folder for entry in data if "=" not in entry for folder in TASKS[name].folders]
  existing = [place for place in folders if place.is_dir()]
  if folders and not existing:
    listed = " or ".join(map(str, folders))
    raise UserError(f"--data: no data of {name}; expected {listed}, or name its folder with --data={name}=DIR")
  if not existing and TASKS[name].tfds is None:
    raise UserError(
      f"{name} is in TFDS only in part; give the folder of its files with --data=DIR or --data={name}=DIR"
    )
  return str(existing[0].absolute()) if existing else TASKS[name].tfds


def _start(name, checkpoint, mnli, runs, out, planned):
  """Returns the checkpoint a run starts from; None if that is a run of MNLI and all of those failed.

  Args:
    runs: {seed: numbers} of MNLI in this suite, or None.
    planned: whether MNLI is one of its tasks.
  """
  runs = runs or _finished(out / "mnli")
  if not TASKS[name].after_mnli or not (mnli or runs or planned):
    return _absolute(checkpoint)
  if mnli:
    return _absolute(mnli)
  return (out / "mnli" / f"seed-{max(runs, key=lambda seed: runs[seed]['accuracy'])}").absolute() if runs else None


def _absolute(checkpoint):
  return checkpoint if files.is_url(checkpoint) or hub.is_name(checkpoint) else pathlib.Path(checkpoint).absolute()


def _finished(folder):
  """Returns {seed: held-out numbers} of the finished runs in a task's folder."""
  notes = {path.parent.name.removeprefix("seed-"): _read_finished(path) for path in folder.glob("seed-*/finished.json")}
  return {int(seed): notes[seed]["numbers"] for seed in sorted(notes) if notes[seed]}


def _read_finished(path):
  """Returns the note of a finished run; {} if it is damaged, so that the run is checked again."""
  try:
    note = strict_json.read_object(path)
    strict_json.expect(note.get("flags"), f"{path}: flags", list)
    strict_json.expect(note.get("numbers"), f"{path}: numbers", dict)
  except UserError as error:
    log.warning("%s; the run is checked again", error)
    return {}
  return note


def _run(name, seed, flags, workdir):
  """Runs one seed of a task, unless it has finished before.

  Returns:
    {metric: number} of the exported checkpoint, or the reason why there is none.
  """
  done, mnli = workdir / "finished.json", f"--config.init_from={workdir.parents[1].absolute() / 'mnli'}"
  config = f"--config={CONFIGS / TASKS[name].config}"
  if done.is_file() and (before := _read_finished(done)):
    # Which run of MNLI is the best changes with more seeds.
    changed = [flag for flag in sorted({*before["flags"]} ^ {*flags}) if not flag.startswith(mnli)]
    if changed:
      raise UserError(f"{workdir} holds a run with other values ({', '.join(changed)}); give another --out")
    return before["numbers"]
  workdir.mkdir(parents=True, exist_ok=True)
  begin = time.monotonic()
  log_path = workdir / "train.log"
  log.info("%s, seed %d: training, see %s", name, seed, log_path)
  with open(log_path, "a") as file:
    command = [sys.executable, "-m", "albert_jax", "train", config, *flags, f"--workdir={workdir}"]
    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
      code = process.wait()
    except KeyboardInterrupt:
      process.terminate()  # The run saves and exits; Ctrl-C in a terminal has reached it already.
      process.wait()
      log.info("%s, seed %d: stopped; the same command resumes it", name, seed)
      raise
  message = (log_path.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
  if code == 2:
    raise UserError(f"{name}, seed {seed}: {message.removeprefix('albert-jax train: ')}")
  if code or not (workdir / "export" / "config.json").is_file():
    log.warning("%s, seed %d: failed, see %s", name, seed, log_path)
    return f"ended with {code}: {message}"
  numbers = numbers_of(workdir)
  shutil.rmtree(workdir / "checkpoints", ignore_errors=True)  # export/ holds the weights.
  files.write_json(done, {"flags": flags, "numbers": numbers})
  shown = ", ".join(f"{title} {numbers[key] * factor:.2f}" for key, (title, factor) in TASKS[name].metrics.items())
  log.info("%s, seed %d: %s (%.1f min)", name, seed, shown, (time.monotonic() - begin) / 60)
  return numbers


def numbers_of(workdir: pathlib.Path) -> dict:
  """Returns {metric: number} of the checkpoint that a complete run exported: the best one, or the last."""
  lines = [line for line in read(workdir) if line["split"] == "eval"]
  metric = strict_json.read_object(workdir / "config.json").get("best", "")
  step = Best(metric, 0, workdir, lines[-1]["step"]).step if metric else lines[-1]["step"]
  line = next(line for line in lines if line["step"] == step)
  return {key: value for key, value in line.items() if key not in ("step", "split")}


def size_of(cfg: AlbertConfig) -> str:
  """Returns the name of a model's size, '' if it has none."""
  shape = [getattr(cfg, field) for field in SHAPE]
  named = (name for name, known in VARIANTS.items() if shape == [getattr(known, field) for field in SHAPE])
  return next(named, "").removesuffix("_v1").removesuffix("_v2")


def rows(results: dict[str, dict[int, dict[str, float]]], size: str, version: str) -> list[dict]:
  """Returns the rows of the table.

  Args:
    results: {task: {seed: {metric: number}}}.
  """
  lines = []
  for task, by_seed in results.items():
    for metric, (title, factor) in TASKS[task].metrics.items():
      values = {seed: numbers[metric] * factor for seed, numbers in by_seed.items() if metric in numbers}
      if values:
        median = statistics.median(values.values())
        row = {"task": task, "metric": title, "median": median, "best": max(values.values()), "values": values}
        row |= _published(size, version, task, metric)
        lines.append(row | {"difference": None if row["published"] is None else median - row["published"]})
  return lines


def _published(size, version, task, metric):
  """Returns the published number of a size, of `version` if there is one, else of the other version."""
  lines = [line for line in PUBLISHED if line[0] == size and (task, metric) in line[3]]
  for _, published_version, source, numbers in sorted(lines, key=lambda line: line[1] != version):
    return {"published": numbers[task, metric], "source": f"{source}, {size} {published_version}".strip()}
  return {"published": None, "source": ""}


def table(summary: dict[str, Any]) -> str:
  """Returns the text of suite.md: a line for each metric of each task, in percent."""
  lines = [
    f"# {summary['checkpoint']}" + (f" ({summary['size']})" if summary["size"] else ""),
    "",
    "Held-out numbers in percent: median and best of the seeds, each from the best checkpoint of its run.",
    "",
    "| task | metric | median | best | seeds | published | difference |",
    "|---|---|---:|---:|---:|---:|---:|",
  ]
  sources = []
  for row in summary["rows"]:
    published = "" if row["published"] is None else f"{row['published']:.1f}"
    if row["source"]:
      sources += [row["source"]] * (row["source"] not in sources)
      published += f" [{sources.index(row['source']) + 1}]"
    difference = "" if row["difference"] is None else f"{row['difference']:+.2f}"
    ours = f"{row['median']:.2f} | {row['best']:.2f} | {len(row['values'])}"
    lines.append(f"| {row['task']} | {row['metric']} | {ours} | {published} | {difference} |")
  lines += ["", *(f"[{number}] {source}  " for number, source in enumerate(sources, 1))] if sources else []
  if "race" in {row["task"] for row in summary["rows"] if row["published"] is not None}:
    lines += ["", "The published numbers of RACE are on its test set, ours on the development set."]
  lines += ["", *(f"Failed: {line}  " for line in summary["failed"])] if summary["failed"] else []
  return "\n".join(lines) + "\n"
