"""`albert-jax serve`: serves models over HTTP with an API, metrics and a page."""

import importlib.util

from albert_jax.commands import common
from albert_jax.errors import UserError

EXTRA = ("starlette", "uvicorn", "pydantic", "prometheus_client")
LIMITS = {  # flag: (unit, help)
  "batch_size": ("N", "the most inputs run together"),
  "window": ("SECONDS", "for which the first input of a batch waits for others"),
  "max_body": ("BYTES", "the largest body of a request"),
  "max_items": ("N", "the most inputs of a request"),
  "max_tokens": ("N", "the most tokens of a request, all inputs together"),
  "max_queue": ("N", "the most inputs that wait; beyond, requests get 503"),
  "max_connections": ("N", "the most open connections; beyond, requests get 503"),
  "timeout": ("SECONDS", "for which a request may take, and a stop may wait for requests"),
  "drain": ("SECONDS", "from SIGTERM on, for which new connections are still answered"),
}


def main(argv: list[str]) -> None:
  missing = next((name for name in EXTRA if not importlib.util.find_spec(name)), None)
  if missing:
    raise UserError(f"{missing} is not installed; the server needs: pip install 'albert-jax[serve]'")
  from albert_jax.serve import models, process, state

  parser = common.parser(
    "serve",
    "Answers requests over HTTP with one or more checkpoints, and shows a page to try them. Texts of different "
    "clients run in one batch. The first start compiles every program, which takes minutes; later starts read them "
    "from disk. Only this machine can connect unless --host says otherwise; there is no authentication.",
    "albert-jax serve --checkpoint=runs/sst --checkpoint=search=runs/retrieve --port=8000",
  )
  parser.add_argument(
    "--checkpoint", required=True, action="append", metavar="[NAME=]DIR",
    help="a Hugging Face directory or a run's workdir, and its name in requests (default: its folder's); repeatable",
  )  # fmt: skip
  parser.add_argument("--host", default=state.Settings.host, help="the address to listen on (default: %(default)s)")
  parser.add_argument("--port", type=int, default=state.Settings.port, help="0 for any free one (default: %(default)s)")
  parser.add_argument(
    "--backend", choices=("jax", "onnx"), default="jax", help="onnx runs the files that albert-jax export wrote"
  )
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16", "int8"), default="",
    help="what to compute in; int8 is for --backend=onnx (default: by the checkpoint)",
  )  # fmt: skip
  parser.add_argument(
    "--cors", action="append", default=[], metavar="ORIGIN",
    help="let pages of this origin send requests, as https://example.org; may be repeated (default: none)",
  )  # fmt: skip
  parser.add_argument("--no_page", action="store_true", help="serve the API without the page")
  parser.add_argument("--no_warm_up", action="store_true", help="compile each program when a request first needs it")
  parser.add_argument(
    "--reuse_port", action="store_true",
    help="listen on the port of an older server with this flag once all is compiled: a restart without a gap",
  )  # fmt: skip
  for name, (unit, text) in LIMITS.items():
    default = getattr(state.Settings, name)
    parser.add_argument(
      f"--{name}", type=type(default), default=default, metavar=unit, help=f"{text} (default: %(default)s)"
    )
  args = parser.parse_args(argv)
  for name in LIMITS:
    value, zero = getattr(args, name), name in ("window", "drain")
    if not (0 if zero else 1e-9) <= value < float("inf"):
      raise UserError(f"--{name}={value} must be {'0 or more' if zero else 'more than 0'}")
  if args.max_items > args.max_queue:
    raise UserError(f"--max_items={args.max_items} must be at most --max_queue={args.max_queue}, or never fits in it")
  if not 0 <= args.port < 1 << 16:
    raise UserError(f"--port={args.port} must be from 0 to 65535")
  for origin in args.cors:
    if origin != "*" and not origin.startswith(("http://", "https://")):
      raise UserError(f"--cors={origin} is no origin; write one as https://example.org, or '*' for any")
  if args.dtype and (args.backend, args.dtype) in (("jax", "int8"), ("onnx", "bfloat16")):
    raise UserError(f"--dtype={args.dtype} does not go with --backend={args.backend}; use "
                    f"{'--backend=onnx' if args.dtype == 'int8' else '--dtype=float32 or --dtype=int8'}")  # fmt: skip
  settings = state.Settings(
    host=args.host, port=args.port, cors=tuple(args.cors), page=not args.no_page, warm_up=not args.no_warm_up,
    reuse_port=args.reuse_port,
    **{name: getattr(args, name) for name in LIMITS},
  )  # fmt: skip
  process.run(models.parse(args.checkpoint), settings, args.backend, args.dtype)
