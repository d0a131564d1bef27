"""The hub: asked for one file of an id that is not in the catalogue, and not waited for where there is none.

A process of its own asks a hub on this machine, because huggingface_hub reads its endpoint once.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

pytestmark = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="needs huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASK = """
import sys
from qmem.catalogue import find_model
from qmem.errors import QmemError
try:
    found = find_model(sys.argv[1])
except QmemError as error:
    print(error)
    sys.exit(error.exit_code)
print(found.id, found.config["model_type"], found.source)
"""


class Hub(BaseHTTPRequestHandler):
    """Serves the config of ``acme/brand-new``, and says what else it was asked for."""

    asked: ClassVar[list[str]] = []
    config: ClassVar[bytes] = json.dumps({"model_type": "llama", "hidden_size": 64}).encode()
    errors: ClassVar[dict[str, tuple[int, str]]] = {
        "/acme/gated/": (403, "GatedRepo"),
        "/acme/weights-only/": (404, "EntryNotFound"),
    }

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        self.asked.append(self.path)
        if not self.path.startswith("/acme/brand-new/"):
            return self.refuse()
        self.send_response(200)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(self.config)))
        self.end_headers()
        if with_body:
            self.wfile.write(self.config)
        return None

    def refuse(self) -> None:
        found = (error for prefix, error in self.errors.items() if self.path.startswith(prefix))
        status, code = next(found, (404, "RepoNotFound"))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(name: str, endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    hidden = ("HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    clean = {key: value for key, value in os.environ.items() if not key.upper().startswith(hidden)}
    environment = {**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", ASK, name], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_hub_id_is_fetched_once_and_only_its_config(hub: str, tmp_path: Path) -> None:
    for _ in range(2):
        answer = ask("acme/brand-new", hub, tmp_path)
        assert answer.stdout == "acme/brand-new llama acme/brand-new on the hub\n", answer.stderr
    assert {path.rpartition("/")[2] for path in Hub.asked} == {"config.json"}
    assert len(Hub.asked) <= 2


def test_the_catalogue_is_never_looked_up_on_the_hub(hub: str, tmp_path: Path) -> None:
    assert ask("Qwen/Qwen3-14B", hub, tmp_path).returncode == 0
    assert Hub.asked == []


@pytest.mark.parametrize(
    ("name", "exit_code", "message"),
    [
        ("acme/nothing", 2, "no model is called 'acme/nothing'"),
        ("acme/weights-only", 2, "has no config.json on the hub"),
        ("acme/gated", 3, "is gated on the hub"),
    ],
)
def test_the_hub_s_refusals_are_told_apart(name: str, exit_code: int, message: str, hub: str, tmp_path: Path) -> None:
    answer = ask(name, hub, tmp_path)
    assert (answer.returncode, answer.stdout.count("\n")) == (exit_code, 1), answer.stderr
    assert message in answer.stdout


def test_without_a_hub_the_answer_comes_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    answer = ask("acme/nothing", "http://127.0.0.1:9", tmp_path)
    assert "no model is called 'acme/nothing'; nearest: " in answer.stdout
    assert answer.returncode == 2
    assert time.perf_counter() - start < 10
