"""Turns messages into the exact prompt text of a family. Knows chat templates; never sees engines or rows."""

from __future__ import annotations

from rallychat.prompts.chunks import Chunk, Rendered
from rallychat.prompts.sandbox import MAX_LOOP, MAX_OUTPUT
from rallychat.prompts.template import PromptTemplate

__all__ = ["MAX_LOOP", "MAX_OUTPUT", "Chunk", "PromptTemplate", "Rendered"]
