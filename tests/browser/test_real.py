from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visiting, answered, say, serving

pytestmark = [pytest.mark.browser, pytest.mark.real]


def test_a_real_model_answers_and_reuses_its_prompt(
    tmp_path: Path, visiting: Visiting, smollm2_gguf: Path
) -> None:
    with serving(tmp_path, model=str(smollm2_gguf)) as server, visiting(server.url) as visit:
        page = visit.page
        page.get_by_title("Settings and context").click()
        page.get_by_label("Max tokens").fill("48")
        say(page, "Name three colours.")
        answered(page, seconds=300)
        expect(page.locator(".answer")).not_to_be_empty()
        say(page, "And three animals.")
        answered(page, 2, seconds=300)
        page.get_by_role("tab", name="Context").click()
        expect(page.locator(".entry mark").first).to_have_text("<|im_start|>")
        reused, anew = (page.locator(f".track.reuse .{kind}") for kind in ("reused", "evaluated"))
        assert float(reused.get_attribute("width") or 0) > float(anew.get_attribute("width") or 100)
