"""`albert-jax plot`: draws the curves of runs, or the behaviour of a model."""

import re

from albert_jax import curves, files
from albert_jax.commands import common
from albert_jax.errors import UserError

KINDS = {
  "curves": "the metrics of one or more runs",
  "attention": "the attention maps of one checkpoint on one --text",
  "depth": "how far each layer moves its input, as figure 1 of the paper: checkpoints on each --text",
  "confusion": "right labels against answers of one classification run",
  "reliability": "how sure classification runs are, and how often they are right",
}


def main(argv: list[str]) -> None:
  """Draws the picture; see `albert-jax plot --help`."""
  parser = common.parser(
    "plot",
    "Draws a picture. By default the metrics of runs: a panel for each metric of each task, held-out values as solid "
    "lines, training values thin, baselines dashed; then learning rate, throughput and gradient norm. Also:\n"
    + "\n".join(f"--kind={kind}: {what}." for kind, what in list(KINDS.items())[1:]),
    "albert-jax plot runs/base wide=runs/large --out=curves.svg",
  )
  parser.add_argument(
    "runs", nargs="+", metavar="[NAME=]RUN",
    help="the workdir of a run, and its name in the picture; for attention and depth any checkpoint",
  )  # fmt: skip
  parser.add_argument("--out", default="", metavar="FILE", help="the picture: .png, .svg or .pdf (default: KIND.png)")
  parser.add_argument("--kind", choices=list(KINDS), default="curves", help="what to draw (default: curves)")
  parser.add_argument("--text", action="append", default=[], help="for attention and depth: what the model reads")
  args = parser.parse_args(argv)
  args.out = args.out or f"{args.kind}.png"
  named = [_split(run) for run in args.runs]
  paths = [path for _, path in named]
  names = [name or default for (name, _), default in zip(named, curves.names_of(paths), strict=True)]
  _check(args, len(paths))
  if args.kind == "curves":
    about = ", ".join(curves.plot(paths, args.out, names))
  else:
    from albert_jax import pictures  # Imports JAX, which curves do not need.

    about = {
      "attention": lambda: pictures.plot_attention(paths[0], args.out, args.text[0]),
      "depth": lambda: pictures.plot_depth(paths, args.out, names, args.text),
      "confusion": lambda: pictures.plot_confusion(paths[0], args.out),
      "reliability": lambda: pictures.plot_reliability(paths, args.out, names),
    }[args.kind]()
  print(f"wrote {args.out} ({len(paths)} {'runs' if len(paths) > 1 else 'run'}: {about})")


def _check(args, runs):
  """Raises UserError for arguments that do not go together."""
  if runs > 1 and args.kind in ("attention", "confusion"):
    raise UserError(f"--kind={args.kind} draws one checkpoint, got {runs}; draw each into a picture of its own")
  if args.kind in ("attention", "depth") and not args.text:
    raise UserError(f"--kind={args.kind} needs a text; add --text='The statement ends a loop.'")
  if args.kind == "attention" and len(args.text) > 1:
    raise UserError(f"--kind=attention draws one text, got {len(args.text)}; give --text once")
  if args.kind not in ("attention", "depth") and args.text:
    raise UserError(f"--text is for --kind=attention and --kind=depth; leave it out with --kind={args.kind}")


def _split(run):
  """Returns (name or '', path) of `NAME=PATH` or `PATH`; a folder that exists may have = in its name."""
  name, _, path = run.rpartition("=") if not files.is_url(run) or re.match(r"[\w .-]+=", run) else ("", "", run)
  if name and not files.is_url(run) and files.exists(files.user_path(run)):
    name, path = "", run
  return name, files.user_path(path, "RUN")
