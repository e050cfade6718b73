"""A reward by a reward model: one of `finetune --objective reward`, or any with a head of one label."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from macllm import adapter, checkpoint
from macllm.errors import UsageError
from macllm.train.objectives.reward import reward

from .answers import Answers

_ADAPTER = "adapter_config.json"


class RewardModel:
    """The rewards of a model that is named by a folder, an adapter's folder, or "org/name"."""

    def __init__(self, name: str) -> None:
        """Load the model. Raises UsageError for a model without a head of one label, and as `macllm.load`."""
        self._model, self._tokenizer = _loaded(name)
        head = self._model.info.labels
        if head is None or head.count != 1:
            raise UsageError(
                f"{name} is no reward model",
                cause="it has no head of one label",
                remedy="macllm finetune --objective reward",
            )
        self._model.eval()

    def __call__(self, answers: Answers) -> list[float]:
        """A number for each answer, read after its prompt as in the model's training."""
        read = [self._conversation(answers.prompt, text) for text in answers.completions]
        return [float(each) for each in reward(self._model, self._tokenizer, read)]

    def _conversation(self, prompt: Any, completion: str) -> str | list[dict[str, Any]]:
        if isinstance(prompt, str) and self._tokenizer.chat_template is None:
            return prompt + completion
        asked = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else cast("list[dict[str, Any]]", prompt)
        )
        return [*asked, {"role": "assistant", "content": completion}]


def _loaded(name: str) -> tuple[Any, Any]:
    folder = Path(name)
    if not (folder / _ADAPTER).is_file():
        return checkpoint.load(name)
    base = adapter.read_config(folder).get("model")
    if not isinstance(base, str):
        raise UsageError(f"{folder} does not say which model it adapts", remedy="macllm fuse, and the merged model")
    return checkpoint.load(base, adapter=folder)
