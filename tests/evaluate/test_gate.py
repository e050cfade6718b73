"""Gates: the language with its errors, verdicts worked out by hand, the table and the exit code."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macllm.errors import MacllmError, UsageError
from macllm.evaluate import bootstrap, gate
from macllm.evaluate.bootstrap import Interval
from macllm.evaluate.gate import Condition, GateFinding, GateReport, PairedMeasurements, PairedTexts, Verdict

NUMBERS = st.floats(min_value=0, max_value=1e300)
SIGNED = st.floats(min_value=-1e300, max_value=1e300)
OPERATORS = st.sampled_from(["<=", ">="])
NAMES = st.text(min_size=1, max_size=12).filter(lambda name: not re.search(r"[\s<>=]", name))
TASKS = NAMES.map("task:{}".format)
CONDITIONS = st.one_of(
    st.builds(Condition, st.sampled_from(["kl", "ppl", "bpb"]), OPERATORS, NUMBERS),
    st.builds(Condition, st.just("top1") | TASKS, OPERATORS, st.floats(min_value=0, max_value=1)),
    st.builds(Condition, st.sampled_from(["ppl", "bpb"]) | TASKS, OPERATORS, SIGNED, st.just("%")),
    st.builds(Condition, TASKS, OPERATORS, SIGNED, st.just("pt")),
)


def same(first: Condition, second: Condition) -> bool:
    return first == second and math.copysign(1, first.bound) == math.copysign(1, second.bound)


@given(st.lists(CONDITIONS, min_size=1, max_size=5), st.sampled_from([" ", "\n\t ", "  "]))
def test_printed_conditions_are_read_back(conditions: list[Condition], space: str) -> None:
    found = gate.parse(space + space.join(map(str, conditions)) + space)
    assert len(found) == len(conditions)
    assert all(map(same, found, conditions))


@given(st.text(max_size=30) | st.text("kltop1pbtask:<>=+-.%e0 5", max_size=30))
def test_any_text_is_read_or_refused_with_a_position_in_it(text: str) -> None:
    try:
        conditions = gate.parse(text)
    except UsageError as error:
        position = re.match(r"gate, character (\d+): expected", error.message)
        assert position is not None
        assert 1 <= int(position.group(1)) <= len(text) + 1
    else:
        assert gate.parse(" ".join(map(str, conditions))) == conditions


def test_the_example_is_read() -> None:
    assert gate.parse(gate.EXAMPLE) == (
        Condition("kl", "<=", 0.02),
        Condition("top1", ">=", 0.95),
        Condition("bpb", "<=", 0.5, "%"),
        Condition("task:mine", ">=", -1.0, "pt"),
    )
    assert gate.parse("kl <= .02  task:a-b.c >= +1E1pt") == (
        Condition("kl", "<=", 0.02),
        Condition("task:a-b.c", ">=", 10.0, "pt"),
    )


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 1, "found the end"),
        ("   ", 4, "kl, top1, ppl, bpb or task:NAME"),
        ("kl", 3, "expected <= or >=, found the end"),
        ("kl<0.02", 3, "expected <= or >=, found '<0.02'"),
        ("kl=<0.02", 3, "<= or >="),
        ("kl<=", 5, "expected a bound such as 0.9, found the end"),
        ("kl<=0.02,top1>=0.9", 5, "found '0.02,top1>=0.9'"),
        ("kl<=0.02 KL<=1", 10, "found 'KL<=1'"),
        ("kl<=0.02 accuracy>=1", 10, "task:NAME"),
        ("task:>=1", 1, "task:NAME"),
        ("task>=1", 1, "task:NAME"),
        ("kl<=+2%", 5, "kl has no bounds in %"),
        ("top1>=-1pt", 7, "top1 has no bounds in pt"),
        ("bpb<=-1pt", 6, "bpb has no bounds in pt"),
        ("bpb<=0.5%", 6, "a change needs a sign"),
        ("task:a>=1pt", 9, "a change needs a sign"),
        ("ppl<=+5", 6, "+5 needs the unit % or pt"),
        ("top1>=95", 7, "95 is beyond the values of top1"),
        ("task:a>=1.01", 9, "1.01 is beyond the values of task"),
        ("ppl<=1e999", 6, "inf is beyond"),
        ("ppl<=nan", 6, "found 'nan'"),
        ("ppl<=٣", 6, "found '٣'"),
        ("bpb<=−1%", 6, "found '−1%'"),
        ("kl<=0.02 " + "x" * 10_000, 10, "found 'xxxxxxxxxxxxxxxxxxxx...'"),
    ],
)
def test_errors_name_the_position_and_the_expected_words(text: str, position: int, words: str) -> None:
    with pytest.raises(UsageError) as error:
        gate.parse(text)
    assert error.value.message.startswith(f"gate, character {position}: expected ")
    assert words in f"{error.value.message} {error.value.cause}"
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("condition", "low", "high", "verdict"),
    [
        ("kl<=0.02", 0.01, 0.02, "pass"),
        ("kl<=0.02", 0.01, 0.0201, "undecided"),
        ("kl<=0.02", 0.02, 0.03, "undecided"),
        ("kl<=0.02", 0.0201, 0.03, "fail"),
        ("top1>=0.95", 0.95, 0.97, "pass"),
        ("top1>=0.95", 0.94, 0.97, "undecided"),
        ("top1>=0.95", 0.93, 0.95, "undecided"),
        ("top1>=0.95", 0.93, 0.9499, "fail"),
        ("bpb<=+0.5%", -0.001, 0.005, "pass"),
        ("bpb<=+0.5%", 0.0051, 0.5, "fail"),
        ("task:a>=-7pt", -0.07, 0.0, "pass"),
        ("task:a>=-7pt", -0.2, -0.0701, "fail"),
        ("task:a>=-7pt", -math.inf, math.inf, "undecided"),
        ("kl<=0.02", math.nan, math.nan, "undecided"),
    ],
)
def test_verdicts_follow_from_the_whole_interval(condition: str, low: float, high: float, verdict: Verdict) -> None:
    assert gate.parse(condition)[0].verdict(Interval(0.0, low, high, 10, "BCa")) == verdict


def texts(g: int = 120) -> PairedTexts:
    random = np.random.default_rng(0)
    tokens = random.integers(50, 150, g).astype(float)
    before = tokens * random.normal(2.5, 0.1, g)
    return PairedTexts(
        tokens,
        tokens * 4,
        before,
        before * random.normal(1.003, 0.001, g),
        tokens * random.gamma(20, 0.01 / 20, g),
        random.binomial(tokens.astype(int), 0.96).astype(float),
    )


def finding(condition: str, measured: PairedMeasurements) -> GateFinding:
    return gate.judge(gate.parse(condition), measured).findings[0]


def test_values_of_texts_are_ratios_of_sums_over_all_documents() -> None:
    found = texts()
    measured = PairedMeasurements(found)
    assert found.kl is not None
    assert found.top1 is not None
    before, after, tokens = found.nll_before.sum(), found.nll_after.sum(), found.tokens.sum()
    expected = {
        "kl<=1": found.kl.sum() / tokens,
        "top1>=0": found.top1.sum() / tokens,
        "ppl<=1": np.exp(after / tokens),
        "bpb<=1": after / math.log(2) / found.bytes.sum(),
        "ppl<=+1%": np.exp(after / tokens) / np.exp(before / tokens) - 1,
        "bpb<=+1%": (after / found.bytes.sum()) / (before / found.bytes.sum()) - 1,
    }
    for condition, value in expected.items():
        interval = finding(condition, measured).interval
        assert interval.value == pytest.approx(value, rel=1e-12), condition
        assert interval.low < value < interval.high
        assert (interval.n, interval.method) == (120, "BCa")


def test_verdicts_on_texts_change_with_the_bound() -> None:
    measured = PairedMeasurements(texts())
    found = gate.judge(gate.parse("kl<=0.02 kl<=0.01 kl<=0.005 top1>=0.9 bpb<=+0.5% bpb<=+0.1% ppl<=+1%"), measured)
    assert [each.verdict for each in found.findings] == [
        "pass", "undecided", "fail", "pass", "pass", "fail", "pass",
    ]  # fmt: skip
    assert found.verdict == "fail"


def test_a_document_without_tokens_changes_nothing() -> None:
    found = texts()
    longer = PairedTexts(*(np.append(each, 0.0) for each in vars(found).values()))
    for condition in ("kl<=1", "top1>=0.5", "ppl<=+1%", "bpb<=+1%", "bpb<=2"):
        assert finding(condition, PairedMeasurements(longer)) == finding(condition, PairedMeasurements(found))


def scores(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of items: both right, lost, gained, both wrong."""
    before, after = (np.repeat(each, counts).astype(float) for each in ((1, 1, 0, 0), (1, 0, 1, 0)))
    return before, after


def test_accuracy_is_compared_in_points_in_percent_and_absolutely() -> None:
    measured = PairedMeasurements(tasks={"a": scores(150, 10, 4, 36)})
    points, percent, alone = (finding(f"task:a>={each}", measured).interval for each in ("-1pt", "-1%", "0.5"))
    assert points.value == pytest.approx(-6 / 200)
    assert percent.value == pytest.approx(154 / 160 - 1)
    assert (alone.value, alone.method) == (154 / 200, "Wilson")
    spread = 1.96 * math.sqrt((14 / 200 - (6 / 200) ** 2) / 200)
    assert (points.low, points.high) == pytest.approx((-0.03 - spread, -0.03 + spread), abs=0.004)


def test_pairing_decides_on_a_change_that_separate_intervals_would_not_show() -> None:
    measured = PairedMeasurements(tasks={"a": scores(500, 2, 2, 496)})
    assert finding("task:a>=-1pt", measured).verdict == "pass"
    before, after = measured.tasks["a"]
    assert bootstrap.proportion(after).low < before.mean() - 0.03


def test_items_that_all_changed_alike_are_noted() -> None:
    found = finding("task:a>=-1pt", PairedMeasurements(tasks={"a": scores(60, 0, 0, 40)}))
    assert found.verdict == "pass"
    assert found.note == "all 100 items changed alike; a change in up to 3.6% of such items would not show"


def test_few_documents_or_items_are_undecided() -> None:
    found = finding("kl<=1", PairedMeasurements(texts(5)))
    assert (found.verdict, found.note) == ("undecided", "an interval needs 6 documents or more")
    found = finding("task:a>=-99pt", PairedMeasurements(tasks={"a": scores(3, 0, 0, 2)}))
    assert (found.verdict, found.note) == ("undecided", "an interval needs 6 items or more")
    found = finding("task:a>=-99%", PairedMeasurements(tasks={"a": scores(1, 0, 0, 9)}))
    assert (found.verdict, found.note) == ("undecided", "the base is 0 in some of the resamples")


def test_a_metric_without_measurements_is_refused() -> None:
    found = texts()
    without = PairedTexts(found.tokens, found.bytes, found.nll_before, found.nll_after)
    for condition, measured, words in (
        ("kl<=1", PairedMeasurements(without), "needs kl, which was not measured"),
        ("bpb<=1", PairedMeasurements(), "needs bpb, which was not measured"),
        ("task:b>=0", PairedMeasurements(tasks={"a": scores(9, 0, 0, 9)}), "needs the task 'b', which was not"),
    ):
        with pytest.raises(UsageError, match=words):
            gate.judge(gate.parse(condition), measured)
    assert finding("bpb<=9", PairedMeasurements(without)).verdict == "pass"


def test_scores_that_are_nan_are_refused() -> None:
    before, after = scores(9, 1, 0, 9)
    after[4] = math.nan
    for condition in ("task:a>=-1pt", "task:a>=-1%", "task:a>=0.5"):
        with pytest.raises(MacllmError, match="unit 4 has the value nan"):
            finding(condition, PairedMeasurements(tasks={"a": (before, after)}))


def report(*verdicts: Verdict) -> GateReport:
    interval = Interval(0.01, 0.005, 0.03, 50, "percentile")
    return GateReport(tuple(GateFinding(Condition("kl", "<=", 0.02), interval, each) for each in verdicts))


@pytest.mark.parametrize(
    ("verdicts", "overall", "code", "lenient"),
    [
        (["pass", "pass"], "pass", 0, 0),
        (["pass", "undecided"], "undecided", 1, 0),
        (["undecided", "fail", "pass"], "fail", 1, 1),
    ],
)
def test_the_overall_verdict_is_the_worst(verdicts: list[Verdict], overall: str, code: int, lenient: int) -> None:
    found = report(*verdicts)
    assert found.verdict == overall
    assert (found.exit_code(), found.exit_code(lenient=True)) == (code, lenient)
    assert found.as_dict(lenient=True)["passed"] is (lenient == 0)


def test_the_table_and_json_show_values_in_the_unit_of_the_bound() -> None:
    findings = (
        GateFinding(Condition("kl", "<=", 0.02), Interval(0.0113, 0.0107, 0.012, 128, "BCa"), "pass"),
        GateFinding(Condition("bpb", "<=", 0.5, "%"), Interval(0.0031, 0.0012, 0.0058, 128, "BCa"), "undecided"),
        GateFinding(
            Condition("task:mine", ">=", -1.0, "pt"),
            Interval(-0.004, -math.inf, math.inf, 5, "none"),
            "undecided",
            "few",
        ),
    )
    assert list(GateReport(findings).lines(lenient=True)) == [
        "condition          value  95% interval        n  verdict",
        "kl<=0.02          0.0113  0.0107 to 0.012   128  pass",
        "bpb<=+0.5%        +0.31%  +0.12% to +0.58%  128  undecided",
        "task:mine>=-1pt  -0.40pt  none                5  undecided",
        "task:mine>=-1pt: few",
        "gate: undecided, which --lenient admits",
    ]
    shown = json.loads(json.dumps(GateReport(findings).as_dict(), allow_nan=False))
    assert shown["verdict"] == "undecided"
    assert shown["passed"] is False
    bpb, mine = shown["conditions"][1:]
    assert (bpb["value"], bpb["low"], bpb["high"]) == pytest.approx((0.31, 0.12, 0.58))
    assert (bpb["condition"], bpb["metric"], bpb["operator"], bpb["bound"], bpb["unit"]) == (
        "bpb<=+0.5%", "bpb", "<=", 0.5, "%",
    )  # fmt: skip
    assert (mine["low"], mine["high"], mine["note"]) == (None, None, "few")


def test_perplexities_beyond_float64_are_infinite_in_the_table_and_null_in_json() -> None:
    found = texts(10)
    measured = PairedMeasurements(PairedTexts(found.tokens, found.bytes, found.nll_before, found.tokens * 800))
    report = gate.judge(gate.parse("ppl<=12 ppl<=+1%"), measured)
    assert [each.verdict for each in report.findings] == ["fail", "fail"]
    assert json.dumps(report.as_dict(), allow_nan=False).count("null") >= 6
    assert "inf" in "\n".join(report.lines())
