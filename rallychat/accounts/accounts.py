"""Logging in, out and being known again; inviting; keys. Knows what is proven by what; never sees HTTP."""

from __future__ import annotations

import itertools
import logging
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from rallychat.accounts import passwords, tokens
from rallychat.accounts.permissions import admin, holder, is_admin, oneself
from rallychat.accounts.throttle import Throttle
from rallychat.errors import Conflict, Forbidden, InvalidRequest, LoginFailed
from rallychat.identity import ANYBODY, LOCAL_USER, Person, Role, acting_as
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from rallychat.store.account_types import SCOPES, ApiKey, Invite, Session, User
from rallychat.store.codec import checked
from rallychat.unset import UNSET, Unset

if TYPE_CHECKING:
    from rallychat.accounts.oidc import Provider, Vouched

log = logging.getLogger(__name__)

IDLE: Final = timedelta(days=14)
"""Without a sign of life, a session ends."""
LONGEST: Final = timedelta(days=90)
"""However often it is used, a session ends."""
INVITED: Final = timedelta(days=7)
_FOREIGN: Final = re.compile(r"[^\w.@+-]+")
_NAME: Final = re.compile(r"[\w.@+-]{1,100}")
_FOR_MEMBERS: Final = tuple(scope for scope in SCOPES if scope != "admin")


@dataclass(frozen=True, slots=True)
class Entry:
    """A login that succeeded. `token` is for the browser alone."""

    token: str
    session: Session
    user: User


class Accounts:
    """Everything about people. Who may call what is asked here, by `identity.current()`."""

    def __init__(
        self, store: ConversationStore, settings: Settings, *, throttle: Throttle | None = None
    ) -> None:
        self.people = store.people
        self.credentials = store.credentials
        self.deeds = store.deeds
        self.belongings = store.belongings
        self.provider = _provider(settings)
        self._settings = settings
        self._throttle = throttle or Throttle()

    async def login_needed(self) -> bool:
        """Whoever asks has to say who they are: others can reach the server, or there are accounts."""
        if self._settings.no_auth:
            return False
        asked = self._settings.auth == "required" or self._settings.others_can_reach
        return asked or await self.people.any()

    async def known(self) -> bool:
        """There is somebody who could say who they are."""
        now = datetime.now(UTC)
        if self.provider is not None or await self.people.any():
            return True
        return any(key.is_good(now) for key in await self.credentials.keys(None))

    # --- who asks -----------------------------------------------------------------------------------------

    async def of_session(self, token: str) -> tuple[Session, Person] | None:
        """Whose session it is."""
        return await self.credentials.session(tokens.hash_of(token), idle=IDLE)

    async def of_key(self, secret: str) -> Person | None:
        """Who may act with a key."""
        found = await self.credentials.key(tokens.hash_of(secret)) if secret.startswith(tokens.KEY) else None
        return None if found is None else found[1]

    # --- in and out ---------------------------------------------------------------------------------------

    async def log_in(self, name: str, password: str, *, device: str, address: str) -> Entry:
        """A new session.

        Raises:
            LoginFailed: in the same words and time, whatever is wrong. TooManyTries: it comes too early.
        """
        name = unicodedata.normalize("NFKC", name).casefold().strip()[:100]
        self._throttle.attempt(name, self._counted(address))
        found = await self.people.password(name) if _NAME.fullmatch(name) else None
        user, stored = found or (None, None)
        fits = await passwords.fits(stored, password)
        entry = None
        if fits and user is not None and not user.disabled:
            entry = await self._begun(user, device=device, address=address, password=stored)
        if entry is None:
            log.warning("a login failed, from %s", address)
            raise LoginFailed("Name and password do not belong together.")
        self._throttle.forgive(name, self._counted(address))
        if stored is not None and passwords.is_outdated(stored):
            await self.people.rehash(entry.user.id, stored, await passwords.hashed(password))
        return entry

    async def enter(self, user: User, *, device: str, address: str) -> Entry:
        """A new session of somebody who has proven who they are.

        Raises:
            LoginFailed: their account is disabled.
        """
        entry = await self._begun(user, device=device, address=address)
        if entry is None:
            raise LoginFailed("This account is disabled.", hint="ask an admin")
        return entry

    async def _begun(
        self, user: User, *, device: str, address: str, password: str | Unset | None = UNSET
    ) -> Entry | None:
        token = tokens.fresh()
        session = await self.credentials.begin(
            user.id,
            tokens.hash_of(token),
            device=device[:200],
            address=address[:64],
            expires_at=datetime.now(UTC) + LONGEST,
            password=password,
        )
        return None if session is None else Entry(token, session, user)

    async def enter_vouched(self, vouched: Vouched, *, device: str, address: str) -> Entry:
        """A new session of whom the provider vouches for; at first, a new account.

        It is known by the provider's own name for it. An account that has the same name or address is somebody else's.

        Raises:
            LoginFailed: the account is disabled.
        """
        assert self.provider is not None
        issuer, role = self.provider.issuer, self._settings.oidc_role
        if self.provider.says_who_is_admin:
            role = "admin" if vouched.admin else "member"
        user = await self.people.vouched(issuer, vouched.subject)
        if user is None:
            user = await self._welcome(vouched, issuer, role)
        elif self.provider.says_who_is_admin and user.role != role:
            with suppress(Conflict), acting_as(user.id):  # the only admin stays one
                user = await self.people.change(user.id, role=role)
        return await self.enter(user, device=device, address=address)

    async def _welcome(self, vouched: Vouched, issuer: str, role: Role) -> User:
        wanted = _FOREIGN.sub("-", unicodedata.normalize("NFKC", vouched.name).casefold())[:90].strip("-")
        wanted = "somebody" if wanted in ("", LOCAL_USER) else wanted
        for number in itertools.count(1):
            name = wanted if number == 1 else f"{wanted}-{number}"
            with suppress(Conflict):
                return await self.people.add(
                    name, role=role, email=vouched.email, issuer=issuer, subject=vouched.subject
                )
            if (known := await self.people.vouched(issuer, vouched.subject)) is not None:
                return known  # two logins at once
        raise AssertionError("names do not run out")

    def _counted(self, address: str) -> str:
        """An address whose failures count together; none where everybody behind a proxy has the same."""
        return "" if self._settings.is_proxy(address) else address

    # --- people -------------------------------------------------------------------------------------------

    async def add(self, name: str, password: str, *, role: Role = "member", email: str | None = None) -> User:
        """A new account. Admins only."""
        admin()
        name = checked_name(name)
        stored = await passwords.hashed(passwords.checked(password, name=name))
        return await self.people.add(name, role=role, password=stored, email=email)

    async def invite(
        self, *, role: Role = "member", note: str = "", lasting: timedelta = INVITED
    ) -> tuple[str, Invite]:
        """A token that makes one account. Admins only."""
        by = admin().id
        token = tokens.fresh()
        expires = datetime.now(UTC) + lasting
        hashed = tokens.hash_of(token)
        return token, await self.people.invite(hashed, role=role, note_=note[:200], by=by, expires_at=expires)

    async def invited(self, token: str) -> Invite:
        """What a token invites to. Raises NotFound if to nothing."""
        return await self.people.invited(tokens.hash_of(token))

    async def accept(self, token: str, name: str, password: str) -> User:
        """Makes the account of an invitation, which is used up by it."""
        invite = await self.invited(token)  # before a core is spent on the password
        name = checked_name(name)
        stored = await passwords.hashed(passwords.checked(password, name=name))
        return await self.people.add(name, role=invite.role, password=stored, invite=tokens.hash_of(token))

    async def set_password(self, user: User, password: str) -> None:
        """Another password, without asking for the old one; ends all sessions. Admins only."""
        admin()
        stored = await passwords.hashed(passwords.checked(password, name=user.name))
        await self.people.set_password(user.id, stored)

    async def change_password(self, old: str, new: str, *, address: str, session: str | None) -> None:
        """One's own password; every other session ends.

        Raises:
            LoginFailed: `old` is not the one. TooManyTries: after too many of those. Conflict: it was changed
                meanwhile.
        """
        user = await self.people.get(oneself().id)
        self._throttle.attempt(user.name, self._counted(address))
        found = await self.people.password(user.name)
        if found is None or not await passwords.fits(found[1], old):
            raise LoginFailed("This is not your present password.")
        self._throttle.forgive(user.name, self._counted(address))
        stored = await passwords.hashed(passwords.checked(new, name=user.name))
        await self.people.set_password(user.id, stored, keep=session, old=found[1])

    async def erase(self, user_id: str) -> None:
        """Deletes a user and everything of theirs, for good. Admins, and whoever it is."""
        if oneself().id != user_id:
            admin()
        await self.belongings.erase(user_id)

    async def sure_of_myself(self, password: str, *, address: str) -> str:
        """The id of whoever asks, who has said their password (if they have one) to be erased for good.

        Raises:
            LoginFailed: it is not theirs. Conflict: there is no account.
        """
        person = oneself()
        if person.id == LOCAL_USER:
            raise Conflict("Whoever needs no login has no account.", hint="delete the data folder instead")
        user = await self.people.get(person.id)
        if user.has_password:
            self._throttle.attempt(user.name, self._counted(address))
            found = await self.people.password(user.name)
            if found is None or not await passwords.fits(found[1], password):
                raise LoginFailed("This is not your password.")
        return user.id

    # --- keys ---------------------------------------------------------------------------------------------

    async def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[str] = _FOR_MEMBERS,
        lasting: timedelta | None = None,
        user_id: str | None = None,
    ) -> tuple[str, ApiKey]:
        """A key, as it is shown this once, of whoever asks; of somebody else if an admin asks.

        Raises:
            InvalidRequest: a scope is unknown. Forbidden: it would open more than its user may.
        """
        person = oneself()
        user_id = user_id or person.id
        if user_id != person.id:
            admin()
        if not (wanted := tuple(dict.fromkeys(scopes))) or not set(wanted) <= set(SCOPES):
            raise InvalidRequest(f"Scopes are: {', '.join(SCOPES)}.", param="scopes")
        role = person.role if user_id == LOCAL_USER else (await self.people.get(user_id)).role
        if "admin" in wanted and role != "admin":
            raise Forbidden("Only an admin's key can have the scope 'admin'.")
        if user_id == LOCAL_USER and role != "admin":
            raise Forbidden("Keys are of no use where nobody has to say who they are.")
        if not 1 <= len(checked(name, param="name").strip()) <= 100:
            raise InvalidRequest("A key's name has 1 to 100 characters.", param="name")
        secret = tokens.fresh(tokens.KEY)
        key = await self.credentials.add_key(
            user_id,
            tokens.hash_of(secret),
            name=name.strip(),
            prefix=secret[: tokens.SHOWN],
            scopes=wanted,
            expires_at=None if lasting is None else datetime.now(UTC) + lasting,
        )
        return secret, key

    async def keys(self) -> list[ApiKey]:
        """One's own; none where nobody has to say who they are."""
        person = oneself()
        return [] if person == ANYBODY else await self.credentials.keys(person.id)

    async def revoke_own(self, key_id: str) -> ApiKey:
        """Makes one's own key useless."""
        return await self.credentials.revoke(key_id, user_id=holder().id)

    async def revoke(self, key_id: str) -> ApiKey:
        """Makes one's own key useless; anybody's, if an admin asks."""
        if not is_admin():
            return await self.revoke_own(key_id)
        return await self.credentials.revoke(key_id, user_id=None)


def _provider(settings: Settings) -> Provider | None:
    if not settings.oidc_issuer:
        return None
    from rallychat.accounts.oidc import Provider

    return Provider(settings)


def checked_name(text: str) -> str:
    """A name people log in with, as it is compared.

    Raises:
        InvalidRequest: it cannot be one.
    """
    name = unicodedata.normalize("NFKC", text).casefold().strip()
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "A name has 1 to 100 letters, digits, or any of . @ + - _", param="name", hint="choose another"
        )
    if name == LOCAL_USER:
        raise Conflict("This name stands for whoever uses RallyChat without login.", hint="choose another")
    return name
