"""What only some may do. Everything else is a matter of whose it is, which the store knows."""

from __future__ import annotations

from rallychat.errors import Forbidden
from rallychat.identity import ANYBODY, Person, current


def is_admin() -> bool:
    """Whoever asks may manage people, keys and models."""
    person = current()
    return person.role == "admin" and person.may("admin")


def admin() -> Person:
    """The admin who asks.

    Raises:
        Forbidden: it is none.
    """
    if not is_admin():
        raise Forbidden("Only an admin may do this.", hint="ask one, or use a key with the scope 'admin'")
    return current()


def oneself() -> Person:
    """The person who asks, in person: a key that leaks must not make others, or change a password.

    Raises:
        Forbidden: an API key asks.
    """
    person = current()
    if person.via in ("key", "nothing"):
        raise Forbidden("This cannot be done with an API key.", hint="log in on the page")
    return person


def holder() -> Person:
    """The person who asks, in person, whose keys are theirs alone.

    Raises:
        Forbidden: an API key asks, or whoever comes in where nobody has to say who they are.
    """
    person = oneself()
    if person == ANYBODY:
        raise Forbidden("Keys are managed by who logs in, or on the command line.")
    return person
