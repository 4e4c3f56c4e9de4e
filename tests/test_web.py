"""Building and serving the site, without a browser; `tests/browser` drives it in one."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import socket
import struct
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from needs import ROOT

from wgtrain.cli import main as cli
from wgtrain.errors import OptionError
from wgtrain.web import patience
from wgtrain.web.listener import HOSTS
from wgtrain.web.server import HEADERS, POLICY, Server, policy_of

sys.path.insert(0, str(ROOT / "scripts"))
import build_web


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server of a folder with one file of 1000 bytes, an empty one, and links."""
    (tmp_path / "outside").write_bytes(b"secret")
    folder = tmp_path / "site"
    (folder / "part").mkdir(parents=True)
    (folder / "some.gguf").write_bytes(bytes(i % 251 for i in range(1000)))
    (folder / "a.mjs").write_bytes(b"")
    (folder / "part" / "index.html").write_bytes(b"<p>")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle").symlink_to("circle")
    with serving(folder) as found:
        yield found


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    """The port of a server, which ends without waiting for anyone."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.port
    server.shutdown()
    thread.join(60)
    assert not thread.is_alive()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, {k.title(): v for k, v in answer.getheaders()}, answer.read()


def get(port: int, path: str, asked: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    found = ask(connection, "GET", path, **({"Range": asked} if asked else {}))
    connection.close()
    return found


def raw(port: int, request: bytes) -> bytes:
    """All that comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=3-700", 3, 700),
        ("bytes=990-2000", 990, 999),
        ("bytes=5-", 5, 999),
    ],
)
def test_a_range_is_served(port: int, asked: str, first: int, last: int) -> None:
    status, headers, body = get(port, "/some.gguf", asked)
    assert status == 206 and headers["Content-Range"] == f"bytes {first}-{last}/1000"
    assert body == bytes(i % 251 for i in range(first, last + 1))
    assert int(headers["Content-Length"]) == len(body)


def test_a_range_behind_the_end_is_refused(port: int) -> None:
    status, headers, body = get(port, "/some.gguf", "bytes=1000-1001")
    assert (status, headers["Content-Range"], body) == (416, "bytes */1000", b"")


def test_whole_files_and_headers(port: int) -> None:
    status, headers, body = get(port, "/some.gguf")
    assert status == 200 and len(body) == 1000
    assert HEADERS.items() <= headers.items() and headers["Accept-Ranges"] == "bytes"
    assert get(port, "/a.mjs")[1]["Content-Type"].startswith("text/javascript")
    assert get(port, "/part/")[2] == b"<p>"
    assert get(port, "/nothing")[0] == 404


def test_a_head_with_a_range_leaves_the_connection_whole(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(2):
        status, headers, body = ask(connection, "HEAD", "/some.gguf", Range="bytes=3-9")
        assert (status, headers["Content-Length"], body) == (206, "7", b"")
        assert ask(connection, "GET", "/some.gguf")[2] == bytes(i % 251 for i in range(1000))
    connection.close()


@pytest.mark.parametrize(
    "path", ["/link", "/up/outside", "/../outside", "/%2e%2e/outside", "/%00", "/circle"]
)
def test_nothing_outside_the_folder_is_served(port: int, path: str) -> None:
    status, _, body = get(port, path)
    assert status == 404 and b"secret" not in body


@pytest.mark.parametrize("asked", [f"bytes=0-{'9' * 5000}", f"bytes={'9' * 5000}-", "bytes=a-b"])
def test_a_range_that_is_none_is_refused(port: int, asked: str) -> None:
    assert get(port, "/some.gguf", asked)[0] in (400, 416)


@pytest.mark.parametrize(
    ("host", "status"),
    [*((host, 200) for host in sorted(HOSTS)), ("evil.example", 421), ("127.0.0.1.evil", 421)],
)
def test_only_names_of_this_machine_are_answered(port: int, host: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for name in (host, f"{host}:{port}", host.upper()):
        assert ask(connection, "GET", "/some.gguf", Host=name)[0] == status
    for name in (f"{host}:evil", f"{host}:80, evil", f"{host}:"):
        assert ask(connection, "GET", "/some.gguf", Host=name)[0] == 421
    connection.close()


def test_a_file_that_changes_while_it_is_sent_spoils_no_other_answer(tmp_path: Path) -> None:
    file = tmp_path / "f.bin"
    file.write_bytes(b"a" * (32 << 20))
    (tmp_path / "g.bin").write_bytes(b"g")
    with serving(tmp_path) as port:
        for change in (lambda: os.truncate(file, 1 << 20), lambda: file.write_bytes(b"b" * 40)):
            file.write_bytes(b"a" * (32 << 20))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/f.bin")
            answer = connection.getresponse()
            answer.read(1000)
            change()
            with pytest.raises((http.client.IncompleteRead, OSError)):
                answer.read()  # an end that is seen, not a client that waits
            connection.close()
            assert get(port, "/g.bin")[2] == b"g"


def test_clients_that_say_or_take_nothing_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(patience, "READ_SECONDS", 0.3)
    (tmp_path / "f.bin").write_bytes(b"a" * (64 << 20))
    with serving(tmp_path) as port:
        threads = threading.active_count()
        slow = [b"", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"]
        clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(60)]
        for i, client in enumerate(clients):
            client.sendall(slow[i % 3])
        for client in clients:
            while client.recv(1 << 16):  # ends when the server closes
                pass
            client.close()
        for _ in range(6000):  # a thread ends after its connection
            if threading.active_count() <= threads + 5:
                break
            time.sleep(0.01)
        assert threading.active_count() <= threads + 5
        idle = socket.create_connection(("127.0.0.1", port), timeout=60)
        idle.sendall(b"GET /f.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(ConnectionResetError):  # cut off although it never read
            while True:
                idle.sendall(b"\r\n")
                time.sleep(0.05)
        idle.close()


def test_a_body_does_not_wait_for_an_acknowledgement(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = []

    def data_received(protocol: patience.Impatient, data: bytes) -> None:
        connection = protocol.transport.get_extra_info("socket")
        options.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        received(protocol, data)

    received = patience.Impatient.data_received
    monkeypatch.setattr(patience.Impatient, "data_received", data_received)
    assert get(port, "/some.gguf")[0] == 200
    assert len(options) == 1 and options[0]


def test_what_is_no_request_is_answered(port: int) -> None:
    assert raw(port, b"GARBAGE\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_the_policy_is_the_page_s_own(tmp_path: Path) -> None:
    assert policy_of(tmp_path) == POLICY and "'unsafe-eval'" not in POLICY
    for said, found in ({"policy": "x"}, "x"), ({"policy": "a\nb"}, POLICY), ([], POLICY):
        (tmp_path / "config.json").write_text(json.dumps(said))
        assert policy_of(tmp_path) == found
    with serving(tmp_path) as port:
        assert get(port, "/config.json")[1]["Content-Security-Policy"] == POLICY


def test_a_port_in_use_is_said(port: int, tmp_path: Path) -> None:
    for wrong in (port, 70_000):
        with pytest.raises(OptionError, match=f"port = {wrong}: "):
            Server(tmp_path, wrong)


def test_the_command_says_where_no_site_is(tmp_path: Path) -> None:
    for file in ("", "index.html"):  # nothing, and half a site
        (tmp_path / file).touch()
        result = CliRunner().invoke(cli.cli, ["web", str(tmp_path)])
        assert isinstance(result.exception, OptionError)
        assert "scripts/build_web.py" in str(result.exception)


def test_a_build_that_fails_leaves_the_site_that_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "dist" / "web"

    def fill(folder: Path, *, cdn: bool, numpy: Path | None) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(str(cdn))
        if numpy:
            raise SystemExit("no numpy")

    monkeypatch.setattr(build_web, "install_modules", lambda: None)
    monkeypatch.setattr(build_web, "_fill", fill)
    for cdn in (True, False):  # where nothing is, and over a site
        assert build_web.build(out, cdn=cdn) == out
    wheel = make_archive(tmp_path / "numpy.whl")
    with pytest.raises(SystemExit, match="no numpy"):
        build_web.build(out, cdn=True, numpy=wheel)
    wheel.write_bytes(b"<html>")
    with pytest.raises(SystemExit, match="no wheel"):
        build_web.build(out, cdn=True, numpy=wheel)
    assert [path.name for path in out.parent.iterdir()] == ["web"]
    assert (out / "config.json").read_text() == "False"


def test_numpy_with_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = b"not what was locked"
    monkeypatch.setattr(build_web.urllib.request, "urlopen", lambda *a, **k: io.BytesIO(wheel))
    entry = {"file_name": "numpy-9-cp313.whl", "sha256": hashlib.sha256(b"locked").hexdigest()}
    lock: dict[str, Any] = {"packages": {"numpy": entry}}
    with pytest.raises(SystemExit, match="sha256"):
        build_web.fetch_numpy("0.29.5", lock)
    entry["sha256"] = hashlib.sha256(wheel).hexdigest()
    assert build_web.fetch_numpy("0.29.5", lock) == wheel


def test_files_added_to_a_wheel_are_in_its_record(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as plain:
        plain.writestr("x.py", "1")
        plain.writestr("x-1.dist-info/RECORD", "x.py,sha256=abc,1\nx-1.dist-info/RECORD,,\n")
    made = build_web.add_files(tmp_path / "a.whl", tmp_path / "b.whl", {"y.cjs": b"yy"})
    with zipfile.ZipFile(made) as wheel:
        assert wheel.read("y.cjs") == b"yy" and wheel.read("x.py") == b"1"
        record = wheel.read("x-1.dist-info/RECORD").decode().splitlines()
    assert "x.py,sha256=abc,1" in record and "x-1.dist-info/RECORD,," in record
    assert any(line.startswith("y.cjs,sha256=") and line.endswith(",2") for line in record)


def make_archive(path: Path, code: str = "x = 1\n") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/module.py", code)
        archive.writestr("package/data.txt", "data")
    return path


@pytest.mark.browser
def test_archives_are_compiled_by_the_python_of_the_page(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = [make_archive(tmp_path / "a.zip"), make_archive(tmp_path / "b.zip")]
    build_web.byte_compile(made)
    assert made[0].read_bytes() == made[1].read_bytes()
    with zipfile.ZipFile(made[0]) as archive:
        assert archive.namelist() == ["package/module.pyc", "package/data.txt"]
        assert archive.read("package/data.txt") == b"data"
        magic, flags = struct.unpack("<H2xI", archive.read("package/module.pyc")[:8])
    assert 3570 <= magic < 3600  # Python 3.13
    assert flags == 1  # never compared with a source
    wrong = make_archive(tmp_path / "wrong.zip", "x = =")
    before = wrong.read_bytes()
    capfd.readouterr()
    with pytest.raises(SystemExit, match="byte-compiling failed"):
        build_web.byte_compile([wrong])
    assert wrong.read_bytes() == before
    said = capfd.readouterr().err
    assert "SyntaxError" in said and len(said) < 5000  # no line of Pyodide's, a megabyte long


def test_without_node_archives_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_archive(tmp_path / "a.zip")
    before = path.read_bytes()
    monkeypatch.setenv("PATH", str(tmp_path))
    build_web.byte_compile([path])
    assert path.read_bytes() == before and "no node" in capsys.readouterr().out
