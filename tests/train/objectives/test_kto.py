"""KTO: loss and every gradient against TRL, mismatched answers, and one divergence for a whole step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.errors import DataError
from macllm.train.config import FinetuneConfig
from macllm.train.objectives.kto import KTO, Judged
from macllm.train.objectives.mismatch import joined, partners, prompt_length
from macllm.train.rows import PlainText, Preference, UnpairedPreference
from macllm.train.sources import Rows, measured
from tests.tables.gradients import ADAPTED, example
from tests.train.objectives.test_dpo import prepared
from tests.train.objectives.trl_trainers import WithReference, of_same_type, padded
from tests.train.toy import CharTokenizer, random_llama

pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES = {
    "unequal lengths": [(example(17, 11), True), (example(8, 6), False), (example(4, 2), False)],
    "the same answer, good and bad": [(example(12, 8), True), (example(12, 8), False), (example(6, 3), True)],
    "answers of one token": [(example(7, 6), False), (example(11, 10), True), (example(2, 1), True)],
    "good answers only": [(example(15, 12), True), (example(9, 4), True)],
    "bad answers only": [(example(15, 12), False), (example(9, 4), False)],
    "token 0 in the text": [(example(14, 10, zeros=True), True), (example(9, 6, zeros=True, seed=1), False)],
    "a masked answer": [(example(9, 9), True), (example(12, 8), False), (example(5, 2), True)],
}


def kto(**settings: Any) -> KTO:
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    return KTO(FinetuneConfig(data="x", objective="kto", **{"beta": 0.3, **weights, **settings}))


class Sides(WithReference):
    """A model of ours with its reference, and TRL's trainer of models with the same weights."""

    def __init__(self, folder: Path, adapter: str = "") -> None:
        super().__init__(folder, adapter)
        settings = {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.3}
        self.trl = self.trainer("kto", folder / "trl", **settings)

    def examples(self, answers: Sequence[tuple[Any, bool]]) -> list[Judged]:
        """Prepared examples, the reference stored for a model and live for an adapter."""
        made = prepared(kto(), self.other or self.twins.model, [Judged(*each) for each in answers])
        return made if self.other else [replace(one, reference=None) for one in made]

    def theirs(self, examples: Sequence[Judged]) -> Callable[[Any], Any]:
        """TRL's loss of a batch."""
        import torch

        # TRL hands one set of positions to two inputs of different widths.
        batch = padded([one.answer for one in examples], positions=False)
        batch |= padded([one.mismatched for one in examples], "KL_", positions=False)
        batch["label"] = torch.tensor([one.is_good for one in examples])

        def loss(oracle: Any) -> Any:
            with of_same_type(self.other_oracle, oracle):
                return self.trl._compute_loss(oracle, batch, False)

        return loss


def step(model: Any, objective: KTO, parts: Sequence[Sequence[Judged]]) -> tuple[float, dict[str, Any], float]:
    """The mean loss over micro-batches, its gradients, and the divergence of the step."""
    batches = [objective.collate(part, np.random.default_rng(0)) for part in parts]
    total, units, summed = 0.0, 0.0, {}
    batches = objective.measured(model, batches, batches)
    for batch in batches:
        (loss, count, _), tree = nn.value_and_grad(model, lambda batch=batch: objective.loss(model, batch))()
        total, units = total + loss.item(), units + count
        summed = {name: summed.get(name, 0.0) + gradient for name, gradient in tree_flatten(tree)}
    return total / units, {name: gradient / units for name, gradient in summed.items()}, batches[0].divergence or 0.0


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Sides:
    return Sides(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Sides:
    return Sides(tmp_path_factory.mktemp("adapted"), next(iter(ADAPTED)))


@pytest.mark.parity
@pytest.mark.parametrize("batch", BATCHES)
def test_loss_and_every_gradient_of_a_whole_model_are_those_of_trl(batch: str, full: Sides) -> None:
    examples = full.examples(BATCHES[batch])
    loss, gradients, _ = step(full.twins.model, kto(), [examples])
    difference = full.twins.difference(loss, gradients, full.theirs(examples))
    assert difference.held, difference


@pytest.mark.parity
@pytest.mark.parametrize("batch", ["unequal lengths", "answers of one token"])
def test_loss_and_every_gradient_of_an_adapter_are_those_of_trl(batch: str, adapted: Sides) -> None:
    examples = adapted.examples(BATCHES[batch])
    loss, gradients, _ = step(adapted.twins.model, kto(), [examples])
    difference = adapted.twins.difference(loss, gradients, adapted.theirs(examples))
    assert difference.held, difference


@pytest.mark.parity
def test_a_wrong_sign_of_the_divergence_is_found(full: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, batches = (
        KTO.measured,
        (full.examples(BATCHES["unequal lengths"]), full.examples(BATCHES["a masked answer"])),
    )
    examples = max(batches, key=lambda each: step(full.twins.model, kto(), [each])[2])

    def turned(*arguments: Any) -> Any:
        return [replace(batch, divergence=-(batch.divergence or 0.0)) for batch in measure(*arguments)]

    monkeypatch.setattr(KTO, "measured", turned)
    loss, gradients, divergence = step(full.twins.model, kto(), [examples])
    assert divergence < -0.5
    assert not full.twins.difference(loss, gradients, full.theirs(examples)).held


@pytest.mark.parity
def test_both_signs_of_the_estimated_divergence_are_compared(full: Sides) -> None:
    found = {name: step(full.twins.model, kto(), [full.examples(rows)])[2] for name, rows in BATCHES.items()}
    assert min(found.values()) == 0.0, found
    assert sum(divergence > 0.5 for divergence in found.values()) >= 2, found


def toy(rows: Sequence[tuple[Any, bool]] = BATCHES["unequal lengths"]) -> tuple[nn.Module, list[Judged]]:
    """A model away from its reference, to a positive divergence, and prepared examples."""
    model = random_llama(vocab_size=67)
    found = prepared(kto(), model, [Judged(*each) for each in rows])
    random = np.random.default_rng(0)
    away = [replace(one, reference=(one.reference[0] + random.normal(), one.reference[1] - random.random()))
            for one in found if one.reference is not None]  # fmt: skip
    return model, away


def test_the_split_into_micro_batches_does_not_matter() -> None:
    model, examples = toy([*BATCHES["unequal lengths"], *BATCHES["answers of one token"]])
    loss, gradients, divergence = step(model, kto(), [examples])
    assert divergence > 0
    for parts in ([examples[:1], examples[1:]], [[one] for one in examples]):
        split = step(model, kto(), parts)
        assert split[0] == pytest.approx(loss, rel=1e-6)
        assert split[2] == pytest.approx(divergence, rel=1e-6)
        for name, gradient in gradients.items():
            difference = float(mx.abs(split[1][name] - gradient).max())
            assert difference <= 5e-6 * float(mx.abs(gradient).max()), name


def test_every_process_and_every_micro_batch_gets_the_divergence_of_the_whole_step() -> None:
    model, examples = toy([*BATCHES["unequal lengths"], *BATCHES["answers of one token"]])
    source = Rows(kto(), examples, batch_size=2, accumulation=3, seed=0)
    whole = list(source.batches(0, model))
    parts = [batch for rank in range(2) for batch in source.part(rank, 2).batches(0, model)]
    halved = list(source.regrouped(1).batches(0, model))
    assert sum(map(len, parts)) == sum(map(len, halved)) == 6
    for batch in (*whole, *parts, *halved):
        assert batch.divergence == pytest.approx(whole[0].divergence, rel=1e-6)
        assert batch.divergence > 0
    (checked,) = measured(kto(), model, [replace(whole[0], divergence=None)])
    assert checked.divergence not in (None, whole[0].divergence)


def test_a_batch_that_was_not_measured_is_refused() -> None:
    model, examples = toy()
    with pytest.raises(ValueError, match="not measured"):
        kto().loss(model, kto().collate(examples, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="no mismatched"):
        kto().collate([replace(examples[0], mismatched=None)], np.random.default_rng(0))


@pytest.mark.parametrize("sizes", [[1, 1], [2, 2, 2], [3, 1, 2], [5, 1, 1], [1] * 30])
def test_partners_have_another_prompt_and_each_answer_is_taken_once_where_possible(sizes: list[int]) -> None:
    examples = [replace(example(12, 8, seed=prompt), where=str(prompt))
                for prompt, size in enumerate(sizes) for _ in range(size)]  # fmt: skip
    for seed in range(3):
        found = partners(examples, seed)
        assert found == partners(examples, seed)
        assert all(examples[at].where != examples[other].where for at, other in enumerate(found))
        assert (len(set(found)) == len(found)) == (2 * max(sizes) <= sum(sizes))


def test_rows_of_a_single_prompt_are_refused() -> None:
    with pytest.raises(DataError, match="the same prompt"):
        partners([example(12, 8), example(12, 8)], 0)


def test_a_mismatched_answer_has_its_own_tokens_and_weights_and_is_cut() -> None:
    asked, answered = example(12, 8), example(9, 4, seed=3)
    made = joined(asked, answered, 100)
    assert made.tokens.tolist() == [*asked.tokens[:8], *answered.tokens[4:]]
    assert np.flatnonzero(made.loss_mask).tolist() == [8, 9, 10, 11, 12]
    assert len(joined(asked, answered, 10)) == 10
    assert prompt_length(example(6, 6)) == 6


def test_rows_with_a_verdict_and_pairs_are_answers_with_a_verdict() -> None:
    tokenizer, objective = CharTokenizer(), kto()
    (one,) = objective.examples(UnpairedPreference("ab", "cd", False, "here:1"), tokenizer)
    pair = objective.examples(Preference("ab", "cd", "ef", "here:2"), tokenizer)
    assert (one.is_good, one.ends, one.num_target_tokens) == (False, True, 3)
    assert [each.is_good for each in pair] == [True, False]
    assert one.answer.fingerprint() == pair[0].answer.fingerprint() != pair[1].answer.fingerprint()
    assert one.fingerprint() != pair[0].fingerprint()
    with pytest.raises(DataError, match="row of kind text"):
        objective.examples(PlainText("ab", "here:3"), tokenizer)
