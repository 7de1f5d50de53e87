from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import answered, say

pytestmark = pytest.mark.browser


def test_a_chat_is_branched_off_and_a_search_finds_what_an_edit_has_left_behind(page: Page) -> None:
    say(page, "the first walrus")
    answered(page)
    say(page, "and a second question")
    answered(page, 2)
    first = page.url
    page.locator(".message.assistant").first.hover()
    page.locator(".message.assistant").first.get_by_role("button", name="Branch from here").click()
    expect(page.locator(".message")).to_have_count(2)
    assert page.url != first
    page.goto(first)
    expect(page.locator(".message")).to_have_count(4)
    page.locator(".message.user").nth(1).hover()
    page.locator(".message.user").nth(1).get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("something else")
    page.get_by_label("Edit your message").press("Enter")
    answered(page, 2)
    expect(page.get_by_text("and a second question")).to_have_count(0)
    page.get_by_label("Search all messages").fill("second question")
    page.locator(".hit a").first.click()
    expect(page.locator(".message.sought")).to_contain_text("and a second question")
    expect(page.locator(".branch-count").first).to_have_text("1/2")


def test_a_conversation_is_put_into_a_folder_that_stays_open_after_a_refresh(page: Page) -> None:
    say(page, "an errand")
    answered(page)
    row = page.locator(".conversation").filter(has_text="an errand")
    row.hover()
    row.get_by_role("button", name="More for").click()
    page.get_by_label("Folder").fill("Errands <i>")
    page.get_by_label("Folder").press("Tab")
    page.locator("#rc-conversation").get_by_role("button", name="Close").click()
    expect(row).to_have_count(0)
    page.get_by_role("navigation", name="Conversations").get_by_text("Errands <i>").click()
    expect(page.locator(".in-folder[open] .conversation")).to_have_text("an errand")
    page.reload()
    expect(page.locator(".in-folder[open] .conversation")).to_have_text("an errand")
