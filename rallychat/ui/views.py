"""What the page says of messages and conversations: plain values, made from what the service gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal

from rallychat.messages import ENDED_EARLY, FinishReason
from rallychat.store import Conversation, StoredMessage

UNTITLED = "New chat"


@dataclass(frozen=True, slots=True)
class Notice:
    """Why an answer is not whole, and what a person can do about it."""

    kind: Literal["stopped", "limit", "failed"]
    title: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class MessageView:
    """One message as the page shows it. `run_id` is set while the answer grows in this server."""

    message: StoredMessage
    model_name: str
    siblings: Sequence[str] = ()
    run_id: str | None = None
    is_tip: bool = False

    @property
    def notice(self) -> Notice | None:
        """What went wrong, if anything did."""
        if self.message.role != "assistant" or self.run_id:
            return None
        if self.message.status == "running":
            return Notice("stopped", "Still being written", "by another RallyChat on this data folder.")
        return _notice(self.message.finish_reason, self.message.error)

    @property
    def can_continue(self) -> bool:
        """The answer ended early, and nothing was said after it."""
        ended_early = self.message.finish_reason in ENDED_EARLY
        return self.is_tip and ended_early and bool(self.message.text) and self.message.status == "complete"

    @property
    def cost(self) -> str:
        """Tokens and speed, for those who look."""
        usage, timings = self.message.usage, self.message.timings
        if usage is None or timings is None or not usage.completion_tokens:
            return ""
        said = f"{usage.completion_tokens:,} tokens"
        writing = timings.total_ms - timings.first_token_ms
        if writing > 0 and usage.completion_tokens > 1:
            said += f" · {(usage.completion_tokens - 1) / writing * 1000:,.0f} a second"
        return f"{said} · first after {seconds(timings.first_token_ms)}"

    @property
    def left_out(self) -> str:
        """What of the conversation this answer's prompt did not hold word by word; known of the newest one."""
        report = self.message.report
        if report is None or self.run_id:
            return ""
        said = []
        if report.compacted:
            said.append(f"{len(report.compacted)} older message{'s' * (len(report.compacted) > 1)} as memory")
        if report.dropped:
            said.append(f"{len(report.dropped)} left out")
        return ", ".join(said)


def _notice(reason: FinishReason | None, error: str | None) -> Notice | None:
    match reason:
        case "cancelled":
            return Notice("stopped", ENDED_EARLY[reason])
        case "length":
            return Notice("limit", ENDED_EARLY[reason], "The answer is longer than it was allowed to be.")
        case "interrupted":
            return Notice("failed", ENDED_EARLY[reason], error or "What had arrived is kept.")
        case "error":
            return Notice("failed", ENDED_EARLY[reason], error or "The server's log says why.")
        case _:
            return None


@dataclass(frozen=True, slots=True)
class ListedConversation:
    """One line of the list."""

    id: str
    title: str
    running: bool
    pinned: bool = False
    archived: bool = False
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Day:
    """Conversations of about the same age under one heading."""

    label: str
    items: list[ListedConversation]


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the list. `items` is None while it is closed; `older`: id to ask on from, if any are left."""

    name: str
    items: list[ListedConversation] | None = None
    older: str | None = None


def by_day(
    conversations: Sequence[Conversation], *, running: frozenset[str], utc_offset: int, now: datetime
) -> list[Day]:
    """Conversations in their order under "Today", "Yesterday", …, by the clock of the person.

    Args:
        utc_offset: minutes east of UTC.
    """
    clock = timezone(timedelta(minutes=utc_offset))
    today = now.astimezone(clock).date()
    days: list[Day] = []
    for conversation in conversations:
        label = _age((today - conversation.updated_at.astimezone(clock).date()).days)
        if not days or days[-1].label != label:
            days.append(Day(label, []))
        days[-1].items.append(line(conversation, running=running))
    return days


def line(conversation: Conversation, *, running: frozenset[str]) -> ListedConversation:
    """A conversation as the list shows it."""
    return ListedConversation(
        conversation.id,
        conversation.title or UNTITLED,
        conversation.id in running,
        conversation.pinned,
        conversation.archived,
        conversation.folder or "",
    )


def _age(days: int) -> str:
    if days <= 0:
        return "Today"
    if days == 1:
        return "Yesterday"
    if days <= 7:
        return "Last 7 days"
    return "Last 30 days" if days <= 30 else "Older"


def seconds(milliseconds: float) -> str:
    """A duration as a person reads it."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def size(count: int | None) -> str:
    """Bytes as a person reads them (decimal units), or a dash."""
    if count is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}" if count < 100 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"


def utc_now() -> datetime:
    """The present, aware."""
    return datetime.now(UTC)
