"""`macllm constitution`, and its parts `macllm data critique` and `macllm data prefer`."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macllm.errors import MacllmError, UsageError
from macllm.files import json_text
from macllm.train.config import FinetuneConfig

from . import names
from .fetch import fetch
from .native import answering, compile_kernels
from .output import followed, say, working
from .training import events, narrate, restarts_option

if TYPE_CHECKING:
    from macllm.train.constitution.comparing import Compared
    from macllm.train.constitution.judges import FunctionJudge
    from macllm.train.constitution.principles import Principle
    from macllm.train.constitution.prompts import AskedQuestion
    from macllm.train.constitution.records import RecordFiles
    from macllm.train.constitution.revising import Revised
    from macllm.train.constitution.speaker import ModelSpeaker
    from macllm.train.constitution.stages import Stages, TrainingObjective

_HIGHEST = 100.0  # of a temperature


@dataclass(frozen=True, kw_only=True)
class _JudgementOptions:
    """Options of both commands."""

    prompts: str
    principles: str
    output: str
    model: str
    adapter: str | None
    max_tokens: int
    temperature: float
    batch_size: int
    seed: int
    as_json: bool


def _shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument and the options of both commands; the function gets them as `_JudgementOptions`."""

    def called(**given: Any) -> Any:
        shared = {name: given.pop(name) for name in _JudgementOptions.__dataclass_fields__}
        return function(_JudgementOptions(**shared), **given)

    called.__doc__ = function.__doc__
    for option in reversed(
        (
            click.argument("prompts", metavar="FILE"),
            click.option("-p", "--principles", required=True, metavar="FILE", help="Principles, as TOML."),
            click.option(
                "-m", "--model", default="maclet", show_default=True, metavar="NAME", shell_complete=names.models,
                help="Model that answers and judges.",
            ),
            click.option(
                "--adapter", metavar="FOLDER", shell_complete=names.folders, help="LoRA adapter of the model."
            ),
            click.option(
                "-n", "--max-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N",
                help="Longest answer, in tokens.",
            ),
            click.option(
                "--temperature", type=click.FloatRange(0, _HIGHEST), default=0.7, show_default=True, metavar="X",
                help="Temperature of the answers.",
            ),
            click.option(
                "--batch-size", type=click.IntRange(1), default=8, show_default=True, metavar="N",
                help="Answers generated side by side.",
            ),
            click.option(
                "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Random seed."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object."),
        )
    ):  # fmt: skip
        called = option(called)
    return called


_records_option = click.option("-o", "--output", required=True, metavar="FILE", help="File of JSON lines to write.")
_rounds_option = click.option(
    "--rounds", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N",
    help="Critiques and revisions of each answer.",
)  # fmt: skip
_judge_option = click.option(
    "--judge", metavar="FILE.py:FUNCTION",
    help="A function of question, first, second and principle: log-odds for the first answer. [default: the model]",
)  # fmt: skip
_margin_option = click.option(
    "--margin", type=click.FloatRange(0), default=0.0, show_default=True, metavar="X",
    help="Leave out pairs with log-odds up to X for the better answer.",
)  # fmt: skip


@click.command("constitution")
@_rounds_option
@_margin_option
@_judge_option
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of both trainings; sft.KEY or dpo.KEY of one. May be repeated.",
)
@restarts_option
@click.option(
    "-o", "--output", required=True, metavar="FOLDER", help="Folder of the data, the trainings and the model."
)
@_shared
def command(
    options: _JudgementOptions, rounds: int, margin: float, judge: str | None, sets: tuple[str, ...], restarts: int
) -> None:
    """Train a model to keep principles, by its own judgement (Constitutional AI).

    It answers the questions in FILE, criticizes and revises its answers and is trained on the revisions; then it
    chooses between two of its answers to each question and is trained on its preferences (DPO). -o names a folder, with
    all data to look at and the model in model/. The same command again goes on after an interruption. The trainings
    take the settings of macllm finetune with --set.
    """
    if options.adapter:
        raise UsageError(
            "--adapter cannot be used here", cause="its model is trained anew", remedy="macllm fuse, then --model fused"
        )
    _check_temperature(options)
    supervised, preferred = (_config(options, sets, objective) for objective in ("sft", "dpo"))
    scripted = _scripted(judge)
    stages = _stages(options, [rounds, margin, scripted and scripted.identity, *sorted(sets)])
    with _continued_by_the_same_command():
        if not stages.result.exists():
            if not stages.revised.exists():
                _revised(dataclasses.replace(options, output=str(stages.revisions)), rounds)
                _trained(stages.supervised(supervised), stages.revised, restarts)
            again = dataclasses.replace(options, output=str(stages.preferences), model=str(stages.revised))
            if not _compared(again, margin, scripted).decided:
                raise MacllmError(
                    "no answer was preferred to another",
                    remedy="other questions, more --max-tokens, or a lower --margin",
                )
            _trained(stages.preferred(preferred), stages.result, restarts)
    say(f"try it: {shlex.join(['macllm', 'chat', '--model', str(stages.result)])}")
    click.echo(stages.result)


@click.command("critique")
@_rounds_option
@_records_option
@_shared
def critique(options: _JudgementOptions, rounds: int) -> None:
    """Answer the questions in FILE, and let the model criticize and revise its answers by principles.

    The output is training data for macllm finetune: rows of the prompt and the last revision, with the first answer and
    the dialogue beside them to look at. Questions too long for the context, and those whose revision reaches
    --max-tokens, go to a file beside it, with .skipped before its ending. The file of principles has a table
    [[principle]] with name and text for each, and if wanted the texts of critique, revision and preference; a revision
    without {critique} is asked for with no critique before it. The same command again goes on after an interruption.
    """
    with _continued_by_the_same_command():
        found = _revised(options, rounds)
    click.echo(json_text(asdict(found)) if options.as_json else options.output)


@click.command("prefer")
@_margin_option
@_judge_option
@_records_option
@_shared
def prefer(options: _JudgementOptions, margin: float, judge: str | None) -> None:
    """Answer each question in FILE twice, and let the model choose the better answer by principles.

    It is asked in both orders, so that a preference for a position cancels. The output is training data for macllm
    finetune --objective dpo: rows of the prompt, the chosen and the rejected answer, with both scores beside them.
    Undecided pairs, those whose better answer reaches --max-tokens, and questions too long for the context go to a file
    beside it, with .skipped before its ending.
    The same command again goes on after an interruption.
    """
    _check_temperature(options)
    with _continued_by_the_same_command():
        found = _compared(options, margin, _scripted(judge))
    click.echo(json_text(asdict(found)) if options.as_json else options.output)


@contextmanager
def _continued_by_the_same_command() -> Iterator[None]:
    """Say at an interruption that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; the same command continues")
        raise


def _check_temperature(options: _JudgementOptions) -> None:
    if not options.temperature:
        raise UsageError("both answers would be the same", cause="the temperature is 0", remedy="--temperature 0.7")


def _revised(options: _JudgementOptions, rounds: int) -> Revised:
    """Answer and revise, and say how it went."""
    from macllm.train.constitution.revising import revise

    questions, principles, speaker = _ready(options)
    work = revise(questions, principles, speaker, _output(options), rounds=rounds, seed=options.seed)
    with answering():
        found = followed(work)
    if not options.as_json:
        say(
            f"{found.questions} questions, {found.changed} answers revised, {found.unfinished} unfinished after "
            f"{options.max_tokens} tokens, {found.too_long} too long for the context"
        )
    return found


def _compared(options: _JudgementOptions, margin: float, scripted: FunctionJudge | None) -> Compared:
    """Answer twice and compare, and say how it went."""
    from macllm.train.constitution.comparing import compare
    from macllm.train.constitution.judges import AskedJudge

    questions, principles, speaker = _ready(options)
    output = _output(options, scripted and scripted.identity)
    asked = scripted or AskedJudge(speaker)
    work = compare(questions, principles, speaker, asked, output, margin=margin, seed=options.seed)
    with answering():
        found = followed(work)
    if not options.as_json:
        say(
            f"{found.questions} questions: {found.decided} decided, {found.consistent} of them the same way in both "
            f"orders; {found.undecided} undecided, {found.unfinished} unfinished after {options.max_tokens} tokens, "
            f"{found.too_long} too long for the context; "
            f"log-odds of {found.position_bias:+.2f} for the answer named first"
        )
        if 2 * found.consistent < found.decided:
            say(
                "most preferences change with the order of the answers: the judge weighs their places more than their "
                "texts. A larger model may judge better, or a function: --judge FILE.py:FUNCTION"
            )
    return found


def _scripted(judge: str | None) -> FunctionJudge | None:
    """The judge that is a function, None for the model. Raises UsageError before anything is loaded."""
    from macllm.train.constitution.judges import FunctionJudge

    return FunctionJudge(judge) if judge else None


def _config(options: _JudgementOptions, sets: Sequence[str], objective: TrainingObjective) -> FinetuneConfig:
    """The settings of one training, checked before anything is answered."""
    from macllm.train.constitution.stages import training_settings

    return FinetuneConfig.load(
        sets=training_settings(sets, objective),
        objective=objective,
        data=options.prompts,
        model=options.model,
        adapter_path=options.output,
    )


def _stages(options: _JudgementOptions, others: Sequence[object]) -> Stages:
    """The stages in the folder that the options name."""
    from macllm.train import rows
    from macllm.train.constitution import principles
    from macllm.train.constitution.stages import Stages
    from macllm.weights.fingerprint import fingerprint

    source, _ = rows.find_files(options.prompts, "")
    keys = [rows.content_key(row).hex() for row in rows.read(source)]
    about = {
        "prompts": hashlib.sha256("".join(keys).encode()).hexdigest(),
        "principles": [asdict(each) for each in principles.read(Path(options.principles))],
        "model": fingerprint(fetch(options.model)),
        "answers": [options.max_tokens, options.temperature, options.seed],
        "settings": list(others),
    }
    return Stages(Path(options.output), about)


def _trained(config: FinetuneConfig, output: Path, restarts: int) -> None:
    """Train, and write the model that comes out."""
    from macllm.train.constitution.stages import merged

    compile_kernels()
    narrate(events(config, restarts), config.adapter_path, prints_path=False)
    with working("merging"):
        merged(config, output)


def _ready(options: _JudgementOptions) -> tuple[Sequence[AskedQuestion], Sequence[Principle], ModelSpeaker]:
    """Questions, principles and the model, in the order in which they can be wrong."""
    from macllm.train import rows
    from macllm.train.constitution import principles, prompts

    source, _ = rows.find_files(options.prompts, "")
    questions = prompts.questions(rows.read(source))
    known = principles.read(Path(options.principles))
    folder = fetch(options.model)
    from macllm import checkpoint
    from macllm.train.constitution.speaker import ModelSpeaker

    with working("loading the model"):
        model, tokenizer = checkpoint.load(folder, options.adapter)
    speaker = ModelSpeaker(
        model, tokenizer, options.model,
        max_tokens=options.max_tokens, temperature=options.temperature, batch_size=options.batch_size,
    )  # fmt: skip
    return questions, known, speaker


def _output(options: _JudgementOptions, judge: str | None = None) -> RecordFiles:
    """The file to write; what it depends on is known by the contents of the model and its adapter."""
    from macllm.train.constitution.records import RecordFiles
    from macllm.weights.fingerprint import fingerprint

    weights = sorted(Path(options.adapter).glob("*.safetensors")) if options.adapter else []
    adapter = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
    settings = [fingerprint(fetch(options.model)), adapter, options.max_tokens, options.temperature, judge]
    return RecordFiles(Path(options.output), settings)
