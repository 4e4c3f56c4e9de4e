"""What Pyodide's CDN holds of what the page needs, made of local packages for the tests."""

import hashlib
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import build_web
import needs

PURE = ("jinja2", "markupsafe", "packaging")


def micropip() -> Path:
    """Its wheel for the Python of a page."""
    found = sorted((build_web.MODULES / ".wheels").glob("micropip-*.whl"))
    if not found:
        needs.missing("micropip is not here; scripts/setup --test fetches it")
    return found[-1]


def make_distribution(folder: Path) -> Path:
    """Pyodide with a lock file that names the wheels beside it, by their own hashes."""
    folder.mkdir()
    pyodide = build_web.MODULES / "pyodide"
    for name in build_web.PYODIDE:
        shutil.copy(pyodide / name, folder)
    wheels = {
        "numpy": Path(shutil.copy(build_web.test_numpy(), folder)),
        "micropip": Path(shutil.copy(micropip(), folder)),
    }
    for name in PURE:
        path = folder / f"{name}-{metadata.version(name)}-py3-none-any.whl"
        wheels[name] = build_web.pack_pure((name,), path)
    lock: dict[str, Any] = json.loads((pyodide / build_web.LOCK).read_text())
    lock["packages"] = {name: lock["packages"][name] for name in wheels}
    for name, path in wheels.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        version = path.name.split("-")[1]
        lock["packages"][name] |= {"file_name": path.name, "sha256": digest, "version": version}
    (folder / build_web.LOCK).write_text(json.dumps(lock))
    return folder
