"""The kernel's draws against the reference's, which is held to papers and to transformers."""

from __future__ import annotations

import io
import subprocess
import sys
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import dispatch
from macllm.ops.draw_params import DrawParams
from macllm.ops.sampling import Draw, logprobs
from macllm.ops.sampling_reference import DrawReference, logprobs_reference

FILTERS = [
    DrawParams(),
    DrawParams(temperature=0.7),
    DrawParams(temperature=1.9),
    DrawParams(top_k=1),
    DrawParams(top_k=40),
    DrawParams(top_k=700, temperature=1.3),
    DrawParams(top_p=0.9),
    DrawParams(top_p=0.9, temperature=0.6),
    DrawParams(top_p=0.999, temperature=3.0),
    DrawParams(top_p=0.0),
    DrawParams(min_p=0.05),
    DrawParams(min_p=1.0),
    DrawParams(top_k=50, top_p=0.8, min_p=0.02, temperature=0.8),
    DrawParams(temperature=0.0),
    DrawParams(temperature=0.0, top_k=7, typical_p=0.3, xtc_probability=1.0),
    DrawParams(typical_p=0.7),
    DrawParams(typical_p=0.0),
    DrawParams(typical_p=0.95, temperature=0.5),
    DrawParams(typical_p=0.9, top_k=60, top_p=0.9, min_p=0.01),
    DrawParams(xtc_probability=0.5, xtc_threshold=0.1),
    DrawParams(xtc_probability=1.0, xtc_threshold=0.0),
    DrawParams(xtc_probability=0.5, xtc_threshold=0.02, top_k=30, temperature=1.5),
    DrawParams(xtc_probability=0.7, xtc_threshold=0.0, top_p=0.8, typical_p=0.9),
]
PENALTIES = [
    DrawParams(repetition_penalty=1.3),
    DrawParams(repetition_penalty=0.8, temperature=0.0),
    DrawParams(presence_penalty=1.5, temperature=0.0),
    DrawParams(frequency_penalty=0.37),
    DrawParams(frequency_penalty=-0.2, repetition_penalty=1.1, presence_penalty=0.3, penalty_window=5),
    DrawParams(bias=((1, 2.5), (0, -np.inf), (1, 0.7)), temperature=0.6),
    DrawParams(dry_multiplier=0.8),
    DrawParams(dry_multiplier=2.0, dry_base=1.0, dry_allowed_length=1, temperature=0.0),
    DrawParams(dry_multiplier=0.8, dry_base=3.0, dry_allowed_length=1, dry_window=6, dry_breakers=(2,)),
    DrawParams(
        temperature=0.7,
        top_k=40,
        repetition_penalty=1.2,
        penalty_window=9,
        dry_multiplier=1.1,
        dry_window=4,
        bias=((0, 1.0),),
        typical_p=0.9,
        xtc_probability=0.3,
    ),
]


def logits_of(size: int, spread: float = 4.0, seed: int = 0) -> mx.array:
    return mx.array((np.random.default_rng(seed + size).normal(size=size) * spread).astype(np.float32))


def label(params: DrawParams) -> str:
    fields = ("temperature", "top_k", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold")
    changed = {name: getattr(params, name) for name in fields}
    return "-".join(f"{n[:5]}{v}" for n, v in changed.items() if v != getattr(DrawParams(), n)) or "all"


def tokens(draw: Draw | DrawReference, logits: mx.array, steps: int) -> list[int]:
    """Each drawn after those before it; all of them computed at the end."""
    return mx.stack([draw(logits, step) for step in range(steps)]).tolist()  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 33, 1000, 9001])
@pytest.mark.parametrize("params", FILTERS, ids=label)
def test_the_kernel_draws_what_the_reference_draws(params: DrawParams, size: int) -> None:
    logits = logits_of(size)
    assert tokens(Draw(params, (), 5), logits, 12) == tokens(DrawReference(params, (), 5), logits, 12)


@pytest.mark.parametrize("size", [1, 3, 17, 500])
@pytest.mark.parametrize("prompt", [(), (0,), (2, 1, 2, 1, 2), tuple(range(16)) * 3])
@pytest.mark.parametrize("params", PENALTIES)
def test_the_kernel_penalizes_as_the_reference(params: DrawParams, prompt: tuple[int, ...], size: int) -> None:
    """Flat logits, so that penalties decide; what was drawn joins the history."""
    history, logits = tuple(token % size for token in prompt), logits_of(size, spread=0.5)
    bias = tuple((token % size, amount) for token, amount in params.bias)
    params = params._replace(bias=bias, dry_breakers=tuple(b for b in params.dry_breakers if b < size))
    native = tokens(Draw(params, history, 8), logits, 25)
    assert native == tokens(DrawReference(params, history, 8), logits, 25)
    with dispatch.using("stock"):
        assert native == tokens(Draw(params, history, 8), logits, 25)


def test_the_reference_can_take_over_in_the_middle() -> None:
    params = DrawParams(presence_penalty=4.0, dry_multiplier=1.0, penalty_window=7)  # all of the last 7 count
    logits, whole, handed = logits_of(20, 0.5), Draw(params, (3, 4, 3), 1), Draw(params, (3, 4, 3), 1)
    want = [int(whole(logits, step).item()) for step in range(20)]
    got = [int(handed(logits, step).item()) for step in range(10)]
    with dispatch.using("stock"):
        got += [int(handed(logits, step).item()) for step in range(10, 15)]
    got += [int(handed(logits, step).item()) for step in range(15, 20)]
    assert got == want


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (DrawParams(presence_penalty=1.0, penalty_window=3, dry_multiplier=1.0, dry_window=5), 5),
        (DrawParams(presence_penalty=1.0, penalty_window=9, dry_multiplier=1.0, dry_window=5), 9),
        (DrawParams(presence_penalty=1.0, penalty_window=0, dry_multiplier=1.0, dry_window=5), 16),
        (DrawParams(presence_penalty=1.0, penalty_window=3, dry_window=5), 3),
        (DrawParams(dry_multiplier=1.0, dry_window=5), 5),
    ],
)
def test_a_draw_keeps_no_more_of_the_history_than_its_windows(params: DrawParams, kept: int) -> None:
    draw = Draw(params, (1,) * 6, 1)
    tokens(draw, logits_of(20), 10)
    assert draw._history is not None
    assert draw._history.size == kept


@pytest.mark.parametrize("params", [*FILTERS, *PENALTIES])
def test_a_draw_is_one_operation(params: DrawParams) -> None:
    graph = io.StringIO()
    draw, logits = Draw(params, (1, 2, 1, 2), 1), logits_of(50)
    mx.export_to_dot(graph, draw(logits, 0))
    assert sum("rectangle" in line for line in graph.getvalue().splitlines()) == 1


def test_a_long_repeat_has_a_finite_penalty() -> None:
    params = DrawParams(dry_multiplier=5.0, dry_base=100.0, temperature=0.0)
    assert int(Draw(params, (0, 1) * 5000, 0)(mx.array([9.0, 8.0, -1e20]), 0).item()) == 1
    assert int(Draw(params, (0, 1) * 5000, 0)(mx.array([1e20, 8.0, -1e20]), 0).item()) == 1
    worst = Draw(params, (0,) * 100_000, 0)
    assert int(worst(mx.array([1e29, -1e29]), 0).item()) == 1


@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.99999])
@pytest.mark.parametrize("spread", [0.0, 0.5, 6.0])
def test_draws_from_a_real_vocabulary_equal_the_reference(top_p: float, spread: float) -> None:
    size = 30_011
    draw, logits = Draw(DrawParams(top_p=top_p), (), 1), logits_of(size, spread)
    with dispatch.using("stock"):
        stock = [int(draw(logits, step).item()) for step in range(3)]
    assert [int(draw(logits, step).item()) for step in range(3)] == stock


def test_ties_are_ordered_by_index() -> None:
    logits = mx.array(np.repeat(np.float32([1.0, 2.0, -0.0, 0.0, 2.0]), 9))
    for params in (DrawParams(top_k=18), DrawParams(top_p=0.97), DrawParams(top_k=45, top_p=0.97)):
        draw = Draw(params, (), 3)
        native = [int(draw(logits, step).item()) for step in range(60)]
        with dispatch.using("stock"):
            assert [int(draw(logits, step).item()) for step in range(60)] == native


@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
def test_skipped_logits_could_not_win_with_any_noise(spread: float) -> None:
    """Against Gumbel's trick in numpy with MLX's noise: close logits, where any may win, and distant ones."""
    for size in (7, 4096, 9001):
        logits = logits_of(size, spread)
        draw = Draw(DrawParams(), (), 4)
        for step in range(30):
            noise = mx.random.gumbel((size,), key=mx.random.key((4 << 32) | step))
            assert int(draw(logits, step).item()) == int(mx.argmax(logits + noise).item())


def test_noise_equals_mlxs() -> None:
    """Equal logits are drawn by noise alone: at both ends and in the middle."""
    for size in (1, 2, 7, 16, 31, 4097):
        draw = Draw(DrawParams(), (), 9)
        for step in range(40):
            key = mx.random.key((9 << 32) | step)
            want = int(mx.argmax(mx.random.gumbel((size,), key=key)).item())
            assert int(draw(mx.zeros(size), step).item()) == want


def test_a_token_just_below_the_xtc_threshold_is_no_top_choice() -> None:
    logits = mx.log(mx.array([0.5, 0.2004, 0.2, 0.0996]))
    draw = Draw(DrawParams(xtc_probability=1.0, xtc_threshold=0.1), (), 2)
    assert {int(draw(logits, step).item()) for step in range(60)} == {2, 3}


@pytest.mark.parametrize("size", [2, 5, 16, 1023, 1024, 1025, 151_936])
def test_greedy_takes_the_first_of_equal_maxima(size: int) -> None:
    greedy = Draw(DrawParams(temperature=0.0), (), 0)
    for place in {0, 1, size // 2, size - 2, size - 1}:
        logits = np.array(logits_of(size))
        logits[place] = 99
        assert int(greedy(mx.array(logits), 0).item()) == place
        logits[-1] = 99
        assert int(greedy(mx.array(logits), 0).item()) == place
    assert int(greedy(mx.full(size, -np.inf), 0).item()) == 0


@pytest.mark.parametrize("params", FILTERS, ids=label)
def test_nan_logits_do_no_harm(params: DrawParams) -> None:
    for odd in ([np.nan] * 40, [-np.inf] * 40, [np.nan, -np.nan, 1.0, -np.inf] * 10, [np.inf, 1.0] * 20):
        for step in range(3):
            assert 0 <= int(Draw(params, (), 1)(mx.array(np.float32(odd)), step).item()) < 40


def test_half_precision_and_strided_logits_are_read_correctly() -> None:
    logits = logits_of(500).astype(mx.bfloat16)
    draw = Draw(DrawParams(top_p=0.9), (), 1)
    assert int(draw(logits, 0).item()) == int(draw(logits.astype(mx.float32), 0).item())
    strided = mx.repeat(logits.astype(mx.float32), 2)[::2]
    assert int(draw(strided, 0).item()) == int(draw(logits, 0).item())


@pytest.mark.parametrize("size", [1, 2, 30, 9001])
@pytest.mark.parametrize("alternatives", [0, 1, 5, 40])
def test_logprobs_in_one_operation_equal_those_in_many(size: int, alternatives: int) -> None:
    arguments = logits_of(size), mx.array(size // 3, dtype=mx.uint32), min(alternatives, size)
    graph = io.StringIO()
    mx.export_to_dot(graph, *logprobs(*arguments))
    assert sum("rectangle" in line for line in graph.getvalue().splitlines()) == 1
    native = [np.array(part) for part in logprobs(*arguments)]
    chosen, likeliest, values = (np.array(part) for part in logprobs_reference(*arguments))
    np.testing.assert_allclose(native[0], chosen, atol=1e-5)
    order = np.argsort(-values, kind="stable")
    np.testing.assert_array_equal(native[1], likeliest[order])
    np.testing.assert_allclose(native[2], values[order], atol=1e-5)


def test_mismatched_shapes_and_types_are_refused(kernels: ModuleType) -> None:
    plan = kernels.DrawPlan([1.0, *[0.0] * 15], [], [], [])
    for logits in (mx.zeros((2, 3)), mx.zeros(0), mx.zeros(3, mx.float16)):
        with pytest.raises(ValueError, match=r"logits are \(V,\)"):
            kernels.draw(plan, logits, None, 0, 0)
        with pytest.raises(ValueError, match=r"logits are \(V,\)"):
            kernels.logprobs(logits, mx.array(0), 1)
    with pytest.raises(ValueError, match="history"):
        kernels.draw(plan, mx.zeros(3), mx.zeros(3), 0, 0)
    with pytest.raises(ValueError, match="16 numbers"):
        kernels.DrawPlan([1.0], [], [], [])
    with pytest.raises(ValueError, match="a count of at most V"):
        kernels.logprobs(mx.zeros(3), mx.array(0), 4)


def test_the_reference_and_numpy_stay_unloaded_where_a_kernel_draws(kernels: ModuleType) -> None:
    program = """if True:
        import sys, mlx.core as mx
        from macllm.ops.draw_params import DrawParams
        from macllm.ops.sampling import Draw, logprobs
        token = Draw(DrawParams(top_p=0.5, repetition_penalty=1.1, dry_multiplier=1.0), (1, 2), 0)(mx.zeros(9), 0)
        mx.eval(token, logprobs(mx.zeros(9), token, 2))
        print({"numpy", "macllm.ops.sampling_reference", "macllm.ops.penalties"} & sys.modules.keys())"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
