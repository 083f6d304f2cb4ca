"""Fine-tuned here and in PyTorch by transformers: the same weights, rows, order and hyper-parameters, dropout 0.

  pip install -e '.[parity]'
  python benchmarks/finetune_parity.py --vocabulary=spiece.model --data=DIR --tasks=sst-2,rte,wnut-17

DIR holds each task's data under the name in TASKS. Without --checkpoint the model is `tiny` with random weights. Ours
is `albert-jax train` as a user runs it. Compared are the losses of the first 50 steps, and the held-out metric at the
end, computed from either one's outputs by the same function.
"""

import argparse
import json
import pathlib
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import torch
import transformers

from albert_jax import convert, tasks
from albert_jax.commands import common
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.loop import train
from albert_jax.run import take_structure
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.schedule import schedule
from albert_jax.training.writer import read

ROOT = pathlib.Path(__file__).parents[1]
FIRST = 50  # steps whose losses are compared


@dataclass(frozen=True)
class Case:
  """A task to compare.

  config: file and variant. data: its folder below --data. model: transformers' class. metric: the held-out number.
  loss: (logits, batch of tensors) -> the mean loss. output: logits -> (name in Task.outputs, array [B, ...]).
  overrides: {field of the config: value}.
  """

  config: str
  data: str
  model: str
  metric: str
  loss: Callable
  output: Callable
  overrides: dict


def _class_loss(logits, batch):
  return torch.nn.functional.cross_entropy(logits, batch["label"].long())


def _class_output(logits):
  return "outputs", logits.numpy()


def _tag_loss(logits, batch):
  return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"].long(), ignore_index=-1)


def _tag_output(logits):
  return "label", logits.argmax(-1).numpy()


_CLASSIFY = {"model": "AlbertForSequenceClassification", "loss": _class_loss, "output": _class_output}
TASKS = {
  "sst-2": Case(
    "configs/glue.py:sst-2-tiny", "glue", metric="accuracy", **_CLASSIFY,
    overrides={"batch_size": 32, "data.seq_length": 64, "optimizer.learning_rate": 5e-4},
  ),
  "rte": Case(
    "configs/glue.py:rte-tiny", "glue", metric="accuracy", **_CLASSIFY,
    overrides={"batch_size": 16, "data.seq_length": 128, "optimizer.learning_rate": 1e-4},
  ),
  "wnut-17": Case(
    "configs/ner.py:tiny", "ner_wnut17", "AlbertForTokenClassification", "f1", _tag_loss, _tag_output,
    overrides={"batch_size": 16, "data.seq_length": 128, "optimizer.learning_rate": 5e-4},
  ),
}  # fmt: skip


def configure(case, data, start, steps):
  """Returns the config of a run, as the command line would make it."""
  values = {
    "init_from": start, "data.dataset": pathlib.Path(data) / case.data, "steps": steps, "epochs": 0.0, "log_every": 1,
    "eval_every": steps, "checkpoint_every": steps, "best": "", "task.keep_head": True, "seed": 0,
    # The form that PyTorch's AdamW has.
    "optimizer.textbook": True, "optimizer.warmup_steps": steps // 10,
    **{f"model.{name}_dropout_prob": 0.0 for name in ("hidden", "attention_probs", "classifier")},
    **case.overrides,
  }  # fmt: skip
  parser = common.parser("train", "", "")
  arguments = [f"--config.{name}={value}" for name, value in values.items()]
  file, variant = case.config.split(":")
  return common.parse_with_config(parser, [f"--config={ROOT / file}:{variant}", *arguments])[1]


def with_head(case, data, checkpoint, vocabulary, folder):
  """Writes weights to begin with, the task's head among them: what both sides read."""
  config = configure(case, data, checkpoint or "", 10).copy_and_resolve_references().unlock()
  config.task.keep_head = False
  if checkpoint:
    take_structure(config, checkpoint)
    _, loaded = convert.load(checkpoint)
    vocabulary = convert.load_tokenizer(checkpoint)
  else:
    config.init_from, config.model.vocab_size = "", vocabulary.vocab_size
  task = tasks.make(config, vocabulary)
  params = jax.device_get(task.init(jax.random.key(0)))
  if checkpoint:
    params, _ = convert.fit(params, loaded, new=task.new, unused=task.unused)
  convert.save(
    folder, task.model, params, vocabulary=vocabulary, architecture=task.architecture or None, extra=task.about
  )
  return folder


def ours(case, config, workdir):
  """

  Returns:
    (losses of every step, the held-out metric at the end).
  """
  train(config, workdir)
  lines = read(workdir)
  losses = [line["loss"] for line in lines if line["split"] == "train"]
  return losses, [line[case.metric] for line in lines if line["split"] == "eval"][-1]


def theirs(case, config, start):
  """Returns the same in PyTorch.

  Returns:
    (losses, metric).
  """
  config = config.copy_and_resolve_references().unlock()
  take_structure(config, start)
  task = tasks.make(config, convert.load_tokenizer(start))
  model = getattr(transformers, case.model).from_pretrained(start).train()
  norms_and_biases = re.compile("LayerNorm|layer_norm|bias$")
  plain = [p for name, p in model.named_parameters() if norms_and_biases.search(name)]
  decayed = [p for p in model.parameters() if all(p is not q for q in plain)]
  opt = OptimizerConfig(**config.optimizer)
  groups = [{"params": decayed, "weight_decay": opt.weight_decay}, {"params": plain, "weight_decay": 0.0}]
  adamw = torch.optim.AdamW(groups, betas=(opt.b1, opt.b2), eps=opt.eps)
  rate, losses = schedule(opt, config.steps), []
  for step, batch in zip(range(config.steps), task.train_batches(0, 0, 1), strict=False):
    batch = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
    for group in adamw.param_groups:
      group["lr"] = rate(step)
    adamw.zero_grad()
    loss = case.loss(run(model, batch), batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), opt.clip_norm)
    adamw.step()
    losses.append(loss.item())
  model.eval()
  outputs, rows, name = [], [], ""
  with torch.no_grad():
    for batch in task.eval_batches(0, 1):
      name, output = case.output(run(model, {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}))
      outputs += list(output)
      rows += batch["row"].tolist()
  by_row = {row: output for row, output in zip(rows, outputs, strict=True) if row >= 0}
  return losses, task.score({name: [by_row[row] for row in range(len(by_row))]})[0][case.metric]


def run(model, batch):
  """Logits, of the inputs that a model of transformers takes."""
  names = ("input_ids", "attention_mask", "token_type_ids")
  inputs = {name: batch[name].long() for name in names if name in batch}
  return model(**inputs).logits


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", required=True)
  parser.add_argument("--vocabulary", help="for random weights")
  parser.add_argument("--checkpoint", default="", help="weights to begin with, of any kind")
  parser.add_argument("--tasks", default=",".join(TASKS))
  parser.add_argument("--steps", type=int, default=400)
  parser.add_argument("--json", help="write the numbers there too")
  args = parser.parse_args()
  if not args.checkpoint and not args.vocabulary:
    parser.error("give --checkpoint=DIR, or --vocabulary=FILE for random weights")
  vocabulary = Tokenizer(args.vocabulary) if args.vocabulary else None
  numbers = {}
  for name in args.tasks.split(","):
    case = TASKS[name]
    with tempfile.TemporaryDirectory() as folder:
      start = with_head(case, args.data, args.checkpoint, vocabulary, pathlib.Path(folder) / "start")
      config = configure(case, args.data, start, args.steps)
      begin = time.process_time()
      losses, metric = ours(case, config, pathlib.Path(folder) / "run")
      between = time.process_time()
      their_losses, their_metric = theirs(case, config, start)
      end = time.process_time()
    differences = np.abs(np.array(losses) - np.array(their_losses))
    numbers[name] = {
      "steps": args.steps, "first_loss": losses[0], "loss_at_50": losses[min(FIRST, args.steps) - 1],
      "largest_difference_first_50": float(differences[:FIRST].max()),
      "largest_difference": float(differences.max()),
      f"{case.metric}_ours": metric, f"{case.metric}_transformers": their_metric,
      "cpu_seconds_ours": between - begin, "cpu_seconds_transformers": end - between,
    }  # fmt: skip
    print(json.dumps({name: numbers[name]}), flush=True)
    agree = differences[:FIRST].max() <= 1e-3 and abs(metric - their_metric) <= 0.01
    if not agree:
      raise SystemExit(f"{name}: the two do not agree")
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
  main()
