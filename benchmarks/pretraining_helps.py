"""Does pre-training help: the same model fine-tuned from a pre-trained checkpoint, and from random weights.

With --lora_rank=R or --lora_word_rank=R also: what it costs to train low-rank differences and the task's head alone.

  ALBERT_DATA=DIR python benchmarks/pretraining_helps.py --checkpoint=RUN --out=FOLDER --rates=2e-4,5e-4 --seeds=3

Both begin with the same shape, vocabulary, data order and hyper-parameters; only the weights differ. Of several
learning rates each has the one that suits it, by its first seed (of the random weights, the task's head and the data
order). Every run is an `albert-jax train` of its own; what is done is not done again. Meant for small models: steps
and lengths are short.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

import jax

from albert_jax import convert, model
from albert_jax.training.writer import read

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMON = {
  "optimizer.textbook": True, "optimizer.warmup_steps": 50, "epochs": 0, "batch_size": 16, "data.seq_length": 128,
  "log_every": 50, "model.hidden_dropout_prob": 0.0, "model.attention_probs_dropout_prob": 0.0,
}  # fmt: skip
# name: config, metric, steps, the data below ALBERT_DATA, and what else differs from the config. No row is longer than
# those that the checkpoint was pre-trained on, as positions beyond would be fresh ones.
TASKS = {
  "SST-2": ("glue.py:sst-2", "accuracy", 1400, "glue", {"data.seq_length": 64}),
  "MRPC": ("glue.py:mrpc", "accuracy", 400, "glue", {}),
  "STS-B": ("glue.py:sts-b", "pearson", 800, "glue", {"data.seq_length": 64}),
  "SQuAD 1.1": ("squad.py:tiny-1.1", "f1", 600, "squad_v1", {
    "data.split": "newwiki_train.json", "data.validation_split": "newwiki_dev.json", "task.doc_stride": 64,
  }),
  "RACE": ("race.py:tiny", "accuracy", 150, "race/RACE", {"data.qa_length": 48, "data.levels": "middle"}),
  "WNUT-17": ("ner.py:tiny", "f1", 800, "ner_wnut17", {}),
  "IMDb": ("classify.py:base", "accuracy", 400, "sentiment/imdb_orig", {
    "best": "accuracy", "data.text_fields": "Text", "data.label_field": "Sentiment",
  }),
}  # fmt: skip


def run(name, start, rate, seed, folder, more) -> float:
  """Returns the best held-out number of one task with one seed.

  Args:
    name: of the task.
    start: the folder of the weights it begins with.
    rate: the learning rate.
    seed: of the task's head and of the order of the data.
    folder: of all runs.
    more: (ending of the run's name, overrides of its config).
  """
  config, metric, steps, data, of_task = TASKS[name]
  workdir = folder / f"{name.replace(' ', '-')}-{start.name}{more[0]}-{rate}-seed{seed}"
  overrides = {**COMMON, "seed": seed, "optimizer.learning_rate": rate, "steps": steps, "eval_every": steps // 2,
               "checkpoint_every": steps, "init_from": start,
               "data.dataset": pathlib.Path(os.environ["ALBERT_DATA"]) / data, **of_task, **more[1]}  # fmt: skip
  command = [sys.executable, "-m", "albert_jax", "train", f"--config={ROOT}/configs/{config}", f"--workdir={workdir}",
             *(f"--config.{key}={value}" for key, value in overrides.items())]  # fmt: skip
  log = folder / f"{workdir.name}.log"
  with log.open("w") as file:
    if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, check=False).returncode:
      raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-2000:]}")
  return max(line[metric] for line in read(workdir) if line["split"] == "eval")


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--checkpoint", required=True, metavar="DIR")
  parser.add_argument("--out", required=True, metavar="DIR", help="where the runs go")
  parser.add_argument("--tasks", default=",".join(TASKS))
  parser.add_argument("--rates", default="2e-4,5e-4", help="learning rates (default 2e-4,5e-4)")
  parser.add_argument(
    "--starts", default="pre-trained,from scratch", help="columns (default 'pre-trained,from scratch')"
  )
  for name, matrices in {"lora_rank": "the layers' matrices", "lora_word_rank": "the table of words"}.items():
    parser.add_argument(
      f"--{name}", type=int, default=0, help=f"train low-rank differences to {matrices} too (default 0: no)"
    )
  parser.add_argument("--lora_rates", default="1e-3,3e-3", help="their learning rates (default 1e-3,3e-3)")
  parser.add_argument("--seeds", type=int, default=1, help="runs at the better rate (default 1)")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  folder = pathlib.Path(args.out).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  cfg, params = convert.load(args.checkpoint)
  vocabulary = convert.load_tokenizer(args.checkpoint)
  weights = {"pretrained": params}
  weights.update({f"scratch{seed}": model.init(cfg, jax.random.key(seed)) for seed in range(args.seeds)})
  for start, values in weights.items():
    if not (folder / start).exists():
      convert.save(folder / start, cfg, jax.device_get(values), vocabulary=vocabulary)
  # {column: (weights of each seed, learning rates, ending of the runs' names and overrides)}
  starts = {
    "pre-trained": (["pretrained"] * args.seeds, args.rates, ("", {})),
    "from scratch": (list(weights)[1:], args.rates, ("", {})),
  }
  starts = {name: start for name, start in starts.items() if name in args.starts.split(",")}
  if args.lora_rank or args.lora_word_rank:
    ranks = {"lora_rank": args.lora_rank, "lora_word_rank": args.lora_word_rank}
    ending = f"-lora{args.lora_rank}-{args.lora_word_rank}"
    starts["LoRA"] = (["pretrained"] * args.seeds, args.lora_rates, (ending, ranks))
  results = {}
  print(f"{'':<11}{'metric':<10}{'steps':>5}", *(f"{start:>14}{'least':>9}{'most':>9}{'rate':>7}" for start in starts))
  for name in args.tasks.split(","):
    metric, steps = TASKS[name][1:3]
    results[name] = {"metric": metric, "steps": steps}
    print(f"{name:<11}{metric:<10}{steps:>5}", end="", flush=True)
    for start, (folders, rates, more) in starts.items():
      by_rate = {rate: [run(name, folder / folders[0], rate, 0, folder, more)] for rate in rates.split(",")}
      best = max(by_rate, key=lambda rate: by_rate[rate][0])
      numbers = by_rate[best]
      numbers += [run(name, folder / place, best, seed, folder, more) for seed, place in enumerate(folders[1:], 1)]
      results[name][start] = by_rate
      print(
        f" {statistics.median(numbers):>14.4f}{min(numbers):>9.4f}{max(numbers):>9.4f}{best:>7}", end="", flush=True
      )
    print(flush=True)
    if args.json:
      pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
