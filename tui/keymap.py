"""The keys in effect: the defaults, changed by the configuration file. No Textual in here."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from macllm.config.settings import ConfigFile

from .keys import KEYS, Key, Scope

_MODIFIERS = ("alt", "ctrl", "hyper", "meta", "shift", "super")
_ALIASES = {
    **{"esc": "escape", "return": "enter", "del": "delete", "ins": "insert", "pgup": "pageup", "pgdn": "pagedown"},
    **{"option": "alt", "opt": "alt", "control": "ctrl", "cmd": "super", "command": "super", "bs": "backspace"},
}
_NAMED = (
    *("enter", "escape", "tab", "space", "backspace", "delete", "insert", "home", "end", "pageup", "pagedown"),
    *("up", "down", "left", "right", *(f"f{number}" for number in range(1, 25))),
)
# Textual's names of characters are those of Unicode, but for these.
_CHARACTERS = {"solidus": "slash", "reverse_solidus": "backslash", "commercial_at": "at", "hyphen_minus": "minus"}
_CHARACTERS |= {"plus_sign": "plus", "low_line": "underscore"}
_SAME = {"ctrl+i": "tab", "ctrl+m": "enter", "ctrl+h": "backspace", "ctrl+left_square_bracket": "escape"}
_SHORT = {"escape": "Esc", "pageup": "PgUp", "pagedown": "PgDn", "delete": "Del", "insert": "Ins"}
_TYPING: tuple[Scope, ...] = ("chat", "prompt")  # the prompt takes letters, and keys that it leaves go to the chat


@dataclass(frozen=True)
class Keymap:
    """The keys of each scope in effect, and a note on each entry of the file that is not."""

    keys: Mapping[Scope, tuple[Key, ...]] = field(default_factory=lambda: dict(KEYS))
    origins: Mapping[str, str] = field(default_factory=dict)  # of the changed keys, by scope and id
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: ConfigFile) -> Keymap:
        """The keymap with the table [keys]. An entry that cannot be is left out, with a note."""
        wanted: dict[tuple[Scope, str], tuple[str, str]] = {}  # keys and origin
        notes: list[str] = []
        for name, keys in config.keys.items():
            origin = config.origin(f"keys.{name}")
            try:
                scope, key = _find(name)
                wanted[scope, key.id] = (_normal_list(keys, scope), origin)
            except ValueError as error:
                notes.append(f"{origin}: keys.{name}: {error}")
        while clash := next(_clashes(wanted), None):
            (scope, name), reason = clash
            _, origin = wanted.pop((scope, name))
            notes.append(f"{origin}: keys.{name}: {reason}; the default stays")
        origins = {f"{scope}.{name}": origin for (scope, name), (_, origin) in wanted.items()}
        return cls(_changed(wanted), origins, tuple(notes))

    @property
    def bindings(self) -> dict[str, str]:
        """The changed keys by the ids of Textual's bindings."""
        changed = ((f"{scope}.{key.id}", key.keys) for scope, keys in self.keys.items() for key in keys)
        return {name: keys for name, keys in changed if name in self.origins}

    def actions(self, scope: Scope) -> dict[str, str]:
        """The action of each key."""
        return {each: key.action for key in self.keys[scope] for each in key.keys.split(",")}

    def taken(self, scope: Scope) -> set[str]:
        """The keys that the file gives to a scope."""
        changed = (key for key in self.keys[scope] if f"{scope}.{key.id}" in self.origins)
        return {each for key in changed for each in key.keys.split(",")}

    def shown(self, scope: Scope, name: str) -> str:
        """The first key of an action, as the screen names it."""
        key = next(key for key in self.keys[scope] if key.id == name)
        return key.shown.replace(",", " ").split()[0] if key.shown else shown(key.keys.split(",")[0])

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, keys and description of each action."""
        return [
            (f"{scope}.{key.id}", ", ".join(map(shown, key.keys.split(","))), key.help or key.id.replace("_", " "))
            for scope, keys in self.keys.items()
            for key in keys
        ]


DEFAULTS = Keymap()


def keymap_of(app: object) -> Keymap:
    """The keymap of an app; one without has the defaults."""
    return getattr(app, "keymap", DEFAULTS)


def stop_remedy(app: object) -> str:
    """The way to stop an answer, as a remedy."""
    return f"{keymap_of(app).shown('chat', 'stop')} stops it"


def shown(key: str) -> str:
    """A key as the screen names it, as Ctrl+X."""
    *modifiers, name = key.split("+")
    character = next((c for c in map(chr, range(33, 127)) if not c.isalnum() and _character(c) == name), "")
    name = _SHORT.get(name) or character or (name.capitalize() if len(name) > 1 or modifiers else name)
    return "+".join([*(each.capitalize() for each in modifiers), name])


def normal(key: str) -> str:
    """A key by Textual's name for it.

    Raises: ValueError if it is no key, or one that terminals cannot tell from another.
    """
    text = key.strip()
    *modifiers, name = (part.strip() for part in text.split("+"))
    if name == "" and modifiers:  # the key + itself
        name = modifiers.pop() or "+"
    modifiers = sorted({_ALIASES.get(each.lower(), each.lower()) for each in modifiers})
    name = _letter(name, modifiers) if len(name) == 1 else _ALIASES.get(name.lower(), name.lower())
    if any(each not in _MODIFIERS for each in modifiers) or not _is_key(name):
        near = difflib.get_close_matches(name, _NAMED, n=1)
        raise ValueError(f"{text!r} is no key" + "".join(f"; did you mean {each}?" for each in near))
    found = "+".join([*modifiers, name])
    if found in _SAME:
        raise ValueError(f"terminals send the same for {shown(found)} and {shown(_SAME[found])}")
    return found


def _letter(character: str, modifiers: list[str]) -> str:
    if not character.isascii() or not character.isalnum():
        return _character(character)
    if modifiers == ["shift"]:
        modifiers.clear()
        return character.upper()
    return character.lower() if modifiers else character


def _character(character: str) -> str:
    name = unicodedata.name(character, "").lower().replace("-", "_").replace(" ", "_")
    return _CHARACTERS.get(name, name)


def _is_key(name: str) -> bool:
    return name in _NAMED or len(name) == 1 or any(_character(chr(code)) == name for code in range(33, 127))


def _normal_list(keys: str, scope: Scope) -> str:
    names = [normal(each) for each in keys.split(",") if each.strip()] or [normal(keys)]
    for name in names:
        types = "+" not in name and name not in _NAMED
        if scope in _TYPING and (types or name.removeprefix("shift+") == "space"):
            raise ValueError(f"{name} types a character; add Ctrl or Alt")
    return ",".join(names)


def _find(name: str) -> tuple[Scope, Key]:
    """The key of an id, or of scope and id. Raises: ValueError if there is none, or several."""
    everything: list[tuple[Scope, Key]] = [(scope, key) for scope, keys in KEYS.items() for key in keys]
    found = [each for each in everything if name in (each[1].id, f"{each[0]}.{each[1].id}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"several keys have this id: {', '.join(f'{scope}.{key.id}' for scope, key in found)}")
    near = difflib.get_close_matches(name, [key.id for _, key in everything], n=1)
    raise ValueError("no key has this id" + "".join(f"; did you mean {each}?" for each in near))


def _changed(wanted: Mapping[tuple[Scope, str], tuple[str, str]]) -> dict[Scope, tuple[Key, ...]]:
    def changed(scope: Scope, key: Key) -> Key:
        if (scope, key.id) not in wanted:
            return key
        keys = wanted[scope, key.id][0]
        return replace(key, keys=keys, shown=" ".join(map(shown, keys.split(","))))

    return {scope: tuple(changed(scope, key) for key in keys) for scope, keys in KEYS.items()}


def _clashes(wanted: Mapping[tuple[Scope, str], tuple[str, str]]) -> Iterator[tuple[tuple[Scope, str], str]]:
    """The changed keys that another action has too, the last in the file first, with reasons."""
    everything = [(scope, key) for scope, keys in _changed(wanted).items() for key in keys]
    for scope, name in reversed(list(wanted)):
        mine = wanted[scope, name][0].split(",")
        for other_scope, other in everything:
            near = other_scope == scope or (scope in _TYPING and other_scope in _TYPING)
            both = [key for key in mine if key in other.keys.split(",")]
            if near and both and (other_scope, other.id) != (scope, name) and not _is_default(both, scope, name):
                yield (scope, name), f"{shown(both[0])} is also {other_scope}.{other.id}"


def _is_default(keys: list[str], scope: Scope, name: str) -> bool:
    """True if an action has the keys by default: some are in two scopes on purpose."""
    default = next(key for key in KEYS[scope] if key.id == name)
    return all(key in default.keys.split(",") for key in keys)
