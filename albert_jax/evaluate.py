"""The numbers of a split: sums on the device, ratios on the host."""

import json
import pathlib

import jax

from albert_jax import cli, convert, tasks
from albert_jax.training import sharding
from albert_jax.training.writer import ratios


def make_eval_step(task):
  """(params, batch) -> {"name": (total, weight)}, compiled."""
  return jax.jit(lambda params, batch: task.sums(params, batch, None))


def evaluate(task, eval_step, params, mesh) -> dict:
  """One pass over the task's held-out split: {"name": value}. Padded rows weigh nothing, no row counts twice."""
  sums = None
  for batch in task.eval_batches(jax.process_index(), jax.process_count()):
    new = eval_step(params, sharding.global_batch(mesh, batch))
    sums = new if sums is None else _add(sums, new)
  return ratios(jax.device_get(sums))


@jax.jit
def _add(a, b):
  return jax.tree.map(lambda x, y: x + y, a, b)


def main(argv):
  parser = cli.parser(
    "evaluate",
    "Computes the held-out numbers of a checkpoint and prints them as one JSON object.",
    "albert-jax evaluate --config=configs/pretrain.py:tiny --config.data.dataset=DIR --checkpoint=RUN/export",
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a Hugging Face directory, as RUN/export")
  parser.add_argument("--json", metavar="FILE", help="write the JSON there too")
  args, config = cli.parse_with_config(parser, argv)
  cfg, params = convert.load(args.checkpoint)
  config.unlock()
  for name in config.model:  # The checkpoint says what the model is; the config says how to compute.
    if name not in ("dtype", "remat"):
      config.model[name] = getattr(cfg, name)
  task = tasks.make(config)
  mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh), config.batch_size)
  with jax.set_mesh(mesh):
    params = jax.device_put(params, sharding.shardings(mesh, params))
    text = json.dumps(evaluate(task, make_eval_step(task), params, mesh))
  print(text)
  if args.json:
    pathlib.Path(args.json).write_text(text + "\n")
