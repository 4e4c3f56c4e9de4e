"""Adapters at run time: one product for all that are loaded, and what it takes to change them."""

from collections.abc import Iterator, Sequence
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import pytest
import tiny
from figures import record
from kernel_check import Packed, pack_weight
from test_linear import Stage, T

import wgtrain
from wgtrain.data import Dataset, Row
from wgtrain.engine.graph import Graph
from wgtrain.engine.linear import Linear
from wgtrain.engine.stacked import Stacked, Use
from wgtrain.engine.structs import step_bytes
from wgtrain.engine.tuning import DEFAULT_CPU, Choice, Tuning
from wgtrain.engine.weight import FORMATS, Weight
from wgtrain.errors import FileError, OptionError, OutOfMemoryError
from wgtrain.files import Adapter
from wgtrain.infer import slots as slots_module

pytestmark = pytest.mark.gpu
TOKENS = np.random.default_rng(1).integers(0, 97, 21).tolist()
Pairs = Sequence[tuple[Any, float]]


def adapter(rank: int, seed: int, *targets: str, architecture: str = "llama") -> Adapter:
    """A random one for the tiny model of that name, beside linears whose names begin so."""
    shapes = tiny.tiny(architecture).spec
    names = [n for n in tiny.targets(shapes, [*shapes.linears, "output"]) if matches(n, targets)]
    pairs = tiny.random_adapter(shapes, names, rank, seed)
    return Adapter(architecture, rank, 2.0 * rank, pairs)


def matches(name: str, targets: Sequence[str]) -> bool:
    return not targets or any(name == target or f".{target}" in name for target in targets)


ALL, FFN, ATTENTION = adapter(3, 1), adapter(8, 2, "ffn", "output"), adapter(5, 3, "attn")
WIDE = [adapter(8, seed) for seed in range(10, 16)]


def loaded() -> Any:
    return wgtrain.load_model(tiny.tiny("llama").gguf, limits="default")


@pytest.fixture
def model() -> Iterator[Any]:
    with loaded() as opened:
        yield opened


FRESH: dict[Any, tuple[Pairs, np.ndarray]] = {}  # by what they are under, which stays


def fresh(pairs: Pairs) -> np.ndarray:
    """Logits of a model that never had another stack; made once."""
    key = tuple((id(one), scale) for one, scale in pairs)
    if key not in FRESH:
        with loaded() as opened:
            FRESH[key] = pairs, opened.logits(TOKENS, pairs)
    return FRESH[key][1]


def same(model: Any, pairs: Pairs | None, wanted: Pairs) -> None:
    np.testing.assert_array_equal(model.logits(TOKENS, pairs), fresh(wanted))


# --- the product --------------------------------------------------------------------------------

K, OUTPUTS = 256, {"one": 37, "two": 70}
_TILES = tuple({"TILE_ROWS": 4, "TILE_COLS": 8, "LANE_ROWS": 2, "LANE_COLS": 2}.items())
SMALL = Tuning({**DEFAULT_CPU.table, "nt": Choice("matmul_nt", _TILES)}, "made by a test")
PLACES = {"x": [0, 2], "y": [1], "z": [3, 4, 6]}  # quads of three adapters of seven
RANKS = {"x": 8, "y": 3, "z": 9}
BESIDE = {"x": ("one", "two"), "y": ("two",), "z": ("one",)}


def put(device: Any, weight: Weight, packed: Packed) -> None:
    for name, window in weight.operands(*weight.segments).items():
        device.write(window.storage.live, window.offset, packed.planes[name])


def walk(device: Any, packed: dict[str, Packed], x: np.ndarray, pairs: Any, uses: Any) -> Any:
    """What two linears of one x make, at each of some lists of (adapter, strength)."""
    stage, limits = Stage(device), device.limits
    groups = [{name: (rows, K) for name, rows in OUTPUTS.items()}]
    stacked = Stacked(groups, 7, limits)
    stacked.open(device)
    stage.g = Graph(tuning=SMALL)
    source, left = stage.tensor("x", x), {}
    for name, rows in OUTPUTS.items():
        weight = packed[name].shape
        stage.storages += [segment.storage for segment in weight.segments]
        linear = Linear(weight, None, stacked.beside[name])
        left[name] = stage.storage(name, rows)
        linear.apply(stage.g, source, name).forward(stage.g, left[name].window(), linear.rows)
    stage.run([], step_bytes(T, T))
    for one in packed.values():
        put(device, one.shape, one)
    for name, quads in PLACES.items():
        stacked.load(quads, {beside: pairs[name, beside] for beside in BESIDE[name]})
    found = []
    for use in uses:
        stacked.use([Use(quad, strength) for name, strength in use for quad in PLACES[name]])
        stage.plan.run("all", step_bytes(T, T), T, T)
        found.append({name: stage.read(left[name], rows) for name, rows in OUTPUTS.items()})
    dispatches = len(stage.plan.launches["all"])
    stage.plan.close()
    stacked.close()
    return found, dispatches


USES = [
    [],
    [("x", 1.0)],
    [("y", -1.0)],
    [("z", 0.5), ("x", 2.0), ("y", 1.0)],
    [("y", 1.0), ("x", 0.25)],
]


@pytest.mark.parametrize("type_", sorted(FORMATS))
def test_the_product_beside_every_type_of_weight(device: Any, type_: str) -> None:
    """x W^T + sum of strength x A^T B^T in float64; z is one dispatch for both linears."""
    rng = np.random.default_rng(5)
    packed = {n: pack_weight(rng.standard_normal((rows, K)), type_) for n, rows in OUTPUTS.items()}
    x = rng.standard_normal((T, K), np.float32)
    pairs = {
        (name, beside): (
            rng.standard_normal((RANKS[name], K), np.float32),
            rng.standard_normal((OUTPUTS[beside], RANKS[name]), np.float32),
        )
        for name, linears in BESIDE.items()
        for beside in linears
    }
    found, dispatches = walk(device, packed, x, pairs, USES)
    assert dispatches == 4  # x is copied in, z, two products
    wide = x.astype(np.float64)
    for use, got in zip(USES, found, strict=True):
        for beside, weight in packed.items():
            want = wide @ weight.values.T
            for name, strength in use:
                if beside in BESIDE[name]:
                    a, b = (m.astype(np.float64) for m in pairs[name, beside])
                    want += strength * wide @ a.T @ b.T
            off = float(np.linalg.norm(got[beside] - want) / np.linalg.norm(want))
            assert off < 8e-7, (use, beside)
            if use:
                other = np.linalg.norm(got[beside] - wide @ weight.values.T)
                assert (other > 0.01 * np.linalg.norm(want)) == any(
                    beside in BESIDE[n] for n, _ in use
                )


# --- changes between requests ---------------------------------------------------------------------


def test_changes_give_the_numbers_of_a_fresh_model(model: Any) -> None:
    """Bit by bit, whatever lay in the same place before."""
    adapters = model.adapters
    assert adapters.load(ALL, 1.0, "all") == "all"
    same(model, None, [(ALL, 1.0)])
    adapters.load(FFN, 0.5, "ffn")
    same(model, None, [(ALL, 1.0), (FFN, 0.5)])
    adapters.rescale("all", -1.0)
    same(model, None, [(ALL, -1.0), (FFN, 0.5)])
    adapters.remove("all")
    same(model, None, [(FFN, 0.5)])
    adapters.load(ATTENTION, 1.0, "attention")
    same(model, None, [(FFN, 0.5), (ATTENTION, 1.0)])
    adapters.load(ALL, 0.0, "nothing")
    same(model, None, [(FFN, 0.5), (ATTENTION, 1.0)])
    adapters.clear()
    same(model, None, [])
    assert [*adapters] == []


def test_the_adapters_of_a_request_are_its_own(model: Any) -> None:
    model.adapters.load(ALL, 0.5, "all")
    default = model.logits(TOKENS)
    for own in ([], [(FFN, 1.0)], [(ATTENTION, -1.0), (FFN, 0.5)], [(ALL, 1.0)]):
        same(model, own, own)
        np.testing.assert_array_equal(model.logits(TOKENS), default)
    assert [*model.adapters] == [("all", 0.5)]
    np.testing.assert_array_equal(default, fresh([(ALL, 0.5)]))


def test_the_same_one_twice_counts_twice(model: Any) -> None:
    model.logits(TOKENS, [(ALL, 1.0), (FFN, 1.0)])
    same(model, [(ALL, 0.25), (FFN, 1.0), (ALL, 0.5)], [(ALL, 0.75), (FFN, 1.0)])
    same(model, [(ALL, 0.5), (ALL, -0.5)], [])


def test_answers_under_different_stacks_take_turns(model: Any) -> None:
    """Each token is that of the uncached forward under its own stack."""
    stacks: list[Pairs] = [[(ALL, 1.0)], [], [(FFN, -1.0), (ATTENTION, 1.0)]]

    def greedy(pairs: Pairs) -> Iterator[int]:
        ids = [5, 9, 2]
        while True:
            ids.append(int(model.logits(ids, pairs)[-1].argmax()))
            yield ids[-1]

    wanted = [[next(made) for _ in range(6)] for made in map(greedy, stacks)]
    assert len({tuple(tokens) for tokens in wanted}) == 3
    places = [partial(model._kept.places_for, model.host, model.stack(pairs)) for pairs in stacks]
    for rounds in range(2):  # the second finds places that hold rows of other stacks
        rows = [[5, 9, 2] for _ in stacks]
        for _ in range(6):
            for row, opened in zip(rows, places, strict=True):
                kept = wgtrain.run(opened(1, len(row), 64))
                logits = wgtrain.run(kept.read({0: row}))[0]
                row.append(int(logits.argmax()))
        assert [row[3:] for row in rows] == wanted, rounds


def test_rows_under_different_stacks_keep_their_places(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each only the new token is read, though another one was read under another stack."""
    stacks = [model.stack([(ALL, 1.0)]), model.stack([]), model.stack([(FFN, 0.5)])]
    model.logits(TOKENS, [(ALL, 1.0), (FFN, 0.5)])
    kept = wgtrain.run(model._kept.places_for(model.host, stacks[0], 3, 8, 64))
    extend, counts = kept.sequences.extend, []

    async def counted(rows: Any) -> Any:
        counts.append([len(tokens) for tokens in rows.values()])
        return await extend(rows)

    monkeypatch.setattr(kept.sequences, "extend", counted)
    for length in (5, 6, 7):
        for place, stack in enumerate(stacks):
            assert wgtrain.run(model._kept.places_for(model.host, stack, 3, 8, 64)) is kept
            ids = TOKENS[:length]
            logits = wgtrain.run(kept.read({place: ids}))[place]
            wanted = model.logits(ids, stack)[-1]
            assert np.abs(logits - wanted).max() < 1e-5 * np.ptp(wanted)
    assert counts == [[5]] * 3 + [[1]] * 6
    wgtrain.run(model._kept.places_for(model.host, stacks[2], 3, 8, 64))
    wgtrain.run(kept.read({0: TOKENS[:7]}))
    assert counts[-1] == [7], "what was read under another stack is of no use"


def test_no_new_plan_while_there_is_room(model: Any) -> None:
    model.adapters.load(WIDE[0], name="0")
    model.adapters.load(WIDE[1], name="1")
    model.logits(TOKENS)
    session, stacked = model._kept.session, model._kept.slots.stacked
    assert stacked.quads == 4 + 4
    model.adapters.rescale("1", 0.5)
    model.adapters.remove("0")
    model.logits(TOKENS)
    model.adapters.load(ALL)
    model.logits(TOKENS)
    model.logits(TOKENS, [])
    model.logits(TOKENS, [(WIDE[1], 1.0), (adapter(4, 5, "attn"), 1.0)])
    assert (model._kept.session, model._kept.slots.stacked) == (session, stacked)
    model.adapters.load(WIDE[2])
    model.logits(TOKENS)
    assert (model._kept.session, model._kept.slots.stacked) == (session, stacked)
    model.adapters.load(WIDE[3])
    model.adapters.load(WIDE[4])
    model.logits(TOKENS)
    assert model._kept.session is not session and model._kept.slots.stacked.quads > 8


def test_a_linear_that_none_targeted_takes_a_new_plan(model: Any) -> None:
    model.logits(TOKENS, [(FFN, 1.0)])
    before = model._kept.slots.stacked
    assert {name.split(".")[-2][:3] for name in before.beside} == {"ffn", "out"}
    same(model, [(ATTENTION, 1.0)], [(ATTENTION, 1.0)])
    after = model._kept.slots.stacked
    assert after is not before and before.beside.keys() < after.beside.keys()
    same(model, [(FFN, 1.0)], [(FFN, 1.0)])
    assert model._kept.slots.stacked is after, "it was brought along"


def test_the_least_recently_used_one_gives_way(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "SPARE", 4)
    writes: list[int] = []
    load = Stacked.load
    monkeypatch.setattr(
        Stacked, "load", lambda self, quads, pairs: (writes.append(1), load(self, quads, pairs))[1]
    )
    for which, loads in ((0, 1), (1, 1), (0, 0), (2, 1), (0, 0), (1, 1), (2, 1), (1, 0)):
        before = len(writes)
        same_as = model.logits(TOKENS, [(WIDE[which], 1.0)])
        assert len(writes) - before == loads, which
        np.testing.assert_array_equal(same_as, fresh([(WIDE[which], 1.0)]))
        writes[before:] = [1] * loads
    assert model._kept.slots.stacked.quads == 4
    same(model, [(one, 0.5) for one in WIDE], [(one, 0.5) for one in WIDE])
    assert model._kept.slots.stacked.quads == 12 + 4


def test_what_lies_in_a_place_that_is_not_in_use_has_no_effect(model: Any) -> None:
    """Not even where its numbers overflow: 0 times infinity is no number."""
    huge = Adapter("llama", 3, 6.0, {n: (a * 1e38, b * 1e38) for n, (a, b) in ALL.tensors.items()})
    with np.errstate(all="ignore"):
        assert not np.isfinite(model.logits(TOKENS, [(huge, 1.0)])).all()
    name = model.adapters.load(huge, 0.0)
    same(model, None, [])
    model.adapters.load(FFN)
    same(model, None, [(FFN, 1.0)])
    model.adapters.remove(name)
    for _ in range(2):  # now into its place, beside other linears
        model.adapters.load(FFN, 0.5)
        model.logits(TOKENS)
    same(model, None, [(FFN, 1.0), (FFN, 1.0)])
    same(model, [(ATTENTION, 1.0)], [(ATTENTION, 1.0)])


@pytest.mark.parametrize("what", ["load", "use"])
def test_a_change_that_was_cut_short_is_made_again(
    model: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its writes are on their way, and nobody heard of it."""
    first = model.logits(TOKENS, [(ALL, 1.0)])
    real = getattr(Stacked, what)

    def cut_short(self: Stacked, *given: Any) -> None:
        real(self, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Stacked, what, cut_short)
    with pytest.raises(KeyboardInterrupt):
        model.logits(TOKENS, [(FFN, 1.0)] if what == "load" else [(ALL, 0.5)])
    monkeypatch.undo()
    np.testing.assert_array_equal(model.logits(TOKENS, [(ALL, 1.0)]), first)
    same(model, [(ATTENTION, 1.0)], [(ATTENTION, 1.0)])


def test_a_load_that_was_cut_short_leaves_no_numbers(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie beside linears that the next adapter in their place does not target."""
    model.logits(TOKENS, [(adapter(4, 1), 1.0), (adapter(8, 2), 1.0)])
    slots, write, count = model._kept.slots, model.device.write, 0
    for key in [*slots._slots][1:]:
        slots.drop(key)
    stacked = slots.stacked
    stacked.load([1, 2], {})

    def some(*given: Any) -> None:
        nonlocal count
        write(*given)
        count += 1
        if count == 4:  # A and B of the second linear
            raise KeyboardInterrupt

    monkeypatch.setattr(model.device, "write", some)
    with pytest.raises(KeyboardInterrupt):
        model.logits(TOKENS, [(adapter(8, 3), 1.0)])
    monkeypatch.undo()
    found = model.logits(TOKENS, [(FFN, 1.0)])
    assert slots.stacked is stacked
    np.testing.assert_array_equal(found, fresh([(FFN, 1.0)]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_none_are_refused(model: Any, value: float, which: int) -> None:
    pairs = {name: (a.copy(), b.copy()) for name, (a, b) in ALL.tensors.items()}
    pairs["blk.1.ffn_up.weight"][which][1, 1] = value
    for scale in (1.0, 0.0):
        with pytest.raises(
            FileError, match="adapter: 'blk.1.ffn_up.weight': A .* of finite numbers"
        ):
            model.logits(TOKENS, [(Adapter("llama", 3, 6.0, pairs), scale)])


def test_one_rank_for_all(model: Any) -> None:
    mixed = Adapter("llama", 3, 6.0, {**ALL.tensors, **FFN.tensors})
    with pytest.raises(FileError, match="and rank 3 are needed"):
        model.adapters.load(mixed)


def test_threads_change_the_stack_while_others_ask(model: Any) -> None:
    """Each request gets the numbers of its own stack, or of a default stack that was one."""
    own = {0: [(FFN, 1.0)], 1: []}
    wanted = {which: model.logits(TOKENS, pairs) for which, pairs in own.items()}
    defaults = [model.logits(TOKENS, pairs) for pairs in ([], [(ALL, 1.0)], [(ALL, 0.5)])]
    wrong: list[str] = []

    def ask(which: int) -> None:
        for _ in range(15):
            if not np.array_equal(model.logits(TOKENS, own[which]), wanted[which]):
                wrong.append(f"own {which}")

    def ask_default() -> None:
        for _ in range(15):
            found = model.logits(TOKENS)
            if not any(np.array_equal(found, each) for each in defaults):
                wrong.append("default")

    def change() -> None:
        for _ in range(15):
            name = model.adapters.load(ALL)
            model.adapters.rescale(name, 0.5)
            model.adapters.remove(name)

    threads = [Thread(target=ask, args=(which,)) for which in own]
    threads += [Thread(target=ask_default), Thread(target=change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not len(model.adapters)


def test_beside_weights_in_f16(full_device: Any) -> None:
    """Their tiles take no adapter along: it is added in f32; changes are bit by bit the same."""
    if "f16" not in full_device.features:
        pytest.skip(f"{full_device.info.name} has no shader-f16")
    pairs = [(ALL, 1.0), (FFN, -0.5)]
    plain = {}
    for precision in ("f32", "f16"):
        with wgtrain.load_model(tiny.tiny("llama").gguf, precision=precision) as opened:
            base = opened.logits(TOKENS)
            plain[precision] = opened.logits(TOKENS, pairs) - base
            launches = opened._kept.session.plan.launches["body"]
            added = [launch.kernel.name for launch in launches].count("add_adapters")
            assert bool(added) == (precision == "f16")
            opened.logits(TOKENS, [(FFN, 1.0)])
            np.testing.assert_array_equal(opened.logits(TOKENS, pairs) - base, plain[precision])
    off = np.abs(plain["f16"] - plain["f32"]).max() / np.abs(plain["f32"]).max()
    assert 0 < off < 1e-2


# --- names ----------------------------------------------------------------------------------------


def test_names(model: Any, tmp_path: Any) -> None:
    (tmp_path / "run").mkdir()
    data = wgtrain.files.write_adapter_gguf(ALL)
    for place in ("run/adapter.gguf", "style.gguf"):
        (tmp_path / place).write_bytes(data)
    adapters = model.adapters
    assert repr(adapters) == "<Adapters none>" and len(adapters) == 0
    assert adapters.load(tmp_path / "run" / "adapter.gguf") == "run"
    assert adapters.load(str(tmp_path / "style.gguf"), 0.5) == "style"
    assert [adapters.load(data), adapters.load(adapters.read(data))] == ["adapter", "adapter-2"]
    assert repr(adapters) == "<Adapters run:1, style:0.5, adapter:1, adapter-2:1>"
    assert "style" in adapters and "other" not in adapters and len(adapters) == 4
    with pytest.raises(
        OptionError, match="name = style: an adapter of this name is loaded already"
    ):
        adapters.load(ALL, name="style")
    with pytest.raises(OptionError, match="name = '': a text is needed"):
        adapters.load(ALL, name="")
    for change in (adapters.remove, lambda name: adapters.rescale(name, 1.0)):
        with pytest.raises(
            OptionError, match="adapter 'other' is not loaded; loaded: 'run', 'style'"
        ):
            change("other")
    for scale in (np.nan, np.inf, "1", None, 1e300, 10**400):
        with pytest.raises(OptionError, match="^scale"):
            adapters.rescale("style", scale)
        with pytest.raises(OptionError, match="^scale"):
            adapters.load(ALL, scale)
    with pytest.raises(OptionError, match=r"style\.gguf: strength"):
        adapters.load(tmp_path / "style.gguf", 1e300)
    with pytest.raises(OptionError, match="^scale of style: strength"):
        adapters.rescale("style", 1e300)
    assert dict(adapters)["style"] == 0.5 and len(adapters) == 4


def test_an_adapter_read_for_another_model_is_checked_again(model: Any) -> None:
    one = model.adapters.read(ALL)
    with wgtrain.load_model(tiny.tiny("qwen2").gguf, limits="default") as other:
        for given in ([(one, 1.0)], model.stack([(one, 1.0)])):
            with pytest.raises(FileError, match="made for 'llama' models, this one is 'qwen2'"):
                other.logits(TOKENS, given)
        with pytest.raises(FileError, match="made for 'llama' models"):
            other.adapters.load(one)


def test_an_adapter_that_was_read_is_not_read_again(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = model.adapters.read(wgtrain.files.write_adapter_gguf(ALL))
    monkeypatch.setattr(model, "read_adapter", None)
    same(model, [(read, 0.5)], [(ALL, 0.5)])
    assert model.adapters.load(read, 0.5) == "adapter"
    same(model, None, [(ALL, 0.5)])


# --- memory ---------------------------------------------------------------------------------------


def test_memory_is_given_back(model: Any) -> None:
    before = model.device.allocated
    for _ in range(3):
        model.adapters.load(ALL)
        model.logits(TOKENS)
        assert model.device.allocated > before + model._kept.session.plan.nbytes
        model.adapters.clear()
        model.logits(TOKENS)
        assert model.device.allocated == before + model._kept.session.plan.nbytes
    device = model.device
    model.adapters.load(ALL)
    model.logits(TOKENS)
    model.close()
    assert device.allocated == 0
    with pytest.raises(wgtrain.DeviceLostError, match="the model was closed"):
        model.adapters.load(ALL)


def test_adapters_that_do_not_fit(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.device.allocated
    plain = model.logits(TOKENS)
    monkeypatch.setattr(model.device, "budget", before + 1000)
    with pytest.raises(OutOfMemoryError, match="adapters of 4 ranks need .* bytes beside"):
        model.logits(TOKENS, [(ALL, 1.0)])
    assert model.device.allocated == before
    monkeypatch.setattr(model.device, "budget", None)
    np.testing.assert_array_equal(model.logits(TOKENS), plain)
    monkeypatch.setattr(model.device, "budget", None)
    same(model, [(ALL, 1.0)], [(ALL, 1.0)])


@pytest.mark.parametrize("asked", ["logits", "answer"])
def test_adapters_of_other_requests_give_way(
    model: Any, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """With the room for more, where there is none for what a request needs itself."""

    def ask(pairs: Pairs) -> Any:
        if asked == "logits":
            return model.logits(TOKENS, pairs).tolist()
        return [*model.generate("ab", 20, 1.0, adapters=pairs)]

    one, other = [(WIDE[0], 1.0)], [(WIDE[1], 0.5)]
    expected = [ask(one), ask(other), ask([])]
    model._kept.close()
    stack = model.stack(one)
    wgtrain.run(model._kept.under(stack))
    assert model._kept.slots.shrink(stack) and not model._kept.slots.shrink(stack)
    ask(one)
    monkeypatch.setattr(model.device, "budget", model.device.allocated)
    model._kept.close()
    for _ in range(2):
        assert [ask(one), ask(other), ask([])] == expected


def test_what_can_be_made_again_gives_way(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To adapters, to an evaluation, and to each other: none is refused for what is only kept."""
    ids = np.arange(9, dtype=np.int32)
    rows = Dataset([Row(ids.astype(np.uint32), ids, 1)], "rows", 97)
    changed, before = fresh([(ALL, 1.0)]), model.device.allocated
    losses = model.evaluate(rows, [(ALL, 1.0)]).rows
    answer = [*model.generate("ab", 20, adapters=[(ALL, 1.0)])]
    model.adapters.clear()
    for kept in ("session", "places"):
        for asked in ("logits", "evaluation", "answer"):
            model._kept.close()
            monkeypatch.setattr(model.device, "budget", None)
            if kept == "session":
                model.logits([1] * 300)
            else:
                wgtrain.run(model._kept.places_for(model.host, model.stack([]), 8, 500, 500))
            assert model.device.allocated > before + (1 << 20)
            monkeypatch.setattr(model.device, "budget", model.device.allocated + 1000)
            if asked == "logits":
                np.testing.assert_array_equal(model.logits(TOKENS, [(ALL, 1.0)]), changed)
            elif asked == "evaluation":
                assert model.evaluate(rows, [(ALL, 1.0)]).rows == losses
            else:
                assert [*model.generate("ab", 20, adapters=[(ALL, 1.0)])] == answer
            assert (model._kept.session is None) == (asked != "logits")


# --- llama.cpp ------------------------------------------------------------------------------------

BOUND = 1e-5  # of the largest change of logits
GELU_BOUND = 4e-3  # where llama.cpp takes the activation from a table of f16
ORACLES = ["llama", "qwen2", "qwen3", "granite", "phi3", "starcoder2", "gemma2"]
SCALES: list[tuple[float, ...]] = [
    (1.0,), (0.5,), (0.0,), (-1.0,),
    (1.0, 0.5, 0.0), (0.5, 1.0, -1.0), (-1.0, 1.0), (0.0, 1.0), (1.0, 1.0, 1.0),
]  # fmt: skip


@pytest.mark.oracle
@pytest.mark.parametrize("name", ORACLES)
def test_stacks_beside_llama_cpp(name: str) -> None:
    """Up to three, of different ranks and targets, at scales 0, 0.5, 1 and -1; scales that are a
    little off miss.
    """
    from llama_cpp_oracle import LlamaCpp

    base = tiny.tiny(name)
    spec = base.spec
    linears = [*spec.linears, *([] if spec.tied else ["output"])]
    adapters = []
    for seed, (rank, names) in enumerate([(3, linears), (8, linears[-2:]), (5, linears[:2])]):
        pairs = tiny.random_adapter(spec, tiny.targets(spec, names), rank, seed, scale=0.6)
        adapters.append(Adapter(spec.architecture, rank, 1.5 * rank, pairs))
    bound = GELU_BOUND if spec.row.activation == "gelu" else BOUND
    judge = LlamaCpp(base.gguf)
    theirs = [judge.adapter(wgtrain.files.write_adapter_gguf(one)) for one in adapters]
    tokens = np.random.default_rng(2).integers(0, spec.vocab, 8 if spec.unseen_window else 23)

    def change(scales: Sequence[float]) -> np.ndarray:
        return judge.stacked(tokens, list(zip(theirs, scales, strict=False))) - plain[1]

    worst, nearest = 0.0, np.inf
    with wgtrain.load_model(base.gguf, limits="default") as model:
        plain = model.logits(tokens), judge.stacked(tokens, [])
        for scales in SCALES:
            stack = list(zip(adapters, scales, strict=False))
            ours = model.logits(tokens, stack) - plain[0]
            if not any(scales):
                assert not ours.any()
                continue
            wanted = change(scales)
            size = float(np.abs(wanted).max())
            assert size > 0.3 * plain[1].std(), "the stack must matter"
            worst = max(worst, float(np.abs(ours - wanted).max()) / size)
            off = change([scales[0] + 10 * bound, *scales[1:]])
            nearest = min(nearest, float(np.abs(ours - off).max()) / size)
    judge.close()
    record("stacks in llama.cpp", model=name, effect=worst, off=nearest)
    assert worst < bound < nearest
