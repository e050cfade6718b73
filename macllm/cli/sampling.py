"""Model and sampling flags shared by `chat` and `generate`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from macllm.errors import UsageError

from . import names

Command = Callable[..., Any]

SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "Flatten (> 1) or sharpen (< 1) the distribution; 0: greedy."),
    "top_k": (int, "Keep the K likeliest tokens; 0 keeps all."),
    "top_p": (float, "Keep the likeliest tokens up to this total probability (nucleus)."),
    "min_p": (float, "Keep tokens with at least this probability, relative to the likeliest."),
    "typical_p": (float, "Keep the most typical tokens up to this total probability."),
    "xtc_probability": (float, "Probability of applying XTC, which drops all top choices but the last."),
    "xtc_threshold": (float, "Tokens of at least this probability are top choices for XTC."),
    "repetition_penalty": (float, "Divide the logits of tokens already seen by this; 1: off."),
    "presence_penalty": (float, "Subtract this from the logits of tokens already seen."),
    "frequency_penalty": (float, "Subtract this for each occurrence of a token."),
    "penalty_window": (int, "Number of latest tokens the three penalties count; 0: all."),
    "dry_multiplier": (float, "Strength of DRY, a penalty on repeated sequences; 0: off."),
    "dry_base": (float, "Base of the DRY penalty's exponential growth with the repetition's length."),
    "dry_allowed_length": (int, "Longest repetition, in tokens, without DRY penalty."),
    "dry_window": (int, "Number of latest tokens DRY searches for repetitions; 0: all."),
    "no_repeat_ngram_size": (int, "Never repeat a sequence of N tokens; 0: off."),
    "encoder_no_repeat_ngram_size": (int, "Never repeat a sequence of N tokens of the prompt; 0: off."),
    "min_length": (int, "Shortest prompt plus answer, in tokens."),
    "min_new_tokens": (int, "Shortest answer, in tokens."),
    "forced_bos_token_id": (int, "First token of the answer of an encoder-decoder model."),
    "seed": (int, "Random seed; the same seed reproduces the output."),
}
TOKENS: dict[str, str] = {
    "dry_breakers": "Token at which DRY ends a repetition.",
    "suppress_tokens": "Token never to generate.",
    "begin_suppress_tokens": "Token not to begin an answer with.",
    "forced_eos_token_id": "Last token of an answer that reaches --max-tokens.",
}

MODEL_HELP = "A folder, org/name or org/name@revision. [default: the bundled model]"


def _blend(_ctx: click.Context, _parameter: click.Parameter, folders: tuple[str, ...]) -> str | None:
    """One text for all adapters, None for none."""
    if not folders:
        return None
    from macllm.hub.blend import joined, parse

    text = joined(folders)
    assert text is not None
    parse(text)
    return text


def adapter_option(text: str = "LoRA adapter to apply to the model", **settings: Any) -> Callable[[Command], Command]:
    """Add --adapter, which may be given several times, as one text that `macllm.hub.blend` reads."""
    return click.option(
        "--adapter",
        metavar="FOLDER[:WEIGHT]",
        multiple=True,
        callback=_blend,
        shell_complete=names.folders,
        help=f"{text}; repeat it to add several, each times its weight.",
        **settings,
    )


def model_options(function: Command) -> Command:
    """Add --model, --adapter and --system."""
    for option in (
        click.option("-s", "--system", metavar="TEXT", help="System prompt."),
        adapter_option(),
        click.option("-m", "--model", metavar="NAME", shell_complete=names.models, help=MODEL_HELP),
    ):
        function = option(function)
    return function


def sampling_options(function: Command) -> Command:
    """Add a flag for each field of SamplingParams; `function` gets the given ones as `sampling`."""

    @functools.wraps(function)
    def gathered(*args: Any, **flags: Any) -> Any:
        sampling = {name: value for name in SAMPLING if (value := flags.pop(name)) is not None}
        sampling |= {name: tokens for name in TOKENS if (tokens := flags.pop(name))}
        if biases := flags.pop("logit_bias"):
            sampling["logit_bias"] = tuple(_bias(text) for text in biases)
        if biases := flags.pop("sequence_bias"):
            sampling["sequence_bias"] = tuple(_sequence_bias(text) for text in biases)
        if words := flags.pop("bad_words_ids"):
            sampling["bad_words_ids"] = tuple(_sequence(text, "--bad-words-ids 12,34") for text in words)
        return function(*args, sampling=sampling, **flags)

    options = [
        click.option(f"--{name.replace('_', '-')}", type=kind, default=None, help=text)
        for name, (kind, text) in SAMPLING.items()
    ]
    options += [
        click.option(f"--{name.replace('_', '-')}", type=int, multiple=True, metavar="ID", help=text)
        for name, text in TOKENS.items()
    ]
    options += [
        click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Add BIAS to the logit of a token."),
        click.option(
            "--sequence-bias",
            multiple=True,
            metavar="ID,…=BIAS",
            help="Add BIAS to the last token of a sequence, after its other tokens.",
        ),
        click.option("--bad-words-ids", multiple=True, metavar="ID,…", help="Sequence of tokens never to generate."),
    ]
    decorated: Command = gathered
    for option in reversed(options):
        decorated = option(decorated)
    return decorated


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError as error:
        raise UsageError(f"cannot read the logit bias {text!r}", remedy="--logit-bias 1234=-5") from error


def _sequence_bias(text: str) -> tuple[tuple[int, ...], float]:
    tokens, _, bias = text.partition("=")
    try:
        return _sequence(tokens, "--sequence-bias 12,34=-5"), float(bias)
    except ValueError as error:
        raise UsageError(f"cannot read the sequence bias {text!r}", remedy="--sequence-bias 12,34=-5") from error


def _sequence(text: str, remedy: str) -> tuple[int, ...]:
    try:
        return tuple(int(token) for token in text.split(","))
    except ValueError as error:
        raise UsageError(f"cannot read the tokens {text!r}", remedy=remedy) from error
