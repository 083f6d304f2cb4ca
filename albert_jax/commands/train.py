"""`albert-jax train`: pre-trains or fine-tunes a model; resumes by itself."""

import gc

import jax

from albert_jax import loop
from albert_jax.commands import common
from albert_jax.training import hosts, watch


def main(argv: list[str]) -> None:
  parser = common.parser(
    "train",
    "Trains a model in a folder: checkpoints, metrics.jsonl, TensorBoard events, and at the end curves.png and "
    "export/, a Hugging Face directory. A repeated command resumes from the newest checkpoint.",
    "albert-jax train --config=configs/pretrain.py:tiny --config.data.dataset=DIR --workdir=RUN",
  )
  parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of this run, or gs://BUCKET/FOLDER")
  parser.add_argument("--profile", default="", metavar="FIRST:LAST", help="write a profile of these steps, as 10:13")
  several = parser.add_argument_group("several processes (found by themselves on TPU pods and SLURM)")
  several.add_argument("--coordinator", default="", metavar="HOST:PORT", help="where process 0 listens")
  several.add_argument("--processes", type=int, metavar="N", help="how many there are")
  several.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
  args, config = common.parse_with_config(parser, argv)
  profile = watch.parse_steps(args.profile)
  hosts.join(args.coordinator, args.processes, args.process)
  # `exit_on_error` is in the loop too, where an error must not wait for a save that waits for other hosts.
  with watch.leave_cluster_on_error(), watch.exit_on_error(jax.process_count()):
    loop.train(config, args.workdir, profile)
    if config.data.get("workers", 0):
      gc.collect()  # The last batch is in shared memory, which Python would report as leaked when the process ends.
