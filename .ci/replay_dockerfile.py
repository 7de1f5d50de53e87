#!/usr/bin/env python3
"""Does what the Dockerfile says without Docker: its RUN and COPY lines in a folder, then its command, not as root.

A machine that may run no containers can tell so whether the image would build and answer. Left out are FROM (the base
image is this machine's Python), `apt-get` and `useradd` (the user is `nobody`, if this one is root).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120


def steps(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [line.split(None, 1) for line in lines if line.strip() and not line.startswith("#")]
    return [(name.upper(), rest) for name, rest in found]


def main() -> int:
    """Its exit code is the server's."""
    folder = Path(tempfile.mkdtemp(prefix="rallychat-image-"))
    folder.chmod(0o755)
    try:
        return replay(folder, steps((ROOT / "Dockerfile").read_text()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replay(folder: Path, todo: list[tuple[str, str]]) -> int:  # noqa: C901 - a case an instruction
    """Every step below `folder`, then the command."""
    here = folder / "src"
    environment = dict(os.environ)
    command: dict[str, list[str]] = {}
    for name, rest in todo:
        at = moved(rest, folder)
        match name:
            case "WORKDIR":
                here = Path(at)
                here.mkdir(parents=True, exist_ok=True)
            case "RUN" if "useradd" in rest:
                (folder / "data").mkdir()
                if os.getuid() == 0:
                    shutil.chown(folder / "data", "nobody")
            case "RUN" if rest.startswith("apt-get"):
                say(f"left out: RUN {rest}")
            case "RUN":
                say(f"RUN {rest}")
                subprocess.run(at, shell=True, check=True, cwd=here, stdout=subprocess.DEVNULL)  # noqa: S602 - our own lines
            case "COPY" if not rest.startswith("--from="):
                *sources, target = shlex.split(rest)
                for source in sources:
                    copy(ROOT / source, here / target, several=target.endswith("/"))
            case "ENV":
                for pair in shlex.split(at):
                    key, _, value = pair.partition("=")
                    environment[key] = value.replace("$PATH", environment["PATH"])
            case "HEALTHCHECK":
                command["HEALTHCHECK"] = json.loads(rest.partition("CMD ")[2])
            case "ENTRYPOINT" | "CMD":
                command[name] = json.loads(rest)
            case _:
                pass
    return answers(folder, environment, command)


def moved(text: str, folder: Path) -> str:
    """The image's own paths, below the folder."""
    return re.sub(r"(?<![\w.])/(?=(src|opt/rallychat|data)\b)", f"{folder}/", text)


def copy(source: Path, target: Path, *, several: bool) -> None:
    """A file or a folder, as COPY does."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if several else target)


def answers(folder: Path, environment: dict[str, str], command: dict[str, list[str]]) -> int:
    """Starts the image's command with the scripted engine, asks its health check, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        environment["RALLYCHAT_PORT"] = str(probe.getsockname()[1])
    environment |= {"RALLYCHAT_MODEL": "echo", "RALLYCHAT_NO_AUTH": "true", "HOME": str(folder / "data")}
    user = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    program = shutil.which(command["ENTRYPOINT"][0], path=environment["PATH"])
    assert program is not None
    assert Path(program).is_relative_to(folder), f"{program} is not the image's"
    process = subprocess.Popen([program, *command["CMD"]], env=environment, cwd=folder / "data", **user)
    check = [shutil.which(command["HEALTHCHECK"][0], path=environment["PATH"]), *command["HEALTHCHECK"][1:]]
    try:
        until = time.monotonic() + PATIENCE
        while subprocess.run(check, env=environment, cwd="/", stderr=subprocess.DEVNULL, **user).returncode:
            if process.poll() is not None or time.monotonic() > until:
                say("The server did not become healthy.")
                return 1
            time.sleep(1)
        size = sum(path.stat().st_size for path in (folder / "opt").rglob("*") if path.is_file())
        say(
            f"It is healthy as user {user.get('user', os.getuid())}; what is beside Python takes {size >> 20} MB."
        )
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        say(f"It ended with {code}.")
        return code
    finally:
        process.kill()
        process.wait()


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
