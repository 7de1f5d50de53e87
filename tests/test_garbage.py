from __future__ import annotations

import gc
import socket

import pytest
import uvicorn
from fastapi import FastAPI

from rallychat import garbage
from rallychat.cli.serve import build_server


def test_what_is_there_need_not_be_walked_until_the_block_ends() -> None:
    with garbage.settled():
        there = gc.get_freeze_count()
    assert there > 10_000
    assert gc.get_freeze_count() == 0


async def test_a_server_settles_before_anybody_is_told_that_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    served: list[uvicorn.Server] = []

    def started() -> None:
        told.append("started")
        served[0].should_exit = True

    async def nothing() -> None:
        """There is nothing to stop."""

    monkeypatch.setattr(garbage, "settle", lambda: told.append("settled"))
    served.append(build_server(FastAPI(), started=started, stopping=nothing, hurry=lambda: None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await served[0].serve(sockets=[listener])
    assert told == ["settled", "started"]
