"""A small Hugging Face Hub on this machine: models to download, and uploads."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
  """`models`: {repository: {file: bytes}}. `refuse`: a status for those who ask what to upload."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.models, self.refuse, self.tokens = {}, None, set()

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

  def do_POST(self):
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    self.server.tokens.add(self.headers.get("Authorization"))
    if self.server.refuse and "/preupload/" in self.path:
      return self._answer({"error": "no"}, self.server.refuse)
    if self.path.startswith("/api/validate-yaml"):
      return self._answer({"warnings": [], "errors": []})
    if self.path.startswith("/api/repos/create"):
      wanted = json.loads(body)
      repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
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
