"""What a line of a batch asks, and how its outcome is written: our own short lines, and OpenAI's batch lines.

A line is answered as its route would answer it, but for the priority: people go first.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rallychat import errors, responding
from rallychat.api import chat_completions, completions
from rallychat.api.chunks import Answer, usage_of
from rallychat.api.delivery import gathered
from rallychat.api.errors import CUT_OFF, Problem, Refusal, problem_of
from rallychat.api.responses import unstored
from rallychat.api.responses.requests import ResponseRequest
from rallychat.api.schemas import ChatCompletionRequest, CompletionRequest
from rallychat.api.validation import first_problem
from rallychat.batches import Line, Outcome
from rallychat.chat import ChatService
from rallychat.pool import Priority
from rallychat.shelf import model_to_use

TRIES: Final = 1
"""How often a line is asked again, by itself, whose engine died under it: it may have died of another one."""

Asked = ChatCompletionRequest | CompletionRequest | ResponseRequest
_M = TypeVar("_M", bound=BaseModel)


class _OpenAILine(BaseModel):
    """A line of OpenAI's batch files."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    custom_id: str = Field(max_length=512)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    body: dict[str, Any]


class Ward:
    """Lines are answered beside each other; one whose engine died under it is asked again while no other is.

    So an engine that dies then has died of this line, and nobody else's line is taken for the culprit.
    """

    def __init__(self) -> None:
        self._beside = 0
        self._suspects = 0
        self._alone = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Beside the others, or alone."""
        self._suspects += alone
        try:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: not (self._busy if alone else self._suspects or self._alone)
                )
                self._alone, self._beside = alone, self._beside + 1
            try:
                yield
            finally:
                self._alone, self._beside = False, self._beside - 1
        finally:
            self._suspects -= alone
            async with self._changed:
                self._changed.notify_all()

    @property
    def _busy(self) -> bool:
        return self._beside > 0


class BatchLines:
    """Answers lines with a service.

    Args:
        ward: shared by those whose lines are answered by the same engine.
        model: answers every line, whatever model it names; None: the one it names, or the default.
        longest: bytes of a line that is longer than are read, for its error.
    """

    def __init__(
        self, service: ChatService, *, model: str | None = None, longest: int, ward: Ward | None = None
    ) -> None:
        self._service = service
        self._ward = ward or Ward()
        self._model = model
        self._longest = longest

    async def answer(self, line: Line) -> Outcome:
        """A line's outcome. What is wrong with the line itself is its outcome, too.

        Raises:
            RallyChatError: it is not the line's fault: the model cannot be had, or its engine not be started.
        """
        shape = _Shape(line.number)
        try:
            value = self._parsed(line)
            shape = _Shape.of(line.number, value)
            asked = _openai_asked(value) if shape.openai else _short_asked(value)
            if asked.stream:
                raise _refusal("'stream' is not possible: a batch has whole answers.", "unsupported_value")
            if asked.timeout is not None:
                said = "'timeout' is not possible: a batch waits for its turn."
                raise _refusal(said, "unsupported_value", param="timeout")
            return await self._answered(asked, shape)
        except Refusal as refusal:
            return shape.failed(refusal.problem)

    def _parsed(self, line: Line) -> dict[str, Any]:
        if line.text is None:
            raise _refusal(f"The line is longer than {self._longest} bytes.", "request_too_large", 413)
        try:
            value = orjson.loads(line.text)
        except orjson.JSONDecodeError as exc:
            raise _refusal(f"The line is not valid JSON: {exc}.", "invalid_json") from exc
        if not isinstance(value, dict):
            raise _refusal("The line must be a JSON object.", "invalid_body")
        return value

    async def _answered(self, asked: Asked, shape: _Shape) -> Outcome:
        """The outcome of what was asked; asked again while people fill the queue. Raises Refusal."""
        deaths = 0
        while True:
            try:
                async with self._ward.entered(alone=deaths > 0):
                    return await self._once(asked, shape)
            except Refusal as refusal:
                problem = refusal.problem
                if problem.code in FATAL:
                    raise errors.EngineUnavailable(problem.message) from refusal
                deaths += problem.code == errors.EngineInterrupted.code
                if problem.code not in _AGAIN or deaths > TRIES:
                    raise
                await asyncio.sleep(problem.retry_after or 0)
            except (errors.Stopping, errors.NotHere):
                raise
            except errors.RallyChatError as exc:  # refused at the door
                raise Refusal(problem_of(exc)) from exc

    async def _once(self, asked: Asked, shape: _Shape) -> Outcome:
        service, model = self._service, self._model
        if isinstance(asked, ChatCompletionRequest):
            events, chat = chat_completions.begin(service, asked, model=model, priority=Priority.BATCH)
            answer = await gathered(events, chat.prompt)
            return shape.answered(answer, chat.whole(answer), context=asked.strategy is not None)
        if isinstance(asked, ResponseRequest):
            return await self._response(asked, shape)
        events, text = completions.begin(service, asked, model=model, priority=Priority.BATCH)
        answer = await gathered(events, text.prompt)
        return shape.answered(answer, text.whole(answer))

    async def _response(self, asked: ResponseRequest, shape: _Shape) -> Outcome:
        service = self._service
        at = await responding.place(
            service, conversation=asked.conversation_id, previous=asked.previous_response_id
        )
        model = model_to_use(service, self._model or asked.model or at.model)
        events = await responding.unstored(
            service,
            at,
            asked.messages(),
            model=model,
            sampling=asked.sampling(),
            instructions=asked.instructions,
            priority=Priority.BATCH,
        )
        answer = await gathered(events, "input")
        used = at.sampling(service, model, asked.sampling())
        return shape.answered(answer, unstored.whole(unstored.blank(asked.echo(used), model.id), answer))


def _codes(kind: type[errors.RallyChatError]) -> set[str]:
    return {kind.code}.union(*(_codes(below) for below in kind.__subclasses__()))


FATAL: Final = frozenset(
    _codes(errors.SourceError)
    | {errors.EngineUnavailable.code, errors.SettingsError.code, errors.StoreError.code, CUT_OFF.code}
)
"""Failures that every line would meet: they end the batch, which can be resumed."""
_AGAIN: Final = frozenset({errors.EngineInterrupted.code, errors.Busy.code})


class _Shape:
    """How the outcome of a line is written: `name` is what the line calls itself."""

    def __init__(self, number: int, *, openai: bool = False, name: Any = None) -> None:
        self.openai = openai
        self._number = number
        self._name = name

    @classmethod
    def of(cls, number: int, value: dict[str, Any]) -> _Shape:
        if value.keys() & {"custom_id", "method", "url", "body"}:
            return cls(number, openai=True, name=value.get("custom_id"))
        return cls(number, name=value.get("id"))

    def answered(self, answer: Answer, body: Any, *, context: bool = False) -> Outcome:
        """`context`: a short line's outcome has what its prompt was made of, too."""
        usage = answer.finished.usage
        if self.openai:
            return Outcome(self._openai(200, body), tokens=usage.completion_tokens)
        said = {"text": answer.text} | ({"reasoning": answer.reasoning} if answer.reasoning else {})
        cost = {"finish_reason": answer.finished.reason, "model": body["model"], "usage": usage_of(usage)}
        made = {"context": body["context"]} if context and "context" in body else {}
        return Outcome(orjson.dumps(self._short | said | cost | made), tokens=usage.completion_tokens)

    def failed(self, problem: Problem) -> Outcome:
        text = orjson.dumps(self._short | problem.body())
        return Outcome(self._openai(problem.status, problem.body()) if self.openai else text, ok=False)

    @property
    def _short(self) -> dict[str, Any]:
        return {"line": self._number} | ({"id": self._name} if self._name is not None else {})

    def _openai(self, status: int, body: Any) -> bytes:
        response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
        name = f"batch_req_{uuid.uuid4().hex}"
        return orjson.dumps({"id": name, "custom_id": self._name, "response": response, "error": None})


def _openai_asked(value: dict[str, Any]) -> Asked:
    line = _checked(_OpenAILine, value)
    if line.url == "/v1/completions":
        return _checked(CompletionRequest, line.body)
    if line.url == "/v1/responses":
        if line.body.get("store"):
            said = "'store' is not possible: a batch's responses are in its output file."
            raise _refusal(said, "unsupported_value", param="store")
        return _checked(ResponseRequest, line.body | {"store": False})
    return _checked(ChatCompletionRequest, line.body)


def _short_asked(value: dict[str, Any]) -> Asked:
    """A line with `messages`, or with one `prompt` and perhaps a `system` prompt; and a chat request's other fields."""
    asked = {key: field for key, field in value.items() if key != "id"}
    if "messages" not in asked:
        if "prompt" not in asked:
            raise _refusal("The line has neither 'prompt' nor 'messages'.", "missing_required_parameter")
        said = [("user", asked.pop("prompt"))]
        if (system := asked.pop("system", None)) is not None:
            said.insert(0, ("system", system))
        for name, (role, text) in zip(("prompt", "system"), reversed(said), strict=False):
            if not isinstance(text, str) or (role == "user" and not text.strip()):
                raise _refusal(f"'{name}' must be a text that is not empty.", "invalid_value", param=name)
        asked["messages"] = [{"role": role, "content": text} for role, text in said]
    return _checked(ChatCompletionRequest, asked)


def _checked(kind: type[_M], value: dict[str, Any]) -> _M:
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        found = [{**error, "loc": ("body", *error["loc"])} for error in exc.errors()]
        message, code, param = first_problem(found)
        said = message.replace("is not a parameter of this route", "is not known in such a line")
        raise Refusal(Problem(400, said, code, param)) from exc


def _refusal(message: str, code: str, status: int = 400, *, param: str | None = None) -> Refusal:
    return Refusal(Problem(status, message, code, param))
