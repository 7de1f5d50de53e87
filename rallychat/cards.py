"""What a person is shown of models and prompts: values made from what the service knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rallychat.catalog import Model
from rallychat.catalog.sizing import needed_memory
from rallychat.context import log as token_log
from rallychat.messages import ContextReport, Message, Timings, Usage
from rallychat.pool import Pool
from rallychat.prompts import PromptTemplate
from rallychat.settings import Settings
from rallychat.sources import Downloads, Progress, is_here
from rallychat.store import Memory, StoredMessage

ModelState = Literal["absent", "downloading", "ready", "loading", "loaded", "unavailable"]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model of the menu. `memory` is in bytes; `note` says why it is unavailable."""

    model: Model
    state: ModelState
    progress: Progress | None
    memory: int | None
    note: str


@dataclass(frozen=True, slots=True)
class InspectedEntry:
    """One message of the prompt: its exact text, and its token ids where they are known."""

    message_id: str | None
    role: str
    text: str
    ids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the model saw for the newest answer, the answer included."""

    model: Model
    entries: tuple[InspectedEntry, ...]
    report: ContextReport | None
    usage: Usage | None
    timings: Timings | None

    @property
    def text(self) -> str:
        """The exact prompt text, followed by the answer."""
        return "".join(entry.text for entry in self.entries)

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids that are known, in order."""
        return tuple(token for entry in self.entries for token in entry.ids or ())


def card(model: Model, settings: Settings, pool: Pool, downloads: Downloads) -> ModelCard:
    """A model with its state now."""
    progress = downloads.progress(model.id)
    engine = pool.find(model.engine_id)
    note = pool.error(model.engine_id)
    state: ModelState
    if progress is not None:
        state = "downloading"
    elif engine is not None:
        state = "loaded" if engine.state == "loaded" else "loading"
    elif note:
        state = "unavailable"
    else:
        state = "ready" if is_here(model, settings) else "absent"
    return ModelCard(model, state, progress, needed_memory(model, settings), note)


def inspection(
    model: Model,
    system: str,
    path: Sequence[StoredMessage],
    template: PromptTemplate,
    memories: Sequence[Memory] = (),
) -> Inspection:
    """The newest prompt of a branch, as its report says it was made."""
    newest = next((row for row in reversed(path) if row.role == "assistant"), None)
    report = newest.report if newest else None
    if not path:
        head = (
            template.render([Message.of("system", system)], add_generation_prompt=False) if system else None
        )
        entries = (InspectedEntry(None, "system", head.text, None),) if head else ()
        return Inspection(model, entries, None, None, None)
    out = {*report.dropped, *report.compacted, *report.excluded} if report else set()
    quoted = ("retrieved", "elsewhere")
    stands = {each.message_id for each in report.segments if each.kind not in quoted} if report else set()
    kept = [row for row in path if row.id not in out or row.id in stands]
    memory = next((m for m in memories if report and m.version == report.memory), None)
    key = next((row.span.key for row in reversed(kept) if row.span), "")
    logged = token_log.entries(
        kept,
        system=system,
        memory=memory.text if memory else "",
        template=template,
        base=key.partition(":")[0],
        blank=report.excluded if report else (),
    )
    return Inspection(
        model,
        tuple(InspectedEntry(e.message_id, e.kind, "".join(p.text for p in e.pieces), e.ids) for e in logged),
        report,
        newest.usage if newest else None,
        newest.timings if newest else None,
    )
