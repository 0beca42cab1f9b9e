"""A function that answers with the event it was given, and fails when the event's data asks for it."""
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, "text/plain", b"well")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        event = json.loads(body)["event"]
        data = event.get("data")
        if isinstance(data, dict) and data.get("fail"):
            problem = {"code": "unprocessable", "title": "unprocessable", "status": 422, "detail": "it was to fail"}
            return self.answer(422, "application/problem+json", json.dumps(problem).encode())
        reply = {"output": None, "data": event, "serviceMs": 1, "reused": False, "steps": []}
        self.answer(200, "application/json", json.dumps(reply).encode(), {
            "ce-specversion": "1.0",
            "ce-id": self.headers["ce-id"] + "/reply",
            "ce-source": "/imageflow/functions/echo",
            "ce-type": "dev.imageflow.step.completed",
        })

    def answer(self, status, media, body, headers=None):
        self.send_response(status)
        for name, value in {"content-type": media, "content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server = ThreadingHTTPServer((os.environ.get("IMAGEFLOW_BIND") or "127.0.0.1", int(os.environ["PORT"])), Handler)
server.daemon_threads = True
server.serve_forever()
