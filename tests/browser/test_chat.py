from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Served, Visiting, answered, lose_a_reply, say, use_model

pytestmark = pytest.mark.browser


def test_a_message_is_sent_with_enter_and_its_answer_appears(page: Page) -> None:
    say(page, "Hello **there**")
    answered(page)
    expect(page.locator(".message.user .said")).to_have_text("Hello **there**")
    expect(page.locator(".message.assistant .answer strong")).to_have_text("there")
    expect(page).to_have_url(re.compile(r"/\?c=conv_"))
    expect(page.get_by_role("link", name="Hello **there**")).to_have_attribute("aria-current", "page")


def test_shift_enter_makes_a_new_line(page: Page) -> None:
    box = page.get_by_label("Message", exact=True)
    box.fill("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    expect(box).to_have_value("one\ntwo")
    expect(page.locator(".message")).to_have_count(0)


def test_escape_stops_the_answer_and_continue_goes_on(page: Page) -> None:
    use_model(page, "Slow echo")
    say(page, "!count 2000")
    expect(page.locator(".message.live .answer")).to_contain_text("3")
    page.keyboard.press("Escape")
    answered(page)
    notice = page.locator(".notice")
    expect(notice).to_contain_text("Stopped.")
    before = page.locator(".answer").inner_text()
    notice.get_by_role("button", name="Continue").click()
    expect(page.locator(".message.live")).to_have_count(1)
    expect(page.locator(".message.live .answer")).to_contain_text(before.strip()[:20])
    page.get_by_role("button", name="Stop", exact=True).click()
    answered(page)
    assert page.locator(".answer").inner_text().startswith(before.strip()[:20])
    expect(page.locator(".message")).to_have_count(2)


def test_send_turns_into_stop_while_an_answer_grows(page: Page) -> None:
    use_model(page, "Slow echo")
    say(page, "!count 2000")
    stop = page.get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_visible()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_hidden()
    stop.click()
    answered(page)
    expect(stop).to_be_hidden()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def test_after_a_refresh_the_answer_still_grows(page: Page) -> None:
    use_model(page, "Slow echo")
    say(page, "!count 2000")
    live = page.locator(".message.live .answer")
    expect(live).to_contain_text("10")
    page.reload()
    expect(live).to_contain_text("10")
    expect(live).to_contain_text("40")
    page.keyboard.press("Escape")
    answered(page)


def test_two_tabs_show_the_same_growing_answer(page: Page) -> None:
    use_model(page, "Slow echo")
    say(page, "!count 2000")
    expect(page.locator(".message.live .answer")).to_contain_text("5")
    with page.context.new_page() as other:
        other.goto(page.url)
        expect(other.locator(".message.live .answer")).to_contain_text("20")
        expect(page.locator(".message.live .answer")).to_contain_text("20")
        other.keyboard.press("Escape")
        answered(other)
        answered(page)
        assert page.locator(".answer").inner_text() == other.locator(".answer").inner_text()
        say(other, "second")
        answered(other, 2)
        answered(page, 2)


def test_an_answer_whose_conversation_is_deleted_elsewhere_is_waited_for_no_more(
    page: Page, served: Served
) -> None:
    use_model(page, "Slow echo")
    say(page, "!count 2000")
    expect(page.locator(".message.live .answer")).to_contain_text("3")
    served.do(served.service.delete(page.url.partition("?c=")[2]))
    expect(page.get_by_role("heading", name="Your serve.")).to_be_visible()


def test_an_answer_is_followed_again_once_a_proxy_finds_the_server_again(page: Page) -> None:
    use_model(page, "Slow echo")
    for path in ("**/ui/runs/*/stream", "**/ui/conversations/conv_*", "**/ui/conversations/conv_*/state"):
        page.route(path, lambda route: route.fulfill(status=502))
    with page.expect_response("**/ui/runs/*/stream"):
        say(page, "!count 2000")
    with page.expect_response(re.compile("/ui/conversations/conv_")):
        pass  # the page has asked in vain how it is
    page.unroute_all()
    expect(page.locator(".message.live .answer")).to_contain_text("3")
    page.keyboard.press("Escape")
    answered(page)


def test_regenerate_and_the_arrows_between_versions(page: Page) -> None:
    say(page, "again and again")
    answered(page)
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branch-count")).to_have_text("2/2")
    answered(page)
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".branch-count")).to_have_text("1/2")
    expect(page.get_by_role("button", name="Previous version")).to_be_disabled()
    page.reload()
    expect(page.locator(".branch-count")).to_have_text("1/2")


def test_an_edited_message_keeps_the_old_branch(page: Page) -> None:
    say(page, "first thought")
    answered(page)
    say(page, "follow up")
    answered(page, 2)
    first = page.locator(".message.user").first
    first.hover()
    first.get_by_role("button", name="Edit and send again").click()
    box = page.get_by_label("Edit your message")
    expect(box).to_have_value("first thought")
    box.fill("second thought")
    box.press("Enter")
    expect(page.locator(".message.assistant:not(.live) .answer")).to_have_text(["second thought"])
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".said")).to_have_text(["first thought", "follow up"])


def test_what_is_being_written_into_a_message_is_left_alone_when_another_tab_speaks(
    page: Page, served: Served
) -> None:
    say(page, "first thought")
    answered(page)
    message = page.locator(".message.user").first
    message.hover()
    message.get_by_role("button", name="Edit and send again").click()
    box = page.get_by_label("Edit your message")
    box.fill("half a second thought")
    served.do(served.do(served.service.turn(page.url.partition("?c=")[2], "from elsewhere")).wait())
    for _ in range(2):
        with page.expect_response("**/ui/conversations/conv_*/state"):
            pass  # the page has looked what happened elsewhere
    expect(box).to_have_value("half a second thought")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator(".said")).to_have_text(["first thought", "from elsewhere"])


def test_a_message_is_edited_once_however_often_that_is_clicked(page: Page) -> None:
    say(page, "first thought")
    answered(page)
    held: list[Route] = []
    page.route("**/ui/messages/*/text", lambda route: held.append(route))
    message = page.locator(".message.user")
    message.hover()
    message.get_by_role("button", name="Edit and send again").dblclick()
    for route in held:
        with page.expect_response("**/ui/messages/*/text"):
            route.continue_()
    assert len(held) == 2
    page.get_by_label("Edit your message").first.press("Escape")
    expect(page.locator(".editor")).to_have_count(0)


def test_a_failed_answer_says_so_and_can_be_tried_again(page: Page) -> None:
    say(page, "!fail 2")
    expect(page.locator(".notice.failed")).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".branch-count")).to_have_text("2/2")


def test_what_was_typed_survives_a_refresh(page: Page) -> None:
    page.get_by_label("Message", exact=True).fill("half a thought")
    page.reload()
    expect(page.get_by_label("Message", exact=True)).to_have_value("half a thought")


async def long_talk(served: Served) -> str:
    """A conversation of 80 messages."""
    id_ = (await served.service.store.create(title="Long")).id
    for number in range(40):
        await (await served.service.turn(id_, f"message {number}.")).wait()
    return id_


def test_a_long_conversation_opens_at_its_end_and_loads_older_messages(
    served: Served, visiting: Visiting
) -> None:
    with visiting(f"{served.url}/?c={served.do(long_talk(served))}") as visit:
        page = visit.page
        expect(page.locator(".said").last).to_be_in_viewport()
        expect(page.locator(".said").last).to_have_text("message 39.")
        expect(page.locator(".message")).to_have_count(50)
        page.locator(".message").first.scroll_into_view_if_needed()
        expect(page.get_by_text("message 0.").first).to_be_attached()
        expect(page.locator(".message")).to_have_count(80)


def test_older_messages_that_come_late_leave_no_gap_below_them(served: Served, visiting: Visiting) -> None:
    id_ = served.do(long_talk(served))
    held: list[Route] = []
    with visiting(f"{served.url}/?c={id_}") as visit:
        page = visit.page
        older = f"**/ui/conversations/{id_}/messages*"
        page.route(older, lambda route: route.continue_() if held else held.append(route))
        with page.expect_request(older):
            page.locator(".message").first.scroll_into_view_if_needed()
        served.do(served.do(served.service.turn(id_, "from elsewhere.")).wait())
        expect(page.locator(".said").last).to_have_text("from elsewhere.")
        with page.expect_response(older):
            held[0].continue_()
        page.locator(".message").first.scroll_into_view_if_needed()
        expect(page.locator(".message")).to_have_count(82)


def test_an_example_fills_the_composer(page: Page) -> None:
    page.locator(".examples button").first.click()
    expect(page.get_by_label("Message", exact=True)).not_to_have_value("")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_what_a_model_thinks_is_folded_away_from_what_it_says(page: Page) -> None:
    use_model(page, "Thinker")
    say(page, "how many")
    expect(page.locator(".message.live .reasoning")).to_be_visible()
    answered(page)
    expect(page.locator(".answer")).to_have_text("The answer is 7.")
    expect(page.locator(".reasoning-text")).to_be_hidden()
    page.get_by_text("Thoughts").click()
    expect(page.locator(".reasoning-text strong")).to_have_text("slowly")


def test_a_chat_that_is_begun_while_a_message_is_on_its_way_stays_a_new_one(page: Page) -> None:
    held: list[Route] = []
    page.route("**/ui/turns", lambda route: held.append(route))
    with page.expect_request("**/ui/turns"):
        say(page, "Said in the chat before")
    page.get_by_role("button", name="New chat").first.click()
    held[0].continue_()
    expect(page.get_by_role("link", name="Said in the chat before")).to_be_visible()
    expect(page.locator(".message")).to_have_count(0)
    expect(page).not_to_have_url(re.compile(r"c=conv_"))


def test_a_chat_that_is_begun_before_another_answer_has_begun_stays_a_new_one(page: Page) -> None:
    say(page, "Said in the chat before")
    answered(page)
    held: list[Route] = []
    page.route("**/ui/messages/*/regenerate", lambda route: held.append(route))
    with page.expect_request("**/ui/messages/*/regenerate"):
        page.get_by_role("button", name="Answer again").click()
    page.get_by_role("button", name="New chat").first.click()
    with page.expect_response("**/ui/messages/*/regenerate"):
        held[0].continue_()
    say(page, "Said in the new chat")
    answered(page)
    expect(page.locator(".said")).to_have_text(["Said in the new chat"])


def test_a_first_message_whose_reply_was_lost_is_sent_again_and_said_once(page: Page, served: Served) -> None:
    before = len(served.do(served.service.store.list(limit=1000)))
    lose_a_reply(page, "**/ui/turns")
    say(page, "Lost on its way")
    expect(page.get_by_text("The server does not answer.")).to_be_visible()
    page.reload()
    box = page.get_by_label("Message", exact=True)
    expect(box).to_have_value("Lost on its way")
    page.get_by_role("button", name="Send", exact=True).click()
    answered(page)
    expect(page.locator(".said")).to_have_text(["Lost on its way"])
    expect(box).to_have_value("")
    assert len(served.do(served.service.store.list(limit=1000))) == before + 1


def test_a_text_that_was_changed_after_its_reply_was_lost_is_another_message(page: Page) -> None:
    say(page, "The first")
    answered(page)
    lose_a_reply(page, "**/ui/turns")
    say(page, "The second")
    expect(page.get_by_text("The server does not answer.")).to_be_visible()
    answered(page, 2)  # the page finds what has arrived
    say(page, "The third")
    answered(page, 3)
    expect(page.locator(".said")).to_have_text(["The first", "The second", "The third"])


def test_an_answer_made_again_whose_reply_was_lost_is_made_once(page: Page) -> None:
    say(page, "Again")
    answered(page)
    page.route(
        "**/ui/conversations/*/state", lambda route: route.abort()
    )  # the page does not see what has arrived
    lose_a_reply(page, "**/ui/messages/*/regenerate")
    page.get_by_role("button", name="Answer again").click()
    expect(page.get_by_text("The server does not answer.")).to_be_visible()
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branch-count")).to_have_text("2/2")
    answered(page)


CONVERTED = """(box) => box.dispatchEvent(
    new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true })
)"""
"""The Enter that ends an input method's conversion, as Safari tells of it. True: it is left to the browser."""


def test_enter_that_ends_a_conversion_sends_and_keeps_nothing(page: Page) -> None:
    box = page.get_by_label("Message", exact=True)
    box.fill("にほんご")
    assert box.evaluate(CONVERTED)
    box.press("Enter")
    answered(page)
    message = page.locator(".message.user")
    message.hover()
    message.get_by_role("button", name="Edit and send again").click()
    assert page.get_by_label("Edit your message").evaluate(CONVERTED)
    row = page.locator(".conversation").filter(has_text="にほんご").first
    row.hover()
    row.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").evaluate(CONVERTED)
    expect(page.get_by_label("New name")).to_be_focused()
    page.get_by_role("button", name="New chat").first.click()
    page.get_by_role("button", name="New persona").click()
    assert page.locator("#rc-persona").get_by_label("Name").evaluate(CONVERTED)
