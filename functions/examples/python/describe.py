"""Describes a picture: size, format, digest, and how its bytes are spread.

A function for ImageFlow in the standard library only. It serves the contract of a function pod on $PORT:

  POST /            a CloudEvent (binary or structured): fetches `dataref`, answers with a CloudEvent
  POST /            an image: answers with the description as JSON
  GET  /healthz/live, /healthz/ready
  SIGTERM           turns unready, finishes what it holds, ends with 0
"""

import base64
import hashlib
import json
import math
import os
import signal
import struct
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIMIT = int(os.environ.get("IMAGEFLOW_CONCURRENCY_LIMIT") or 4)
TIMEOUT = int(os.environ.get("IMAGEFLOW_TIMEOUT_MS") or 30000) / 1000
NAME = os.environ.get("IMAGEFLOW_FUNCTION") or "describe"
MAX_BYTES = 64 * 1024 * 1024


class Problem(Exception):
    """An error as the caller sees it; the status decides whether the platform tries again."""

    def __init__(self, status, code, detail):
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


# What the function does.


def describe(image, params):
    for name in params:
        if name != "histogram":
            raise Problem(400, "invalid-argument", f'there is no parameter "{name}"; known is histogram')
    kind, width, height = dimensions(image)
    counts = [0] * 256
    for byte in image:
        counts[byte] += 1
    entropy = -sum(n / len(image) * math.log2(n / len(image)) for n in counts if n)
    data = {
        "format": kind,
        "width": width,
        "height": height,
        "bytes": len(image),
        "sha256": hashlib.sha256(image).hexdigest(),
        "entropy": round(entropy, 4),
    }
    if params.get("histogram") in (True, "true"):
        data["histogram"] = counts
    return data


def dimensions(image):
    if image.startswith(b"\x89PNG\r\n\x1a\n") and len(image) >= 24:
        return ("png", *struct.unpack(">II", image[16:24]))
    if image.startswith(b"\xff\xd8"):
        at = 2
        while at + 9 <= len(image) and image[at] == 0xFF:
            marker = image[at + 1]
            if marker == 0xFF:  # a fill byte
                at += 1
                continue
            # Start of frame; C4, C8 and CC are tables and an extension.
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height, width = struct.unpack(">HH", image[at + 5 : at + 9])
                return ("jpeg", width, height)
            at += 2 + struct.unpack(">H", image[at + 2 : at + 4])[0]
        raise Problem(422, "unprocessable", "the JPEG ends before its size is told")
    raise Problem(415, "unsupported-format", "the body is neither a PNG nor a JPEG image")


# How it is reached.


def unpack(text):
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def fetch(url, headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            body = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        if error.code in (404, 412):
            raise Problem(412, "input-changed", "the input object changed after the run was made") from None
        raise Problem(503, "unavailable", f"the object store answered {error.code}") from None
    except OSError as error:
        # The URL is not repeated: it holds a signature.
        raise Problem(503, "unavailable", f"the object store could not be reached: {type(error).__name__}") from None
    if len(body) > MAX_BYTES:
        raise Problem(413, "too-large", f"the input object has more than {MAX_BYTES} bytes")
    return body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self):
        if self.path == "/healthz/live":
            self.answer(200, "text/plain", b"live")
        elif self.path == "/healthz/ready":
            draining = self.server.draining
            self.answer(503 if draining else 200, "text/plain", b"draining" if draining else b"ready")
        else:
            self.problem(Problem(404, "not-found", f"there is no route {self.path}"))

    def do_POST(self):
        path, _, query = self.path.partition("?")
        try:
            chunked = "transfer-encoding" in self.headers
            length = -1 if chunked else int(self.headers.get("content-length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BYTES:
            self.close_connection = True
            return self.problem(Problem(413, "too-large", f"send at most {MAX_BYTES} bytes, with a content-length"))
        body = self.rfile.read(length)
        if path != "/":
            return self.problem(Problem(404, "not-found", f"there is no route {path}"))
        reason = self.server.enter()
        if reason:
            headers = {"retry-after": "1", "imageflow-refused": reason}
            return self.problem(Problem(503, "unavailable", f"not admitted: {reason}"), headers)
        try:
            self.invoke(query, body)
        except Problem as problem:
            self.problem(problem)
        except Exception as error:
            print(f"call failed: {error!r}", file=sys.stderr, flush=True)
            self.problem(Problem(500, "internal", "the function failed; its log says why"))
        finally:
            self.server.leave()

    def invoke(self, query, body):
        media = (self.headers.get("content-type") or "").split(";")[0].strip().lower()
        if media == "application/cloudevents+json":
            event = self.parse(body)
        elif "ce-specversion" in self.headers:
            headers = {name.lower(): value for name, value in self.headers.items()}
            event = {n[3:]: urllib.parse.unquote(v) for n, v in headers.items() if n.startswith("ce-")}
            event["data"] = self.parse(body) if body else {}
        else:
            params = dict(urllib.parse.parse_qsl(query))
            return self.answer(200, "application/json", json.dumps(describe(body, params)).encode())

        for name in ("id", "source", "type"):
            if not event.get(name):
                raise Problem(400, "malformed-event", f'attribute "{name}" is missing')
        if "dataref" not in event:
            raise Problem(400, "malformed-event", "the event has no dataref to fetch a picture from")
        data = event.get("data") or {}
        headers = unpack(event["imageflowinput"])["headers"] if "imageflowinput" in event else {}
        image = fetch(event["dataref"], headers)
        started = time.monotonic()
        result = describe(image, data.get("params") or {})
        reply = {
            "output": None,
            "data": result,
            "serviceMs": round((time.monotonic() - started) * 1000),
            "reused": False,
            "steps": [],
        }
        attributes = {
            "ce-specversion": "1.0",
            "ce-id": urllib.parse.quote(event["id"] + "/reply", safe="/:+@,;=~!$&'()*"),
            "ce-source": f"/imageflow/functions/{NAME}",
            "ce-type": "dev.imageflow.step.completed",
        }
        for name in ("imageflowrun", "imageflowstep", "imageflowattempt", "traceparent"):
            if name in event:
                attributes["ce-" + name] = str(event[name])
        self.answer(200, "application/json", json.dumps(reply).encode(), attributes)

    def parse(self, body):
        try:
            value = json.loads(body)
        except ValueError as error:
            raise Problem(400, "malformed-event", f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Problem(400, "malformed-event", "the body is not a JSON object")
        return value

    def problem(self, problem, headers=None):
        body = {
            "type": "urn:imageflow:problem:" + problem.code,
            "code": problem.code,
            "title": problem.code.replace("-", " "),
            "status": problem.status,
            "detail": problem.detail,
        }
        self.answer(problem.status, "application/problem+json", json.dumps(body).encode(), headers)

    def answer(self, status, media, body, headers=None):
        self.send_response(status)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    # Idle keep-alive connections must not hold the end; the calls in flight are waited for by `drain`.
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address):
        super().__init__(address, Handler)
        self.draining = False
        self.held = 0
        self.changed = threading.Condition()

    def enter(self):
        """Why a call is not admitted, or None."""
        with self.changed:
            if self.draining:
                return "draining"
            if self.held >= LIMIT:
                return "concurrency"
            self.held += 1
            return None

    def leave(self):
        with self.changed:
            self.held -= 1
            self.changed.notify_all()

    def drain(self):
        with self.changed:
            self.draining = True
            self.changed.wait_for(lambda: self.held == 0, timeout=TIMEOUT)
        self.shutdown()


def main():
    address = (os.environ.get("IMAGEFLOW_BIND") or "0.0.0.0", int(os.environ.get("PORT") or 8080))
    server = Server(address)
    # The handler runs in the main thread, which serves: draining needs a thread of its own.
    stop = threading.Thread(target=server.drain)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.draining or stop.is_alive() or stop.start())
    print(f"listening on port {server.server_address[1]}", file=sys.stderr, flush=True)
    server.serve_forever(poll_interval=0.05)
    stop.join()
    server.server_close()


if __name__ == "__main__":
    main()
