"""A stand-in for Google Cloud Storage on this machine: its JSON interface, as far as the clients in use speak it.

It holds objects in memory and knows what an object store knows: whole objects under names, no folders, no appending, no
renaming, no memory mapping. `gs://` paths reach it through the very clients that reach the real one.
"""

import contextlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

Objects = dict[str, tuple[bytes, int]]
"""Content and generation of each object by "bucket/name"."""


@contextlib.contextmanager
def serve() -> Iterator[tuple[Objects, dict[str, str]]]:
    """The objects, and the environment in which gcsfs, google-cloud-storage and TensorStore find them."""
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        # What gcsfs and TensorStore otherwise ask of Google first: the kind of a bucket, and who they are.
        quiet = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token"}
        yield server.objects, {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url, **quiet}
    finally:
        server.shutdown()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.objects: Objects = {}
        self.uploads: dict[str, tuple[str, list[bytes]]] = {}
        self.lock = threading.Lock()

    def handle_error(self, *args: object) -> None:
        pass  # a client that closed its connection


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two wait for each other
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        raw = self._body()
        with self.server.lock:
            code, body, headers = self._act(self.command, split.path, query, raw)
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _act(self, method: str, path: str, query: dict[str, str], raw: bytes) -> tuple[int, bytes, dict[str, str]]:
        if path.startswith("/batch/"):
            return self._batch(raw)
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+?))?)?", path)
        if not found:
            return _said(404, {"error": {"message": path}})
        place, bucket, name = found.groups()
        if place == "/upload":
            return self._upload(method, bucket, query, raw)
        if name is None:
            return self._list(bucket, query) if path.endswith("/o") else _said(200, {"name": bucket, "id": bucket})
        if "/rewriteTo/b/" in name or "/moveTo/o/" in name:
            return self._copy(bucket, name)
        return self._object(method, f"{bucket}/{urllib.parse.unquote(name)}", query)

    def _object(self, method: str, key: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        objects = self.server.objects
        if key not in objects:
            return _said(404, {"error": {"code": 404, "message": f"no object {key}"}})
        if method == "DELETE":
            del objects[key]
            return 204, b"", {}
        if query.get("alt") != "media":
            return _said(200, _about(key, objects[key]))
        data, generation = objects[key]
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return 200, data, headers
        first, last = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
        if first > last:
            return 416, b"", headers
        return 206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}

    def _list(self, bucket: str, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        objects = self.server.objects
        prefix, cut = f"{bucket}/{query.get('prefix', '')}", query.get("delimiter", "")
        names = sorted(key for key in objects if key.startswith(prefix))
        names = [n for n in names if query.get("startOffset", "") <= n[len(bucket) + 1 :]]
        folders = {n[: n.index(cut, len(prefix)) + 1] for n in names if cut and cut in n[len(prefix) :]}
        items = [_about(n, objects[n]) for n in names if not (cut and cut in n[len(prefix) :])]
        return _said(200, {"items": items, "prefixes": sorted(folder[len(bucket) + 1 :] for folder in folders)})

    def _upload(self, method: str, bucket: str, query: dict[str, str], raw: bytes) -> tuple[int, bytes, dict[str, str]]:
        uploads = self.server.uploads
        if "upload_id" in query:
            key, parts = uploads[query["upload_id"]]
            parts.append(raw)
            if self.headers.get("Content-Range", "").endswith("/*"):
                return 308, b"", {"Range": f"bytes=0-{sum(map(len, parts)) - 1}"}
            return self._store(key, b"".join(parts))
        if query["uploadType"] == "media":
            return self._store(f"{bucket}/{query['name']}", raw, query.get("ifGenerationMatch"))
        if query["uploadType"] == "resumable":
            name = query.get("name") or json.loads(raw)["name"]
            upload_id = str(len(uploads))
            uploads[upload_id] = f"{bucket}/{name}", []
            host = f"http://{self.headers['Host']}"
            return 200, b"", {"Location": f"{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload_id}"}
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
        assert boundary
        edge = f"--{boundary[1]}".encode()
        _, about, data = raw.split(edge, 2)
        end = data.rindex(b"\n" + edge)
        data = data[: end - 1] if data[end - 1 : end] == b"\r" else data[:end]
        return self._store(f"{bucket}/{json.loads(_after_head(about))['name']}", _after_head(data))

    def _store(self, key: str, data: bytes, match: str | None = None) -> tuple[int, bytes, dict[str, str]]:
        objects = self.server.objects
        generation = objects[key][1] if key in objects else 0
        if match is not None and int(match) != generation:
            return _said(412, {"error": {"code": 412, "message": "another generation"}})
        objects[key] = data, generation + 1
        return _said(200, _about(key, objects[key]))

    def _copy(self, bucket: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        objects = self.server.objects
        moved = "/moveTo/o/" in name
        old, new = name.split("/moveTo/o/") if moved else name.split("/rewriteTo/b/")
        other, new = (bucket, new) if moved else new.split("/o/", 1)
        source = f"{bucket}/{urllib.parse.unquote(old)}"
        if source not in objects:
            return _said(404, {"error": {"code": 404, "message": f"no object {source}"}})
        _, about, headers = self._store(f"{other}/{urllib.parse.unquote(new)}", objects[source][0])
        if moved:
            del objects[source]
            return 200, about, headers
        return _said(200, {"done": True, "resource": json.loads(about)})

    def _batch(self, raw: bytes) -> tuple[int, bytes, dict[str, str]]:
        answers = []
        for number, asked in enumerate(re.findall(rb"(DELETE) (\S+) HTTP", raw)):
            path = urllib.parse.urlsplit(asked[1].decode()).path
            code, body, _ = self._act("DELETE", path, {}, b"")
            head = f"Content-Type: application/http\r\nContent-ID: <response-{number + 1}>\r\n\r\nHTTP/1.1 {code} said\r\n"
            answers.append(f"--edge\r\n{head}Content-Length: {len(body)}\r\n\r\n{body.decode()}\r\n")
        return 200, "".join([*answers, "--edge--"]).encode(), {"Content-Type": "multipart/mixed; boundary=edge"}


def _about(key: str, stored: tuple[bytes, int]) -> dict[str, str]:
    bucket, name = key.split("/", 1)
    stamp = "2026-01-01T00:00:00.000Z"
    sizes = {"size": str(len(stored[0])), "generation": str(stored[1]), "metageneration": "1"}
    return {"bucket": bucket, "name": name, **sizes, "timeCreated": stamp, "updated": stamp}


def _after_head(part: bytes) -> bytes:
    return re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]


def _said(code: int, value: dict) -> tuple[int, bytes, dict[str, str]]:
    return code, json.dumps(value).encode(), {"Content-Type": "application/json"}
