"""What int8 recipes lose on real tasks: ONNX Runtime's own quantization, and ours, on fine-tuned models.

  ALBERT_DATA=DIR python benchmarks/int8_quality.py SST-2=RUN MRPC=RUN STS-B=RUN WNUT-17=RUN SQuAD=RUN --json=FILE

Each RUN is a complete run of configs/glue.py, ner.py or squad.py on the task, or its export. Texts of the training
split give the ranges of activations; the metric is that of the whole development split. "error after each layer" is
the relative norm of the difference of the hidden states from those of float32. SQuAD is `squad_v1/newwiki_dev.json`.
"megabytes" are those of the file. "changed answers" counts the rows whose label, entities or answer differ from those
of float32; "standard error of the loss" is that of the paired difference from float32, over RESAMPLES draws of the rows
with replacement. PL-BERT=DIR takes a phoneme encoder (`plbert_kokoro`) and measures that error alone,
on `phonemes_en/dev.jsonl`.
"""

import argparse
import functools
import json
import logging
import os
import pathlib
import tempfile

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

import albert_jax
from albert_jax import convert, onnx_runtime
from albert_jax.data.finetuning import squad, tagged
from albert_jax.exports import calibration, quantize
from albert_jax.exports import onnx as graphs
from albert_jax.exports.quantize import Recipe
from albert_jax.tasks.ner import entities
from albert_jax.tasks.squad import score

PHONEMES = 160  # of a text, of a phoneme encoder
RESAMPLES = 200
PROBED_ROWS = 16  # of the training split, for the relative error after each layer
NAIVE = {
  "quantize_dynamic, as it comes": {},
  "… per_channel": {"per_channel": True},
  "… reduce_range": {"reduce_range": True},
  "… per_channel, reduce_range": {"per_channel": True, "reduce_range": True},
}
OURS = {
  "static, one scale for all uses of a matrix": Recipe(activations="shared", smoothing={}),
  "static, a scale for each use": Recipe(smoothing={}),
  **quantize.RECIPES,
  "int8, full 8-bit matrices": Recipe(bits="8"),
}


def table(path, columns, label):
  with open(path, encoding="utf-8-sig") as file:
    rows = [line.rstrip("\n").split("\t") for line in file]
  head = rows[0]
  indices = [head.index(name) for name in columns]
  rows = [row for row in rows[1:] if len(row) == len(head)]
  items = [tuple(row[i] for i in indices) if len(indices) > 1 else row[indices[0]] for row in rows]
  return items, [row[head.index(label)] for row in rows]


def glue(folder, columns, label, data, split):
  return table(data / "glue" / folder / f"{split}.tsv", columns, label)


def accuracy(results, gold, labels):
  return 100 * np.mean(
    [labels.index(result["label"]) == int(value) for result, value in zip(results, gold, strict=True)]
  )


def pearson(results, gold, labels):
  return 100 * np.corrcoef([result["score"] for result in results], np.asarray(gold, float))[0, 1]


def wnut(data, split):
  sentences = tagged.read(tagged.split_files(data / "ner_wnut17", split))
  gold = []
  for words, tags in zip(sentences.words, sentences.tags, strict=True):
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    gold.append({(kind, int(starts[i]), int(starts[j]) - 1) for kind, i, j in entities.entities(list(tags))})
  return [list(words) for words in sentences.words], gold


def entity_f1(results, gold, labels):
  predicted = [{(part["type"], part["start"], part["end"]) for part in result["entities"]} for result in results]
  hits = sum(len(a & b) for a, b in zip(predicted, gold, strict=True))
  return 200 * hits / max(sum(map(len, predicted)) + sum(map(len, gold)), 1)


def questions(data, split):
  rows = squad.read_file(data / "squad_v1" / f"newwiki_{split}.json")
  return [{"question": row.question, "context": row.context} for row in rows], [list(row.answers) for row in rows]


def answer_f1(results, gold, labels):
  pairs = zip(results, gold, strict=True)
  return 100 * np.mean([score.squad1([text for text, *_ in answers], result["answer"])[1] for result, answers in pairs])


# name: pipeline's task, (data, split) -> (items, gold), metric's name, (results, gold, labels) -> percent
TASKS = {
  "SST-2": ("classify", functools.partial(glue, "SST-2", ["sentence"], "label"), "accuracy", accuracy),
  "MRPC": ("classify", functools.partial(glue, "MRPC", ["#1 String", "#2 String"], "Quality"), "accuracy", accuracy),
  "STS-B": ("classify", functools.partial(glue, "STS-B", ["sentence1", "sentence2"], "score"), "Pearson", pearson),
  "WNUT-17": ("tag", wnut, "F1", entity_f1),
  "SQuAD": ("answer", questions, "F1", answer_f1),
}

# What of a result is compared with that of float32, without its probabilities.
ANSWERS = {
  "classify": lambda result: result.get("label"),
  "tag": lambda result: [(part["type"], part["start"], part["end"]) for part in result["entities"]],
  "answer": lambda result: result["answer"],
}


def by_layer(model, cfg, rows):
  """Returns the hidden states after each layer, for rows without padding: list of arrays [tokens, D]."""
  names = [node.output[0] for node in model.graph.node if node.output[0].endswith("ffn/norm")]
  assert len(names) == cfg.num_hidden_layers
  probe = onnx.ModelProto()
  probe.CopyFrom(model)
  del probe.graph.output[:]
  probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
  session = onnx_runtime.session(probe)
  states = [onnx_runtime.run(session, calibration.batch_of([row])) for row in rows]
  return [np.concatenate([state[name].reshape(-1, cfg.hidden_size) for state in states]) for name in names]


class Noting(onnx_runtime.OnnxModel):
  """An OnnxModel that keeps the rows it is asked."""

  def __call__(self, function, batch):
    mask = batch["attention_mask"] > 0
    batch.setdefault("token_type_ids", np.zeros_like(batch["input_ids"]))
    self.rows += [
      (ids[keep].tolist(), types[keep].tolist())
      for ids, types, keep in zip(batch["input_ids"], batch["token_type_ids"], mask, strict=True)
      if keep.any()
    ]
    return super().__call__(function, batch)


def naive(model, options):
  """The graph that ONNX Runtime's dynamic quantization makes of ours."""
  with tempfile.TemporaryDirectory() as folder:
    onnx.save(model, f"{folder}/a.onnx")
    quantize_dynamic(f"{folder}/a.onnx", f"{folder}/b.onnx", weight_type=QuantType.QInt8, **options)
    return onnx.load(f"{folder}/b.onnx")


def measure(name, run, data, limit):
  task, read, metric, score_of = TASKS[name]
  cfg, params = convert.load(run)
  pipe = albert_jax.pipeline(task, run)
  build = {"task": task}
  exact = graphs.build(cfg, params, **build)

  def answers(model):
    pipe.params = onnx_runtime.OnnxModel(model, cfg, task, params)
    return pipe(items)

  def percent(results, index=None):
    index = range(len(items)) if index is None else index
    return float(score_of([results[i] for i in index], [gold[i] for i in index], pipe.labels))

  items, gold = read(data, "dev")
  items, gold = items[: limit or None], gold[: limit or None]
  texts = read(data, "train")[0]
  chosen = np.random.default_rng(0).permutation(len(texts))[: quantize.CALIBRATION_ROWS]
  pipe.params = Noting(exact, cfg, task, params)
  pipe.params.rows = []
  pipe([texts[i] for i in chosen])
  rows = pipe.params.rows[: quantize.CALIBRATION_ROWS]
  uses = quantize.calibrate(cfg, params, [calibration.batch_of([row]) for row in rows], **build)
  reference = answers(exact)
  numbers = {"metric": metric, "rows": len(items), "float32": percent(reference)}
  draws = np.random.default_rng(0).integers(len(items), size=(RESAMPLES, len(items)))
  resampled = [percent(reference, index) for index in draws]
  numbers["changed answers"] = changed = {}
  numbers["standard error of the loss"] = deviations = {}
  numbers["error after each layer"] = errors = {}
  numbers["megabytes"] = sizes = {"float32": exact.ByteSize() / 1e6}
  probed = rows[:PROBED_ROWS]
  states = by_layer(exact, cfg, probed)
  for recipe, graph in each_recipe(exact, cfg, params, uses, build):
    results = answers(graph)
    numbers[recipe] = percent(results)
    key = ANSWERS[task]
    if metric != "Pearson":
      changed[recipe] = sum(key(a) != key(b) for a, b in zip(results, reference, strict=True))
    deviations[recipe] = float(np.std([a - percent(results, index) for a, index in zip(resampled, draws, strict=True)]))
    errors[recipe] = relative(states, by_layer(graph, cfg, probed))
    quantize.compact(graph)
    sizes[recipe] = graph.ByteSize() / 1e6
    print(
      f"{name}: {recipe}: {numbers[recipe]:.2f} (float32 {numbers['float32']:.2f}), loss +- {deviations[recipe]:.2f}, "
      f"changed {changed.get(recipe)}, {sizes[recipe]:.2f} MB",
      flush=True,
    )
  return numbers


def each_recipe(exact, cfg, params, uses, build):
  """Yields (recipe, its graph)."""
  for recipe, options in NAIVE.items():
    yield recipe, naive(exact, options)
  for recipe, settings in OURS.items():
    yield recipe, graphs.build(cfg, params, arithmetic=quantize.Int8(settings, uses), **build)


def relative(states, others):
  return [
    round(float(np.linalg.norm(x - y) / np.linalg.norm(x)), 5) for x, y in zip(states, others, strict=True)
  ]  # fmt: skip


def measure_phonemes(run, data):
  """Returns the error after each layer of a phoneme encoder in transformers' form, on four texts."""
  cfg, params = convert.load(run)
  symbols = json.loads((pathlib.Path(run) / "vocab.json").read_text("utf-8"))["vocab"]
  rows = []
  for line in (data / "phonemes_en" / "dev.jsonl").read_text("utf-8").splitlines():
    ids = [symbols[symbol] for symbol in " ".join(json.loads(line)["phonemes"]) if symbol in symbols][:PHONEMES]
    if len(ids) > 60:
      rows.append((ids, [0] * len(ids)))
  build = {"task": ""}
  uses = quantize.calibrate(cfg, params, [calibration.batch_of([row]) for row in rows[4:28]], **build)
  exact = graphs.build(cfg, params, **build)
  states = by_layer(exact, cfg, rows[:4])
  return {
    "error after each layer": {
      recipe: relative(states, by_layer(graph, cfg, rows[:4]))
      for recipe, graph in each_recipe(exact, cfg, params, uses, build)
    }
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("runs", nargs="+", metavar="TASK=RUN", help=f"tasks: {', '.join(TASKS)}")
  parser.add_argument("--limit", type=int, default=0, help="rows of the development split (default all)")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  logging.getLogger().setLevel(logging.ERROR)  # quantize_dynamic advises on preprocessing.
  data, numbers = pathlib.Path(os.environ["ALBERT_DATA"]), {}
  for text in args.runs:
    name, _, run = text.partition("=")
    numbers[name] = measure_phonemes(run, data) if name == "PL-BERT" else measure(name, run, data, args.limit)
    print(json.dumps({name: numbers[name]}, indent=2), flush=True)
    if args.json:
      pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
  main()
