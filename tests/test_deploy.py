"""What the Dockerfile and the compose file name exists, and they keep what docs/deploy.md promises."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import yaml

from rallychat.settings import Settings

ROOT = Path(__file__).parent.parent
STEPS: list[tuple[str, str]] = runpy.run_path(str(ROOT / ".ci" / "replay_dockerfile.py"))["steps"](
    (ROOT / "Dockerfile").read_text()
)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def last_stage() -> list[tuple[str, str]]:
    start = max(at for at, (name, _) in enumerate(STEPS) if name == "FROM")
    return STEPS[start:]


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for name, rest in STEPS if name == "COPY" and not rest.startswith("--from=")]
    names = {name for each in copied for name in each}
    assert names == kept
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_image_is_no_roots_and_says_how_it_is() -> None:
    stage = dict(last_stage())
    made = next(rest for name, rest in last_stage() if "useradd" in rest)
    user, group = stage["USER"].split(":")  # numbers: a cluster can tell that they are not root's
    assert int(user) * int(group) > 0
    assert re.search(rf"groupadd .*--gid {group} .*useradd .*--uid {user} --gid {group} ", made)
    assert "healthz" in stage["HEALTHCHECK"]
    assert (json.loads(stage["ENTRYPOINT"]), json.loads(stage["CMD"])) == (["rallychat"], ["serve"])
    stages = re.findall(r"AS (\w+)", " ".join(rest for name, rest in STEPS if name == "FROM"))
    assert [rest.split()[0] for name, rest in STEPS if name == "COPY" and rest.startswith("--from=")] == [
        f"--from={name}" for name in stages
    ]


def test_every_package_comes_at_its_pinned_version() -> None:
    installs = [rest for name, rest in STEPS if name == "RUN" and "pip install" in rest]
    assert installs
    assert all("-c constraints.txt" in rest and "--only-binary :all:" in rest for rest in installs)


def test_the_image_has_whatever_a_setting_of_a_server_needs() -> None:
    installed = re.search(r"\.\[([\w,]+)\]", (ROOT / "Dockerfile").read_text())
    assert installed is not None
    assert set(installed[1].split(",")) == {"oidc", "otel", "postgres"}  # there is no pip in it to add one


def test_every_setting_of_image_and_compose_file_is_one() -> None:
    named = set(
        re.findall(r"RALLYCHAT_\w+", (ROOT / "Dockerfile").read_text() + (ROOT / "compose.yaml").read_text())
    )
    assert named <= {f"RALLYCHAT_{name.upper()}" for name in Settings.model_fields}


def test_the_services_wait_for_a_healthy_database_and_keep_their_data() -> None:
    ours, database = COMPOSE["services"]["rallychat"], COMPOSE["services"]["database"]
    assert ours["depends_on"]["database"]["condition"] == "service_healthy"
    assert "pg_isready" in database["healthcheck"]["test"]
    used = {volume.split(":")[0] for service in (ours, database) for volume in service["volumes"]}
    assert used == set(COMPOSE["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in ours["ports"])
    assert "password" not in (ROOT / "compose.yaml").read_text().lower().replace("postgres_password", "")


def test_the_container_may_do_no_more_than_it_must() -> None:
    ours = COMPOSE["services"]["rallychat"]
    assert (ours["read_only"], ours["cap_drop"], ours["tmpfs"]) == (True, ["ALL"], ["/tmp"])
    assert ours["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in ours


def test_a_server_that_is_stopped_has_longer_than_its_answers() -> None:
    ours = COMPOSE["services"]["rallychat"]
    grace = float(ours["environment"]["RALLYCHAT_SHUTDOWN_GRACE"])
    assert float(ours["stop_grace_period"].removesuffix("s")) > grace + 10
