"""Distillation: loss and every gradient against TRL and torch, a teacher on disk, and known bugs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import checkpoint
from macllm.checkpoint import load_model
from macllm.errors import DataError, UsageError
from macllm.nn import loss as chunks
from macllm.nn import quantize
from macllm.ops.quantized import using_activations
from macllm.train import finetune, pretrain
from macllm.train.config import FinetuneConfig, PretrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts, Finished
from macllm.train.objectives import divergence as divergences
from macllm.train.objectives import teacher as teachers
from macllm.train.objectives.distil import Distil
from macllm.train.objectives.divergence import compared, divergence, likeliest, log_softmax
from macllm.train.objectives.teacher import Teacher
from tests.learning.distillation import measured
from tests.tables.gradients import CASES, VOCAB, example, weighted, written
from tests.tables.twins import Twins
from tests.train.recipes import write_recipe
from tests.train.toy import random_llama

BATCHES = {
    "unequal lengths": [example(17, 5), example(2, 1), example(11, 3), example(23, 9)],
    "a masked row": [example(19, 19), example(8, 2), example(13, 4)],
    "token 0 in the text": [example(14, 3, zeros=True), example(9, 3, zeros=True, seed=1)],
    "loss weights": [weighted(example(22, 4), 1.0, 0.25, 3.0), weighted(example(10, 3), 0.5)],
}
KINDS: dict[str, dict[str, Any]] = {
    "forward": {"kind": "forward"},
    "reverse": {"kind": "reverse", "temperature": 2.0},
    "jsd": {"kind": "jsd", "jsd_weight": 0.3, "temperature": 1.5, "data_weight": 0.4},
    "jsd, the teacher's bucket": {"kind": "jsd", "jsd_weight": 0.6, "top": 5},
    "forward, a bucket": {"kind": "forward", "temperature": 3.0, "top": 4, "data_weight": 0.0},
    "reverse, others left out": {"kind": "reverse", "top": 6, "others": "left-out"},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Twins, Any, Any]]:
    """Student and its twin, our teacher and transformers' of the same weights, with another shape."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("distil")
    oracle = written(CASES["Llama, grouped queries"], folder / "base")
    theirs = written(CASES["Qwen3"], folder / "teacher").eval()
    yield Twins(load_model(folder / "base"), oracle, folder), Teacher(load_model(folder / "teacher")), theirs
    torch.set_num_threads(threads)


def padded(rows: Sequence[Any]) -> tuple[dict[str, Any], Any, Any]:
    """torch's inputs of rows padded on both sides, labels (-100 without loss) and loss weights."""
    import torch

    longest = max(map(len, rows)) + 2
    tokens, labels, real = (np.full((len(rows), longest), fill) for fill in (0, -100, 0))
    weights = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        start = (longest - len(row)) // 2
        at = slice(start, start + len(row))
        tokens[i, at], labels[i, at] = row.tokens, np.where(row.loss_mask, row.tokens, -100)
        real[i, at], weights[i, at] = 1, row.loss_weights
    positions = np.maximum(0, real.cumsum(1) - 1)
    inputs = {"input_ids": tokens, "attention_mask": real, "position_ids": positions}
    given = {name: torch.tensor(value) for name, value in inputs.items()} | {"use_cache": False}
    return given, torch.tensor(labels), torch.tensor(weights)


def reference(rows: Sequence[Any], theirs: Any, settings: dict[str, Any]) -> Any:
    """The loss in torch: TRL's divergence on all tokens, torch's KLDivLoss on the teacher's likeliest."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div
    from trl.experimental.gkd import GKDTrainer

    temperature, share = settings.get("temperature", 1.0), settings.get("data_weight", 0.1)
    beta = {"forward": 0, "reverse": 1, "jsd": settings.get("jsd_weight", 0.5)}[settings["kind"]]

    def over_all(student: Any, teacher: Any) -> Any:
        return GKDTrainer.generalized_jsd_loss(
            student, teacher, beta=beta, temperature=temperature, reduction="none"
        ).sum(-1)

    def over_likeliest(student: Any, teacher: Any) -> Any:
        q, p = ((logits / temperature).softmax(-1) for logits in (student, teacher))
        chosen = p.topk(settings["top"], -1).indices
        rest = torch.ones_like(p, dtype=torch.bool).scatter(-1, chosen, False)
        q, p = (torch.cat([x.gather(-1, chosen), (x * rest).sum(-1, keepdim=True)], -1) for x in (q, p))
        if settings.get("others") == "left-out":
            q, p = (x[..., :-1] / x[..., :-1].sum(-1, keepdim=True) for x in (q, p))
        if beta in (0, 1):
            a, b = (p, q) if beta == 0 else (q, p)
            return kl_div(b.log(), a, reduction="none").sum(-1)
        m = (beta * p + (1 - beta) * q).log()
        return beta * kl_div(m, p, reduction="none").sum(-1) + (1 - beta) * kl_div(m, q, reduction="none").sum(-1)

    def loss(oracle: Any) -> Any:
        inputs, labels, weights = padded(rows)
        wide = next(oracle.parameters()).dtype
        with torch.no_grad():
            teacher = theirs.to(wide)(**inputs).logits[:, :-1]
        student, labels, weights = oracle(**inputs).logits[:, :-1], labels[:, 1:], weights[:, 1:]
        mask = labels != -100
        student, teacher, weights = student[mask], teacher[mask], weights[mask].to(wide)
        soft = (over_likeliest if "top" in settings else over_all)(student, teacher)
        hard = cross_entropy(student, labels[mask], reduction="none")
        losses = (1 - share) * temperature**2 * soft + share * hard
        return (losses * weights).sum() / weights.sum()

    return loss


def step(model: nn.Module, objective: Distil, rows: Sequence[Any]) -> tuple[float, dict[str, mx.array]]:
    """The mean loss over targets, and its gradients."""
    batch = objective.collate(rows, np.random.default_rng(0))
    with using_activations("float"):  # as in training
        (total, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
        mx.eval(total, tree)
    return total.item() / units, {name: gradient / units for name, gradient in tree_flatten(tree)}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient_are_those_of_trl_and_torch(
    kind: str, in_chunks: bool, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins, teacher, theirs = pair
    if in_chunks:
        for name, value in (("_CHUNK_BYTES", 0), ("_FEWEST_ROWS", 5), ("_RECOMPUTED_BYTES", 0)):
            monkeypatch.setattr(chunks, name, value)
        if "top" not in KINDS[kind]:  # as with a vocabulary of usual size
            monkeypatch.setattr(divergences, "_FEW", 0)
    twins.model.train()
    for name, rows in BATCHES.items():
        objective = Distil(teacher, **KINDS[kind])
        difference = twins.difference(*step(twins.model, objective, rows), reference(rows, theirs, KINDS[kind]))
        assert difference.held, (name, difference)


def finished(work: Any) -> Any:
    """The result of a generator."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


ROWS = [example(n, 2, seed=n) for n in (9, 30, 3, 17, 12)]


@pytest.fixture
def models() -> tuple[nn.Module, nn.Module]:
    """A student and a teacher with a larger head."""
    return random_llama(vocab_size=VOCAB), random_llama(vocab_size=VOCAB + 5, hidden_size=32)


def stored(objective: Distil, student: nn.Module, folder: Path) -> Dataset[Any]:
    return finished(objective.prepare(student, Dataset(ROWS[:3], ROWS[3:], Counts()), folder, ""))


@pytest.mark.parametrize("bits", [None, 4])
def test_a_teacher_on_disk_gives_the_loss_of_one_beside(
    models: Any, bits: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = models
    monkeypatch.setattr(teachers, "_PART_TARGETS", 20)
    monkeypatch.setattr(teachers, "_BATCH_TOKENS", 31)
    if bits:
        quantize.apply(teacher, bits=bits, group_size=32)
    settings: dict[str, Any] = {"kind": "jsd", "temperature": 2.0, "top": 7}
    beside = step(student, Distil(Teacher(teacher), **settings), ROWS[:3])
    objective = Distil(Teacher(teacher), **settings, first=True)
    dataset = stored(objective, student, tmp_path)
    assert len(list(tmp_path.glob("teacher/*/part-*.safetensors"))) == 2
    loss, gradients = step(student, objective, dataset.train)
    assert loss == pytest.approx(beside[0], rel=1e-6)
    for name, gradient in beside[1].items():
        assert float(mx.abs(gradients[name] - gradient).max()) <= 5e-6 * float(mx.abs(gradient).max()), name
    swapped = step(student, objective, [dataset.train[1], dataset.train[0], dataset.train[2]])
    assert swapped[0] == pytest.approx(loss, rel=1e-6)


def test_all_tokens_as_the_likeliest_are_the_whole_distribution(models: Any) -> None:
    student, teacher = models
    for kind in ("forward", "reverse", "jsd"):
        settings: dict[str, Any] = {"teacher": Teacher(teacher), "kind": kind}
        some, all_of_them = (step(student, Distil(**settings, top=top), ROWS) for top in (VOCAB, 0))
        assert some[0] == pytest.approx(all_of_them[0], rel=1e-6)


def test_a_bucket_never_exceeds_the_whole_divergence_and_grows_with_its_tokens() -> None:
    random = np.random.default_rng(0)
    log_p, log_q = (log_softmax(mx.array(random.normal(size=(50, 40)) * 3), 1.0) for _ in range(2))
    whole = divergence(log_p, log_q, "forward")
    before = mx.zeros(50)
    for count in (1, 4, 20, 39):
        found = divergence(*compared(likeliest(log_p, count), log_q, "bucket"), "forward")
        assert bool(mx.all(found <= whole + 1e-5))
        assert bool(mx.all(found >= before - 1e-5))
        before = found


def test_the_rest_of_a_peaked_distribution_is_not_rounded_away() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    logits[:, :3] += 25
    exact = logits.astype(np.float64)
    wanted = np.log(np.exp(exact[:, 3:]).sum(1)) - np.log(np.exp(exact).sum(1))
    found = likeliest(log_softmax(mx.array(logits), 1.0), 3)
    assert wanted.max() < np.log(1e-8)
    np.testing.assert_allclose(np.array(found.log_others)[:, 0], wanted, rtol=1e-6)


def test_equal_distributions_have_no_divergence_and_no_gradient() -> None:
    logits = mx.array(np.random.default_rng(0).normal(size=(6, 11)) * 4)
    log_p = log_softmax(logits, 2.0)
    for kind in ("forward", "reverse", "jsd"):
        value, slope = mx.value_and_grad(lambda z: divergence(log_p, log_softmax(z, 2.0), kind).sum())(logits)  # noqa: B023
        assert abs(value.item()) < 1e-6
        assert float(mx.abs(slope).max()) < 1e-6


def test_a_half_done_pass_of_the_teacher_goes_on(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = models
    monkeypatch.setattr(teachers, "_PART_TARGETS", 10)
    asked: list[int] = []
    hidden = Teacher.hidden
    monkeypatch.setattr(Teacher, "hidden", lambda self, rows: asked.append(1) or hidden(self, rows))

    def prepared() -> Dataset[Any]:
        return stored(Distil(Teacher(teacher, digest="a"), top=3, first=True), student, tmp_path)

    whole = prepared().fingerprint()
    files = sorted(tmp_path.glob("teacher/*/*"))
    assert len(asked) == len(files) == 3
    contents = [path.read_bytes() for path in files]
    files[1].unlink()
    files[2].write_bytes(contents[2][:-4])  # damaged
    assert prepared().fingerprint() == whole
    assert len(asked) == len(files) + 2
    assert [path.read_bytes() for path in files] == contents
    other = stored(Distil(Teacher(teacher, digest="b"), top=3, first=True), student, tmp_path)
    assert len(asked) == 2 * len(files) + 2
    assert other.fingerprint() != whole


def test_a_longer_row_than_the_teachers_context_is_an_error(models: Any) -> None:
    student, teacher = models
    teacher.info = dataclasses.replace(teacher.info, context_length=20)
    with pytest.raises(DataError, match="has 30 tokens; the context of teacher holds 20"):
        stored(Distil(Teacher(teacher)), student, Path())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    write_recipe(folder)
    pretrain.train(PretrainConfig.load(folder / "recipe.toml", output=folder / "run", iters=1))
    return folder


def config(base: Path, out: Path, **settings: Any) -> FinetuneConfig:
    model = base / "run/model"
    defaults = {"data": base, "model": model, "teacher": model, "objective": "distil", "batch_size": 8, "iters": 2}
    return FinetuneConfig.load(adapter_path=out, **(defaults | settings))


def run(base: Path, out: Path, **settings: Any) -> list[Any]:
    return list(finetune.events(config(base, out, **settings)))


def test_a_run_with_the_teacher_first_resumes_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    settings = {"teacher_top": 4, "teacher_first": True, "divergence": "reverse", "iters": 4, "save_every": 2}
    assert isinstance(run(base, tmp_path / "whole", **settings)[-1], Finished)
    for event in finetune.events(config(base, tmp_path / "stopped", **settings)):
        if getattr(event, "work", "") == "training" and event.done == 2:
            break
    resumed = FinetuneConfig.load(adapter_path=tmp_path / "stopped", resume=True)
    assert isinstance(list(finetune.events(resumed))[-1], Finished)
    name = "adapters.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    evaluated = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()][1]
    assert set(evaluated["metrics"]) == {"cross_entropy", "divergence"}


def test_a_teacher_with_other_tokens_is_refused_with_the_difference(base: Path, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load(base / "run/model")
    checkpoint.save(model, tokenizer, tmp_path / "teacher")
    path = tmp_path / "teacher/tokenizer.json"
    path.write_text(path.read_text().replace('"<user>"', '"<human>"'))
    with pytest.raises(UsageError, match="different vocabularies") as error:
        run(base, tmp_path / "out", teacher=tmp_path / "teacher")
    assert "1 differ: 1 is '<human>' in" in str(error.value.cause)


@pytest.mark.slow
def test_a_student_with_a_teacher_beats_one_on_the_rows_alone() -> None:
    found = measured(0, steps=80)
    assert found["entropy"] < found["teacher"] < found["forward"] < found["rows"] - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": ""}, "there is no teacher"),
        ({"teacher_first": True}, "teacher_first needs teacher_top"),
        ({"jsd_weight": 0.2}, "jsd_weight has no effect"),
        ({"teacher_others": "left-out"}, "teacher_others has no effect"),
        ({"data_weight": 1.0}, "data_weight cannot be"),
        ({"objective": "sft"}, "teacher has no effect"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FinetuneConfig.load(**({"data": "x", "objective": "distil", "teacher": "t"} | settings))
