from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Served, Visiting, answered, say, serving, use_model, write_models
from tests.hub_server import HubServer

pytestmark = pytest.mark.browser


def test_a_model_is_chosen_loaded_and_answers(page: Page, served: Served) -> None:
    page.get_by_title("Choose a model").click()
    card = page.locator("#rc-models").get_by_role("article", name="Heavy echo", exact=True)
    expect(card).to_contain_text("Apache-2.0")
    card.get_by_role("button", name="Use").click()
    expect(page.locator("#rc-model-name")).to_have_text("Heavy echo")
    say(page, "are you there")
    answered(page)
    expect(page.locator(".message.assistant .who")).to_have_text("Heavy echo")
    expect(page.locator('.model-pill[data-state="loaded"]')).to_be_visible()
    page.get_by_title("Choose a model").click()
    expect(card.get_by_role("button", name="Unload")).to_be_visible()
    card.get_by_role("button", name="Unload").click()
    expect(card).to_contain_text("On disk")


def test_the_first_message_can_be_sent_while_the_model_loads(tmp_path: Path, visiting: Visiting) -> None:
    with serving(write_models(tmp_path), model="heavy") as server, visiting(server.url) as visit:
        say(visit.page, "early bird")
        expect(visit.page.locator(".live-status")).to_contain_text("Loading Heavy echo")
        answered(visit.page)
        expect(visit.page.locator(".answer")).to_have_text("early bird")


def test_a_model_that_cannot_be_loaded_says_why(page: Page) -> None:
    use_model(page, "Broken echo")
    expect(page.locator(".readiness.failed")).to_contain_text("the weights are damaged")
    say(page, "hello")
    expect(page.locator(".notice.failed")).to_contain_text("the weights are damaged")


def test_the_position_in_the_queue_is_shown(tmp_path: Path, visiting: Visiting) -> None:
    with serving(write_models(tmp_path), model="slow", slots=1) as server, visiting(server.url) as visit:
        page = visit.page
        say(page, "!count 2000")
        expect(page.locator(".message.live .answer")).to_contain_text("2")
        page.keyboard.press("Control+Shift+O")
        say(page, "me next")
        expect(page.locator(".live-status")).to_contain_text("Waiting: next in line")
        page.go_back()
        expect(page.locator(".message.live .answer")).to_contain_text("2")
        page.keyboard.press("Escape")
        answered(page)
        page.go_forward()
        answered(page)
        expect(page.locator(".answer")).to_have_text("me next")


TINY = """
name = "Tiny"
family = "chatml"
license = "MIT"
description = "From a hub."
[weights]
kind = "hub"
repo = "owner/model"
file = "tiny.gguf"
"""


def test_a_model_is_downloaded_with_progress_and_removed(
    tmp_path: Path, visiting: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_models(tmp_path)
    (folder / "catalog" / "models" / "tiny.toml").write_text(TINY)
    with HubServer() as hub:
        hub.held = True
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with serving(folder) as server, visiting(server.url) as visit:
            page = visit.page
            page.get_by_title("Choose a model").click()
            page.get_by_role("link", name="Tiny", exact=True).click()
            card = page.locator("#rc-review").get_by_role("region", name="State")
            expect(card).to_contain_text("Not downloaded")
            card.get_by_role("button", name="Download only").click()
            expect(card.get_by_role("progressbar")).to_have_attribute("value", re.compile(r"0\.4|0\.5"))
            expect(card).to_contain_text(re.compile(r"Downloading \d\d%"))
            hub.release()
            expect(card).to_contain_text("On disk")
            card.get_by_role("button", name="Remove from disk").click()
            page.locator("#rc-confirm").get_by_role("button", name="Remove").click()
            expect(card).to_contain_text("Not downloaded")
            expect(page.locator(".toast")).to_contain_text("freed")


def test_a_download_can_be_cancelled(
    tmp_path: Path, visiting: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_models(tmp_path)
    (folder / "catalog" / "models" / "tiny.toml").write_text(TINY)
    with HubServer() as hub:
        hub.held = True
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with serving(folder) as server, visiting(server.url) as visit:
            page = visit.page
            page.get_by_title("Choose a model").click()
            card = page.locator('#rc-menu [data-model="tiny"]')
            card.get_by_role("button", name="Download and use").click()
            expect(card).to_contain_text(re.compile(r"Downloading \d\d%"))
            card.get_by_role("button", name="Cancel").click()
            hub.release()
            expect(card).to_contain_text("Not downloaded")
            expect(card.locator(".note")).to_have_count(0)


def test_a_download_that_fails_says_why(
    tmp_path: Path, visiting: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_models(tmp_path)
    (folder / "catalog" / "models" / "tiny.toml").write_text(TINY.replace("tiny.gguf", "gone.gguf"))
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with serving(folder) as server, visiting(server.url) as visit:
            visit.page.goto(f"{server.url}/#models/tiny")
            card = visit.page.locator("#rc-review").get_by_role("region", name="State")
            card.get_by_role("button", name="Download only").click()
            expect(card.locator(".note")).to_contain_text("gone.gguf")


def test_a_new_chat_begins_with_the_model_chosen_last(page: Page) -> None:
    use_model(page, "Slow echo")
    page.reload()
    expect(page.locator("#rc-model-name")).to_have_text("Slow echo")


def test_the_model_the_server_was_started_with_wins_over_an_older_choice(
    tmp_path: Path, visiting: Visiting
) -> None:
    folder = write_models(tmp_path)
    with serving(folder, model="markdown") as server, visiting(server.url) as visit:
        older = '{"model": "slow", "over": "echo"}'
        visit.page.evaluate("(value) => localStorage.setItem('rallychat.model', value)", older)
        visit.page.reload()
        expect(visit.page.locator("#rc-model-name")).to_have_text("Markdown echo")


def test_a_model_that_left_the_catalog_is_forgotten(page: Page) -> None:
    gone = '{"model": "gone", "over": "echo"}'
    page.evaluate("(value) => localStorage.setItem('rallychat.model', value)", gone)
    page.reload()
    expect(page.locator("#rc-model-name")).to_have_text("Echo")
    say(page, "still works")
    answered(page)


def test_a_first_message_says_that_the_model_is_still_on_its_way(
    tmp_path: Path, visiting: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_models(tmp_path)
    (folder / "catalog" / "models" / "tiny.toml").write_text(TINY)
    with HubServer() as hub:
        hub.held = True
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with serving(folder, model="tiny") as server:
            server.loop.call_soon_threadsafe(server.service.prepare)  # as the server does at its start
            with visiting(server.url) as visit:
                expect(visit.page.locator(".readiness")).to_contain_text("Downloading Tiny")
                say(visit.page, "hello")
                expect(visit.page.locator(".live-status")).to_contain_text(
                    re.compile(r"Downloading Tiny, \d\d%")
                )
                hub.release()
                expect(visit.page.locator(".notice.failed")).to_be_visible()


def test_the_menu_is_searched_and_back_leads_from_a_model_to_the_menu_to_the_chat(page: Page) -> None:
    page.get_by_title("Choose a model").click()
    menu = page.locator("#rc-menu")
    expect(menu.get_by_role("heading", name="Small below 1B parameters")).to_be_visible()
    page.get_by_label("Search models").fill("SMOLLM2 apache 360")
    expect(menu.get_by_role("article")).to_have_count(1)
    expect(page.get_by_text("1 model ·")).to_be_visible()
    page.get_by_role("link", name="SmolLM2 360M Instruct", exact=True).click()
    expect(page.get_by_role("heading", name="SmolLM2 360M Instruct")).to_be_visible()
    expect(page.locator("#rc-review")).to_contain_text("8,192 tokens")
    page.go_back()
    expect(menu.get_by_role("article")).to_have_count(1)
    page.get_by_label("Search models").fill("no such thing")
    page.get_by_role("button", name="Show all").click()
    expect(menu.get_by_role("article").nth(5)).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Your serve.")).to_be_visible()
    expect(page.locator("#rc-models")).to_be_hidden()


@pytest.mark.parametrize(("link", "name"), [("no/such%20model", "no/such model"), ("%zz", "%zz")])
def test_a_link_to_a_model_that_is_not_there_says_so(
    served: Served, visiting: Visiting, link: str, name: str
) -> None:
    with visiting(f"{served.url}/#models/{link}") as visit:
        expect(visit.page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
        expect(visit.page.locator(".toast.error")).to_have_text(f"There is no model '{name}' here.")
        expect(visit.page).to_have_url(f"{served.url}/#models")


def test_what_is_chosen_for_a_model_is_kept_and_a_wrong_value_is_named(
    tmp_path: Path, visiting: Visiting
) -> None:
    with serving(write_models(tmp_path)) as server, visiting(f"{server.url}/#models/slow") as visit:
        page = visit.page
        answers = page.get_by_role("group", name="Generation: answers")
        answers.get_by_label("Temperature").fill("9")
        answers.get_by_label("Temperature").press("Tab")
        expect(page.locator("#rc-choice-error")).to_have_text("Temperature is a number from 0 to 5.")
        answers.get_by_label("Temperature").fill("0.3")
        answers.get_by_label("Temperature").press("Tab")
        expect(page.locator("#rc-choice-saved")).to_have_text("Kept.")
        answers.get_by_text("As a generation config").click()
        yaml = answers.get_by_label("Generation config for answers")
        expect(yaml).to_have_value(re.compile(r"temperature: 0\.3"))
        yaml.fill("generation_config:\n    topp: 1\n")
        answers.get_by_role("button", name="Apply").click()
        expect(answers.locator(".field-error")).to_contain_text("line 2: 'topp'")
        yaml.fill("generation_config:\n    max_new_tokens: 3\n")
        answers.get_by_role("button", name="Apply").click()
        expect(answers.get_by_label("Max tokens")).to_have_value("3")
        page.get_by_role("region", name="State").get_by_role("button", name="Use").click()
        expect(page.locator("#rc-models")).to_be_hidden()
        say(page, "one two three four five six")
        answered(page)
        expect(page.locator(".notice")).to_contain_text("Token limit reached.")


def test_a_choice_that_is_kept_late_does_not_fill_the_page_of_another_model(
    tmp_path: Path, visiting: Visiting
) -> None:
    held: list[Route] = []
    with serving(write_models(tmp_path)) as server, visiting(f"{server.url}/#models/slow") as visit:
        page = visit.page
        page.route("**/ui/models/choice", lambda route: route.continue_() if held else held.append(route))
        answers = page.get_by_role("group", name="Generation: answers")
        answers.get_by_label("Temperature").fill("0.3")
        with page.expect_request("**/ui/models/choice"):
            answers.get_by_label("Temperature").press("Tab")
        page.evaluate("location.hash = '#models/heavy'")
        expect(page.get_by_role("heading", name="Heavy echo", exact=True)).to_be_visible()
        with page.expect_response("**/ui/models/choice"):
            held[0].continue_()
        answers.get_by_label("Top k").fill("5")
        answers.get_by_label("Top k").press("Tab")
        expect(page.locator("#rc-choice-saved")).to_have_text("Kept.")
        expect(answers.get_by_label("Temperature")).to_have_value("")
