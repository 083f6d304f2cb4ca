"""`albert-jax plan`: compiles the train step for another machine, and estimates memory and time."""

import contextlib
import math

import jax

from albert_jax import files, planning
from albert_jax.commands import common
from albert_jax.errors import UserError
from albert_jax.training import watch

# On two cores the compiler of libtpu 0.0.52 waited for itself for ever; that of 0.0.42, made for jax 0.10, did not.
_IDLE_SECONDS = 60
_IDLE = (
  "albert-jax plan: the compiler has used no processor time for a minute and will not finish; libtpu may be of another "
  "version than jax: pip install 'albert-jax[plan]' installs the one that belongs to it"
)


def main(argv: list[str]) -> None:
  parser = common.parser(
    "plan",
    "Compiles the train step of a config for TPUs or GPUs that you do not have, and estimates whether it fits, the "
    "traffic between devices, and the time of the run.",
    "albert-jax plan --config=configs/pretrain.py:xxlarge --config.model.dtype=bfloat16 --topology=v5e:16x16",
  )
  parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="as v4:2x2x4, v5e:4x4, h200:8")
  parser.add_argument("--mfu", type=float, default=0.5, help="share of the peak the estimate assumes (default 0.5)")
  parser.add_argument("--price_per_chip_hour", type=float, metavar="PRICE", help="to print the run's cost")
  parser.add_argument(
    "--find_batch", action="store_true", help="also find the largest number of rows that fits on a device"
  )
  parser.add_argument("--json", metavar="FILE", help="write the numbers there")
  args, config = common.parse_with_config(parser, argv)
  if not 0 < args.mfu <= 1:
    raise UserError(f"--mfu={args.mfu} must be a share of the peak, above 0 and up to 1, as --mfu=0.5")
  if args.price_per_chip_hour is not None and not 0 <= args.price_per_chip_hour < math.inf:
    raise UserError(f"--price_per_chip_hour={args.price_per_chip_hour} must be 0 or more")
  if args.json:
    files.check_writable(args.json)  # The compiler takes minutes.
  jax.config.update("jax_platforms", "cpu")  # Nothing runs, so an accelerator of this machine is not used.
  is_gpu = args.topology.partition(":")[0] in planning.GPUS  # Their compiler has processes that do a part of its work.
  with contextlib.nullcontext() if is_gpu else watch.exit_when_idle(_IDLE_SECONDS, _IDLE):
    numbers = planning.plan(config, args.topology, args.mfu)
    if args.find_batch:
      numbers |= planning.largest_batch(config, args.topology, numbers)
  print(planning.describe(numbers, args.price_per_chip_hour))
  if args.json:
    files.write_json(args.json, numbers)
