"""/v1/me: who asks, and what belongs to them: password, sessions, keys. (OpenAI has no such routes.)"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from rallychat.accounts import oneself
from rallychat.api.gate import SESSION
from rallychat.api.idempotency import StatefulRoute
from rallychat.api.people_shapes import (
    Erased,
    Gone,
    KeyAdded,
    KeyList,
    KeyOut,
    MeOut,
    PasswordChanged,
    SessionList,
    key_out,
    said,
    session_out,
    user_out,
)
from rallychat.api.responses.pages import listed
from rallychat.api.routing import problems
from rallychat.api.serving import service_of
from rallychat.identity import ANYBODY, LOCAL_USER, current
from rallychat.store.account_types import Session

if TYPE_CHECKING:
    from rallychat.chat import ChatService

log = logging.getLogger(__name__)

router = APIRouter(route_class=StatefulRoute, tags=["me"])
_READ = problems(401, 403, 404, 500, 503)
_MADE = problems(400, 401, 403, 404, 409, 413, 415, 429, 500, 503)


def session_of(request: Request) -> Session | None:
    """The session this request came with."""
    found: Session | None = request.scope.get(SESSION)
    return found


def address_of(request: Request) -> str:
    """Where it came from, as a proxy that is believed says."""
    here = request.client.host if request.client else ""
    forwarded = request.headers.get("x-forwarded-for", "")
    if forwarded and here not in forwarded:
        log.warning("X-Forwarded-For of %s is not believed: 'trusted_proxies' does not name it", here)
    return here


class _Sent(FileResponse):
    """A ZIP file of a folder that is `held` until it is sent, or will not be."""

    def __init__(self, path: Path, held: ExitStack) -> None:
        headers = {"cache-control": "no-store"}
        super().__init__(path, headers=headers, media_type="application/zip", filename="rallychat.zip")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


async def exported(service: ChatService) -> Response:
    """Everything of whoever asks, as a file."""
    person = oneself()
    with ExitStack() as folder:
        path = folder.enter_context(service.store.files.scratch()) / "export.zip"
        await service.store.belongings.export(person.id, path, keys=person != ANYBODY)
        return _Sent(path, folder.pop_all())


@router.get("/v1/me", response_model=None, responses={200: {"model": MeOut}, **_READ})
async def me(request: Request) -> Response:
    """Who asks, as the server sees it."""
    person = current()
    user = None if person.id == LOCAL_USER else await service_of(request).accounts.people.get(person.id)
    return said(
        {
            "id": person.id,
            "object": "me",
            "name": user.name if user else LOCAL_USER,
            "role": person.role,
            "via": person.via,
            "scopes": None if person.scopes is None else sorted(person.scopes),
            "user": user_out(user) if user else None,
        }
    )


@router.post("/v1/me/password", response_model=None, responses={200: {"model": MeOut}, **_MADE})
async def change_password(request: Request, asked: PasswordChanged) -> Response:
    """Another password; every other session ends."""
    session = session_of(request)
    await service_of(request).accounts.change_password(
        asked.old, asked.new, address=address_of(request), session=session.id if session else None
    )
    return await me(request)


@router.get(
    "/v1/me/export",
    response_model=None,
    responses={200: {"content": {"application/zip": {"schema": {"type": "string"}}}}, **_READ},
)
async def export(request: Request) -> Response:
    """Everything of one's own, as a ZIP file of JSON files."""
    return await exported(service_of(request))


@router.post("/v1/me/erase", response_model=None, responses={200: {"model": Gone}, **_MADE})
async def erase(request: Request, asked: Erased) -> Response:
    """Deletes one's account with everything of one's own, for good."""
    service = service_of(request)
    user_id = await service.accounts.sure_of_myself(asked.password, address=address_of(request))
    await service.erase_user(user_id)
    return said({"id": user_id, "deleted": True})


@router.get("/v1/me/sessions", response_model=None, responses={200: {"model": SessionList}, **_READ})
async def list_sessions(request: Request) -> Response:
    """Where one is logged in."""
    mine, session = oneself().id, session_of(request)
    found = await service_of(request).accounts.credentials.sessions(mine)
    return said(listed([session_out(one, current=session.id if session else None) for one in found]))


@router.delete("/v1/me/sessions/{session_id}", response_model=None, responses={200: {"model": Gone}, **_READ})
async def end_session(request: Request, session_id: str) -> Response:
    """Logs out there."""
    await service_of(request).accounts.credentials.end(oneself().id, session_id)
    return said({"id": session_id, "deleted": True})


@router.get("/v1/me/keys", response_model=None, responses={200: {"model": KeyList}, **_READ})
async def list_own_keys(request: Request) -> Response:
    """One's own keys, revoked ones among them."""
    return said(listed([key_out(key) for key in await service_of(request).accounts.keys()]))


@router.post("/v1/me/keys", response_model=None, responses={200: {"model": KeyOut}, **_MADE})
async def add_own_key(request: Request, asked: KeyAdded) -> Response:
    """A key of one's own. The secret is told this once."""
    lasting = None if asked.days is None else timedelta(days=asked.days)
    accounts = service_of(request).accounts
    secret, key = await accounts.create_key(asked.name, scopes=asked.scopes, lasting=lasting)
    return said(key_out(key, secret=secret))


@router.delete("/v1/me/keys/{key_id}", response_model=None, responses={200: {"model": KeyOut}, **_READ})
async def revoke_own_key(request: Request, key_id: str) -> Response:
    """Makes it useless for good."""
    return said(key_out(await service_of(request).accounts.revoke_own(key_id)))
