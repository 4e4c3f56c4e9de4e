"""Threads and processes at one trainer and one model: served in turn, or told why not."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fake_learner
import numpy as np
import pytest
import tiny
import wgpu
from fake_learner import FakeLearner, FakeModel, fake_rows
from interrupting import Lines

import wgtrain
from wgtrain import gpu
from wgtrain.data import Dataset, Row
from wgtrain.errors import DeviceLostError, OptionError
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.trainer import Trainer
from wgtrain.turn import Turn

CONFIG = TrainConfig(iters=6, epochs=None, batch_size=2, learning_rate=0.05, tuning="default")


class Thread(threading.Thread):
    """Keeps what a function returned or raised."""

    def __init__(self, function: Callable[[], Any]):
        super().__init__(daemon=True)
        self._function, self.result = function, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.result = error

    def get(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self.result


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Trainer]:
    fake_learner.install(monkeypatch.setattr)
    return lambda: Trainer(FakeModel(), fake_rows(), LoraConfig(rank=2), CONFIG)


class Slow:
    """Makes the learner's next update wait until it is let go."""

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch):
        self.inside, self.go_on = threading.Event(), threading.Event()
        real = trainer.learner.update

        def update(**options: Any) -> None:
            self.inside.set()
            assert self.go_on.wait(60)
            real(**options)

        monkeypatch.setattr(trainer.learner, "update", update)


def test_within_a_step_other_threads_are_refused(
    make: Callable[[], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, trainer = make(), make()
    list(whole.run())
    files = whole.checkpoint()
    slow = Slow(trainer, monkeypatch)
    thread = Thread(lambda: [result.step for result in trainer.run()])
    assert slow.inside.wait(60)
    calls = [
        trainer.checkpoint, trainer.adapter, trainer.adapter_gguf, trainer.adapter_peft,
        trainer.build, lambda: trainer.restore(files), lambda: list(trainer.run()), trainer.fit,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(OptionError, match="this trainer is running"):
            call()
    slow.go_on.set()
    assert thread.get() == [1, 2, 3, 4, 5, 6]
    assert trainer.adapter_gguf() == whole.adapter_gguf()


def test_a_loop_belongs_to_its_thread_until_it_ends(make: Callable[[], Trainer]) -> None:
    trainer = make()
    for result in trainer.run():
        refused = Thread(trainer.checkpoint).get()
        assert isinstance(refused, OptionError) and "this trainer is running" in str(refused)
        assert isinstance(Thread(lambda: list(trainer.run())).get(), OptionError)
        assert trainer.checkpoint(), "its own thread may"
        if result.step == 3:
            break
    assert isinstance(Thread(trainer.checkpoint).get(), dict)
    assert Thread(lambda: [result.step for result in trainer.run()]).get() == [4, 5, 6]


def test_a_loop_left_behind_by_a_thread_holds_nothing(make: Callable[[], Trainer]) -> None:
    trainer, kept = make(), []

    def begin() -> int:
        kept.append(trainer.run())
        return int(next(kept[0]).step)

    assert Thread(begin).get() == 1
    assert [result.step for result in trainer.run()][-1] == 6


@pytest.mark.parametrize("where", ["step", "loop"])
def test_closing_from_another_thread(
    make: Callable[[], Trainer], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The step is finished, then nothing more happens."""
    trainer = make()
    if where == "loop":
        steps = trainer.run()
        next(steps)
        assert Thread(trainer.close).get() is None
        with pytest.raises(DeviceLostError, match="the trainer was closed"):
            list(steps)
        return
    slow = Slow(trainer, monkeypatch)
    training = Thread(lambda: list(trainer.run()))
    assert slow.inside.wait(60)
    closing = Thread(trainer.close)
    time.sleep(0.05)
    assert closing.is_alive() and not hasattr(trainer.learner, "closed")
    slow.go_on.set()
    assert closing.get() is None and trainer.learner.closed
    assert isinstance(training.get(), DeviceLostError)
    trainer.close()


def test_closing_inside_the_loop(make: Callable[[], Trainer]) -> None:
    trainer = make()
    with pytest.raises(DeviceLostError, match="the trainer was closed"):
        for _ in trainer.run():
            trainer.close()
    for call in (trainer.checkpoint, trainer.adapter, trainer.build, lambda: list(trainer.run())):
        with pytest.raises(DeviceLostError, match="the trainer was closed"):
            call()


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_signal_handler_within_a_step_is_refused(
    make: Callable[[], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, trainer = make(), make()
    list(whole.run())
    real, seen = FakeLearner.micro, []

    def micro(self: Any, *given: Any, **options: Any) -> None:
        real(self, *given, **options)
        if not seen:
            os.kill(os.getpid(), signal.SIGUSR1)

    def handle(number: int, frame: Any) -> None:
        for call in (trainer.checkpoint, trainer.close):
            with pytest.raises(OptionError, match="this trainer is running"):
                call()
        seen.append(number)

    monkeypatch.setattr(FakeLearner, "micro", micro)
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        list(trainer.run())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen and trainer.adapter_gguf() == whole.adapter_gguf()


def test_a_turn_that_was_never_given_back() -> None:
    """An interrupt may come before `end`: the turn is over with the call."""
    turn = Turn("this thing")

    def forgets(loop: object = None) -> None:
        turn.take(sys._getframe(), loop, False)

    forgets()
    with turn():
        with pytest.raises(OptionError, match="this thing is running"), turn():
            pass
        assert isinstance(Thread(forgets).get(), OptionError)
    assert Thread(forgets).get() is None
    forgets("a loop")
    assert isinstance(Thread(forgets).get(), OptionError)
    turn.leave("another")
    assert isinstance(Thread(forgets).get(), OptionError)
    turn.leave("a loop")
    assert Thread(forgets).get() is None


class Behind(list[Any]):
    """The claims of a turn, that lets another thread come first once."""

    def __init__(self, first: Callable[[], Any]):
        super().__init__()
        self._first: Callable[[], Any] | None = first

    def append(self, claim: Any) -> None:
        first, self._first = self._first, None
        if first is not None:
            assert not isinstance(Thread(first).get(), BaseException)
        super().append(claim)


def test_what_comes_between_asking_and_claiming() -> None:
    """Another thread closes, or begins a loop, when a call has just been found welcome."""
    turn = Turn("this thing")
    turn._claims = Behind(lambda: turn.close("it was closed"))
    with pytest.raises(DeviceLostError, match="it was closed"), turn():
        pass
    assert turn._claims == []
    turn, looping, ended = Turn("this thing"), threading.Event(), threading.Event()

    def loops() -> None:
        with turn("a loop"):
            pass
        looping.set()
        assert ended.wait(60)

    def begins() -> None:
        threads.append(Thread(loops))
        assert looping.wait(60)

    threads: list[Thread] = []
    turn._claims = Behind(begins)
    with pytest.raises(OptionError, match="this thing is running"), turn():
        pass
    assert turn._claims == []
    ended.set()
    assert threads[0].get() is None
    with turn():  # a thread that has ended loops no more
        pass


def in_fork(function: Callable[[], Any]) -> str:
    """What a function says in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = f"returned {function()!r}"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_trainer_says_so(make: Callable[[], Trainer]) -> None:
    trainer = make()
    for call in (trainer.checkpoint, lambda: list(trainer.run()), trainer.build):
        said = in_fork(call)
        assert said.startswith("DeviceError: this trainer was opened in another process"), said
    assert in_fork(trainer.close) == "returned None"
    assert len(list(trainer.run())) == 6


# ---- on the real engine ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with wgtrain.load_model(tiny.tiny("llama").gguf, limits="default") as opened:
        yield opened


@pytest.mark.gpu
def test_threads_share_a_model(model: Any) -> None:
    """Sessions of other adapters and lengths replace each other between the calls, not in them."""
    prompts = [[1, 2, 3], [7, 8, 9, 10], [5] * 70]
    expected = [model.complete([prompt], 4)[0] for prompt in prompts]
    threads = [Thread(lambda p=prompt: model.complete([p], 4)[0]) for prompt in prompts * 2]
    assert [thread.get() for thread in threads] == expected * 2
    logits = model.logits(prompts[0])
    both = [Thread(lambda: model.logits(prompts[0])) for _ in range(3)]
    assert all(np.array_equal(thread.get(), logits) for thread in both)


@pytest.mark.gpu
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_model_says_so(model: Any) -> None:
    for call in (lambda: model.logits([1, 2]), lambda: model.complete([[1]], 2)):
        said = in_fork(call)
        assert said.startswith("DeviceError: this model was opened in another process"), said
    assert in_fork(model.close) == "returned None"
    assert model.logits([1, 2]).shape[0] == 2


@pytest.mark.gpu
def test_a_trainer_of_the_engine_is_closed_while_it_runs(model: Any) -> None:
    pairs = tiny.random_rows(tiny.SPECS["llama"], [9, 17, 5], 0)
    rows = Dataset([Row(*pair, line) for line, pair in enumerate(pairs, 1)], "rows", 32)
    model.clear_cache()
    before = model.device.allocated
    for _ in range(3):
        config = TrainConfig(iters=10**6, epochs=None, batch_size=2, tuning="default")
        trainer = Trainer(model, rows, LoraConfig(rank=2), config)
        begun = threading.Event()

        def train(trainer: Trainer = trainer, begun: threading.Event = begun) -> None:
            for _ in trainer.run():
                begun.set()

        thread = Thread(train)
        assert begun.wait(60)
        trainer.close()
        assert isinstance(thread.get(), DeviceLostError)
        assert model.device.allocated == before


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # interrupted before it began
def test_an_interrupted_call_leaves_no_device_taken(model: Any) -> None:
    """Not for other threads either, while the traceback still holds its frames; and what is freed
    is freed.
    """
    device = model.device
    buffer = device.create_buffer(64, "data")
    lines = Lines()
    with lines.watched():
        device.write(buffer, 0, bytes(64))
        gpu.run(device.read(buffer, 0, 64))
    for at in range(1, lines.seen):
        with Lines(at).watched(), pytest.raises(KeyboardInterrupt) as caught:
            device.write(buffer, 0, bytes(64))
            gpu.run(device.read(buffer, 0, 64))
        before = device.allocated
        more = Thread(lambda: device.create_buffer(1 << 20, "more")).get()
        assert device.allocated == before + (1 << 20), at
        device.free(more)
        with pytest.raises(wgpu.GPUError):  # destroyed, not only put off
            more.handle.map_sync("READ")
        assert caught.traceback
    device.free(buffer)
