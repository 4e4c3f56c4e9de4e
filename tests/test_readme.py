"""The README's own lines, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)

pytestmark = pytest.mark.gpu


def run(folder: Path, *command: str) -> str:
    """Output of a command in `folder`, with this Python's programs first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the README's commands need bash")
def test_commands(tmp_path: Path) -> None:
    (tmp_path / "wgtrain").mkdir()
    (tmp_path / "wgtrain" / "demo_files").symlink_to(ROOT / "wgtrain" / "demo_files")
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "git", "add", ".")
    shell, after = [text for kind, text in BLOCKS if kind == "sh" and "runs/" in text]
    assert ". .venv/bin/activate" in shell
    run(tmp_path, "bash", "-ec", shell.replace(". .venv/bin/activate", ""))
    assert run(tmp_path, "bash", "-ec", after).startswith("LAMP!")
    made = {path.name for path in (tmp_path / "runs").iterdir()}
    assert made >= {"first.html", "merged.gguf", "Modelfile"}
    made = {path.name for path in (tmp_path / "runs" / "first").iterdir()}
    promised = {"adapter.gguf", "adapter_config.json", "adapter_model.safetensors", "loss.svg"}
    assert made >= promised | {"metrics.jsonl", "config.yaml", "checkpoints"}
    left = run(tmp_path, "git", "status", "--porcelain", "--untracked-files=all").splitlines()
    assert [line for line in left if line.startswith("??")] == [], "nothing that git sees"


def test_python_in_any_folder(tmp_path: Path) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    lines = run(tmp_path, sys.executable, "-c", program).splitlines()
    losses = [float(line.split()[1]) for line in lines[:20]]
    assert losses[-1] < losses[0] / 10
    assert lines[20] == "KITE!"
    assert list(tmp_path.iterdir()) == []


def test_llama_cpp_gets_the_model_of_the_example() -> None:
    """Of the block, by the name that it gives the model there, and the adapter of its run."""
    text = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"`(llama-cli [^`]+)`", text)
    (shell,) = [text for kind, text in BLOCKS if kind == "sh" and "MODEL=" in text]
    model = re.search(r"-m \$(\w+) ", command)
    out = re.search(r"--out (\S+)", shell)
    assert model and out and f"{model[1]}=" in shell
    assert f"--lora {out[1]}/adapter.gguf" in command


def test_two_commands_exist() -> None:
    (shell,) = [text for kind, text in BLOCKS if kind == "sh" and "runs/" not in text]
    for line in shell.splitlines():
        assert os.access(ROOT / line.split()[0], os.X_OK)
