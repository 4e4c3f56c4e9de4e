"""Answers: stops, whole characters, tokens and their chances, many requests, places and context."""

import asyncio
import gc
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tiny
import vocabs
from interrupting import Lines
from needs import ROOT

import wgtrain
from wgtrain.data import Tokenizer, load_tokenizer
from wgtrain.engine.plan import Plan
from wgtrain.errors import NonFiniteError, OptionError, OutOfMemoryError
from wgtrain.infer.generation import MAX_TOKENS, Piece, Request, Row, generate
from wgtrain.infer.places import Places
from wgtrain.infer.sampling import Sampling
from wgtrain.infer.text import StopFinder
from wgtrain.turn import Turn

# ---- a model that is none: what it says is chosen ----------------------------------------------

Says = Callable[[list[int]], np.ndarray]  # a row -> the logits after it


class Fake:
    """Sequences over a function; it notes what it reads and holds itself to the protocol."""

    def __init__(self, says: Says, places: int, room: int) -> None:
        self.places, self.room, self._says = places, room, says
        self.ids: list[list[int]] = [[] for _ in range(places)]
        self.reads: list[dict[int, int]] = []  # place -> tokens, by call
        self.breaks = False
        self.closed = False

    def length(self, place: int) -> int:
        return len(self.ids[place])

    async def extend(self, rows: Mapping[int, Sequence[int]]) -> dict[int, np.ndarray]:
        assert not self.closed and all(rows.values())
        for place, ids in rows.items():
            self.ids[place] += ids
            assert len(self.ids[place]) <= self.room
        if self.breaks:
            raise KeyboardInterrupt
        self.reads.append({place: len(ids) for place, ids in rows.items()})
        return {place: self._says(self.ids[place]) for place in rows}

    def truncate(self, place: int, length: int) -> None:
        assert length <= len(self.ids[place])
        del self.ids[place][length:]

    def close(self) -> None:
        self.closed = True


class Machine:
    """Keeps one `Fake`, as a model does, with memory for so many tokens in all."""

    def __init__(self, says: Says, memory: int = 1 << 20, least: int = 1) -> None:
        self._says, self._memory, self._least = says, memory, least
        self.turn = Turn("the machine")
        self.opened: list[tuple[int, int]] = []
        self.kept: Places | None = None

    async def open(self, places: int, least: int, wanted: int) -> Places:
        if self.kept is None or not self.kept.allow(places, least):
            wanted = max(wanted, self._least)
            if places * wanted > self._memory:
                raise OutOfMemoryError(f"{places} x {wanted}")
            self.opened.append((places, wanted))
            self.kept = Places(b"", Fake(self._says, places, wanted))
        return self.kept

    @property
    def fake(self) -> Fake:
        assert self.kept is not None
        found: Any = self.kept.sequences
        return found

    def run(self, tokenizer: Tokenizer, *requests: Request, context: int = 2000) -> list[Piece]:
        async def all_pieces() -> list[Piece]:
            return [piece async for piece in self.start(tokenizer, *requests, context=context)]

        return asyncio.run(all_pieces())

    def start(
        self, tokenizer: Tokenizer, *requests: Request, context: int = 2000
    ) -> AsyncGenerator[Piece, None]:
        rows = [Row(i, one, list(one.prompt), tokenizer, context) for i, one in enumerate(requests)]
        return generate(self.open, self.turn, rows)


def script(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int]) -> Says:
    """A model that says just this after a prompt, then its end."""
    assert tokenizer.eos_id is not None
    whole = [*prompt, *answer, tokenizer.eos_id]

    def says(row: list[int]) -> np.ndarray:
        assert row == whole[: len(row)]
        logits = np.full(tokenizer.vocab_size, -5.0, np.float32)
        logits[whole[len(row)]] = 5
        return logits

    return says


def hashed(size: int, spread: float = 1.0) -> Says:
    """A model whose logits follow from all tokens of a row, differently for each row."""

    def says(row: list[int]) -> np.ndarray:
        return np.random.default_rng(row).normal(0, spread, size).astype(np.float32)

    return says


BYTES = load_tokenizer(vocabs.spm(), "bytes")  # of letters, and bytes for all else
LEVEL = load_tokenizer(
    vocabs.bpe("h e", "l l", "Ġ w", "he ll", "d E", "N D", "o Ġw", "Ã ¶"), "byte-level"
)


def pieces_of(tokenizer: Tokenizer, answer: Sequence[int], **how: Any) -> list[Piece]:
    prompt = tokenizer.encode("Say:")
    return Machine(script(tokenizer, prompt, answer)).run(tokenizer, Request(prompt, **how))


def said(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that goes on behind another one."""
    return tokenizer.encode("Say:" + text)[len(tokenizer.encode("Say:")) :]


def text_of(pieces: Iterable[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.index == index)


# ---- stops and characters ----------------------------------------------------------------------

TEXT = "hello wörld ENd €🙂 END and more"


@pytest.mark.parametrize("tokenizer", [BYTES, LEVEL], ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("stops", "left"),
    [
        ((), TEXT),
        (("END",), "hello wörld ENd €🙂 "),
        (("nothing", "ENDx", "END and more!"), TEXT),
        (("€🙂 E", "🙂"), "hello wörld ENd €"),
        ((" ",), "hello"),
        (("h",), ""),
        (("more",), TEXT[:-4]),
        (("ld END", "ö", "llo w"), "he"),
    ],
)
def test_text_up_to_a_stop_string(tokenizer: Tokenizer, stops: tuple[str, ...], left: str) -> None:
    """Over token borders, within tokens, within characters; bytes of the tokens are the text's."""
    pieces = pieces_of(tokenizer, said(tokenizer, TEXT), stop=stops)
    assert text_of(pieces) == left and pieces[-1].finish == "stop"
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert all(piece.text for piece in pieces[:-1])
    assert not any(piece.finish for piece in pieces[:-1])
    spelled = b"".join(token.text for piece in pieces for token in piece.tokens)
    assert spelled.startswith(left.encode()) and TEXT.encode().startswith(spelled)
    for piece in pieces[:-1]:
        spelled = b"".join(token.text for token in piece.tokens)
        assert spelled.decode("utf-8", "ignore") or piece.text


def test_pieces_come_as_early_as_can_be() -> None:
    ids = said(BYTES, "aEbENcENDd")
    texts = [piece.text for piece in pieces_of(BYTES, ids, stop=("END",))]
    assert texts == ["a", "Eb", "ENc", ""]
    assert [piece.text for piece in pieces_of(BYTES, ids)] == [*"aEbENcENDd", ""]


@pytest.mark.parametrize("cut", range(1, 7))
def test_the_first_stop_string_to_end_counts_however_text_is_cut(cut: int) -> None:
    for text, stops, left in (
        ("xabcdy", ("abcd", "bc"), "xa"),
        ("xabcdy", ("bcd", "cd"), "xa"),
        ("aabab", ("abab",), "a"),
        ("ab", ("abc",), "ab"),
    ):
        finder, out, found = StopFinder(stops), "", False
        for at in range(0, len(text), cut):
            if not found:
                more, found = finder.add(text[at : at + cut])
                out += more
        assert out + ("" if found else finder.end()) == left, (text, stops)


def test_a_character_that_never_ends_is_shown_so() -> None:
    euro = [3 + byte for byte in "€".encode()]
    pieces = pieces_of(BYTES, [*said(BYTES, "a"), *euro[:2]])
    assert text_of(pieces) == "a\ufffd"
    assert [token.id for piece in pieces for token in piece.tokens][-2:] == euro[:2]
    assert text_of(pieces_of(BYTES, [*euro[:2], *euro], max_tokens=4)) == "\ufffd\ufffd"


def test_tokens_go_with_the_text_they_end_in() -> None:
    euro = [3 + byte for byte in "€".encode()]
    ids = [*said(BYTES, "a"), *euro, *said(BYTES, "b")]
    pieces = pieces_of(BYTES, ids)
    assert [(p.text, [token.id for token in p.tokens]) for p in pieces if p.text] == [
        ("a", said(BYTES, "a")),
        ("€", euro),
        ("b", said(BYTES, "b")),
    ]


def test_tokens_of_a_stop_string_are_left_out() -> None:
    pieces = pieces_of(LEVEL, said(LEVEL, "hello wENDx"), stop=("wEND",))
    ids = [token.id for piece in pieces for token in piece.tokens]
    assert LEVEL.decode(ids) == "hello w"  # `o w` is one token, of which one character is text
    assert text_of(pieces) == "hello "


# ---- how an answer ends, and what is known of its tokens ---------------------------------------


@pytest.mark.parametrize(
    ("most", "n", "finish"),
    [(None, 9, "stop"), (20, 9, "stop"), (9, 9, "length"), (8, 8, "length"), (0, 0, "length")],
)
def test_the_number_of_tokens(most: int | None, n: int, finish: str) -> None:
    answer = said(LEVEL, "hello and more")[:9]
    assert len(answer) == 9
    pieces = pieces_of(LEVEL, answer, max_tokens=most)
    assert [token.id for piece in pieces for token in piece.tokens] == answer[:n]
    assert [piece.finish for piece in pieces if piece.finish] == [finish]


def test_without_a_number_of_tokens_the_context_decides_or_256() -> None:
    def says(row: list[int]) -> np.ndarray:
        return np.eye(LEVEL.vocab_size, dtype=np.float32)[70]

    machine = Machine(says)
    for context, n in ((2000, MAX_TOKENS), (12, 9), (4, 1)):
        pieces = machine.run(LEVEL, Request([1, 2, 3]), context=context)
        assert sum(len(piece.tokens) for piece in pieces) == n
        assert pieces[-1].finish == "length"


@pytest.mark.parametrize(
    ("prompt", "most", "said"),
    [
        (10, None, r"the prompt has 10 tokens, which leaves no room for an answer: .* 10 tokens"),
        (1234, 1, r"the prompt has 1,234 tokens, which"),
        (9, 2, r"max_tokens = 2: the prompt has 9 tokens, and .* of 10 has room for 1 more"),
    ],
)
def test_what_the_context_has_no_room_for(prompt: int, most: int | None, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Machine(hashed(9)).run(LEVEL, Request([1] * prompt, most), context=10)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("max_tokens", value) for value in (-1, 1.0, "3", True)),
        *(("logprobs", value) for value in (-1, True, "x")),
        *(("stop", value) for value in ("END", [""], [3], None, b"x", 5)),
        *(("sampling", value) for value in (None, {}, 0.7)),
    ],
)
def test_requests_that_cannot_be(setting: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{setting} = .*: allowed "):
        Request([1], **{setting: value})


def test_log_probabilities_come_when_asked_for() -> None:
    size = LEVEL.vocab_size
    says = hashed(size)
    how = Sampling(1.5, top_k=3, repeat_penalty=1.3, seed=5)
    pieces = Machine(says).run(LEVEL, Request([5, 6], 12, how, logprobs=2))
    row = [5, 6]
    for token in (token for piece in pieces for token in piece.tokens):
        logits = says(row).astype(np.float64)
        exact = logits - np.log(np.exp(logits).sum())
        assert abs(token.logprob - exact[token.id]) < 1e-12  # of the raw logits
        best = np.argsort(-logits)[:2].tolist()
        assert token.top == tuple((i, pytest.approx(exact[i])) for i in best)
        row.append(token.id)
    assert len(row) > 8
    plain = Machine(says).run(LEVEL, Request([5, 6], 12, how))
    assert [p.text for p in plain] == [p.text for p in pieces]
    assert all(np.isnan(token.logprob) and not token.top for p in plain for token in p.tokens)


def test_logits_that_are_no_numbers_end_the_answer_with_an_error() -> None:
    def says(row: list[int]) -> np.ndarray:
        return np.full(LEVEL.vocab_size, np.nan if len(row) == 4 else 0.0, np.float32)

    with pytest.raises(NonFiniteError, match=r"token 3 of the answer: "):
        Machine(says).run(LEVEL, Request([1, 2], 9))


# ---- many at once ------------------------------------------------------------------------------


def requests() -> list[Request]:
    rng = np.random.default_rng(4)
    out = []
    for i in range(7):
        prompt = rng.integers(0, 256, 3 + 5 * i % 17).tolist()
        how = Sampling() if i % 3 == 0 else Sampling(1.0, top_k=30 * i, top_p=0.95, seed=i)
        out.append(Request(prompt, 3 + 7 * i % 20, how, ("e", "Q") if i % 2 else ()))
    return out


@pytest.mark.parametrize("memory", [1 << 20, 100, 65, 40])
def test_each_of_many_is_what_it_is_alone(memory: int) -> None:
    says = hashed(LEVEL.vocab_size)
    alone = [Machine(says).run(LEVEL, one) for one in requests()]
    machine = Machine(says, memory)
    together = machine.run(LEVEL, *requests())
    for i, pieces in enumerate(alone):
        found = [piece for piece in together if piece.index == i]
        assert [(p.text, p.finish) for p in found] == [(p.text, p.finish) for p in pieces]
        assert [p.tokens for p in found] == [p.tokens for p in pieces] or all(
            np.isnan(token.logprob) for p in found for token in p.tokens
        )
    most = max(map(len, machine.fake.reads))
    assert (most == 7) == (memory > 1000) and (most < 3) == (memory < 70)


def test_no_memory_for_one_is_an_error() -> None:
    with pytest.raises(OutOfMemoryError):
        Machine(hashed(LEVEL.vocab_size), 10).run(LEVEL, *requests())


def test_room_grows_as_an_answer_does() -> None:
    machine = Machine(lambda row: np.eye(LEVEL.vocab_size, dtype=np.float32)[len(row) % 250])
    pieces = machine.run(LEVEL, Request([1, 2], 700))
    assert sum(len(piece.tokens) for piece in pieces) == 700
    rooms = [room for _, room in machine.opened]
    assert rooms[0] < 300 and rooms[-1] >= 701 and len(rooms) < 5
    assert all(a < b for a, b in pairwise(rooms))


# ---- places: kept, reused, given up ------------------------------------------------------------


def test_what_was_read_is_not_read_again() -> None:
    machine = Machine(hashed(LEVEL.vocab_size), least=64)
    first = machine.run(LEVEL, Request([1, 2, 3, 4, 5, 6], 4))
    said = [token.id for piece in first for token in piece.tokens]
    reads = machine.fake.reads
    assert reads == [{0: 6}, {0: 1}, {0: 1}, {0: 1}][: len(reads)]
    del reads[:]
    machine.run(LEVEL, Request([1, 2, 3, 4, 5, 6, *said, 7, 8], 1))
    assert reads == [{0: 3}]  # the last token said was never read
    del reads[:]
    machine.run(LEVEL, Request([1, 2, 3, 9], 1))
    machine.run(LEVEL, Request([1, 2, 3, 9], 1))
    machine.run(LEVEL, Request([1, 2], 1))
    assert reads == [{0: 1}, {0: 1}, {0: 1}]


def test_a_request_takes_the_place_that_knows_most_of_it() -> None:
    machine = Machine(hashed(LEVEL.vocab_size), least=64)
    machine.run(LEVEL, Request([1] * 5, 1), Request([2] * 6, 1), Request([3] * 7, 1))
    machine.fake.reads.clear()
    machine.run(LEVEL, Request([3] * 4 + [9], 1), Request([2] * 6 + [9], 1))
    assert machine.fake.reads == [{2: 1, 1: 1}]


def test_an_answer_broken_off_leaves_the_rest_usable() -> None:
    async def some(machine: Machine) -> None:
        answers = machine.start(LEVEL, Request([1, 2, 3], 50), Request([4, 5], 50))
        async for _ in answers:
            break
        await answers.aclose()

    machine = Machine(hashed(LEVEL.vocab_size), least=64)
    asyncio.run(some(machine))
    machine.fake.reads.clear()
    machine.run(LEVEL, Request([4, 5, 9], 1))
    assert machine.fake.reads == [{1: 1}]


@pytest.mark.parametrize("memory", [1000, 64])
def test_two_answers_under_way_do_not_disturb_each_other(memory: int) -> None:
    """Each gets a place of its own; where memory has one, they read again, and say the same."""
    says = hashed(LEVEL.vocab_size)
    asked = [Request([1, 2, 3, 4], 9, Sampling(1.0)), Request([4, 5, 6], 9, Sampling(1.0, seed=3))]
    machine = Machine(says, memory, least=64)

    async def both() -> list[str]:
        texts = {machine.start(LEVEL, one): "" for one in asked}
        ended: set[Any] = set()
        while len(ended) < 2:
            for answers in texts:
                piece = await anext(answers, None)
                if piece is None:
                    ended.add(answers)
                else:
                    texts[answers] += piece.text
        return list(texts.values())

    found = asyncio.run(both())
    assert found == [text_of(Machine(says).run(LEVEL, one)) for one in asked]
    assert machine.opened[:2] == [(1, 64), (2, 64)][: 1 + (memory == 1000)]
    again = [n for read in machine.fake.reads for n in read.values() if n > 1]
    assert (len(again) == 2) == (memory == 1000)
    gc.collect()
    places = machine.kept
    assert places is not None and places.others([]) == 0


def test_an_interrupt_while_reading_forgets_what_was_read() -> None:
    machine = Machine(hashed(LEVEL.vocab_size), least=64)
    expected = text_of(machine.run(LEVEL, Request([1, 2, 3], 5)))
    machine.fake.breaks = True
    with pytest.raises(KeyboardInterrupt):
        machine.run(LEVEL, Request([1, 2, 3, 4], 5))
    machine.fake.breaks = False
    machine.fake.reads.clear()
    assert text_of(machine.run(LEVEL, Request([1, 2, 3], 5))) == expected
    assert machine.fake.reads[0] == {0: 3}


def test_an_interrupt_at_any_line_leaves_no_wrong_rows() -> None:
    says = hashed(9)

    def read(places: Places, ids: list[int]) -> np.ndarray:
        return asyncio.run(places.read({0: ids}))[0]

    at, interrupted = 0, 0
    while interrupted == at:
        at += 1
        places = Places(b"", Fake(says, 1, 64))
        read(places, [1, 2, 7])
        try:
            with Lines(at).watched():
                read(places, [1, 2, 3, 4])
        except KeyboardInterrupt:
            interrupted += 1
        np.testing.assert_array_equal(read(places, [1, 2, 3]), says([1, 2, 3]), f"line {at}")
    assert interrupted > 15


# ---- a model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as opened:
        yield opened


@pytest.mark.gpu
def test_a_model_draws_the_same_alone_and_beside_others(model: Any) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 90, n).tolist() for n in (5, 9, 2)]
    asked = [Request(p, 6, Sampling(1.0, seed=i)) for i, p in enumerate(prompts)]
    alone = ["".join(p.text for p in model.answers([one])) for one in asked]
    together = list(model.answers(asked))
    assert [text_of(together, i) for i in range(3)] == alone
    assert len(set(alone)) == 3
    assert alone != ["".join(p.text for p in model.answers([Request(q, 6)])) for q in prompts]


@pytest.mark.gpu
def test_generate_takes_every_setting(model: Any) -> None:
    how = {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repeat_penalty": 1.1}
    text = "".join(model.generate("ab", 12, seed=4, **how))
    ids = model.tokenizer.encode("ab", bos=model.tokenizer.add_bos, special=True)
    (request,) = [Request(ids, 12, Sampling(**how, seed=4))]
    assert text == "".join(p.text for p in model.answers([request])) != ""
    assert text != "".join(model.generate("ab", 12, seed=5, **how))
    cut = "".join(model.generate("ab", 12, seed=4, stop=text[3:5], **how))
    assert cut == text[: text.index(text[3:5])]
    for wrong in ({"template_args": {"a": 1}}, {"system": "merge"}):
        with pytest.raises(OptionError, match=r"a text goes through no chat template"):
            next(model.generate("ab", **wrong))
    with pytest.raises(OptionError, match=r"prompt has 200 tokens, .* context is 128 tokens"):
        next(model.answers([Request([5] * 200)]))
    for stop in (None, 5, b"x", {"x": 1}):
        with pytest.raises(OptionError, match=r"stop = .*: allowed are texts"):
            next(model.generate("ab", stop=stop))
    for requests in (Request([5]), None, [5], [{"prompt": [5]}]):
        with pytest.raises(OptionError, match=r"requests = .*: a list of them is needed"):
            next(model.answers(requests))


@pytest.mark.gpu
def test_the_awaitable_forms(model: Any) -> None:
    async def run() -> tuple[str, list[list[int]], str]:
        text = [piece async for piece in model.aio.generate("ab", 8)]
        made = await model.aio.complete([[5, 6]], 8)
        pieces = [piece async for piece in model.aio.answers([Request([5, 6], 8)])]
        return "".join(text), made, text_of(pieces)

    text, made, answer = asyncio.run(run())
    assert text == "".join(model.generate("ab", 8))
    assert made == model.complete([[5, 6]], 8) and len(made[0]) == 8
    assert answer == model.tokenizer.decode([5, 6, *made[0]])[len(model.tokenizer.decode([5, 6])) :]


@pytest.mark.gpu
def test_a_loop_that_is_left_frees_the_model(model: Any) -> None:
    for _ in model.generate("ab", 30):
        break
    answers = model.generate("ab", 30)
    next(answers)
    before = model.logits([5, 6])  # also while one is under way
    assert np.array_equal(before, model.logits([5, 6]))
    rest = "".join(answers)
    assert rest == "".join(list(model.generate("ab", 30))[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["answer", "logits"])
def test_what_an_interrupt_kept_from_closing_is_not_used_again(
    model: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def ask(n: int) -> Any:
        if way == "logits":
            return model.logits([5] * n).tolist()
        return text_of(model.answers([Request([5] * n, 5)]))

    def interrupted(self: Plan) -> None:
        close(self)
        raise KeyboardInterrupt

    close = Plan.close
    model._kept.drop_places()
    model._kept.drop_session()
    expected, before = ask(3), model.device.allocated
    monkeypatch.setattr(Plan, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(100)  # which needs more room
    monkeypatch.undo()
    assert ask(3) == expected
    assert model.device.allocated == before


@pytest.mark.gpu
def test_threads_ask_at_the_same_time(model: Any) -> None:
    """Each waits for its turn at every token, and gets what it gets alone."""
    prompts = ["ab", "abc", "b", "ba"]

    def ask(prompt: str) -> str:
        seed = len(prompt) + ord(prompt[0])
        return "".join(model.generate(prompt, 12, 1.0, seed=seed))

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, prompts * 2)) == alone * 2


@pytest.mark.gpu
def test_memory_decides_how_many_run_at_once_and_how_far(model: Any) -> None:
    rng = np.random.default_rng(1)
    asked = [Request(rng.integers(3, 90, 30).tolist(), 20, Sampling(1.0, seed=i)) for i in range(6)]
    expected = list(model.answers(asked))
    many = model._kept.places.sequences
    assert many.places == 6 and many.room == 64
    model._kept.drop_places()
    wgtrain.run(model._kept.places_for(model.host, model.stack([]), 2, 64, 64))
    two = model.device.allocated
    model._kept.drop_places()
    kept, model.device.budget = model.device.budget, two
    try:
        found = list(model.answers(asked))
        assert model._kept.places.sequences.places < 6
        for i in range(6):
            assert text_of(found, i) == text_of(expected, i)
        model._kept.drop_places()
        model.device.budget = model.device.allocated + 1000
        with pytest.raises(OutOfMemoryError, match="no room for more than the 30 tokens of the"):
            list(model.answers(asked))
    finally:
        model.device.budget = kept
    assert text_of(model.answers(asked[:1])) == text_of(expected)


@pytest.mark.gpu
def test_the_guide_runs(capsys: Any) -> None:
    """The Python of docs/generate.md, as it stands."""
    text = (ROOT / "docs" / "generate.md").read_text("utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert all(names["answers"]) and names["messages"][1]["role"] == "assistant"
    assert "0 ended: " in capsys.readouterr().out
    names["model"].close()
