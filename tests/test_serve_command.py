"""`wgtrain serve` as a program: its options, its first line, its end."""

import http.client
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from needs import ROOT
from serving import send
from test_cached import random_adapter

import wgtrain
from wgtrain.cli import main as cli
from wgtrain.cli.demo import BASE
from wgtrain.cli.options import as_options
from wgtrain.errors import FileError, OptionError
from wgtrain.files.adapters import write_adapter_gguf
from wgtrain.serve.server import Server
from wgtrain.web.listener import listen

TEXT = "/v1/completions"


class Running:
    """A server in another process; `port` as the helpers of `serving` ask for."""

    def __init__(self, folder: Path, *options: str, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wgtrain", "serve", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
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
    """The folder that docs/serve.md speaks of."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "adapters").mkdir()
    shutil.copy(BASE, folder)
    with wgtrain.load_model(BASE, limits="default") as model:
        for seed, name in enumerate(("polite.gguf", "adapters/brief.gguf")):
            (folder / name).write_bytes(write_adapter_gguf(random_adapter(model, 2, seed)))
    return folder


@pytest.fixture(scope="module")
def running(adapters: Path) -> Iterator[Any]:
    options = ["--model", "base.gguf", "--adapter", "polite.gguf:0.5", "--adapter-dir", "adapters"]
    options += ["--name", "m", "--port", "0", "--temperature", "0", "--allow-host", "box.example"]
    options += ["--allow-origin", "https://a.example", "--allow-origin", "https://b.example"]
    server = Running(adapters, *options, WGTRAIN_API_KEY="key")
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
    assert [one["id"] for one in listed] == ["m", "m+polite", "m+brief"]
    scales = send(server, "/lora-adapters", **key)[2]
    assert [(one["name"], one["scale"]) for one in scales] == [("polite", 0.5), ("brief", 0.0)]
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
def test_what_the_docs_say_and_an_end_in_the_middle(
    adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "serve.md").read_text("utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    (line, *_), (program,) = (
        [code for kind, code in blocks if kind == k] for k in ("bash", "python")
    )
    server: Any = Running(adapters, *shlex.split(line)[2:], "--port", "0", "--host", "localhost")
    assert server.address == f"http://localhost:{server.port}"
    assert program.count("http://127.0.0.1:8080") == 1
    names: dict[str, Any] = {}
    exec(program.replace("http://127.0.0.1:8080", server.address), names)
    names["client"].close()
    assert capsys.readouterr().out.rstrip().endswith(names["made"].choices[0].text.rstrip())

    connection = http.client.HTTPConnection("localhost", server.port, timeout=60)
    head = {"Content-Type": "application/json"}
    body = b'{"prompt": "Once", "stream": true, "max_tokens": -1, "temperature": 5}'
    connection.request("POST", TEXT, body, head)
    assert connection.getresponse().read(10)
    code, _, err = server.end()
    connection.close()
    assert code == 130 and "Traceback" not in err, err
    assert "POST /v1/chat/completions 200 " in err and "model=base+polite" in err


@pytest.mark.gpu
def test_what_a_person_should_know_is_said_at_the_start(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "serve_forever", lambda server: server._line.close(60))
    model = str(data_dir / "stories260K.gguf")
    options = ["serve", "--model", model, "--port", "0", "--host", "0.0.0.0"]
    open_, closed = (
        CliRunner().invoke(cli.cli, [*options, *key]) for key in ([], ["--api-key", "k"])
    )
    assert open_.exit_code == closed.exit_code == 0
    assert open_.stdout.startswith("http://0.0.0.0:") and open_.stdout.count("\n") == 1
    for result in (open_, closed):
        assert "warning: no chat template" in result.stderr
        assert "model stories260K" in result.stderr
    assert "--api-key" in open_.stderr and "--api-key" not in closed.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "-1"], "--port -1: "),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: "),
        (["--allow-origin", "page"], "--allow-origin 'page': "),
        (["--api-key", "a b"], "--api-key: "),
        (["--temperature", "-1"], "--temperature -1"),
        (["--adapter-dir", "/no/such/folder"], "/no/such/folder"),
        (["--name", "a/\n"], "--name 'a/"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(options: list[str], words: str) -> None:
    with listen() as other:
        port = [] if options[0] in ("--port", "--host") else ["--port", "0"]
        result = CliRunner().invoke(cli.cli, ["serve", "--model", "/none", *port, *options])
        assert isinstance(result.exception, OptionError | FileError)
        assert words in as_options(str(result.exception))
        taken = str(other.getsockname()[1])
        result = CliRunner().invoke(cli.cli, ["serve", "--model", "/none", "--port", taken])
        said = as_options(str(result.exception))
        assert f"--port {taken}: " in said and said.endswith("; 0 takes any free one")
