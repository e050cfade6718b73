"""The examination of the bundled model by `models/maclet/exam.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.tables.table import Say, Table

MODEL = "maclet"
FEW = 12


def table(quick: bool, say: Say) -> Table:
    """Rates of right answers beside those of the nearest question; `quick` asks a few questions."""
    import macllm
    from macllm_models.maclet import exam, make_data, nearest

    examination = exam.Exam()
    asked = examination.questions()
    loaded, tokenizer = macllm.load(MODEL)
    chosen = asked[:: len(asked) // FEW] if quick else asked
    marked = []
    for number, question in enumerate(chosen):
        if number % 50 == 0:
            say(f"guide: question {number} of {len(chosen)}")
        answer = macllm.generate(loaded, tokenizer, question.messages, **exam._GREEDY).text
        marked.append(exam.Marked(question, answer, examination.mark(question, answer)))
    with tempfile.TemporaryDirectory() as folder:
        say("guide: the training data, for the nearest question")
        make_data.make(Path(folder), conversations=200 if quick else None)
        close = nearest.Nearest([*examination.written(), *nearest.questions(Path(folder) / "train.jsonl")])
        others = [close.answer(question.messages[-1]["content"]) for question in chosen]
    baseline = [
        exam.Marked(question, answer, examination.mark(question, answer))
        for question, answer in zip(chosen, others, strict=True)
    ]
    report: list[dict[str, Any]] = exam.report(marked, baseline)
    rows = []
    for row in report:
        low, high = row["interval"]
        name = f"{row['set']}: {row['style']}" if row["style"] else row["set"]
        goal = f"{row['goal']:.0%}" if row["goal"] else ""
        rates = [f"{row['rate']:.1%}", f"{low:.1%} to {high:.1%}", goal, f"{row['nearest']:.1%}"]
        rows.append([name, str(row["questions"]), *rates])
    return Table(
        f"The bundled model, {len(chosen)} questions",
        ["questions", "", "right", "95 % interval", "goal", "nearest question"],
        rows,
        "the goal of each set",
        None if quick else all(row["rate"] >= row["goal"] for row in report if row["goal"]),
        {"report": report},
    )
