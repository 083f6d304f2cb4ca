"""A small Hugging Face Hub on this machine: models and datasets to download, and uploads."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
  """`models`, `datasets`: {repository: {file: bytes}}. `refuse`: a status for those who ask what to upload."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.models, self.datasets, self.refuse, self.tokens = {}, {}, None, set()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}"

  @contextlib.contextmanager
  def running(self):
    thread = threading.Thread(target=self.serve_forever, daemon=True)
    thread.start()
    try:
      yield self
    finally:
      self.shutdown()
      self.server_close()
      thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    pass

  def _answer(self, value, status=200, headers=None):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    self.send_response(status)
    for name, text in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
      self.send_header(name, text)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def _missing(self):
    self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

  def do_GET(self):
    parts = self.path.split("?")[0].strip("/").split("/")
    if parts[:2] == ["api", "datasets"] or parts[0] == "datasets":
      return self._dataset([urllib.parse.unquote(part) for part in parts if part not in ("api", "datasets")])
    if parts[:2] == ["api", "models"]:
      repo = "/".join(parts[2:4])
      if repo not in self.server.models:
        return self._missing()
      names = list(self.server.models[repo])
      if "tree" in parts:
        return self._answer(
          [
            {"type": "file", "path": name, "size": len(self.server.models[repo][name]), "oid": "0" * 40}
            for name in names
          ]
        )
      return self._answer({
        "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
        "siblings": [{"rfilename": name} for name in names],
      })  # fmt: skip
    repo, name = "/".join(parts[:2]), "/".join(parts[4:])
    if repo not in self.server.models or name not in self.server.models[repo]:
      return self._missing()
    data = self.server.models[repo][name]
    etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
    return self._answer(data, headers=etag)

  do_HEAD = do_GET

  def _entries(self, repo):
    contents = self.server.datasets[repo]
    folders = {str(parent) for name in contents for parent in pathlib.PurePosixPath(name).parents} - {"."}
    return [
      *({"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)),
      *({"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in contents.items()),
    ]

  def _dataset(self, parts):
    """parts: owner, name, then the request: nothing, tree/REVISION/PATH or resolve/REVISION/FILE."""
    repo, request, path = "/".join(parts[:2]), parts[2:3], "/".join(parts[4:])
    contents = self.server.datasets.get(repo)
    if contents is None:
      return self._missing()
    if request == ["tree"]:
      entries = self._entries(repo)
      depth = None if "recursive=" in self.path.lower().replace("recursive=false", "") else 1
      parents = {entry["path"]: list(map(str, pathlib.PurePosixPath(entry["path"]).parents)) for entry in entries}
      inside = [entry for entry in entries if (path or ".") in parents[entry["path"]][:depth]]
      return self._answer(inside if inside else {"error": "not found"}, 200 if inside else 404)
    if request != ["resolve"]:
      return self._answer({"id": repo, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0})
    data, status, headers = contents[path], 200, {"Accept-Ranges": "bytes", "ETag": '"1"', "X-Repo-Commit": COMMIT}
    if span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
      first, last = int(span[1]), min(int(span[2]), len(data) - 1)
      headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
      data, status = data[first : last + 1], 206
    return self._answer(data, status, headers)

  def do_POST(self):
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    if "/paths-info/" in self.path:
      names = json.loads(body)["paths"] if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())["paths"]
      entries = self._entries("/".join(self.path.split("/")[3:5]))
      return self._answer([entry for entry in entries if entry["path"] in names])
    self.server.tokens.add(self.headers.get("Authorization"))
    if self.server.refuse and "/preupload/" in self.path:
      return self._answer({"error": "no"}, self.server.refuse)
    if self.path.startswith("/api/validate-yaml"):
      return self._answer({"warnings": [], "errors": []})
    if self.path.startswith("/api/repos/create"):
      request = json.loads(body)
      repo = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
      self.server.models.setdefault(repo, {})
      return self._answer({"url": f"{self.server.url}/{repo}", "id": repo, "name": repo})
    repo = "/".join(self.path.split("/")[3:5])
    if "/preupload/" in self.path:
      listed = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
      return self._answer({"files": listed})
    for line in map(json.loads, body.splitlines()):
      if line["key"] == "file":
        self.server.models[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    return self._answer({
      "commitUrl": f"{self.server.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True,
    })  # fmt: skip
