"""A worker's own slots."""

from __future__ import annotations

import asyncio

import pytest

from rallychat.engines.slots import Slots
from rallychat.errors import Busy, InvalidRequest


async def test_a_slot_whose_client_is_leaving_is_waited_for() -> None:
    slots = Slots(1)
    first = slots.take([1], None)
    late = asyncio.create_task(slots.reserve([1], 0))
    await asyncio.sleep(0)
    slots.release(first, [1, 2])
    assert await late is first


async def test_who_waits_for_one_slot_is_not_served_by_another() -> None:
    slots = Slots(2)
    first, second = slots.take([], 0), slots.take([], 1)
    late = asyncio.create_task(slots.reserve([], 0))
    await asyncio.sleep(0)
    slots.release(second, [])
    await asyncio.sleep(0)
    assert not late.done()
    slots.release(first, [])
    assert await late is first


@pytest.mark.parametrize("wanted", [None, 0])
async def test_patience_ends(wanted: int | None) -> None:
    slots = Slots(1, patience=0.01)
    slots.take([], None)
    with pytest.raises(Busy, match="answering"):
        await slots.reserve([], wanted)


async def test_a_slot_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="no slot 7"):
        await Slots(1).reserve([], 7)
