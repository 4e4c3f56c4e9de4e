"""The rules of the house: what may import what, what a module may weigh, what a wheel must hold."""

import ast
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from needs import ROOT

import wgtrain

PACKAGE = ROOT / "wgtrain"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Room -> the rooms below it that it may import. Every other module beside `__init__.py` is a face:
# it may import everything, and what does not name it here does not import it.
GROUND = {"errors", "random", "dual", "turn"}
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "random": set(),
    "dual": {"gpu"},
    "turn": {"errors"},
    "files": {"errors"},
    "chat": {"errors"},
    "data": {"errors", "random", "files", "chat"},
    "gpu": {"errors", "turn", "files"},
    "engine": {*GROUND, "gpu"},
    "model": {*GROUND, "files", "data", "gpu", "engine"},
    "infer": {*GROUND, "files", "data", "gpu", "engine", "model"},
    "train": {*GROUND, "files", "data", "gpu", "engine", "model"},
    "layers": {*GROUND, "files", "gpu", "engine", "model", "runs"},
    # Faces of several modules: what they may know of each other.
    "tune": {*GROUND, "gpu", "engine"},
    "web": {"errors"},
    "serve": {"errors", "files", "data", "gpu", "infer", "train", "runs", "web"},
    "runs": {
        *GROUND,
        "files",
        "data",
        "gpu",
        "engine",
        "model",
        "infer",
        "train",
        "api",
        "planned",
    },
    "notebook": {"train", "runs"},
    "bench": {*GROUND, "files", "data", "gpu", "engine", "model", "infer", "train", "runs", "tune"},
    "cli": {
        *(*GROUND, "files", "data", "gpu", "engine", "model", "infer", "train"),
        *("api", "planned", "merging", "modelfiles", "runs", "tune", "web"),
        *("serve", "bench"),
    },
}

# Packages that no page has, and the modules a page never loads, beside `cli` and `serve`: they may
# import one at top level.
NATIVE_ONLY = {
    *(
        "wgpu",
        "tokenizers",
        "click",
        "rich",
        "pygal",
        "yaml",
        "starlette",
        "uvicorn",
        "psutil",
        "gguf",
    )
}
NATIVE_MODULES = {
    "gpu/native.py",
    "gpu/native_library.py",
    "gpu/native_pass.py",
    "gpu/native_process.py",
    "gpu/native_timing.py",
    "web/patience.py",
    "__main__.py",
    "bench/command.py",
}


def room(path: Path) -> str:
    """The first part of a module's name below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def tracked() -> list[Path]:
    """The files under version control, or all of the project where there is none."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in files if path.is_file()]


def test_rooms_depend_downwards_only() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(BELOW), "say in BELOW what a new room may import"
    wrong = []
    for path in MODULES:
        here = room(path)
        if here not in BELOW:
            continue
        for line, name in imports(path):
            top, *rest = name.split(".")
            there = rest[0] if rest else "__init__"
            if top == "wgtrain" and there not in {here, "__version__", *BELOW[here]}:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {name}")
    assert not wrong, "\n".join(wrong)


def graph() -> dict[str, set[str]]:
    """What each module imports, at the top, within functions and for types alone.

    `wgtrain` itself is left out: its table names everything, and of it only the version is taken.
    """
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    del names["wgtrain"]
    return {
        module: {
            next((n for n in (name, name.rpartition(".")[0]) if n in names), module)
            for _, name in imports(path)
        }
        - {module}
        for module, path in names.items()
    }


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        ways = [start]
        while ways:
            new = edges[ways.pop()] - seen
            seen |= new
            ways += new
        reached[start] = seen
    found = [{a} | {b for b in reached[a] if a in reached[b]} for a in edges if a in reached[a]]
    return [circle for i, circle in enumerate(found) if circle not in found[:i]]


def test_no_module_reaches_itself() -> None:
    """Not by an import within a function either, nor by one for types alone."""
    edges = graph()
    assert edges["wgtrain.train.trainer"] >= {"wgtrain.train.loop", "wgtrain.model.host"}
    assert "wgtrain.gpu.native" in edges["wgtrain.gpu"], "imports within functions count"
    assert circles(edges) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "b"}}) == [{"b", "c"}]


def test_imports_need_no_native_package() -> None:
    """All that a page sees is imported with the native packages blocked."""
    names = []
    for path in MODULES:
        if (
            room(path) not in ("cli", "serve")
            and path.relative_to(PACKAGE).as_posix() not in NATIVE_MODULES
        ):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts).removesuffix(".__init__"))
    code = f"""
        import importlib, sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {NATIVE_ONLY!r}:
                    raise ImportError(f"{{name}} is imported at top level")

        sys.meta_path.insert(0, Blocker())
        for name in {names!r}:
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(name, error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout + result.stderr == ""


def at_the_top(path: Path) -> Iterator[str]:
    """What a module imports as it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_a_page_has_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the wheel a page gets a part, in which nothing may be missing; its scripts are run."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    left_out = import_module("build_web").NOT_IN_PAGE
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    seen: set[str] = set()
    ways = ["wgtrain.aio", *(f"wgtrain.{name}" for name in wgtrain._WHERE.values())]
    while ways:
        name = ways.pop()
        here = name if name in modules else name.rpartition(".")[0]
        if here in modules and here not in seen:
            seen.add(here)
            ways += at_the_top(modules[here])
    paths = {modules[name].relative_to(PACKAGE).as_posix() for name in seen}
    assert "runs/progress.py" in paths and "gpu/native.py" not in paths
    assert {path for path in paths if path.startswith(left_out)} == set()
    scripts = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.js")}
    assert scripts == {"gpu/device.js", "files/source.js", "data/library.js"}


def test_modules_stay_small() -> None:
    files = [*MODULES, *ROOT.glob("scripts/**/*.py"), *ROOT.glob("shaders/**/*.wgsl")]
    lines = {path.relative_to(ROOT).as_posix(): path.read_text().count("\n") for path in files}
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_no_registry_and_no_path_of_a_machine() -> None:
    """Where packages come from is a matter of each machine's configuration."""
    # Written with classes of one character, so that this file does not match itself.
    hosts = r"pyp[i]\.org|python[h]osted\.org|npm[j]s\.(org|com)|(deb|security)\.[d]ebian\.org"
    paths = r"(?<![\w.~-])/(wor[k]|far[m]|roo[t]|hom[e]|User[s])/\w"
    wrong = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            if re.search(f"{hosts}|{paths}", line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_version_is_said_once_more_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == wgtrain.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_every_file(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    shaders = [path for path in tracked() if path.suffix == ".wgsl"]
    assert {f"wgtrain/{path.relative_to(ROOT).as_posix()}" for path in shaders} <= held
    inside = [path for path in tracked() if path.is_relative_to(PACKAGE)]
    assert {path.relative_to(ROOT).as_posix() for path in inside} <= held
    assert not [name for name in held if not name.startswith("wgtrain")]


@pytest.mark.gpu
def test_wheel_alone_runs_a_kernel(wheel: Path, tmp_path: Path) -> None:
    _pip("install", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel))
    script = """
        from pathlib import Path

        import numpy as np

        import wgtrain
        from wgtrain.engine.kernel import load_kernel, read_shader
        from wgtrain.engine.structs import step_bytes
        from wgtrain.gpu import Binding, Dispatch, open_device, run

        site = Path.cwd() / "site"
        assert Path(wgtrain.__file__).is_relative_to(site), wgtrain.__file__
        assert (site / "wgtrain" / "shaders" / "add.wgsl").read_text() == read_shader("add")

        kernel = load_kernel("add")
        params = {"rows": "T", "d4": 3}
        a, b = np.arange(168, dtype=np.float32).reshape(2, 7, 12)
        step = np.frombuffer(step_bytes(len(a)), np.uint8)
        values = {"a": a, "b": b, "y": np.full_like(a, np.nan), "step": step}
        values["params"] = np.frombuffer(kernel.pack_params(params), np.uint8)

        device = run(open_device(limits="default"))
        pipeline = run(device.pipeline(kernel.name, kernel.code, kernel.slots))
        bindings = []
        for slot in kernel.slots:
            value = values[slot.name]
            uniform = slot.access == "uniform"
            buffer = device.create_buffer(value.nbytes, slot.name, uniform=uniform)
            device.write(buffer, 0, value)
            bindings.append(Binding(slot.number, buffer, 0, buffer.size))
            if slot.name == "y":
                y = buffer
        program = device.program([Dispatch(pipeline, device.bind(pipeline, bindings), 0)])
        grid = kernel.grid_function(params)(len(a), 0)
        device.run(program, np.array([grid], np.uint32), [])
        result = np.frombuffer(run(device.read(y, 0, y.size)), np.float32).reshape(a.shape)
        device.close()
        assert (result == a + b).all(), result
    """
    (tmp_path / "try.py").write_text(textwrap.dedent(script))
    result = subprocess.run(
        [sys.executable, "try.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
