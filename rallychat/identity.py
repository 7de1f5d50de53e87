"""Who asks: set where a request comes in, read where something belongs to somebody.

Whoever does work for people (a background task, a batch) says for whom with `acting_as`. Where nobody said
anything it is the one local person, so what forgets to ask sees nothing of the others.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

Role = Literal["admin", "member"]
Via = Literal["local", "session", "key", "nothing"]

LOCAL_USER = "local"
"""Whose everything is where there are no accounts."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may ask.

    Args:
        id: of the user.
        role: an admin manages people, keys and models; what others wrote is theirs alone, also for an admin.
        via: how this request proved it.
        scopes: what an API key is for; None: everything its user may do.
        key_id: of the API key, where there is one.
    """

    id: str
    role: Role = "member"
    via: Via = "local"
    scopes: frozenset[str] | None = None
    key_id: str | None = None

    def may(self, scope: str) -> bool:
        """Whether a request of this person may do what `scope` names."""
        return self.scopes is None or scope in self.scopes


LOCAL = Person(LOCAL_USER, role="admin")
ANYBODY = Person(LOCAL_USER)
"""Whoever reaches a server that others can reach and that asks nobody who they are."""
NOBODY = Person("nobody", via="nothing", scopes=frozenset())
"""Who has not said yet who they are."""

_current: ContextVar[Person] = ContextVar("person", default=LOCAL)


def current() -> Person:
    """Who asks; what a task does that this request starts is done for the same person."""
    return _current.get()


@contextmanager
def acting_as(person: Person | str) -> Generator[Person]:
    """Until the block ends, what is done is done for this person (or the user of this id)."""
    who = Person(person) if isinstance(person, str) else person
    token = _current.set(who)
    try:
        yield who
    finally:
        _current.reset(token)
