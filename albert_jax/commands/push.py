"""`albert-jax push`: uploads an export to the Hugging Face Hub."""

import pathlib
import re
import shlex

from albert_jax.commands import common
from albert_jax.convert import hub
from albert_jax.errors import UserError


def main(argv: list[str]) -> None:
  """Uploads, or shows what would be; see `albert-jax push --help`."""
  parser = common.parser(
    "push",
    "Uploads a folder made by albert-jax export, with its model card, to a repository of the Hugging Face Hub.",
    "albert-jax push exports/base --to=me/albert-mine --private",
  )
  parser.add_argument("folder", nargs="?", metavar="DIR", help="what albert-jax export made")
  parser.add_argument("--checkpoint", default="", metavar="DIR", help="the same folder, named as in other commands")
  parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository; it is made if need be")
  parser.add_argument("--private", action="store_true", help="make a private repository")
  parser.add_argument("--message", default="", metavar="TEXT", help="of the commit")
  parser.add_argument("--dry_run", action="store_true", help="list what would be uploaded; needs no token")
  args = parser.parse_args(argv)
  if bool(args.folder) == bool(args.checkpoint):
    raise UserError("give one folder made by albert-jax export, as: albert-jax push exports/base --to=me/albert-mine")
  folder = pathlib.Path(args.folder or args.checkpoint)
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.to):
    raise UserError(f"--to={args.to}: expected OWNER/NAME, as --to=me/albert-mine")
  for name in ("config.json", "model.safetensors", "README.md"):
    if not (folder / name).is_file():
      raise UserError(
        f"{folder} has no {name}; make a folder with a card first: albert-jax export "
        f"--checkpoint={shlex.quote(str(folder))} --out=DIR"
      )
  contents = [path for path in sorted(folder.rglob("*")) if path.is_file()]
  contents = [path for path in contents if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
  for path in contents:
    print(f"{path.stat().st_size / 2**20:10.2f} MiB  {path.relative_to(folder)}")
  if args.dry_run:
    print(f"would upload {len(contents)} files to {args.to}")
    return
  print(f"uploaded {len(contents)} files to {hub.upload(folder, args.to, private=args.private, message=args.message)}")
