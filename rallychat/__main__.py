"""`python -m rallychat` is the `rallychat` command."""

from __future__ import annotations

from rallychat.cli import main

if __name__ == "__main__":
    main()
