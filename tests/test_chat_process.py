"""Templates run where they can be ended: limits of time and memory, Ctrl-C, any kind of parent."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from needs import ROOT
from test_jsonl import CHAT, letters

from wgtrain.chat import bounds, process
from wgtrain.data import ChatTemplate, load_rows
from wgtrain.errors import FileError

USER = [{"role": "user", "content": "a"}]
MEGA = "{% set a = 'a' * 1000000 %}"
SLOW = {
    "round": "{{ 1|round(999999999, 'ceil') }}",
    "negative round": "{{ 1|round(-999999999) }}",
    "rfind": "{% set n = 'ab' ~ 'a' * 300000 %}{{ ('a' * 600000).rfind(n) }}",
    "rsplit": "{% set n = 'ab' ~ 'a' * 300000 %}{{ ('a' * 600000).rsplit(n)|length }}",
    "for if": "{% set b = range(100000)|list %}{% for i in range(100000) if -1 in b %}{% endfor %}",
    "sum": "{{ ([[1]] * 70000)|sum(start=[])|length }}",
    "select": "{% set b = range(99999)|list %}{{ ([-1] * 99999)|select('in', b)|list }}",
    "strip": "{{ ('a' * 500000).strip('b' * 500000 ~ 'a')|length }}",
}
LARGE = {
    "slices": MEGA + "{% set x = [" + "a[1:]," * 1500 + "] %}",
    "strftime": "{{ strftime_now('%199999999d' ~ 'x' * 1000000)|length }}",
}
VARIABLES = "".join(f"{{% if a %}}{{% set x{i}=1 %}}{{% endif %}}" for i in range(9500))


@pytest.fixture
def limits_of_time(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorter ones than people have, here and in the process that keeps to them."""
    shorter = "from wgtrain.chat import bounds; bounds.COMPILING = bounds.ROW = 0.3; from"
    code = process._CODE.replace(" from", f" {shorter}", 1)
    monkeypatch.setattr(process, "_CODE", code)
    monkeypatch.setattr(bounds, "COMPILING", 0.3)
    monkeypatch.setattr(bounds, "ROW", 0.3)
    return 0.3


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_a_row_has_one_limit_of_time(text: str, limits_of_time: float) -> None:
    with pytest.raises(FileError, match=f"computes for more than {limits_of_time} s"):
        ChatTemplate(text).render(USER)


def test_people_have_a_second() -> None:
    with pytest.raises(FileError, match=r"computes for more than 1\.0 s"):
        ChatTemplate(SLOW["rfind"]).render(USER)


def test_compiling_has_one_too() -> None:
    with pytest.raises(FileError, match=r"computes for more than 1\.0 s"):
        ChatTemplate(VARIABLES)


def script(code: str) -> str:
    """Text of a Python program that has a template's limits at hand."""
    head = "import resource, sys\nfrom wgtrain.data import ChatTemplate\n"
    return head + textwrap.dedent(code)


@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
def test_a_row_has_one_limit_of_memory(text: str) -> None:
    if sys.platform != "linux":
        pytest.skip("the limit is Linux's")
    code = f"""
        try:
            ChatTemplate({text!r}).render({USER!r})
        except Exception as error:
            print(error)
        print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
    """
    result = subprocess.run([sys.executable, "-c", script(code)], capture_output=True, text=True)
    said, mib = result.stdout.splitlines()
    assert "needs more memory than 200 MiB" in said
    assert int(mib) < 250


def test_the_limits_grow_with_the_row() -> None:
    text = "{{ messages[0].content.rstrip('b')|length }}" + "{{ messages[0].content * 2 }}"
    content = "é" * 4_000_000
    with ChatTemplate(text) as template:
        assert template.render([{"role": "user", "content": content}]) == "4000000" + content * 2


def test_a_file_has_a_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row stays far below its own."""
    monkeypatch.setattr(bounds, "FILE", 0.05)
    monkeypatch.setattr(bounds, "FILE_ROW", 0.001)
    wait = "{% for i in range(20000) %}{% endfor %}"
    rows = b'{"instruction": "a", "output": "b"}\n' * 400
    assert len(load_rows(rows, letters(CHAT), seq_len=99).rows) == 400
    with pytest.raises(FileError, match=r"line \d+: .* computes for \d+ s over the rows so far"):
        load_rows(rows, letters(wait + CHAT), seq_len=99)


@pytest.mark.parametrize("what", ["more than 1.0 s", "more memory than"])
def test_watched_from_outside(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """As where the system keeps no process to its limits: what it has is kept long enough."""
    text = SLOW["rfind"] if what == "more than 1.0 s" else MEGA + LARGE["slices"] + SLOW["rfind"]
    without = "import sys, signal; sys.modules['resource'] = None; del signal.setitimer; "
    monkeypatch.setattr(process, "_CODE", without + process._CODE)
    monkeypatch.setattr(process, "_WATCHED", True)
    with ChatTemplate("{{ messages[0].content }}") as template:
        assert template.render(USER) == "a"
    with pytest.raises(FileError, match=what):
        ChatTemplate(text).render(USER)


def test_a_process_that_ends_is_an_error_and_the_next_row_has_another() -> None:
    before = children()
    with ChatTemplate("{{ messages[0].content }}") as template:
        assert template.render(USER) == "a"
        (child,) = (process for process in children() if process not in before)
        child.kill()
        with pytest.raises(FileError, match=r"broke the process it runs in \(-9\)"):
            template.render(USER)
        assert template.render(USER) == "a"


def children() -> list[psutil.Process]:
    """The processes of templates that run now."""
    return [p for p in psutil.Process().children() if "wgtrain.chat.child" in " ".join(p.cmdline())]


def test_no_process_is_left() -> None:
    before = children()
    row = b'{"instruction": "a", "output": "b"}\n'
    load_rows(row * 3, letters(CHAT), seq_len=99)
    with pytest.raises(FileError, match="line 4: no JSON"):
        load_rows(row * 3 + b"{", letters(CHAT), seq_len=99)
    with pytest.raises(FileError, match="line 1: .* refuses it"):
        load_rows(row * 3 + b"{", letters("{{ 1 / 0 }}"), seq_len=99)
    template = ChatTemplate("a")
    assert len(children()) == len(before) + 1
    del template
    assert children() == before


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send there")
def test_interrupts_reach_it() -> None:
    """The row may take minutes, and is in one call that heeds no signal."""
    code = """
        content = "a" * 3_000_000
        text = "{% set c = messages[0].content %}{{ c.rfind('ab' ~ c[:1000000]) }}"
        template = ChatTemplate(text)
        print("ready", flush=True)
        template.render([{"role": "user", "content": content}])
    """
    command = [sys.executable, "-c", script(code)]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert popen.stdout is not None and popen.stdout.readline() == "ready\n"
    (child,) = psutil.Process(popen.pid).children()
    while child.cpu_times().user < 0.3:  # it renders
        pass
    popen.send_signal(signal.SIGINT)
    _, errors = popen.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert popen.returncode == -signal.SIGINT
    assert not child.is_running()


ODD: dict[str, dict[str, Any]] = {
    "a file": {},
    "stdin": {"name": "-"},
    "isolated": {"flags": ["-I"]},
    "variables": {"PYTHONPATH": ".", "PYTHONINSPECT": "1", "PYTHONNOUSERSITE": ""},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "folder gone": {"last": "os.rmdir(os.getcwd())"},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_any_kind_of_parent(odd: dict[str, Any], tmp_path: Path) -> None:
    """An unguarded script among files named as modules, in a folder with an odd name."""
    here = tmp_path / "földer: one"
    (here / "empty").mkdir(parents=True)
    for name in ("json", "jinja2"):
        (here / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    (here / "sitecustomize.py").write_text("print('noise')")
    last = odd.get("last", "")
    code = f"""
        import os, sys
        sys.path = [p for p in sys.path if os.path.abspath(p) != os.getcwd()] + [{str(ROOT)!r}]
        from wgtrain.data import ChatTemplate
        os.chdir("empty")
        {last}
        print(ChatTemplate("{{{{ messages[0].content }}}}").render({USER!r}))
    """
    (here / "script.py").write_text(textwrap.dedent(code))
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env |= {k: v for k, v in odd.items() if k.isupper()}
    command = [sys.executable, *odd.get("flags", []), odd.get("name", "script.py")]
    with open(here / "script.py") as source:
        result = subprocess.run(
            command, cwd=here, env=env, stdin=source, capture_output=True, text=True
        )
    assert result.stdout.removeprefix("noise\n") == "a\n", result.stderr
