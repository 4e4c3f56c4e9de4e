"""A stack of adapters that is compared with others: its losses, its answers."""

from dataclasses import dataclass

from wgtrain.infer.evaluation import EvalResult


@dataclass(frozen=True)
class Contender:
    """A stack of adapters by its name, with the strength of each; `answers` are those to the
    questions that were asked, `right` whether each is the wanted text but for white space.
    """

    name: str
    scales: tuple[float, ...]
    result: EvalResult
    answers: tuple[str, ...] = ()
    right: tuple[bool, ...] = ()

    def changes(self, other: "Contender") -> list[float]:
        """By how much each row's loss is above that under another one."""
        pairs = zip(self.result.rows, other.result.rows, strict=True)
        return [ours.loss - theirs.loss for ours, theirs in pairs]
