"""Fetching a dataset from a web server that the test starts itself."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlp_lm.errors import DataError
from mlp_lm.text.download import RemoteFile, cache_folder, fetch

CONTENT = b"emma\nolivia\nava\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE, LOCK = "items.txt", "items.txt.lock"


@dataclass
class Site:
    """What a web server sends, and how often it was asked."""

    url: str
    content: bytes = CONTENT
    status: int = 200
    missing_bytes: int = 0  # announced, but never sent
    delay_seconds: float = 0.0
    gets: int = 0

    @property
    def remote(self) -> RemoteFile:
        return RemoteFile(self.url, SHA256, FILE)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web server with the right file, until the test changes what it sends."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.gets += 1
            time.sleep(served.delay_seconds)
            self.send_response(served.status)
            self.send_header("Content-Length", str(len(served.content) + served.missing_bytes))
            self.end_headers()
            self.wfile.write(served.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Site(f"http://127.0.0.1:{server.server_port}/items.txt")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_file_is_fetched_once(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    for _ in range(2):
        path = fetch(site.remote, folder)
        assert path == folder / FILE
        assert path.read_bytes() == CONTENT
    assert site.gets == 1
    assert files(folder) <= {FILE, LOCK}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"content": b"emma\n"}, f"expected {SHA256[:12]}"),
        ({"missing_bytes": 100}, "cut off after 16 of 116 bytes"),
        ({"status": 404}, "HTTP 404 Not Found"),
        ({"url": f"http://127.0.0.1:{closed_port()}/items.txt"}, "refused"),
    ],
    ids=["wrong checksum", "cut off", "not found", "no server"],
)
def test_a_failure_says_what_to_do_and_leaves_nothing_behind(
    site: Site, tmp_path: Path, broken: dict[str, object], reason: str
) -> None:
    right = Site(site.url)
    for name, value in broken.items():
        setattr(site, name, value)
    with pytest.raises(DataError) as caught:
        fetch(site.remote, tmp_path)
    message = str(caught.value)
    assert reason in message
    assert f"could not fetch {site.url}" in message
    assert f"put the file at {tmp_path / FILE}" in message
    assert "--data.path FILE" in message
    assert files(tmp_path) <= {LOCK}
    # The next try starts afresh.
    vars(site).update(vars(right))
    assert fetch(site.remote, tmp_path).read_bytes() == CONTENT


def test_of_processes_that_ask_at_once_one_fetches_and_all_get_the_file(site: Site, tmp_path: Path) -> None:
    site.delay_seconds = 0.5  # all have asked before the first has the file
    program = f"""
from pathlib import Path
from mlp_lm.text.download import RemoteFile, fetch
print("ready", flush=True)
input()
print(fetch({site.remote!r}, Path({str(tmp_path)!r})).read_text(), end="")
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == [CONTENT.decode()] * 4
    assert site.gets == 1
    assert files(tmp_path) <= {FILE, LOCK}


def test_a_file_put_there_by_hand_needs_no_server(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(CONTENT)
    assert fetch(RemoteFile(f"http://127.0.0.1:{closed_port()}/", SHA256, FILE), tmp_path) == tmp_path / FILE


def test_a_file_at_hand_with_a_wrong_checksum_is_named_and_kept(site: Site, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("my own names\n")
    with pytest.raises(DataError, match="delete it") as caught:
        fetch(site.remote, tmp_path)
    assert f"{tmp_path / FILE} has sha256" in str(caught.value)
    assert site.gets == 0
    assert (tmp_path / FILE).read_text() == "my own names\n"


def test_a_cache_folder_that_cannot_be_made_is_the_users_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"--data\.path FILE"):
        fetch(site.remote, tmp_path / "file")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLP_LM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MLP_LM_CACHE")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mlp_lm"
