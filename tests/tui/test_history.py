"""History of the prompt."""

from __future__ import annotations

import random

from macllm_tui.text.history import History


def test_the_walk_back_and_forth_ends_at_the_draft() -> None:
    history = History(["one", "two"])
    assert [history.older("draft"), history.older("two"), history.older("one")] == ["two", "one", None]
    assert [history.newer("one"), history.newer("two"), history.newer("draft")] == ["two", "draft", None]


def test_a_message_that_is_changed_on_the_walk_keeps_the_change_until_the_next_entry() -> None:
    history = History(["one", "two"])
    assert history.older("draft") == "two"
    assert history.older("two, changed") == "one"
    assert history.newer("one") == "two, changed"
    assert history.newer("two, changed again") == "draft"
    assert history.older("draft") == "two, changed again"
    history.add("three")
    assert [history.older(""), history.older("three")] == ["three", "two"]


def test_a_new_entry_ends_the_walk_and_a_repeated_or_empty_one_is_not_added() -> None:
    history = History(["one"])
    history.older("")
    assert not history.add("one")
    assert not history.add("  ")
    assert history.add("two")
    assert history.older("") == "two"


def test_a_search_finds_every_word_newest_first_and_each_text_once() -> None:
    history = History(["Sort a list", "other", "list the SORT keys", "Sort a list"])
    assert history.search("sort li") == ["Sort a list", "list the SORT keys"]
    assert history.search("") == ["Sort a list", "list the SORT keys", "other"]
    assert history.search("nothing") == []
    assert History(["x" * 5000 + " far"]).search("far") == []


def test_stored_messages_come_before_those_of_the_session() -> None:
    history = History(["typed early"])
    assert history.begin_with(["one", "two"]) == ["typed early"]
    assert [history.older(""), history.older(""), history.older("")] == ["typed early", "two", "one"]


def test_any_walk_returns_to_the_draft() -> None:
    chance = random.Random(4)
    for _ in range(300):
        entries = [str(chance.randrange(5)) for _ in range(chance.randint(0, 6))]
        history, shown = History(entries), "draft"
        for _ in range(20):
            found = history.older(shown) if chance.random() < 0.5 else history.newer(shown)
            shown = shown if found is None else found
        while (found := history.newer(shown)) is not None:
            shown = found
        assert shown == "draft"
