"""`macllm generate`: the answer to one prompt."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macllm.errors import UsageError
from macllm.units import bytes_text, duration_text

from .fetch import fetch
from .native import answering
from .output import Progress, say, working
from .sampling import model_options, sampling_options

if TYPE_CHECKING:
    from macllm.generation.request import Done, Event, TokenLogprob
    from macllm.text.tokenizer import Tokenizer

    from .configured import Configured

SILENT_PREFILL_SECONDS = 1.0
_BEAMS = ("num_beams", "length_penalty", "early_stopping", "num_return_sequences")
_OF_CHATS = ("chat.system", "chat.preset", "chat.max_tokens", "chat.plain", "ui.theme", "ui.sidebar")


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: str | None
    adapter: str | None
    system: str | None
    raw: bool
    as_json: bool
    verbose: bool
    request: dict[str, Any]  # keywords of `stream` set by the user


@click.command("generate")
@click.argument("prompt")
@model_options
@click.option("-n", "--max-tokens", type=int, help="Longest answer, in tokens. [default: 256]")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be repeated.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as plain text, without the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of text.")
@click.option(
    "--logprobs",
    type=int,
    metavar="N",
    help="With --json: log-probabilities of each token and of the N likeliest alternatives.",
)
@click.option("--max-context", type=int, metavar="N", help="Longest prompt plus answer, in tokens.")
@click.option("--kv-bits", type=int, metavar="4|8", help="Quantize the KV cache to 4 or 8 bits.")
@click.option("--num-beams", type=int, metavar="N", help="Search with N beams; the text comes at the end. [default: 1]")
@click.option("--length-penalty", type=float, metavar="P", help="Divide a beam's log-probability by its length^P.")
@click.option(
    "--early-stopping",
    type=click.Choice(["true", "false", "never"]),
    default=None,
    help="Stop at N ended beams (true), when a better one is unlikely (false), or impossible (never).",
)
@click.option("--num-return-sequences", type=int, metavar="N", help="With --json: report the N best beams.")
@click.option("-v", "--verbose", is_flag=True, help="Print token counts and speed to stderr.")
@sampling_options
def command(prompt: str, sampling: dict[str, Any], **flags: Any) -> None:
    """Print the answer to PROMPT; - reads PROMPT from standard input.

    A model with a chat template answers PROMPT as a user message; with --raw, or without a template, it continues it.
    """
    found = _configured(flags, sampling)
    names = ("max_tokens", "stop", "logprobs", "max_context", "kv_bits", *_BEAMS)
    if (early := flags["early_stopping"]) in ("true", "false"):
        flags["early_stopping"] = early == "true"
    request = {name: value for name in names if (value := flags.pop(name)) not in (None, ())}
    model, adapter = found["chat.model"], found["chat.adapter"]
    options = _Options(request=request | found.sampling, model=model, adapter=adapter, **flags)
    if "logprobs" in request and not options.as_json:
        raise UsageError("--logprobs needs --json", remedy="add --json")
    if "num_return_sequences" in request and not options.as_json:
        raise UsageError("--num-return-sequences needs --json", remedy="add --json")
    if options.raw and options.system:
        raise UsageError(
            "--system cannot be combined with --raw", cause="--raw uses no chat template", remedy="one of the two"
        )
    _check(options.request)
    text = _text(prompt)
    if not (text if options.raw else text.strip()):
        raise UsageError("the prompt is empty", remedy='macllm generate "What is a KV cache?"')
    _run(text, options)


def _configured(flags: dict[str, Any], sampling: dict[str, Any]) -> Configured:
    from .configured import configured

    given = {"chat.model": flags.pop("model"), "chat.adapter": flags.pop("adapter")}
    return configured(given, sampling, ignored=_OF_CHATS)


def _check(request: dict[str, Any]) -> None:
    """Validate options before a model is loaded. Raises: UsageError."""
    from macllm.generation.options import ENGINE_NAMES, SAMPLING_NAMES, read, read_engine_options
    from macllm.generation.request import Request, SamplingParams
    from macllm.generation.sampling import defaults

    read_engine_options({name: value for name, value in request.items() if name in ENGINE_NAMES})
    given = read({name: value for name, value in request.items() if name not in ENGINE_NAMES})
    sampling = {name: given.pop(name) for name in SAMPLING_NAMES & given.keys()}
    if given.get("num_beams", 1) > 1:
        sampling.setdefault("temperature", 0.0)
    elif "num_beams" not in given:  # the model's own number may fit
        given = {name: value for name, value in given.items() if name not in _BEAMS}
    defaults.check(Request(sampling=SamplingParams(**sampling), **given))


def _text(prompt: str) -> str:
    """The prompt, or standard input for "-". Raises: UsageError if it is not UTF-8."""
    try:
        raw = sys.stdin.buffer.read() if prompt == "-" else prompt.encode("utf-8", "surrogateescape")
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("the prompt is not UTF-8", cause=str(error), remedy="convert it, as with iconv") from error


def _run(text: str, options: _Options) -> None:
    folder = fetch(options.model)
    with answering():
        done = _answer(folder, text, options)
    if options.verbose and done:
        _say_speed(done)


def _answer(folder: Path, text: str, options: _Options) -> Done | None:
    from macllm.checkpoint import load
    from macllm.generation.stream import stream

    with working("loading the model") if sys.stderr.isatty() else nullcontext():
        model, tokenizer = load(folder, adapter=options.adapter)
    prompt = _prompt(text, tokenizer, options)
    with closing(stream(model, tokenizer, prompt, raw=options.raw, **options.request)) as events:
        return _print_json(events, tokenizer, options) if options.as_json else _print_text(events)


def _prompt(text: str, tokenizer: Tokenizer, options: _Options) -> str | list[dict[str, str]]:
    if not options.system:
        return text
    if tokenizer.chat_template is None:
        raise UsageError(
            "this model has no chat template, which --system needs", remedy="put the instructions into PROMPT"
        )
    return [{"role": "system", "content": options.system}, {"role": "user", "content": text}]


def _with_progress(events: Iterator[Event]) -> Iterator[Event]:
    """The same events, with a progress line for a long prompt."""
    from macllm.generation.request import Prefill

    with Progress("prompt", unit="tokens", after_seconds=SILENT_PREFILL_SECONDS) as progress:
        for event in events:
            if isinstance(event, Prefill):
                if event.done < event.total and sys.stderr.isatty():
                    progress.update(event.done, event.total)
                continue
            progress.close()
            yield event


def _print_text(events: Iterator[Event]) -> Done | None:
    """Stream the answer to stdout without reasoning, ending with a newline."""
    from macllm.generation.request import CallLines, Delta, Done

    last, lines = "", CallLines()
    done = None
    try:
        for event in _with_progress(events):
            if isinstance(event, Done):
                done = event
            elif isinstance(event, Delta) and event.kind != "reasoning" and event.text:
                sys.stdout.write(lines.text(event))
                sys.stdout.flush()
                last = event.text
    finally:
        if last and not last.endswith("\n"):
            sys.stdout.write("\n")
    return done


def _print_json(events: Iterator[Event], tokenizer: Tokenizer, options: _Options) -> Done | None:
    from macllm.generation.request import Delta, Done

    texts = {"content": "", "reasoning": ""}
    calls: dict[int, str] = {}
    logprobs: list[TokenLogprob] = []
    done = None
    for event in _with_progress(events):
        if isinstance(event, Delta):
            if event.call is None:
                texts[event.kind] += event.text
            else:
                calls[event.call] = calls.get(event.call, "") + event.text
            logprobs += event.logprobs
        elif isinstance(event, Done):
            done = event
    answer: dict[str, Any] = {"model": options.model or "maclet", "text": texts["content"]}
    answer |= {"reasoning": texts["reasoning"]} if texts["reasoning"] else {}
    answer |= {"tool_calls": list(calls.values())} if calls else {}
    if done:
        answer |= {name: value for name, value in asdict(done).items() if name != "beams" or value}
    if "logprobs" in options.request:
        answer["logprobs"] = [
            _scored(tokenizer, each.token, each.logprob)
            | {"alternatives": [_scored(tokenizer, *rival) for rival in each.alternatives]}
            for each in logprobs
        ]
    click.echo(json.dumps(answer, ensure_ascii=False))
    return done


def _scored(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    """A token as JSON, with null for a log-probability of minus infinity."""
    return {"token": token, "text": tokenizer.decode([token]), "logprob": logprob if math.isfinite(logprob) else None}


def _say_speed(done: Done) -> None:
    usage, timing = done.usage, done.timing
    say(
        f"prompt {usage.prompt_tokens} tokens in {duration_text(timing.prefill_seconds, fine=True)}, "
        f"answer {usage.completion_tokens} tokens at {timing.tokens_per_second(usage.completion_tokens):.1f} tokens/s, "
        f"peak {bytes_text(timing.peak_bytes)}, seed {done.seed}"
    )
