"""`--user`: a command that acts as somebody with an account. The audit log keeps that it did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from rallychat.cli.options import complain
from rallychat.errors import Forbidden, StoreError
from rallychat.identity import LOCAL_USER, acting_as, current

if TYPE_CHECKING:
    from rallychat.accounts import Accounts
    from rallychat.settings import Settings
    from rallychat.store import ConversationStore


@asynccontextmanager
async def acting_for(
    store: ConversationStore, user: str | None, action: str, *, disabled: bool = False
) -> AsyncIterator[None]:
    """Until the block ends, what is done is done as the account of this name; None: as whoever needs no login.

    Args:
        action: what the audit log calls it.
        disabled: the account may be a disabled one.

    Raises:
        NotFound: nobody is called so. Forbidden: the account is disabled.
    """
    from rallychat.accounts.accounts import checked_name

    if user is None:
        yield
        return
    found = await store.people.named(checked_name(user))
    if found.disabled and not disabled:
        hint = f"`rallychat users enable {found.name}` lets it in again"
        raise Forbidden(f"The account {found.name} is disabled.", hint=hint)
    await noted(store, action, found.name)
    with acting_as(found.id):
        yield


async def still_let_in(store: ConversationStore) -> None:
    """Raises Forbidden where the account that acts was disabled or deleted meanwhile."""
    who = current().id
    if who != LOCAL_USER and await store.people.kept_out([who]):
        raise Forbidden("This account was disabled or deleted meanwhile.", hint="Ctrl-D leaves")


async def noted(store: ConversationStore | Accounts, action: str, target: str) -> None:
    """Keeps in the audit log what is done here, where there are accounts. A full disk forbids nothing by this."""
    with _told():
        if await store.people.any():
            await store.deeds.add(action, target)


async def noted_here(settings: Settings, action: str, target: str) -> None:
    """The same of what needs no database, where there is one."""
    from rallychat.store import ConversationStore

    if settings.database_url is None and not settings.database.exists():
        return
    with _told():
        async with ConversationStore.open(settings) as store:
            await noted(store, action, target)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except StoreError as exc:
        complain(f"The audit log could not be written: {exc.message}", exc.hint)
