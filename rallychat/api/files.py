"""/v1/files: what people upload, and what batches make."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import FileResponse, Response

from rallychat.api.errors import Problem, Refusal
from rallychat.api.idempotency import (
    IdempotencyKey,
    StatefulRoute,
    UploadRoute,
    answered_once,
    fingerprint_of,
)
from rallychat.api.responses.pages import After, Order, listed
from rallychat.api.routing import json_response, problems
from rallychat.api.serving import service_of
from rallychat.api.uploads import FORM, Upload, discard, receive
from rallychat.chat import ChatService
from rallychat.errors import InvalidRequest, NotFound, StorageFull
from rallychat.store import StoredFile

PURPOSES: Final = ("batch", "user_data")
BATCH_DAYS: Final = 30
"""Days after which an input of a batch goes by itself, as with OpenAI."""
SOONEST, LATEST = 3600, 2592000
"""Seconds between which `expires_after` must be."""


class FileOut(BaseModel):
    """OpenAI's file object."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class FileList(BaseModel):
    """Files, a page of them."""

    object: Literal["list"]
    data: list[FileOut]
    first_id: str
    last_id: str
    has_more: bool


class FileDeleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


router = APIRouter(route_class=StatefulRoute, tags=["files"])
uploads = APIRouter(route_class=UploadRoute, tags=["files"])
_ONE = "/v1/files/{file_id}"
_READ = problems(400, 403, 404, 500, 503)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": SOONEST, "maximum": LATEST},
                    },
                }
            }
        },
    }
}


@uploads.post(
    "/v1/files",
    response_model=None,
    openapi_extra=_BODY,
    responses={200: {"model": FileOut}, **problems(400, 403, 409, 413, 415, 500, 503)},
)
async def create_file(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Uploads a file. It is there whole, or not at all."""
    service = service_of(request)
    upload = await receive(request, service.store.files)
    try:
        purpose, lives = _wanted(upload.fields)
        said = {"fields": upload.fields, "name": upload.filename, "sha256": upload.sha256}

        async def kept() -> Response:
            return json_response(described(await keep_upload(service, upload, purpose, lives)))

        if idempotency_key is None:
            return await kept()
        body = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
        return await answered_once(request, idempotency_key, fingerprint_of(request, body), kept)
    except BaseException:
        discard(upload, service.store.files)
        raise
    finally:
        if not upload.stream.closed:  # answered before: this one is not needed
            discard(upload, service.store.files)


async def keep_upload(
    service: ChatService, upload: Upload, purpose: str, lives: timedelta | None
) -> StoredFile:
    """Keeps what has come for the person of this request, as far as they may."""
    files = service.store.files
    size = await asyncio.to_thread(files.land, upload.id, upload.stream)
    name = upload.filename or "file"
    most = (await service.allowances.limits()).stored_bytes
    upload.told = True  # what is raised from now on may come after the row
    try:
        return await files.keep(upload.id, size, purpose=purpose, filename=name, lives=lives, most=most)
    except (InvalidRequest, StorageFull):
        upload.told = False
        raise


def _wanted(fields: Mapping[str, str]) -> tuple[str, timedelta | None]:
    known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
    for name in fields:
        if name not in known:
            message = f"'{name[:300]}' is not a parameter of this route."
            raise Refusal(Problem(400, message, "unknown_parameter", name[:300]))
    if "purpose" not in fields:
        raise Refusal(Problem(400, "'purpose' is missing.", "missing_required_parameter", "purpose"))
    purpose = fields["purpose"]
    if purpose not in PURPOSES:
        message = f"The purpose '{purpose[:100]}' is not supported, only {' and '.join(PURPOSES)}."
        raise Refusal(Problem(400, message, "unsupported_value", "purpose"))
    usual = timedelta(days=BATCH_DAYS) if purpose == "batch" else None
    if "expires_after[anchor]" not in fields and "expires_after[seconds]" not in fields:
        return purpose, usual
    if fields.get("expires_after[anchor]") != "created_at":
        raise InvalidRequest("'expires_after[anchor]' must be 'created_at'.", param="expires_after[anchor]")
    seconds = fields.get("expires_after[seconds]", "")
    if (
        not (seconds.isascii() and seconds.isdecimal() and len(seconds) < 10)
        or not SOONEST <= int(seconds) <= LATEST
    ):
        raise InvalidRequest(
            f"'expires_after[seconds]' must be between {SOONEST} and {LATEST}.",
            param="expires_after[seconds]",
        )
    return purpose, timedelta(seconds=int(seconds))


@router.get("/v1/files", response_model=None, responses={200: {"model": FileList}, **_READ})
async def list_files(
    request: Request,
    purpose: Annotated[str | None, Query(max_length=64, description="Only those of this purpose.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="How many at most.")] = 10_000,
    after: After = None,
    order: Order = "desc",
) -> Response:
    """Files."""
    files = service_of(request).store.files
    found = await files.list(purpose=purpose, limit=limit + 1, after=after, newest=order == "desc")
    return json_response(listed([described(one) for one in found[:limit]], more=len(found) > limit))


@router.get(_ONE, response_model=None, responses={200: {"model": FileOut}, **_READ})
async def retrieve_file(request: Request, file_id: str) -> Response:
    """One file."""
    return json_response(described(await service_of(request).store.files.get(file_id)))


@router.get(
    f"{_ONE}/content",
    response_model=None,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **_READ,
    },
)
async def retrieve_content(request: Request, file_id: str) -> Response:
    """What is in it."""
    files = service_of(request).store.files
    found = await files.get(file_id)
    path = files.path(found.id)
    if not path.is_file():  # its disk is not the one it was written to
        raise NotFound("file", file_id, hint="its content is not on this server")
    return FileResponse(path, media_type="application/octet-stream", filename=found.filename)


@router.delete(
    _ONE,
    response_model=None,
    responses={200: {"model": FileDeleted}, **problems(400, 403, 404, 409, 500, 503)},
)
async def delete_file(request: Request, file_id: str) -> Response:
    """Deletes a file that no batch reads."""
    await service_of(request).store.files.delete(file_id)
    return json_response({"id": file_id, "object": "file", "deleted": True})


def described(file: StoredFile) -> dict[str, Any]:
    """OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": None if file.expires_at is None else int(file.expires_at.timestamp()),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
