"""The lines of docs/browser.md in a page that is not ours: PyScript's, from loopback."""

import json
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import build_web
import needs
import pytest
from chromium import Driver, Tabs, serving
from distribution import make_distribution

from wgtrain.web.server import Server

pytestmark = [pytest.mark.browser, pytest.mark.gpu]

# Pyodide and what micropip finds for it lie beside the page, where PyScript would ask a CDN.
PAGE = """<!doctype html>
<meta charset="utf-8"><link rel="icon" href="data:,">
<script type="module" src="pyscript/core.js"></script>
"""
SAYS = """
from pyscript import document
import json
assert adapter[:4] == b"GGUF"
document.body.append(json.dumps([loss for _, loss in said]))
"""


def docs(language: str) -> str:
    """The only lines in this language."""
    text = (needs.ROOT / "docs" / "browser.md").read_text("utf-8")
    (code,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(code)


@pytest.fixture(scope="module")
def folder(site: Path, data_dir: Path) -> Path:
    """The site with what such a page needs."""
    make_distribution(site / "distribution")
    shutil.copytree(build_web.MODULES / "@pyscript" / "core" / "dist", site / "pyscript")
    shutil.copy(data_dir / "stories260K.gguf", site / "model.gguf")
    rows = (data_dir / "wikisql_train.jsonl").read_text("utf-8").splitlines(keepends=True)[:20]
    (site / "train.jsonl").write_text("".join(rows), "utf-8")
    return site


@pytest.fixture
def tabs(driver: Driver, folder: Path) -> Iterator[Tabs]:
    """Tabs of a site without a policy: PyScript evaluates text, as our wheel alone does."""
    with serving(Server(folder, policy="")) as origin:
        opened = Tabs(driver, origin)
        yield opened
        assert not opened.strangers
        opened.close()


@pytest.mark.parametrize("where", ["worker", "page"])
def test_ten_lines_train_in_a_pyscript_page(tabs: Tabs, folder: Path, where: str) -> None:
    """As they stand; in a worker, as the docs say, addresses are whole."""
    tag, code = docs("html"), docs("python")
    assert metadata.version("wgtrain") in code and " worker " in tag
    interpreter = f'"interpreter": "{tabs.origin}/distribution/pyodide.mjs"'
    tag = tag.replace("config='{", f"config='{{{interpreter}, ").replace("train.py", f"{where}.py")
    if where == "page":
        tag = tag.replace(" worker ", " ")
    else:
        code, found = re.subn(r'"(packages/|model|train)', rf'"{tabs.origin}/\1', code)
        assert found == 3
    start = "import builtins\nsaid = []\nprint = lambda *a: (said.append(a), builtins.print(*a))\n"
    (folder / f"{where}.py").write_text(start + code + SAYS, "utf-8")
    (folder / f"{where}.html").write_text(PAGE + tag, "utf-8")
    losses = json.loads(tabs.open_page(f"{where}.html").wait_for("document.body.innerText.trim()"))
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
