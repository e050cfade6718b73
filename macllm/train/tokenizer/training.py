"""Texts and settings in, a folder of tokenizer files and a report out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from macllm.errors import UsageError
from macllm.files import json_text, write_text
from macllm.text.tokenizer import FILES, Tokenizer

from ..rows import Columns
from .config import TokenizerConfig
from .report import Fertility, measure
from .texts import Corpus, Progress

if TYPE_CHECKING:
    import tokenizers

_POLL_SECONDS = 0.2
_STANDARD = Columns()
_ENCODERS = ("wordpiece",)  # whose models take token types


@dataclass(frozen=True)
class Trained:
    """A new tokenizer, and its fit to training texts and to held-out texts (None without any)."""

    tokenizer: Tokenizer
    training: Fertility
    held_out: Fertility | None


def train(
    config: TokenizerConfig, columns: Columns = _STANDARD, on_progress: Progress = lambda read_bytes: None
) -> Trained:
    """Train a tokenizer and write its files: the same texts and settings give the same bytes.

    Every twentieth piece of 4 kB is held out for the report unless there are files for that: `valid`, or a valid.jsonl
    beside the training rows. `on_progress` is called with the bytes read, from another thread.
    Raises UsageError for a folder that has a tokenizer, and for a vocabulary that the texts cannot fill; DataError for
    invalid rows; OSError for files that cannot be written, of which none is left.
    """
    _check_free(config)
    corpus = Corpus(config.data, config.valid, columns, on_progress)
    made = _interruptible(lambda texts: _trainer(config)(texts, config), corpus)
    _write(config, made)
    tokenizer = Tokenizer.from_folder(config.folder)
    held_out = corpus.held_out
    return Trained(
        tokenizer,
        measure(tokenizer, corpus.training.texts, is_sample=corpus.training.is_cut),
        measure(tokenizer, held_out.texts, is_sample=held_out.is_cut) if held_out.texts else None,
    )


def _trainer(config: TokenizerConfig) -> Callable[..., tokenizers.Tokenizer]:
    return import_module(f"{__package__}.{config.kind}").train


def _check_free(config: TokenizerConfig) -> None:
    """Refuse a folder with the files of a tokenizer."""
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", remedy="--output a folder")
    if present := [name for name in FILES if (folder / name).exists()]:
        raise UsageError(
            f"{folder} has a tokenizer already",
            cause=f"it has {present[0]}",
            remedy=f"--output another folder, or remove the files of {folder} first",
        )


def _interruptible(work: Callable[[Iterable[str]], Any], texts: Iterable[str]) -> Any:
    """`work(texts)` in a thread, because Python answers Ctrl-C only between the calls of native code.

    An error while reading is raised as itself: the libraries replace it by their own.
    """
    results: list[Any] = []
    errors: list[BaseException] = []
    stopped = threading.Event()

    def read() -> Iterator[str]:
        try:
            for text in texts:
                if stopped.is_set():
                    return
                yield text
        except Exception as error:
            errors.append(error)

    def run() -> None:
        try:
            results.append(work(read()))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="tokenizer", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    finally:
        stopped.set()
    if errors:
        raise errors[0]
    return results[0]


def _write(config: TokenizerConfig, tokenizer: tokenizers.Tokenizer) -> None:
    """Write all files or none."""
    folder, written = config.folder, []
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, text in _files(config, tokenizer).items():
            write_text(folder / name, text, overwrite=False)
            written.append(folder / name)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if new:
            folder.rmdir()
        raise


def _files(config: TokenizerConfig, tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **config.named,
        "clean_up_tokenization_spaces": False,
    }
    others = [token for token in (*config.leading, *config.extra) if token not in config.named.values()]
    if others:
        settings["additional_special_tokens"] = others
    if config.kind not in _ENCODERS:
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json_text(settings, indent=2) + "\n",
    }
    return files | ({"chat_template.jinja": config.chat_template} if config.chat_template else {})
