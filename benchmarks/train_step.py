"""How long a training step takes: ours, a plain JAX version of the same model, and Hugging Face's in PyTorch.

  pip install -e '.[parity]'
  python benchmarks/train_step.py --size=base --batch=8 --length=128

All begin with the same weights and batch, dropout 0, AdamW with clipping; their losses must agree over three steps
before anything is timed. Each has a process of its own, as its user would start it: ours as `albert-jax train` does,
with memory kept between steps (keep_memory), which the best of the others are also shown with. They take turns, one
step each, so that a machine that slows down slows all of them.

  python benchmarks/train_step.py --dtypes=float32 --virtual 2 4 8 --only=albert_jax

What sharding costs: the same batch on one CPU device and on several virtual ones, which share its cores.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from albert_jax import VARIANTS, convert, model
from albert_jax.planning import flops_per_step
from albert_jax.tasks import pretrain
from albert_jax.training import optimizer, sharding, state
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.sharding import MeshConfig
from albert_jax.training.step import make_train_step

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0


def make_batch(cfg, rows, length, slots):
  """A batch without padding, as pre-training sees it most of the time."""
  rng = np.random.default_rng(0)
  positions = np.stack([np.sort(rng.choice(length, slots, replace=False)) for _ in range(rows)])
  return {
    "input_ids": rng.integers(5, cfg.vocab_size, (rows, length)).astype(np.int32),
    "attention_mask": np.ones((rows, length), np.int32),
    "token_type_ids": (np.arange(length)[None] >= rng.integers(1, length, (rows, 1))).astype(np.int32),
    "mlm_positions": positions.astype(np.int32),
    "mlm_labels": rng.integers(5, cfg.vocab_size, (rows, slots)).astype(np.int32),
    "mlm_weights": np.ones((rows, slots), np.float32),
    "sop_label": rng.integers(0, 2, rows).astype(np.int32),
    "sop_weight": np.ones(rows, np.float32),
  }


def ours(cfg, params, batch, devices=1):
  """albert_jax as `albert-jax train` runs it. Returns: function that takes a step and gives the loss; GiB a device."""
  opt = OptimizerConfig(name="adamw", textbook=True, learning_rate=RATE, warmup_steps=0, weight_decay=DECAY)
  mesh = sharding.make_mesh(MeshConfig(), len(batch["input_ids"]), jax.devices()[:devices])
  tx = optimizer.make(opt, model.layer_axes(cfg, params))
  places = sharding.shardings(mesh, jax.eval_shape(lambda: state.from_params(params, tx, None)))
  sums, terms = functools.partial(pretrain.sums, cfg), functools.partial(pretrain.terms, 1.0, 1.0)
  step = make_train_step(sums, terms, tx, jax.random.key(0), mesh, places)
  with jax.set_mesh(mesh):
    arrays, rate = sharding.global_batch(mesh, batch), sharding.everywhere(mesh, RATE)
    now = state.from_params(params, tx, places)
    compiled = step.lower(now, arrays, rate).compile()

  def run():
    nonlocal now
    now, (found, _) = compiled(now, arrays, rate)
    return float(found["loss"][0])

  return run, compiled.memory_analysis().temp_size_in_bytes / 2**30


def plain(cfg, params, batch):
  """What one would write first: a Python loop over layers, attention as in the paper, optax, no remat, no sharding."""
  heads, width, eps = cfg.num_attention_heads, cfg.head_size, cfg.layer_norm_eps
  dtype = jnp.dtype(cfg.dtype)
  gelu = functools.partial(jax.nn.gelu, approximate=cfg.hidden_act == "gelu_new")

  def norm(p, x):
    x = x.astype(jnp.float32)
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + eps)
    return (x * p["scale"].reshape(1, 1, -1) + p["bias"].reshape(1, 1, -1)).astype(dtype)

  def dense(p, x):
    kernel = p["kernel"].reshape(x.shape[-1], -1).astype(dtype)
    return x @ kernel + p["bias"].reshape((1,) * (x.ndim - 1) + (-1,)).astype(dtype)

  def loss(params, batch):
    e = params["embeddings"]
    ids = batch["input_ids"]
    B, L = ids.shape
    x = e["word"]["embedding"][ids] + e["token_type"]["embedding"][batch["token_type_ids"]]
    x = norm(e["norm"], x + e["position"]["embedding"][None, :L])
    x = dense(params["projection"], x)
    mask = jnp.where(batch["attention_mask"][:, None, None, :] > 0, 0.0, -1e4)
    a, f = params["attention"], params["ffn"]
    for _ in range(cfg.num_hidden_layers):
      q, k, v = (dense(a[name], x).reshape(B, L, heads, width) for name in ("query", "key", "value"))
      scores = jnp.einsum("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32) / np.sqrt(width) + mask
      context = jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores).astype(dtype), v).reshape(B, L, -1)
      output = {"kernel": a["output"]["kernel"].reshape(-1, cfg.hidden_size), "bias": a["output"]["bias"]}
      x = norm(a["norm"], x + dense(output, context))
      x = norm(f["norm"], x + dense(f["down"], gelu(dense(f["up"], x))))
    m = params["mlm"]
    h = jnp.take_along_axis(x, batch["mlm_positions"][:, :, None], 1)
    h = norm(m["norm"], gelu(dense(m["dense"], h)))
    logits = jnp.einsum("bme,ve->bmv", h, e["word"]["embedding"].astype(dtype), preferred_element_type=jnp.float32)
    mlm = optax.softmax_cross_entropy_with_integer_labels(logits + m["bias"][None, None], batch["mlm_labels"]).mean()
    pooled = jnp.tanh(dense(params["pooler"], x[:, 0])).astype(jnp.float32)
    sop = pooled @ params["sop"]["dense"]["kernel"] + params["sop"]["dense"]["bias"][None]
    return mlm + optax.softmax_cross_entropy_with_integer_labels(sop, batch["sop_label"]).mean()

  decayed = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
  tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, eps=1e-6, weight_decay=DECAY, mask=decayed))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt, batch):
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value

  params = jax.tree.map(jnp.array, params)
  opt, batch = jax.jit(tx.init)(params), jax.device_put(batch)
  compiled = step.lower(params, opt, batch).compile()

  def run():
    nonlocal params, opt
    params, opt, value = compiled(params, opt, batch)
    return float(value)

  return run, compiled.memory_analysis().temp_size_in_bytes / 2**30


def torch_step(folder, batch, dtype, attention, compiled, masked_only):
  """transformers' AlbertForPreTraining with torch.optim.AdamW.

  masked_only: the MLM head only at masked slots, which transformers does not do by itself.
  """
  import torch
  import transformers

  device = "cuda" if torch.cuda.is_available() else "cpu"
  net = transformers.AlbertForPreTraining.from_pretrained(folder, attn_implementation=attention).to(device).train()
  decayed, rest = [], []
  for name, p in net.named_parameters():
    (rest if name.endswith("bias") or "layernorm" in name.lower().replace("_", "") else decayed).append(p)
  groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
  adam = torch.optim.AdamW(groups, lr=RATE, eps=1e-6)
  tensors = {k: torch.tensor(v, device=device) for k, v in batch.items()}
  positions, labels = tensors["mlm_positions"].long(), tensors["mlm_labels"].long()
  everywhere = torch.full(tensors["input_ids"].shape, -100, device=device).scatter(1, positions, labels)
  inputs = {k: tensors[k].long() for k in ("input_ids", "attention_mask", "token_type_ids")}

  def loss():
    if not masked_only:
      return net(**inputs, labels=everywhere, sentence_order_label=tensors["sop_label"].long()).loss
    hidden, pooled = net.albert(**inputs)[:2]
    picked = hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1]))
    entropy = torch.nn.functional.cross_entropy
    mlm = entropy(net.predictions(picked).flatten(0, 1).float(), labels.flatten())
    return mlm + entropy(net.sop_classifier(pooled).float(), tensors["sop_label"].long())

  forward = torch.compile(loss) if compiled else loss

  def run():
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
      value = forward()
    value.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    adam.step()
    adam.zero_grad(set_to_none=True)
    return value.item()

  return run, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


KEPT = ", memory kept"
VIRTUAL = " on virtual devices: "
TORCH = {  # name: (attention, compiled, masked slots only)
  "eager": ("eager", False, False),
  "SDPA": ("sdpa", False, False),
  "SDPA, masked slots only": ("sdpa", False, True),
  "compile": ("sdpa", True, False),
  "compile, masked slots only": ("sdpa", True, True),
}


def contestants(dtypes, peers, virtual) -> list[str]:
  """Their names, which say what they are: see `made`."""
  names = []
  for dtype in dtypes:
    names += [f"albert_jax {dtype}", *(f"albert_jax {dtype}{VIRTUAL}{n}" for n in virtual)]
    names += [f"plain JAX {dtype}", f"plain JAX {dtype}{KEPT}"]
    names += [*(f"PyTorch {name} {dtype}" for name in TORCH), f"PyTorch compile {dtype}{KEPT}"] if peers else []
  return names


def made(name, folder, batch):
  """The contestant's (run, GiB of temporaries or None): `run` takes a step and gives the loss."""
  dtype = dtype_of(name)
  if name.startswith("PyTorch "):
    return torch_step(
      folder, batch, dtype, *TORCH[name.removeprefix("PyTorch ").removesuffix(KEPT).removesuffix(f" {dtype}")]
    )
  devices = int(name.partition(VIRTUAL)[2] or 1)
  if devices > 1:
    jax.config.update("jax_num_cpu_devices", devices)
  cfg, params = convert.load(folder)
  # transformers drops out before the SOP head too, which the original does not.
  cfg = dataclasses.replace(cfg, dtype=dtype)
  return ours(cfg, params, batch, devices) if name.startswith("albert_jax") else plain(cfg, params, batch)


def dtype_of(name) -> str:
  return "bfloat16" if "bfloat16" in name else "float32"


class Worker:
  """A contestant in a process of its own."""

  def __init__(self, name, folder, argv):
    start = (
      "from albert_jax.commands import common; common.keep_memory(); "
      if name.startswith("albert_jax") or KEPT in name
      else ""
    )
    start += "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", start, __file__, *argv, f"--worker={name}", f"--folder={folder}"]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.about = self._read()

  def step(self) -> float:
    """Seconds of one step."""
    return self._ask("step")

  def peak_gib(self) -> float:
    """The most memory the process has had: libraries, weights and all."""
    return self._ask("peak")

  def close(self):
    self._process.communicate()

  def _ask(self, what):
    print(what, file=self._process.stdin, flush=True)
    return self._read()

  def _read(self):
    while line := self._process.stdout.readline():
      if line.startswith("> "):  # Libraries may print too.
        return json.loads(line[2:])
    raise SystemExit(f"a contestant ended with {self._process.wait()}: see above")


def serve(name, folder, batch):
  """What a worker does: gets ready, then a step for each line it reads."""

  def answer(value):
    print(f"> {json.dumps(value)}", flush=True)

  run, gib = made(name, folder, batch)
  answer({"losses": [run() for _ in range(3)], "temp_gib": gib})
  for line in sys.stdin:
    if line.strip() == "peak":
      answer(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    else:
      start = time.perf_counter()
      run()
      answer(time.perf_counter() - start)


def matmul_ceiling(dtype, size=2048) -> float:
  """FLOP/s of one large matrix product, the best of JAX and, if it is there, PyTorch."""
  x = jnp.ones((size, size), dtype)
  product = jax.jit(lambda x: x @ x)
  runs = [lambda: product(x).block_until_ready()]
  try:
    import torch

    if not torch.cuda.is_available():
      y = torch.ones(size, size, dtype=getattr(torch, dtype))
      runs.append(lambda: y @ y)
  except ImportError:
    pass
  best = 0.0
  for run in runs:
    run()
    for _ in range(5):
      start = time.perf_counter()
      run()
      best = max(best, 2 * size**3 / (time.perf_counter() - start))
  return best


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--size", default="base", choices=VARIANTS)
  parser.add_argument("--batch", type=int, default=8, help="rows (default 8)")
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--slots", type=int, help="masked slots a row (default 15 %% of the length)")
  parser.add_argument("--steps", type=int, default=20, help="timed steps of each (default 20)")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--only", default="", metavar="REGEX", help="those in whose name it is found (default all)")
  parser.add_argument("--virtual", type=int, nargs="+", default=[], metavar="N", help="ours on N CPU devices too")
  parser.add_argument("--no-peers", action="store_true", help="without PyTorch")
  parser.add_argument("--json", metavar="FILE")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  parser.add_argument("--folder", help=argparse.SUPPRESS)
  args = parser.parse_args()
  # On a GPU, where JAX would else take most of the memory for whichever process comes first.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  slots = args.slots or round(0.15 * args.length)
  cfg = dataclasses.replace(VARIANTS[args.size], classifier_dropout_prob=0.0)
  batch = make_batch(cfg, args.batch, args.length, slots)
  if args.worker:
    serve(args.worker, args.folder, batch)
    return
  flops = flops_per_step(cfg, args.batch, args.length, slots)
  if args.virtual and jax.default_backend() != "cpu":
    parser.error(f"--virtual is for CPUs, and this is a {jax.default_backend()}; set JAX_PLATFORMS=cpu")
  everyone = contestants(args.dtypes.split(","), not args.no_peers, args.virtual)
  names = [name for name in everyone if re.search(args.only, name)]
  if not names:
    parser.error(f"--only={args.only} is found in none of: {', '.join(everyone)}")

  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    convert.save(pathlib.Path(folder) / "model", cfg, jax.device_get(model.init(cfg, jax.random.key(0))))
    workers = {}
    for name in names:
      start = time.perf_counter()
      workers[name] = Worker(name, f"{folder}/model", sys.argv[1:])
      stack.callback(workers[name].close)
      print(f"{name}: ready in {time.perf_counter() - start:.1f} s, losses {workers[name].about['losses']}", flush=True)
    for name, worker in workers.items():
      dtype = dtype_of(name)
      reference = next(w.about["losses"] for other, w in workers.items() if dtype_of(other) == dtype)
      rtol = 1e-4 if dtype == "float32" else 1e-2
      np.testing.assert_allclose(worker.about["losses"], reference, rtol=rtol, err_msg=name)
    times = {name: [] for name in workers}
    for _ in tqdm.trange(args.steps, desc="steps of each"):
      for name, worker in workers.items():
        times[name].append(worker.step())
    peaks = {name: worker.peak_gib() for name, worker in workers.items()}
  ceiling = {dtype: matmul_ceiling(dtype) for dtype in args.dtypes.split(",")}
  base = np.median(next(iter(times.values())))
  rows = [
    {
      "name": name, "ms": 1e3 * np.median(seconds), "ms_p10": 1e3 * np.quantile(seconds, 0.1),
      "ms_p90": 1e3 * np.quantile(seconds, 0.9), "rows_per_s": args.batch / np.median(seconds),
      "share_of_matmul_ceiling": flops / np.median(seconds) / ceiling[dtype_of(name)],
      "temp_gib": workers[name].about["temp_gib"], "peak_gib": peaks[name], "times_first": np.median(seconds) / base,
    }
    for name, seconds in times.items()
  ]  # fmt: skip
  print(f"\n{args.size}, {args.batch} rows of {args.length}, {slots} masked, {args.steps} steps each, in turns")
  print(f"{'':<44}{'ms':>9}{'p10':>9}{'p90':>9}{'rows/s':>8}{'ceiling':>9}{'GiB':>7}{'peak':>7}{'x first':>9}")
  for row in rows:
    gib = "" if row["temp_gib"] is None else f"{row['temp_gib']:.2f}"
    print(
      f"{row['name']:<44}{row['ms']:>9.1f}{row['ms_p10']:>9.1f}{row['ms_p90']:>9.1f}{row['rows_per_s']:>8.2f}"
      f"{row['share_of_matmul_ceiling']:>9.1%}{gib:>7}{row['peak_gib']:>7.2f}{row['times_first']:>9.2f}"
    )
  if args.json:
    about = {"size": args.size, "batch": args.batch, "length": args.length, "slots": slots, "flops": flops,
             "matmul_ceiling": ceiling, "device": jax.devices()[0].device_kind}  # fmt: skip
    pathlib.Path(args.json).write_text(json.dumps({**about, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
  main()
