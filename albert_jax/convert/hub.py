"""Downloads models of the Hugging Face Hub to huggingface_hub's cache, and uploads folders."""

import functools
import os
import pathlib
import re

from albert_jax.errors import UserError, one_line

SCHEME = "hf://"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
# The files of a model. Weights of other frameworks in the same repository are not downloaded.
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "spiece.model", "vocab.txt", "tokenizer*.json",
          "added_tokens.json", "special_tokens_map.json", "symbols.json")  # fmt: skip


def is_name(path: str | os.PathLike) -> bool:
  """Returns whether a path names a model of the Hub: `hf://OWNER/NAME`, or `OWNER/NAME` if no folder OWNER exists."""
  text = os.fspath(path)
  if text.startswith(SCHEME):
    return True
  return bool(_NAME.fullmatch(text)) and not os.path.exists(text) and not os.path.isdir(text.split("/")[0])


@functools.lru_cache(maxsize=16)
def fetch(name: str) -> str:
  """Returns the local folder of a model, downloading it if it is not in huggingface_hub's cache.

  Without a network, or with HF_HUB_OFFLINE=1, the cached copy is used.

  Args:
    name: `OWNER/NAME` or `OWNER/NAME@REVISION`, with or without `hf://`.

  Raises:
    UserError: huggingface_hub is not installed, or there is no such model in the cache or on the Hub.
  """
  repo, _, revision = name.removeprefix(SCHEME).rstrip("/").partition("@")
  if not _NAME.fullmatch(repo):
    raise UserError(f"{name} is no model of the Hub; give {SCHEME}OWNER/NAME, as {SCHEME}albert/albert-base-v2")
  hub = _library(f"nothing at {name!r} here, and to look on the Hugging Face Hub")
  options = {"revision": revision or None, "endpoint": os.environ.get("HF_ENDPOINT")}
  try:
    folder = hub.snapshot_download(repo, allow_patterns=list(_FILES), **options)
    if not any(pathlib.Path(folder).glob("*.safetensors")):
      folder = hub.snapshot_download(repo, allow_patterns=[*_FILES, "pytorch_model.bin"], **options)
  except hub.errors.RepositoryNotFoundError:
    raise UserError(
      f"nothing at {name!r} here, and the Hugging Face Hub has no model of that name that you may read; check the name "
      "(for a private one: hf auth login)"
    ) from None
  except hub.errors.RevisionNotFoundError:
    raise UserError(f"{repo} has no revision {revision!r} on the Hub; leave @{revision} out, or check it") from None
  except Exception as error:  # httpx raises many kinds; all mean that the Hub is unreachable and nothing is cached.
    raise UserError(
      f"nothing at {name!r} here, it is not in the cache of the Hugging Face Hub, and the Hub cannot be reached "
      f"({type(error).__name__}); check the name and the network, or give a folder"
    ) from error
  return folder


def upload(folder: str | os.PathLike, repo: str, *, private: bool = False, message: str = "") -> str:
  """Uploads a folder to a model repository of the Hub, creating the repository if it does not exist.

  Args:
    folder: what to upload; hidden files are left out.
    repo: OWNER/NAME.
    private: make a private repository.
    message: of the commit.

  Returns:
    the address of the repository.

  Raises:
    UserError: there is no token, or it has no write access.
    OSError: the Hub cannot be reached.
  """
  hub = _library("to upload")
  token = hub.get_token()
  if not token:
    raise UserError("there is no token of the Hugging Face Hub; type: hf auth login, or set HF_TOKEN (see --dry_run)")
  api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
  try:
    api.create_repo(repo, private=private, exist_ok=True)
    api.upload_folder(
      repo_id=repo, folder_path=os.fspath(folder), ignore_patterns=[".*", "**/.*"],
      commit_message=message or "Upload with albert-jax",
    )  # fmt: skip
  except hub.errors.HfHubHTTPError as error:
    status = getattr(error.response, "status_code", None)
    if status in (401, 403):
      raise UserError(f"the token may not write to {repo}; give one with write access: hf auth login") from None
    raise OSError(f"the Hugging Face Hub refused the upload to {repo}: {one_line(error)}") from error
  return f"{api.endpoint}/{repo}"


def _library(purpose: str):
  try:
    import huggingface_hub
    import huggingface_hub.errors
  except ImportError:
    raise UserError(f"{purpose}, huggingface_hub is needed; type: pip install 'albert-jax[hub]'") from None
  return huggingface_hub
