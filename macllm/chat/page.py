"""A conversation as a web page of its own: escaped text, light and dark, without scripts."""

from __future__ import annotations

import re
import time
from html import escape

from .conversation import Conversation, Node
from .transcript import ENDINGS, cut_text

_FENCE = re.compile(
    r"^( {0,3})(`{3,}|~{3,})[ \t]*([^\n`]*)\n(.*?)(?:^ {0,3}\2[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_STYLE = """
:root { color-scheme: light dark;
  --text: #23262d; --page: #fbfaf8; --panel: #f0eee9; --quiet: #6b6f78; --mark: #2457c5; }
@media (prefers-color-scheme: dark) {
  :root { --text: #d9dce3; --page: #14161a; --panel: #1d2026; --quiet: #8b919d; --mark: #82aaff; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 46rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: .85rem; color: var(--quiet); margin: 2rem 0 .4rem; font-weight: 600; }
section.user > .text { border-left: 3px solid var(--mark); padding-left: .8rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: .7rem .9rem; border-radius: 6px; overflow-x: auto; white-space: pre; }
pre, code { font: .9rem/1.45 ui-monospace, Menlo, monospace; }
details { color: var(--quiet); margin: .4rem 0; } .note { color: var(--quiet); font-size: .85rem; }
""".strip()


def as_html(conversation: Conversation, *, model_name: str) -> str:
    """The current path as one HTML document."""
    title = escape(conversation.name or f"Chat with {model_name}")
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>",
        f'<p class="note">{escape(model_name)} · {time.strftime("%Y-%m-%d", time.localtime(conversation.created))}</p>',
    ]
    if conversation.system:
        parts.append(f'<section><h2>System</h2><div class="text">{escape(conversation.system)}</div></section>')
    parts += [_section(node, model_name) for node in conversation.path]
    return _utf8("\n".join([*parts, "</body>\n</html>\n"]))


def _section(node: Node, model_name: str) -> str:
    turn = node.turn
    if turn.role == "cut":
        return f'<p class="note">{escape(cut_text(turn))}</p>'
    parts = [f'<section class="{turn.role}"><h2>{"You" if turn.role == "user" else escape(model_name)}</h2>']
    if turn.reasoning:
        parts.append(_folded("Reasoning", f'<div class="text">{escape(turn.reasoning.strip())}</div>'))
    if turn.content.strip():
        parts.append(_text(turn.content.strip("\n")))
    parts += [_folded(each.name, f"<pre>{escape(each.text)}</pre>") for each in turn.attachments]
    if turn.finish in ENDINGS:
        parts.append(f'<p class="note">{ENDINGS[turn.finish]}</p>')
    return "\n".join([*parts, "</section>"])


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _text(content: str) -> str:
    """Paragraphs as they are, fenced code in its own block."""
    parts: list[str] = []
    at = 0
    for match in _FENCE.finditer(content + "\n"):
        parts.append(_paragraphs(content[at : match.start()]))
        parts.append(f"<pre><code>{escape(match[4])}</code></pre>")
        at = match.end()
    return "".join([*parts, _paragraphs(content[at:])])


def _paragraphs(text: str) -> str:
    text = text.strip("\n")
    return f'<div class="text">{escape(text)}</div>' if text.strip() else ""


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
