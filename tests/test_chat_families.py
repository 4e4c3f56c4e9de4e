"""Which tokens of a conversation are trained, by hand, for each family of chat templates; the text
is Transformers', for those too that a folder named by WGTRAIN_TEMPLATES holds.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import chat_families as family
import needs
import pytest
from test_chat import CALL, CALLS, PLAIN, TEMPLATES, assistant, source, system, tool, user
from test_jsonl import load
from vocabs import bpe

from wgtrain.data import ChatTemplate, load_tokenizer
from wgtrain.errors import FileError

DAY = datetime(2024, 7, 26)
WITH_SYSTEM = [system("s"), *PLAIN]
MORE = "the model may not learn to stop: answers without an end-of-turn token in 1 row: line 1"
# name -> (template, special tokens, the one that ends a turn, messages, expected text, notes)
BY_HAND: dict[str, tuple[str, str, str, list[Any], str, list[str]]] = {
    "chatml": (
        family.CHATML,
        "<|im_start|> <|im_end|>",
        "<|im_end|>",
        WITH_SYSTEM,
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
        "[b<|im_end|>]\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[d<|im_end|>]\n",
        [],
    ),
    "gemma 3": (
        family.GEMMA3,
        "<bos> <start_of_turn> <end_of_turn>",
        "<end_of_turn>",
        WITH_SYSTEM,
        "<bos><start_of_turn>user\ns\n\na<end_of_turn>\n<start_of_turn>model\n[b<end_of_turn>]\n"
        "<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n[d<end_of_turn>]\n",
        [],
    ),
    "mistral": (
        family.MISTRAL,
        "<s> </s> [INST] [/INST]",
        "</s>",
        [system("be kind"), *PLAIN, user("e"), assistant("f")],
        "<s>[INST]a[/INST][b</s>][INST]c[/INST][d</s>][INST]e[/INST][f</s>]",
        ["fields that the chat template does not write: content of role 'system' in 1 row"],
    ),
    "mistral, calls": (
        family.MISTRAL,
        "<s> </s> [INST] [/INST] [TOOL_CALLS]",
        "</s>",
        CALLS,
        '<s>[INST]a[/INST][[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]</s>][TOOL_RESULTS]7'
        "[/TOOL_RESULTS][d</s>]",
        [],
    ),
    "granite": (
        family.GRANITE,
        "<|start_of_role|> <|end_of_role|> <|end_of_text|>",
        "<|end_of_text|>",
        PLAIN,
        "<|start_of_role|>system<|end_of_role|>Today is July 26, 2024.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>a<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[b<|end_of_text|>]\n"
        "<|start_of_role|>user<|end_of_role|>c<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>[d<|end_of_text|>]\n",
        [],
    ),
    "olmo 2": (
        family.OLMO2,
        "<|endoftext|>",
        "<|endoftext|>",
        PLAIN,
        "<|user|>\na\n<|assistant|>\n[b]\n<|user|>\nc\n<|assistant|>\n[d<|endoftext|>]",
        [f"warning: {MORE}"],
    ),
    "glm 4": (
        family.GLM4,
        "[gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>",
        "<|user|>",
        PLAIN,
        "[gMASK]<sop><|user|>\na<|assistant|>[\nb<|user|>]\nc<|assistant|>[\nd<|user|>]",
        [
            "the chat template ends no answer at the end of a conversation: <|user|> is put there "
            "and trained, in 1 row"
        ],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_trained_tokens_by_hand(name: str) -> None:
    text, specials, end, messages, expected, notes = BY_HAND[name]
    pieces = specials.split()
    metadata = bpe(specials=tuple(pieces), pre="gpt-2")
    first = len(metadata["tokenizer.ggml.tokens"]) - len(pieces)
    metadata["tokenizer.ggml.eos_token_id"] = first + pieces.index(end)
    if pieces[0] in ("<bos>", "<s>"):
        metadata["tokenizer.ggml.bos_token_id"] = first
    metadata["tokenizer.chat_template"] = text
    tokenizer = load_tokenizer(metadata)
    data = load(tokenizer, {"messages": messages}, now=DAY)
    (row,) = data.rows
    found, before = "", False
    for token, target in zip(row.tokens.tolist(), [-1, *row.targets.tolist()], strict=False):
        found += "" if before == (target >= 0) else "[" if target >= 0 else "]"
        before = target >= 0
        found += tokenizer.decode_bytes([token], special=True, start=False).decode()
    assert found + "]" * before == expected
    assert data.notes == notes


TOKENS = {"eos_token": "<eos>", "pad_token": "<pad>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "description": "does <b>é</b>",
            "parameters": {
                "type": "object",
                "properties": {"x": {"type": "integer", "description": "a number"}},
                "required": ["x"],
            },
        },
    }
]
CONVERSATIONS: dict[str, tuple[list[Any], list[Any] | None]] = {
    "turns": (PLAIN, None),
    "system": (WITH_SYSTEM, None),
    "system and tools": (WITH_SYSTEM, TOOLS),
    "calls": (
        [
            user("a"),
            assistant("", tool_calls=[{**CALL, "id": "abcdefghi"}]),
            {**tool("7"), "name": "f", "tool_call_id": "abcdefghi"},
            assistant("d"),
        ],
        TOOLS,
    ),
    "thoughts": (
        [user("a"), assistant("b", reasoning_content="t"), user("c"), assistant("d", thinking="u")],
        None,
    ),
    "null": ([{**user("a"), "name": None}, assistant("b", tool_calls=None)], None),
}


def _templates() -> dict[str, str]:
    named = {name: text for name, text in vars(family).items() if name.isupper()}
    if folder := os.environ.get("WGTRAIN_TEMPLATES"):
        named |= {path.stem: path.read_text() for path in sorted(Path(folder).glob("*.jinja"))}
    return named | dict.fromkeys(TEMPLATES, "")


@pytest.mark.oracle
@pytest.mark.parametrize("bos", [{}, {"bos_token": "<bos>"}], ids=["no BOS", "BOS"])
@pytest.mark.parametrize("name", _templates())
def test_text_is_what_apply_chat_template_gives(
    name: str, bos: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or both refuse."""
    needs.package("transformers")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return DAY

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    text, tokens = _templates()[name] or source(name), TOKENS | bos
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **tokens)
    rendered = 0
    with ChatTemplate(text, tokens=tokens, now=DAY) as ours:
        for kind, (messages, tools) in CONVERSATIONS.items():
            for prompt in (False, True):
                for args in ({}, {"enable_thinking": False}):
                    try:
                        expected = theirs.apply_chat_template(
                            messages,
                            tools=tools,
                            chat_template=text,
                            add_generation_prompt=prompt,
                            tokenize=False,
                            **args,
                        )
                    except Exception:
                        if kind != "calls":  # ours tries their arguments as text, too
                            with pytest.raises(FileError, match="the chat template refuses it"):
                                ours.render(messages, tools, prompt, args)
                        continue
                    rendered += 1
                    assert ours.render(messages, tools, prompt, args) == expected
    assert rendered or not bos or name in NEVER


# Wants other variables than a conversation has.
NEVER = {"fireworks-ai-llama-3-firefunction-v2"}
