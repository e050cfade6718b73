"""The question at the first start without a model of the user's own. No Textual in here."""

from __future__ import annotations

from macllm.chat.model_columns import offer_text
from macllm.chat.models import first_offer, remember_offer
from macllm.errors import MacllmError

from .outcomes import Choice, Question

_TEXT = (
    "This is maclet, the bundled guide: it knows macllm and language models, and little else. "
    "These models fit into {memory}. Type a number, or just ask:"
)
_UNKNOWN_SPEED = "memory; macllm bench finds out how fast they are"


def question(model: str | None) -> Question | None:
    """The offer of models that fit, once: at the first start with the bundled model and no other here."""
    try:
        offered = first_offer(model)
    except (MacllmError, OSError):  # no reason not to chat
        return None
    if not offered:
        return None
    remember_offer()
    choices = tuple(Choice(offer_text(each), f"/model {each.name}") for each in offered)
    memory = "the memory of this machine" if any(each.speed for each in offered) else _UNKNOWN_SPEED
    return Question(_TEXT.format(memory=memory), (*choices, Choice("stay with maclet")))
