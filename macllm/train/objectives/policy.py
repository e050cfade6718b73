"""Learning from rewards of generated answers: what GRPO and PPO share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import numpy as np

from macllm.errors import DoesNotFitError
from macllm.nn import lora
from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.contract import Loss, Source
from macllm.train.inference import evaluating
from macllm.train.render import TextTokenizer
from macllm.train.rewards import Answers, Rewards, combined
from macllm.train.rewards.rules import ExactMatch
from macllm.train.rollouts.experience import AnswerGroup, Columns, Experience, Rollout
from macllm.train.rollouts.sampling import ROWS, SampledCompletion, SamplingTask, sample
from macllm.train.rollouts.source import Plan, Rollouts
from macllm.train.rows import Row

from .clm import Batch, collate, target_losses
from .prompts import PromptBatch, PromptExample, to_prompt

_VALIDATION = 2**32 - 1  # in the place of a rollout's number


@dataclass(frozen=True)
class PolicyBatch:
    """Answers after their prompts, B rows, and numbers for their N tokens, row after row.

    Each is (N,) float32. `scales` are the weights of the tokens' losses; `metrics` are those of the whole rollout.
    """

    rows: Batch
    scales: np.ndarray
    columns: Columns
    metrics: dict[str, float]

    @property
    def num_target_tokens(self) -> int:
        """Number of the answers' tokens."""
        return self.rows.num_target_tokens

    def __len__(self) -> int:
        return len(self.rows.inputs)

    def column(self, name: str) -> mx.array:
        """A number for each token, (N,) float32."""
        return mx.array(self.columns[name])

    def sums(self, values: mx.array, rows: mx.array) -> mx.array:
        """Sums (B,) of the tokens' values (N,), which are of these rows (N,)."""
        return mx.zeros(len(self)).at[rows].add(values)

    def mean_per_row(self, values: mx.array, rows: mx.array) -> mx.array:
        """The sum over rows of the means of their values, without a gradient: a metric."""
        counts = mx.maximum(self.sums(mx.ones(values.shape), rows), 1)
        return mx.stop_gradient((self.sums(values, rows) / counts).sum())

    def shared_metrics(self) -> dict[str, mx.array]:
        """The metrics of the rollout as sums over the rows."""
        return {name: mx.array(value * len(self)) for name, value in self.metrics.items()}


class PolicyObjective(ABC):
    """Prompts in, rewarded answers out; subclasses add credit and loss."""

    def __init__(self, config: FinetuneConfig, num_generations: int, num_iterations: int) -> None:
        self.config = config
        self.num_generations = config.num_generations or num_generations
        self.num_iterations = config.num_iterations or num_iterations
        self._rewards: Rewards | None = None
        self._tokenizer: TextTokenizer | None = None
        self._ends = frozenset[int]()

    def examples(self, row: Row, tokenizer: TextTokenizer) -> list[PromptExample]:
        """The prompt of a row. Raises DataError for a row without a column that a reward reads."""
        example = to_prompt(row, tokenizer, self.config.now)
        if "exact_match" in self.config.rewards:
            ExactMatch(self.config.answer_feature).check(example.columns, example.where)
        return [example]

    def collate(self, examples: Sequence[PromptExample], random: np.random.Generator) -> PromptBatch:
        """Prompts to answer; nothing in it is random."""
        return PromptBatch(list(examples))

    def bound(self, model: LanguageModel, tokenizer: TextTokenizer) -> Self:
        """The objective with its rewards, and the tokens that end an answer."""
        one = copy.copy(self)
        one._tokenizer = tokenizer
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        one._ends = frozenset({*model.info.eos, *tokenizer.end_token_ids, *own})
        one._rewards = combined(self.config, model, tokenizer)
        return one

    def source(self, prompts: Source[PromptBatch], micro_batch: int) -> Rollouts[PolicyBatch]:
        """The batches of answers to these prompts."""
        config = self.config
        size = micro_batch * self.num_generations
        return Rollouts(prompts, self, Plan(self.num_iterations, config.num_minibatches, size, config.seed))

    def evaluate(self, model: LanguageModel, batch: PromptBatch) -> Loss:
        """Minus the mean reward of one answer to each prompt, drawn with the same seed each time.

        Answers without a reward do not count.
        """
        seeds = [[_seed(self.config.seed, _VALIDATION, *_place(each))] for each in batch.prompts]
        completions = self._sampled(model, batch.prompts, seeds)
        found = np.concatenate([self._reward(*each) for each in zip(batch.prompts, completions, strict=True)])
        valid = np.isfinite(found)
        total = mx.array(found[valid].sum(), dtype=mx.float32)
        return Loss(-total, float(valid.sum()), {"reward": total})

    def answered(self, model: LanguageModel, batches: Sequence[PromptBatch], number: int) -> list[AnswerGroup]:
        """Rewarded answers to the prompts of rollout `number`, each sampled by a seed of its own."""
        prompts = [each for batch in batches for each in batch.prompts]
        seeds = [[_seed(self.config.seed, number, at, each) for each in range(self.num_generations)]
                 for at in range(len(prompts))]  # fmt: skip
        completions = self._sampled(model, prompts, seeds)
        columns = self._observed(model, prompts, completions)
        return [
            AnswerGroup(prompt.tokens, prompt.where, own, self._reward(prompt, own), numbers)
            for prompt, own, numbers in zip(prompts, completions, columns, strict=True)
        ]

    def batch(self, experiences: Sequence[Experience], whole: Sequence[Experience], rollout: Rollout) -> PolicyBatch:
        """The batch of some of the experiences of a step, whose experiences are `whole`."""
        lengths = np.array([len(each) for each in experiences])
        weights = self.token_weights(lengths, np.array([len(each) for each in whole]))
        columns = {name: np.concatenate([each.columns[name] for each in experiences])
                   for name in experiences[0].columns}  # fmt: skip
        rows = collate([each.example for each in experiences])
        return PolicyBatch(rows, np.repeat(weights, lengths).astype(np.float32), columns, dict(rollout.metrics))

    @abstractmethod
    def token_weights(self, lengths: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """The weight of the tokens of answers, (B,), by the lengths of these and of all answers of a step.

        The loop divides by the number of answers.
        """
        ...

    @abstractmethod
    def credited(self, groups: Sequence[AnswerGroup]) -> list[list[Columns]]:
        """The columns of each completion of each group, advantages among them."""
        ...

    def observed(self, model: LanguageModel, rows: Batch) -> dict[str, mx.array]:
        """Numbers of the N tokens of answers by the weights that drew them, each (N,): those of the reference."""
        if not self.config.kl_coefficient:
            return {}
        with lora.disabled(model):  # type: ignore[arg-type]
            return {"reference": -target_losses(model, rows)[0]}

    def _sampled(
        self, model: LanguageModel, prompts: Sequence[PromptExample], seeds: Sequence[Sequence[int]]
    ) -> list[list[SampledCompletion]]:
        asked = [
            SamplingTask(each.tokens, own, self._limit(model, each)) for each, own in zip(prompts, seeds, strict=True)
        ]
        return sample(model, asked, ends=self._ends)

    def _limit(self, model: LanguageModel, prompt: PromptExample) -> int:
        """The longest answer. Raises DoesNotFitError if the context has no room for one token."""
        context = model.info.context_length or len(prompt) + self.config.max_completion_length
        if context <= len(prompt):
            raise DoesNotFitError(
                f"{prompt.where} has {len(prompt)} tokens, and the model's context is {context}",
                remedy="a smaller --max-seq-length with --long-rows drop",
            )
        return min(self.config.max_completion_length, context - len(prompt))

    def _reward(self, prompt: PromptExample, completions: Sequence[SampledCompletion]) -> np.ndarray:
        assert self._rewards is not None  # `bound` comes first
        assert self._tokenizer is not None
        ids = [[t for t in each.tokens.tolist() if t not in self._ends] for each in completions]
        texts = [self._tokenizer.decode(each) for each in ids]
        tokens = [each.tokens.tolist() for each in completions]
        return self._rewards(Answers(prompt.prompt, texts, tokens, prompt.columns, prompt.where))

    def _observed(
        self,
        model: LanguageModel,
        prompts: Sequence[PromptExample],
        completions: Sequence[Sequence[SampledCompletion]],
    ) -> list[list[Columns]]:
        """The columns of each completion of each prompt before its reward is known."""
        answers = [(prompt.tokens, each) for prompt, own in zip(prompts, completions, strict=True) for each in own]
        columns: list[Columns] = []
        for start in range(0, len(answers), ROWS):
            part = answers[start : start + ROWS]
            rows = collate([Experience.of(*each, {}).example for each in part])
            with evaluating(model):
                found = {name: np.array(values) for name, values in self.observed(model, rows).items()}
            bounds = np.cumsum([0, *(len(completion) for _, completion in part)])
            for (_, completion), first, last in zip(part, bounds[:-1], bounds[1:], strict=True):
                columns.append({"old": completion.log_probs} | {n: v[first:last] for n, v in found.items()})
        each = iter(columns)
        return [[next(each) for _ in own] for own in completions]


def _seed(*position: int) -> int:
    """A seed of 32 bits as a function of a position."""
    return int(np.random.SeedSequence(position).generate_state(1)[0])


def _place(prompt: PromptExample) -> tuple[int, ...]:
    """Numbers that tell prompts apart."""
    return tuple(prompt.tokens.tolist())
