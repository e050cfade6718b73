"""Misspellings as people make them: slips of the keyboard and spelling by ear."""

from __future__ import annotations

import random
import re

LETTERS_PER_SLIP = 14
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_VOWELS = "aeiou"
_SHORT = ("is", "the", "are", "how", "why", "can", "you", "does", "its", "for", "and", "it", "do")
_BY_EAR = (("ph", "f"), ("ght", "t"), ("wh", "w"), ("ck", "k"), ("tion", "shun"), ("tion", "sion"), ("sion", "tion"))
_BY_EAR += (("ea", "ee"), ("ee", "ea"), ("ei", "ie"), ("ie", "ei"), ("ou", "u"), ("qu", "kw"), ("x", "cks"), ("c", "k"))
_BY_EAR += (("s", "z"), ("z", "s"), ("oo", "u"), ("ai", "ay"), ("er", "or"), ("or", "er"), ("le", "el"), ("ing", "in"))
_BY_EAR += (("y", "ie"), ("ance", "ence"), ("ent", "ant"), ("ize", "ise"), ("izer", "iser"), ("k", "c"), ("ould", "ud"))
_BY_EAR += (("for", "4"), ("you", "u"), ("are", "r"), ("the", "teh"), ("what", "wat"), ("please", "plz"))


def misspelled(rng: random.Random, text: str) -> str:
    """The text with a slip in about `LETTERS_PER_SLIP` letters, at least one; code in backquotes stays."""
    for _ in range(1 + rng.randrange(1 + len(text) // LETTERS_PER_SLIP)):
        words = [match for match in re.finditer(r"[^\W\d_]+", text) if text.count("`", 0, match.start()) % 2 == 0]
        places = [word for word in words if len(word[0]) > 3 or word[0] in _SHORT]
        if not places:
            return text
        # Long words go wrong more often than short ones.
        word = rng.choices(places, [len(match[0]) for match in places])[0]
        text = text[: word.start()] + _slip(rng, word[0]) + text[word.end() :]
    if rng.random() < 0.06:
        spaces = [match.start() for match in re.finditer(" ", text)]
        if spaces:
            at = rng.choice(spaces)
            text = text[:at] + text[at + 1 :]
    return text


def _slip(rng: random.Random, word: str) -> str:
    at = rng.randrange(len(word) - 1)
    roll = rng.random()
    # Other letters would make a short word or an abbreviation another one.
    if roll < 0.3 or len(word) < 4 or word[1:] != word[1:].lower():
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if roll < 0.52:
        return word[: at + 1] + word[at + 2 :]
    if roll < 0.6:
        return word[: at + 1] + word[at] + word[at + 1 :]
    if roll < 0.68:
        return word[: at + 1] + _near(rng, word[at + 1]) + word[at + 2 :]
    if roll < 0.78:
        vowels = [place for place, letter in enumerate(word) if letter in _VOWELS]
        if vowels:
            place = rng.choice(vowels)
            return word[:place] + rng.choice(_VOWELS) + word[place + 1 :]
    if roll < 0.82 and len(word) > 7:  # a word in two
        return word[: at + 1] + " " + word[at + 1 :]
    doubled = re.search(r"([a-z])\1", word)
    if doubled and roll < 0.9:
        return word[: doubled.start()] + word[doubled.start() + 1 :]
    heard = [(right, wrong) for right, wrong in _BY_EAR if right in word.lower()]
    if not heard:
        return word[: at + 1] + word[at + 2 :]
    right, wrong = rng.choice(heard)
    return re.sub(right, wrong, word, count=1, flags=re.IGNORECASE)


def _near(rng: random.Random, letter: str) -> str:
    """A letter beside this one on a keyboard."""
    row = next((row for row in _ROWS if letter.lower() in row), "")
    if not row:
        return letter
    at = row.index(letter.lower())
    return rng.choice(row[max(0, at - 1) : at] + row[at + 1 : at + 2])
