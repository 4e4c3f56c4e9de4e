"""Builds the static site in dist/web: the page, the wheel, Pyodide and what the page needs.

    .venv/bin/python scripts/build_web.py   self-contained; fetches numpy from Pyodide's CDN now
      --cdn       Pyodide and numpy come from Pyodide's CDN when the page opens
      --numpy F   with another numpy wheel, unchecked: for tests alone

JavaScript dependencies lie in web/node_modules, which `npm ci` fills where it is missing. What the
page itself unpacks is byte-compiled; the wheel stays as it is, for anyone's page.
"""

import argparse
import base64
import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from importlib import metadata
from pathlib import Path

from wgtrain.files.scripts import expression
from wgtrain.web.server import POLICY

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
MODULES = WEB / "node_modules"
CDN = "https://cdn.jsdelivr.net/pyodide/v{version}/full/"
STDLIB = "python_stdlib.zip"
PYODIDE = ("pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm", STDLIB)
LOCK = "pyodide-lock.json"
PURE = ("jinja2", "markupsafe")  # their Python files alone work in a page
TEST_NUMPY = "numpy-2.2.5-cp313-cp313-pyodide_2025_0_wasm32.whl"
# JavaScript that travels inside the wheel, so that the wheel alone is enough in anyone's page.
INSIDE = {"wgtrain/data/tokenizers.cjs": "@huggingface/tokenizers/dist/tokenizers.min.cjs"}
# Of the wheel a page of ours needs neither the faces of terminals, folders and servers nor the
# demo, nor the JavaScript, which lies beside it as scripts.js.
_FOLDERS = "held_out inputs session stopping telling".split()
NOT_IN_PAGE = (
    *("bench/", "cli/", "demo_files/", "serve/", "web/", "__main__.py"),
    *("gpu/native", "chat/process.py"),
    *("modelfiles.py", "data/modelfile.py", "data/ollama_templates.json"),
    *(f"runs/{name}.py" for name in _FOLDERS),
)


def install_modules() -> None:
    """`npm ci`, where what is installed is not what package-lock.json says."""
    lock = (WEB / "package-lock.json").read_bytes()
    stamp = MODULES / ".from-lock"
    if not stamp.is_file() or stamp.read_bytes() != lock:
        npm = shutil.which("npm")
        if not npm:
            raise SystemExit(
                "build_web: npm is missing (Debian, Ubuntu: apt-get install nodejs npm)"
            )
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        if subprocess.run([npm, "ci", *options], cwd=WEB).returncode:
            raise SystemExit("build_web: npm ci failed in web/")
        stamp.write_bytes(lock)


def test_numpy() -> Path:
    """The copy that tests use; it is none of Pyodide's releases."""
    return MODULES / "@bentopdf" / "pymupdf-wasm" / "assets" / TEST_NUMPY


def build_wheel(folder: Path) -> Path:
    """This package's wheel with the page's JavaScript inside."""
    with tempfile.TemporaryDirectory() as temporary:
        options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", temporary]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", *options, str(ROOT)], check=True)
        (plain,) = Path(temporary).glob("*.whl")
        extra = {name: (MODULES / path).read_bytes() for name, path in INSIDE.items()}
        return add_files(plain, folder / plain.name, extra)


def add_files(wheel: Path, target: Path, extra: dict[str, bytes]) -> Path:
    """A copy of a wheel with more files, which its RECORD lists."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        (record,) = [name for name in old.namelist() if name.endswith(".dist-info/RECORD")]
        for name in old.namelist():
            if name != record:
                new.writestr(name, old.read(name))
        rows = io.StringIO(old.read(record).decode())
        lines = [row for row in csv.reader(rows) if row]
        for name, data in extra.items():
            new.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            lines.append([name, f"sha256={digest}", str(len(data))])
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(lines)
        new.writestr(record, out.getvalue())
    return target


def pack_pure(names: tuple[str, ...], target: Path) -> Path:
    """The Python files of installed packages, with their licenses, as an archive to unpack."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            for file in metadata.files(name) or []:
                kept = file.suffix == ".py" or ".dist-info" in file.parts[0]
                if kept and ".." not in file.parts and file.name != "RECORD":
                    archive.write(str(file.locate()), file.as_posix())
    return target


def page_part(wheel: Path, target: Path) -> Path:
    """What a page of ours uses of the wheel."""
    left_out = tuple(f"wgtrain/{name}" for name in NOT_IN_PAGE)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if not name.startswith(left_out) and not name.endswith((".js", ".cjs")):
                new.writestr(name, old.read(name))
    return target


def page_scripts(wheel: Path, target: Path) -> None:
    """The wheel's JavaScript as one module, so that nothing is evaluated from text."""
    with zipfile.ZipFile(wheel) as archive:
        paths = sorted(name for name in archive.namelist() if name.endswith((".js", ".cjs")))
        target.write_text(
            "\n".join(
                f"export const {Path(path).stem} = {expression(path, archive.read(path).decode())}"
                for path in paths
            ),
            "utf-8",
        )


def policy(address: str) -> str:
    """The Content-Security-Policy of a site that takes Pyodide from `address` on another origin."""
    also = f"script-src {address} "
    return POLICY.replace("script-src ", also) + f"; connect-src 'self' {address}"


def byte_compile(archives: list[Path]) -> None:
    """Replaces their Python files by bytecode of Pyodide's Python, which node runs here."""
    node = shutil.which("node")
    if not node:
        print("build_web: no node here, so nothing is byte-compiled: the page starts slower")
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in archives:
            shutil.copy(path, folder)
        script = str(ROOT / "scripts" / "byte_compile.mjs")
        if subprocess.run([node, script, str(MODULES / "pyodide"), folder]).returncode:
            raise SystemExit("build_web: byte-compiling failed; node's words are above")
        for path in archives:
            shutil.copy(Path(folder) / path.name, path)


def fetch_numpy(version: str, lock: dict) -> bytes:
    """Numpy's wheel from the CDN; an error where it is not what Pyodide's lock file says."""
    entry = lock["packages"]["numpy"]
    address = CDN.format(version=version) + entry["file_name"]
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        raise SystemExit(f"build_web: {address}: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise SystemExit(f"build_web: {address}: sha256 {digest}, not {entry['sha256']}")
    return data


def build(out: Path, *, cdn: bool = False, numpy: Path | None = None) -> Path:
    """Makes the site in `out`, in the place of what is there once all of it is made."""
    if numpy and not zipfile.is_zipfile(numpy):
        raise SystemExit(f"build_web: {numpy}: no wheel")
    install_modules()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        made = Path(temporary, "new")
        _fill(made, cdn=cdn, numpy=numpy)
        if out.exists():
            out.rename(Path(temporary, "old"))
        made.rename(out)
    return out


def _fill(out: Path, *, cdn: bool, numpy: Path | None) -> None:
    """Makes the site in `out`, a folder that is not there yet."""
    packages = out / "packages"
    packages.mkdir(parents=True)
    for path in WEB.iterdir():
        if path.suffix in (".html", ".js", ".css"):
            shutil.copy(path, out)
    pyodide = MODULES / "pyodide"
    version = json.loads((pyodide / "package.json").read_text())["version"]
    wheel = build_wheel(packages)
    compiled = [pack_pure(PURE, packages / "pure.zip"), page_part(wheel, packages / "wgtrain.zip")]
    page_scripts(wheel, out / "scripts.js")
    address = CDN.format(version=version)
    config = {"pyodide": address, "load": ["numpy"], "policy": policy(address)}
    if not cdn:
        (out / "pyodide").mkdir()
        for name in (*PYODIDE, LOCK):
            shutil.copy(pyodide / name, out / "pyodide")
        lock = json.loads((pyodide / LOCK).read_text())
        compiled.insert(0, packages / "numpy.zip")
        compiled[0].write_bytes(numpy.read_bytes() if numpy else fetch_numpy(version, lock))
        config = {"pyodide": "pyodide/", "load": [], "policy": POLICY}
    config["unpack"] = [f"packages/{path.name}" for path in compiled]
    byte_compile(compiled if cdn else [*compiled, out / "pyodide" / STDLIB])
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="scripts/build_web.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cdn", action="store_true", help="leave Pyodide and numpy on the CDN")
    parser.add_argument("--numpy", type=Path, help="another numpy wheel, for tests alone")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "web", help="where to")
    options = parser.parse_args()
    out = build(options.out, cdn=options.cdn, numpy=options.numpy)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size:,} bytes; `wgtrain web {out}` serves it")


if __name__ == "__main__":
    main()
