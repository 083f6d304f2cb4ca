"""`albert-jax plot`: the curves of one or more runs as a picture."""

import re

from albert_jax import curves, files
from albert_jax.commands import common


def main(argv: list[str]) -> None:
  """Draws the picture; see `albert-jax plot --help`."""
  parser = common.parser(
    "plot",
    "Draws the metrics of runs into one picture: a panel for each metric, with held-out values as solid lines,\n"
    "training values as thin lines and baselines dashed; then learning rate, throughput and gradient norm.",
    "albert-jax plot runs/base wide=runs/large --out=curves.svg",
  )
  parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="the workdir of a run, and its name in the picture")
  parser.add_argument("--out", required=True, metavar="FILE", help="the picture: .png, .svg or .pdf")
  args = parser.parse_args(argv)
  named = [_split(run) for run in args.runs]
  names = [name for name, _ in named] if all(name for name, _ in named) else ()
  paths = [path for _, path in named]
  if not names:
    names = [name or default for (name, _), default in zip(named, curves.names_of(paths), strict=True)]
  metrics = curves.plot(paths, args.out, names)
  print(f"wrote {args.out} ({len(paths)} {'runs' if len(paths) > 1 else 'run'}: {', '.join(metrics)})")


def _split(run):
  """(name or '', path) of `NAME=PATH` or `PATH`; a folder that exists may have = in its name."""
  name, _, path = run.rpartition("=") if not files.is_url(run) or re.match(r"[\w .-]+=", run) else ("", "", run)
  if name and not files.is_url(run) and files.exists(files.user_path(run)):
    name, path = "", run
  return name, files.user_path(path, "RUN")
