"""Plain greedy decoding: the whole prefix again for every token, many prompts as rows of one
stream.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence

import numpy as np

from wgtrain.infer.session import Session

OpenSession = Callable[[int], Awaitable[Session]]  # for at least so many tokens


async def greedy(
    open_session: OpenSession,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop: Collection[int],
) -> AsyncGenerator[dict[int, int], None]:
    """Yields {prompt number: next token} until every prompt has stopped or made `max_tokens`
    tokens.

    A prompt stops at a token of `stop`, which is not yielded.
    """
    rows = [list(prompt) for prompt in prompts]
    alive = list(range(len(rows)))
    for _ in range(max_tokens):
        session = await open_session(sum(len(rows[i]) for i in alive))
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
