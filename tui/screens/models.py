"""The models screen: choose, download, verify and remove models, and choose adapters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalGroup
from textual.content import Content
from textual.events import Resize
from textual.message import Message
from textual.widgets import OptionList, Static

from macllm import hub
from macllm.chat.adapters import other_adapters
from macllm.chat.models import UsableModel, usable_models
from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.hub.blend import parse
from macllm.hub.downloads import Downloads, DownloadStatus
from macllm.units import bytes_text
from macllm.visible import visible

from ..text import model_table as table
from ..widgets.row_list import Row
from .overlay import Filter, Overlay

DOWNLOADS = Downloads()
"""Downloads outlive the screen; those that run when the app ends keep their bytes."""
_KEYS = "Enter load · g get · p pause · x remove · v verify · l/r/a part · s sort · Esc close"
_FEW_KEYS = "Enter g p x v · l/r/a or Tab part · s sort · Esc"
_WORD_SECONDS = 1.0
"""After a letter that changed the view, a letter within this time makes both the beginning of a word."""


class ModelsListed(Message):
    """The list was read."""

    def __init__(self, models: Sequence[UsableModel]) -> None:
        super().__init__()
        self.models = models


class DownloadChanged(Message):
    """A download made progress or changed its state."""

    def __init__(self, status: DownloadStatus) -> None:
        super().__init__()
        self.status = status


class WorkReported(Message):
    """Work on a model's files has something to say, and is `over` or not."""

    def __init__(self, text: str, *, over: bool) -> None:
        super().__init__()
        self.text, self.over = text, over


class ModelsScreen(Overlay):
    """The list of models.

    Letters act as long as nothing is typed; get and remove ask for the key again. A word may begin with such letters
    all the same: those before the first other one are taken back and typed. Enter starts no download.
    """

    BINDINGS: ClassVar = [
        *(Binding(key, name, show=False, priority=True) for key, name in
          {"g": "get", "p": "pause", "x": "remove", "v": "verify", "s": "view('s')", "l": "view('l')",
           "r": "view('r')", "a": "view('a')"}.items()),
        Binding("tab", "part(1)", show=False, priority=True),
        Binding("shift+tab", "part(-1)", show=False, priority=True),
    ]  # fmt: skip
    LETTER_KEYS: ClassVar = frozenset("gpxvslra")
    TITLE_TEXT: ClassVar = "Models"
    NOTHING: ClassVar = "no model matches"

    def __init__(
        self,
        session: Session | None,
        argument: str = "",
        *,
        lister: Callable[[], Sequence[UsableModel]] = usable_models,
        downloads: Downloads = DOWNLOADS,
    ) -> None:
        """`argument` is a part of the list, or the name of a model to highlight, and to get if it is remote."""
        super().__init__()
        self._model_name = session.engine.info.model_name if session else ""
        self._active = parse(session.adapter) if session and session.adapter else {}
        self._used = tuple(session.adapters) if session else ()
        self._part: table.Part = table.part_named(argument)
        self._wanted = "" if argument in table.PARTS else argument
        self._lister, self._downloads = lister, downloads
        self._models: list[UsableModel] | None = None
        self._shown: list[UsableModel] = []
        self._asked: tuple[str, str] | None = None  # (letter, name) of an action that waits for a second press
        self._news = ""
        self._order: table.Order = "listed"
        self._letters, self._viewed_at = "", 0.0  # of changes of the view
        self._before: tuple[table.Part, table.Order] = self._part, self._order

    def compose(self) -> ComposeResult:
        """Title, filter, columns, list, details and keys."""
        with VerticalGroup(id="overlay"):
            with Horizontal(id="overlay-head"):
                yield Static(id="overlay-title", markup=False)
                yield Filter("", placeholder="type to filter", screen_keys=self.LETTER_KEYS)
            yield Static(id="model-columns", markup=False)
            yield self.new_list()
            yield Static(id="model-details", markup=False)
            yield Static(_KEYS, id="overlay-keys", markup=False)

    def on_mount(self) -> None:
        """List the models in a thread, and listen to downloads."""
        super().on_mount()
        self._downloads.on_status = lambda status: self.post_message(DownloadChanged(status))
        self._list()

    def on_unmount(self) -> None:
        """Downloads go on; the app shows a note at the end of each."""
        self._downloads.on_status = partial(_note, self.app)

    # The list

    def rows(self, typed: str) -> Sequence[Row]:
        """A row for each model of the part that matches the filter, under the title of its group."""
        self._shown = table.ordered(table.filtered(self._models or [], typed, self._part), self._order)
        made = table.layout(self._shown, max(self._width, 20))
        self.query_one("#model-columns", Static).update(Content("    " + table.heading(made)))
        rows: list[Row] = []
        for model in self._shown:
            sign = "● " if self._is_current(model) else "  "
            text = sign + table.line(model, made, self._downloads.status(model.name))
            rows.append(Row(text, value=model.name, group=table.GROUPS[table.part_of(model)]))
        return rows

    def refresh_rows(self) -> None:
        """Show the rows anew, with the same model highlighted."""
        before = self._model
        rows = self.rows(self.filter.value.strip())
        names = [row.value for row in rows]
        at = names.index(before.name) if before is not None and before.name in names else 0
        self.show_rows(rows, at + len({row.group for row in rows[: at + 1]}))
        self._show_details()

    def on_models_listed(self, event: ModelsListed) -> None:
        """Show the list, with the wanted model highlighted."""
        self._models = list(event.models)
        wanted, self._wanted = self._wanted, ""
        if wanted and all(model.name != wanted for model in self._models):
            self._models.append(UsableModel(wanted, "catalogue", 0))
        self.refresh_rows()
        if wanted:
            self._highlight_name(wanted)
            if (model := self._model) is not None and not model.is_local:
                self._ask("g", model, f"{_wish(model, self._models or [])}? g does it.")

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Show what is known about the highlighted model."""
        super().on_option_list_option_highlighted(event)
        self._show_details()

    def on_input_changed(self, event: Filter.Changed) -> None:
        """Filter.

        Letters that asked for a second press, or changed the view just now, were the first ones of a word.
        """
        if len(self.filter.value) == 1:
            letters = self._asked[0] if self._asked is not None else ""
            if self._letters and time.monotonic() - self._viewed_at < _WORD_SECONDS:
                letters = self._letters + letters
                self._part, self._order = self._before
            self._letters = ""
            if letters:
                self._asked, self._news = None, ""
                self.filter.value = letters + self.filter.value
                self.filter.cursor_position = len(self.filter.value)
        super().on_input_changed(event)

    def on_resize(self, event: Resize) -> None:
        """Lay the columns out for the new width."""
        self.call_after_refresh(self.refresh_rows)

    # Actions

    def action_move(self, direction: int) -> None:
        """Highlight the next model."""
        self._asked, self._news = None, ""
        super().action_move(direction)

    def action_page(self, direction: int) -> None:
        """Move by the models on the screen."""
        self._asked, self._news = None, ""
        super().action_page(direction)

    def choose(self) -> None:
        """Load the highlighted model or apply the adapter; get one that is not here."""
        if (model := self._model) is None:
            return
        if model.kind == "catalogue" or model.unfinished:
            # Enter starts no download: it may be a second one, of somebody who has typed ahead.
            self._ask("g", model, f"{_wish(model, self._models or [])}? g does it.")
        elif model.problem is not None:
            self._say(f"{model.title} cannot be used: {model.problem}")
        elif too_large := table.too_large(model, self._models or []):
            if self._confirmed("", model, f"{too_large} Enter again tries it."):
                self.dismiss(f"/model {model.name}")
        else:
            self.dismiss(f"/{'adapter' if model.kind == 'adapter' else 'model'} {model.name}")

    def action_get(self) -> None:
        """Download the highlighted model, after a question."""
        if (model := self._model) is None:
            return
        if model.kind not in ("catalogue", "cached"):
            self._say(f"{model.title} is here; there is nothing to download.")
        elif (status := self._downloads.status(model.name)) is not None and status.is_moving:
            self._say(f"{model.title} is being downloaded; p pauses it.")
        elif self._confirmed("g", model, f"{_wish(model, self._models or [])}? g again does it."):
            self._downloads.start(model.name)

    def action_pause(self) -> None:
        """Pause the download of the highlighted model, or go on with it."""
        if (model := self._model) is None:
            return
        status = self._downloads.status(model.name)
        if status is None or status.state in ("done", "cancelled", "cancelling"):
            self._say("Nothing to pause here.")
        elif status.state == "running":
            self._downloads.pause(model.name)
        else:
            self._downloads.start(model.name)

    def action_remove(self) -> None:
        """Remove the highlighted model from the cache, or cancel its download, after a question."""
        if (model := self._model) is None:
            return
        status = self._downloads.status(model.name)
        if status is not None and status.state not in ("done", "cancelled"):
            if self._confirmed("x", model, f"Stop and delete the part of {model.title}? x again does it."):
                self._downloads.cancel(model.name)
        elif self._is_current(model):
            self._say(f"{model.title} is in use; load another model first.")
        elif model.kind != "cached":
            self._say(f"{model.title} is not in the cache, so it is not removed here.")
        elif self._confirmed("x", model, f"Remove {model.title}, {bytes_text(model.size_bytes)}? x again does it."):
            self._work(lambda: f"freed {bytes_text(hub.remove(model.name))}")

    def action_verify(self) -> None:
        """Check the files of the highlighted model against their hashes."""
        if (model := self._model) is None:
            return
        if model.kind != "cached":
            self._say(f"{model.title} has no hashes to check against.")
        else:
            self._say(f"checking {model.title}…")
            self._work(lambda: self._verified(model))

    def action_part(self, step: int) -> None:
        """Show the next part of the list."""
        at = table.PARTS.index(self._part) + step
        self._part, self._letters = table.PARTS[at % len(table.PARTS)], ""
        self.refresh_rows()

    def action_view(self, letter: str) -> None:
        """Show one part of the list, or all of it again, or the next order."""
        now = time.monotonic()
        if not self._letters or now - self._viewed_at > _WORD_SECONDS:
            self._letters = ""
            self._before = self._part, self._order
        self._letters, self._viewed_at = self._letters + letter, now
        self._asked, self._news = None, ""
        if letter == "s":
            self._order = table.ORDERS[(table.ORDERS.index(self._order) + 1) % len(table.ORDERS)]
        else:
            part = table.PART_LETTERS[letter]
            self._part = "all" if self._part == part else part
        self.refresh_rows()

    # Work in threads

    def _list(self) -> None:
        threading.Thread(target=self._listed, name="macllm-list", daemon=True).start()

    def _listed(self) -> None:
        try:
            models = self._lister()
            self.post_message(ModelsListed([*models, *other_adapters(models, self._used)]))
        except MacllmError as error:
            self.post_message(WorkReported(error.message, over=False))

    def _work(self, work: Callable[[], str]) -> None:
        def run() -> None:
            try:
                self.post_message(WorkReported(work(), over=True))
            except (MacllmError, OSError) as error:
                self.post_message(WorkReported(str(error).replace("\n", " · "), over=True))

        threading.Thread(target=run, name="macllm-files", daemon=True).start()

    def _verified(self, model: UsableModel) -> str:
        wrong: list[str] = []
        count = 0
        for checked in hub.verify(model.name):
            count += 1
            if checked.status in ("damaged", "missing"):
                wrong.append(f"{checked.file} is {checked.status}")
            self.post_message(WorkReported(f"checking {model.title}: {count} files", over=False))
        if wrong:
            return f"{'; '.join(wrong)} · macllm models verify --repair {model.name}"
        return f"{model.title}: all {count} files are intact"

    def on_work_reported(self, event: WorkReported) -> None:
        """Show the result of work on files."""
        self._say(event.text)
        if event.over:
            self._list()

    def on_download_changed(self, event: DownloadChanged) -> None:
        """Show the progress of a download; a new model joins the list."""
        if event.status.state == "done":
            self._news = f"{event.status.name} is here; Enter loads it."
        if event.status.state in ("done", "cancelled"):
            self._list()
        self.refresh_rows()

    # Drawing

    @property
    def _width(self) -> int:
        return self.list.scrollable_content_region.width - 4

    @property
    def _model(self) -> UsableModel | None:
        row = self.chosen
        return next((model for model in self._shown if row is not None and model.name == row.value), None)

    def _is_current(self, model: UsableModel) -> bool:
        return model.name in self._active if model.kind == "adapter" else model.name == self._model_name

    def _highlight_name(self, name: str) -> None:
        for at, row in enumerate(self.list.rows):
            if row.value == name:
                self.list.highlight(at, 1)

    def _confirmed(self, letter: str, model: UsableModel, question: str) -> bool:
        """True at the second press for the same model; the first one asks."""
        if self._asked == (letter, model.name):
            self._asked, self._news = None, ""
            return True
        self._ask(letter, model, question)
        return False

    def _ask(self, letter: str, model: UsableModel, question: str) -> None:
        self._asked = (letter, model.name)
        self._say(question)

    def _say(self, text: str) -> None:
        self._news = text
        self._show_details()

    def _show_details(self) -> None:
        self.query_one("#overlay-title", Static).update(table.title(self._part, self._order))
        self.query_one("#overlay-keys", Static).update(_KEYS if self._width > len(_KEYS) else _FEW_KEYS)
        model = self._model
        lines = table.details(model, self._downloads.status(model.name)) if model else ["reading the list…", ""]
        if self._models is not None and model is None:
            lines = [table.NO_ADAPTER if self._part == "adapters" else "", ""]
        news = Content.styled(visible(self._news), "$accent")
        shown = [Content.styled(visible(text), "$muted") for text in lines]
        self.query_one("#model-details", Static).update(Content("\n").join([*shown, news]))


def _note(app: App[object], status: DownloadStatus) -> None:
    """Show a note at the end of a download, from any thread."""
    if status.state == "done":
        app.notify(f"{status.name} is here: /model {status.name}", markup=False)
    elif status.state == "failed" and status.error is not None:
        app.notify(status.error.message, title=status.name, severity="error", markup=False)


def _size(model: UsableModel) -> str:
    return f" ({bytes_text(model.size_bytes)})" if model.size_bytes and model.kind == "catalogue" else ""


def _wish(model: UsableModel, models: Sequence[UsableModel]) -> str:
    if model.unfinished:
        return f"Go on with the download of {model.title}"
    if model.kind == "catalogue":
        too_large = table.too_large(model, models)
        return f"{too_large} Download it all the same" if too_large else f"Download {model.title}{_size(model)}"
    return f"Look for a newer {model.title}"
