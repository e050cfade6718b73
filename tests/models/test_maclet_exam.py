"""The examination of maclet: its questions, what is trained of them, and its judge."""

from __future__ import annotations

import collections
import json
import random
from pathlib import Path

import pytest

from macllm_models import making
from macllm_models.maclet import exam, make_data, remake
from macllm_models.maclet.evaluate import words
from macllm_models.maclet.exam import Exam, Marked, Question
from macllm_models.maclet.judge import Judge, read_terms
from macllm_models.maclet.knowledge import Guide
from macllm_models.maclet.plain import plain, plain_questions, plain_turns
from macllm_models.maclet.questions import GENERIC_WORDS, follow_ups, kept_from_training, refusals, wordings
from macllm_models.maclet.recall import NOTHING_ASKED, recall
from macllm_models.maclet.topics import DATA, Turn, labelled, normalized

FEW = 9_000


@pytest.fixture(scope="module")
def examination() -> Exam:
    return Exam()


@pytest.fixture(scope="module")
def guide(examination: Exam) -> Guide:
    return examination.guide


@pytest.fixture(scope="module")
def judge(examination: Exam) -> Judge:
    return examination.judge


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> collections.Counter[str]:
    """Every question of a small training set and its validation set, normalized, with its count."""
    folder = tmp_path_factory.mktemp("maclet")
    make_data.make(folder, conversations=FEW)
    rows = [line for name in ("train", "valid") for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    messages = [message for row in rows for message in json.loads(row).get("messages", ())]
    return collections.Counter(normalized(each["content"]) for each in messages if each["role"] == "user")


def test_the_examination_has_as_many_questions_as_it_claims(examination: Exam, guide: Guide) -> None:
    counts = collections.Counter(question.set for question in examination.questions())
    assert (counts["wordings"], counts["follow-ups"], counts["refusals"]) == (200, 60, 40)
    assert counts["plain"] == len(guide.topics)
    assert set(collections.Counter(each.style for each in wordings()).values()) == {40}
    texts = [normalized(question.messages[-1]["content"]) for question in examination.questions()]
    texts = [text for text, question in zip(texts, examination.questions(), strict=True) if question.set == "wordings"]
    assert len(set(texts)) == 200
    assert len({(each.questions, each.answered) for each in follow_ups()}) == 60


def test_no_question_of_the_examination_is_trained(asked: collections.Counter[str]) -> None:
    assert kept_from_training() & set(asked) == set()


def test_no_text_of_the_training_holds_a_question_of_the_examination(guide: Guide) -> None:
    """Neither as a question in people's own words nor through a phrasing and a name."""
    own = {normalized(question) for *_, question in guide.own}
    frames = {normalized(frame) for lines in guide.frames.values() for frame in lines}
    held = {normalized(question) for topic in guide.topics for _, question in topic.test}
    assert kept_from_training() & (own | frames | held | set(plain_questions(guide.topics))) == set()


def test_a_question_of_the_examination_is_kept_out_in_any_case_and_punctuation() -> None:
    held = kept_from_training()
    for question in [each.question for each in wordings()] + refusals():
        typed = Turn(f"{question.upper()} !", "", ("",), None, "plain.concept.what")
        assert make_data.kept_out(typed, held)


def test_the_plain_form_of_every_name_is_drawn_equally_often(guide: Guide) -> None:
    names = [name for topic in guide.topics if topic.kind != "self" for name in topic.names]
    turns = plain_turns(random.Random(3), guide.topics)
    drawn = [next(turns) for _ in range(20 * len(names))]
    counts = collections.Counter(topic.name for topic, _ in drawn)
    assert all(counts[topic.name] == 20 * len(topic.names) for topic in guide.topics if topic.kind != "self")
    exact = collections.Counter(normalized(question) for _, question in drawn)
    rare = [
        text for text, (topic, _) in plain_questions(guide.topics).items() if topic.kind != "self" and exact[text] < 2
    ]
    assert rare == []


def test_the_plain_form_of_nearly_every_name_is_trained_even_in_a_small_set(
    asked: collections.Counter[str], guide: Guide
) -> None:
    """A set of 4 %; without plain turns 131 of 171 first names came 0 times in the whole."""
    texts = [text for text, (topic, _) in plain_questions(guide.topics).items() if topic.kind != "self"]
    assert sum(asked[text] > 0 for text in texts) > 0.5 * len(texts)
    assert not [text for text in texts if make_data.kept_out(Turn(text, "", ("",), None, "plain.what"), set())]


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("RoPE", "What is RoPE?"),
        ("MHA", "What is MHA?"),
        ("attention heads", "What are attention heads?"),
        ("quit the chat", "How do I quit the chat?"),
        ("exit codes", "Tell me about exit codes."),
        ("who are you", "Who are you?"),
    ],
)
def test_plain_forms(guide: Guide, name: str, question: str) -> None:
    assert plain(guide.by_name[name.lower()], name) == question


# --- the judge ---


def test_the_judge_accepts_every_known_answer_of_a_topic_with_terms(guide: Guide, judge: Judge) -> None:
    for name, facet in read_terms():
        topic = guide.by_name[name.lower()]
        reasons = [judge.about(answer, topic, facet) for answer in topic.answers[facet]]
        assert reasons == [""] * len(reasons), (name, facet)


def test_the_judge_rejects_every_answer_to_another_topic(guide: Guide, judge: Judge) -> None:
    rng = random.Random(5)
    concepts = [topic for topic in guide.topics if topic.kind != "self"]
    for topic in concepts:
        for other in rng.sample(concepts, 12):
            for answer in other.answers["what"] if other is not topic else ():
                assert judge.about(answer, topic, "what"), (topic.name, answer)


def test_the_judge_rejects_another_topics_answer_under_the_right_name(guide: Guide, judge: Judge) -> None:
    """An answer that begins with the right name and goes on with a neighbour's definition is wrong."""
    family = ("multi-head attention", "multi-query attention", "grouped-query attention", "linear attention")
    family += ("sparse attention", "sliding window attention", "cross-attention", "causal attention", "self-attention")
    for ours in family:
        for theirs in family:
            if ours != theirs:
                for answer in guide.by_name[theirs].answers["what"]:
                    renamed = answer.replace(theirs.capitalize(), ours.capitalize()).replace(theirs, ours)
                    assert judge.about(renamed, guide.by_name[ours], "what"), (ours, renamed)


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        ("GQA", "In GQA all query heads share one key head and one value head that all of them use.", ""),
        ("RoPE", "RoPE adds sine and cosine waves to the query and key vectors, by the distance.", ""),
        ("top-p", "Top-p keeps a fixed number of likely tokens, and together they are drawn.", ""),
        ("LoRA", "I do not know that. I am a small guide to language models and macllm.", "refuses"),
        ("LoRA", "Bananas are yellow.", "lacks"),
        ("LoRA", "", "lacks"),
        ("quit the chat", "Press Esc or Ctrl+C. What was already written is kept.", "lacks"),
        ("softmax", "softmax probabilities sum positive", "agrees with no right answer"),
        ("token", "A tokenizer turns a piece of text with each word into units by number.", ""),
    ],
)
def test_the_judge_rejects_wrong_answers(guide: Guide, judge: Judge, name: str, answer: str, reason: str) -> None:
    given = judge.about(answer, guide.by_name[name.lower()], "what")
    assert given
    assert reason in given


def test_the_judge_tells_facets_apart(guide: Guide, judge: Judge) -> None:
    rope = guide.by_name["rope"]
    assert judge.about(rope.answers["why"][0], rope, "what")
    assert judge.about(rope.answers["what"][0], rope, "why")


def test_a_shorter_answer_is_shorter_and_says_the_same(guide: Guide, judge: Judge) -> None:
    topic = guide.by_name["attention"]
    before = topic.answers["what"][0]
    assert judge.shorter(before.split(". ")[0] + ".", before, topic) == ""
    assert judge.shorter(before, before, topic) == "is not shorter"
    assert judge.shorter("Bananas are yellow.", before, topic) == "says something else"


def right_answer(examination: Exam, question: Question) -> str:
    """An answer that should be accepted."""
    guide, (kind, _, rest) = examination.guide, question.expected.partition(" ")
    if kind == "refuse":
        return guide.outside["refusal"][1]
    if kind == "cannot":
        return guide.frames["refused"][0]
    if kind == "shorter":
        return question.messages[-2]["content"].split(". ")[0] + "."
    if kind == "asked":
        return f"You asked about {rest.removeprefix('first ')}."
    if kind == "differ":
        ends = {guide.by_name[name.strip().lower()].name for name in rest.split("+")}
        known = [({guide._id(name) for name in pair}, text) for *pair, text in guide.pairs]
        return next(text for names, text in known if names == ends)
    name, facet = exam.split_label({"again": question.topic, "self": rest}.get(kind, question.expected))
    return guide.by_name[name.lower()].answers[facet][-1]


def test_every_question_of_the_examination_has_a_right_answer_and_rejects_a_wrong_one(examination: Exam) -> None:
    for question in examination.questions():
        assert examination.mark(question, right_answer(examination, question)) == "", question
        assert examination.mark(question, "Bananas are yellow and grow in Ecuador."), question


def test_a_question_is_recalled_by_its_topic(guide: Guide) -> None:
    rng = random.Random(0)
    first = Turn("what is RoPE?", "a", ("a",), guide.by_name["rope"], "concept.what")
    then = Turn("what is BPE?", "b", ("b",), guide.by_name["bpe"], "concept.what")
    thanks = Turn("thanks", "c", ("c",), guide.by_name["thanks"], "self.what")
    answers = {recall(rng, [first, then, thanks]).answer for _ in range(50)}
    assert answers == {
        "You asked about byte pair encoding.",
        "Your first question was about rotary position embedding.",
    }
    assert recall(rng, [thanks]).answer == NOTHING_ASKED[0]


def test_the_report_gives_rates_with_intervals_beside_the_baseline(examination: Exam) -> None:
    few = [each for each in examination.questions() if each.set == "wordings"]
    marked = [Marked(question, "", "" if at % 4 else "wrong") for at, question in enumerate(few)]
    rows = exam.report(marked, [Marked(question, "", "wrong") for question in few])
    assert (rows[0]["questions"], rows[0]["right"], rows[0]["goal"], rows[0]["nearest"]) == (200, 150, 0.8, 0.0)
    for end in rows[0]["interval"]:  # the rates that lie just 1.96 of their own standard deviations away
        assert abs(0.75 - end) == pytest.approx(1.96 * (end * (1 - end) / 200) ** 0.5)
    assert "| **wordings** | 200 | 75.0% | 68.6% to 80.5% | 80% | 0.0% |" in exam.table(rows)


def test_the_goals_are_those_of_the_recipe() -> None:
    assert exam.GOALS == {"plain": 0.95, "wordings": 0.80, "follow-ups": 0.75}


# --- making it ---


def test_curves_and_report_are_written_between_the_marks_of_the_card(tmp_path: Path) -> None:
    events = [{"event": "Step", "step": step, "loss": 8 - step / 100} for step in range(10, 610, 10)]
    events += [{"event": "Evaluated", "step": step, "loss": 8 - step / 90} for step in (0, 300, 600)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    text = making.curves(tmp_path / "metrics.jsonl")
    assert "| 600 | 2.000 | 1.333 |" in text
    assert "loss 7.900 to 2.000" in text
    card = (remake.HOME / "card.md").read_text(encoding="utf-8")
    changed = making.written(card, text)
    assert text in changed
    assert changed.startswith(card.partition("<!-- measured -->")[0])
    assert changed.endswith(card.partition("<!-- /measured -->")[2])


def test_a_maclet_of_more_than_16_mb_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "build" / "second" / "run" / "model"
    model.mkdir(parents=True)
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(40 * 10**6)
    with pytest.raises(ValueError, match="MB"):
        remake.install(tmp_path / "build", "", tmp_path)


def test_no_question_written_after_the_examination_is_nearly_one_of_it() -> None:
    """Less than 0.7 of the words (F1) of each are shared with any question of the examination."""
    asked = [wording.question for wording in wordings()] + refusals()
    asked += [text for each in follow_ups() for text in each.questions if len(text.split()) > GENERIC_WORDS]
    counts = [collections.Counter(words(question)) for question in asked]
    places = collections.defaultdict(list)
    for at, counted in enumerate(counts):
        for word in counted:
            places[word].append(at)
    later = sorted((DATA / "asks").glob("*_wider.txt"))
    assert later
    for _, questions in labelled(*later):
        for question in questions.split(" | "):
            ours, shared = collections.Counter(words(question)), collections.Counter[int]()
            for word, count in ours.items():
                for at in places.get(word, ()):
                    shared[at] += min(count, counts[at][word])
            for at, both in shared.items():
                assert 2 * both / (ours.total() + counts[at].total()) < 0.7, (question, asked[at])
