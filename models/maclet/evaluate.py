"""Held-out questions, answered greedily: `python models/maclet/evaluate.py MODEL heldout.jsonl`.

Prints a table by category; the last line is one JSON object. An answer to a known question is right when it holds the
keywords of its topic or, where there are none, agrees with an accepted answer; it shares at least half of its words.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

AGREES = 0.5
_REFUSAL = re.compile(r"I (do not know|cannot|do not do sums|only learned|have not learned|did not understand)")


@dataclass(frozen=True)
class Score:
    """Score of one answer."""

    right: bool
    refused: bool
    agreement: float  # with the nearest accepted answer: F1 over words


def words(text: str) -> list[str]:
    """The words of a text, lower-case, without punctuation."""
    return re.findall(r"[a-z0-9]+", text.lower())


def agreement(answer: str, accepted: str) -> float:
    """F1 over the words that two texts share, counted as often as they occur."""
    ours, theirs = words(answer), words(accepted)
    shared = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def refuses(answer: str) -> bool:
    """True if the answer is a refusal."""
    return bool(_REFUSAL.match(answer.strip()))


def holds(answer: str, keywords: list[list[str]]) -> bool:
    """True if the answer has one alternative of each keyword."""
    lower = answer.lower()
    return all(any(word.lower() in lower for word in alternatives) for alternatives in keywords)


def score(item: dict[str, Any], answer: str) -> Score:
    """One held-out item against one answer."""
    nearest = max(agreement(answer, accepted) for accepted in item["answers"])
    refused = refuses(answer)
    if item["refuse"]:
        return Score(refused, refused, nearest)
    mistaken = refused and not any(refuses(accepted) for accepted in item["answers"])
    right = holds(answer, item["keywords"]) if item["keywords"] else nearest >= AGREES
    return Score(right and not mistaken, mistaken, nearest)


def report(items: list[dict[str, Any]], scores: list[Score]) -> dict[str, Any]:
    """Rates by category, and over all known and all unknown questions."""
    groups: dict[str, list[Score]] = collections.defaultdict(list)
    for item, scored in zip(items, scores, strict=True):
        groups[item["category"]].append(scored)
        groups["all unknown" if item["refuse"] else "all known"].append(scored)
    return {
        name: {
            "questions": len(group),
            "right": sum(scored.right for scored in group) / len(group),
            "refused": sum(scored.refused for scored in group) / len(group),
            "agreement": sum(scored.agreement for scored in group) / len(group),
        }
        for name, group in sorted(groups.items())
    }


def table(rates: dict[str, Any]) -> str:
    """The report as aligned text."""
    rows = [f"{'category':<22}{'questions':>10}{'right':>9}{'refused':>9}{'agreement':>11}"]
    for name, rate in rates.items():
        shares = f"{rate['right']:>9.1%}{rate['refused']:>9.1%}{rate['agreement']:>11.2f}"
        rows.append(f"{name:<22}{rate['questions']:>10}{shares}")
    return "\n".join(rows)


def main() -> None:
    """Read the command line, ask, and report."""
    parser = argparse.ArgumentParser(description="Ask a model the held-out questions.")
    parser.add_argument("model", help="folder or name")
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--limit", type=int, default=None, help="only every so many-th question that leaves this many")
    parser.add_argument("--answers", type=Path, default=None, help="write every question, answer and score here")
    options = parser.parse_args()
    import macllm

    items = [json.loads(line) for line in options.heldout.read_text(encoding="utf-8").splitlines()]
    if options.limit:
        items = items[:: max(1, len(items) // options.limit)]
    model, tokenizer = macllm.load(options.model)
    greedy = {"temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 128}
    answers = [macllm.generate(model, tokenizer, item["messages"], **greedy).text for item in items]
    scores = [score(item, answer) for item, answer in zip(items, answers, strict=True)]
    if options.answers:
        rows = (item | {"answer": answer} | asdict(s) for item, answer, s in zip(items, answers, scores, strict=True))
        options.answers.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    rates = report(items, scores)
    print(table(rates))
    print(json.dumps({"model": options.model, "rates": rates}))


if __name__ == "__main__":
    main()
