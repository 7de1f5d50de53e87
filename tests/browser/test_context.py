from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from rallychat.store import Memory
from tests.browser.conftest import ECHO, Served, Visiting, answered, say, serving, write_models

pytestmark = pytest.mark.browser
SMALL = f'name = "Small"\n{ECHO.replace("8192", "512")}'


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose model forgets soon."""
    folder: Path = write_models(tmp_path_factory.mktemp("small"))
    (folder / "catalog" / "models" / "small.toml").write_text(SMALL)
    with serving(folder, model="small") as server:
        yield server


async def talk(server: Served, turns: int) -> str:
    id_ = (await server.service.store.create(title="Long")).id
    for number in range(turns):
        await (await server.service.turn(id_, f"note {number}: the keys hang in the hall. " * 5)).wait()
    return id_


def open_context(page: Page) -> None:
    page.get_by_title("Settings and context").click()
    page.get_by_role("tab", name="Context").click()
    expect(page.locator("#rc-context .numbers")).to_be_visible()


def test_a_message_is_pinned_where_it_stands_and_the_inspector_says_so(
    small: Served, visiting: Visiting
) -> None:
    with visiting(f"{small.url}/?c={small.do(talk(small, 2))}") as visit:
        page = visit.page
        open_context(page)
        message = page.locator(".message.user").first
        message.hover()
        message.get_by_role("button", name="Pin: always in the prompt").click()
        expect(message.get_by_role("button", name="Unpin")).to_have_attribute("aria-pressed", "true")
        expect(page.get_by_text("1 message pinned by you")).to_be_visible()
        page.reload()
        message.hover()
        message.get_by_role("button", name="Unpin").click()
        expect(message).not_to_have_attribute("data-mark", re.compile(".*"))


def test_what_left_the_prompt_is_named_below_the_answer_and_in_the_inspector(
    small: Served, visiting: Visiting
) -> None:
    with visiting(f"{small.url}/?c={small.do(talk(small, 8))}") as visit:
        page = visit.page
        page.locator(".left-out").click()
        fates = page.get_by_role("region", name="What happened to the messages")
        expect(fates.locator("summary").first).to_contain_text("message")
        fates.locator("summary").first.click()
        expect(fates.locator("li").first).to_contain_text("note 0")
        expect(
            page.get_by_role("img", name=re.compile("Tokens of the prompt from turn 1 to turn 8"))
        ).to_be_visible()
        say(page, "one more")
        answered(page, 9)
        expect(page.get_by_role("img", name=re.compile("to turn 9:")).first).to_be_visible()
        expect(fates.locator("details[open]").first).to_be_attached()


def test_the_memory_is_edited_and_undone(small: Served, visiting: Visiting) -> None:
    async def remembered() -> str:
        id_ = await talk(small, 1)
        until = (await small.service.store.path(id_))[1].id
        await small.service.contexts.commit(
            id_, Memory("summary", "The keys are blue.", until, (until,), "model")
        )
        return id_

    with visiting(f"{small.url}/?c={small.do(remembered())}") as visit:
        page = visit.page
        open_context(page)
        memory = page.get_by_label("What is remembered")
        expect(memory).to_have_value("The keys are blue.")
        memory.fill("The keys are red.")
        page.get_by_role("button", name="Save as new version").click()
        page.get_by_role("button", name="Undo version 2").click()
        expect(memory).to_have_value("The keys are blue.")
        page.get_by_text("1 other version").click()
        page.get_by_role("button", name="Take it back").click()
        expect(memory).to_have_value("The keys are red.")


def test_a_memory_is_saved_where_it_was_read_though_another_chat_is_being_opened(
    small: Served, visiting: Visiting
) -> None:
    async def remembered(title: str) -> str:
        id_ = await talk(small, 1)
        await small.service.store.update(id_, title=title)
        until = (await small.service.store.path(id_))[1].id
        await small.service.contexts.commit(id_, Memory("summary", f"Of {title}.", until, (until,), "model"))
        return id_

    mine, other = [small.do(remembered(title)) for title in ("my chat", "another chat")]
    held: list[Route] = []
    with visiting(f"{small.url}/?c={mine}") as visit:
        page = visit.page
        open_context(page)
        page.route(f"**/ui/conversations/{other}/context", lambda route: held.append(route))
        page.get_by_role("link", name="another chat").click()
        expect(page).to_have_title("another chat · RallyChat")
        memory = page.get_by_label("What is remembered")
        memory.fill("Changed.")
        page.get_by_role("button", name="Save as new version").click()
        expect(page.locator(".toast")).to_contain_text("Kept as a new version.")
        for route in held:
            route.continue_()
        page.unroute_all()
        expect(memory).to_have_value("Of another chat.")
    kept = [small.do(small.service.contexts.memory(id_)) for id_ in (mine, other)]
    assert [memory.text for memory in kept if memory] == ["Changed.", "Of another chat."]


def test_what_is_written_of_a_memory_that_changed_meanwhile_is_not_kept_and_not_lost(
    small: Served, visiting: Visiting
) -> None:
    async def remembered() -> str:
        id_ = await talk(small, 1)
        until = (await small.service.store.path(id_))[1].id
        await small.service.contexts.commit(id_, Memory("summary", "The keys are blue.", until))
        return id_

    id_ = small.do(remembered())
    with visiting(f"{small.url}/?c={id_}") as visit:
        page = visit.page
        open_context(page)
        memory = page.get_by_label("What is remembered")
        memory.fill("The keys are red.")
        small.do(small.service.contexts.edit_memory(id_, "The keys are green."))
        page.get_by_role("button", name="Save as new version").click()
        expect(page.locator(".toast")).to_contain_text("Version 2 of the memory is in force by now")
        expect(memory).to_have_value("The keys are green.")
        expect(page.get_by_label("Memory", exact=True)).to_contain_text("The keys are red.")


def test_a_strategy_is_chosen_for_one_conversation(small: Served, visiting: Visiting) -> None:
    with visiting(f"{small.url}/?c={small.do(talk(small, 1))}") as visit:
        page = visit.page
        open_context(page)
        page.get_by_label("Strategy of this conversation").select_option("last_n")
        expect(page.locator(".toast")).to_contain_text("From the next turn on.")
        page.get_by_label("Budget", exact=True).fill("10")
        page.get_by_label("Budget", exact=True).press("Tab")
        expect(page.locator("#rc-k-error")).to_contain_text("at least 64")
        page.reload()
        page.get_by_role("tab", name="Context").click()
        expect(page.get_by_label("Strategy of this conversation")).to_have_value("last_n")


def test_a_field_is_not_taken_away_by_the_one_before_that_is_being_kept(
    small: Served, visiting: Visiting
) -> None:
    with visiting(f"{small.url}/?c={small.do(talk(small, 1))}") as visit:
        page = visit.page
        open_context(page)
        kept: list[Route] = []
        page.route("**/context", lambda route: kept.append(route), times=1)
        with page.expect_request("**/context"):
            page.get_by_label("Strategy of this conversation").select_option("last_n")
        page.get_by_label("Budget", exact=True).fill("10")
        page.get_by_label("Budget", exact=True).press("Tab")
        expect(page.locator("#rc-k-error")).to_contain_text("at least 64")
        with page.expect_response("**/context"):
            kept[0].continue_()
        expect(page.locator(".toast")).to_contain_text("From the next turn on.")
        page.wait_for_timeout(500)
        expect(page.locator("#rc-k-error")).to_contain_text("at least 64")
