"""A file on its way in: multipart/form-data, read piece by piece onto the disk, whatever its length."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from rallychat.api.errors import Problem, Refusal
from rallychat.store import FileStore

FORM: Final = "multipart/form-data"
MOST_FIELDS: Final = 16
LONGEST_FIELD: Final = 4096
"""Bytes of a field that is not the file, and of a part's header."""


@dataclass(slots=True)
class Upload:
    """What has come: the fields, and the file under its future id."""

    id: str
    stream: BinaryIO
    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    sha256: str = ""
    told: bool = False
    """There may be a row that tells of the file."""


class _Form:
    """Takes apart what the parser finds. Raises Refusal where there is too much of something."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        self.digest = hashlib.sha256()
        self.whole = False
        self.seen_file = False
        self._name = ""
        self._is_file = False
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._value = bytearray()

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """For python-multipart."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, at, end: _put(self._header[0], data[at:end]),
            "on_header_value": lambda data, at, end: _put(self._header[1], data[at:end]),
            "on_header_end": self._header_ended,
            "on_headers_finished": self._named,
            "on_part_data": self._data,
            "on_part_end": self._part_ended,
            "on_end": self._ended,
        }

    def _begin(self) -> None:
        self._name, self._is_file, self._value = "", False, bytearray()
        if len(self.upload.fields) > MOST_FIELDS:
            raise _refused("The form has too many fields.", "invalid_body")

    def _header_ended(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            _, options = parse_options_header(value)
            self._name = _text(options.get(b"name", b""), "name")
            self._is_file = b"filename" in options
            if self._is_file:
                self.upload.filename = _name_in(_text(options[b"filename"], "filename"))[:255]

    def _named(self) -> None:
        if not self._name:
            raise _refused("A part of the form has no name.", "invalid_body")
        if self._is_file and (self._name != "file" or self.seen_file):
            raise _refused("There must be one file, called 'file'.", "invalid_value", "file")
        self.seen_file = self.seen_file or self._is_file
        if not self._is_file and self._name in self.upload.fields:
            raise _refused(f"'{self._name[:300]}' is given twice.", "invalid_value", self._name[:300])

    def _data(self, data: bytes, at: int, end: int) -> None:
        if self._is_file:
            self.upload.stream.write(data[at:end])
            self.digest.update(data[at:end])
        else:
            _put(self._value, data[at:end])

    def _part_ended(self) -> None:
        if not self._is_file:
            self.upload.fields[self._name] = _text(bytes(self._value), self._name)

    def _ended(self) -> None:
        self.whole = True


async def receive(request: Request, files: FileStore) -> Upload:
    """Reads the form of a request. Its file is begun; the caller keeps or forgets it.

    Raises:
        Refusal: it is no such form, or not whole.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.decode("latin-1").lower() != FORM or not options.get(b"boundary"):
        raise Refusal(Problem(415, f"The body must be sent as {FORM}.", "unsupported_media_type"))
    upload = Upload(*await asyncio.to_thread(files.begin))
    form = _Form(upload)
    parser = MultipartParser(options[b"boundary"], form.callbacks())  # type: ignore[arg-type]
    try:
        async for chunk in request.stream():
            await asyncio.to_thread(parser.write, chunk)
        parser.finalize()
        if not form.whole:
            raise _refused("The form is not whole.", "invalid_body")
        if not form.seen_file:
            raise _refused("'file' is missing.", "missing_required_parameter", "file")
    except (FormParserError, ValueError) as exc:
        discard(upload, files)
        raise _refused("The body is not a whole form.", "invalid_body") from exc
    except BaseException:
        discard(upload, files)
        raise
    upload.sha256 = form.digest.hexdigest()
    return upload


def discard(upload: Upload, files: FileStore) -> None:
    """Takes back what was begun, unless it may be known: what no row tells of after all is swept."""
    with suppress(OSError):  # the disk has no room for what it still held
        upload.stream.close()
    if not upload.told:
        files.forget(upload.id)


def _name_in(path: str) -> str:
    """The last part of what a client calls its file: nobody who saves it is led to another folder."""
    return path.replace("\\", "/").rpartition("/")[2]


def _put(into: bytearray, data: bytes) -> None:
    into += data
    if len(into) > LONGEST_FIELD:
        raise _refused(f"A field of the form is longer than {LONGEST_FIELD} bytes.", "invalid_value")


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _refused(f"'{name[:300]}' is not UTF-8.", "invalid_value", name[:300]) from None


def _refused(message: str, code: str, param: str | None = None) -> Refusal:
    return Refusal(Problem(400, message, code, param))
