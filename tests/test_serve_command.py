"""`wgtrain serve` as a program: its options, its first line, its end."""

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from needs import ROOT
from serving import chat, send
from test_cached import random_adapter

import wgtrain
from wgtrain.cli import main as cli
from wgtrain.cli.demo import BASE
from wgtrain.errors import FileError, OptionError
from wgtrain.files.adapters import write_adapter_gguf
from wgtrain.web.listener import listen

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


class Running:
    """A server in another process; `port` as the helpers of `serving` ask for."""

    def __init__(self, *options: str, **environment: str):
        command = [sys.executable, "-m", "wgtrain", "serve", "--model", str(BASE), *options]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.rpartition(":")[2] or 0)

    def end(self) -> tuple[int, str, str]:
        """Exit code, standard output after the first line, standard error."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "more").mkdir()
    with wgtrain.load_model(BASE, limits="default") as model:
        (folder / "one.gguf").write_bytes(write_adapter_gguf(random_adapter(model, 2, 1)))
        (folder / "more" / "two.gguf").write_bytes(write_adapter_gguf(random_adapter(model, 2, 2)))
    return folder


@pytest.fixture(scope="module")
def running(adapters: Path) -> Iterator[Any]:
    options = ["--adapter", f"{adapters}/one.gguf:0.5", "--adapter-dir", f"{adapters}/more"]
    options += ["--name", "m", "--port", "0", "--temperature", "0", "--allow-host", "box.example"]
    options += ["--allow-origin", "https://a.example", "--allow-origin", "https://b.example"]
    server = Running(*options, WGTRAIN_API_KEY="key")
    yield server
    server.process.kill()
    server.process.communicate()


@pytest.mark.gpu
def test_every_option_does_something(running: Running) -> None:
    assert running.address == f"http://127.0.0.1:{running.port}" and running.port > 0
    key = {"Authorization": "Bearer key"}
    server: Any = running
    assert send(server, "/v1/models")[0] == 401
    listed = send(server, "/v1/models", **key)[2]["data"]
    assert [one["id"] for one in listed] == ["m", "m+one", "m+two"]
    scales = send(server, "/lora-adapters", **key)[2]
    assert [(one["name"], one["scale"]) for one in scales] == [("one", 0.5), ("two", 0.0)]
    for origin, status in (("https://b.example", 200), ("https://c.example", 403)):
        assert send(server, "/v1/models", Origin=origin, **key)[0] == status
    for host, status in (("box.example", 200), ("fox.example", 421)):
        assert send(server, "/v1/models", Host=host, **key)[0] == status
    texts = {send(server, TEXT, {"prompt": "Once"}, **key)[2]["choices"][0]["text"] for _ in "123"}
    assert len(texts) == 1  # the temperature is 0

    code, out, err = running.end()
    assert code == 130 and out == ""
    assert f"{running.address}/v1, model m" in err and "Traceback" not in err
    assert "POST /v1/completions 200 " in err and "GET /v1/models 401 " in err
    assert err.rstrip().endswith("interrupted") and "Once" not in err


@pytest.mark.gpu
def test_an_end_in_the_middle_of_an_answer(adapters: Path) -> None:
    server: Any = Running("--port", "0", "--host", "localhost")
    assert server.address == f"http://localhost:{server.port}"
    assert send(server, CHAT, chat("Hello", max_tokens=3))[2]["model"] == "base"
    connection = http.client.HTTPConnection("localhost", server.port, timeout=60)
    head = {"Content-Type": "application/json"}
    body = b'{"prompt": "Once", "stream": true, "max_tokens": -1, "temperature": 5}'
    connection.request("POST", TEXT, body, head)
    assert connection.getresponse().read(10)
    code, _, err = server.end()
    connection.close()
    assert code == 130 and "Traceback" not in err, err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "-1"], "port = -1"),
        (["--host", "192.0.2.1"], "host = 192.0.2.1"),
        (["--allow-origin", "page"], "allow_origin = 'page'"),
        (["--api-key", "a b"], "api_key"),
        (["--temperature", "-1"], "temperature = -1"),
        (["--adapter-dir", "/no/such/folder"], "/no/such/folder"),
        (["--name", "a/\n"], "name"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(options: list[str], words: str) -> None:
    with listen() as other:
        port = [] if options[0] in ("--port", "--host") else ["--port", "0"]
        result = CliRunner().invoke(cli.cli, ["serve", "--model", "/none", *port, *options])
        assert isinstance(result.exception, OptionError | FileError)
        assert words in str(result.exception)
        taken = str(other.getsockname()[1])
        result = CliRunner().invoke(cli.cli, ["serve", "--model", "/none", "--port", taken])
        assert f"port = {taken}: " in str(result.exception)
