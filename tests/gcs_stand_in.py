"""Stands in for Google Cloud Storage: what gcsfs, google-cloud-storage and TensorStore speak of its JSON protocol, over
HTTP on this machine, with the objects in memory."""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import pathlib
import re
import sys
import threading
import urllib.parse


class Store(http.server.ThreadingHTTPServer):
  """`objects`: {bucket: {name: (generation, bytes)}}. `calls`: what was asked for, ["GET /storage/v1/b/…"].

  `refuse`: a regular expression of calls, and the status they get, or None.
  """

  daemon_threads = True

  def __init__(self, *buckets):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.objects, self.calls, self.refuse = {name: {} for name in buckets}, [], None
    self.uploads, self.numbers, self.lock = {}, itertools.count(1), threading.Lock()
    self.url = f"http://127.0.0.1:{self.server_address[1]}"

  @contextlib.contextmanager
  def running(self):
    """Yields the environment by which the clients find it."""
    threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
      yield {
        "STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url, "FSSPEC_GCS_TOKEN": "anon",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_PROXY": "127.0.0.1",
      }  # fmt: skip
    finally:
      self.shutdown()
      self.server_close()

  def handle_error(self, request, client_address):
    if not isinstance(sys.exc_info()[1], ConnectionError):  # Clients hang up when they have heard enough.
      super().handle_error(request, client_address)

  def put(self, folder, name):
    """Copies a folder of this machine into the bucket `bucket`, as gs://bucket/NAME."""
    for path in filter(pathlib.Path.is_file, folder.rglob("*")):
      self.objects["bucket"][f"{name}/{path.relative_to(folder)}"] = next(self.numbers), path.read_bytes()

  def names(self, prefix=""):
    """Returns the names of the objects in the bucket `bucket` that begin so."""
    return sorted(name for name in self.objects["bucket"] if name.startswith(prefix))


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"  # Connections stay.
  disable_nagle_algorithm = True

  def log_message(self, *_):
    pass

  def do_GET(self):
    self._serve()

  do_POST = do_PUT = do_DELETE = do_GET

  def _serve(self):
    url = urllib.parse.urlsplit(self.path)
    query = {key: value[-1] for key, value in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
    parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
    body = self._body()
    call = f"{self.command} {urllib.parse.unquote(self.path)}"
    with self.server.lock:
      self.server.calls.append(call)
      if self.server.refuse and re.search(self.server.refuse[0], call):
        return self._error(self.server.refuse[1])
      if parts[0] == "resumable":
        return self._resume(parts[1], body)
      is_upload, parts = parts[0] == "upload", parts[parts.index("b") + 1 :]
      bucket = self.server.objects.get(parts[0])
      if bucket is None:
        return self._error(404)
      match parts[1:]:
        case []:
          self._json({"kind": "storage#bucket", "name": parts[0], "id": parts[0], "location": "EU"})
        case ["o"] if is_upload:
          self._upload(parts[0], query, body)
        case ["o"]:
          self._list(parts[0], query)
        case ["o", name]:
          self._object(parts[0], name, query)
        case ["o", name, "moveTo" | "rewriteTo", *_] if name not in bucket:
          self._error(404)
        case ["o", name, "moveTo", "o", to]:
          self._json(self._put(parts[0], to, bucket.pop(name)[1]))
        case ["o", name, "rewriteTo", "b", other, "o", to]:
          self._json({"done": True, "resource": self._put(other, to, bucket[name][1])})
        case _:
          self._error(501)

  def _body(self):
    if self.headers.get("Transfer-Encoding") == "chunked":
      content = b""
      while size := int(self.rfile.readline(), 16):
        content += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return content
    return self.rfile.read(int(self.headers.get("Content-Length") or 0))

  def _object(self, bucket, name, query):
    stored = self.server.objects[bucket].get(name)
    if stored is None:
      return self._error(404)
    generation, data = stored
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
      return self._error(412)
    if query.get("ifGenerationNotMatch") == str(generation):
      return self._send(304, b"")
    if self.command == "DELETE":
      del self.server.objects[bucket][name]
      return self._send(204, b"")
    if query.get("alt") != "media":
      return self._json(_facts(bucket, name, stored))
    status, headers = 200, {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
    if part := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
      first = int(part[1]) if part[1] else max(0, len(data) - int(part[2]))
      last = min(int(part[2]), len(data) - 1) if part[1] and part[2] else len(data) - 1
      if first > last:
        return self._error(416)
      headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
      status, data = 206, data[first : last + 1]
    self._send(status, data, headers)

  def _list(self, bucket, query):
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    first, end = query.get("startOffset", ""), query.get("endOffset")
    items, prefixes = [], set()
    for name, stored in sorted(self.server.objects[bucket].items()):
      if name.startswith(prefix) and name >= first and (end is None or name < end):
        inside = name[len(prefix) :]
        if delimiter and delimiter in inside:
          prefixes.add(prefix + inside.partition(delimiter)[0] + delimiter)
        else:
          items.append(_facts(bucket, name, stored))
    self._json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

  def _upload(self, bucket, query, body):
    if query["uploadType"] == "multipart":
      mark = b"--" + re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
      _, told, rest = body.split(mark, 2)
      query["name"] = json.loads(told.split(b"\n\n", 1)[1])["name"]
      body = rest[: rest.rindex(b"\n" + mark)].split(b"\n\n", 1)[1]
    name = query["name"]
    generation = self.server.objects[bucket].get(name, (0, b""))[0]
    if query.get("ifGenerationMatch", str(generation)) != str(generation):
      return self._error(412)
    if query["uploadType"] == "resumable":
      number = str(next(self.server.numbers))
      self.server.uploads[number] = (bucket, name, b"")
      return self._send(200, b"", {"Location": f"{self.server.url}/resumable/{number}"})
    self._json(self._put(bucket, name, body))

  def _resume(self, number, body):
    bucket, name, before = self.server.uploads[number]
    self.server.uploads[number] = bucket, name, before + body
    total = self.headers["Content-Range"].rpartition("/")[2]
    if total == "*" or len(before + body) < int(total):
      return self._send(308, b"", {"Range": f"bytes=0-{len(before + body) - 1}"})
    self._json(self._put(bucket, name, before + body))

  def _put(self, bucket, name, data):
    self.server.objects[bucket][name] = next(self.server.numbers), data
    return _facts(bucket, name, self.server.objects[bucket][name])

  def _json(self, value):
    self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"})

  def _error(self, status):
    self._send(status, json.dumps({"error": {"code": status, "message": "as the test wants it"}}).encode())

  def _send(self, status, data, headers=()):
    self.send_response(status)
    for name, value in {**dict(headers), "Content-Length": str(len(data))}.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(data)


def _facts(bucket, name, stored):
  generation, data = stored
  return {
    "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)), "generation": str(generation),
    "metageneration": "1", "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
    "timeCreated": "2025-01-01T00:00:00.000Z", "updated": "2025-01-01T00:00:00.000Z",
  }  # fmt: skip
