"""`albert-jax bench`: whether this device computes correctly, and how fast."""

import pathlib

from albert_jax import bench
from albert_jax.bench.rows import REPORT
from albert_jax.commands import common
from albert_jax.errors import UserError, did_you_mean


def main(argv: list[str]) -> int:
  """Runs the bench; returns 1 if a check or a row failed. SIGTERM and Ctrl-C end it with the table so far."""
  parser = common.parser(
    "bench",
    "Checks that this device computes correctly (forward pass, fused attention, LAMB, bfloat16, kill and resume) and "
    "measures it: ceilings, training steps beside PyTorch and plain JAX, levers, inference, a real run. Each number "
    "is a line of DIR/results.jsonl as soon as it is measured; DIR/report.md has the table and says what was skipped.",
    "albert-jax bench --minutes=8 --out=bench-results",
  )
  parser.add_argument("--out", required=True, metavar="DIR", help="a new folder for the results")
  parser.add_argument("--minutes", type=float, default=8, help="after which everything has ended (default 8)")
  parser.add_argument("--toy", action="store_true", help="toy sizes, to try the command; always so on a CPU")
  parser.add_argument("--only", default="", metavar="STAGES", help=f"with commas between: {', '.join(bench.STAGES)}")
  args = parser.parse_args(argv)
  if not 0 < args.minutes < 24 * 60:
    raise UserError(f"--minutes={args.minutes:g}: expected above 0 and less than a day, as --minutes=8")
  only = tuple(name.strip() for name in args.only.split(",") if name.strip())
  for name in only:
    if name not in bench.STAGES:
      near = did_you_mean(name, bench.STAGES)
      raise UserError(f"--only={args.only}: there is no stage {name!r}{near}; stages are {', '.join(bench.STAGES)}")
  try:
    rows = bench.bench(args.out, args.minutes, args.toy, only)
  except KeyboardInterrupt:
    report = pathlib.Path(args.out) / REPORT
    print(f"\n{report.read_text('utf-8') if report.exists() else ''}\nStopped before the end.", flush=True)
    raise
  failed = bench.failures(rows)
  print(f"\n{pathlib.Path(args.out) / REPORT}: {len(rows)} rows")
  if failed:
    print(f"FAILED: {'; '.join(failed)}")
  return 1 if failed else 0
