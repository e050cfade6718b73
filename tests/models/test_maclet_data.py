"""Training data and held-out questions of maclet."""

from __future__ import annotations

import hashlib
import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from macllm_models.maclet import evaluate, make_data
from macllm_models.maclet.descriptions import described
from macllm_models.maclet.knowledge import Guide, made_up_word
from macllm_models.maclet.misspelling import misspelled
from macllm_models.maclet.nearest import Nearest
from macllm_models.maclet.topics import DATA, FACETS, OPENING, normalized, read_sections

FILES = ("train.jsonl", "valid.jsonl", "heldout.jsonl")
# All conversations share follow-ups and small talk; a held-out conversation differs in its first question.
FEW = 7_000


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maclet")
    make_data.make(path, conversations=FEW)
    return path


@pytest.fixture(scope="module")
def train(folder: Path) -> list[dict[str, Any]]:
    return read(folder / "train.jsonl")


@pytest.fixture(scope="module")
def heldout(folder: Path) -> list[dict[str, Any]]:
    return read(folder / "heldout.jsonl")


@pytest.fixture(scope="module")
def guide() -> Guide:
    return Guide(random.Random(0))


def test_the_same_seed_makes_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    def digests(name: str, seed: int) -> list[str]:
        make_data.make(tmp_path / name, seed, conversations=300)
        return [hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest() for file in FILES]

    first = digests("first", 0)
    assert digests("second", 0) == first
    differing = [name for name, *both in zip(FILES, digests("third", 1), first, strict=True) if both[0] != both[1]]
    assert differing == ["train.jsonl", "valid.jsonl"]  # the held-out questions are the same


def test_no_heldout_question_is_trained_or_validated_in_either_stage(
    folder: Path, train: list[dict[str, Any]], heldout: list[dict[str, Any]], tmp_path: Path
) -> None:
    make_data.make(tmp_path, 1, 2_000, make_data.SECOND)
    second = [*read(tmp_path / "train.jsonl"), *read(tmp_path / "valid.jsonl")]
    trained = {
        normalized(message["content"])
        for row in [*train, *read(folder / "valid.jsonl"), *second]
        for message in row.get("messages", ())
        if message["role"] == "user"
    }
    assert len(heldout) > 600
    assert [row for row in heldout if normalized(row["messages"][0]["content"]) in trained] == []


def test_heldout_questions_are_all_different(heldout: list[dict[str, Any]]) -> None:
    questions = [normalized(row["messages"][0]["content"]) for row in heldout]
    assert len(set(questions)) == len(questions)


def test_every_expected_answer_satisfies_its_own_score(heldout: list[dict[str, Any]]) -> None:
    """Some accepted answer holds the keywords, and no answer to a known question counts as a refusal."""
    for row in heldout:
        scores = [evaluate.score(row, answer) for answer in row["answers"]]
        assert any(score.right for score in scores), row
        assert all(score.agreement == 1.0 for score in scores), row


def test_accepted_answers_of_known_questions_are_trained(
    guide: Guide, train: list[dict[str, Any]], heldout: list[dict[str, Any]]
) -> None:
    known = {answer for topic in guide.topics for answers in topic.answers.values() for answer in answers}
    known |= {answer for *_, answer in guide.pairs}
    for row in heldout:
        if not row["refuse"] and row["category"] != "follow-up" and row["keywords"]:
            assert known & set(row["answers"]), row
    answered = {
        message["content"] for row in train for message in row.get("messages", ()) if message["role"] == "assistant"
    }
    assert len(known & answered) > 0.8 * len(known)


def test_unknown_questions_are_always_refused(guide: Guide) -> None:
    for heldout in (False, True):
        for _ in range(1_000):
            turn = guide.unknown(heldout)
            assert turn.topic is None
            assert all(evaluate.refuses(answer) for answer in turn.accepted), turn


def test_known_questions_are_never_refused(guide: Guide) -> None:
    for topic in guide.topics:
        for answers in topic.answers.values():
            assert topic.kind == "self" or not any(evaluate.refuses(answer) for answer in answers), topic.name


def test_nothing_is_both_known_and_unknown(guide: Guide) -> None:
    unknown = {normalized(item) for name in ("thing", "near", "command") for item in guide.slots[name]}
    unknown |= {word.removeprefix(article) for word in unknown for article in ("a ", "an ", "the ")}
    assert unknown & {normalized(name) for name in guide.by_name} == set()


def test_made_up_words_are_not_names_of_topics(guide: Guide) -> None:
    rng = random.Random(1)
    assert not {made_up_word(rng) for _ in range(2_000)} & set(guide.by_name)


def test_every_topic_has_keywords_and_two_definitions(guide: Guide) -> None:
    for topic in guide.topics:
        assert topic.keys, topic.name
        if topic.kind != "self":
            assert len(topic.answers["what"]) >= 2, topic.name
            assert any(evaluate.holds(answer, topic.keys) for answer in topic.answers["what"]), topic.name
        for answers in topic.answers.values():
            assert all(len(answer.split()) <= 60 for answer in answers), topic.name


def test_every_name_belongs_to_one_topic(guide: Guide) -> None:
    names = [name.lower() for topic in guide.topics for name in topic.names]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_every_comparison_includes_a_known_topic(guide: Guide) -> None:
    """At least one side of every comparison has a topic, so that follow-ups have something to refer to."""
    assert [pair for pair in guide.pairs if not {pair[0].lower(), pair[1].lower()} & set(guide.by_name)] == []


def test_every_facet_has_held_out_phrasings() -> None:
    sections = read_sections(DATA / "frames.txt")
    kept = [name for name, frames in sections.items() if any(frame.startswith("~") for frame in frames)]
    for name in ("what", "why", "how", "example", "cons", "short", "compare", "task", "command", "place"):
        assert name in kept


def test_conversations_alternate_and_end_with_an_answer(train: list[dict[str, Any]]) -> None:
    for row in train:
        roles = [message["role"] for message in row.get("messages", ())]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() == message["content"] != "" for message in row.get("messages", ()))


def test_a_wrong_answer_and_a_mistaken_refusal_score_nothing(heldout: list[dict[str, Any]]) -> None:
    row = next(row for row in heldout if row["keywords"])
    assert not evaluate.score(row, "Bananas are yellow.").right
    mistaken = evaluate.score(row, f"I do not know that. {row['answers'][0]}")
    assert (mistaken.right, mistaken.refused) == (False, True)
    unknown = next(row for row in heldout if row["refuse"])
    assert not evaluate.score(unknown, "It is a river in Egypt.").right


def test_the_report_counts_by_category(heldout: list[dict[str, Any]]) -> None:
    rates = evaluate.report(heldout, [evaluate.score(row, row["answers"][0]) for row in heldout])
    assert rates["all unknown"]["right"] == 1.0
    assert rates["all known"]["refused"] == 0.0
    assert rates["all known"]["questions"] + rates["all unknown"]["questions"] == len(heldout)
    assert "all known" in evaluate.table(rates)


def test_the_nearest_question_shares_the_rarest_words() -> None:
    asked = {"what is rope?": "positions", "what is bpe?": "tokens", "what is a head of rope?": "heads"}
    nearest = Nearest(asked.items())
    assert nearest.answer("BPE, what is it") == "tokens"
    assert nearest.answer("rope what is") == "positions"
    assert nearest.answer("a head") == "heads"


def test_every_answer_but_a_definition_names_its_topic_at_the_beginning(guide: Guide) -> None:
    """The rest of an answer is written with the name before it, also where the question does not name it."""
    for topic in guide.concepts:
        for facet, answers in topic.answers.items():
            for answer in answers:
                said = answer.lower()
                near = [name for name in topic.names if name.lower() in said[: len(name) + 40]]
                assert near or facet == "what", (topic.name, answer)
    led = guide.by_name["rope"].answers["why"][0]
    assert led.startswith("RoPE is used because it gives")


def test_an_opening_reaches_the_name_of_the_topic(guide: Guide) -> None:
    rope, tokenizer = guide.by_name["rope"], guide.by_name["tokenizer"]
    assert rope.opening(rope.answers["why"][0]) == "RoPE is used"
    assert rope.opening("Example of the well-known RoPE: turn a vector.") == "Example of the well-known RoPE"
    assert tokenizer.opening("It splits a text into small pieces") == "It splits a text into"
    assert tokenizer.opening("It splits.") == "It splits."


def test_a_conversation_of_openings_begins_each_answer_and_no_more(guide: Guide) -> None:
    facets = [topic.facet(facet, guide.frames) for topic in guide.topics for facet in FACETS]
    known = [answer for answers in (*facets, *guide.outside.values(), *guide.frames.values()) for answer in answers]
    known += [guide.everything(topic) for topic in guide.topics]
    asks_why = {normalized(phrasing) for phrasing in guide.frames["then.why"]}  # of the topic before, not named
    followed = 0
    for _ in range(200):
        system, *turns = make_data.openings(guide, set())
        assert system["role"] == "system"
        assert 1 <= len(turns) // 2 <= make_data.QUESTIONS_OPENED[1]
        assert {turn["role"] for turn in turns[::2]} == {"user"}
        said = [turn["content"] for turn in turns[1::2]]
        assert all(any(answer.startswith(opening) for answer in known) for opening in said)
        assert max(len(opening.split()) for opening in said) <= OPENING
        for question, (before, after) in zip(turns[2::2], pairwise(said), strict=True):
            if normalized(question["content"]) in asks_why:
                named = [topic for topic in guide.concepts if any(name in before for name in topic.names)]
                if len(named) == 1 and "why" in named[0].answers:
                    openings = [named[0].opening(answer) for answer in named[0].answers["why"]]
                    followed += after in openings
    assert followed


def test_a_description_never_names_its_topic(guide: Guide) -> None:
    rng = random.Random(1)
    found = [(topic, described(rng, topic)) for topic in guide.concepts * 5]
    assert sum(question != "" for _, question in found) > 0.9 * len(found)
    for topic, question in found:
        for name in topic.names:
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", question, re.IGNORECASE) is None, question


def test_a_misspelling_differs_and_leaves_abbreviations_and_code_to_be_known(guide: Guide) -> None:
    rng = random.Random(1)
    wrong = [misspelled(rng, "what is speculative decoding") for _ in range(200)]
    assert len(set(wrong)) > 150
    assert sum(each != "what is speculative decoding" for each in wrong) > 195
    for _ in range(200):
        assert "`--seed`" in misspelled(rng, "what does `--seed` do")
        assert misspelled(rng, "GQA") == "GQA"
        assert sorted(misspelled(rng, "LoRA")) == sorted("LoRA")
