"""Pages of other origins before `wgtrain serve`, in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving as endpoint
from chromium import Driver, serving

from wgtrain.web.server import Server

pytestmark = pytest.mark.browser
# What a page may try, and what it learns of each: "" where it gets nothing.
TRIES = """async (address) => {
    const url = address + "/v1/chat/completions";
    const body = JSON.stringify({messages: [{role: "user", content: "say secret"}]});
    const json = {"Content-Type": "application/json"};
    const found = {};
    const ask = async (name, path, options) => {
        try {
            found[name] = await (await fetch(path, options)).text();
        } catch (error) {
            found[name] = "";
        }
    };
    await ask("json", url, {method: "POST", headers: json, body});
    await ask("plain", url, {method: "POST", body});
    await ask("blind", url, {method: "POST", mode: "no-cors", body});
    await ask("beacon", url, {method: "POST", mode: "no-cors", keepalive: true, body});
    await ask("get", address + "/v1/models", {});
    const load = (name, tag, attribute, path) => new Promise((resolve) => {
        const made = document.createElement(tag);
        made[attribute] = path;
        made.onload = () => resolve(found[name] = "loaded");
        made.onerror = () => resolve(found[name] = "");
        document.body.append(made);
    });
    await load("script", "script", "src", address + "/v1/models");
    await load("picture", "img", "src", address + "/v1/models");
    return found;
}"""
STREAM = """async (address) => {
    const headers = {"Content-Type": "application/json", "Authorization": "Bearer key"};
    const messages = [{role: "user", content: "say streamed"}];
    const body = JSON.stringify({messages, stream: true});
    const answer = await fetch(address + "/v1/chat/completions", {method: "POST", headers, body});
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
        const {done, value} = await reader.read();
        if (done) return text;
        text += value;
    }
}"""


@pytest.fixture
def page(driver: Driver, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """An empty page of a server on loopback, and its origin."""
    (tmp_path / "index.html").write_text("<!doctype html><body></body>")
    with serving(Server(tmp_path, policy="")) as origin:
        context = driver.call(driver.browser.new_context)
        page = driver.call(context.new_page)
        driver.call(page.goto, origin)
        yield lambda code, address: driver.call(page.evaluate, code, address), origin
        driver.call(context.close)


def test_a_page_of_another_origin_gets_nothing(page: tuple[Any, str]) -> None:
    evaluate, origin = page
    model = endpoint.FakeModel()
    for origins in ([], ["http://127.0.0.1:1"]):
        with endpoint.serving(model, origins=origins) as server:
            found = evaluate(TRIES, server.address)
            assert set(found.values()) == {""} and len(found) == 7
            asked = [line for line in server.said if not line.startswith("OPTIONS")]
            assert len(asked) >= 5 and all(" 403 " in line for line in server.said)
    assert model.asked == []
    with endpoint.serving(model, origins=[origin]) as server:
        assert "secret" in evaluate(TRIES, server.address)["json"]
    assert len(model.asked) == 1


def test_a_page_that_is_allowed_streams(page: tuple[Any, str]) -> None:
    evaluate, origin = page
    with endpoint.serving(endpoint.FakeModel(), origins=[origin], key="key") as server:
        *chunks, done = endpoint.events(evaluate(STREAM, server.address).encode())
        texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(texts) == "streamed" and done == "[DONE]"
