"""A slash command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from macllm.chat.session import Session
from macllm.errors import UsageError

from ..outcomes import Outcome

Values = Callable[[Session | None, str], Mapping[str, str]]


@dataclass(frozen=True)
class Command:
    """A slash command. It calls `run`, or `run_without_model` if it needs no session.

    Commands with `idle` are not allowed while an answer is being generated. `values` gives the values that complete a
    half-typed argument, with descriptions; one that goes on ends with a space.
    """

    name: str
    argument: str
    help: str
    run: Callable[[Session, str], Outcome] | None = None
    run_without_model: Callable[[str], Outcome] | None = None
    idle: bool = False
    aliases: tuple[str, ...] = ()
    values: Values | None = None

    @property
    def usage(self) -> str:
        """Name and argument, as the user types them."""
        return f"/{self.name} {self.argument}".rstrip()

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)

    def __call__(self, session: Session | None, argument: str) -> Outcome:
        """Run the command. Raises: UsageError if it needs a session and has none; MacllmError."""
        if self.run_without_model is not None:
            return self.run_without_model(argument)
        assert self.run is not None
        if session is None:
            raise UsageError(
                f"/{self.name} needs a model.", cause="no model is loaded yet", remedy="/model chooses one"
            )
        return self.run(session, argument)
