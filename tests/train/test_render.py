from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from macllm.errors import DataError, UsageError
from macllm.train.objectives.clm import collate
from macllm.train.render import Example, to_examples
from macllm.train.rows import Chat, PlainText, Preference, PromptCompletion, PromptOnly
from tests.train.toy import CharTokenizer

Messages = list[dict[str, Any]]


def plain(messages: Messages, answer_next: bool) -> str:
    return "".join(f"<{m['role'][0]}>{m['content']}$\n" for m in messages) + "<a>" * answer_next


def forgetful(messages: Messages, answer_next: bool) -> str:
    """A template that writes reasoning only for the last answer."""
    last = len(messages) - 1
    return plain(
        [m | {"content": ("(hm)" if i == last and m["role"] == "assistant" else "") + m["content"]}
         for i, m in enumerate(messages)], answer_next,
    )  # fmt: skip


def unstable(messages: Messages, answer_next: bool) -> str:
    return f"{len(messages)}" + plain(messages, answer_next)


def chat(*contents: str) -> Chat:
    roles = ("user", "assistant")
    return Chat([{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], None, "f.jsonl:7")


def supervised_text(example: Example) -> str:
    return "".join(chr(t) if on else "_" for t, on in zip(example.tokens, example.loss_mask, strict=True))


def test_every_assistant_turn_and_its_end_marker_is_supervised() -> None:
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), CharTokenizer(plain), mask_prompt=True)
    assert CharTokenizer().decode(list(example.tokens)) == "<u>hi$\n<a>yo$\n<u>so$\n<a>ok$\n"
    assert [i for i, on in enumerate(example.loss_mask) if on] == [10, 11, 12, 24, 25, 26]


def test_a_template_that_rewrites_old_turns_gives_one_example_per_turn() -> None:
    first, second = to_examples(chat("hi", "yo", "so", "ok"), CharTokenizer(forgetful), mask_prompt=True)
    text = CharTokenizer().decode
    assert text(list(first.tokens)) == "<u>hi$\n<a>(hm)yo$"
    assert text(list(second.tokens)) == "<u>hi$\n<a>yo$\n<u>so$\n<a>(hm)ok$"
    assert supervised_text(first).strip("_") == "(hm)yo$"
    assert supervised_text(second).strip("_") == "(hm)ok$"


def test_a_template_whose_answers_do_not_follow_its_prompt_is_refused() -> None:
    with pytest.raises(DataError, match=r"f\.jsonl:7"):
        to_examples(chat("hi", "yo"), CharTokenizer(unstable), mask_prompt=True)
    (example,) = to_examples(chat("hi", "yo"), CharTokenizer(unstable), mask_prompt=False)
    assert example.loss_mask[1:].all()


def marked(messages: Messages, answer_next: bool) -> str:
    """The unstable template with the assistant's text marked."""
    turns = (
        f"<{m['role'][0]}>" + ("\x02{}$\x03\n" if m["role"] == "assistant" else "{}$\n").format(m["content"])
        for m in messages
    )
    return f"{len(messages)}" + "".join(turns) + "<a>" * answer_next


def test_a_template_that_marks_the_answers_sets_the_loss_mask() -> None:
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), CharTokenizer(marked, True), mask_prompt=True)
    assert CharTokenizer().decode(list(example.tokens)) == "4<u>hi$\n<a>yo$\n<u>so$\n<a>ok$\n"
    assert supervised_text(example).replace("_", "") == "yo$ok$"


def test_two_answers_in_a_row_are_both_supervised() -> None:
    row = Chat([{"role": r, "content": "x"} for r in ("user", "assistant", "assistant")], None, "f:1")
    (example,) = to_examples(row, CharTokenizer(plain), mask_prompt=True)
    assert supervised_text(example).replace("_", "") == "x$x$"


def test_a_conversation_may_begin_with_the_assistant() -> None:
    row = Chat([{"role": "assistant", "content": "hello"}, {"role": "user", "content": "x"}], None, "f:1")
    (example,) = to_examples(row, CharTokenizer(plain), mask_prompt=True)
    assert supervised_text(example).rstrip("_") == "___hello$"


def test_a_row_without_answers_has_no_supervised_tokens() -> None:
    (example,) = to_examples(chat("hi"), CharTokenizer(plain), mask_prompt=True)
    assert not example.loss_mask.any()


def test_a_chat_row_without_a_chat_template_is_refused_with_its_line() -> None:
    with pytest.raises(DataError, match=r"f\.jsonl:7"):
        to_examples(chat("hi", "yo"), CharTokenizer(), mask_prompt=True)


def test_a_refusal_by_the_template_is_reported_with_the_line_of_the_row() -> None:
    def refuses(messages: Messages, answer_next: bool) -> str:
        raise UsageError("roles must alternate")

    with pytest.raises(DataError, match=r"f\.jsonl:7: roles must alternate"):
        to_examples(chat("hi", "yo"), CharTokenizer(refuses), mask_prompt=True)


def test_only_the_completion_of_a_prompt_of_messages_is_supervised() -> None:
    messages = chat("hi", "yo", "so", "ok").messages
    for marks in (False, True):
        write = marked if marks else plain
        row = PromptCompletion(messages[:3], messages[3:], "f:1")
        (example,) = to_examples(row, CharTokenizer(write, marks), mask_prompt=True)
        assert supervised_text(example).replace("_", "") == "ok$"
        (everything,) = to_examples(row, CharTokenizer(plain), mask_prompt=False)
        assert everything.loss_mask[1:].all()


@pytest.mark.parametrize("marks", [False, True])
def test_the_weight_of_a_message_is_the_loss_weight_of_its_tokens(marks: bool) -> None:
    messages = chat("hi", "yo", "so", "ok", "hm", "ah").messages
    weighted = [{**message, "weight": weight} for message, weight in zip(messages, (1, 0, 1, 0.5, 1, 1), strict=True)]
    tokenizer = CharTokenizer(marked if marks else plain, marks)
    (example,) = to_examples(Chat(weighted, None, "f:1"), tokenizer, mask_prompt=True)
    assert supervised_text(example).replace("_", "") == "ok$ah$"
    assert [float(w) for w in example.loss_weights[example.loss_mask]] == [0.5] * 3 + [1.0] * 3
    assert collate([example]).weights[0, : len(example) - 1].tolist() == example.loss_weights[1:].tolist()
    half = example.cut(0, len(example) - 4)
    assert sorted(set(half.loss_weights.tolist())) == [0.0, 0.5]
    assert example.fingerprint() != replace(example, weights=None).fingerprint()
    (everything,) = to_examples(Chat(weighted, None, "f:1"), CharTokenizer(plain), mask_prompt=False)
    text = CharTokenizer().decode(list(everything.tokens))
    assert [float(everything.loss_weights[text.index(each)]) for each in ("hi", "yo", "ok", "ah")] == [1, 0, 0.5, 1]


def test_an_answer_without_weight_gives_no_example_of_a_template_that_rewrites_old_turns() -> None:
    messages = chat("hi", "yo", "so", "ok").messages
    messages[1]["weight"] = 0
    (example,) = to_examples(Chat(messages, None, "f:1"), CharTokenizer(forgetful), mask_prompt=True)
    assert supervised_text(example).strip("_") == "(hm)ok$"


def test_a_template_is_given_the_date_of_the_run() -> None:
    seen: list[Any] = []

    class Dated(CharTokenizer):
        def render(self, messages: Messages, **variables: Any) -> str:  # type: ignore[override]
            seen.append(variables.pop("now", None))
            return super().render(messages, **variables)

    to_examples(chat("hi", "yo", "so", "ok"), Dated(plain), True, datetime(2024, 2, 29))
    assert len(seen) > 2
    assert set(seen) == {datetime(2024, 2, 29)}


@pytest.mark.parametrize("row", [PromptOnly("p", "f:1"), Preference("p", "c", "r", "f:1")])
def test_a_row_without_an_answer_to_learn_is_refused_by_name(row: Any) -> None:
    with pytest.raises(DataError, match=rf"f:1.*{row.kind}"):
        to_examples(row, CharTokenizer(plain), mask_prompt=True)


class Joining(CharTokenizer):
    """A tokenizer with the tokens `$\\n` and `>y`, which lies across the beginning of an answer."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return super().encode(text.replace("$\n", "\u0100").replace(">y", "\u0101"), add_special_tokens)


def test_a_token_across_the_beginning_of_an_answer_is_supervised() -> None:
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), Joining(plain), mask_prompt=True)
    assert supervised_text(example).replace("_", "") == "\u0101o\u0100ok\u0100"


class Scrambling(CharTokenizer):
    """A tokenizer whose tokens all depend on the length of the text."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) + len(text) for c in text]


def test_an_answer_without_a_token_boundary_is_refused() -> None:
    with pytest.raises(DataError, match="token boundary"):
        to_examples(chat("hi", "yo"), Scrambling(plain), mask_prompt=True)


def test_plain_text_is_supervised_whole_and_ends_with_one_end_token() -> None:
    (example,) = to_examples(PlainText("abc", "f:1"), CharTokenizer(), mask_prompt=True)
    assert list(example.tokens) == [1, 97, 98, 99, 0]
    assert list(example.loss_mask) == [False, True, True, True, True]


def test_a_completion_is_supervised_and_its_prompt_is_masked() -> None:
    row = PromptCompletion("ab", "cd", "f:1")
    (example,) = to_examples(row, CharTokenizer(), mask_prompt=True)
    assert list(example.tokens) == [1, 97, 98, 99, 100, 0]
    assert list(example.loss_mask) == [False, False, False, True, True, True]
    (everything,) = to_examples(row, CharTokenizer(), mask_prompt=False)
    assert np.count_nonzero(everything.loss_mask) == 5


def test_prompt_and_completion_go_through_a_chat_template_if_there_is_one() -> None:
    (example,) = to_examples(PromptCompletion("ab", "cd", "f:1"), CharTokenizer(plain), mask_prompt=True)
    assert supervised_text(example).replace("_", "") == "cd$"


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("mask_prompt", [False, True])
def test_the_tools_of_a_row_reach_its_template(marks: bool, mask_prompt: bool) -> None:
    tokenizer, tools = CharTokenizer(plain, marks), [{"name": "f"}]
    seen: list[Any] = []
    template: Any = tokenizer.chat_template

    def render(messages: Messages, *, tools: Any = None, add_generation_prompt: bool = True) -> str:
        seen.append(tools)
        return plain(messages, add_generation_prompt)

    def render_with_spans(messages: Messages, *, tools: Any = None) -> tuple[str, list[tuple[int, int]]]:
        return render(messages, tools=tools, add_generation_prompt=False), []

    tokenizer.render, template.render_with_spans = render, render_with_spans  # type: ignore[method-assign]
    to_examples(Chat(chat("hi", "yo").messages, tools, "f:1"), tokenizer, mask_prompt)
    assert seen
    assert all(given == tools for given in seen)


def closing(messages: Messages, answer_next: bool) -> str:
    """A template that adds an end token after the whole conversation."""
    return plain(messages, answer_next) + "\x00" * (not answer_next)


def test_an_end_token_after_the_conversation_is_not_supervised() -> None:
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), CharTokenizer(closing), mask_prompt=True)
    assert CharTokenizer().decode(list(example.tokens)) == "<u>hi$\n<a>yo$\n<u>so$\n<a>ok$\n\x00"
    # Nor is the line break before it, which is never sampled.
    assert supervised_text(example).replace("_", "") == "yo$ok$"


def unmarked(messages: Messages, answer_next: bool) -> str:
    """A template without end markers, which closes the conversation."""
    return "".join(f"<{m['role'][0]}>{m['content']}" for m in messages) + ("<a>" if answer_next else "\x00")


def test_an_answer_without_an_end_marker_learns_the_end_of_the_conversation() -> None:
    for contents in (("hi", "yo"), ("hi", "yo", "so", "ok")):
        (example,) = to_examples(chat(*contents), CharTokenizer(unmarked), mask_prompt=True)
        assert supervised_text(example).replace("_", "") == "".join(contents[1::2]) + "\x00"
        assert example.ends


@pytest.mark.parametrize("first", ["", "<s>|"])
def test_answers_that_end_otherwise_once_they_are_old_are_examples_of_their_own(first: str) -> None:
    def written(messages: Messages, answer_next: bool) -> str:
        parts = [f"<{m['role'][0]}>{m['content']}|" for m in messages]
        if messages[-1]["role"] == "assistant":
            parts[-1] = parts[-1][:-1] + "\x00"
        return first + "".join(parts) + "<a>" * answer_next

    made = to_examples(chat("hi", "yo", "so", "ok"), CharTokenizer(written), mask_prompt=True)
    assert [supervised_text(each).strip("_") for each in made] == ["yo\x00", "ok\x00"]
    assert [CharTokenizer().decode(list(each.tokens)) for each in made] == [
        f"{first}<u>hi|<a>yo\x00",
        f"{first}<u>hi|<a>yo|<u>so|<a>ok\x00",
    ]


@pytest.mark.parametrize("space", ["\n", " \n\n"])
def test_white_space_between_an_answer_and_its_end_is_learned_with_the_end(space: str) -> None:
    def spaced(messages: Messages, answer_next: bool) -> str:
        written = "".join(f"<{m['role'][0]}>{m['content']}{space}" for m in messages)
        return written + ("<a>" if answer_next else "\x00")

    (example,) = to_examples(chat("hi", "yo", "so", "ok"), CharTokenizer(spaced), mask_prompt=True)
    assert supervised_text(example).replace("_", "") == f"yook{space}\x00"

    def marked_by_roles(messages: Messages, answer_next: bool) -> str:
        return headed([{**message, "content": message["content"] + space} for message in messages], answer_next)

    tokenizer = CharTokenizer(marked_by_roles)
    tokenizer.end_token_ids = frozenset({5})
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), tokenizer, mask_prompt=True)
    assert supervised_text(example).replace("_", "") == f"yo{space}\x05ok{space}\x05"


def headed(messages: Messages, answer_next: bool) -> str:
    """A template whose answers are ended by the marker of the next role."""
    marks = {"user": "\x05", "assistant": "\x06"}
    return "".join(f"{marks[m['role']]}{m['content']}" for m in messages) + "\x06" * answer_next


def test_an_answer_learns_the_marker_of_the_next_role_if_that_ends_an_answer() -> None:
    tokenizer = CharTokenizer(headed)
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), tokenizer, mask_prompt=True)
    assert supervised_text(example).replace("_", "") == "yook"
    assert not example.ends
    tokenizer.end_token_ids = frozenset({0, 5})
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), tokenizer, mask_prompt=True)
    assert supervised_text(example).replace("_", "") == "yo\x05ok\x05"
    assert CharTokenizer().decode(list(example.tokens)) == "\x05hi\x06yo\x05so\x06ok\x05"
    assert example.ends
    (example,) = to_examples(chat("hi", "yo", "so"), tokenizer, mask_prompt=True)
    assert CharTokenizer().decode(list(example.tokens)) == "\x05hi\x06yo\x05so"


def test_the_marker_that_is_learned_is_that_of_the_message_which_follows_the_answer() -> None:
    def written(messages: Messages, answer_next: bool) -> str:
        """As `headed`, with a thought in the last answer only."""
        marks, last = {"user": "\x05", "assistant": "\x06", "tool": "\x07"}, len(messages) - 1
        parts = [marks[m["role"]] + m.get("thought", "") * (at == last) + m["content"] for at, m in enumerate(messages)]
        return "".join(parts) + "\x06" * answer_next

    tokenizer = CharTokenizer(written)
    tokenizer.end_token_ids = frozenset({5, 7})
    asked, call = {"role": "user", "content": "hi"}, [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    answers = [{"role": "assistant", "content": text, "thought": "(hm)"} for text in ("yo", "ok")]
    made = to_examples(Chat([asked, answers[0], asked, answers[1]], None, "f:1"), tokenizer, mask_prompt=True)
    assert [supervised_text(each).strip("_") for each in made] == ["(hm)yo\x05", "(hm)ok\x05"]
    (example,) = to_examples(Chat([asked, answers[0] | {"tool_calls": call}], None, "f:1"), tokenizer, mask_prompt=True)
    assert supervised_text(example).strip("_") == "(hm)yo\x07"


def test_an_answer_that_contains_its_end_learns_nothing_after_it() -> None:
    tokenizer = CharTokenizer(plain)
    tokenizer.end_token_ids = frozenset({ord("$"), ord("\n")})
    (example,) = to_examples(chat("hi", "yo", "so", "ok"), tokenizer, mask_prompt=True)
    assert supervised_text(example).replace("_", "") == "yo$ok$"


def test_a_chat_gets_no_begin_token_beyond_its_templates() -> None:
    (example,) = to_examples(chat("hi", "yo"), CharTokenizer(plain), mask_prompt=False)
    assert CharTokenizer().decode(list(example.tokens)) == "<u>hi$\n<a>yo$\n"


def test_variables_of_a_row_reach_its_template() -> None:
    class Shouting(CharTokenizer):
        def render(self, messages: Any, *, shout: bool = False, **variables: Any) -> str:  # type: ignore[override]
            text = super().render(messages, **variables)
            return text.replace("yo", "YO") if shout else text

    asked, answered = chat("hi").messages, chat("hi", "yo").messages[1:]
    for row in (
        Chat([*asked, *answered], None, "f:1", {"shout": True}),
        PromptCompletion(asked, answered, "f:1", None, {"shout": True}),
    ):
        (example,) = to_examples(row, Shouting(plain), mask_prompt=True)
        assert supervised_text(example).strip("_") == "YO$"
    (example,) = to_examples(chat("hi", "yo"), Shouting(plain), mask_prompt=True)
    assert supervised_text(example).strip("_") == "yo$"
