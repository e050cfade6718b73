"""`macllm scaling`: scaling laws fitted to runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macllm.files import json_text, write_text

from .output import say, working

if TYPE_CHECKING:
    from macllm.evaluate.plot import Plot
    from macllm.evaluate.scaling.fits import FittedLaw, Runs
    from macllm.evaluate.scaling.study import Study

_MOST_COLUMNS = 100
_CURVE_POINTS = 40
_PLAIN = 100.0  # numbers below are shown with four decimals
_TITLES = {
    "chinchilla": "Chinchilla, approach 3: L(N, D) = e + a / N^alpha + b / D^beta",
    "kaplan": "Kaplan: L(N, D) = ((n_c / N)^(alpha_n / alpha_d) + d_c / D)^alpha_d",
}


@click.command("scaling")
@click.argument("sources", metavar="FILE|RUN...", nargs=-1, required=True)
@click.option(
    "--estimator",
    type=click.Choice(["huber", "absolute"]),
    default="huber",
    show_default=True,
    help="Of approach 3: Huber loss of ln L (Hoffmann et al.), or absolute value (to which Besiroglu et al. come).",
)
@click.option(
    "--samples",
    type=click.IntRange(0, 100_000),
    default=200,
    show_default=True,
    metavar="N",
    help="Resampled sets of runs for the intervals (bootstrap).",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Seed of the resampling."
)
@click.option("--flops", type=click.FloatRange(1.0), metavar="C", help="Predict for this training compute, 6 N D.")
@click.option("--svg", metavar="FILE", help="Write the plot as an SVG image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    sources: tuple[str, ...],
    estimator: str,
    samples: int,
    seed: int,
    flops: float | None,
    svg: str | None,
    as_json: bool,
) -> None:
    """Fit scaling laws to runs: the loss by parameters N and training tokens D.

    FILE is CSV with a header, or JSON lines, with the columns parameters, tokens and loss; flops can replace one of the
    first two. RUN is the folder of a run of macllm train: each of its evaluations is a point. Printed are Chinchilla's
    three approaches and Kaplan's law with 95 % intervals, and the best sizes by published laws for the same compute.
    """
    from macllm.evaluate.scaling.study import study

    runs = _runs(sources)
    with working("fitting"):
        found = study(runs, estimator, samples=samples, seed=seed)  # type: ignore[arg-type]
    budgets = _budgets(found, flops)
    if svg:
        write_text(Path(svg), plot(found).svg())
        say(f"plot: {svg}")
    if as_json:
        click.echo(json_text(_as_dict(found, budgets)))
        return
    for line in _lines(found, budgets):
        click.echo(line)
    click.echo()
    click.echo(plot(found).text(min(_MOST_COLUMNS, shutil.get_terminal_size().columns)))


def _runs(sources: tuple[str, ...]) -> Runs:
    """The points of all files and runs."""
    import numpy as np

    from macllm.evaluate.scaling import points
    from macllm.evaluate.scaling.fits import Runs
    from macllm.train.runs.scaling import points_of

    parts = [points_of(Path(each)) if Path(each).is_dir() else points.read(Path(each)) for each in sources]
    return Runs(*map(np.concatenate, zip(*parts, strict=True)))


def _budgets(found: Study, flops: float | None) -> list[float]:
    """Budgets of compute to predict for: the given one, or multiples of the largest run's."""
    from macllm.evaluate.scaling.study import BUDGETS

    return [flops] if flops else [float(found.runs.flops.max()) * each for each in BUDGETS]


def _lines(found: Study, budgets: list[float]) -> Iterator[str]:
    """The runs, the fitted laws, and a table of compute-optimal sizes."""
    runs = found.runs
    ranges = [f"{_short(values.min())} to {_short(values.max())} {name}" for name, values in (
        ("parameters", runs.parameters), ("tokens", runs.tokens), ("FLOPs", runs.flops))]  # fmt: skip
    yield f"{len(runs.loss)} points: {', '.join(ranges)}"
    for name, one in found.fits.items():
        yield ""
        yield f"{_TITLES[name]}"
        for key, value in asdict(one.law).items():
            interval = one.interval(lambda law, key=key: getattr(law, key))
            yield f"  {key:<8} {_number(value):>10}{_interval(interval)}"
    for name, reason in found.failed.items():
        yield ""
        yield f"{name}: not fitted, {reason}"
    for budget in budgets:
        yield ""
        yield f"{f'best size at {_short(budget)} FLOPs':<28} {'N':>9} {'D':>9} {'D / N':>7} {'exponent of N':>14}"
        for name, one in found.sized():
            parameters, tokens = one.optimum(budget)
            fitted = found.fits.get(name)
            interval = _interval(fitted.interval(lambda law: law.exponent)) if fitted else ""
            numbers = f"{_short(parameters):>9} {_short(tokens):>9} {_short(tokens / parameters):>7}"
            yield f"{name:<28} {numbers} {one.exponent:>14.4f}{interval}"


def plot(found: Study) -> Plot:
    """The losses of all points over compute, and the lowest loss by each fitted law."""
    import numpy as np

    from macllm.evaluate.plot import Axis, Plot, Series

    runs = found.runs
    flops = np.geomspace(runs.flops.min(), runs.flops.max(), _CURVE_POINTS)
    series = [Series("runs", runs.flops.tolist(), runs.loss.tolist())]
    for name, one in found.fits.items():
        best = [one.law.loss(*one.law.optimum(float(each))) for each in flops]
        series.append(Series(f"lowest loss, {name} law", flops.tolist(), best, "line"))
    return Plot("Loss by training compute", Axis("FLOPs", is_log=True), Axis("nats a token", is_log=True), series)


def _as_dict(found: Study, budgets: list[float]) -> dict[str, Any]:
    def fitted(one: FittedLaw) -> dict[str, Any]:
        intervals = {
            key: one.interval(lambda law, key=key: getattr(law, key)) for key in (*asdict(one.law), "exponent")
        }
        return {**asdict(one.law), "exponent": one.law.exponent, "objective": one.objective, "intervals": intervals}

    return {
        "points": len(found.runs.loss),
        "laws": {name: fitted(one) for name, one in found.fits.items()},
        "optimal": [
            {"by": name, "exponent": one.exponent, "flops": each, "parameters": size[0], "tokens": size[1]}
            for name, one in found.sized()
            for each in budgets
            for size in [one.optimum(each)]
        ],
        "failed": found.failed,
    }


def _interval(interval: tuple[float, float] | None) -> str:
    return f"   {_number(interval[0])} to {_number(interval[1])}" if interval else ""


def _number(value: float) -> str:
    return f"{value:.4f}" if value < _PLAIN else f"{value:.4g}"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("e+", "e")
