"""A teacher: a model beside a student, or one that runs first and leaves its likeliest tokens on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macllm import checkpoint, hub
from macllm.errors import CheckpointError, DataError, ModelNotFoundError, UsageError
from macllm.nn.protocol import LanguageModel
from macllm.ops.quantized import using_activations
from macllm.text.tokenizer import Tokenizer
from macllm.train.data import Dataset
from macllm.train.events import Advanced
from macllm.train.render import Example
from macllm.weights.fingerprint import fingerprint
from macllm.weights.safetensors import read_header, save_file

from .clm import Batch, collate, supervised
from .divergence import Likeliest

FOLDER = "teacher"  # of a run
_PART_TARGETS = 8192  # supervised tokens of a file, at least; what an interruption costs
_BATCH_TOKENS = 4096  # of a batch that the teacher reads
_NUMPY = {"U16": "<u2", "U32": "<u4", "F32": "<f4"}


class Teacher:
    """A frozen language model, named by `name`; `digest` is the fingerprint of its weights."""

    def __init__(self, model: LanguageModel, name: str = "teacher", digest: str = "") -> None:
        self.name, self.digest = name, digest
        self._model: LanguageModel | None = model
        self._width: int | None = None

    @classmethod
    def of(cls, name: str, student: str) -> Teacher:
        """The teacher of a folder or name. Raises UsageError unless its tokens are those of the student."""
        folder = hub.resolve(name)
        model, tokenizer = checkpoint.load(folder)
        if model.info.kind != "decoder":
            raise UsageError(f"{name} is not a causal language model", cause=f"it is of kind {model.info.kind}")
        check_vocabularies(tokenizer, name, Tokenizer.from_folder(hub.resolve(student)), student)
        return cls(model, name, fingerprint(folder))

    @property
    def model(self) -> LanguageModel:
        """The model, until it is released."""
        assert self._model is not None, "a teacher that has run first is not asked again"
        return self._model

    def release(self) -> None:
        """Free the memory of the weights."""
        self._model = None
        mx.clear_cache()

    def width(self, student: LanguageModel) -> int:
        """Number of logits that both have: heads of the same tokenizer may be padded to different sizes."""
        if self._width is None:
            self._width = min(_width(self.model), _width(student))
        return self._width

    def hidden(self, rows: Batch) -> mx.array:
        """Hidden states at the positions before each supervised token, (N, D), without gradients."""
        return mx.stop_gradient(supervised(self.model, rows)[0])

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, D) -> (N, V), without gradients."""
        return mx.stop_gradient(self.model.logits(hidden))

    def check_lengths(self, examples: Sequence[Example]) -> None:
        """Raise DataError for an example that is longer than the teacher's context."""
        limit = self.model.info.context_length
        longest = max(examples, key=len)
        if limit is not None and len(longest) > limit:
            raise DataError(
                f"{longest.where} has {len(longest)} tokens; the context of {self.name} holds {limit}",
                remedy=f"--max-seq-length {limit}",
            )

    def marked(self, dataset: Dataset[Example]) -> Dataset[Example]:
        """The dataset whose fingerprint depends on this teacher."""
        train, valid = ([Taught.of(each, self.digest) for each in part] for part in (dataset.train, dataset.valid))
        return replace(dataset, train=[*train], valid=[*valid])


def check_vocabularies(tokenizer: Tokenizer, name: str, other: Tokenizer, student: str) -> None:
    """Raise UsageError, with a difference, for two tokenizers of which some id is not the same token."""
    remedy = "a teacher with the student's tokenizer; a teacher with another can write answers (macllm data answer)"
    sizes = tokenizer.vocab_size, other.vocab_size
    differing = [index for index in range(min(sizes)) if tokenizer.id_to_token(index) != other.id_to_token(index)]
    if not differing and sizes[0] == sizes[1]:
        return
    cause = f"{name} has {sizes[0]} tokens, {student} {sizes[1]}"
    if differing:
        theirs, ours = (repr(each.id_to_token(differing[0])) for each in (tokenizer, other))
        cause = (
            f"of {min(sizes)} ids {len(differing)} differ: {differing[0]} is {theirs} in {name}, {ours} in the student"
        )
    raise UsageError("teacher and student have different vocabularies", cause=cause, remedy=remedy)


@dataclass(frozen=True)
class Stored:
    """Rows of a file with a teacher's likeliest tokens, mapped into memory."""

    file: TeacherFile
    start: int
    stop: int

    def read(self) -> tuple[np.ndarray, ...]:
        """Tokens, their log-probabilities, and that of all others: (N, k), (N, k), (N, 1)."""
        return tuple(array[self.start : self.stop] for array in self.file.arrays)


@dataclass(frozen=True)
class TeacherFile:
    """A file of a teacher's likeliest tokens, for some examples one after another."""

    path: Path
    targets: int

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays of the file, in the order of `Likeliest`. Raises CheckpointError for another file."""
        infos = read_header(self.path)
        try:
            given = [infos[name] for name in Likeliest._fields]
            kinds = [_NUMPY[info.dtype] for info in given]
        except KeyError as error:
            raise CheckpointError(f"{self.path} has no {error}") from error
        if any(info.shape[0] != self.targets for info in given):
            raise CheckpointError(f"{self.path} is not of {self.targets} tokens")
        return tuple(
            np.memmap(self.path, kind, "r", info.offset_bytes, info.shape)
            for kind, info in zip(kinds, given, strict=True)
        )

    @property
    def is_whole(self) -> bool:
        """True for a file that is there and sound."""
        try:
            return bool(self.arrays)
        except (CheckpointError, ModelNotFoundError):
            return False


@dataclass(frozen=True)
class Taught(Example):
    """An example with the fingerprint of its teacher, and that teacher's likeliest tokens."""

    teacher: str = ""
    known: Stored | None = None

    @classmethod
    def of(cls, example: Example, teacher: str, known: Stored | None = None) -> Taught:
        """The example with a teacher."""
        return cls(**{f.name: getattr(example, f.name) for f in fields(Example)}, teacher=teacher, known=known)

    def fingerprint(self) -> bytes:
        """The fingerprints of the example and of the teacher."""
        return super().fingerprint() + self.teacher.encode()


def taught(
    teacher: Teacher,
    dataset: Dataset[Example],
    folder: Path,
    facts: Sequence[Any],
    ask: Callable[[Batch], Likeliest],
) -> Generator[Advanced, None, Dataset[Example]]:
    """The dataset with the answers of `ask` to its batches, in files of `folder`, yielding progress.

    Files are complete or absent, and an interrupted pass goes on with the first that is absent. They are those of the
    same teacher, the same examples and the same `facts` only.
    """
    key = json.dumps([teacher.digest, dataset.fingerprint(), *facts, _PART_TARGETS])
    place = folder / FOLDER / hashlib.sha256(key.encode()).hexdigest()[:16]
    examples = [*dataset.train, *dataset.valid]
    made: list[Example] = []
    for number, some in enumerate(_parts(examples)):
        file = TeacherFile(place / f"part-{number:05d}.safetensors", sum(each.num_target_tokens for each in some))
        yield Advanced("asking the teacher", len(made), len(examples))
        if not file.is_whole:
            found: list[Likeliest] = []
            done = len(made)
            for batch in _batches(some):
                found.append(_asked(ask, batch))
                done += len(batch)
                yield Advanced("asking the teacher", done, len(examples))
            _save(found, file.path)
        start = 0
        for each in some:
            made.append(Taught.of(each, teacher.digest, Stored(file, start, start + each.num_target_tokens)))
            start += each.num_target_tokens
    count = len(dataset.train)
    return replace(dataset, train=made[:count], valid=made[count:])


def _asked(ask: Callable[[Batch], Likeliest], examples: Sequence[Example]) -> Likeliest:
    """The answer to a batch; activations stay floats, as in training."""
    with using_activations("float"):
        found = ask(collate(examples))
        mx.eval(found)
    return found


def _save(found: Sequence[Likeliest], path: Path) -> None:
    tokens, log_p, log_others = (mx.concatenate(list(parts)) for parts in zip(*found, strict=True))
    narrow = mx.uint16 if int(tokens.max()) < 1 << 16 else mx.uint32
    save_file(Likeliest(tokens.astype(narrow), log_p, log_others)._asdict(), path)


def _parts(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples in order, in groups of about `_PART_TARGETS` supervised tokens."""
    parts: list[list[Example]] = []
    left = 0
    for each in examples:
        if left <= 0:
            parts.append([])
            left = _PART_TARGETS
        parts[-1].append(each)
        left -= each.num_target_tokens
    return parts


def _batches(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples in order, in batches of at most `_BATCH_TOKENS` with padding, or of one."""
    batches: list[list[Example]] = [[]]
    for each in examples:
        longest = max([len(each), *map(len, batches[-1])])
        if batches[-1] and longest * (len(batches[-1]) + 1) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(each)
    return batches


def _width(model: LanguageModel) -> int:
    hidden = model.hidden(mx.zeros((1, 1), dtype=mx.int32))
    return model.logits(hidden).shape[-1]  # neither is evaluated
