"""Settings in `generation_config.json`: wrong values are corrected, unsupported ones named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from macllm.errors import UsageError

from .. import options
from .ranges import COLDEST, EARLY_STOPPING, WHOLE, allows

_NUMBERS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
)
_TOKENS = ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id")

# Options that macllm does not support, with the values that change no answer.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
    "constraints": ([],),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "dola_layers": ([],),
    "num_return_sequences": (0, 1),
    "max_time": (),
}
_UNSUPPORTED_IN_DRAWS: dict[str, tuple[Any, ...]] = {"top_h": (), "epsilon_cutoff": (0, 1), "eta_cutoff": (0, 1)}


@dataclass
class GenerationConfig:
    """Fields of SamplingParams in a `generation_config.json`, and notes on the rest."""

    sampling: dict[str, Any] = field(default_factory=dict)
    beams: dict[str, Any] = field(default_factory=dict)  # fields of Request; empty without beam search
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    max_length: int | None = None
    corrected: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Sentences for the log."""
        notes = [f"generation_config.json: {', '.join(self.corrected)}"] if self.corrected else []
        if self.unsupported:
            notes.append(
                f"generation_config.json asks for {', '.join(self.unsupported)}, which macllm does not support"
            )
        return notes


def read(file: Mapping[str, Any], vocab_size: int | None = None) -> GenerationConfig:
    """The settings in `file`. Raises nothing: a wrong value is left out, with a note."""
    config = GenerationConfig()
    for name in _NUMBERS:
        if file.get(name) is not None:
            _take_number(config, name, file[name])
    if config.sampling.get("forced_bos_token_id", 0) >= (vocab_size or math.inf):
        config.corrected.append(f"forced_bos_token_id = {config.sampling.pop('forced_bos_token_id')} is left out")
    for name in _TOKENS:
        if file.get(name) is not None:
            _take_tokens(config, name, file[name], vocab_size)
    _take_sequences(config, file, vocab_size)
    _take_beams(config, file)
    config.max_new_tokens = _length(file.get("max_new_tokens"))
    config.max_length = _length(file.get("max_length"))
    if file.get("stop_strings"):
        try:
            config.stop = tuple(text for text in options.read_stop(file["stop_strings"]) if text)
        except UsageError:
            config.corrected.append(f"stop_strings = {file['stop_strings']!r} is left out")
    refused = _UNSUPPORTED | (_UNSUPPORTED_IN_DRAWS if file.get("do_sample") else {})
    for name, neutral in refused.items():
        if file.get(name) is not None and file[name] not in neutral:
            config.unsupported.append(f"{name} = {file[name]!r}")
    return config


def _take_beams(config: GenerationConfig, file: Mapping[str, Any]) -> None:
    count = number_of(file.get("num_beams"))
    if count is None or count in (0, 1):
        return
    if not count.is_integer() or not allows("num_beams", int(count)):
        config.corrected.append(f"num_beams = {file['num_beams']!r} is left out")
        return
    config.beams = {"num_beams": int(count)}
    penalty, early = number_of(file.get("length_penalty", 1.0)), file.get("early_stopping") or False
    for name, value, is_valid in (
        ("length_penalty", penalty, penalty is not None and allows("length_penalty", penalty)),
        ("early_stopping", early, early in EARLY_STOPPING),
    ):
        if is_valid:
            config.beams[name] = value
        else:
            config.corrected.append(f"{name} = {file[name]!r} is left out")


def _take_number(config: GenerationConfig, name: str, value: Any) -> None:
    number = number_of(value)
    if number is not None and name in WHOLE:
        number = int(number) if number.is_integer() else None
    if name == "top_k" and number == -1:  # as other programs write "all"
        number = 0
    if name == "temperature" and number is not None and 0 < number < COLDEST:
        config.corrected.append(f"temperature = {value!r} is taken as 0, the likeliest token")
        number = 0.0
    if number is not None and allows(name, number):
        config.sampling[name] = number
    else:
        config.corrected.append(f"{name} = {value!r} is left out")


def number_of(value: Any) -> float | None:
    """A finite number, however it is written; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def whole_numbers(value: Any) -> tuple[int, ...]:
    """Whole numbers >= 0 in a value or a list, in any notation; everything else is left out."""
    listed = value if isinstance(value, list | tuple) else (value,)
    numbers = (number_of(each) for each in listed)
    return tuple(int(number) for number in numbers if number is not None and number.is_integer() and number >= 0)


def _take_tokens(config: GenerationConfig, name: str, value: Any, vocab_size: int | None) -> None:
    listed = value if isinstance(value, list | tuple) else [value]
    tokens = tuple(token for token in whole_numbers(value) if token < (vocab_size or math.inf))
    if len(tokens) < len(listed):
        wrong = [each for each in listed if not set(whole_numbers(each)) & set(tokens)]
        config.corrected.append(f"{_shown(wrong)} of {name} {'is' if len(wrong) == 1 else 'are'} left out")
    if tokens:
        config.sampling[name] = tokens


def _take_sequences(config: GenerationConfig, file: Mapping[str, Any], vocab_size: int | None) -> None:
    ends = set(whole_numbers(file.get("eos_token_id")))
    words: list[tuple[int, ...]] = []
    for each in _entries(config, file, "bad_words_ids"):
        tokens = _sequence(each, vocab_size)
        if tokens is None:
            config.corrected.append(f"{each!r} of bad_words_ids is left out")
        elif not (len(tokens) == 1 and tokens[0] in ends):  # an end is never a bad word (transformers)
            words.append(tokens)
    if words:
        config.sampling["bad_words_ids"] = tuple(words)
    biases: dict[tuple[int, ...], float] = {}
    for each in _entries(config, file, "sequence_bias"):
        pair = each if isinstance(each, list | tuple) and len(each) == 2 else (None, None)
        tokens, bias = _sequence(pair[0], vocab_size), number_of(pair[1])
        if tokens is None or bias is None:
            config.corrected.append(f"{each!r} of sequence_bias is left out")
        else:
            biases[tokens] = bias
    if biases:
        config.sampling["sequence_bias"] = tuple(biases.items())


def _entries(config: GenerationConfig, file: Mapping[str, Any], name: str) -> list[Any] | tuple[Any, ...]:
    value = file.get(name) or []
    if isinstance(value, list | tuple):
        return value
    config.corrected.append(f"{name} = {value!r} is left out")
    return []


def _sequence(value: Any, vocab_size: int | None) -> tuple[int, ...] | None:
    """Tokens that can follow one another; None where that is not what `value` is."""
    if not isinstance(value, list | tuple):
        return None
    tokens = whole_numbers(value)
    sound = len(tokens) == len(value) > 0 and max(tokens) < (vocab_size or math.inf)
    return tokens if sound else None


def _length(value: Any) -> int | None:
    found = whole_numbers(value) if value is not None else ()
    return found[0] if found and found[0] > 0 else None


def _shown(values: list[Any]) -> str:
    text = ", ".join(map(repr, values[:8]))
    return f"{text} and {len(values) - 8} more" if len(values) > 8 else text
