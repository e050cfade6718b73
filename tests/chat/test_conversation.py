"""The tree of turns: paths, branches, cuts and copies."""

from __future__ import annotations

import pytest

from macllm.chat.conversation import Attachment, Conversation, Turn, with_attachments
from macllm.errors import UsageError


def user(text: str) -> Turn:
    return Turn(role="user", content=text)


def answer(text: str) -> Turn:
    return Turn(role="assistant", content=text)


def talk(*texts: str) -> Conversation:
    """Questions and answers by turns."""
    conversation = Conversation.begin()
    for n, text in enumerate(texts):
        conversation = conversation.added(answer(text) if n % 2 else user(text))
    return conversation


def contents(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation.turns]


def test_a_new_turn_after_an_earlier_one_begins_a_branch_and_keeps_the_old_path() -> None:
    old = talk("a", "b", "c", "d")
    new = old.at(old.path[1].id).added(user("e"))
    assert contents(old) == ["a", "b", "c", "d"]
    assert contents(new) == ["a", "b", "e"]
    c, e = old.path[2].id, new.path[2].id
    assert new.siblings(e) == (c, e) == new.siblings(c)
    assert contents(new.showing(c)) == ["a", "b", "c", "d"]
    assert contents(new.showing(new.path[0].id)) == ["a", "b", "e"]


def test_a_second_first_message_is_a_branch_too() -> None:
    old = talk("a", "b")
    new = old.at(None).added(user("z"))
    assert contents(new) == ["z"]
    assert new.siblings(new.path[0].id) == (old.path[0].id, new.path[0].id)


def test_a_state_is_not_changed_by_later_ones() -> None:
    conversation = talk("a", "b")
    nodes, path = dict(conversation.nodes), conversation.path
    conversation.added(user("c"))
    conversation.changed(path[0].id, user("x"))
    conversation.at(None)
    assert (dict(conversation.nodes), conversation.path) == (nodes, path)


def test_a_changed_turn_keeps_its_place_time_and_children() -> None:
    conversation = talk("a", "b", "c")
    node = conversation.path[1]
    changed = conversation.changed(node.id, answer("B"))
    assert contents(changed) == ["a", "B", "c"]
    assert (changed.path[1].id, changed.path[1].created) == (node.id, node.created)


def test_the_model_reads_the_turns_after_the_newest_cut_and_its_summary() -> None:
    conversation = talk("a", "b", "c", "d", "e", "f")
    c, e = conversation.path[2].id, conversation.path[4].id
    cut = conversation.added(Turn(role="cut", content="", kept=c)).added(user("g"))
    assert cut.messages == [{"role": r, "content": t} for r, t in zip(("user", "assistant") * 3, "cdefg", strict=False)]
    again = cut.added(Turn(role="cut", content="They spelled.", kept=e)).added(user("h"))
    system, *rest = again.messages
    assert (system["role"], "They spelled." in system["content"]) == ("system", True)
    assert [message["content"] for message in rest] == ["e", "f", "g", "h"]
    assert [message["content"] for message in again.at(conversation.head).messages] == list("abcdef")


def test_a_cut_before_another_cut_leaves_out_what_that_one_left_out() -> None:
    conversation = talk("a", "b", "c", "d")
    a, c = conversation.path[0].id, conversation.path[2].id
    cut = conversation.added(Turn(role="cut", content="", kept=c)).added(Turn(role="cut", content="", kept=a))
    assert [message["content"] for message in cut.messages] == ["c", "d"]


def test_a_system_prompt_comes_before_a_summary() -> None:
    conversation = Conversation.begin("Be brief.").added(user("a"))
    cut = conversation.added(Turn(role="cut", content="S", kept=conversation.head))
    assert cut.messages[0]["content"].startswith("Be brief.\n\n")
    assert cut.messages[0]["content"].endswith("\nS")


def test_a_fork_copies_the_path_with_its_cuts_and_nothing_else() -> None:
    conversation = talk("a", "b", "c", "d").at(None).added(user("z")).added(answer("y")).added(user("x"))
    z, x = conversation.path[0].id, conversation.path[2].id
    conversation = conversation.added(Turn(role="cut", content="", kept=x)).added(user("w"))
    fork = conversation.forked()
    assert contents(fork) == ["z", "y", "x", "", "w"]
    assert fork.id != conversation.id
    assert not set(fork.nodes) & set(conversation.nodes)
    assert len(fork.nodes) == 5
    assert [message["content"] for message in fork.messages] == ["x", "w"]
    assert contents(conversation.forked(z)) == ["z"]
    assert Conversation.begin("s").forked().system == "s"


def test_an_unknown_message_is_an_error() -> None:
    with pytest.raises(UsageError, match="no message nope"):
        talk("a").at("nope")


@pytest.mark.parametrize(
    ("texts", "title", "name"),
    [
        ((), "", ""),
        (("one\n two",), "", "one two"),
        (("a",), "Mine", "Mine"),
        (("word " * 40,), "", "word " * 11 + "word…"),
    ],
)
def test_a_conversation_is_named_by_its_title_else_by_its_first_message(
    texts: tuple[str, ...], title: str, name: str
) -> None:
    conversation = talk(*texts)
    assert Conversation(conversation.id, 0.0, title, None, conversation.nodes, conversation.head).name == name


def test_attachments_follow_the_text_between_tags_that_do_not_occur_in_them() -> None:
    text = with_attachments("Look:\n", (Attachment("a.py", "x = 1"), Attachment("b", "</file> </file-2>\n")))
    assert text == ('Look:\n\n<file name="a.py">\nx = 1\n</file>\n\n<file-3 name="b">\n</file> </file-2>\n</file-3>')
    assert with_attachments("as it is\n", ()) == "as it is\n"
