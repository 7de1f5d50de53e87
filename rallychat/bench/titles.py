"""`rallychat bench titles`: what a model calls twenty conversations, beside what the rule calls them.

Each is one question and its answer, drawn with a seed so that it comes again; then the model is asked for a title as
it is in idle time. Whether a title is good is for whoever reads the table: it shows what the rule made, what the model
wrote, and what of that would be taken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rallychat.bench.folders import apart
from rallychat.catalog.types import Sampling
from rallychat.chat import ChatService
from rallychat.settings import Settings
from rallychat.texts import title_of
from rallychat.titles import TITLE_PROMPT, TITLE_TOKENS, checked_title

QUESTIONS: Final = (
    "How do I remove a red wine stain from a white cotton shirt?",
    "Write a haiku about autumn in Kyoto.",
    "I have chicken, rice and broccoli. What can I cook tonight?",
    "Explain the difference between TCP and UDP.",
    "Hi! Can you help me write a cover letter for a job as a nurse?",
    "What is the capital of Australia?",
    "My Python script says IndexError: list index out of range. What does that mean?",
    "Plan a three-day trip to Rome with a toddler.",
    "Translate 'good morning, how are you?' into French.",
    "Why do cats purr?",
    "Give me five names for a bakery.",
    "Summarise the plot of Romeo and Juliet.",
    "Should I buy or rent a flat in Berlin if I stay for four years?",
    "How many moons does Jupiter have, and which one is the largest?",
    "Write a SQL query that finds the ten customers with the highest revenue.",
    "I feel tired all the time. What could be the reason?",
    "What are the rules of table tennis doubles?",
    "Please proofread: 'Their going to the libary tomorow.'",
    "Tell me a joke about programmers.",
    "Wie funktioniert eine Wärmepumpe?",
)
ANSWER_TOKENS: Final = 80


async def run_titles(settings: Settings, *, questions: Sequence[str] = QUESTIONS) -> list[dict[str, str]]:
    """One row per question: `rule` (its title by rule), `written` (by the model), `taken` (of that; empty: none)."""
    with tempfile.TemporaryDirectory(prefix="rallychat-bench-") as made:
        async with ChatService.open(apart(settings, Path(made))) as service:
            return [await _named(service, question) for question in questions]


async def _named(service: ChatService, question: str) -> dict[str, str]:
    conversation = (await service.store.create()).id
    answer = await _said(service, conversation, question, Sampling(max_tokens=ANSWER_TOKENS, seed=1))
    asked = Sampling(temperature=0.0, max_tokens=TITLE_TOKENS)
    written = await _said(service, conversation, TITLE_PROMPT, asked)
    taken = checked_title(written, said=f"{question} {answer}")
    return {"rule": title_of(question), "written": " ".join(written.split()), "taken": taken}


async def _said(service: ChatService, conversation_id: str, text: str, sampling: Sampling) -> str:
    run = await service.turn(conversation_id, text, sampling=sampling)
    await run.wait()
    return run.text
