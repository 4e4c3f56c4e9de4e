"""Samples of a run: what the base answers to some prompts, and what it does with what trains."""

from collections.abc import Mapping, Sequence

from wgtrain.data.prompts import Prompt
from wgtrain.engine.linear import Adapter
from wgtrain.model.base import Answering, OpenModel
from wgtrain.train.learner import Learner
from wgtrain.train.results import Sample


def beside_of(learner: Learner) -> Mapping[str, tuple[Adapter, ...]]:
    """What a learner trains, as what stands beside the linears: the parameters themselves."""
    made = learner.trainables.made(training=False)
    return {name: (adapter,) for name, adapter in made.items()}


class Sampler:
    """Answers `prompts`, maybe none, by a model alone, once, and at any step by it with what a
    learner trains.
    """

    def __init__(self, model: OpenModel, prompts: Sequence[Prompt]):
        self.prompts = prompts
        self._model = model
        self._base: list[str] | None = None
        self._tuned: Answering | None = None

    async def open(self, learner: Learner) -> None:
        """Makes ready for the parameters of a learner that is built; the base answers first, so
        that one of the two is in memory at a time.
        """
        ids = [prompt.ids for prompt in self.prompts]
        if not ids:
            return
        if self._base is None:
            base = self._model.answering({}, ids)
            try:
                await base.open()
                self._base = await base.answers()
            finally:
                base.close()
        if self._tuned is None:
            tuned = self._model.answering(beside_of(learner), ids)
            await tuned.open()
            self._tuned = tuned

    @property
    def base(self) -> tuple[tuple[str, str], ...]:
        """The prompts with the base's answers, once it was opened."""
        pairs = zip(self.prompts, self._base or (), strict=False)
        return tuple((prompt.text, answer) for prompt, answer in pairs)

    async def take(self) -> tuple[Sample, ...]:
        """The answers as things stand."""
        assert self._tuned is not None and self._base is not None
        found = await self._tuned.answers()
        triples = zip(self.prompts, self._base, found, strict=True)
        return tuple(Sample(prompt.text, base, tuned) for prompt, base, tuned in triples)

    def close(self) -> None:
        """Frees the memory; what the base answered is kept."""
        if self._tuned is not None:
            self._tuned.close()
            self._tuned = None
