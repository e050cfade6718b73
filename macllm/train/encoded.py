"""Encoded rows of a file: examples before they are cut, from the cache where it has them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, cast

import numpy as np

from macllm.text.tokenizer import Tokenizer

from . import encoding_cache, rows
from .config import TrainConfig
from .contract import E, Objective
from .events import Advanced
from .render import Example, TextTokenizer
from .rows import Source
from .unused import Unused, unused

_HERE = Path(__file__).parent
_PACKAGES = ("tokenizers", "sentencepiece", "jinja2", "numpy")
_LARGEST_BYTES = 1 << 28  # of a file that may belong to a tokenizer
_ENDINGS = (".json", ".jinja", ".model", ".txt", ".spm")


@dataclass(frozen=True)
class EncodedRow(Generic[E]):
    """The examples of a row, and what they do not have of it."""

    kind: str
    where: str
    examples: Sequence[E]
    unused: Unused = Unused.NOTHING


@dataclass(frozen=True)
class Encoder(Generic[E]):
    """An objective's encoding of rows with a tokenizer.

    `config` has the columns and the limit of the cache.
    """

    objective: Objective[Any, E, Any]
    tokenizer: TextTokenizer
    config: TrainConfig

    def encoded(self, sources: Sequence[Source]) -> Generator[Advanced, None, list[list[EncodedRow[E]]]]:
        """The encoded rows of each source, yielding progress. Raises DataError."""
        keys = [self._key(source) for source in sources]
        cached = [None if key is None else encoding_cache.load(key, partial(_restored, _labels(source)))
                  for key, source in zip(keys, sources, strict=True)]  # fmt: skip
        unencoded = [rows.read(source, columns=self.config.columns) if stored is None else []
                     for source, stored in zip(sources, cached, strict=True)]  # fmt: skip
        total = sum(len(each) for each in (*cached, *unencoded) if each is not None)
        done, made = 0, list[list[EncodedRow[E]]]()
        for key, source, stored, read in zip(keys, sources, cached, unencoded, strict=True):
            # The cache holds examples of language modelling only, which this objective makes too if its key matches.
            encoded = cast("list[EncodedRow[E]]", stored) if stored is not None else []
            for row in read:
                yield Advanced("reading", done + len(encoded), total)
                examples = self.objective.examples(row, self.tokenizer)
                left = unused(row, examples, self.tokenizer)
                encoded.append(EncodedRow(row.kind, row.where, examples, left))
            done += len(encoded)
            if stored is not None:
                yield Advanced("reading", done, total)
            elif key is not None and key == self._key(source):  # nothing has changed since it was read
                _store(key, source, encoded, round(self.config.cache_gb * 1e9))
            made.append(encoded)
        return made

    def _key(self, source: Source) -> str | None:
        """The hash of all that the encoded rows depend on; None if it is not known, or without a cache.

        It is not known for the code of other packages and of notebooks, which may be that of other files too.
        """
        objective, tokenizer = self.objective, self.tokenizer
        if not self.config.cache_gb or type(tokenizer) is not Tokenizer or not dataclasses.is_dataclass(objective):
            return None
        if not type(objective).__module__.startswith(f"{__package__}.objectives."):
            return None
        templates = {} if tokenizer.chat_template is None else dict(tokenizer.chat_template.sources)
        fields = [field.name for field in dataclasses.fields(objective) if field.repr]  # the others change no example
        settings: dict[str, Any] = {name: getattr(objective, name) for name in fields}
        if not any("strftime_now" in text for text in templates.values()):
            settings.pop("now", None)
        elif settings.get("now") is None:  # the clock's
            return None
        facts = {
            "columns": dataclasses.astuple(self.config.columns),
            "objective": [type(objective).__module__, type(objective).__qualname__, repr(settings)],
            "templates": templates,
            "code": _code_hash(type(objective).__module__),
        }
        try:
            # Files are read by their endings; names of folders and of datasets do not matter.
            files = [("".join(path.suffixes[-2:]), _hash(path)) for _, path in rows.files_of(source)]
            facts |= {"files": files, "tokenizer": _tokenizer_hash(tokenizer.folder)}
        except OSError:  # reading the rows reports it
            return None
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _labels(source: Source) -> list[str]:
    return [label for label, _ in rows.files_of(source)]


def _store(key: str, source: Source, encoded: Sequence[EncodedRow[Any]], limit_bytes: int) -> None:
    """Store encoded rows whose examples are plain ones."""
    examples = [example for row in encoded for example in row.examples]
    if not all(type(example) is Example for example in examples):
        return
    labels, places = _labels(source), list[str]()
    file = 0
    for row in encoded:
        while file < len(labels) and not row.where.startswith(labels[file]):
            file += 1
        if file == len(labels) or any(example.where != row.where for example in row.examples):
            return
        places.append(f"{file} {row.where[len(labels[file]) :]}")
    kinds = sorted({(row.kind, int(row.unused)) for row in encoded})
    flags = [e.splittable + 2 * (e.weights is not None) for e in examples]
    weights = [example.weights for example in examples if example.weights is not None]
    arrays = {
        "tokens": np.concatenate([e.tokens for e in examples] or [np.zeros(0, np.int32)]).astype("<i4"),
        "masks": np.packbits(np.concatenate([e.loss_mask for e in examples] or [np.zeros(0, bool)])),
        "weights": np.concatenate(weights or [np.zeros(0, np.float32)]).astype("<f4"),
        "lengths": np.array([len(example) for example in examples], dtype="<i8"),
        "flags": np.array(flags, dtype="|u1"),
        "ends": np.array([-1 if e.first_end is None else e.first_end for e in examples], dtype="<i8"),
        "examples": np.array([len(row.examples) for row in encoded], dtype="<i8"),
        "kinds": np.array([kinds.index((row.kind, int(row.unused))) for row in encoded], dtype="|u1"),
    }
    encoding_cache.store(key, {"kinds": kinds, "places": places}, arrays, limit_bytes)


def _restored(
    labels: Sequence[str], header: dict[str, Any], arrays: dict[str, np.ndarray]
) -> list[EncodedRow[Example]]:
    """The rows that `_store` has stored. Raises ValueError and others for anything else."""
    masks = np.unpackbits(arrays["masks"], count=len(arrays["tokens"])).astype(bool)
    tokens, weights = arrays["tokens"].astype(np.int32, copy=False), arrays["weights"]
    made: list[EncodedRow[Example]] = []
    at = weighted = number = 0
    lengths, flags, ends = (arrays[name].tolist() for name in ("lengths", "flags", "ends"))
    for count, kind, named in zip(arrays["examples"].tolist(), arrays["kinds"].tolist(), header["places"], strict=True):
        file, _, place = named.partition(" ")
        where = labels[int(file)] + place
        examples: list[Example] = []
        own = slice(number, number + count)
        for length, flag, end in zip(lengths[own], flags[own], ends[own], strict=True):
            part = slice(at, at + length)
            loss_weights = weights[weighted : weighted + length] if flag & 2 else None
            first_end = None if end < 0 else end
            examples.append(Example(tokens[part], masks[part], where, bool(flag & 1), first_end, loss_weights))
            at, weighted = at + length, weighted + (length if flag & 2 else 0)
        name, left = header["kinds"][kind]
        made.append(EncodedRow(name, where, examples, Unused(left)))
        number += count
    if (at, weighted, number) != (len(tokens), len(weights), len(lengths)):
        raise ValueError("its lengths differ")
    return made


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer_hash(folder: Path) -> str:
    """Hash of all files of a model that may say how a text is encoded.

    Folders below it may be those of runs, and are left out.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        if path.suffix in _ENDINGS and path.is_file() and path.stat().st_size < _LARGEST_BYTES:
            digest.update(f"{path.relative_to(folder)} {_hash(path)}\n".encode())
    return digest.hexdigest()


@lru_cache
def _code_hash(objective: str) -> str:
    """Hash of the code that encodes rows, and the versions of the libraries under it."""
    digest = hashlib.sha256(sys.version.encode())
    own = [_HERE / f"{name}.py" for name in ("alignment", "encoded", "render", "turns", "unused")]
    given = Path(str(sys.modules[objective].__file__))
    for path in [*own, given, *sorted((_HERE / "rows").glob("*.py")), *sorted((_HERE.parent / "text").rglob("*.py"))]:
        digest.update(path.read_bytes())
    for name in _PACKAGES:
        try:
            digest.update(f"{name} {version(name)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{name} none\n".encode())
    return digest.hexdigest()
