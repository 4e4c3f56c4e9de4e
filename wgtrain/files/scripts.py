"""The package's JavaScript in a page: each script is an expression, and Python needs its value."""

from functools import cache
from importlib import resources
from typing import Any


@cache
def script(path: str) -> Any:
    """The value of a script of the package, by its path in it, such as "gpu/device.js".

    A page that has registered `scripts.js` of scripts/build_web.py as the module `wgtrain_scripts`
    needs no 'unsafe-eval' in its policy; in any other the script's text is evaluated.
    """
    try:
        import wgtrain_scripts
    except ImportError:
        from pyodide.code import run_js

        return run_js(expression(path, (resources.files("wgtrain") / path).read_text("utf-8")))
    return getattr(wgtrain_scripts, path.rpartition("/")[2].partition(".")[0])


def expression(path: str, text: str) -> str:
    """A script as a JavaScript expression: itself, or what a CommonJS module exports."""
    if not path.endswith(".cjs"):
        return text
    return (
        f"((module) => {{ const exports = module.exports;\n{text}\nreturn module.exports; }})"
        "({ exports: {} });"
    )
