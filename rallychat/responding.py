"""Responses on top of conversations: where an answer hangs in the tree, and who may still watch it grow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rallychat.answering import FALLBACK
from rallychat.catalog import ANY, Model, Sampling
from rallychat.chat import ChatService
from rallychat.context.log import as_shown
from rallychat.context.selection import exchanges, excluded
from rallychat.errors import Conflict, InvalidRequest
from rallychat.messages import Event, Message
from rallychat.pool import Priority
from rallychat.runs import Run
from rallychat.store import Conversation, StoredMessage, StoredResponse
from rallychat.titles import first_title
from rallychat.turns import turns_of
from rallychat.unset import UNSET, Unset
from rallychat.wishes import AS_EVER, Wish


@dataclass(frozen=True, slots=True)
class Place:
    """Where a response hangs: `conversation` is None for a new one that stands in no list.

    `parent_id` is the answer it follows as a branch of its own; not given, the end of the conversation.
    """

    conversation: Conversation | None = None
    parent_id: str | Unset = UNSET
    model: str | None = None
    """The model of what it follows."""

    def sampling(self, service: ChatService, model: Model, asked: Sampling) -> Sampling:
        """What an answer here is made with where so much is asked."""
        usual = ANY if self.conversation is None else self.conversation.sampling
        return service.sampling(model, asked.over(usual)).over(FALLBACK)


async def place(service: ChatService, *, conversation: str | None, previous: str | None) -> Place:
    """Finds where a response will hang.

    Raises:
        NotFound: no such conversation or response. Conflict: it is still being answered.
    """
    if conversation is not None:
        found = await service.free_conversation(conversation, admitted=True)
        return Place(found, model=found.model)
    if previous is None:
        return Place()
    before = (await service.store.responses.get(previous)).answer
    if before.status == "running":
        raise Conflict(f"Response '{previous}' is still being made.", hint="wait for its end, or cancel it")
    return Place(await service.store.get(before.conversation_id), before.id, before.model)


async def respond(
    service: ChatService,
    at: Place,
    said: Sequence[Message],
    *,
    model: Model,
    sampling: Sampling,
    instructions: str | None,
    request: Mapping[str, Any],
    wish: Wish = AS_EVER,
    key: str | None = None,
    patience: float | None = None,
) -> tuple[StoredResponse, Run]:
    """Stores what was said, and begins the answer. It belongs to the server: nobody needs to watch it.

    Args:
        instructions: the system prompt of this answer alone, in place of the conversation's.
        request: what its response object repeats; `background` lets people go first.
        wish: how its context is kept, in place of the conversation's way.
        key: the idempotency key that leads to it.
        patience: seconds within which its turn must come.

    Raises:
        InvalidRequest: the wish names an item that is not there.
    """
    await service.admit()
    conversation = at.conversation
    await _known(service, at, pin=wish.pin, exclude=wish.exclude)
    title = "" if conversation is None or conversation.title else first_title(said)
    stored, conversation = await service.store.responses.begin(
        conversation.id if conversation else None,
        said=said,
        model=model.id,
        request=request,
        title=title,
        parent_id=at.parent_id,
        key=key,
    )
    wish = replace(wish, instructions=instructions)
    priority = Priority.PATIENT if request["background"] else Priority.CHAT
    run = await service.run_answer(
        wish.told(conversation),
        stored.answer,
        None,
        model,
        sampling,
        wish=wish,
        priority=priority,
        aside=at.parent_id is not UNSET and conversation.listed,
        patience=patience,
    )
    return stored, run


async def unstored(
    service: ChatService,
    at: Place,
    said: Sequence[Message],
    *,
    model: Model,
    sampling: Sampling,
    instructions: str | None,
    priority: Priority = Priority.CHAT,
    patience: float | None = None,
) -> AsyncGenerator[Event, None]:
    """The same, with nothing kept: closing it ends the answer. What does not fit the window is refused."""
    if at.conversation is not None:
        instructions = at.conversation.system if instructions is None else instructions
        sampling = sampling.over(at.conversation.sampling)
    messages = [*_shown(await _before(service, at)), *said]
    told = [instructions] if instructions else []
    while messages[0].role == "system":
        told.append(messages.pop(0).text)
    head = [Message.of("system", "\n\n".join(told))] if told else []
    return service.complete(
        [*head, *messages], model=model.id, sampling=sampling, priority=priority, patience=patience
    )


def _shown(before: Sequence[StoredMessage]) -> list[Message]:
    """The messages as a model sees them, without those that are excluded."""
    stay = {turn.id for group in exchanges(turns_of(before)) if not excluded(group) for turn in group}
    return [as_shown(row, "", blank=row.mark == "exclude") for row in before if row.id in stay]


async def _before(service: ChatService, at: Place) -> list[StoredMessage]:
    if at.conversation is None:
        return []
    end = at.conversation.tip_id if at.parent_id is UNSET else at.parent_id
    return await service.store.path(at.conversation.id, tip=end) if end else []


async def _known(service: ChatService, at: Place, **named: Sequence[str]) -> None:
    if not any(named.values()):
        return
    there = {row.id for row in await _before(service, at)}
    for param, ids in named.items():
        if beyond := [one for one in ids if one not in there]:
            raise InvalidRequest(
                f"'{param}' names '{beyond[0]}', which is no message before this one.", param=param
            )


async def current(service: ChatService, response_id: str) -> tuple[StoredResponse, Run | None]:
    """A response, and the run that makes it, if it is being made here.

    Raises:
        NotFound: there is none.
    """
    stored = await service.store.responses.get(response_id)
    if stored.answer.status != "running":
        return stored, None
    if (run := service.runs.of_message(stored.answer.id)) is not None:
        return stored, run
    await service.store.interrupt_orphans()  # it has just ended, or its process has died
    return await service.store.responses.get(response_id), None


async def followed(service: ChatService, response_id: str) -> tuple[StoredResponse, Run | None]:
    """As `current`; an answer that another process makes has a run too, which follows it.

    Raises:
        NotFound: there is none.
    """
    stored, run = await current(service, response_id)
    if run is None and stored.answer.status == "running":
        run = await service.follow(stored.answer.id)
        stored = await service.store.responses.get(response_id)
    return stored, run


async def forget(service: ChatService, response_id: str) -> None:
    """Deletes a response, ending it first."""
    _, run = await followed(service, response_id)
    if run is not None:
        await run.stop()
    await service.store.responses.delete(response_id)
