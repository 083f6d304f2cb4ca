"""Prediction on real texts: ours beside transformers in PyTorch (eager, torch.compile) and ONNX Runtime.

  pip install -e '.[parity]' onnxruntime onnx onnxscript
  ALBERT_DATA=DIR python benchmarks/inference.py --size=base --texts=sst-2,squad

A classifier with random weights reads the development sets of SST-2 and SQuAD 2.0 (question and passage, cut at 384
tokens), from text to probabilities. All must give the same ones before anything is timed. Then they take turns, so that
a machine that slows down slows all of them. Everyone pads a batch to its own longest row; `sorted` means that the texts
were sorted by length before, which transformers' pipelines do not do and a careful user does. --threads=1 keeps every
one to a single core, where processor time, which other programs hardly change, compares them on a busy machine.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time

SMALL = {"embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
         "intermediate_size": 1024}  # fmt: skip
CUT, BATCH = 384, 32
PAUSE = 0.5  # s: the threads of PyTorch and ONNX Runtime wait busily for a while, and would cost the next one a core.


def texts_of(name, data):
  """list of texts, or of pairs of them."""
  if name == "sst-2":
    lines = (data / "glue/SST-2/dev.tsv").read_text().split("\n")[1:]
    return [line.split("\t")[0] for line in lines if line]
  articles = json.loads((data / "squad_v2/dev.json").read_text())["data"]
  return [(qa["question"], p["context"]) for a in articles for p in a["paragraphs"] for qa in p["qas"]]


def ours(export):
  """texts -> probabilities [n, 2], in their order."""
  import numpy as np

  import albert_jax

  pipe = albert_jax.pipeline("classify", export)
  return lambda texts: np.array([[x["scores"]["LABEL_0"], x["scores"]["LABEL_1"]] for x in pipe(list(texts))])


def theirs(export, threads, kind):
  """The same of transformers: `run` gets a batch of rows as a tokenizer gives them. kind: eager, compile or onnx."""
  import numpy as np
  import torch
  import transformers

  torch.set_num_threads(threads)
  transformers.utils.logging.disable_progress_bar()
  tokenizer = transformers.AutoTokenizer.from_pretrained(export)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(export).eval()
  if kind == "onnx":
    run = _onnx(export, model, threads)
  else:
    compiled = torch.compile(model, dynamic=True) if kind == "compile" else model

    def run(batch):
      with torch.inference_mode():
        return compiled(**batch).logits.softmax(-1).numpy()

  def predict(texts, in_order=True):
    encoded = [tokenizer(*([text] if isinstance(text, str) else text), truncation=True, max_length=CUT)
               for text in texts]  # fmt: skip
    order = np.arange(len(texts)) if in_order else np.argsort([len(x["input_ids"]) for x in encoded], kind="stable")
    logits = np.empty((len(texts), 2))
    for start in range(0, len(texts), BATCH):
      rows = order[start : start + BATCH]
      batch = tokenizer.pad([encoded[i] for i in rows], return_tensors="pt")
      logits[rows] = run({name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    return logits

  return predict


def _onnx(export, model, threads):
  """`run` by ONNX Runtime, of the model exported to a file."""
  import numpy as np
  import onnxruntime
  import torch

  file = pathlib.Path(export) / "model.onnx"
  if not file.is_file():
    names = ("input_ids", "attention_mask", "token_type_ids")
    sample = tuple(torch.ones(2, 24, dtype=torch.long) for _ in names)
    dims = torch.export.Dim("rows"), torch.export.Dim("length", max=512)
    with torch.no_grad():
      program = torch.onnx.export(
        model, kwargs=dict(zip(names, sample, strict=True)), input_names=list(names), output_names=["logits"],
        dynamic_shapes={name: dict(enumerate(dims)) for name in names}, dynamo=True, verbose=False,
      )  # fmt: skip
    program.optimize()
    program.save(file)
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads, options.log_severity_level = threads, 3
  session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

  def run(batch):
    [logits] = session.run(None, {name: value.numpy() for name, value in batch.items()})
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)

  return run


def timed(function, *args, **kwargs):
  """Returns (seconds, seconds of processor time)"""
  wall, cpu = time.perf_counter(), time.process_time()
  function(*args, **kwargs)
  return time.perf_counter() - wall, time.process_time() - cpu


def measure(contenders, texts, rounds, singles):
  """Returns {contender: numbers}. Each runs all texts in every round, forth and back; then some texts one by one."""
  import numpy as np
  import tqdm

  taken = {name: [] for name in contenders}
  for number in tqdm.trange(rounds, desc="rounds"):
    for name in list(contenders)[:: -1 if number % 2 else 1]:
      taken[name].append(timed(contenders[name], texts))
  alone = {name: [] for name in contenders if "sorted" not in name}
  picked = [texts[i] for i in np.random.default_rng(0).integers(0, len(texts), singles)]
  for name in alone:
    for text in picked:  # What each shape has to be compiled for is not counted.
      contenders[name]([text])
  for text in tqdm.tqdm(picked, desc="one by one"):
    for name in alone:
      time.sleep(PAUSE)
      contenders[name]([text])
      alone[name].append(timed(contenders[name], [text]))
  numbers = {}
  for name, values in taken.items():
    wall, cpu = np.array(values).T
    numbers[name] = {"texts_per_s": len(texts) / np.median(wall), "cpu_ms_per_text": 1e3 * np.median(cpu) / len(texts),
                     "spread": float((wall.max() - wall.min()) / np.median(wall))}  # fmt: skip
    if name in alone:
      wall, cpu = 1e3 * np.array(alone[name]).T
      numbers[name] |= {
        "p50_ms": np.percentile(wall, 50),
        "p99_ms": np.percentile(wall, 99),
        "cpu_p50_ms": np.median(cpu),
      }
  return {name: {key: float(value) for key, value in times_of.items()} for name, times_of in numbers.items()}


def show(title, numbers):
  mine = numbers["ours"]
  print(f"\n{title}")
  heads = f"{'':<16}{'texts/s':>9}{'spread':>8}{'cpu ms/text':>13}{'ours, time':>12}{'ours, cpu':>11}"
  print(f"{heads}{'p50 ms':>9}{'p99 ms':>9}{'cpu ms':>9}")
  for name, x in numbers.items():
    times = mine["texts_per_s"] / x["texts_per_s"], x["cpu_ms_per_text"] / mine["cpu_ms_per_text"]
    alone = f"{x['p50_ms']:>9.1f}{x['p99_ms']:>9.1f}{x['cpu_p50_ms']:>9.1f}" if "p50_ms" in x else ""
    print(f"{name:<16}{x['texts_per_s']:>9.1f}{x['spread']:>8.0%}{x['cpu_ms_per_text']:>13.1f}{times[0]:>11.2f}x"
          f"{times[1]:>10.2f}x{alone}")  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="base", help="small, or a variant (base)")
  parser.add_argument("--texts", default="sst-2,squad", help="which texts")
  parser.add_argument("--rows", type=int, default=0, help="how many of them, evenly taken; 0: all")
  parser.add_argument("--peers", default="eager,compile,onnx")
  parser.add_argument("--threads", type=int, default=os.cpu_count())
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--singles", type=int, default=100, help="texts that are run one by one")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  os.sched_setaffinity(
    0, sorted(os.sched_getaffinity(0))[: args.threads]
  )  # XLA takes a thread for each core it may use.

  from albert_jax.commands import common

  common.keep_memory()  # As `albert-jax predict` does; here the others have it too.
  import jax
  import numpy as np

  import albert_jax

  data, results = pathlib.Path(os.environ["ALBERT_DATA"]), {}
  cfg = (
    dataclasses.replace(albert_jax.VARIANTS["base"], **SMALL)
    if args.size == "small"
    else albert_jax.VARIANTS[args.size]
  )
  params = jax.jit(albert_jax.init, static_argnums=0)(cfg, jax.random.key(0))
  params = {name: part for name, part in params.items() if name not in ("mlm", "sop")}
  rng = np.random.default_rng(0)
  params["classifier"] = {"kernel": rng.normal(size=(cfg.hidden_size, 2)).astype(np.float32), "bias": np.zeros(2)}
  with tempfile.TemporaryDirectory() as folder:
    export = pathlib.Path(folder) / "export"
    vocabulary = data / "vocab/albert_en_30k/spiece.model"
    facts = {"albert_jax_task": {"name": "classify", "labels": ["LABEL_0", "LABEL_1"], "seq_length": CUT}}
    albert_jax.save(export, cfg, params, vocabulary=vocabulary, extra=facts)
    contenders = {"ours": ours(export)}
    for kind in filter(None, args.peers.split(",")):
      try:
        predict = theirs(export, args.threads, kind)
        predict(["one", "two and three"])
      except Exception as error:  # A peer that cannot be had here is said, and costs the others nothing.
        print(f"{kind} is left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
        continue
      contenders[kind] = predict
      contenders[f"{kind}, sorted"] = lambda texts, predict=predict: predict(texts, in_order=False)
    for name in args.texts.split(","):
      texts = texts_of(name, data)
      texts = texts[:: max(1, len(texts) // args.rows)][: args.rows] if args.rows else texts
      expected = contenders["ours"](texts)
      for peer, predict in contenders.items():
        worst = float(np.abs(predict(texts) - expected).max())
        if not worst < 1e-4:
          sys.exit(f"{peer} gives other probabilities than ours, by up to {worst:.1e}: nothing is timed")
      results[name] = measure(contenders, texts, args.rounds, args.singles)
      show(f"{name}: {len(texts)} texts, {args.size}, {args.threads} threads, median of {args.rounds}", results[name])
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
