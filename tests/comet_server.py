"""A stand-in for Comet's server on this machine: as much of it as an online run and `comet upload` ask for.

It works, or fails as `mode` says; `stop` is its death. What it was sent is in `experiments`.
"""

import gzip
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

UNKNOWN_API_KEY, EXPERIMENT_EXISTS, NO_ACCESS = 90212, 90999, 90210  # of Comet's `sdk_error_code`


class CometServer(ThreadingHTTPServer):
    """Experiments by key, each a list of (path, query and body); `mode` is works, forbids, errs or hangs."""

    daemon_threads = True

    def __init__(self, mode: str = "works"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mode, self.experiments, self.deleted, self.released = mode, {}, set(), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a run that logs here."""
        return {"COMET_URL_OVERRIDE": f"http://127.0.0.1:{self.server_port}/clientlib/",
                "COMET_API_KEY": "not-a-real-key-0123456789"}

    def stop(self) -> None:
        """Connections are refused from now on."""
        self.released.set()
        self.shutdown()
        self.server_close()

    def metrics(self, key: str, name: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, in the order of arrival."""
        batches = [sent["values"] for path, sent in self.experiments[key] if path.endswith("experiment/metric")]
        return [(row["step"], row["metricValue"]) for batch in batches for row in batch if row["metricName"] == name]

    def answer(self, path: str, sent: dict) -> tuple[int, dict]:
        """Status and JSON of an answer."""
        if self.mode == "errs":
            return 500, {"msg": "out of order"}
        if path.endswith("/logger/add/run"):
            return self._add(sent["experimentKey"], sent["getOrCreateEnabled"])
        if path.endswith("/logger/get/run"):
            known = sent["previousExperiment"] in self.experiments
            return (200, {"runId": "run", "project_id": "project"}) if known else (400, {"sdk_error_code": NO_ACCESS})
        if key := sent.get("experimentKey") or sent.get("experimentId"):
            self.experiments.setdefault(key, []).append((path, sent))
        return 200, {"version": "9.9.9", "is_alive_beat_duration_millis": 10_000, "gpu_monitor_interval_millis": 10_000}

    def _add(self, key: str, may_exist: bool) -> tuple[int, dict]:
        if self.mode == "forbids":
            return 403, {"sdk_error_code": UNKNOWN_API_KEY}
        if key in self.deleted or key in self.experiments and not may_exist:
            return 400, {"sdk_error_code": EXPERIMENT_EXISTS}
        self.experiments.setdefault(key, [])
        return 200, {"runId": "run", "project_id": "project"}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.mode == "hangs":
            self.server.released.wait()
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        url = urlsplit(self.path)
        sent = {name: values[0] for name, values in parse_qs(url.query).items()}
        sent |= json.loads(body) if body.startswith(b"{") else {"body": body}
        status, answer = self.server.answer(url.path, sent)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *_) -> None:
        """Not to the screen of the tests."""


@contextmanager
def comet_server(mode: str = "works"):
    """A server for the length of a test."""
    server = CometServer(mode)
    try:
        yield server
    finally:
        if not server.released.is_set():
            server.stop()
