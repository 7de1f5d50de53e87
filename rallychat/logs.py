"""The log: lines on standard error, as text or as JSON, each with the request, the run and the person it is about.

A person is a hash of their id; what anybody wrote is never part of a line. A worker writes JSON whatever was asked
for; its server reads it and writes the line as its own.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, TextIO

import orjson

from rallychat.identity import current

if TYPE_CHECKING:
    from pythonjsonlogger.core import LogData

Format = Literal["text", "json"]

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the request being answered; the generation it starts inherits it."""
run_id: ContextVar[str] = ContextVar("run_id", default="-")
"""Id of the run that is making an answer."""

TEXT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"
_CONTEXT = ("request_id", "run_id", "user")
_PREFIX = b'{"level":'
"""How a worker's line begins; native libraries write lines of their own beside it."""


class Context(logging.Filter):
    """Puts the request, the run and the person into each record that does not name them already."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets everything pass."""
        found = {"request_id": request_id, "run_id": run_id}
        for name, variable in found.items():
            if not hasattr(record, name):
                setattr(record, name, variable.get())
        if not hasattr(record, "user"):
            record.user = hashed(current().id)
        return True


def hashed(user: str) -> str:
    """A name for a person that tells nothing but that it is the same one."""
    return hashlib.blake2b(user.encode(), digest_size=6).hexdigest()


def configure(level: str, how: Format = "text", *, stream: TextIO | None = None) -> None:
    """Our own log at the level asked for; the libraries' only from warnings on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(Context())
    handler.setFormatter(_json() if how == "json" else logging.Formatter(TEXT))
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, logging.StreamHandler) and any(isinstance(each, Context) for each in old.filters):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("rallychat").setLevel(level.upper())


def _json() -> logging.Formatter:
    from pythonjsonlogger.orjson import OrjsonFormatter

    class Formatter(OrjsonFormatter):
        def process_log_record(self, log_data: LogData) -> LogData:
            """Leaves out what a line does not have."""
            return {name: value for name, value in log_data.items() if value not in (None, "-")}

    # `level` first: a line of a worker is known by it
    return Formatter(
        ["levelname", "asctime", "name", "message", *_CONTEXT],
        rename_fields={"levelname": "level", "asctime": "time", "name": "logger"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


def relay(line: bytes) -> bool:
    """Writes a worker's line into this process's log; False if it is not one of ours."""
    if not line.startswith(_PREFIX):
        return False
    try:
        said = orjson.loads(line)
        level = logging.getLevelNamesMapping()[said.pop("level")]
        log, message = logging.getLogger(str(said.pop("logger"))), str(said.pop("message"))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False
    if log.isEnabledFor(level):
        extra = {name: said.get(name, "-") for name in _CONTEXT}
        details = {name: value for name, value in said.items() if name not in (*_CONTEXT, "time", "exc_info")}
        trace = f"\n{said['exc_info']}" if "exc_info" in said else ""
        log.log(level, "%s%s", message, trace, extra=details | extra)
    return True
