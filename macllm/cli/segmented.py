"""The split of a word by a tokenizer, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from macllm.visible import one_line

if TYPE_CHECKING:
    from macllm.text.segmentation import Segmentation, SplitPart


def as_json_value(made: Segmentation) -> dict[str, Any]:
    """The split as a JSON object; the steps of a part are merges, edges or matches."""
    names = {"BPE": "merges", "Unigram": "edges", "WordPiece": "matches"}
    value = asdict(made)
    for part in value["parts"]:
        part[names[made.kind]] = part.pop("steps")
    return value


def lines_of(made: Segmentation) -> Iterator[str]:
    """The split as text: a heading, the steps of each part, tokens and ids."""
    yield f"{_shown(made.word)}  {made.kind}"
    for part in made.parts:
        yield f"  {_shown(part.text)}"
        yield from (f"    {line}" for line in _steps(part))
    yield "  tokens  " + " ".join(map(_shown, made.tokens))
    yield "  ids     " + " ".join(map(str, made.ids))


def _steps(part: SplitPart) -> Iterator[str]:
    from macllm.text.segmentation import Edge, Match, Merge

    for number, step in enumerate(part.steps, 1):
        match step:
            case Merge(left, right, rank, symbols):
                if number == 1:
                    yield " ".join(map(_shown, part.symbols))
                pair = f"{_shown(left)} + {_shown(right)}"
                yield f"{number:<3} {pair:<16}  rank {rank:<7} {' '.join(map(_shown, symbols))}"
            case Edge(start, stop, piece, score, best):
                yield f"{start:>3}-{stop:<3} {_shown(piece):<16} {score:9.4f}{'  best' if best else ''}"
            case Match(start, None, tried):
                yield f"at {start:<3} no token: {tried} tried, so the word is unknown"
            case Match(start, token, tried):
                yield f"at {start:<3} {_shown(token or ''):<16} longest match, {tried} tried"
    edges = [step for step in part.steps if isinstance(step, Edge) and step.best]
    if edges:
        yield f"best path  {' '.join(_shown(edge.piece) for edge in edges)}  {sum(edge.score for edge in edges):.4f}"


def _shown(text: str) -> str:
    """Foreign text on one line, safe for a terminal; white space alone is quoted."""
    return one_line(text) if text.strip() else repr(text)
