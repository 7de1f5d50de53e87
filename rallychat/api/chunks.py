"""The bytes of a stream and of a whole answer. One chunk costs one string's JSON and two concatenations."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from rallychat.messages import ContextReport, Finished, ReasoningDelta, TextDelta, Usage

DONE = b"data: [DONE]\n\n"


class Chunks(Protocol):
    """How one route writes its stream."""

    prompt: str
    """The field that holds the prompt."""

    def opening(self) -> bytes:
        """What comes before the first delta."""

    def delta(self, event: TextDelta | ReasoningDelta) -> bytes:
        """More of the answer."""

    def closing(self, finished: Finished) -> bytes:
        """Why it ended, what it cost if asked for, and the end mark."""

    def whole(self, answer: Answer) -> Mapping[str, Any]:
        """The answer as one object."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, for those who do not stream."""

    text: str
    reasoning: str
    finished: Finished


def usage_of(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def context_of(report: ContextReport) -> dict[str, Any]:
    """Our extension: what of the messages went into the prompt, and what did not, and why."""
    return {
        "strategy": report.strategy,
        "window": report.window,
        "budget": report.budget,
        "high_mark": report.high_mark,
        "budget_why": report.budget_why,
        "prompt_tokens": report.prompt_tokens,
        "reused_tokens": report.reused_tokens,
        "evaluated_tokens": report.evaluated_tokens,
        "segments": [
            {
                "kind": part.kind,
                "message": part.message_id,
                "tokens": part.tokens,
                "score": part.score,
                "by": part.by or None,
            }
            for part in report.segments
        ],
        "kept": report.kept,
        "compacted": report.compacted,
        "retrieved": report.retrieved,
        "elsewhere": report.elsewhere,
        "dropped": report.dropped,
        "left_tokens": _counted(report),
        "excluded": report.excluded,
        "pinned": report.pinned,
        "why": report.why,
        "diverged_at": report.diverged_at,
        "divergence": report.divergence,
        "memory": report.memory,
        "background_ms": report.background_ms,
    }


def _counted(report: ContextReport) -> dict[str, int]:
    """Tokens of what was left out, where they are known."""
    left = zip((*report.compacted, *report.dropped), report.left_tokens, strict=False)
    return {message: tokens for message, tokens in left if tokens}


def _reason(finished: Finished) -> str:
    assert finished.reason in ("stop", "length"), "an answer that is not complete is an error"
    return finished.reason


def _cost(head: bytes, finished: Finished) -> bytes:
    return head + orjson.dumps(usage_of(finished.usage)) + b"}\n\n"


class ChatAnswer:
    """Writes `chat.completion` objects and their chunks; all of one answer share id, time and model.

    Args:
        usage: a stream ends with a chunk that has usage and context, and no choices.
        context: a stream without that has the context in its last chunk.
    """

    prompt = "messages"

    def __init__(self, model: str, *, usage: bool = False, context: bool = False) -> None:
        self._facts = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._usage = usage
        self._context = context
        head = orjson.dumps({"object": "chat.completion.chunk", **self._facts})[:-1]
        self._head = b"data: " + head + b',"choices":[{"index":0,"delta":{'
        end = b',"usage":null}\n\n' if usage else b"}\n\n"
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + end
        self._text = self._head + b'"content":'
        self._reasoning = self._head + b'"reasoning_content":'
        self._end = end
        self._cost = b"data: " + head + b',"choices":[],"usage":'

    def opening(self) -> bytes:
        """The role, before any text."""
        return self._head + b'"role":"assistant","content":""' + self._tail

    def delta(self, event: TextDelta | ReasoningDelta) -> bytes:
        """More of the answer, or of the reasoning before it."""
        head = self._text if type(event) is TextDelta else self._reasoning
        return head + orjson.dumps(event.text) + self._tail

    def closing(self, finished: Finished) -> bytes:
        """The finish reason, the usage if asked for, the context beside one of them, and the end mark."""
        reason = orjson.dumps(_reason(finished))
        last = self._head + b'},"logprobs":null,"finish_reason":' + reason + b"}]"
        report = finished.report
        context = b"" if report is None else b',"context":' + orjson.dumps(context_of(report))
        if not self._usage:
            return last + (context if self._context else b"") + self._end + DONE
        return (
            last + self._end + self._cost + orjson.dumps(usage_of(finished.usage)) + context + b"}\n\n" + DONE
        )

    def whole(self, answer: Answer) -> Mapping[str, Any]:
        """The answer as one object."""
        report = answer.finished.report
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        reason = _reason(answer.finished)
        return {
            "object": "chat.completion",
            **self._facts,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
            "usage": usage_of(answer.finished.usage),
            **({} if report is None else {"context": context_of(report)}),
        }


class TextAnswer:
    """Writes `text_completion` objects and their chunks, which OpenAI gives the same name."""

    prompt = "prompt"

    def __init__(self, model: str, *, usage: bool = False) -> None:
        self._facts = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._usage = usage
        head = b"data: " + orjson.dumps({"object": "text_completion", **self._facts})[:-1]
        end = b',"usage":null}\n\n' if usage else b"}\n\n"
        self._text = head + b',"choices":[{"index":0,"text":'
        self._tail = b',"logprobs":null,"finish_reason":null}]' + end
        self._end = end
        self._cost = head + b',"choices":[],"usage":'

    def opening(self) -> bytes:
        """Nothing: text completions have no role."""
        return b""

    def delta(self, event: TextDelta | ReasoningDelta) -> bytes:
        """More of the text; in a raw completion reasoning is text like any other."""
        return self._text + orjson.dumps(event.text) + self._tail

    def closing(self, finished: Finished) -> bytes:
        """The finish reason, the usage if asked for, and the end mark."""
        reason = orjson.dumps(_reason(finished))
        last = self._text + b'"","logprobs":null,"finish_reason":' + reason + b"}]" + self._end
        return last + (_cost(self._cost, finished) if self._usage else b"") + DONE

    def whole(self, answer: Answer) -> Mapping[str, Any]:
        """The answer as one object."""
        text, reason = answer.reasoning + answer.text, _reason(answer.finished)
        return {
            "object": "text_completion",
            **self._facts,
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}],
            "usage": usage_of(answer.finished.usage),
        }
