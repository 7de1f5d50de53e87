"""The same weights through two engines: llama.cpp from their GGUF file, Transformers from a checkpoint made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.rig import real_spec, rig_of, transformers_spec

QUESTIONS = ("What is the capital of France?", "Name the days of the week.", "What is two plus two?")
FIRST = 8
"""Tokens that must agree. llama.cpp rounds activations to 8 bits where its weights are of 4, so later ones may not."""


@pytest.mark.real
@pytest.mark.hf
async def test_smollm2_begins_its_answers_alike_in_llama_cpp_and_in_transformers(
    smollm2_gguf: Path, smollm2_checkpoint: Path
) -> None:
    with (
        rig_of(real_spec(smollm2_gguf)) as one,
        rig_of(transformers_spec(smollm2_checkpoint)) as other,
    ):
        for question in QUESTIONS:
            prompt = await one.chat(question)
            assert await other.chat(question) == prompt
            found = [await rig.answer(prompt, max_tokens=FIRST) for rig in (one, other)]
            assert found[0].text == found[1].text
