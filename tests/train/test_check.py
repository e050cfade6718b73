"""Checks of data: one fault put into good rows is found, and good rows give no finding."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macllm.errors import DataError
from macllm.train import data
from macllm.train.check import DataReport, Lengths, check
from macllm.train.check.shown import show
from macllm.train.config import FinetuneConfig, PretrainConfig, TrainConfig
from macllm.train.objectives.clm import CausalLM
from macllm.train.objectives.seq2seq import TextToText
from macllm.train.render import Example
from macllm.train.rows import parse
from tests.train.test_render import forgetful, plain, unstable
from tests.train.toy import CharTokenizer


class Checkable(CharTokenizer):
    """One token a character; 0 and $ end an answer, and § is a special token."""

    end_token_ids = frozenset({0, ord("$")})
    special_ids = frozenset({0, ord("$"), ord("§")})
    vocab_size = 0x1_0000


class Named(Checkable):
    """A tokenizer with a special token of several characters."""

    def id_to_token(self, index: int) -> str | None:
        return "<|end|>" if index == ord("$") else chr(index)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def chat(question: str, answer: str = "fine") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pair(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": f"question {number}", "chosen": chosen, "rejected": rejected}


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
THOUGHT = {"role": "assistant", "content": "so", "reasoning_content": "I think"}
GOOD = [chat(f"question {number}") for number in range(8)]


def checked(path: Path, rows: list[Any], tokenizer: Any = None, **settings: Any) -> DataReport:
    against = settings.pop("against", ())
    config = TrainConfig(data=write(path / "rows.jsonl", rows), **settings)
    return check(config, tokenizer or Checkable(plain), against=against, show=2)


def codes(report: DataReport) -> dict[str, int]:
    return {finding.code: finding.count for finding in report.findings}


def test_good_rows_give_no_finding_and_the_numbers_of_a_run(tmp_path: Path) -> None:
    report = checked(tmp_path, GOOD)
    assert report.findings == ()
    assert report.errors == 0
    config = TrainConfig(data=str(tmp_path / "rows.jsonl"))
    assert report.splits[0].counts == data.load(config, CausalLM(), Checkable(plain)).counts
    use = report.special_tokens["$"]
    assert (use.seen, use.supervised, use.ends) == (16, 8, True)
    assert report.supervised_vocabulary == len(set("fine$"))
    json.dumps(report.as_dict(), allow_nan=False)


@pytest.mark.parametrize("long_rows", ["truncate", "split", "drop"])
@pytest.mark.parametrize("length", [4, 20, 40])
def test_the_counts_are_those_of_a_run(tmp_path: Path, long_rows: Any, length: int) -> None:
    rows = [{"text": "a" * 30}, {"text": "b", "tools": []}, *GOOD, chat("q" * 50)]
    report = checked(tmp_path, rows, max_seq_length=length, long_rows=long_rows)
    config = TrainConfig(data=str(tmp_path / "rows.jsonl"), max_seq_length=length, long_rows=long_rows)
    assert report.splits[0].counts == data.load(config, CausalLM(), Checkable(plain)).counts
    assert report.splits[0].counts.unused_column_rows == 1


def test_tools_of_strings_are_unused_without_a_template_and_used_with_one(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c", "tools": [TOOL]}, {"prompt": "q", "completion": "d"}]
    assert codes(checked(tmp_path, rows, Checkable(None)))["unused-columns"] == 1
    assert "unused-columns" not in codes(checked(tmp_path, rows))


@pytest.mark.parametrize(
    ("bad", "code", "place"),
    [
        ("{", "unreadable", "rows.jsonl:9 is not JSON"),
        ("[1]", "unreadable", "rows.jsonl:9 is not a JSON object"),
        ({"text": 3}, "unreadable", "rows.jsonl:9: text is not a string"),
        ({"messages": [{"role": "user"}]}, "unreadable", "rows.jsonl:9"),
        (chat("question", " "), "empty-turns", "rows.jsonl:9"),
        (chat("  "), "empty-turns", "rows.jsonl:9"),
        (chat("question <|end|>"), "special-in-text", "rows.jsonl:9"),
        ({"messages": chat("q")["messages"][:1]}, "unsupervised", "rows.jsonl:9"),
        ({"messages": [*chat("q")["messages"], {"role": "user", "content": "and?"}]}, "open-ended", "rows.jsonl:9"),
        ({"text": "t", "tools": "hammer"}, "unused-columns", "rows.jsonl:9"),
        (GOOD[2], "duplicates", "rows.jsonl:9 = "),
        (chat(" QUESTION   2"), "near-duplicates", "rows.jsonl:9 = "),
        (chat("long " * 30), "truncated", "rows.jsonl:9"),
        ({"messages": [*chat("q")["messages"], CALL]}, "call-left-out", "rows.jsonl:9"),
        ({"messages": [*chat("q")["messages"], THOUGHT]}, "reasoning-left-out", "rows.jsonl:9"),
        ({"messages": [{"role": "Boss", "content": "q"}, *chat("q")["messages"]]}, "unknown-role", "rows.jsonl:9"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "mixed-kinds", "rows.jsonl:9"),
        ({"prompt": "question <|end|>", "completion": "fine"}, "special-in-text", "rows.jsonl:9"),
    ],
)
def test_a_bad_row_among_good_ones_is_found_with_its_place(tmp_path: Path, bad: Any, code: str, place: str) -> None:
    report = checked(tmp_path, [*GOOD, bad], Named(plain), max_seq_length=100)
    found = {finding.code: finding for finding in report.findings}
    assert found[code].count == 1
    assert place in found[code].places[0]
    assert (report.errors > 0) == (code in ("unreadable", "mixed-kinds"))


def test_all_invalid_rows_are_collected_and_the_good_ones_counted(tmp_path: Path) -> None:
    report = checked(tmp_path, ["{", GOOD[0], {"text": 1}, GOOD[1], "{"])
    (finding,) = (each for each in report.findings if each.level == "error")
    assert [place.partition(".jsonl")[2][:2] for place in finding.places] == [":1", ":3", ":5"]
    assert (report.splits[0].rows, report.splits[0].unreadable_rows, report.splits[0].counts.rows) == (5, 3, 2)


def test_an_empty_file_and_rows_that_teach_nothing_are_errors(tmp_path: Path) -> None:
    assert codes(checked(tmp_path, [])) == {"no-rows": 1}
    report = checked(tmp_path, [{"messages": chat("q")["messages"][:1]}])
    assert next((finding.level, finding.code) for finding in report.findings) == ("error", "unsupervised")


def test_rows_whose_end_is_never_learned_are_told(tmp_path: Path) -> None:
    class Endless(Checkable):
        end_token_ids = frozenset({0})

    report = checked(tmp_path, GOOD, Endless(plain))
    assert codes(report) == {"end-never-learned": 8}
    assert "will not learn to stop" in report.findings[0].text
    mixed = checked(tmp_path, [*GOOD, {"text": "a text"}], Endless(plain))
    assert codes(mixed) == {"several-kinds": 9, "end-never-learned": 8}
    assert "will not learn" not in mixed.findings[0].text


def test_a_template_that_is_not_prefix_stable_is_one_finding(tmp_path: Path) -> None:
    report = checked(tmp_path, GOOD, Checkable(unstable))
    (finding, *_) = report.findings
    assert (finding.level, finding.code, finding.count) == ("error", "template-not-prefix-stable", 8)
    assert "mask_prompt = false" in finding.remedy


def test_a_template_that_rewrites_answers_is_a_note(tmp_path: Path) -> None:
    long = {"messages": [*chat("one")["messages"], *chat("two")["messages"]]}
    report = checked(tmp_path, [*GOOD, long], Checkable(forgetful))
    assert codes(report) == {"expanded": 1}


def test_rows_shared_with_validation_and_test_files_are_found(tmp_path: Path) -> None:
    valid = write(tmp_path / "valid.jsonl", [chat("new"), chat("Question  3"), chat("question 4", "other")])
    test = write(tmp_path / "test.jsonl", [chat("new"), chat("never")])
    report = checked(tmp_path, GOOD, valid=valid, against=(test,))
    found = {(finding.code, *(place.split("/")[-1] for place in finding.places)) for finding in report.findings}
    assert found == {
        ("leakage", "rows.jsonl:4"),
        ("shared-questions", "rows.jsonl:5"),
        ("leakage", "valid.jsonl:1"),
    }
    assert [split.name for split in report.splits] == ["train", "valid", "test.jsonl"]


def test_a_test_file_has_its_role_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "train.jsonl", [{"messages": chat("question 3")["messages"][:1]}, {"prompt": "p"}])
    report = checked(tmp_path, GOOD, against=(str(tmp_path / "train"),), long_rows="error", max_seq_length=30)
    assert [(split.role, split.name) for split in report.splits] == [("train", "train"), ("test", "train")]
    assert report.errors == 0
    assert codes(report) == {"unsupervised": 2, "open-ended": 1, "shared-questions": 1}
    assert all("of train" in finding.text for finding in report.findings)
    for bad in ("{", ""):
        with pytest.raises(DataError, match=r"test\.jsonl"):
            checked(tmp_path, GOOD, against=(write(tmp_path / "test.jsonl", [bad]),))


def test_a_dropped_row_is_told_once(tmp_path: Path) -> None:
    long = chat("long " * 30)
    assert codes(checked(tmp_path, [*GOOD, long], max_seq_length=50, long_rows="drop")) == {"long": 1}
    nothing = checked(tmp_path, [long], max_seq_length=50, long_rows="drop")
    assert {finding.code: finding.level for finding in nothing.findings} == {"long": "note", "unsupervised": "error"}


def test_ends_are_counted_by_rows_where_a_template_makes_several_examples(tmp_path: Path) -> None:
    class Endless(Checkable):
        end_token_ids = frozenset({0})

    long = {"messages": [*chat("one")["messages"], *chat("two")["messages"]]}
    report = checked(tmp_path, [long, {**long, "messages": long["messages"][:1]}], Endless(forgetful))
    found = {finding.code: finding for finding in report.findings}
    assert "will not learn to stop" in found["end-never-learned"].text
    assert "57 tokens in place of 37" in found["expanded"].text


QUESTION, ANSWER = chat("q")["messages"]
KINDS: dict[str, Any] = {
    "chat": chat("q"), "unanswered": {"messages": [QUESTION]}, "completion": {"prompt": "p", "completion": "c"},
    "messages": {"prompt": [QUESTION], "completion": [ANSWER]}, "text": {"text": "abc"}, "prompt": {"prompt": "p"},
    "preference": pair(0, "c", "r"), "unpaired": {"prompt": "p", "completion": "c", "label": True}, "invalid": "{",
    "stepwise": {"prompt": "p", "completions": ["c"], "labels": [True]}, "empty": {"text": ""},
    "empty answer": chat("q", ""), "weightless": {"messages": [QUESTION, {**ANSWER, "weight": 0}]},
    "long": chat("q", "a" * 90), "long question": chat("q" * 90), "first": {"messages": [ANSWER, QUESTION]},
}  # fmt: skip


@pytest.mark.parametrize("write_chat", [None, plain, forgetful, unstable])
def test_the_verdict_is_that_of_a_run_for_every_kind_of_row(tmp_path: Path, write_chat: Any) -> None:
    tokenizer: Any = Checkable(write_chat)
    for one, other in itertools.combinations_with_replacement(KINDS, 2):
        path = write(tmp_path / "rows.jsonl", [KINDS[one], KINDS[other]])
        for long_rows in ("truncate", "drop", "error"):
            config = TrainConfig(data=path, max_seq_length=60, long_rows=long_rows, cache_gb=0)
            report = check(config, tokenizer)
            try:
                counts = data.load(config, CausalLM(), tokenizer).counts
            except DataError:
                assert report.errors, (one, other, long_rows)
            else:
                assert (report.errors, report.splits[0].counts) == (0, counts), (one, other, long_rows)


def test_equal_pairs_and_biased_lengths_of_preferences_are_told(tmp_path: Path) -> None:
    fair = [pair(n, "good answer", "bad answers") for n in range(20)]
    assert codes(checked(tmp_path, [*fair, pair(99, "same", "same")])) == {"other-objective": 21, "equal-pair": 1}
    biased = checked(tmp_path, [pair(n, "a long answer", "short") for n in range(20)])
    (bias,) = (finding for finding in biased.findings if finding.code == "length-bias")
    assert (bias.level, bias.count) == ("warning", 20)
    assert "longer one in 100%" in bias.text
    assert "14 tokens on average against 6" in bias.text
    even = checked(tmp_path, [pair(n, *(("a long answer", "short")[:: (-1) ** n])) for n in range(20)])
    assert [finding.level for finding in even.findings if finding.code == "length-bias"] == ["note"]


@pytest.mark.parametrize(
    ("objective", "errors"), [("sft", 1), ("dpo", 0), ("orpo", 0), ("simpo", 0), ("kto", 0), ("reward", 0)]
)
def test_rows_are_checked_for_the_objective_that_they_are_for(tmp_path: Path, objective: Any, errors: int) -> None:
    rows = [pair(n, *(("a long answer", "short")[:: (-1) ** n])) for n in range(20)]
    config = FinetuneConfig(data=write(tmp_path / "rows.jsonl", rows), objective=objective)
    report = check(config, Checkable(plain))
    assert [finding.code for finding in report.findings if finding.level == "error"] == ["other-objective"] * errors
    assert report.splits[0].counts.kinds == {"preference": 20}


def test_labels_of_one_kind_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c", "label": n > 0} for n in range(20)]
    assert "lopsided-labels" in codes(checked(tmp_path, rows))
    assert "lopsided-labels" not in codes(checked(tmp_path, [{**row, "label": n % 2} for n, row in enumerate(rows)]))


def test_prompts_without_answers_are_measured(tmp_path: Path) -> None:
    report = checked(tmp_path, [{"prompt": "abc"}, {"prompt": [{"role": "user", "content": "abcde"}]}])
    assert codes(report) == {"other-objective": 2}
    assert (report.splits[0].lengths.least, report.splits[0].lengths.most) == (11, 13)


def test_a_row_is_shown_as_the_tokens_that_a_run_learns(tmp_path: Path) -> None:
    report = checked(tmp_path, GOOD)
    for shown in report.shown:
        assert "".join(piece.text for piece in shown.pieces if piece.weight) == "fine$"
    assert [shown.where.rpartition(":")[2] for shown in report.shown] == ["1", "8"]
    both = checked(tmp_path, [pair(0, "yes", "no"), pair(1, "yes", "no")])
    assert [shown.side for shown in both.shown] == ["chosen", "rejected"] * 2


def test_a_long_row_is_shown_without_its_middle() -> None:
    example = Example(np.arange(1000, dtype=np.int32) % 90 + 33, np.arange(1000) > 900, "f:1")
    shown = show(example, "", 1200, Checkable())  # type: ignore[arg-type]
    assert (shown.tokens, shown.supervised, shown.lost_tokens) == (1000, 99, 200)
    assert shown.gap is not None
    assert len(shown.pieces) + shown.left_out == 1000
    text = "".join(piece.text for piece in shown.pieces)
    assert text == "".join(map(chr, [*example.tokens[: shown.gap], *example.tokens[shown.gap - len(shown.pieces) :]]))


@pytest.mark.parametrize("lengths", [[5], [0, 0], [1, 2, 3], [7, 9000], list(range(30, 90)), [0, 1, 10**7]])
def test_a_histogram_counts_each_length_once_in_adjoining_bars(lengths: list[int]) -> None:
    made = Lengths.of(lengths)
    assert sum(count for *_, count in made.bars) == len(lengths)
    for low, high, count in made.bars:
        assert count == sum(low <= length <= high for length in lengths)
    assert [low for low, *_ in made.bars[1:]] == [high + 1 for _, high, _ in made.bars[:-1]]
    assert 1 <= len(made.bars) <= 13


def test_quantiles_are_lengths_that_occur() -> None:
    made = Lengths.of([9, 1, 2, 3, 4, 5, 6, 7, 8, 100])
    assert (made.least, made.median, made.p95, made.most, made.total) == (1, 5, 100, 100, 145)
    assert Lengths.of([]) == Lengths()


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        check(TrainConfig(data=str(tmp_path / "none.jsonl")), Checkable(plain))  # type: ignore[arg-type]


def test_a_check_imports_no_mlx() -> None:
    program = "import sys, macllm.train.check; print('mlx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"


class WithTokens(Checkable):
    """A tokenizer with a mask token and no sentinels."""

    folder = "here"
    mask_token_id = ord("§")

    def token_to_id(self, token: str) -> int | None:
        return None


TEXT = {"text": "some text"}
LABELLED = [{"text": f"text {n}", "label": n % 2} for n in range(4)]
TAGGED = [{"words": ["a", f"b{n}"], "tags": ["O", "X"]} for n in range(4)]
PROMPTS = [{"prompt": f"question {n}"} for n in range(4)]
WORDS = [{"source": f"word {n}", "target": f"{n} drow"} for n in range(4)]


def of_objective(objective: str, path: Path, rows: list[Any], **settings: Any) -> DataReport:
    needed = {"grpo": {"rewards": ("exact_match",)}, "ppo": {"rewards": ("exact_match",)}}.get(objective, {})
    kind = PretrainConfig if objective in ("clm", "mlm", "span", "infill") else FinetuneConfig
    limit, against = settings.pop("context_length", None), settings.pop("against", ())
    given = {"data": write(path / "rows.jsonl", rows), "objective": objective, **needed, **settings}
    return check(kind.load(**given), WithTokens(plain), against=against, context_length=limit, show=1)


@pytest.mark.parametrize(
    ("objective", "good", "bad", "codes_of_bad"),
    [
        ("classify", LABELLED, [*LABELLED, TEXT], {"unlabelled": 1}),
        ("classify", LABELLED, LABELLED[::2], {"one-label": 1}),
        ("tag", TAGGED, LABELLED, {"other-objective": 4}),
        ("grpo", PROMPTS, GOOD[:2], {"other-objective": 2}),
        ("ppo", PROMPTS, [*PROMPTS, {"prompt": "long" * 20}], {"long-prompts": 1}),
        ("seq2seq", WORDS, [*WORDS, {"prompt": [{"role": "user", "content": "a"}], "completion": [
            {"role": "assistant", "content": "b"}]}], {"unusable": 1}),
        ("mlm", [TEXT], PROMPTS, {"other-objective": 4}),
        ("infill", [TEXT], WORDS, {"other-objective": 4}),
        ("clm", [TEXT], PROMPTS, {"other-objective": 4}),
    ],
)  # fmt: skip
def test_rows_of_any_objective_are_checked(
    objective: str, good: list[Any], bad: list[Any], codes_of_bad: dict[str, int], tmp_path: Path
) -> None:
    settings = {"max_seq_length": 60}
    assert {f.code for f in of_objective(objective, tmp_path, good, **settings).findings} <= {"end-never-learned"}
    found = codes(of_objective(objective, tmp_path, bad, **settings))
    assert {code: count for code, count in found.items() if code != "end-never-learned"} == codes_of_bad


def test_a_span_needs_sentinels_and_a_prompt_room_for_an_answer(tmp_path: Path) -> None:
    assert codes(of_objective("span", tmp_path, [TEXT]))["no-such-token"] == 1
    longest = of_objective("grpo", tmp_path, PROMPTS).splits[0].lengths.most
    report = of_objective("grpo", tmp_path, PROMPTS, context_length=longest)
    assert codes(report) == {"no-room": 4}
    assert report.errors == 1


def test_labels_of_other_files_that_are_never_learned_are_told(tmp_path: Path) -> None:
    other = write(tmp_path / "test.jsonl", [{"text": "new", "label": "unknown"}])
    report = of_objective("classify", tmp_path, LABELLED, against=(other,))
    assert codes(report) == {"unseen-labels": 1}
    assert report.errors == 0


def test_a_source_and_its_target_are_as_long_as_the_longer_one(tmp_path: Path) -> None:
    rows = [{"source": "abcdef", "target": "ab"}]
    whole, cut = (of_objective("seq2seq", tmp_path, rows, max_seq_length=most) for most in (60, 5))
    lengths = [each.splits[0].lengths.most for each in (whole, cut)]
    assert lengths[0] == lengths[1] == len(TextToText().examples(parse(rows[0], "rows"), WithTokens(plain))[0])
    (learned,) = {each.splits[0].counts.supervised_tokens for each in (whole, cut)}
    assert "ab" in "".join(piece.text for piece in whole.shown[0].pieces if piece.weight)
    assert (cut.splits[0].counts.truncated_rows, learned) == (1, whole.splits[0].supervised_lengths.most)
