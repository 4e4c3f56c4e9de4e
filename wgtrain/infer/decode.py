"""Plain greedy decoding: the whole prefix again for every token, many prompts as rows of one
stream.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wgtrain.infer.model import Model


async def greedy(
    model: "Model",
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    adapters: Sequence[tuple[Any, float]] = (),
) -> AsyncGenerator[dict[int, int], None]:
    """Yields {prompt number: next token} until every prompt has stopped or made `max_tokens`
    tokens.

    A prompt stops at a stop token, which is not yielded.
    """
    rows = [list(prompt) for prompt in prompts]
    alive = list(range(len(rows)))
    stop = model.tokenizer.stop_ids
    for _ in range(max_tokens):
        session = await model.session(adapters, sum(len(rows[i]) for i in alive))
        ends = np.cumsum([len(rows[i]) for i in alive]) - 1
        logits = await session.logits([rows[i] for i in alive], ends.tolist())
        made = dict(zip(alive, logits.argmax(1).tolist(), strict=True))
        made = {i: token for i, token in made.items() if token not in stop}
        alive = list(made)
        for i, token in made.items():
            rows[i].append(token)
        if not alive:
            return
        yield made


async def greedy_batch(
    model: "Model",
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    adapters: Sequence[tuple[Any, float]] = (),
) -> list[list[int]]:
    """The continuations of all prompts at once, token ids without the prompts and without the stop
    token.
    """
    made: list[list[int]] = [[] for _ in prompts]
    async for tokens in greedy(model, prompts, max_tokens, adapters):
        for i, token in tokens.items():
            made[i].append(token)
    return made
