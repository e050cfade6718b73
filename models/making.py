"""Parts of the commands that make bundled models: runs that resume, and the measured part of a card."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKS = ("<!-- measured -->", "<!-- /measured -->")
POINTS = 24  # of a curve
_BARS = "▁▂▃▄▅▆▇█"


def trained(command: str, recipe: Path, run: Path, settings: Sequence[str]) -> Path:
    """The trained model of the run in the folder `run`, which is begun with these settings, or resumed.

    `command` is "train" or "finetune". Raises CalledProcessError if the run fails.
    """
    if (run / "run.json").exists():
        arguments = ["--resume", "--output" if command == "train" else "--adapter-path", str(run)]
    else:
        arguments = [str(recipe), *(part for each in settings for part in ("--set", each))]
    subprocess.run([sys.executable, "-m", "macllm", command, *arguments], check=True)
    return run / "model"


def curves(metrics: Path) -> str:
    """Loss in training and on validation rows over the steps, as text."""
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = {event["step"]: event for event in events if event["event"] == "Step"}
    valid = {event["step"]: event for event in events if event["event"] == "Evaluated"}
    lines = ["```text"]
    for name, found in (("training", steps), ("validation", valid)):
        chosen = _spread([found[step] for step in sorted(found)])
        losses = [event["loss"] for event in chosen]
        lines.append(f"{name:<11}{_bars(losses)}  loss {losses[0]:.3f} to {losses[-1]:.3f}")
    lines += ["```", "", "| step | training loss | validation loss |", "|---|---|---|"]
    reported = sorted(steps)
    for step in (step for step in sorted(valid) if step):
        near = min(reported, key=lambda other: abs(other - step))
        lines.append(f"| {step} | {steps[near]['loss']:.3f} | {valid[step]['loss']:.3f} |")
    return "\n".join(lines)


def _spread(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(events) <= POINTS:
        return events
    return [events[round(at * (len(events) - 1) / (POINTS - 1))] for at in range(POINTS)]


def _bars(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / ((high - low) or 1) * (len(_BARS) - 1))] for value in values)


def written(card: str, measured: str) -> str:
    """The card with the measured part replaced. Raises: ValueError if it has no marks."""
    before, opened, rest = card.partition(MARKS[0])
    _, closed, after = rest.partition(MARKS[1])
    if not (opened and closed):
        raise ValueError(f"the card lacks {MARKS[0]} and {MARKS[1]}")
    return f"{before}{MARKS[0]}\n{measured}\n{MARKS[1]}{after}"
