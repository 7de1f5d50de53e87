"""Conversations as files: written as JSON or Markdown, read from ours, ChatGPT's and Open WebUI's exports."""

from __future__ import annotations

from rallychat.transfer.exporting import as_json, as_markdown, document, everything
from rallychat.transfer.importing import Report, import_file

__all__ = ["Report", "as_json", "as_markdown", "document", "everything", "import_file"]
