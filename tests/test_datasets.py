"""Known datasets, fetched from a web server that the test starts itself."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlp_lm.errors import DataError
from mlp_lm.text.datasets import DATASETS, RemoteFile, brown_text, cache_folder, fetch, resolve_path

CONTENT = b"emma\nolivia\nava\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OFFLINE = RemoteFile("http://127.0.0.1:9/items.txt", SHA256, "items.txt")  # nothing listens at port 9


@dataclass
class Site:
    """What a web server sends, and how often it was asked."""

    url: str
    content: bytes = CONTENT
    status: int = 200
    missing_bytes: int = 0  # announced, but never sent
    delay_seconds: float = 0.0
    num_requests: int = 0

    @property
    def remote(self) -> RemoteFile:
        return RemoteFile(self.url, SHA256, "items.txt")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A web server with the right file, until the test changes what it sends."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.num_requests += 1
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


def test_a_file_is_fetched_once(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    for _ in range(2):
        assert fetch(site.remote, folder).read_bytes() == CONTENT
    assert site.num_requests == 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"content": b"emma\n"}, f"expected {SHA256[:12]}"),
        ({"missing_bytes": 100}, "16 bytes read, 100 more expected"),
        ({"status": 404}, "404: Not Found"),
        ({"url": OFFLINE.url}, "refused"),
    ],
    ids=["wrong checksum", "cut off", "not found", "no server"],
)
def test_a_failure_says_what_to_do_and_leaves_no_file(
    site: Site, tmp_path: Path, broken: dict[str, object], reason: str
) -> None:
    vars(site).update(broken)
    with pytest.raises(DataError) as caught:
        fetch(site.remote, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"could not fetch {site.url} (") and reason in message
    assert f"put the file at {tmp_path / 'items.txt'}, or name your own copy by its path" in message
    assert {path.name for path in tmp_path.iterdir()} <= {"items.txt.lock"}


def test_brown_is_a_sentence_a_line_without_tags(site: Site, tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("brown/README", "not a text\n")
        files.writestr("brown/cb01", "\n\n\tThird/od 1/2/cd ./.\n")
        files.writestr("brown/ca01", "\n\tThe/at-tl jury/nn\n\n\n\tsaid/vbd ``/``\n")
    site.content, text = archive.getvalue(), b"The jury\nsaid ``\nThird 1/2 .\n"
    remote = replace(site.remote, sha256=hashlib.sha256(text).hexdigest(), convert=brown_text)
    assert fetch(remote, tmp_path).read_bytes() == text
    site.content = b"no zip file"
    (tmp_path / "items.txt").unlink()
    with pytest.raises(DataError, match=r"could not fetch .*not a zip file"):
        fetch(remote, tmp_path)


def test_of_several_that_ask_at_once_one_fetches_and_all_get_the_file(site: Site, tmp_path: Path) -> None:
    site.delay_seconds = 0.3  # all have asked before the first has the file
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(site.remote, tmp_path), range(4)))
    assert [path.read_bytes() for path in paths] == [CONTENT] * 4
    assert site.num_requests == 1


def test_a_file_put_there_by_hand_needs_no_server_and_no_lock(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_bytes(CONTENT)
    assert fetch(OFFLINE, tmp_path) == tmp_path / "items.txt"
    assert [path.name for path in tmp_path.iterdir()] == ["items.txt"]


def test_a_cached_file_with_a_wrong_checksum_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("my own names\n")
    with pytest.raises(DataError, match=r"items.txt: sha256 .*delete the file, or name your own copy"):
        fetch(OFFLINE, tmp_path)
    assert (tmp_path / "items.txt").read_text() == "my own names\n"


def test_a_name_or_a_path_becomes_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLP_LM_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/emma")
    monkeypatch.setitem(DATASETS, "makemore", OFFLINE)
    (tmp_path / "items.txt").write_bytes(CONTENT)
    assert resolve_path("makemore") == tmp_path / "items.txt"
    assert resolve_path("names").read_text().startswith("aaaqil\n")
    monkeypatch.delenv("MLP_LM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/mlp_lm")
    assert resolve_path("~/mine.txt") == Path("/home/emma/mine.txt")
    assert resolve_path("~no_such_user/mine.txt") == Path("~no_such_user/mine.txt")
