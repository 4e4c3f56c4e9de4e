"""The oracles of backward kernels against finite differences of the forward ones, in float64."""

from collections.abc import Callable

import numpy as np
import oracles
import pytest
from kernel_check import make_positions, make_ranges, who_sees

Function = Callable[[np.ndarray], np.ndarray]


def check_gradient(forward: Function, x: np.ndarray, dy: np.ndarray, gradient: np.ndarray) -> None:
    """`gradient` is the derivative of sum(forward(x) * dy) with respect to each element of x."""
    assert gradient.shape == x.shape
    numeric, h = np.zeros_like(x), 1e-5
    for index in np.ndindex(*x.shape):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * h
            sides.append(np.sum(forward(moved) * dy))
        numeric[index] = (sides[0] - sides[1]) / (2 * h)
    error = np.abs(numeric - gradient)
    worst = np.unravel_index(error.argmax(), error.shape)
    bound = 1e-8 * max(1.0, np.abs(numeric).max())
    assert error.max() < bound, f"{worst}: {gradient[worst]} is not {numeric[worst]}"


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape)


def test_a_wrong_gradient_is_seen() -> None:
    x, dy = normal(2, 3), normal(2, 3)
    check_gradient(np.sin, x, dy, np.cos(x) * dy)
    with pytest.raises(AssertionError, match="is not"):
        check_gradient(np.sin, x, dy, np.cos(x) * dy * (1 + 1e-6))


@pytest.mark.parametrize("activation", oracles.ACTIVATIONS)
def test_glu_backward(activation: str) -> None:
    gate, up, dy = normal(3, 5) * 3, normal(3, 5), normal(3, 5)
    result = oracles.glu_backward(gate, up, dy, activation)
    check_gradient(lambda g: oracles.glu(g, up, activation)["y"], gate, dy, result["dgate"])
    check_gradient(lambda u: oracles.glu(gate, u, activation)["y"], up, dy, result["dup"])


@pytest.mark.parametrize("groups", [1, 3])
def test_rms_norm_backward(groups: int) -> None:
    x, w, dy, eps = normal(2, 12), normal(12 // groups), normal(2, 12), 1e-2
    already = normal(2, 12)
    result = oracles.rms_norm_backward(x, w, dy, groups, eps)["dx"]
    check_gradient(lambda x: oracles.rms_norm(x, w, groups, eps)["y"], x, dy, result)
    added = oracles.rms_norm_backward(x, w, dy, groups, eps, already)["dx"]
    np.testing.assert_allclose(added, already + result)


@pytest.mark.parametrize("groups", [1, 3])
def test_layer_norm_backward(groups: int) -> None:
    x, dy, already, w = normal(5, 12), normal(5, 12), normal(5, 12), normal(12)
    eps = 1e-2
    result = oracles.layer_norm_backward(x, w, dy, groups, eps)["dx"]
    check_gradient(lambda x: oracles.layer_norm(x, w, groups, eps, w)["y"], x, dy, result)
    added = oracles.layer_norm_backward(x, w, dy, groups, eps, already)["dx"]
    np.testing.assert_allclose(added, already + result)


@pytest.mark.parametrize("rotary", [4, 8])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_inverse(interleaved: bool, rotary: int) -> None:
    angles = normal(3, rotary // 2)
    common = {
        "positions": make_positions(2, 3),
        "table": np.stack([np.cos(angles), np.sin(angles)], -1),
        "heads": 2,
        "rotary": rotary,
        "INTERLEAVED": interleaved,
    }
    x, dy = normal(5, 16), normal(5, 16)
    back = oracles.rope(dy, INVERSE=True, **common)["y"]
    check_gradient(lambda x: oracles.rope(x, **common)["y"], x, dy, back)


def test_rope_by_hand() -> None:
    """One head of six values, four of them turned by a quarter and a half; then position 0."""
    table = np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0]]])
    x = np.array([[1.0, 2, 3, 4, 5, 6]] * 3)
    common = {"positions": make_positions(2, 1), "table": table, "heads": 1, "rotary": 4}
    halves = oracles.rope(x, **common)["y"]
    np.testing.assert_array_equal(halves[1], [-3, -2, 1, -4, 5, 6])
    neighbours = oracles.rope(x, INTERLEAVED=True, **common)["y"]
    np.testing.assert_array_equal(neighbours[1], [-2, 1, -3, -4, 5, 6])
    np.testing.assert_array_equal(halves[[0, 2]], x[[0, 2]])


@pytest.mark.parametrize("cap", [0.0, 0.7])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_attention_backward(heads: int, kv_heads: int, window: int, cap: float) -> None:
    ranges = make_ranges(who_sees(3, 1, 2, window=window))
    keys, queries = ({name: ranges[name]} for name in ("key_range", "query_range"))
    q, k, v = (normal(6, 3 * n) for n in (heads, kv_heads, kv_heads))
    sizes = {"heads": heads, "kv_heads": kv_heads, "scale": 0.6, "CAP": cap}
    dout = normal(*q.shape)

    def run(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
        return oracles.attention(q, k, v, **keys, **sizes)

    forward = run(q, k, v)
    stats = oracles.attention_delta(forward["o"], dout, forward["stats"])["stats"]
    dq = oracles.attention_backward_q(q, k, v, dout, stats, **keys, **sizes)["dq"]
    both = oracles.attention_backward_kv(q, k, v, dout, stats, **queries, **sizes)
    check_gradient(lambda q: run(q, k, v)["o"], q, dout, dq)
    check_gradient(lambda k: run(q, k, v)["o"], k, dout, both["dk"])
    check_gradient(lambda v: run(q, k, v)["o"], v, dout, both["dv"])


def test_attention_stays_within_rows() -> None:
    """Each row alone gives what it gives in the stream; its first token sees only itself."""
    q, k, v = normal(3, 6, 4)
    sizes = {"heads": 2, "kv_heads": 2, "scale": 0.5}

    def attend(sees: np.ndarray, *qkv: np.ndarray) -> np.ndarray:
        return oracles.attention(*qkv, make_ranges(sees)["key_range"], **sizes)["o"]

    whole = attend(who_sees(4, 2), q, k, v)
    np.testing.assert_allclose(whole[4:], attend(who_sees(2), q[4:], k[4:], v[4:]))
    np.testing.assert_allclose(whole[[0, 4]], v[[0, 4]])
    windowed = attend(who_sees(4, 2, window=2), q, k, v)
    np.testing.assert_allclose(windowed[[0, 1, 4, 5]], whole[[0, 1, 4, 5]])
    for t in (2, 3):
        pair = (x[t - 1 : t + 1] for x in (q, k, v))
        np.testing.assert_allclose(windowed[t], attend(who_sees(2), *pair)[1])


def test_ranges_by_hand() -> None:
    """Rows of three and one; the second sees two tokens back at most."""
    found = make_ranges(who_sees(3, 1))
    assert found["key_range"].tolist() == [[0, 1], [0, 2], [0, 3], [3, 4]]
    assert found["query_range"].tolist() == [[0, 3], [1, 3], [2, 3], [3, 4]]
    found = make_ranges(who_sees(3, 1, window=2))
    assert found["key_range"].tolist() == [[0, 1], [0, 2], [1, 3], [3, 4]]
    assert found["query_range"].tolist() == [[0, 2], [1, 3], [2, 3], [3, 4]]


def test_dropout_is_its_own_gradient() -> None:
    x, dy = normal(3, 5), normal(3, 5)
    settings = {"d4": 2, "dropout_key": 7, "site": 3, "threshold": 1 << 23, "scale": 2.0}
    back = oracles.dropout(dy, **settings)["y"]
    assert 0 < np.count_nonzero(back) < back.size
    check_gradient(lambda x: oracles.dropout(x, **settings)["y"], x, dy, back)


def true_loss(logits: np.ndarray, targets: np.ndarray, cap: float = 0.0) -> np.ndarray:
    """Cross-entropy of each row, written plainly."""
    logits = cap * np.tanh(logits / cap) if cap else logits
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), targets]


def walk_chunks(
    logits: np.ndarray, targets: np.ndarray, columns: int, cap: float = 0.0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(final running values, [running values after each chunk]) over chunks of so many columns."""
    running, kept = None, []
    for first in range(0, logits.shape[1], columns):
        chunk = logits[:, first : first + columns]
        result = oracles.cross_entropy_chunk(targets, chunk, first, chunk.shape[1], running, cap)
        running = result["running"]
        kept.append(running)
    assert running is not None
    return running, kept


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("columns", [3, 4, 11])
def test_cross_entropy_loss_and_logit_gradient(columns: int, cap: float) -> None:
    logits, targets = normal(4, 11) * 2, np.array([0, 10, 3, 7])
    running, _ = walk_chunks(logits, targets, columns, cap)
    totals = np.array([(1.5, 2)], [("loss", "f8"), ("count", "i8")])
    result = oracles.loss_sum(running, totals)["totals"][0]
    np.testing.assert_allclose(result["loss"], 1.5 + true_loss(logits, targets, cap).sum())
    assert result["count"] == 6
    pieces = [
        oracles.cross_entropy_grad(targets, running, logits[:, first : first + columns], first, cap)
        for first in range(0, 11, columns)
    ]
    gradient = np.concatenate([piece["logits"] for piece in pieces], 1)
    check_gradient(lambda l: true_loss(l, targets, cap), logits, np.ones(4), gradient)


@pytest.mark.parametrize("cap", [0.0, 1.5])
@pytest.mark.parametrize("split", [11, 6])
def test_cross_entropy_hidden_gradient(split: int, cap: float) -> None:
    """Chunks of four with rescaled sums, then one or two segments of the head to finish with."""
    weight, hidden, targets = normal(11, 5), normal(4, 5), np.array([0, 10, 5, 6])
    logits, gradient, running = hidden @ weight.T, np.zeros((4, 5)), None
    for first in range(0, 11, 4):
        chunk = logits[:, first : first + 4]
        result = oracles.cross_entropy_chunk(targets, chunk, first, chunk.shape[1], running, cap)
        running = result["running"]
        gradient = oracles.scale_rows(running, gradient)["y"]
        n = chunk.shape[1]
        sums = oracles.matmul_nn(result["logits"], weight, n, 1.0, first, dx=gradient, add=1)
        gradient = sums["dx"]
    assert running is not None
    for start, end in ((0, split), (split, 11)):
        if start < end:
            part = weight[start:end]
            gradient = oracles.cross_entropy_finish(
                targets, running, part, gradient, start, end - start, DIVIDE=start == 0, CAP=cap
            )["dx"]
    check_gradient(lambda h: true_loss(h @ weight.T, targets, cap), hidden, np.ones(4), gradient)


def test_matmuls_differentiate_each_other() -> None:
    x, weight, dy = normal(3, 5), normal(6, 5), normal(3, 6)
    dx = oracles.matmul_nn(dy, weight, 6, 0.7)["dx"]
    dw = oracles.matmul_tn(dy, x, 0.7)["out"]

    def forward(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return oracles.matmul_nt(x, weight, 6, 0.7, y_stride=2)["y"][:, :6]

    check_gradient(lambda x: forward(x, weight), x, dy, dx)
    check_gradient(lambda w: forward(x, w), weight, dy, dw)


def test_embed_and_gather_by_hand() -> None:
    weight = np.arange(8.0).reshape(4, 2)
    y = oracles.embed(np.array([1, 3, 5]), weight[:2], 2, 2)["y"]
    np.testing.assert_array_equal(y, [[np.nan] * 2, [2, 3], [np.nan] * 2])
    gathered = oracles.gather_rows(weight, np.array([2, -1, 0]))["y"]
    np.testing.assert_array_equal(gathered, [[4, 5], [0, 0], [0, 1]])


def test_capture_bf16_by_hand() -> None:
    """1 + 2^-8 lies between 1 and 1 + 2^-7: to the even one; a bit more goes up."""
    x = np.array([[1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-20, 1 + 3 * 2.0**-8, -3.4e38, 2.0**-133]])
    bits = oracles.capture_bf16(x, 2)["y"]
    np.testing.assert_array_equal(bits[0], [0x3F80, 0x3F81, 0x3F82, 0xFF80, 1, 0, 0, 0])
    halves = oracles.restore_bf16(np.array([[0x3F80, 0xC040]]))["y"]
    np.testing.assert_array_equal(halves, [[1.0, -3.0]])


def test_adamw_by_hand() -> None:
    """The first step moves every parameter by the learning rate against the gradient's sign."""
    control = np.array([(0.5, 0)], [("factor", "f8"), ("latched", "u4")])
    result = oracles.adamw(
        control,
        params_arena=np.array([1.0, 1.0]),
        grads=np.array([4.0, -2.0]),
        first_moment=np.zeros(2),
        second_moment=np.zeros(2),
        learning_rate=0.1,
        keep=0.99,
        beta1=0.9,
        beta2=0.999,
        rest1=0.1,
        rest2=0.001,
        correction1=0.1,
        correction2=0.001,
        epsilon=0.0,
    )
    np.testing.assert_allclose(result["params_arena"], [0.89, 1.09])
    np.testing.assert_allclose(result["first_moment"], [0.2, -0.1])
    np.testing.assert_allclose(result["second_moment"], [0.004, 0.001])
    np.testing.assert_array_equal(result["grads"], 0)
