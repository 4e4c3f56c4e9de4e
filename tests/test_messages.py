"""What stands in a stranger's file reaches no terminal as it is."""

import json

import broken
import pytest
from test_cli import wgtrain
from test_jsonl import CHAT, letters

from wgtrain.data import load_rows
from wgtrain.errors import FileError, ShaderError, printable

TITLE = "\x1b]0;title\x07"
SHOWN = r"\x1b]0;title\x07"


@pytest.mark.parametrize(
    "unseen",
    [
        *map(chr, (*range(9), *range(11, 32), *range(127, 160))),
        *("\u202e", "\u2066", "\u200f", "\u061c", "\u2028", "\u2029", "\udc80"),
    ],
    ids=ascii,
)
def test_no_character_that_a_terminal_obeys(unseen: str) -> None:
    said = str(FileError(f"a{unseen}b"))
    assert said == printable(said) == f"a{ascii(unseen)[1:-1]}b"


def test_texts_of_people_stay() -> None:
    text = "Zürich\n\tनमस्ते 👩\u200d💻 שלום\n"
    assert str(ShaderError(text)) == text


def test_names_in_a_model(tmp_path, capsys) -> None:
    """By the command line, wherever a name is said."""
    kind = broken.entry("general.architecture", 8, broken.text(TITLE))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}')
    twice = [broken.tensor(f"a{TITLE}\u202eb")] * 2
    for entries, tensors in (([kind], []), ([], twice)):
        model = tmp_path / "model.gguf"
        model.write_bytes(broken.gguf(entries, tensors))
        arguments = ("--model", model, "--data", rows, "--out", tmp_path / "run")
        code, _, said = wgtrain(capsys, "train", *arguments)
        assert code == 2 and said == printable(said) and SHOWN in said, said


def test_names_in_rows_and_words_of_a_template() -> None:
    row = {"messages": [{"role": "user", "content": TITLE}, {"role": "assistant", "content": "a"}]}
    raising = "{{ raise_exception(messages[0].content ~ '\nline 2') }}"
    for template, value in (
        (raising, row),
        (CHAT, {TITLE: 1}),
        (CHAT, {"messages": [{"role": TITLE}]}),
    ):
        with pytest.raises(FileError) as caught:
            load_rows(json.dumps(value).encode(), letters(template), seq_len=64)
        said = str(caught.value)
        assert said == printable(said) and "\n" not in said and SHOWN[:9] in said, said
