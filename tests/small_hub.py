"""A Hub on 127.0.0.1, as huggingface_hub 2.4.0 sees it: one model of some files."""

import hashlib
import http.server
import json
import re
import threading
import time

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files`, {name: bytes}, as the model `name`, at the revisions main and v1.

    asked: (method, path, Range header) of each request. refuse: a (status, X-Error-Code) for all
    files. broken: {file: bytes after which the connection ends, once}. pause: seconds after each
    kilobyte.
    """

    def __init__(self, name, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.files = name, files
        self.asked, self.refuse, self.broken, self.pause = [], None, {}, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def downloads(self):
        """The names of the files whose content was asked for, in order."""
        files = [path for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]
        return [path.split("/")[-1] for path in files]

    def handle_error(self, *_):
        """A client that has gone is no error of the test."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.server
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        info = re.fullmatch(rf"/api/models/{hub.name}/revision/(\w+)(\?.*)?", self.path)
        file = re.fullmatch(rf"/{hub.name}/resolve/(\w+)/(.*)", self.path)
        revision = (info or file)[1] if info or file else None
        if revision is None:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif info:
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(self.info()).encode())
        elif hub.refuse:
            self.answer(hub.refuse[0], {"X-Error-Code": hub.refuse[1]})
        elif file[2] not in hub.files:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
        else:
            self.send_file(file[2])

    def info(self):
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": blob(data)}
            for name, data in self.server.files.items()
        ]
        return {"id": self.server.name, "sha": COMMIT, "siblings": siblings}

    def send_file(self, name):
        data = self.server.files[name]
        headers = {"ETag": f'"{blob(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        begin = int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.answer(206 if begin else 200, headers, data[begin:], name)

    def answer(self, status, headers, body=b"", name=None):
        self.send_response(status)
        for key, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.server
        if name in hub.broken:
            self.wfile.write(body[: hub.broken.pop(name)])
            self.close_connection = True
        elif hub.pause:
            for begin in range(0, len(body), 1024):
                self.wfile.write(body[begin : begin + 1024])
                time.sleep(hub.pause)
        else:
            self.wfile.write(body)


def blob(data):
    """The name of a file in the folder blobs."""
    return hashlib.sha1(data).hexdigest()
