"""Ids and masks in the page equal native ones, on all shared vocabularies and templates."""

import random
from pathlib import Path
from typing import Any

import page_text
import pytest
import unicode_texts
import vocabs

from wgtrain.data.pretokenizers import PRE_TOKENIZERS

pytestmark = pytest.mark.browser


def vocabulary(data_dir: Path, name: str) -> Path:
    return data_dir / "vocab" / f"ggml-vocab-{name}.gguf"


IDS = "import page_text; page_text.ids(page_text.vocabulary, values.texts.to_py())"
WORDS = """
import page_text
given = values.to_py()
page_text.words(**given)
"""
ROWS = "import page_text; page_text.rows(page_text.vocabulary, values.template)"


@pytest.fixture(params=page_text.NAMES)
def name(request: pytest.FixtureRequest, tab: Any) -> str:
    """A vocabulary, which the page has as `page_text.vocabulary`."""
    tab.python(
        """
        import page_text
        from pyodide.http import pyfetch
        page_text.vocabulary = await (await pyfetch(values.path)).bytes()
        """,
        path=f"data/vocab/ggml-vocab-{request.param}.gguf",
    )
    return request.param


def test_ids(tab: Any, data_dir: Path, name: str) -> None:
    path = vocabulary(data_dir, name)
    texts = path.with_name(path.name + ".inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    texts += (data_dir / "wikisql_train.jsonl").read_text("utf-8").splitlines()[:300]
    texts.append("\n".join(texts[:60]))
    found = tab.python(IDS, texts=texts)
    expected = page_text.ids(path.read_bytes(), texts)
    for text, ours, theirs in zip([*texts, *page_text.STRANGE], found, expected, strict=True):
        assert ours == theirs, repr(text)
    assert sum(map(len, expected)) > 10_000


def test_words_of_every_name(tab: Any) -> None:
    """JavaScript's patterns cut where those of the native library do."""
    rows: dict[tuple[str, ...], str] = {}
    for name, row in PRE_TOKENIZERS.items():
        rows.setdefault(tuple(row.patterns), name)
    seen = unicode_texts.FEW + unicode_texts.AWKWARD + "".join(unicode_texts.PLAIN)
    made = vocabs.pairs(seen)
    rng = random.Random(1)
    kinds = unicode_texts.by_category(list(unicode_texts.FEW))
    texts = [unicode_texts.random_text(rng, kinds, []) for _ in range(150)]
    values = {
        "pieces": made["tokenizer.ggml.tokens"],
        "merges": made["tokenizer.ggml.merges"],
        "names": list(rows.values()),
        "texts": [unicode_texts.AWKWARD, *texts],
    }
    assert tab.python(WORDS, **values) == page_text.words(**values)


def test_masks(tab: Any, data_dir: Path, name: str) -> None:
    data = vocabulary(data_dir, name).read_bytes()
    templates = sorted((data_dir / "templates").glob("*.jinja"))
    assert len(templates) >= 5
    for path in templates:
        template = path.read_text("utf-8")
        found = tab.python(ROWS, template=template)
        expected = page_text.rows(data, template)
        assert found == expected, path.name
        assert sum(isinstance(row, list) for row in expected) >= 3, expected


def test_a_template_that_computes_without_end(tabs: Any) -> None:
    """The page ends its worker, says so, and has another."""
    tab = tabs.open_site()
    tab.start("""
        from wgtrain.chat import bounds
        from wgtrain.data import ChatTemplate
        bounds.PATIENCE = 1
        chat = ChatTemplate("{{ ('a' * 600000).rfind('ab' ~ 'a' * 300000) }}")
        chat.render([{"role": "user", "content": "a"}])
    """)
    said = tab.wait_for("globalThis.failure")
    assert said.startswith("the chat template computes for more than 1 s: Python was ended")
    assert tab.python("1 + 1") == 2
    assert (
        tab.python("""
        from wgtrain.data import ChatTemplate
        ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": "a"}])
    """)
        == "a"
    )
