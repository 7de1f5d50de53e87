"""What OpenAI's Conversations have no routes for: filing, search, copies, links, files out and in."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from rallychat.api.conversations import described
from rallychat.api.idempotency import (
    IdempotencyKey,
    StatefulRoute,
    UploadRoute,
    answered_once,
    fingerprint_of,
)
from rallychat.api.manner import MANNER, Manner
from rallychat.api.responses.answers import ConversationOut
from rallychat.api.responses.items import place_of
from rallychat.api.responses.pages import Limit, listed
from rallychat.api.responses.requests import Name
from rallychat.api.routing import ANY_OBJECT, json_response, problems
from rallychat.api.schemas import Asked
from rallychat.api.serving import service_of
from rallychat.errors import Forbidden
from rallychat.store import Hit, Share
from rallychat.transfer import Report, as_json, as_markdown, document, everything, import_file

router = APIRouter(route_class=StatefulRoute, tags=["conversations"])
imports = APIRouter(route_class=UploadRoute, tags=["conversations"])
_ONE = "/v1/conversations/{conversation_id}"
_MADE = problems(400, 401, 403, 404, 409, 413, 415, 500, 503)
_READ = problems(400, 401, 403, 404, 500, 503)
_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/markdown": {"schema": {"type": "string"}},
        }
    }
}


class Filing(Manner):
    """Body of `PATCH /v1/conversations/{conversation_id}`; what is left out stays."""

    title: Annotated[str, Field(max_length=200)] = ""
    pinned: bool = False
    archived: bool = False
    folder: Annotated[str, Field(max_length=100)] | None = None


class Fork(Asked):
    """Body of `POST /v1/conversations/{conversation_id}/fork`."""

    message_id: Name


class ShareRequest(Asked):
    """Body of `POST /v1/conversations/{conversation_id}/shares`."""

    message_id: Name | None = None


@router.get("/v1/conversations/search", response_model=None, responses={**ANY_OBJECT, **_READ})
async def search_conversations(
    request: Request,
    q: Annotated[str, Query(max_length=500, description="Words that all must be there.")],
    limit: Limit = 20,
    offset: Annotated[int, Query(ge=0, le=1000)] = 0,
) -> Response:
    """Messages and titles that hold the words, the best first."""
    hits = await service_of(request).store.library.search(q, limit=limit + 1, offset=offset)
    return json_response(
        {"object": "list", "data": [hit_out(hit) for hit in hits[:limit]], "has_more": len(hits) > limit}
    )


@router.get("/v1/conversations/folders", response_model=None, responses={**ANY_OBJECT, **_READ})
async def list_folders(request: Request) -> Response:
    """The names of the folders that hold something."""
    return json_response({"object": "list", "data": await service_of(request).store.library.folders()})


@router.get("/v1/conversations/export", response_model=None, responses={**ANY_OBJECT, **_READ})
async def export_conversations(request: Request) -> Response:
    """All conversations but those of the trash, with every branch, as one JSON file."""
    headers = {"content-disposition": 'attachment; filename="rallychat-conversations.json"'}
    return StreamingResponse(
        everything(service_of(request).store), media_type="application/json", headers=headers
    )


@imports.post("/v1/conversations/import", response_model=None, responses={**ANY_OBJECT, **_MADE})
async def import_conversations(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Takes in the file that is the body: our export, ChatGPT's (JSON or ZIP) or Open WebUI's. Twice does no harm."""
    service = service_of(request)
    limit, seen, digest = service.settings.max_import_bytes, 0, hashlib.sha256()
    with service.store.files.scratch() as folder:
        path = folder / "file"
        with path.open("wb") as file:
            async for chunk in request.stream():
                seen += len(chunk)
                if seen > limit:
                    sentence = f"The file is larger than {limit} bytes, the limit 'max_import_bytes' sets."
                    raise HTTPException(413, sentence)
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)

        async def taken_in() -> Response:
            return json_response(report_out(await import_file(service.store, path, knows=service.knows)))

        if idempotency_key is None:
            return await taken_in()
        fingerprint = fingerprint_of(request, orjson.dumps(digest.hexdigest()))
        return await answered_once(request, idempotency_key, fingerprint, taken_in)


@router.delete("/v1/conversations/trash", response_model=None, responses={**ANY_OBJECT, **_READ})
async def empty_trash(request: Request) -> Response:
    """Deletes what is in the trash for good."""
    return json_response(
        {"object": "trash.emptied", "deleted": await service_of(request).store.library.empty()}
    )


@router.patch(_ONE, response_model=None, responses={200: {"model": ConversationOut}, **_MADE})
async def file_conversation(request: Request, conversation_id: str, asked: Filing) -> Response:
    """Renames, pins, archives or files it; changes how it is answered."""
    store = service_of(request).store
    settled = asked.manner(service_of(request))
    filed: dict[str, Any] = {name: getattr(asked, name) for name in asked.model_fields_set - MANNER}
    if "title" in filed:
        settled["title"] = filed.pop("title")
    changed = await store.library.file(conversation_id, **filed)
    if settled:
        changed = await store.update(conversation_id, **settled)
    return json_response(described(changed))


@router.post(f"{_ONE}/restore", response_model=None, responses={200: {"model": ConversationOut}, **_READ})
async def restore_conversation(request: Request, conversation_id: str) -> Response:
    """Takes it out of the trash."""
    return json_response(described(await service_of(request).store.library.restore(conversation_id)))


@router.post(f"{_ONE}/fork", response_model=None, responses={200: {"model": ConversationOut}, **_MADE})
async def fork_conversation(
    request: Request, conversation_id: str, asked: Fork, idempotency_key: IdempotencyKey = None
) -> Response:
    """A new conversation of what was said up to a message."""
    message_id = place_of(asked.message_id).message_id
    return json_response(described(await service_of(request).store.library.fork(conversation_id, message_id)))


@router.get(f"{_ONE}/export", response_model=None, responses={**_FILE, **_READ})
async def export_conversation(
    request: Request,
    conversation_id: str,
    kind: Annotated[
        Literal["json", "markdown"], Query(alias="format", description="JSON has every branch.")
    ] = "json",
) -> Response:
    """One conversation as a file: JSON that can be imported again, or Markdown of the branch in view."""
    store = service_of(request).store
    if kind == "markdown":
        conversation = await store.get(conversation_id)
        body = as_markdown(conversation, await store.path(conversation_id)).encode()
    else:
        body = document([as_json(await store.library.entire(conversation_id))])
    name = f"{conversation_id}.{'md' if kind == 'markdown' else 'json'}"
    media = "text/markdown; charset=utf-8" if kind == "markdown" else "application/json"
    return Response(body, media_type=media, headers={"content-disposition": f'attachment; filename="{name}"'})


@router.post(f"{_ONE}/shares", response_model=None, responses={**ANY_OBJECT, **_MADE})
async def share_conversation(
    request: Request, conversation_id: str, asked: ShareRequest, idempotency_key: IdempotencyKey = None
) -> Response:
    """A link that shows what was said up to a message, the newest if none is named, to whoever has it."""
    service = service_of(request)
    if not service.settings.sharing:
        raise Forbidden("Sharing is off on this server.", hint="ask its owner for the setting 'sharing'")
    message_id = place_of(asked.message_id).message_id if asked.message_id else None
    return json_response(share_out(await service.store.shares.make(conversation_id, message_id=message_id)))


@router.get(f"{_ONE}/shares", response_model=None, responses={**ANY_OBJECT, **_READ})
async def list_shares(request: Request, conversation_id: str) -> Response:
    """The links to it that work."""
    found = await service_of(request).store.shares.list(conversation_id)
    return json_response(listed([share_out(share) for share in found]))


@router.delete(f"{_ONE}/shares/{{share_id}}", response_model=None, responses={**ANY_OBJECT, **_READ})
async def revoke_share(request: Request, conversation_id: str, share_id: str) -> Response:
    """Ends a link for good."""
    store = service_of(request).store
    await store.get(conversation_id)
    await store.shares.revoke(share_id)
    return json_response({"id": share_id, "object": "conversation.share.deleted", "deleted": True})


def report_out(report: Report) -> dict[str, Any]:
    """What came of an import."""
    counts = ("imported", "messages", "already_here", "empty", "failed")
    said = {name: getattr(report, name) for name in counts}
    return {
        "object": "conversation.import",
        **said,
        "left_out": dict(report.left_out),
        "problems": report.problems,
    }


def hit_out(hit: Hit) -> dict[str, Any]:
    """One place where something was found."""
    at = hit.message.created_at if hit.message else hit.conversation.updated_at
    return {
        "object": "conversation.hit",
        "conversation_id": hit.conversation.id,
        "title": hit.conversation.title,
        "message_id": hit.message.id if hit.message else None,
        "role": hit.message.role if hit.message else None,
        "created_at": int(at.timestamp()),
        "snippet": hit.snippet,
        "marks": [list(mark) for mark in hit.marks],
    }


def share_out(share: Share) -> dict[str, Any]:
    """A link; `path` follows the server's address."""
    return {
        "id": share.id,
        "object": "conversation.share",
        "conversation_id": share.conversation_id,
        "message_id": share.tip_id,
        "path": f"/share/{share.token}",
        "created_at": int(share.created_at.timestamp()),
    }
