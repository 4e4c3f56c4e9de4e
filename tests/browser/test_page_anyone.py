"""The lines of docs/browser.md in a page that is not ours: Pyodide, micropip and the wheel."""

import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import build_web
import needs
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.gpu]

PAGE = """<!doctype html>
<meta charset="utf-8"><link rel="icon" href="data:,">
<script type="module">
  import { loadPyodide } from "./pyodide/pyodide.mjs";
  const pyodide = await loadPyodide({ indexURL: new URL("pyodide/", location).href });
  // What micropip would find on Pyodide's CDN.
  for (const path of WHEELS) {
    pyodide.unpackArchive(await (await fetch(path)).arrayBuffer(), "wheel");
  }
  globalThis.wgtrain = { python: async (code, values) => {
    pyodide.globals.set("values", values);
    const found = await pyodide.runPythonAsync(code);
    return found?.toJs ? found.toJs() : found;
  } };
</script>
"""


def lines_of_the_docs() -> str:
    text = (needs.ROOT / "docs" / "browser.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code.count("await micropip.install(") == 1
    # Without a network micropip must not look for what is there already.
    return str(code).replace('.whl")', '.whl", deps=False)')


def test_ten_lines_train_in_anyones_page(tabs: Any, site: Path, data_dir: Path) -> None:
    found = sorted((build_web.MODULES / ".wheels").glob("micropip-*.whl"))
    if not found:
        needs.missing("micropip is not here; scripts/setup --test fetches it")
    micropip = Path(shutil.copy(found[-1], site))
    packaging = build_web.pack_pure(("packaging",), site / "packaging.zip")
    wheels = [path.name for path in (site / "packages").iterdir() if "wgtrain" not in path.name]
    archives = [micropip.name, packaging.name, *(f"packages/{name}" for name in wheels)]
    (site / "anyone.html").write_text(PAGE.replace("WHEELS", str(archives)), "utf-8")
    shutil.copy(data_dir / "stories260K.gguf", site / "model.gguf")
    rows = (data_dir / "wikisql_train.jsonl").read_text("utf-8").splitlines(keepends=True)[:20]
    (site / "train.jsonl").write_text("".join(rows), "utf-8")
    assert metadata.version("wgtrain") in lines_of_the_docs()
    tab = tabs.open_page("anyone.html")
    losses = tab.python(
        "import builtins\nsaid = []\nprint = lambda *a: (said.append(a), builtins.print(*a))\n"
        + lines_of_the_docs()
        + "\nassert adapter[:4] == b'GGUF'\n[loss for _, loss in said]"
    )
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
