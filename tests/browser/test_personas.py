from __future__ import annotations

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PHONE, Served, Visiting, answered, lose_a_reply, say

pytestmark = pytest.mark.browser


def test_a_persona_is_written_chosen_and_is_who_answers_in_the_new_chat(page: Page, served: Served) -> None:
    page.get_by_role("button", name="New persona").click()
    dialog = page.locator("#rc-persona")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_have_text("A persona needs a name.")
    dialog.get_by_label("Name").fill("Editor <b>")
    dialog.get_by_label("System prompt").fill("You mend texts.")
    dialog.get_by_label("Model").select_option(label="Slow echo")
    dialog.get_by_text("Generation").click()
    dialog.get_by_label("Top k").fill("-3")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_have_text("Top k is a whole number from 0 to 100000.")
    dialog.get_by_label("Top k").fill("7")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("button", name="Editor <b>", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )
    expect(page.locator("#rc-model-name")).to_have_text("Slow echo")
    say(page, "Hello")
    answered(page)
    begun = served.do(served.service.store.get(page.url.partition("?c=")[2]))
    assert (begun.system, begun.model, begun.sampling.top_k) == ("You mend texts.", "slow", 7)
    page.get_by_role("button", name="New chat").first.click()
    page.get_by_role("button", name="Edit Editor <b>").click()
    dialog.get_by_role("button", name="Delete").click()
    page.locator("#rc-confirm").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("button", name="New persona")).to_have_text("New persona")
    assert served.do(served.service.store.personas.list()) == []


def test_a_persona_whose_reply_was_lost_is_kept_once(page: Page, served: Served) -> None:
    page.get_by_role("button", name="New persona").click()
    dialog = page.locator("#rc-persona")
    dialog.get_by_label("Name").fill("Kept once")
    lose_a_reply(page, "**/v1/personas")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The server does not answer.")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("button", name="Kept once", exact=True)).to_have_count(1)
    (only,) = served.do(served.service.store.personas.list())
    served.do(served.service.store.personas.delete(only.id))


def test_a_list_of_models_that_comes_late_leaves_a_persona_its_model(page: Page, served: Served) -> None:
    persona = served.do(served.service.store.personas.create(name="Slow one", system="", model="slow"))
    page.get_by_role("button", name="New chat").first.click()
    held: list[Route] = []
    page.route("**/ui/models", lambda route: route.continue_() if held else held.append(route))
    with page.expect_request("**/ui/models"):
        page.get_by_role("button", name="New chat").first.click()
    page.get_by_role("button", name="Slow one", exact=True).click()
    expect(page.locator("#rc-model-name")).to_have_text("Slow echo")
    with page.expect_response("**/ui/models"):
        held[0].continue_()
    with page.expect_request("**/ui/turns") as said:
        say(page, "Hello")
    assert (said.value.post_data_json or {}).get("model") == "slow"
    served.do(served.service.store.personas.delete(persona.id))


def test_on_a_phone_a_new_persona_is_never_behind_the_others(served: Served, visiting: Visiting) -> None:
    personas = served.service.store.personas
    made = [served.do(personas.create(name=f"Persona number {n}", system="")) for n in range(6)]
    with visiting(served.url, **PHONE) as visit:
        expect(visit.page.locator(".persona-chip")).to_have_count(6)
        new = visit.page.get_by_role("button", name="New persona")
        expect(new).to_be_in_viewport(ratio=1)
        new.tap()
        expect(visit.page.locator("#rc-persona")).to_be_visible()
    for persona in made:
        served.do(personas.delete(persona.id))
