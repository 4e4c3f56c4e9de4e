"""What cos and sin of stretched rotary embeddings are multiplied by, as transformers has it."""

import math


def yarn_magnitude(factor: float, mscale: float = 1.0, mscale_all_dim: float = 0.0) -> float:
    """What YaRN multiplies cos and sin by: 0.1 mscale ln(factor) + 1, over the same of
    `mscale_all_dim`; 1 up to a factor of 1.
    """
    if factor <= 1:
        return 1.0
    log = 0.1 * math.log(factor)
    return (mscale * log + 1) / (mscale_all_dim * log + 1)


def longrope_magnitude(factor: float, context: int) -> float:
    """What LongRoPE multiplies cos and sin by: sqrt(1 + ln(factor) / ln(context)) where rows may
    be `factor` > 1 times as long as the original `context`.
    """
    if factor <= 1 or context <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(context))
