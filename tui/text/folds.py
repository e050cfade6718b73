"""Long pastes and attachments, folded to markers in the prompt. No Textual in here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from macllm.chat.attachments import reference
from macllm.chat.conversation import Attachment
from macllm.units import count_text, short_count_text
from macllm.visible import without_hidden

_MOST_LINES = 10  # of a paste that stays as it is
_MOST_CHARACTERS = 1000
_MOST_SHOWN_LINES = 30  # of a message in the conversation
_SHOWN_LINES = 12  # of a longer one
_MOST_SHOWN_CHARACTERS = 4000
_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_BREAKS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_NOTHING = re.compile(r"((?!))")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Fold:
    """A text and the marker that stands for it. `name`: of an attachment; a paste has none."""

    marker: str
    text: str
    name: str = ""


class Folds:
    """The folded texts of a prompt. Markers stay known, so that text from the history unfolds too."""

    def __init__(self) -> None:
        self._folds: dict[str, Fold] = {}
        self._pattern = _NOTHING

    def paste(self, text: str) -> str:
        """The text for the prompt: a marker for a long text, else the text itself."""
        lines = text.rstrip("\n").count("\n") + 1
        if lines <= _MOST_LINES and len(text) <= _MOST_CHARACTERS:
            return text
        size = f"{count_text(lines)} lines" if lines > 1 else f"{short_count_text(len(text))} characters"
        return self._marker(f"pasted {size}", text)

    def attach(self, attachment: Attachment) -> str:
        """The marker of an attachment."""
        return self._marker(_label(attachment), attachment.text, attachment.name)

    def expand(
        self, text: str, references: Callable[[str], tuple[str, tuple[Attachment, ...]]]
    ) -> tuple[str, tuple[Attachment, ...]]:
        """The message and its attachments. `references` finds those named in text that is not folded."""
        attachments: dict[str, Attachment] = {}
        parts: list[str] = []
        for piece in self.pieces(text):
            if isinstance(piece, str):
                piece, named = references(piece)
                attachments |= {each.name: each for each in named if each.name not in attachments}
                parts.append(piece)
            elif piece.name:
                attachments[piece.name] = Attachment(piece.name, piece.text)
                parts.append(reference(piece.name))
            else:
                parts.append(piece.text)
        return "".join(parts), tuple(attachments.values())

    def restore(self, text: str, attachments: Iterable[Attachment] = ()) -> str:
        """The text for the prompt that expands to a message: its pastes and attachments folded again."""
        text = self.fold(text)
        for attachment in attachments:
            marker = self.attach(attachment)
            named = rf"(?<![^\s(\[\"']){re.escape(reference(attachment.name))}(?![\w/]|[.-]\w)"
            text, count = re.subn(named, lambda _, marker=marker: marker, text)
            if not count and marker not in text:
                text = f"{marker} {text}"
        return text

    def unfold(self, text: str) -> str:
        """The text with its pastes in full; attachments stay markers."""
        return "".join(
            piece if isinstance(piece, str) else piece.marker if piece.name else piece.text
            for piece in self.pieces(text)
        )

    def fold(self, text: str) -> str:
        """The text with the pastes in it folded again, longest first."""
        for fold in sorted(self._folds.values(), key=lambda each: -len(each.text)):
            if not fold.name:
                pieces = self.pieces(text)
                text = "".join(p.replace(fold.text, fold.marker) if isinstance(p, str) else p.marker for p in pieces)
        return text

    def pieces(self, text: str) -> list[str | Fold]:
        """The text split at its markers; no piece is empty."""
        return [self._folds.get(piece, piece) for piece in self._pattern.split(text) if piece]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each marker."""
        return [match.span() for match in self._pattern.finditer(text)]

    def before(self, text: str, index: int) -> tuple[int, int] | None:
        """(start, end) of the marker that a Backspace at `index` is to delete: the one it is in or just after."""
        return next(((start, end) for start, end in self.spans(text) if start < index <= end), None)

    def after(self, text: str, index: int) -> tuple[int, int] | None:
        """(start, end) of the marker that a Delete at `index` is to delete: the one it is in or just before."""
        return next(((start, end) for start, end in self.spans(text) if start <= index < end), None)

    def _marker(self, label: str, text: str, name: str = "") -> str:
        marker, number = f"[{label}]", 1
        while (known := self._folds.get(marker)) is not None and (known.text, known.name) != (text, name):
            number += 1
            marker = f"[{label}, {number}]"
        self._folds[marker] = Fold(marker, text, name)
        self._pattern = re.compile("(" + "|".join(map(re.escape, sorted(self._folds, key=len, reverse=True))) + ")")
        return marker


def shown(text: str, attachments: Iterable[Attachment] = (), *, whole: bool = False) -> str:
    """A message as the conversation shows it: a long text is cut unless `whole`, attachments are named."""
    lines = text.split("\n")
    if len(lines) > _MOST_SHOWN_LINES and not whole:
        lines[_SHOWN_LINES:] = [f"… {count_text(len(lines) - _SHOWN_LINES)} more lines"]
    begun = "\n".join(lines)
    if len(begun) > _MOST_SHOWN_CHARACTERS and not whole:
        rest = count_text(len(begun) - _MOST_SHOWN_CHARACTERS)
        begun = f"{begun[:_MOST_SHOWN_CHARACTERS]}\n… {rest} more characters"
    return "\n".join([begun] * bool(begun) + [f"[{_label(each)}]" for each in attachments])


def _label(attachment: Attachment) -> str:
    name = without_hidden(attachment.name.replace("\n", " "))
    return f"{name}, {short_count_text(len(attachment.text))} character{'s' * (len(attachment.text) != 1)}"


def pasted(text: str) -> str:
    """Text from outside with plain newlines, without terminal sequences and control characters."""
    return _CONTROLS.sub("", with_newlines(_SEQUENCES.sub("", text)))


def with_newlines(text: str) -> str:
    """The text with newlines for other line breaks, which a text area would also break at."""
    return _BREAKS.sub("\n", text)
