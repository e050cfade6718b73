"""The flags that `chat` and `generate` share: which model, and how its next token is drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from macllm.errors import UsageError

Command = Callable[..., Any]

SAMPLING: dict[str, tuple[type, str]] = {
    "temperature": (float, "Flatten (> 1) or sharpen (< 1) the distribution; 0 takes the likeliest token."),
    "top_k": (int, "Keep the K likeliest tokens; 0 keeps all."),
    "top_p": (float, "Keep the likeliest tokens that together hold this probability."),
    "min_p": (float, "Keep tokens at least this likely, relative to the likeliest."),
    "typical_p": (float, "Keep the most typical tokens that together hold this probability."),
    "xtc_probability": (float, "How often XTC drops the top choices."),
    "xtc_threshold": (float, "Probability that makes a token a top choice of XTC."),
    "repetition_penalty": (float, "Divide the logits of tokens already seen; 1 changes nothing."),
    "presence_penalty": (float, "Subtract from the logits of tokens already seen."),
    "frequency_penalty": (float, "Subtract so much for each time a token was seen."),
    "penalty_window": (int, "How many of the newest tokens these three look at; 0: all."),
    "dry_multiplier": (float, "Strength of DRY, which makes repeated sequences unlikely; 0: off."),
    "dry_base": (float, "How the DRY penalty grows with the length of the repetition."),
    "dry_allowed_length": (int, "Longest repetition that DRY leaves alone."),
    "dry_window": (int, "How many of the newest tokens DRY looks at; 0: all."),
    "no_repeat_ngram_size": (int, "Never say N tokens in a row twice; 0: off."),
    "encoder_no_repeat_ngram_size": (int, "Never say N tokens in a row that the prompt has; 0: off."),
    "min_length": (int, "Tokens, the prompt's included, before an answer may end."),
    "min_new_tokens": (int, "Tokens before an answer may end."),
    "forced_bos_token_id": (int, "The first token of a text-to-text model's answer."),
    "seed": (int, "Random seed; the same seed reproduces the output."),
}
TOKENS: dict[str, str] = {
    "dry_breakers": "A token that ends a repetition.",
    "suppress_tokens": "A token never to say.",
    "begin_suppress_tokens": "A token not to begin with.",
    "forced_eos_token_id": "The token to end with where --max-tokens ends the answer.",
}

MODEL_HELP = "A folder, org/name or org/name@revision; without it, the bundled model."


def model_options(function: Command) -> Command:
    """Add --model, --adapter and --system."""
    for option in (
        click.option("-s", "--system", metavar="TEXT", help="System prompt."),
        click.option("--adapter", metavar="FOLDER", help="A LoRA adapter to run the model with."),
        click.option("-m", "--model", metavar="NAME", help=MODEL_HELP),
    ):
        function = option(function)
    return function


def sampling_options(function: Command) -> Command:
    """Add one flag for each field of SamplingParams, and hand what the user set to `function` as `sampling`."""

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
        click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help="Add to the logit of one token."),
        click.option("--sequence-bias", multiple=True, metavar="ID,…=BIAS", help="The same of the last of several."),
        click.option("--bad-words-ids", multiple=True, metavar="ID,…", help="Tokens never to say one after another."),
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
