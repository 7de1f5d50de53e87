"""A compiled chat template: from messages to prompt text in pieces, and what can be known of the template itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, partial

from rallychat.catalog.types import MemoryPlace, ReasoningTags
from rallychat.errors import TemplateError
from rallychat.messages import Message
from rallychat.prompts import layout, sandbox
from rallychat.prompts.chunks import Chunk, Rendered, Splitter, chunks, private_characters, spans_of

_SYSTEM, _ASKED, _THOUGHT, _SAID, _ASKED_AGAIN = (
    "\U000f1001",
    "\U000f1002",
    "\U000f1003",
    "\U000f1004",
    "\U000f1005",
)
"""What a template is asked to render to find out what it does; no template knows these characters."""


class PromptTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source.
        bos_token, eos_token: texts given to the template under these names.
        control_tokens: texts that would tokenise to one control token; where a message contains them they
            become pieces that are not `special`, so they stay text.
        memory: where a memory of older turns stands, for templates that do not place it themselves.
        takes_system: the template has a system role; None: found out by asking it.
        reasoning: the tags its models think between.

    Raises:
        TemplateError: the source is not a valid template.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        control_tokens: Sequence[str] = (),
        memory: MemoryPlace | None = None,
        takes_system: bool | None = None,
        reasoning: ReasoningTags | None = None,
    ) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._control = tuple(sorted((t for t in set(control_tokens) if t), key=len, reverse=True))
        self._control_pattern = re.compile("|".join(map(re.escape, self._control)) or r"(?!)")
        self._place = memory or MemoryPlace()
        self._takes_system = takes_system
        self._reasoning = reasoning
        sandbox.compiled(source)

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, memory: str = ""
    ) -> Rendered:
        """The prompt of `messages` (at least one), ending with the header of the coming answer.

        Args:
            memory: what is remembered of older turns; it stands where the family says, always before the first
                message that is not the system prompt, as a chunk of its own.

        Raises:
            TemplateError: the template refuses these messages, or goes beyond its bounds.
        """
        if not messages:
            raise TemplateError("There are no messages to render.", param="messages")
        laid = layout.with_memory(
            messages,
            memory,
            self._place,
            takes_system=lambda: self.takes_system,
            has_variable=sandbox.uses(self.source, "memory"),
        )
        texts = [stretch.text for stretch in laid.stretches]
        private = private_characters(texts, 2 + len(self._control))
        begin, end = next(private), next(private)
        shields = dict(zip(self._control, private, strict=False))
        shielded = [self._control_pattern.sub(lambda m: shields[m.group()], text) for text in texts]

        text_of = partial(self._run, laid, add_generation_prompt=add_generation_prompt)
        plain = text_of(shielded)
        spans = spans_of(plain, shielded, text_of, begin, end) if self._continues else None
        split = Splitter({char: token for token, char in shields.items()}, self._control_pattern)
        if spans is None:
            whole = Chunk(len(messages) - 1, split.pieces(plain, 0, len(plain), ()))
            return Rendered((whole,), segmented=False)
        return Rendered(tuple(chunks(plain, laid.stretches, spans, split)), segmented=True)

    @cached_property
    def takes_system(self) -> bool:
        """The template writes a system prompt, once and before the first turn, however long the conversation is."""
        if self._takes_system is not None:
            return self._takes_system
        asked = [Message.of("system", _SYSTEM), *_turn(_ASKED, _SAID), Message.of("user", _ASKED_AGAIN)]
        try:
            text = self._plain(asked)
        except TemplateError:
            return False
        return text.count(_SYSTEM) == 1 and text.index(_SYSTEM) < text.find(_ASKED)

    @cached_property
    def rewrites_history(self) -> bool:
        """An answer is written differently once a new turn follows it than it was generated.

        Reasoning models' templates leave the thoughts of older answers out.
        """
        said = f"{_THOUGHT}{self._reasoning.close}{_SAID}" if self._reasoning else _SAID
        if self._reasoning and not self._reasoning.starts_open:
            said = self._reasoning.open + said
        try:
            prompt, later = self._turns(said)
        except TemplateError:
            return self._reasoning is not None  # it takes no thoughts in older answers
        return not (later.startswith(prompt) and later[len(prompt) :].lstrip().startswith(said))

    @cached_property
    def _continues(self) -> bool:
        """A prompt and the answer to it begin the next prompt, but for white space.

        Where a template writes more or less between them, parts of old prompts must not be put together.
        """
        if self._reasoning is not None:
            return True  # what stands between them is for the model to write
        try:
            prompt, later = self._turns(_SAID)
        except TemplateError:
            return True
        before, _, _ = later.partition(_SAID)
        return before.rstrip() == prompt.rstrip()

    def _turns(self, said: str) -> tuple[str, str]:
        """A first prompt, and the one after `said` was answered."""
        return self._plain([Message.of("user", _ASKED)]), self._plain(
            [*_turn(_ASKED, said), Message.of("user", _ASKED_AGAIN)]
        )

    def _plain(self, messages: Sequence[Message]) -> str:
        laid = layout.plain(messages)
        return self._run(laid, [stretch.text for stretch in laid.stretches])

    def _run(self, laid: layout.Layout, texts: Sequence[str], *, add_generation_prompt: bool = True) -> str:
        return sandbox.run(
            self.source, add_generation_prompt=add_generation_prompt, **laid.variables(texts), **self._tokens
        )


def _turn(asked: str, said: str) -> list[Message]:
    return [Message.of("user", asked), Message.of("assistant", said)]
