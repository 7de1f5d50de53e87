"""Models of the echo engine for one purpose, here and in tests: they need no weights and say what they are told to."""

from __future__ import annotations

from pathlib import Path


def scripted(
    data_dir: Path, name: str, options: str = "", *, window: int = 8192, family: str = "echo"
) -> None:
    """Adds a model to the catalog of a data folder, or replaces it.

    Args:
        options: lines of TOML, as `rallychat.engines.echo.EchoOptions` knows them.
        window: in tokens.
    """
    facts = (
        f'name = "{name.capitalize()}"',
        f'family = "{family}"',
        'engine = "echo"',
        'license = "Apache-2.0"',
        f"window = {window}",
        "[weights]",
        'kind = "none"',
        "[options]",
        options,
    )
    models = data_dir / "catalog" / "models"
    models.mkdir(parents=True, exist_ok=True)
    (models / f"{name}.toml").write_text("\n".join(facts) + "\n", encoding="utf-8")
