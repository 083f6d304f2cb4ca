"""Does a teacher help: the same student fine-tuned with and without one, at the same steps, rates and seeds.

  ALBERT_DATA=DIR python benchmarks/distillation.py --checkpoint=RUN --layers=2 --out=FOLDER --seeds=3

The teacher of each task is the checkpoint, fine-tuned at its own depth. The student begins with the same checkpoint at
`--layers` layers, so layers must share their weights; with `--fresh` it begins with random weights, as a model of a
shape for which there is no checkpoint. What is done is not done again. Meant for small models: steps and lengths are
short.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics

import jax

from albert_jax import convert, model
from albert_jax.__main__ import main as main_of_command
from albert_jax.training.optimizer import SMALL_MODEL
from albert_jax.training.writer import read

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMON = {
  **{f"optimizer.{name}": value for name, value in SMALL_MODEL.items()}, "optimizer.warmup_steps": 30, "epochs": 0,
  "batch_size": 16, "log_every": 50, "best": "", "model.hidden_dropout_prob": 0.0,
  "model.attention_probs_dropout_prob": 0.0, "model.remat": "none",
}  # fmt: skip
DISTILL = {"label_weight": 0.5, "logit_weight": 1.0, "hidden_weight": 1.0}
# name: config, metric and what it is multiplied by, steps, the data below ALBERT_DATA, and what else differs.
TASKS = {
  "MRPC": ("glue.py:mrpc", "accuracy", 100, 300, "glue", {"data.seq_length": 96}),
  "STS-B": ("glue.py:sts-b", "pearson", 100, 300, "glue", {"data.seq_length": 64}),
  "SST-2": ("glue.py:sst-2", "accuracy", 100, 400, "glue", {"data.seq_length": 48}),
  "WNUT-17": ("ner.py:tiny", "f1", 100, 300, "ner_wnut17", {"data.seq_length": 64}),
  "SQuAD-style": ("squad.py:tiny-1.1", "f1", 1, 300, "squad_v1", {
    "data.split": "newwiki_train.json", "data.validation_split": "newwiki_dev.json", "task.doc_stride": 64,
    "data.seq_length": 128,
  }),
}  # fmt: skip


def run(name: str, start: pathlib.Path, kind: str, seed: int, folder: pathlib.Path, more: dict) -> float:
  """Returns the held-out number of a run at its last step."""
  config, metric, scale, steps, data, settings = TASKS[name]
  workdir = folder / f"{name}-{kind}-seed{seed}"
  overrides = {**COMMON, "seed": seed, "steps": steps, "eval_every": steps, "checkpoint_every": steps,
               "init_from": start, "data.dataset": pathlib.Path(os.environ["ALBERT_DATA"]) / data,
               **settings, **{f"distill.{key}": value for key, value in more.items()}}  # fmt: skip
  if not (workdir / "export").exists():
    # In this process: to start a new one takes longer than the shortest of these runs.
    with (folder / f"{workdir.name}.log").open("w") as log, contextlib.redirect_stdout(log):
      code = main_of_command(["train", f"--config={ROOT}/configs/{config}", f"--workdir={workdir}",
                              *(f"--config.{key}={value}" for key, value in overrides.items())])  # fmt: skip
    if code:
      raise SystemExit(f"the run in {workdir} failed")
  return scale * [line[metric] for line in read(workdir) if line["split"] == "eval"][-1]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--checkpoint", required=True, metavar="DIR")
  parser.add_argument("--layers", type=int, default=2, help="of the student (default 2)")
  parser.add_argument("--fresh", action="store_true", help="the student begins with random weights")
  parser.add_argument("--out", required=True, metavar="DIR", help="where the runs go")
  parser.add_argument("--tasks", default=",".join(TASKS))
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--distill", default=json.dumps(DISTILL), help="fields of config.distill, as JSON")
  parser.add_argument("--name", default="distilled", help="of the runs with a teacher")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  folder = pathlib.Path(args.out).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  cfg, params = convert.load(args.checkpoint)
  student = f"{args.layers}{'-fresh' * args.fresh}"
  start = folder / f"start-{student}"
  if not start.exists():
    shallow = dataclasses.replace(cfg, num_hidden_layers=args.layers)
    weights = jax.device_get(model.init(shallow, jax.random.key(0))) if args.fresh else params
    convert.save(start, shallow, weights, vocabulary=convert.load_tokenizer(args.checkpoint))
  results, gains = {}, []
  print(f"| task | metric | teacher, {cfg.num_hidden_layers} layers | student, {args.layers} | distilled | gain |")
  print("|---|---|---|---|---|---|")
  for name in args.tasks.split(","):
    teacher = run(name, pathlib.Path(args.checkpoint), "teacher", 0, folder, {})
    options = {"teacher": folder / f"{name}-teacher-seed0", **json.loads(args.distill)}
    plain, distilled = [], []
    for seed in range(args.seeds):
      plain.append(run(name, start, f"plain{student}", seed, folder, {}))
      distilled.append(run(name, start, f"{args.name}{student}", seed, folder, options))
    results[name] = {"teacher": teacher, "plain": plain, "distilled": distilled}
    gains.append(statistics.median(distilled) - statistics.median(plain))
    shown = [f"{statistics.median(x):.1f} ({min(x):.1f} to {max(x):.1f})" for x in (plain, distilled)]
    print(f"| {name} | {TASKS[name][1]} | {teacher:.1f} | {' | '.join(shown)} | {gains[-1]:+.1f} |", flush=True)
    if args.json:
      pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
  print(f"\nMedian gain: {statistics.median(gains):+.1f} points")


if __name__ == "__main__":
  main()
