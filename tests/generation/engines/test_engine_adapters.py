"""Adapters of a running engine, against models that are loaded with them."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import macllm
from macllm import adapter
from macllm.errors import CheckpointError, MacllmError, ModelNotFoundError, UsageError
from macllm.generation.contract import Engine
from macllm.generation.engines.process import ProcessEngine
from macllm.generation.engines.thread import ThreadEngine
from macllm.generation.request import Delta, Done, Event, Request, SamplingParams
from macllm.generation.stream import run
from macllm.nn import lora
from macllm.ops import cpu

PROMPT = tuple(range(40, 64))
KINDS = ["thread", "process"]


def save(folder: Path, seed: int, **settings: Any) -> str:
    """A folder with an adapter of the bundled model that changes its answers."""
    model, _ = macllm.load()
    lora.apply(model, **{"rank": 2, "alpha": 4.0, "keys": ("q_proj", "down_proj"), "seed": seed} | settings)  # type: ignore[arg-type]
    for layer, key in zip(lora.adapters(model).values(), mx.random.split(mx.random.key(seed), 99), strict=False):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=key)
    adapter.save(model, folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    return save(folder / "a", 1), save(folder / "b", 2, rank=3)


@pytest.fixture(params=KINDS, scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACLLM_HOME", str(tmp_path_factory.mktemp("home")))
        engine = ThreadEngine(macllm.load, "maclet") if request.param == "thread" else ProcessEngine("maclet")
    yield engine
    engine.close()


Answer = list[tuple[int, float]]


def request(number: int = 0, adapter: bool = True) -> Request:
    """A greedy request; prompts of different numbers begin with different tokens."""
    prompt = PROMPT[number:] + PROMPT[:number]
    sampling = SamplingParams(temperature=0.0)
    return Request(prompt=prompt, max_tokens=6, logprobs=0, sampling=sampling, adapter=adapter)


def answer(events: list[Event]) -> Answer:
    """Tokens and their log-probabilities."""
    deltas = [event for event in events if isinstance(event, Delta)]
    return [(each.token, each.logprob) for delta in deltas for each in delta.logprobs]


def answered(engine: Engine, number: int = 0, adapter: bool = True) -> Answer:
    return answer(list(engine.submit(request(number, adapter))))


@cache
def loaded(chosen: str | None) -> Any:
    return macllm.load(adapter=chosen)


def expected(chosen: str | None, number: int = 0) -> Answer:
    """The answer of a model that is loaded with an adapter."""
    return answer(list(run(*loaded(chosen), request(number))))


def same(first: Answer, second: Answer) -> bool:
    """Equal but for the rounding of a prompt that is computed in other parts."""
    return [token for token, _ in first] == [token for token, _ in second] and all(
        abs(one - other) < 1e-5 for (_, one), (_, other) in zip(first, second, strict=True)
    )


def test_every_adapter_and_blend_answers_as_if_loaded_with_it(engine: Engine, folders: tuple[str, str]) -> None:
    a, b = folders
    chosen = (None, a, b, f"{a} + {b}:0.5", f"{a}:-0.25")
    assert len({str(expected(each)) for each in chosen}) == len(chosen)
    for number, each in enumerate((*chosen, a, None)):
        engine.activate(each)
        assert engine.info.adapter == each
        assert answered(engine, number) == expected(each, number), each


def test_the_cache_of_one_adapter_serves_no_other(engine: Engine, folders: tuple[str, str]) -> None:
    read: list[int] = []
    for chosen, on in (
        (folders[0], True),
        (folders[1], True),
        (folders[0], True),
        (None, True),
        (folders[1], False),
    ):
        engine.activate(chosen)
        events = list(engine.submit(request(20, on)))
        assert same(answer(events), expected(chosen if on else None, 20)), chosen
        assert isinstance(events[-1], Done)
        read.append(events[-1].usage.cached_tokens)
    assert read == [0, 0, len(PROMPT) - 1, 0, len(PROMPT) - 1]  # the base without an adapter is the base alone


def test_a_switch_waits_for_the_completions_before_it(engine: Engine, folders: tuple[str, str]) -> None:
    engine.activate(folders[0])
    before = engine.submit(request(22))
    engine.activate(folders[1])
    assert answer(list(before)) == expected(folders[0], 22)
    assert answered(engine, 22) == expected(folders[1], 22)


def test_an_adapter_that_cannot_be_loaded_changes_nothing(
    engine: Engine, folders: tuple[str, str], tmp_path: Path
) -> None:
    a, b = folders
    cut = tmp_path / "cut"
    shutil.copytree(a, cut)
    with (cut / "adapters.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    odd = Path(save(tmp_path / "odd", 3))
    tensors = mx.load(str(odd / "adapters.safetensors"))
    mx.save_safetensors(str(odd / "adapters.safetensors"), {name: array[:, :1] for name, array in tensors.items()})
    dora = save(tmp_path / "dora", 4, use_dora=True)
    blend = f"{a} + {b}:0.5"
    engine.activate(blend)
    before = answered(engine, 21)
    wrong: list[tuple[str, type[MacllmError]]] = [
        (f"{b} + {tmp_path / 'absent'}", ModelNotFoundError),
        (str(cut), CheckpointError),
        (str(odd), CheckpointError),
        (f"{a} + {dora}", UsageError),
        (f"{a} + {a}", UsageError),
    ]
    for name, error in wrong:
        with pytest.raises(error):
            engine.activate(name)
        assert engine.info.adapter == blend
        assert same(answered(engine, 21), before)
    engine.activate(dora)
    assert answered(engine, 21) == expected(dora, 21)


def test_an_interrupted_switch_is_told_by_the_engine(engine: Engine, folders: tuple[str, str]) -> None:
    engine.activate(None)

    def interrupted(messages: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{type(engine).__module__}.receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.activate(folders[0])
    assert engine.info.adapter == folders[0]  # it was made all the same


def test_an_adapter_whose_files_have_changed_is_read_again(engine: Engine, tmp_path: Path) -> None:
    folder = save(tmp_path / "notes", 5)
    engine.activate(folder)
    before = answered(engine, 23)
    save(tmp_path / "notes", 6)
    assert same(answered(engine, 23), before)
    engine.activate(folder)
    assert answered(engine, 23) == expected(folder, 23)
    assert not same(before, expected(folder, 23))


def test_an_engine_that_crashed_comes_back_with_the_active_adapter(folders: tuple[str, str]) -> None:
    engine = ProcessEngine("maclet", folders[1])
    engine.activate(folders[0])
    os.kill(engine._child.process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    deadline = time.monotonic() + 30
    while not engine._child.crashed:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert answered(engine) == expected(folders[0])
    engine.close()


def test_a_model_loaded_again_for_its_kernels_keeps_the_active_adapter(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cpu.available():
        pytest.skip("no kernels")
    compiled = threading.Event()
    monkeypatch.setattr(cpu, "available", compiled.is_set)
    loads: list[bool] = []

    def load() -> Any:
        loads.append(compiled.is_set())
        return macllm.load(adapter=folders[1])

    engine = ThreadEngine(load, "maclet", adapter=folders[1])
    engine.activate(folders[0])
    compiled.set()
    assert [token for token, _ in answered(engine)] == [token for token, _ in expected(folders[0])]
    assert engine.info.adapter == folders[0]
    engine.close()
    assert loads == [False, True]


def test_adapters_that_are_not_active_are_kept_up_to_a_bound(folders: tuple[str, str], tmp_path: Path) -> None:
    a, b = folders
    model, _ = macllm.load()
    names = [a, b, save(tmp_path / "c", 7)]
    sizes = [sum(array.nbytes for array in mx.load(f"{name}/adapters.safetensors").values()) for name in names]
    for name in names:
        adapter.attach_blend(model, {name: 1.0}, keep_bytes=sum(sizes))
    assert list(adapter.attached(model)) == names
    adapter.attach_blend(model, {a: 1.0}, keep_bytes=sizes[2])  # b was used before c
    assert adapter.attached(model) == {names[2]: 0.0, a: 1.0}
    adapter.attach_blend(model, {})
    assert adapter.attached(model) == {}
