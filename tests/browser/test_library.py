from __future__ import annotations

import pytest
from playwright.sync_api import APIResponse, Page, Route, expect

from tests.browser.conftest import PHONE, Served, Visiting, answered, say

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


def test_a_conversation_in_a_folder_is_renamed_by_its_own_title(page: Page) -> None:
    say(page, "an errand in town")
    answered(page)
    row = page.locator(".conversation").filter(has_text="an errand in town")
    row.hover()
    row.get_by_role("button", name="More for").click()
    page.get_by_label("Folder").fill("Chores")
    page.get_by_label("Folder").press("Tab")
    page.get_by_role("button", name="Pin on top").click()
    expect(row.locator(".folder")).to_have_text("Chores")
    row.hover()
    row.get_by_role("button", name="More for").click()
    page.locator("#rc-conversation").get_by_role("button", name="Rename").click()
    expect(page.get_by_label("New name")).to_have_value("an errand in town")


def test_a_list_that_comes_late_does_not_hide_what_was_said_since(page: Page) -> None:
    late: list[tuple[Route, APIResponse]] = []
    page.get_by_label("Search all messages").fill("nothing of the kind")
    expect(page.locator(".conversation")).to_have_count(0)
    page.route("**/ui/conversations?*", lambda route: late.append((route, route.fetch())), times=1)
    page.get_by_label("Search all messages").fill("")
    while not late:
        page.wait_for_timeout(50)
    say(page, "said while the list was on its way")
    answered(page)
    row = page.locator(".conversation").filter(has_text="said while the list")
    expect(row).to_be_visible()
    route, told = late[0]
    with page.expect_response(route.request.url):
        route.fulfill(response=told)
    page.wait_for_timeout(200)
    expect(row).to_be_visible()


def test_what_is_in_the_trash_can_be_deleted_for_good(page: Page) -> None:
    for text in ("a secret one", "another secret"):
        say(page, text)
        answered(page)
        row = page.locator(".conversation").filter(has_text=text)
        row.hover()
        row.get_by_role("button", name="More for").click()
        page.locator("#rc-conversation").get_by_role("button", name="Delete").click()
        expect(row).to_have_count(0)
    page.get_by_role("button", name="Trash").click()
    page.get_by_role("button", name="Delete a secret one for good").click()
    expect(page.locator("#rc-confirm")).to_contain_text("a secret one")
    page.locator("#rc-confirm").get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#rc-conversations")).not_to_contain_text("a secret one")
    expect(page.locator("#rc-conversations")).to_contain_text("another secret")
    page.get_by_role("button", name="Empty the trash").click()
    page.get_by_role("button", name="Delete all").click()
    expect(page.locator("#rc-conversations")).to_have_text("The trash is empty.")


def test_what_is_told_while_a_dialog_is_open_stands_in_it(page: Page) -> None:
    say(page, "to be shared")
    answered(page)
    row = page.locator(".conversation").filter(has_text="to be shared")
    row.hover()
    row.get_by_role("button", name="More for").click()
    page.get_by_role("button", name="Share as a link").click()
    expect(page.locator("#rc-conversation .toast")).to_be_visible()
    page.locator("#rc-conversation").get_by_role("button", name="Close").click()
    row.hover()
    row.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="Undo")).to_be_visible()


def test_the_keyboard_alone_reaches_a_conversations_dialog_and_comes_back(page: Page) -> None:
    say(page, "reached by keys")
    answered(page)
    page.keyboard.press("Control+Shift+O")
    link = page.locator(".conversation").filter(has_text="reached by keys").locator("a")
    link.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#rc-conversation")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#rc-conversation")).to_be_hidden()
    expect(link).to_be_focused()
    page.get_by_label("Hide the list").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_on_a_phone_a_tap_beside_the_list_closes_it_and_does_nothing_else(
    served: Served, visiting: Visiting
) -> None:
    with visiting(served.url, **PHONE) as visit:
        visit.page.get_by_label("Show the list").tap()
        expect(visit.page.locator("#rc-left.open")).to_have_count(1)
        box = visit.page.locator(".examples button").first.bounding_box()
        assert box is not None
        visit.page.touchscreen.tap(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
        expect(visit.page.locator("#rc-left.open")).to_have_count(0)
        assert visit.page.get_by_label("Message", exact=True).input_value() == ""
