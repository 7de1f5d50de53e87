from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from rallychat.catalog import Sampling
from tests.browser.conftest import PHONE, Served, Visiting, answered, say, serving, use_model, write_models

pytestmark = pytest.mark.browser


def test_code_can_be_copied_and_nothing_a_model_says_can_run(served: Served, visiting: Visiting) -> None:
    with visiting(served.url, permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.page
        use_model(page, "Markdown echo")
        say(page, "show me")
        answered(page)
        expect(page.locator(".answer h1")).to_have_text("Title")
        expect(page.locator(".answer .hl-k").first).to_have_text("def")
        page.get_by_role("button", name="Copy", exact=True).and_(page.locator(".code-copy")).click()
        expect(page.get_by_text("Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == "def answer() -> int:\n    return 42\n"
        assert page.evaluate("window.hacked") is None
        expect(page.locator(".answer script, .answer img")).to_have_count(0)
        expect(page.get_by_role("link", name="picture")).to_have_attribute("target", "_blank")
        assert not [url for url in visit.requests if "pictures.example" in url]


def test_a_script_that_got_in_could_not_run(page: Page) -> None:
    page.evaluate(
        """() => {
            const box = document.createElement("div");
            box.innerHTML = '<img src="/nothing" onerror="window.hacked = 1">';
            document.body.append(box);
            const script = document.createElement("script");
            script.textContent = "window.hacked = 2";
            document.body.append(script);
            return new Promise((resolve) => box.firstChild.addEventListener("error", () => setTimeout(resolve)));
        }"""
    )
    assert page.evaluate("window.hacked") is None


def test_nothing_is_requested_from_the_internet(served: Served, visiting: Visiting) -> None:
    with visiting(served.url) as visit:
        page = visit.page
        say(page, "hello")
        answered(page)
        page.get_by_title("Settings and context").click()
        page.get_by_role("tab", name="Context").click()
        expect(page.get_by_text("Exact prompt")).to_be_visible()
        page.get_by_title("Choose a model").click()
        expect(page.get_by_role("heading", name="Models")).to_be_visible()
        own = urlsplit(served.url).netloc
        elsewhere = {url for url in visit.requests if urlsplit(url).netloc not in (own, "")}
        assert elsewhere == set()
        assert len(visit.requests) > 20


def test_on_a_phone_nothing_is_wider_than_the_screen(served: Served, visiting: Visiting) -> None:
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    with visiting(served.url, **PHONE) as visit:
        page = visit.page
        expect(page.locator("#rc-left")).to_be_hidden()
        use_model(page, "Markdown echo")
        assert page.evaluate(wide) == 0
        page.get_by_label("Message", exact=True).fill("a" * 300)
        page.get_by_role("button", name="Send", exact=True).tap()
        answered(page)
        assert page.evaluate(wide) == 0
        page.get_by_title("Show the list").tap()
        expect(page.locator("#rc-left")).to_be_visible()
        expect(page.locator("#rc-left .conversation").first).to_be_in_viewport()
        page.locator("#rc-left .conversation a").first.tap()
        expect(page.locator("#rc-left")).to_be_hidden()
        page.get_by_title("Settings and context").tap()
        expect(page.get_by_label("System prompt")).to_be_in_viewport()
        assert page.evaluate(wide) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_one_chooses(served: Served, visiting: Visiting, scheme: str) -> None:
    with visiting(served.url, color_scheme=scheme) as visit:
        page = visit.page
        lightness = "() => parseInt(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])"
        assert (page.evaluate(lightness) > 128) == (scheme == "light")
        button = page.locator('#rc-left [data-action="theme"]')
        button.click()
        expect(button).to_have_attribute("title", "Colours: light")
        assert page.evaluate(lightness) > 128
        button.click()
        expect(button).to_have_attribute("title", "Colours: dark")
        assert page.evaluate(lightness) < 128
        page.reload()
        expect(page.locator("html[data-ready]")).to_have_count(1)
        assert page.evaluate(lightness) < 128


def test_a_conversation_is_renamed_opened_and_deleted(page: Page) -> None:
    say(page, "the first one")
    answered(page)
    page.keyboard.press("Control+Shift+O")
    expect(page.locator(".message")).to_have_count(0)
    say(page, "the second one")
    answered(page)
    first = page.locator(".conversation").filter(has_text="the first one")
    first.hover()
    first.get_by_role("button", name="Rename the first one").click()
    page.get_by_label("New name").fill("Renamed <b>")
    page.keyboard.press("Enter")
    renamed = page.get_by_role("link", name="Renamed <b>")
    renamed.click()
    expect(page.locator(".said")).to_have_text("the first one")
    expect(page).to_have_title("Renamed <b> · RallyChat")
    row = page.locator(".conversation").filter(has_text="Renamed <b>")
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(row).to_have_count(1)
    renamed.click()
    expect(page.locator(".said")).to_have_text("the first one")
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    expect(page.locator(".message")).to_have_count(0)
    expect(page).not_to_have_url(re.compile("c="))


def test_an_answer_in_hebrew_runs_from_the_right_and_its_code_from_the_left(page: Page) -> None:
    page.get_by_label("Message", exact=True).fill("!say שלום\n\n- אחת\n\n```\nx = 1\n```\n\nEnglish.")
    page.get_by_role("button", name="Send").click()
    answered(page)
    for name, way in (("p", "rtl"), ("ul", "rtl"), ("figure", "ltr")):
        expect(page.locator(f".answer {name}").first).to_have_css("direction", way)
    expect(page.locator(".answer p").last).to_have_css("unicode-bidi", "plaintext")


def test_back_returns_to_the_conversation_before(page: Page) -> None:
    say(page, "number one")
    answered(page)
    page.get_by_role("button", name="New chat").first.click()
    say(page, "number two")
    answered(page)
    page.go_back()
    expect(page.locator(".said")).to_have_text("number one")


def test_a_link_to_a_conversation_that_is_gone_says_so(page: Page, served: Served) -> None:
    page.goto(f"{served.url}/?c=conv_nothing")
    expect(page.locator(".toast.error")).to_contain_text("There is no conversation")
    expect(page.get_by_role("heading", name="Your serve.")).to_be_visible()


def test_settings_are_kept_with_the_conversation(page: Page) -> None:
    page.get_by_title("Settings and context").click()
    page.get_by_label("System prompt").fill("You are a parrot.")
    page.get_by_label("Max tokens").fill("5")
    page.get_by_label("Max tokens").press("Tab")
    say(page, "one two three four five six seven")
    answered(page)
    expect(page.locator(".notice")).to_contain_text("Token limit reached.")
    page.get_by_role("tab", name="Context").click()
    expect(page.locator(".entry.system")).to_contain_text("You are a parrot.")
    page.reload()
    expect(page.get_by_label("Max tokens")).to_have_value("5")
    page.get_by_role("button", name="Back to the model's defaults").click()
    expect(page.get_by_label("Max tokens")).to_have_value("")


def test_a_setting_that_is_being_written_stays_with_its_conversation(
    served: Served, visiting: Visiting
) -> None:
    create, get = served.service.store.create, served.service.store.get
    mine, other = [served.do(create(title=title)).id for title in ("The one I set up", "The other one")]
    with visiting(f"{served.url}/?c={other}") as visit:
        page = visit.page
        page.get_by_role("link", name="The one I set up").click()
        expect(page).to_have_title("The one I set up · RallyChat")
        page.get_by_title("Settings and context").click()
        prompt = page.get_by_label("System prompt")
        prompt.fill("You are a parrot.")
        with page.expect_request(lambda request: request.method == "PATCH") as kept:
            page.go_back()
        assert kept.value.response() is not None
        expect(page).to_have_title("The other one · RallyChat")
        expect(prompt).to_have_value("")
        assert (served.do(get(mine)).system, served.do(get(other)).system) == ("You are a parrot.", "")


def test_a_setting_is_saved_without_those_another_tab_has_changed(served: Served, visiting: Visiting) -> None:
    store = served.service.store
    id_ = served.do(store.create(title="In two tabs", sampling=Sampling(top_k=3))).id
    with visiting(f"{served.url}/?c={id_}") as visit:
        page = visit.page
        page.get_by_title("Settings and context").click()
        page.get_by_label("Temperature").focus()  # from now on the form is left as it is
        served.do(store.update(id_, system="From another tab."))
        page.get_by_label("Temperature").fill("0.5")
        with page.expect_request(lambda request: request.method == "PATCH") as kept:
            page.get_by_label("Temperature").press("Tab")
        assert kept.value.response() is not None
        now = served.do(store.get(id_))
        assert (now.system, now.sampling.temperature, now.sampling.top_k) == ("From another tab.", 0.5, 3)


def test_a_wrong_setting_is_named_and_not_kept(page: Page) -> None:
    page.get_by_title("Settings and context").click()
    page.get_by_label("Top p").fill("7")
    page.get_by_label("Top p").press("Tab")
    wrong = page.locator("#rc-settings-error")
    expect(wrong).to_have_text("Top p is a number from 0.01 to 1.")
    page.get_by_label("Message", exact=True).focus()
    say(page, "hello")
    answered(page)
    expect(wrong).to_have_text("Top p is a number from 0.01 to 1.")
    expect(page.get_by_label("Top p")).to_have_value("7")
    page.get_by_label("Top p").fill("0.7")
    page.get_by_label("Top p").press("Tab")
    expect(wrong).to_be_hidden()


def test_settings_that_are_changed_in_quick_succession_are_kept_in_that_order(
    served: Served, visiting: Visiting
) -> None:
    store = served.service.store
    id_ = served.do(store.create(title="Quickly")).id
    held: list[Route] = []
    with visiting(f"{served.url}/?c={id_}") as visit:
        page = visit.page
        page.get_by_title("Settings and context").click()
        page.route(
            f"**/ui/conversations/{id_}", lambda route: route.continue_() if held else held.append(route)
        )
        for label, value in (("Temperature", "0.5"), ("Top k", "3")):
            page.get_by_label(label).fill(value)
            page.get_by_label(label).press("Tab")
        page.wait_for_timeout(200)
        with page.expect_response(lambda response: "top_k" in (response.request.post_data or "")):
            held[0].continue_()
        page.wait_for_timeout(200)
        kept = served.do(store.get(id_)).sampling
        assert (kept.temperature, kept.top_k) == (0.5, 3)


def test_the_inspector_shows_the_prompt_and_what_was_reused(page: Page) -> None:
    say(page, "alpha beta gamma")
    answered(page)
    say(page, "delta")
    answered(page, 2)
    page.get_by_title("Settings and context").click()
    page.get_by_role("tab", name="Context").click()
    expect(page.locator(".entry mark").first).to_have_text("<|im_start|>")
    expect(page.locator("#rc-context")).to_contain_text("alpha beta gamma")
    expect(page.locator(".numbers")).to_contain_text("Reused")
    expect(page.locator(".track .reused")).not_to_have_attribute("width", "0.0")
    page.get_by_role("button", name=re.compile("Token ids")).click()
    expect(page.locator(".entry .as-ids").first).to_contain_text(re.compile(r"^\d+ \d+ "))


def test_a_server_that_cannot_be_reached_is_said_until_it_can_be(page: Page) -> None:
    page.context.set_offline(True)
    expect(page.locator("#rc-model-state")).to_have_text("no connection")
    page.context.set_offline(False)
    expect(page.locator("#rc-model-state")).to_have_text("")


def test_a_reply_from_before_the_connection_broke_does_not_say_that_it_is_there(page: Page) -> None:
    late: list[Route] = []
    state = page.locator("#rc-model-state")
    page.route("**/ui/models", lambda route: route.abort() if late else late.append(route))
    page.evaluate("dispatchEvent(new Event('online'))")
    while not late:
        page.wait_for_timeout(50)
    page.evaluate("dispatchEvent(new Event('offline'))")
    expect(state).to_have_text("no connection")
    with page.expect_response("**/ui/models"):
        late[0].continue_()
    page.wait_for_timeout(200)
    assert state.text_content() == "no connection"
    page.unroute("**/ui/models")
    expect(state).to_have_text("")


def test_the_key_that_opens_the_panel_takes_the_focus_into_it_and_back(page: Page) -> None:
    message = page.get_by_label("Message", exact=True)
    message.focus()
    page.keyboard.press("Control+Shift+E")
    expect(page.get_by_role("tab", name="Settings")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#rc-right :focus")).to_have_count(1)
    page.keyboard.press("Control+Shift+E")
    expect(message).to_be_focused()


def test_every_button_has_a_name(page: Page) -> None:
    say(page, "hello")
    answered(page)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("#rc-stage button, .rc-side button, .rc-panel button")]
            .filter((b) => !(b.getAttribute("aria-label") || b.textContent.trim())).map((b) => b.outerHTML)"""
    )
    assert nameless == []


def test_a_server_that_was_restarted_shows_the_interrupted_answer(tmp_path: Path, visiting: Visiting) -> None:
    folder = write_models(tmp_path)
    with (
        ExitStack() as running,
        visiting((server := running.enter_context(serving(folder, model="slow"))).url) as visit,
    ):
        page = visit.page
        say(page, "!count 2000")
        expect(page.locator(".message.live .answer")).to_contain_text("5")
        running.close()
        port = int(server.url.rsplit(":", 1)[1])
        running.enter_context(serving(folder, model="slow", port=port))
        expect(page.locator(".notice")).to_contain_text("Interrupted.")
        expect(page.locator(".answer")).to_contain_text("1 2 3 4 5")
        expect(page.get_by_role("button", name="Continue", exact=True)).to_be_visible()


def test_the_chat_can_stand_alone(tmp_path: Path, visiting: Visiting) -> None:
    with serving(tmp_path, chat_only_mode=True) as alone, visiting(f"{alone.url}/#models") as visit:
        page = visit.page
        say(page, "Hello")
        answered(page)
        for hidden in ("#rc-left", "#rc-right", ".model-pill", "#rc-models"):
            expect(page.locator(hidden)).not_to_be_visible()
        page.get_by_role("button", name="New chat").click()
        expect(page.locator("#rc-empty")).to_be_visible()


def test_a_conversation_is_found_pinned_and_shared_until_its_link_is_revoked(page: Page) -> None:
    say(page, "tell me of the arctic tern")
    answered(page)
    page.keyboard.press("Control+Shift+O")
    say(page, "something else")
    answered(page)
    page.get_by_label("Search all messages").fill("tern")
    expect(page.locator(".hit mark").first).to_have_text("tern")
    page.locator(".hit a").first.click()
    expect(page.locator(".said")).to_have_text("tell me of the arctic tern")
    page.get_by_label("Search all messages").fill("")
    expect(page.locator(".hit")).to_have_count(0)
    row = page.locator(".conversation").filter(has_text="arctic")
    row.hover()
    row.get_by_role("button", name="More for").click()
    page.get_by_role("button", name="Pin on top").click()
    expect(page.locator(".day").first.locator("h3")).to_have_text("Pinned")
    row.hover()
    row.get_by_role("button", name="More for").click()
    page.get_by_role("button", name="Share as a link").click()
    link = page.locator("#rc-shares a")
    address = link.get_attribute("href") or ""
    with page.context.expect_page() as opened:
        link.click()
    expect(opened.value.locator(".said")).to_have_text("tell me of the arctic tern")
    opened.value.close()
    page.get_by_role("button", name="Revoke").click()
    expect(link).to_have_count(0)
    assert page.request.get(address).status == 404


def test_the_links_of_one_conversation_do_not_appear_with_another(served: Served, visiting: Visiting) -> None:
    async def talk(text: str) -> str:
        id_ = (await served.service.store.create(title=text)).id
        await (await served.service.turn(id_, text)).wait()
        return id_

    shared, _ = [served.do(talk(text)) for text in ("the shared one", "the private one")]
    served.do(served.service.store.shares.make(shared))
    held: list[Route] = []
    with visiting(served.url) as visit:
        page = visit.page
        page.route(f"**/v1/conversations/{shared}/shares", lambda route: held.append(route))
        for text in ("the shared one", "the private one"):
            row = page.locator(".conversation").filter(has_text=text)
            row.hover()
            with page.expect_request("**/shares"):
                row.get_by_role("button", name="More for").click()
            if text == "the shared one":
                page.keyboard.press("Escape")
        with page.expect_request("**/v1/conversations/folders"):  # asked for when the links are shown
            held[0].continue_()
        expect(page.locator("#rc-conversation-title")).to_have_text("the private one")
        expect(page.locator("#rc-shares a")).to_have_count(0)


def test_an_export_of_chatgpt_is_imported_and_its_losses_are_named(page: Page, tmp_path: Path) -> None:
    message = {
        "author": {"role": "user"},
        "content": {"parts": ["hello there", {"content_type": "image_asset_pointer"}]},
    }
    export = [{"id": "c", "title": "From elsewhere", "mapping": {"n": {"parent": None, "message": message}}}]
    page.get_by_role("button", name="Import conversations").click()
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(export))
    page.get_by_label("File to import").set_input_files(file)
    report = page.locator("#rc-import-report")
    expect(report).to_contain_text("1 imported, 0 were here already, 0 left out.")
    expect(report).to_contain_text("not taken over: 1 images")
    page.locator("#rc-import").get_by_role("button", name="Close").click()
    page.get_by_role("link", name="From elsewhere").click()
    expect(page.locator(".said")).to_have_text("hello there")
