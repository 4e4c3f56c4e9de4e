"""Modelfiles for Ollama: their templates by Go's own text/template beside the models' own."""

import json
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from test_merge import adapter_for
from tiny import tiny

import wgtrain as package
from wgtrain.cli import main as cli
from wgtrain.data import Tokenizer, load_tokenizer
from wgtrain.data.modelfile import OllamaTemplate, modelfile, ollama_template
from wgtrain.data.templates import Templating
from wgtrain.errors import FileError
from wgtrain.files import parse_gguf, write_adapter_gguf, write_adapter_peft, write_gguf

TABLE = json.loads((needs.ROOT / "wgtrain/data/ollama_templates.json").read_text("utf-8"))
CHATML = "chatml"
# Of templates that people use -> what a Modelfile says beside the stops of the vocabulary.
EXPECTED: dict[str, tuple[str | None, str | None, tuple[str, ...]]] = {
    "Qwen-Qwen2.5-7B-Instruct": (
        "<|im_start|>",
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        (),
    ),
    "Qwen-Qwen3-0.6B": ("<|im_start|>", None, ()),
    "microsoft-Phi-3.5-mini-instruct": ("<|assistant|>", None, ("<|end|>", "<|user|>")),
    "google-gemma-2-2b-it": ("<start_of_turn>", None, ("<end_of_turn>",)),
    "meta-llama-Llama-3.2-3B-Instruct": (None, None, ()),  # it writes a date
}


def source(name: str) -> str:
    """A chat template of the shared data."""
    return (needs.data() / "templates" / f"{name}.jinja").read_text("utf-8")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One that puts a BOS in front, which is the text that templates begin with."""
    return package.load_tokenizer(needs.data() / "vocab" / "ggml-vocab-llama-bpe.gguf")


def wgtrain(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit:
        cli.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return int(exit.value.code or 0), captured.out + captured.err


@pytest.mark.oracle
def test_go_makes_of_the_table_what_it_says() -> None:
    tasks = [
        {"template": entry["template"], "messages": messages}
        for entry in TABLE["entries"]
        for messages in TABLE["conversations"]
    ]
    made = needs.render_go(tasks)
    assert not [answer for answer in made if answer.get("error")]
    stored = [text for entry in TABLE["entries"] for text in entry["renders"]]
    assert [answer["text"] for answer in made] == stored
    assert "MIT License" in TABLE["license"] and TABLE["package"].endswith(" 0.0.18")


@pytest.mark.oracle
@pytest.mark.parametrize("name", [*(name for name, row in EXPECTED.items() if row[0]), CHATML])
def test_go_writes_what_the_model_s_template_does(name: str, tokenizer: Tokenizer) -> None:
    """Of other words than those of the table: a system message and three turns, and five; without
    a system message by the SYSTEM line.
    """
    chat = Templating(name if name == CHATML else source(name))
    found = ollama_template(tokenizer, chat)
    turns = [
        {"role": role, "content": text}
        for role, text in (
            ("user", 'Is "5 < 7"?\nYes, or no'),
            ("assistant", "Yes.\n\nIt is."),
            ("user", "And {{ .System }} <|x|>?"),
            ("assistant", "No"),
            ("user", "é 你好"),
        )
    ]
    system = {"role": "system", "content": "Be brief:\n- no jokes"}
    takes_system = "takes no system message" not in "".join(found.notes)
    conversations = [turns[:1], turns[:3], turns]
    if takes_system:
        conversations += [[system, *some] for some in conversations]
    default = [] if found.system is None else [{"role": "system", "content": found.system}]
    tasks = [
        {
            "template": found.text,
            "messages": messages if messages[0] is system else default + messages,
        }
        for messages in conversations
    ]
    template = chat.open(tokenizer)
    assert template is not None
    with template:
        wanted = [template.render(messages, prompt=True) for messages in conversations]
    bos = tokenizer.special_tokens["bos_token"]
    made = [answer["text"] for answer in needs.render_go(tasks)]
    assert made == [text.removeprefix(bos) for text in wanted]
    # Negative control: another model's template would not do.
    other = ollama_template(tokenizer, Templating(source("google-gemma-2-2b-it")))
    if name != "google-gemma-2-2b-it":
        assert needs.render_go([{**tasks[-1], "template": other.text}])[0]["text"] != made[-1]


@pytest.mark.parametrize("name", EXPECTED)
def test_templates(name: str, tokenizer: Tokenizer) -> None:
    start, system, stops = EXPECTED[name]
    found = ollama_template(tokenizer, Templating(source(name)))
    assert (found.text is not None and str(start) in found.text) == (start is not None)
    assert found.system == system
    assert {"<|end_of_text|>", "<|eot_id|>", *stops} <= set(found.stops)
    if start is None:
        assert "no TEMPLATE line" in found.notes[0]


def test_arguments_of_a_template_count(tokenizer: Tokenizer) -> None:
    """With thoughts switched off Qwen3's prompt is another one, which no entry writes."""
    args = {"enable_thinking": False}
    found = ollama_template(tokenizer, Templating(source("Qwen-Qwen3-0.6B"), args))
    assert found.text is None and "no TEMPLATE line" in found.notes[0]


def test_a_date_is_not_written_down(tokenizer: Tokenizer) -> None:
    """What a template says of today is not what it says tomorrow; another text is."""
    chatml = str(Templating(CHATML).source)
    start = "{% if messages[0].role != 'system' %}<|im_start|>system\n"
    end = "<|im_end|>\n{% endif %}"
    found = ollama_template(tokenizer, Templating(f"{start}Be {{{{ 'brief' }}}}{end}{chatml}"))
    assert found.system == "Be brief" and found.text is not None and not found.notes
    dated = f"{start}It is {{{{ strftime_now('%Y') }}}}{end}{chatml}"
    found = ollama_template(tokenizer, Templating(dated))
    assert found.system is None and found.text is not None
    assert found.notes[0].endswith("differ from the template's, which writes a date")


def test_the_package_s_own_choice_goes_first(tokenizer: Tokenizer) -> None:
    """Of entries that write the same, that of the same beginning, which knows tools, too."""
    found = ollama_template(tokenizer, Templating(source("Qwen-Qwen3-0.6B")))
    named = [e["model"] for e in TABLE["entries"] if e["template"] == found.text]
    assert "qwen3:0.6b" in named


def test_a_bos_that_ollama_does_not_add(tokenizer: Tokenizer) -> None:
    """Where the file asks for none, one that a template writes makes a difference."""
    text = "{{ bos_token }}" + str(Templating(CHATML).source)
    assert ollama_template(tokenizer, Templating(text)).text is not None
    vocabulary = needs.data() / "vocab" / "ggml-vocab-llama-bpe.gguf"
    metadata = parse_gguf(vocabulary.read_bytes()).metadata
    silent = load_tokenizer(metadata | {"tokenizer.ggml.add_bos_token": False}, "silent")
    assert ollama_template(silent, Templating(text)).text is None
    assert ollama_template(silent, Templating(CHATML)).text is not None


def test_quotes() -> None:
    """Ollama's reader ends a value at its closing quotes and drops what is not printable."""
    template = OllamaTemplate('a\n"b"', 'say "x"', ("<|end|>", '"', "\u00a0"), ("note",))
    text, left = modelfile("./a b.gguf", template, "/x/é.gguf")
    assert text == (
        'FROM "./a b.gguf"\nADAPTER /x/é.gguf\nTEMPLATE """a\n"b""""\nSYSTEM """say "x""""\n'
        'PARAMETER stop "<|end|>"\nPARAMETER stop """""""\n'
    )
    assert left == [
        "note",
        "PARAMETER stop '\\xa0' cannot be written in a Modelfile and is left out",
    ]
    _, left = modelfile("x.gguf", OllamaTemplate('"""', None, (), ()))
    assert len(left) == 1 and left[0].startswith("TEMPLATE")
    with pytest.raises(FileError, match="cannot hold such a name"):
        modelfile("a\x07.gguf", template)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A base with a chat template, and an adapter."""
    base = parse_gguf(tiny("qwen2").gguf)
    data = tiny("qwen2").gguf
    tensors = {
        name: np.frombuffer(data, "<f4", info.nbytes // 4, info.offset).reshape(info.shape)
        for name, info in base.tensors.items()
    }
    template = str(Templating(CHATML).source)
    metadata = base.metadata | {"tokenizer.chat_template": template}
    (tmp_path / "base.gguf").write_bytes(write_gguf(metadata, tensors))
    (tmp_path / "a.gguf").write_bytes(write_adapter_gguf(adapter_for("qwen2", 4, 1)))
    return tmp_path


def test_beside_a_merged_model(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["merge", "--model", files / "base.gguf", "--adapter", files / "a.gguf"]
    code, said = wgtrain(capsys, *arguments, "--out", files / "m.gguf")
    assert code == 0 and f"ollama create NAME -f {files / 'Modelfile'}" in said
    text = (files / "Modelfile").read_text()
    assert text.startswith("FROM ./m.gguf\nTEMPLATE") and "ADAPTER" not in text
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    code, said = wgtrain(capsys, *arguments, "--out", files / "n.gguf")
    assert code == 0 and "exists already and stays" in said
    assert (files / "Modelfile").read_text() == text
    code, said = wgtrain(capsys, *arguments, "--out", files / "n.gguf", "--force")
    assert (files / "Modelfile").read_text() == text.replace("m.gguf", "n.gguf")
    (files / "Modelfile").unlink()
    more = ("--no-modelfile", "--template-args", '{"x": 1}')
    code, said = wgtrain(capsys, *arguments, "--out", files / "o.gguf", *more[:1])
    assert code == 0 and not (files / "Modelfile").exists()
    code, said = wgtrain(capsys, *arguments, "--out", files / "p.gguf", *more)
    assert code == 2 and "--template-args: only a Modelfile and --data depend on them" in said


def test_a_name_that_no_modelfile_can_hold(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", files / "base.gguf", "--adapter", files / "a.gguf", "--no-check"]
    arguments += ["--out", files / 'x""".gguf']
    code, said = wgtrain(capsys, "merge", *arguments)
    assert code == 0 and "warning: no Modelfile is written: " in said
    assert "a Modelfile cannot hold such a name" in said and not (files / "Modelfile").exists()
    code, said = wgtrain(capsys, "merge", *arguments, "--modelfile", "--force")
    assert code == 2 and "a Modelfile cannot hold such a name" in said


def test_a_base_with_an_adapter(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "below").mkdir()
    out = files / "below" / "Modelfile"
    base, a = files / "base.gguf", files / "a.gguf"
    arguments = ["modelfile", "--model", base, "--out", out]
    code, said = wgtrain(capsys, *arguments, "--adapter", a)
    assert code == 0, said
    assert out.read_text().startswith(f"FROM {base}\nADAPTER {a}\nTEMPLATE")
    spec = tiny("qwen2").spec
    (files / "peft").mkdir()
    adapter = adapter_for("qwen2", 4, 1)
    heads = {"n_head": spec.heads, "n_head_kv": spec.kv_heads}
    for name, data in write_adapter_peft(adapter, base_name=None, **heads).items():
        (files / "peft" / name).write_bytes(data)
    (files / "other.gguf").write_bytes(write_adapter_gguf(adapter_for("llama", 4, 1)))
    (files / "b.gguf").write_bytes(write_adapter_gguf(adapter_for("qwen2", 4, 2)))
    for more, words in (
        (["--adapter", a], "exists already; --force"),
        (["--adapter", f"{a}:0.5", "--force"], "a scale of 0.5: Ollama takes one adapter"),
        (["--adapter", a, "--adapter", a, "--force"], "an adapter is named twice"),
        (["--adapter", a, "--adapter", files / "b.gguf", "--force"], "2 adapters: Ollama takes"),
        (["--adapter", files / "peft", "--force"], "no GGUF, which Ollama needs; wgtrain convert"),
        (["--adapter", files / "other.gguf", "--force"], "does not fit the model"),
        (["--model", files / "peft", "--force"], "makes one GGUF, which Ollama needs"),
    ):
        before = out.read_text()
        code, said = wgtrain(capsys, *arguments, *more)
        assert (code, words in said) == (2, True), said
        assert out.read_text() == before
    code, said = wgtrain(capsys, *arguments, "--force", "--chat-template", "chatml")
    assert code == 0 and "ADAPTER" not in out.read_text()
    listed = [{"path": str(files / name)} for name in ("no.gguf", "a.gguf")]
    config = {"model": {"path": str(base)}, "lora_adapters": listed}
    (files / "c.json").write_text(json.dumps(config))
    given = ("modelfile", "--config", files / "c.json", "--out", out, "--force")
    code, said = wgtrain(capsys, *given)
    assert code == 0 and f"warning: the adapter {files / 'no.gguf'} is skipped: No such" in said
    assert f"\nADAPTER {a}\n" in out.read_text()
    (files / "c.json").write_text(json.dumps({**config, "on_error": "error"}))
    code, said = wgtrain(capsys, *given)
    assert code == 2 and "no.gguf: No such file" in said


def test_a_model_without_a_template(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is FROM, the stops, and a word on it."""
    (files / "plain.gguf").write_bytes(tiny("qwen2").gguf)
    code, said = wgtrain(
        capsys, "modelfile", "--model", files / "plain.gguf", "--out", files / "Modelfile"
    )
    assert code == 0 and "has no chat template: Ollama gets the text as it is" in said
    stop = "".join(f'PARAMETER stop "<|{name}|>"\n' for name in ("endoftext", "im_end"))
    assert (files / "Modelfile").read_text() in (
        f"FROM ./plain.gguf\n{stop}",
        'FROM ./plain.gguf\nPARAMETER stop "<|im_end|>"\n',
    )
