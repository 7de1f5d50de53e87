"""What every engine does that lets caches leave their slots: they come back as they were, and to nobody else."""

from __future__ import annotations

import pytest

from rallychat.errors import EngineRefused
from tests.contract.rig import SLOTS, WINDOW, Rig


@pytest.fixture(autouse=True)
def offloading(rig: Rig) -> None:
    assert rig.info.offload, "this engine keeps nothing outside its slots"


async def test_what_was_saved_comes_back_into_any_slot_and_answers_alike(rig: Rig) -> None:
    prompt = await rig.chat("Remember: " + "the parrot is green, " * 8)
    first = await rig.answer(prompt, slot=0, ignore_eos=True)
    longer = prompt + first.ids + await rig.chat("And what is red?")
    stays = await rig.answer(longer, slot=0, max_tokens=12)
    await rig.answer(await rig.text("something else"), slot=0, max_tokens=0)
    await rig.answer(prompt, slot=0, ignore_eos=True)
    dropped, saving = await rig.client.save(0, "parrot", prompt)
    assert dropped == []
    await rig.answer(await rig.long(WINDOW - 20), slot=0, max_tokens=0)
    restoring = await rig.client.restore(SLOTS - 1, "parrot", cache_salt=None)
    assert (saving > 0, restoring > 0) == (rig.info.engine != "echo",) * 2
    back = await rig.answer(longer, slot=SLOTS - 1, max_tokens=12)
    assert back.done.cached_tokens >= len(prompt) + len(first.ids) - 1
    assert (back.text, back.ids) == (stays.text, stays.ids)


async def test_a_copy_comes_back_only_under_the_salt_it_was_made_with(rig: Rig) -> None:
    prompt = await rig.chat("Whose secret is this: a heron at dusk?")
    await rig.answer(prompt, slot=1, cache_salt="hers", max_tokens=0)
    await rig.client.save(1, "heron", prompt)
    with pytest.raises(EngineRefused):
        await rig.client.restore(2, "heron", cache_salt="his")
    await rig.client.restore(2, "heron", cache_salt="hers")
    stolen = await rig.answer(prompt, slot=2, cache_salt="his", max_tokens=1)
    assert stolen.done.cached_tokens == 0
    await rig.client.restore(3, "heron", cache_salt="hers")
    again = await rig.answer(prompt, slot=3, cache_salt="hers", max_tokens=1)
    assert again.done.cached_tokens == len(prompt) - 1


async def test_a_slot_that_holds_something_else_by_now_is_not_copied(rig: Rig) -> None:
    one, other = await rig.chat("What was there."), await rig.chat("Somebody else's words.")
    await rig.answer(other, slot=1, max_tokens=0)
    with pytest.raises(EngineRefused):
        await rig.client.save(1, "mistaken", one)
    with pytest.raises(EngineRefused):
        await rig.client.restore(1, "mistaken", cache_salt=None)


async def test_a_copy_that_was_discarded_is_gone(rig: Rig) -> None:
    prompt = await rig.chat("This will be deleted.")
    await rig.answer(prompt, slot=1, max_tokens=0)
    await rig.client.save(1, "deleted", prompt)
    await rig.client.discard(["deleted", "neverthere"])
    with pytest.raises(EngineRefused):
        await rig.client.restore(1, "deleted", cache_salt=None)


async def test_a_name_is_a_name_and_no_path(rig: Rig) -> None:
    with pytest.raises(EngineRefused):
        await rig.client.save(0, "../escape", [])


async def test_a_slot_that_does_not_exist_is_refused(rig: Rig) -> None:
    with pytest.raises(EngineRefused):
        await rig.client.save(SLOTS, "none", [])


async def test_saving_a_slot_again_takes_what_it_holds_now(rig: Rig) -> None:
    one, other = await rig.chat("The first thing to say."), await rig.chat("Another, quite different thing.")
    for prompt in (one, other):
        await rig.answer(prompt, slot=0, max_tokens=0)
        await rig.client.save(0, "again", prompt)
    await rig.client.restore(1, "again", cache_salt=None)
    assert (await rig.answer(other, slot=1, max_tokens=1)).done.cached_tokens == len(other) - 1
