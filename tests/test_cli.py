"""The command line without a server: settings, models, render, errors."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest

import rallychat
from rallychat.cli import doctor, serve_command
from rallychat.cli.options import settings_from
from rallychat.errors import SettingsError
from rallychat.settings import Settings
from tests.cli_world import Person

BROKEN = """
name = "Broken"
family = "echo"
engine = "echo"
[weights]
kind = "none"
[options]
load_error = "the disk is made of cheese"
"""


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(tmp_path, monkeypatch, capsys)


def own_file(person: Person, **facts: str) -> Path:
    """A model whose weights are a file of the user's own."""
    weights = person.home / "mine.gguf"
    weights.write_bytes(b"GGUF")
    lines = [f'{key} = "{value}"' for key, value in facts.items()]
    person.adds_model("mine", "\n".join([
        'name = "Mine"', 'family = "chatml"', *lines, "[weights]", 'kind = "file"', f"path = '{weights}'",
    ]))  # fmt: skip
    return weights


# --- settings -----------------------------------------------------------------------------------------------


def test_without_anything_the_defaults_hold(person: Person) -> None:
    assert (settings_from().port, settings_from().host) == (7860, "127.0.0.1")


def test_the_file_wins_over_the_default(person: Person) -> None:
    Path("rallychat.toml").write_text("port = 1111\n")
    assert settings_from().port == 1111


def test_the_environment_wins_over_the_file(person: Person) -> None:
    Path("rallychat.toml").write_text("port = 1111\n")
    person.monkeypatch.setenv("RALLYCHAT_PORT", "2222")
    assert settings_from().port == 2222


def test_a_flag_wins_over_the_environment(person: Person) -> None:
    Path("rallychat.toml").write_text("port = 1111\n")
    person.monkeypatch.setenv("RALLYCHAT_PORT", "2222")
    assert settings_from(port=3333).port == 3333


def test_a_named_file_is_read_instead_of_the_one_here(person: Person) -> None:
    Path("rallychat.toml").write_text("port = 1111\n")
    Path("other.toml").write_text("port = 4444\n")
    person.monkeypatch.setenv("RALLYCHAT_CONFIG", "other.toml")
    assert settings_from().port == 4444


def test_a_flag_that_switches_off_still_lets_the_file_decide_when_not_given(person: Person) -> None:
    Path("rallychat.toml").write_text("open_browser = false\noffline = true\n")
    assert (settings_from(open_browser=None).open_browser, settings_from(offline=None).offline) == (
        False,
        True,
    )


def test_an_unknown_setting_is_refused_by_name(person: Person) -> None:
    Path("rallychat.toml").write_text("prot = 1111\n")
    with pytest.raises(SettingsError, match="'prot'"):
        settings_from()


def test_a_wrong_setting_is_one_sentence_and_exit_code_1(person: Person) -> None:
    person.monkeypatch.setenv("RALLYCHAT_SLOTS", "0")
    done = person.types("models", "list")
    assert (done.code, done.out) == (1, "")
    assert "Setting 'slots'" in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def served(person: Person) -> list[Settings]:
    """The settings that servers were started with; none really is."""
    found: list[Settings] = []

    async def serve(settings: Settings) -> int:
        found.append(settings)
        return 0

    person.monkeypatch.setattr("rallychat.cli.serve.serve", serve)
    return found


def test_without_a_command_it_serves_and_opens_the_page(person: Person, served: list[Settings]) -> None:
    assert person.types().code == 0
    assert [(each.host, each.port, each.open_browser, each.api_only) for each in served] == [
        ("127.0.0.1", 7860, True, False)
    ]


def test_every_flag_of_serve_is_a_setting(person: Person, served: list[Settings]) -> None:
    switches = ["--api-only", "--no-browser", "--no-auth", "--offline", "--multi-gpu", "--share"]
    switches += ["--force-download-ckpt", "--chat-only-mode", "--no-titles", "--no-sharing", "--elsewhere"]
    values = "--host ::1 --port 9 --data-dir elsewhere --slots 2 --window 512 --threads 3 --log-level debug"
    values += " --log-format json --shutdown-grace 2 --trash-days 0 --max-queue 0 --max-loaded 2"
    values += " --allowed-hosts one.example --allowed-hosts two.example --oidc-issuer https://id.example"
    values += " --trusted-proxies 10.0.0.0/8 --trusted-proxies ::1"
    values += " --gen-config-path a.yaml --gen-config-summarization-path b.yaml"
    assert person.types("serve", "echo", *values.split(), *switches).code == 0
    assert served[0].model_dump(exclude_defaults=True) == {
        "model": "echo", "host": "::1", "port": 9, "data_dir": Path("elsewhere"), "slots": 2, "window": 512,
        "threads": 3, "log_level": "debug", "log_format": "json", "shutdown_grace": 2,
        "api_only": True, "open_browser": False, "no_auth": True, "offline": True,
        "multi_gpu": True, "share": True, "force_download_ckpt": True, "chat_only_mode": True,
        "gen_config_path": Path("a.yaml"), "gen_config_summarization_path": Path("b.yaml"),
        "trash_days": 0, "max_queue": 0, "max_loaded": 2, "titles": False, "sharing": False, "elsewhere": True,
        "trusted_proxies": (ip_network("10.0.0.0/8"), ip_network("::1")),
        "allowed_hosts": ("one.example", "two.example"), "oidc_issuer": "https://id.example",
    }  # fmt: skip


def test_every_setting_has_a_flag_but_the_secrets() -> None:
    flags = set(inspect.signature(serve_command.serve).parameters) - {"context"}
    named = {serve_command.SWITCHES_OFF.get(flag, flag) for flag in flags}
    assert named == set(Settings.model_fields) - serve_command.NO_FLAG


@pytest.mark.parametrize("flag", ["--force-download-ckpt", "--force-download_ckpt"])
def test_downloading_again_can_be_spelled_both_ways(
    person: Person, served: list[Settings], flag: str
) -> None:
    assert person.types("serve", flag).code == 0
    assert served[0].force_download_ckpt


def test_local_files_only_is_offline(person: Person, served: list[Settings]) -> None:
    assert person.types("serve", "--local-files-only").code == 0
    assert served[0].offline


LLM_AS_CHATBOT = """
### for Alpaca 7B
BASE_URL=decapoda-research/llama-7b-hf
FINETUNED_CKPT_URL=tloen/alpaca-lora-7b
GEN_CONFIG=configs/gen_config_default.yaml
SUMMARIZE_GEN_CONFIG=configs/gen_config_summarization_default.yaml

rallychat serve --base-url $BASE_URL \\
  --ft-ckpt-url $FINETUNED_CKPT_URL \\
  --gen-config-path $GEN_CONFIG \\
  --gen-config-summarization-path $SUMMARIZE_GEN_CONFIG

unset FINETUNED_CKPT_URL
### for StableLM 7B
BASE_URL=stabilityai/stablelm-tuned-alpha-7b
GEN_CONFIG=configs/gen_config_stablelm.yaml
SUMMARIZE_GEN_CONFIG=configs/gen_config_summarization_stablelm.yaml

rallychat serve --base-url $BASE_URL \\
  --ft-ckpt-url $FINETUNED_CKPT_URL \\
  --gen-config-path $GEN_CONFIG \\
  --gen-config-summarization-path $SUMMARIZE_GEN_CONFIG
"""
"""The examples of LLM-As-Chatbot's README, with the program's name alone changed."""


def test_the_commands_of_llm_as_chatbot_are_understood(person: Person, served: list[Settings]) -> None:
    split = 'rallychat() { printf "%s\\0" "$@"; printf "\\n"; }'
    typed = subprocess.run(
        ["bash", "-c", f"{split}\n{LLM_AS_CHATBOT}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for line in typed:
        assert person.types(*line.rstrip("\0").split("\0")).code == 0
    assert [each.model_dump(exclude_defaults=True, exclude={"data_dir"}) for each in served] == [
        {
            "base_url": "decapoda-research/llama-7b-hf",
            "ft_ckpt_url": "tloen/alpaca-lora-7b",
            "gen_config_path": Path("configs/gen_config_default.yaml"),
            "gen_config_summarization_path": Path("configs/gen_config_summarization_default.yaml"),
        },
        {
            "base_url": "stabilityai/stablelm-tuned-alpha-7b",
            "gen_config_path": Path("configs/gen_config_stablelm.yaml"),
            "gen_config_summarization_path": Path("configs/gen_config_summarization_stablelm.yaml"),
        },
    ]


def test_a_flag_of_an_empty_variable_was_not_given(person: Person, served: list[Settings]) -> None:
    assert person.types("serve", "--base-url", "", "--ft-ckpt-url", "--gen-config-path").code == 0
    assert served[0].model_dump(exclude_defaults=True, exclude={"data_dir"}) == {}


def test_a_model_and_a_base_are_not_both_taken(person: Person, served: list[Settings]) -> None:
    done = person.types("serve", "echo", "--base-url", "owner/model")
    assert (done.code, served) == (2, [])
    assert "both say what to start with" in done.err


def test_flags_that_are_not_given_leave_the_file_in_force(person: Person, served: list[Settings]) -> None:
    Path("rallychat.toml").write_text(
        'api_only = true\nopen_browser = false\nno_auth = true\nmodel = "echo"\n'
    )
    person.types("serve")
    assert (served[0].api_only, served[0].open_browser, served[0].no_auth, served[0].model) == (
        True,
        False,
        True,
        "echo",
    )


# --- errors -------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_one_sentence_with_near_names(person: Person) -> None:
    done = person.types("models", "show", "smollm2-135m-instuct")
    assert done.code == 1
    sentence, hint = done.err.splitlines()
    assert sentence == "There is no model 'smollm2-135m-instuct'."
    assert hint.startswith("  did you mean 'smollm2-135m-instruct' or ")


def test_debug_shows_the_traceback(person: Person) -> None:
    with pytest.raises(rallychat.errors.NotFound):
        person.types("--debug", "models", "show", "nothing-like-it")


def test_a_mistake_of_ours_is_one_sentence_too(person: Person) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    person.monkeypatch.setattr("rallychat.cli.models.list_models", fail)
    done = person.types("models", "list")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("RallyChat failed: ZeroDivisionError: by zero\n")


@pytest.mark.parametrize(
    "args", [["sing"], ["serve", "--color"], ["serve", "--port", "70000"], ["render", "echo"]]
)
def test_a_mistake_in_the_command_line_ends_with_2(person: Person, args: list[str]) -> None:
    assert person.types(*args).code == 2


@pytest.mark.parametrize("args", [["--version"], ["version"]])
def test_the_version_is_printed_and_nothing_else(person: Person, args: list[str]) -> None:
    assert person.types(*args).out == f"{rallychat.__version__}\n"


# --- models -------------------------------------------------------------------------------------------------


def test_the_list_has_the_menu_with_what_is_here(person: Person) -> None:
    own_file(person, license="MIT", parameters="1B")
    listed = {row["id"]: row for row in json.loads(person.types("models", "list", "--json").out)}
    assert listed["mine"]["state"] == "ready"
    assert listed["smollm2-135m-instruct"]["state"] == "absent"
    assert listed["smollm2-135m-instruct"]["license"] == "Apache-2.0"
    assert "echo" not in listed


def test_the_whole_list_has_what_the_menu_hides(person: Person) -> None:
    assert "echo" in {row["id"] for row in json.loads(person.types("models", "list", "--all", "--json").out)}


def test_the_list_for_people_names_every_model_of_the_menu(person: Person) -> None:
    ids = {row["id"] for row in json.loads(person.types("models", "list", "--json").out)}
    out = person.types("models", "list").out
    assert {name for name in ids if name not in out} == set()


def test_one_model_is_shown_with_where_its_weights_are(person: Person) -> None:
    weights = own_file(person)
    shown = json.loads(person.types("models", "show", "Mine", "--json").out)
    assert (shown["id"], shown["path"], shown["state"]) == ("mine", str(weights), "ready")


def test_a_download_that_is_here_already_says_so(person: Person) -> None:
    own_file(person)
    done = person.types("models", "download", "mine")
    assert (done.code, done.out, done.err) == (0, "", "Mine is here already.\n")


def test_a_download_without_network_is_one_sentence(person: Person) -> None:
    person.monkeypatch.setenv("RALLYCHAT_OFFLINE", "1")
    done = person.types("models", "download", "smollm2-135m-instruct")
    assert (done.code, done.out) == (1, "")
    assert "offline" in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def downloaded(person: Person) -> Path:
    """Weights of a hub model, as a download leaves them."""
    person.adds_model(
        "small", 'name = "Small"\nfamily = "chatml"\n[weights]\nkind = "hub"\nrepo = "a/b"\nfile = "c.gguf"\n'
    )
    path = Path(json.loads(person.types("models", "show", "small", "--json").out)["path"])
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF" * 1000)
    return path


def test_removing_asks_and_no_keeps_the_file(person: Person, downloaded: Path) -> None:
    done = person.types("models", "remove", "small", stdin="n\n")
    assert (done.code, downloaded.exists()) == (1, True)
    assert str(downloaded) in done.err


def test_removing_asks_and_yes_deletes_the_file(person: Person, downloaded: Path) -> None:
    done = person.types("models", "remove", "small", stdin="y\n")
    assert (done.code, downloaded.exists()) == (0, False)


def test_removing_can_be_told_not_to_ask(person: Person, downloaded: Path) -> None:
    assert person.types("models", "remove", "small", "--yes").code == 0
    assert not Settings(data_dir=person.data).database.exists()  # where there is none, nothing is noted


def test_what_is_removed_is_noted_where_people_log_in(person: Person, downloaded: Path) -> None:
    assert person.types("users", "add", "ada", stdin="a long password\n").code == 0
    assert person.types("models", "remove", "small", "--yes").code == 0
    newest = json.loads(person.types("users", "audit", "--json").out)[0]
    assert (newest["action"], newest["target_name"]) == ("model.remove", "small")
    assert not downloaded.exists()


def test_removing_what_is_not_here_is_an_error(person: Person) -> None:
    done = person.types("models", "remove", "smollm2-135m-instruct", "--yes")
    assert (done.code, done.err) == (1, "The weights of SmolLM2 135M Instruct are not on this machine.\n")


# --- render -------------------------------------------------------------------------------------------------

HELLO = {"system": "Be brief.", "messages": [{"role": "user", "content": "Hello ü"}]}
PROMPT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello ü<|im_end|>\n<|im_start|>assistant\n"
)


def test_render_prints_the_exact_prompt_and_nothing_else(person: Person) -> None:
    Path("talk.json").write_text(json.dumps(HELLO))
    done = person.types("render", "echo", "talk.json")
    assert (done.code, done.out, done.err) == (0, PROMPT, "")


def test_render_reads_standard_input(person: Person) -> None:
    assert person.types("render", "echo", "-", stdin=json.dumps(HELLO)).out == PROMPT


def test_the_tokens_of_a_prompt_are_json_and_control_tokens_are_one_each(person: Person) -> None:
    ids = json.loads(person.types("render", "echo", "-", "--tokens", stdin=json.dumps(HELLO)).out)
    assert (ids.count(1), ids.count(2)) == (3, 2)


def test_control_tokens_in_a_message_stay_text(person: Person) -> None:
    said = {"messages": [{"role": "user", "content": "<|im_end|>"}]}
    ids = json.loads(person.types("render", "echo", "-", "--tokens", stdin=json.dumps(said)).out)
    assert (ids.count(1), ids.count(2)) == (2, 1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"messages": []}', "messages"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "messages.0.role"),
        ('{"messages": [{"role": "user", "content": 3}]}', "messages.0.content"),
        ('{"messages": [{"role": "user", "content": "x"}], "model": "y"}', "model"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_by_name(person: Person, text: str, named: str) -> None:
    done = person.types("render", "echo", "-", stdin=text)
    assert (done.code, done.out) == (1, "")
    assert named in done.err
    assert "Traceback" not in done.err


def test_a_file_that_is_not_there_is_one_sentence(person: Person) -> None:
    done = person.types("render", "echo", "nowhere.json")
    assert (done.code, done.err) == (1, "nowhere.json cannot be read: No such file or directory.\n")


# --- chat, piped --------------------------------------------------------------------------------------------


def test_a_piped_prompt_is_answered_as_plain_text(person: Person) -> None:
    done = person.types("chat", "echo", stdin="**Hello** there\n")
    assert (done.code, done.out, done.err) == (0, "**Hello** there\n", "")


def test_an_empty_pipe_is_a_mistake(person: Person) -> None:
    done = person.types("chat", "echo", stdin="\n")
    assert (done.code, done.out) == (2, "")


def test_a_model_that_does_not_load_is_one_sentence(person: Person) -> None:
    person.adds_model("broken", BROKEN)
    done = person.types("chat", "broken", stdin="Hello")
    assert (done.code, done.out) == (1, "")
    assert "cheese" in done.err
    assert "Traceback" not in done.err


# --- doctor -------------------------------------------------------------------------------------------------


def test_the_doctor_looks_at_everything_without_the_network(person: Person) -> None:
    done = person.types("doctor", "--offline", "--port", "0", "--json")
    said = json.loads(done.out)
    assert (done.code, said["ok"]) == (0, True)
    assert {finding["what"] for finding in said["findings"]} == {
        "Python", "Packages", "llama.cpp", "Checkpoints", "Processor", "Memory", "Data folder", "Disk", "Port",
        "Conversations", "Network",
    }  # fmt: skip
    assert {model["id"] for model in said["models"]} > {"smollm2-135m-instruct"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]"])
def test_the_doctor_finds_a_port_free_on_any_kind_of_address(tmp_path: Path, host: str) -> None:
    try:
        socket.create_server(
            (host.strip("[]"), 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ).close()
    except OSError:
        pytest.skip("this machine has no such address")
    found = doctor.port(Settings(data_dir=tmp_path, host=host, port=0))
    assert (found.state, found.detail) == ("ok", f"{host}:0 is free")


def test_an_extra_that_is_not_installed_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["rich>=13", 'no-such-package; extra == "embed"', 'none-such; sys_platform == "plan9"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _name: needs)
    assert doctor.packages().state == "ok"
    needs.append("no-such-package>=1")
    found = doctor.packages()
    assert (found.state, found.detail) == ("broken", "missing: no-such-package")


def test_a_broken_database_is_found_with_what_to_do(person: Person) -> None:
    person.data.mkdir()
    (person.data / "rallychat.db").write_bytes(b"this is no database" * 100)
    done = person.types("doctor", "--offline", "--port", "0", "--json")
    broken = [finding for finding in json.loads(done.out)["findings"] if finding["state"] == "broken"]
    assert (done.code, [finding["what"] for finding in broken]) == (1, ["Conversations"])
    assert broken[0]["advice"]


def test_a_data_folder_that_cannot_be_is_found_with_what_to_do(person: Person) -> None:
    person.data.write_text("a file is in the way")
    done = person.types("doctor", "--offline", "--port", "0")
    assert done.code == 1
    assert "--data-dir" in done.out


# --- bench --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("users", ["", "1,x", "0", "4,-1"])
def test_a_wrong_number_of_users_is_refused_by_name(person: Person, users: str) -> None:
    done = person.types("bench", "serve", "--users", users)
    assert (done.code, done.out) == (1, "")
    assert "--users" in done.err


def test_rows_are_printed_as_a_table_or_as_json(person: Person) -> None:
    async def rows(*_: object, **__: object) -> list[dict[str, object]]:
        return [
            {"users": 1, "arm": "raw", "tokens_per_s": 80.5},
            {"users": 1, "arm": "rallychat", "tokens_per_s": None},
        ]

    person.monkeypatch.setattr("rallychat.bench.serve.run_serve", rows)
    table = person.types("bench", "serve", "--users", "1").out
    assert [line.split() for line in table.splitlines()[-3:]] == [
        ["users", "arm", "tokens", "per", "s"], ["1", "raw", "80.5"], ["1", "rallychat", "-"],
    ]  # fmt: skip
    assert json.loads(person.types("bench", "serve", "--users", "1", "--json").out)[0]["tokens_per_s"] == 80.5
