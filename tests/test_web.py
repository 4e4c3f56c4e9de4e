"""Building and serving the site, without a browser; `tests/browser` drives it in one."""

import hashlib
import http.client
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from needs import ROOT

from wgtrain.cli import main as cli
from wgtrain.web.server import HEADERS, Handler, make_server

sys.path.insert(0, str(ROOT / "scripts"))
import build_web


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A server of a folder with one file of 1000 bytes, and an empty one."""
    (tmp_path / "some.gguf").write_bytes(bytes(i % 251 for i in range(1000)))
    (tmp_path / "a.mjs").write_bytes(b"")
    with make_server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def get(port: int, path: str, asked: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Range": asked} if asked else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


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
    assert HEADERS.items() <= headers.items()
    assert get(port, "/a.mjs")[1]["Content-type"] == "text/javascript"
    assert get(port, "/nothing")[0] == 404


def test_a_body_does_not_wait_for_an_acknowledgement(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = []

    def send_head(handler: Handler) -> Any:
        options.append(handler.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return SimpleHTTPRequestHandler.send_head(handler)

    monkeypatch.setattr(Handler, "send_head", send_head)
    get(port, "/some.gguf")
    assert len(options) == 1 and options[0]


def test_the_command_says_where_no_site_is(tmp_path: Path) -> None:
    from wgtrain.errors import OptionError

    result = CliRunner().invoke(cli.cli, ["web", str(tmp_path)])
    assert isinstance(result.exception, OptionError)
    assert "scripts/build_web.py" in str(result.exception)


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
def test_archives_are_compiled_by_the_python_of_the_page(tmp_path: Path) -> None:
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
    with pytest.raises(subprocess.CalledProcessError):
        build_web.byte_compile([wrong])
    assert wrong.read_bytes() == before


def test_without_node_archives_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_archive(tmp_path / "a.zip")
    before = path.read_bytes()
    monkeypatch.setenv("PATH", str(tmp_path))
    build_web.byte_compile([path])
    assert path.read_bytes() == before and "no node" in capsys.readouterr().out


@pytest.mark.browser
def test_the_variant_that_leaves_pyodide_on_its_cdn(tmp_path: Path) -> None:
    out = build_web.build(tmp_path / "web", cdn=True)
    config = json.loads((out / "config.json").read_text())
    lock = json.loads((build_web.MODULES / "pyodide" / "package.json").read_text())
    assert config["pyodide"] == f"https://cdn.jsdelivr.net/pyodide/v{lock['version']}/full/"
    assert config["load"] == ["numpy"] and len(config["unpack"]) == 2
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 4 << 20
    assert all((out / path).is_file() for path in config["unpack"])
    (wheel,) = (out / "packages").glob("wgtrain-*-py3-none-any.whl")  # for anyone's page
    assert "wgtrain/cli/main.py" in zipfile.ZipFile(wheel).namelist()
    assert "wgtrain/cli/main.pyc" in zipfile.ZipFile(out / "packages" / "wgtrain.zip").namelist()
