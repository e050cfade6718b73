"""DataReport of a check of data as text, with loss masks in color or in marks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from macllm.units import count_text
from macllm.visible import one_line, visible

if TYPE_CHECKING:
    from macllm.train.check import DataReport, Finding, Lengths, Shown, ShownPiece, SplitReport

_BAR = 40  # columns of the longest bar
_MOST_ERRORS, _MOST_PLACES = 20, 3
_COLORS = {"error": "31", "warning": "33", "note": "2"}
_LEARNED, _WEIGHTED, _DIM = "32", "33", "2"
_BOUNDARY = "│"
_OPEN, _CLOSE = "⟦", "⟧"
_NEWLINE = "⏎\n"


def report_lines(report: DataReport) -> Iterator[str]:
    """The whole report."""
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for split in report.splits:
        yield from _split(split)
    yield from _tokens(report)
    for shown in report.shown:
        yield from _shown(shown, colored)
    if report.findings:
        yield ""
    for finding in report.findings:
        yield from _finding(finding, colored)
    found = [f"{count} {level}{'s' * (count != 1)}" for level, count in _levels(report) if count]
    yield ""
    yield ", ".join(found) if found else "nothing found"


def _levels(report: DataReport) -> list[tuple[str, int]]:
    levels = [finding.level for finding in report.findings]
    return [(level, levels.count(level)) for level in ("error", "warning", "note")]


def _split(split: SplitReport) -> Iterator[str]:
    kinds = ", ".join(f"{count_text(count)} {kind}" for kind, count in split.counts.kinds.items())
    yield f"{split.name}  {one_line(split.path)}"
    yield f"  {count_text(split.rows)} rows" + (f": {kinds}" if kinds else "")
    counts, lengths = split.counts, split.lengths
    if not lengths.bars:
        return
    share = counts.supervised_tokens / max(1, counts.tokens)
    supervised = f"{count_text(counts.supervised_tokens)} ({share:.0%}) of them supervised"
    yield f"  {count_text(counts.tokens)} tokens trained on, {supervised}"
    yield "  tokens in an example, before any is cut"
    yield from (f"    {line}" for line in _histogram(lengths))


def _histogram(lengths: Lengths) -> Iterator[str]:
    yield (
        f"min {count_text(lengths.least)}, median {count_text(lengths.median)}, 95 % {count_text(lengths.p95)}, "
        f"max {count_text(lengths.most)}, total {count_text(lengths.total)}"
    )
    labels = [f"{count_text(low)}-{count_text(high)}" for low, high, _ in lengths.bars]
    width, most = max(map(len, labels)), max(count for _, _, count in lengths.bars)
    for label, (_, _, count) in zip(labels, lengths.bars, strict=True):
        bar = "█" * max(round(_BAR * count / most), count > 0)
        yield f"{label:>{width}}  {bar}{' ' * bool(bar)}{count_text(count)}"


def _tokens(report: DataReport) -> Iterator[str]:
    yield (
        f"{count_text(report.supervised_vocabulary)} of {count_text(report.vocabulary)} tokens of the vocabulary are "
        "supervised in the training rows"
    )
    for name, use in report.special_tokens.items():
        what = " (ends an answer)" if use.ends else ""
        times = f"{count_text(use.seen)} time{'s' * (use.seen != 1)}"
        yield f"  {one_line(name)}{what}: {times}, {count_text(use.supervised)} supervised"


def _finding(finding: Finding, colored: bool) -> Iterator[str]:
    yield f"{_tint(finding.level, _COLORS[finding.level], colored)}: {one_line(finding.text)}"
    most = _MOST_ERRORS if finding.level == "error" else _MOST_PLACES
    yield from (f"  {one_line(place)}" for place in finding.places[:most])
    if finding.count > most and finding.places:
        yield f"  and {count_text(finding.count - most)} more"
    if finding.remedy:
        yield f"  {_tint('try', _DIM, colored)}: {one_line(finding.remedy)}"


def _shown(shown: Shown, colored: bool) -> Iterator[str]:
    cut = f", {count_text(shown.lost_tokens)} more cut off" if shown.lost_tokens else ""
    side = f" ({shown.side})" if shown.side else ""
    counts = f"{count_text(shown.tokens)} tokens, {count_text(shown.supervised)} supervised"
    yield ""
    yield f"{one_line(shown.where)}{side}: {counts}{cut}"
    first, rest = shown.pieces[: shown.gap], shown.pieces[shown.gap :] if shown.gap is not None else ()
    text = _masked(first, colored)
    if rest:
        text += f"\n… {count_text(shown.left_out)} tokens …\n{_masked(rest, colored)}"
    yield from (f"  {line}" for line in text.split("\n"))


def _masked(pieces: tuple[ShownPiece, ...], colored: bool) -> str:
    """The text of tokens with boundaries, learned ones in color or between marks."""
    out, before = "", 0.0
    for at, piece in enumerate(pieces):
        if piece.weight != before and not colored:
            out += _CLOSE * (before > 0) + (_opening(piece.weight) if piece.weight > 0 else "")
        if at and (colored or piece.weight == before):
            out += _tint(_BOUNDARY, _DIM, colored)
        text = (visible(piece.text) or "∅").replace("\n", _NEWLINE)
        code = _DIM if not piece.weight else _LEARNED if piece.weight == 1 else _WEIGHTED
        out += "\n".join(_tint(line, code, colored) if line else "" for line in text.split("\n"))
        before = piece.weight
    return out + _CLOSE * (before > 0 and not colored)


def _opening(weight: float) -> str:
    return _OPEN if weight == 1 else f"{_OPEN}×{weight:g} "


def _tint(text: str, code: str, colored: bool) -> str:
    return f"\033[{code}m{text}\033[0m" if colored else text
