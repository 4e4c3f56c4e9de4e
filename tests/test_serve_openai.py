"""OpenAI's own client against a server over a real model, and adapters out of a folder."""

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from serving import send, serving
from test_cached import random_adapter

import wgtrain
from wgtrain.cli.demo import BASE
from wgtrain.files import Adapter
from wgtrain.files.adapters import write_adapter_gguf, write_adapter_peft
from wgtrain.serve.shelf import Shelf

pytestmark = pytest.mark.gpu
MESSAGES: Any = [{"role": "user", "content": "Hello, what is new?"}]
PROMPT = "Once upon a time"
GREEDY: Any = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with wgtrain.load_model(BASE, limits="default") as opened:
        yield opened


@pytest.fixture(scope="module")
def adapters(model: Any) -> dict[str, Any]:
    """Strong ones, so that each says something else."""
    made = {"a": random_adapter(model, 2, 1), "b": random_adapter(model, 3, 2)}
    return {name: replace(one, alpha=8.0 * one.rank) for name, one in made.items()}


@pytest.fixture(scope="module")
def server(model: Any, adapters: dict[str, Any]) -> Iterator[Any]:
    given = [("a", adapters["a"], 0.0), ("b", adapters["b"], 0.0)]
    with serving(model, Shelf("demo", given), key="sk-x") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    url = f"{server.address}/v1"
    with openai.OpenAI(api_key="sk-x", base_url=url, max_retries=0, timeout=60) as opened:
        yield opened


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def said(model: Any, prompt: Any, adapters: Any = (), **how: Any) -> str:
    return "".join(model.generate(prompt, **{**GREEDY, **how}, adapters=list(adapters)))


def test_a_chat_streamed_and_whole_is_what_the_model_says(
    client: openai.OpenAI, model: Any
) -> None:
    want = said(model, MESSAGES)
    whole = client.chat.completions.create(model="demo", messages=MESSAGES, **GREEDY)
    assert whole.choices[0].message.content == want != ""
    assert whole.usage is not None and whole.usage.prompt_tokens == len(model.prompt(MESSAGES))
    pieces, finish, usage = [], None, None
    for chunk in client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
    assert "".join(pieces) == want and len(pieces) > 3
    assert finish == whole.choices[0].finish_reason and usage == whole.usage


def test_a_text_goes_on_as_in_python(client: openai.OpenAI, model: Any) -> None:
    for how in ({}, {"temperature": 0.9, "seed": 5}, {"stop": ["e"]}, {"max_tokens": 3}):
        made = client.completions.create(model="demo", prompt=PROMPT, **{**GREEDY, **how})
        assert made.choices[0].text == said(model, PROMPT, **how)
    ids = model.tokenizer.encode(PROMPT, bos=model.tokenizer.add_bos)
    two = client.completions.create(model="demo", prompt=[ids, ids[:2]], **GREEDY)
    assert two.choices[0].text == said(model, PROMPT) != two.choices[1].text


def test_logprobs_are_those_of_the_logits(client: openai.OpenAI, model: Any) -> None:
    ids = model.prompt(MESSAGES)
    logits = model.logits(ids)[-1].astype(np.float64)
    want = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    best = np.argsort(-want)[:4]
    made = client.chat.completions.create(
        model="demo", messages=MESSAGES, logprobs=True, top_logprobs=4, **GREEDY
    )
    assert made.choices[0].logprobs is not None and made.choices[0].logprobs.content is not None
    tokens = made.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == made.choices[0].message.content
    np.testing.assert_allclose(
        [top.logprob for top in tokens[0].top_logprobs], want[best], atol=1e-4
    )
    spelt = [bytes(top.bytes or []) for top in tokens[0].top_logprobs]
    assert spelt == [model.tokenizer.decode_bytes([i], special=True, start=False) for i in best]


def test_adapters_are_switched_by_the_model_s_name(
    client: openai.OpenAI, model: Any, adapters: dict[str, Any]
) -> None:
    assert [one.id for one in client.models.list()] == ["demo", "demo+a", "demo+b"]
    assert client.models.retrieve("demo+a").id == "demo+a"
    a, b = adapters["a"], adapters["b"]
    cases: list[tuple[str, Any, list[Any]]] = [
        ("demo", {}, []),
        ("demo+a", {}, [(a, 1.0)]),
        ("demo+b", {}, [(b, 1.0)]),
        ("demo+a+b", {}, [(a, 1.0), (b, 1.0)]),
        ("demo", {"lora_adapters": [{"name": "b", "scale": -0.5}]}, [(b, -0.5)]),
        ("demo", {"lora": [{"id": 0, "scale": 0.5}]}, [(a, 0.5)]),
        ("demo", {}, []),
    ]
    texts = []
    for name, more, stack in cases:
        made = client.completions.create(model=name, prompt=PROMPT, extra_body=more, **GREEDY)
        assert made.model == name
        texts.append(made.choices[0].text)
        assert texts[-1] == said(model, PROMPT, stack)
    assert len(set(texts)) == len(cases) - 1 and texts[0] == texts[-1]


def test_a_stream_that_is_broken_off_leaves_the_next_request_alone(
    client: openai.OpenAI, server: Any, model: Any
) -> None:
    for _ in range(3):
        with client.chat.completions.create(
            model="demo+a", messages=MESSAGES, stream=True, temperature=0
        ) as stream:
            assert next(iter(stream)).choices[0].delta.role == "assistant"
        made = client.chat.completions.create(model="demo", messages=MESSAGES, **GREEDY)
        assert made.choices[0].message.content == said(model, MESSAGES)


def test_ten_requests_at_once(client: openai.OpenAI, server: Any, model: Any) -> None:
    def ask(i: int) -> str:
        made = client.completions.create(model="demo", prompt=PROMPT[: i + 3], **GREEDY)
        return made.choices[0].text

    async def ask_all() -> list[str]:
        url = f"{server.address}/v1"
        async with openai.AsyncOpenAI(api_key="sk-x", base_url=url, max_retries=0) as several:
            made = await asyncio.gather(
                *(
                    several.completions.create(model="demo", prompt=PROMPT[: i + 3], **GREEDY)
                    for i in range(10)
                )
            )
        return [one.choices[0].text for one in made]

    want = [said(model, PROMPT[: i + 3]) for i in range(10)]
    with ThreadPoolExecutor(10) as threads:
        assert list(threads.map(ask, range(10))) == want
    assert asyncio.run(ask_all()) == want


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, model: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=MESSAGES, n=2)
    assert refused.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="demo", prompt="a b " * model.config.context)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as outside:
        client.completions.create(model="demo", prompt=[1, model.config.vocabulary])
    assert "ids from 0 to" in outside.value.message and outside.value.param == "prompt"
    with pytest.raises(openai.BadRequestError) as unread:
        kwargs = {"chat_template_kwargs": {"unread": 1}}
        client.chat.completions.create(model="demo", messages=MESSAGES, extra_body=kwargs)
    assert "the chat template does not read" in unread.value.message
    assert unread.value.param == "chat_template_kwargs"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts by /proc")
def test_nothing_is_left_of_two_hundred_answers(
    client: openai.OpenAI, server: Any, model: Any
) -> None:
    def ask(i: int) -> None:
        name = ("demo", "demo+a", "demo+b")[i % 3]
        if i % 5 == 0:
            with client.chat.completions.create(
                model=name, messages=MESSAGES, stream=True, temperature=0
            ) as stream:
                next(iter(stream))
        else:
            client.completions.create(model=name, prompt=PROMPT, temperature=0, max_tokens=2)

    def counts() -> tuple[int, int, int]:
        client.completions.create(model="demo", prompt=PROMPT, temperature=0, max_tokens=2)
        fds = len(os.listdir("/proc/self/fd"))
        return model.device.allocated, threading.active_count(), fds

    for i in range(30):
        ask(i)
    before, resident = counts(), resident_bytes()
    for i in range(200):
        ask(i)
    after = counts()
    assert after[0] == before[0] and after[1] <= before[1] and after[2] <= before[2] + 2
    assert resident_bytes() - resident < 32 << 20


def test_adapters_of_a_folder_come_and_go(
    model: Any, adapters: dict[str, Any], tmp_path: Path
) -> None:
    a, b = adapters["a"], adapters["b"]
    heads = {"n_head": model.config.n_head, "n_head_kv": model.config.n_head_kv}
    folder = tmp_path / "adapters"
    (folder / "peft").mkdir(parents=True)
    for name, data in write_adapter_peft(
        b, base_name="m", n_layer=model.config.n_layer, **heads
    ).items():
        (folder / "peft" / name).write_bytes(data)
    (folder / "one.gguf").write_bytes(write_adapter_gguf(a))
    (folder / "given.gguf").write_bytes(write_adapter_gguf(a))
    other = Adapter("llama", 2, 4.0, {"blk.0.attn_q.weight": (np.ones((2, 8)), np.ones((8, 2)))})
    (folder / "bad.gguf").write_bytes(write_adapter_gguf(other))
    (folder / "cut.gguf").write_bytes(write_adapter_gguf(a)[:-40])
    shutil.copy(BASE, folder / "base.gguf")  # a model is no adapter
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.gguf").write_bytes(write_adapter_gguf(a))
    (folder / "norun").mkdir()
    (folder / "norun" / "adapter.gguf").write_bytes(write_adapter_gguf(a))
    (tmp_path / "outside.gguf").write_bytes(write_adapter_gguf(a))
    warned: list[str] = []
    given = [("given", model.adapters.read(b), 1.0)]
    shelf = Shelf("m", given, folder, model.adapters.read, warned.append)
    for warning, words in zip(warned, ("cut.gguf", "given", "norun"), strict=True):
        assert words in warning and "it is left out" in warning

    with serving(model, shelf) as server:

        def text(name: str) -> Any:
            body = {"prompt": PROMPT, "model": name, **GREEDY}
            status, _, answer = send(server, "/v1/completions", body)
            return answer["choices"][0]["text"] if status == 200 else (status, answer["error"])

        names = [one["id"] for one in send(server, "/v1/models")[2]["data"]]
        assert names == ["m", "m+given", "m+bad", "m+one", "m+peft"]
        assert text("m+one") == said(model, PROMPT, [(a, 1.0)])
        assert text("m") == text("m+peft") == text("m+given") == said(model, PROMPT, [(b, 1.0)])
        status, error = text("m+bad")
        assert status == 400 and "bad" in error["message"]
        assert str(tmp_path) not in error["message"] and any("bad.gguf" in w for w in warned[3:])
        for name in ("../outside", "outside", f"{tmp_path}/outside", ".hidden", "one.gguf"):
            assert text(f"m+{name}")[0] == 404

        (folder / "new.gguf").write_bytes(write_adapter_gguf(a))
        (folder / "one.gguf").unlink()
        (folder / "bad.gguf").write_bytes(write_adapter_gguf(a))
        assert text("m+new") == text("m+bad") == said(model, PROMPT, [(a, 1.0)])
        assert text("m+one")[0] == 404
        listed = send(server, "/lora-adapters")[2]
        numbers = {one["name"]: (one["id"], one["scale"]) for one in listed}
        assert numbers == {"given": (0, 1.0), "bad": (1, 0.0), "peft": (3, 0.0), "new": (4, 0.0)}
        for number, name in ((0, "given"), (4, "new")):  # stronger than logits stand
            answer = send(server, "/lora-adapters", [{"id": number, "scale": 1e39}])
            assert answer[0] == 400 and f"the adapter {name}: strength" in str(answer[2])
            body = {"prompt": PROMPT, "lora_adapters": [{"id": number, "scale": 1e39}]}
            answer = send(server, "/v1/completions", body)
            assert answer[0] == 400 and f"the adapter {name}: strength" in str(answer[2])
        assert text("m") == said(model, PROMPT, [(b, 1.0)])
        scales = [{"id": 4, "scale": 0.5}]
        assert send(server, "/lora-adapters", scales)[0] == 200
        assert text("m") == said(model, PROMPT, [(a, 0.5)])
        (folder / "one.gguf").write_bytes(write_adapter_gguf(b))  # the name keeps its number
        assert text("m+one") == said(model, PROMPT, [(b, 1.0)])
        assert [one["id"] for one in send(server, "/lora-adapters")[2]] == [0, 1, 2, 3, 4]

        folder.rename(tmp_path / "away")
        said_before = len(warned)
        assert text("m+new")[0] == 404 and text("m+given") == said(model, PROMPT, [(b, 1.0)])
        assert len(warned) == said_before + 1 and str(folder) in warned[-1]
        assert text("m")[0] == 400  # it was to run under one that is gone
        (tmp_path / "away").rename(folder)
        assert text("m") == said(model, PROMPT, [(a, 0.5)])
