"""An answer as OpenAI's stream events, numbered. Pure: what was told goes in, events come out.

Every event follows from the deltas in their lengths and the response's end, so telling the same answer again,
from memory or from the store, gives the same events under the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from rallychat.api.responses.items import Status, name_of
from rallychat.messages import Part, Reasoning, ReasoningDelta, Text, TextDelta

Event = dict[str, Any]
_TERMINAL = {"completed": "response.completed", "failed": "response.failed"}


class Telling:
    """One response, told from its beginning.

    Args:
        response: the response object before its first word.
        message_id: the message its answer is.
        queued: it says that it waits, before it says that it is in progress.
    """

    def __init__(self, response: Event, message_id: str, *, queued: bool = False) -> None:
        self._response = response
        self._message_id = message_id
        self._queued = queued
        self._number = 0
        self._started = False
        self._kind: type[Part] | None = None
        self._texts: list[str] = []
        self._numbers = {Text: 0, Reasoning: 0}
        self._output_index = -1

    def opening(self) -> list[Event]:
        """What is told at once."""
        events = [self._event("response.created", response=self._response)]
        if self._queued:
            return [*events, self._event("response.queued", response=self._response)]
        return events + self.started()

    def started(self) -> list[Event]:
        """The answer is being made."""
        if self._started:
            return []
        self._started = True
        going = self._response | {"status": "in_progress", "queue": None}
        return [self._event("response.in_progress", response=going)]

    def delta(self, delta: TextDelta | ReasoningDelta) -> list[Event]:
        """More of it. An empty one holds a place, which names count."""
        kind: type[Part] = Text if type(delta) is TextDelta else Reasoning
        events = self.started()
        if not delta.text:
            self._numbers[kind] += 1
            return [*events, *self._close("completed")]
        if kind is not self._kind:
            events += [*self._close("completed"), *self._open(kind)]
        self._texts.append(delta.text)
        events.append(self._of_part(f"{_stem(kind)}.delta", delta=delta.text, **_logprobs(kind)))
        return events

    def closing(self, response: Event) -> list[Event]:
        """The end; `response` is how it stands now."""
        status: Status = "completed" if response["status"] == "completed" else "incomplete"
        events = [*self.started(), *self._close(status)]
        name = _TERMINAL.get(response["status"], "response.incomplete")
        return [*events, self._event(name, response=response)]

    def _open(self, kind: type[Part]) -> Iterator[Event]:
        self._kind = kind
        self._texts = []
        self._output_index += 1
        self._numbers[kind] += 1
        item = self._item("in_progress", [])
        yield self._event("response.output_item.added", output_index=self._output_index, item=item)
        yield self._of_part("response.content_part.added", part=_part(kind, ""))

    def _close(self, status: Status) -> Iterator[Event]:
        if (kind := self._kind) is None:
            return
        text = "".join(self._texts)
        yield self._of_part(f"{_stem(kind)}.done", text=text, **_logprobs(kind))
        yield self._of_part("response.content_part.done", part=_part(kind, text))
        item = self._item(status, [_part(kind, text)])
        yield self._event("response.output_item.done", output_index=self._output_index, item=item)
        self._kind = None

    @property
    def _name(self) -> str:
        assert self._kind is not None
        return name_of(self._message_id, self._kind, self._numbers[self._kind])

    def _item(self, status: Status, content: list[Event]) -> Event:
        facts: Event = {"id": self._name, "status": status, "content": content}
        if self._kind is Reasoning:
            return {"type": "reasoning", "summary": [], **facts}
        return {"type": "message", "role": "assistant", **facts}

    def _of_part(self, kind: str, **facts: Any) -> Event:
        where = {"item_id": self._name, "output_index": self._output_index, "content_index": 0}
        return self._event(kind, **where, **facts)

    def _event(self, kind: str, **facts: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **facts}
        self._number += 1
        return event


def frame(event: Event) -> bytes:
    """An event as it goes over the wire."""
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _stem(kind: type[Part]) -> str:
    return "response.output_text" if kind is Text else "response.reasoning_text"


def _logprobs(kind: type[Part]) -> Event:
    return {"logprobs": []} if kind is Text else {}


def _part(kind: type[Part], text: str) -> Event:
    if kind is Text:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}
