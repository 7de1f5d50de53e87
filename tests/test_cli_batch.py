"""`rallychat batch`: lines in, lines out, in every shape and through every kill."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rallychat import batches
from rallychat.api.batch_lines import BatchLines
from rallychat.batches import Line
from rallychat.bench.scripted import scripted
from rallychat.identity import acting_as
from rallychat.messages import Message, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from tests.cli_world import ROOT, Person


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Person:
    somebody = Person(tmp_path, monkeypatch, capsys)
    monkeypatch.setenv("RALLYCHAT_MODEL", "echo")
    return somebody


def lines(*values: Any) -> str:
    return "".join(f"{value if isinstance(value, str) else json.dumps(value)}\n" for value in values)


def openai_line(name: str, body: dict[str, Any], url: str = "/v1/chat/completions") -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def outcomes(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answered(person: Person, *values: Any, flags: Sequence[str] = ()) -> tuple[int, list[Any]]:
    """The exit code and the outcomes of these lines."""
    (person.home / "in.jsonl").write_text(lines(*values))
    out = person.home / "out.jsonl"
    done = person.types("batch", "in.jsonl", "-o", str(out), "--overwrite", *flags)
    return done.code, outcomes(out) if out.exists() else []


# --- shapes -------------------------------------------------------------------------------------------------


def test_prompts_and_messages_are_answered_in_order(person: Person) -> None:
    said = [{"role": "user", "content": "Two"}]
    code, found = answered(person, {"prompt": "One"}, {"messages": said}, {"prompt": "Three", "id": "x"})
    assert code == 0
    assert [(line["line"], line.get("id"), line["text"]) for line in found] == [
        (1, None, "One"),
        (2, None, "Two"),
        (3, "x", "Three"),
    ]
    assert found[0] | {"usage": None} == {
        "line": 1, "text": "One", "finish_reason": "stop", "model": "echo", "usage": None,
    }  # fmt: skip
    assert found[0]["usage"]["completion_tokens"] == 2


def test_a_short_line_with_a_strategy_has_its_context(person: Person) -> None:
    _, found = answered(person, {"prompt": "One", "strategy": "last_n"}, {"prompt": "Two"})
    assert (found[0]["context"]["strategy"], found[0]["context"]["kept"]) == ("last_n", ["0"])
    assert "context" not in found[1]


def test_a_line_says_how_it_is_answered(person: Person) -> None:
    code, found = answered(person, {"prompt": "abcdefgh", "max_tokens": 2, "system": "Be brief."})
    assert (code, found[0]["text"], found[0]["finish_reason"]) == (0, "abcd", "length")


def test_batch_lines_of_openai_are_answered_in_their_shape(person: Person) -> None:
    chat = {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}
    text = {"model": "echo", "prompt": "Once", "max_tokens": 9}
    code, found = answered(person, openai_line("a", chat), openai_line("b", text, "/v1/completions"))
    assert code == 0
    assert [(line["custom_id"], line["error"], line["response"]["status_code"]) for line in found] == [
        ("a", None, 200),
        ("b", None, 200),
    ]
    bodies = [line["response"]["body"] for line in found]
    assert bodies[0]["object"] == "chat.completion"
    assert bodies[0]["choices"][0]["message"]["content"] == "Hello"
    assert (bodies[1]["object"], bodies[1]["choices"][0]["text"]) == ("text_completion", "Once")
    assert len({line["id"] for line in found}) == 2


def test_the_model_of_the_command_line_answers_every_line(person: Person) -> None:
    line = openai_line("a", {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]})
    code, found = answered(person, line, flags=["--model", "echo"])
    assert (code, found[0]["response"]["body"]["model"]) == (0, "echo")


def test_a_generation_config_holds_for_every_line(person: Person) -> None:
    Path("short.yaml").write_text("generation_config:\n  max_new_tokens: 1\n")
    flags = ["--gen-config-path", "short.yaml"]
    _, found = answered(person, {"prompt": "abcdef"}, {"prompt": "abcdef", "max_tokens": 2}, flags=flags)
    assert [line["text"] for line in found] == ["ab", "abcd"]


async def response_of(name: str, data: Path) -> str:
    """The id of a stored response of somebody, whose account is made."""
    async with ConversationStore.open(Settings(data_dir=data)) as store:
        user = await store.people.add(name, role="member")
        with acting_as(user.id):
            said, asked = [Message.of("user", "Hi")], {"instructions": None, "metadata": None}
            stored, _ = await store.responses.begin(None, said=said, model="echo", request=asked)
            ending: dict[str, Any] = {"reason": "stop", "usage": None, "timings": None}
            await store.answers.finish(stored.answer.id, parts=(Text("Ho"),), **ending)
            return stored.id


def test_a_batch_of_an_account_reads_what_that_account_may_read(person: Person) -> None:
    before = asyncio.run(response_of("ben", person.data))
    asyncio.run(response_of("eve", person.data))
    line = openai_line("a", {"input": "Hello", "previous_response_id": before}, "/v1/responses")
    for flags, status in (([], 404), (["--user", "eve"], 404), (["--user", "ben"], 200)):
        _, found = answered(person, line, flags=flags)
        assert found[0]["response"]["status_code"] == status, found
    (person.home / "out.jsonl").unlink()
    assert person.types("users", "disable", "ben").code == 0
    done = person.types("batch", "in.jsonl", "-o", "out.jsonl", "--user", "ben")
    assert (done.code, "ben is disabled" in done.err) == (1, True)
    assert not (person.home / "out.jsonl").exists()


WRONG: list[tuple[Any, str, str]] = [
    ("{bad", "invalid_json", "not valid JSON"),
    ("[1]", "invalid_body", "must be a JSON object"),
    ({"text": "x"}, "missing_required_parameter", "neither 'prompt' nor 'messages'"),
    ({"prompt": ""}, "invalid_value", "'prompt' must be a text"),
    ({"prompt": 5}, "invalid_value", "'prompt' must be a text"),
    ({"prompt": "x", "system": 5}, "invalid_value", "'system' must be a text"),
    ({"prompt": "x", "tempreature": 1}, "unknown_parameter", "'tempreature'"),
    ({"prompt": "x", "temperature": 9}, "invalid_value", "'temperature' must be at most 2"),
    ({"prompt": "x", "stream": True}, "unsupported_value", "whole answers"),
    ({"prompt": "x", "model": "nothing"}, "model_not_found", "'nothing'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_request", "the assistant's"),
    ({"prompt": "x" * 30_000}, "context_length_exceeded", "too many"),
    ({"prompt": "!fail 2"}, "engine_interrupted", "as asked"),
]


def test_a_line_that_cannot_be_answered_says_why_and_the_batch_goes_on(person: Person) -> None:
    asked = [value for line, _, _ in WRONG for value in (line, {"prompt": "after"})]
    exit_code, found = answered(person, {"prompt": "before"}, *asked)
    assert exit_code == 3
    assert [each.get("text") for each in found] == ["before", *[None, "after"] * len(WRONG)]
    for number, (line, (_, code, said)) in enumerate(zip(found[1::2], WRONG, strict=True)):
        assert (line["line"], line["error"]["code"]) == (2 + 2 * number, code)
        assert said in line["error"]["message"]


WRONG_OF_OPENAI: list[tuple[Any, str]] = [
    ({"custom_id": "a"}, "'method' is missing"),
    (openai_line("b", {}, "/v1/embeddings"), "'url' must be"),
    (openai_line("c", {"messages": []}), "'messages'"),
    (openai_line("d", {"messages": [{"role": "user", "content": "x"}], "foo": 1}), "'foo' is not known"),
    (openai_line("e", {}) | {"foo": 1}, "'foo' is not known"),
]


def test_a_wrong_line_of_openai_is_refused_in_its_shape(person: Person) -> None:
    code, found = answered(person, *[line for line, _ in WRONG_OF_OPENAI])
    assert code == 3
    for outcome, (line, said) in zip(found, WRONG_OF_OPENAI, strict=True):
        assert (outcome["custom_id"], outcome["error"]) == (line["custom_id"], None)
        assert outcome["response"]["status_code"] == 400
        assert said in outcome["response"]["body"]["error"]["message"]


# --- streams and files --------------------------------------------------------------------------------------


def rallychat(folder: Path, *args: str, **given: Any) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RALLYCHAT_")}
    environment = clean | {"PYTHONPATH": str(ROOT), "RALLYCHAT_DATA_DIR": str(folder / "data")}
    command = [sys.executable, "-m", "rallychat", "batch", *args]
    return subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, **given)


def test_standard_input_is_answered_on_standard_output(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with rallychat(tmp_path, "-", "--model", "echo", **pipes) as process:
        out, err = process.communicate(lines({"prompt": "One"}, "{bad", {"prompt": "Two"}).encode(), 120)
    found = [json.loads(line) for line in out.splitlines()]
    assert [line.get("text") for line in found] == ["One", None, "Two"]
    assert process.returncode == 3
    assert b"3 lines answered, 1 of them errors" in err


def test_an_output_that_is_there_is_kept(person: Person) -> None:
    Path("in.jsonl").write_text(lines({"prompt": "x"}))
    Path("out.jsonl").write_text("mine\n")
    done = person.types("batch", "in.jsonl", "-o", "out.jsonl")
    assert (done.code, Path("out.jsonl").read_text()) == (1, "mine\n")
    assert "--overwrite" in done.err


def test_an_input_that_is_not_there_is_one_sentence(person: Person) -> None:
    done = person.types("batch", "nothing.jsonl", "-o", "out.jsonl")
    assert done.code == 1
    assert "nothing.jsonl cannot be read: No such file" in done.err


def test_what_fails_beside_the_files_is_not_laid_upon_them(person: Person) -> None:
    async def answer(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    person.monkeypatch.setattr(BatchLines, "answer", answer)
    Path("in.jsonl").write_text(lines({"prompt": "x"}))
    done = person.types("batch", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 1
    assert "Too many open files" in done.err
    assert "cannot be" not in done.err


def test_an_input_that_breaks_while_it_is_read_is_named(person: Person) -> None:
    async def read_lines(*_: object, **__: object) -> AsyncIterator[Line]:
        yield Line(1, b'{"prompt": "x"}')
        raise OSError(errno.EIO, "Input/output error")

    person.monkeypatch.setattr(batches, "read_lines", read_lines)
    Path("in.jsonl").write_text(lines({"prompt": "x"}, {"prompt": "y"}))
    done = person.types("batch", "in.jsonl", "-o", "out.jsonl")
    assert done.code == 1
    assert "in.jsonl cannot be read: Input/output error" in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize(("output", "named"), [("/dev/full", "/dev/full"), ("-", "Standard output")])
def test_an_output_that_refuses_what_it_is_given_is_named(tmp_path: Path, output: str, named: str) -> None:
    with Path("/dev/full").open("wb") as full:
        pipes = {"stdin": subprocess.PIPE, "stdout": full}
        with rallychat(tmp_path, "-", "-o", output, "--overwrite", "--model", "echo", **pipes) as process:
            _, err = process.communicate(lines({"prompt": "x"}).encode(), 120)
    assert process.returncode == 1
    assert f"{named} cannot be written: No space left on device" in err.decode()


def test_a_model_that_cannot_be_had_ends_the_batch_before_it_begins(person: Person) -> None:
    scripted(person.data, "broken", 'load_error = "the weights are damaged"')
    Path("in.jsonl").write_text(lines({"prompt": "x"}))
    done = person.types("batch", "in.jsonl", "-o", "out.jsonl", "--model", "broken")
    assert done.code == 1
    assert "the same command goes on" in done.err
    assert outcomes(Path("out.jsonl")) == []


# --- killed -------------------------------------------------------------------------------------------------


def speak(folder: Path, *, delay_ms: int) -> None:
    """From now on the model takes so long for a token."""
    scripted(folder / "data", "slow", f"delay_ms = {delay_ms}")


def begun(folder: Path, counts: Sequence[int]) -> list[str]:
    """The command of a batch whose lines each are so many tokens, of a model that takes a while for them."""
    speak(folder, delay_ms=50)
    asked = [{"prompt": f"!count {tokens}", "id": number} for number, tokens in enumerate(counts)]
    (folder / "in.jsonl").write_text(lines(*asked))
    return ["in.jsonl", "-o", "out.jsonl", "--model", "slow", "--slots", "4"]


def test_a_batch_that_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    counts = [2 + n * 37 % 9 for n in range(30)] + [200 + n * 37 % 9 for n in range(30)]
    command = begun(tmp_path, counts)  # it cannot end before it is killed: the later half takes over a minute
    out = tmp_path / "out.jsonl"
    seen = 0
    for more in (5, 15):
        with rallychat(tmp_path, *command) as process:
            grows(process, out, seen + more)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert (tmp_path / "out.jsonl.journal").exists()
        seen = count(out)
    speak(tmp_path, delay_ms=0)
    with rallychat(tmp_path, *command) as process:
        said = process.communicate()[1].decode()
    assert process.returncode == 0
    assert "60 lines answered (" in said
    found = outcomes(out)
    assert [line["id"] for line in found] == list(range(60))
    assert all(line["text"].endswith(f" {tokens}") for line, tokens in zip(found, counts, strict=True))
    assert not (tmp_path / "out.jsonl.journal").exists()


def grows(process: subprocess.Popen[bytes], out: Path, until: int) -> None:
    """Waits until the output has so many lines."""
    while count(out) < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            raise AssertionError("the batch ended too early")


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_batch_that_is_interrupted_says_how_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    command = begun(tmp_path, [2] * 2000)  # more than can be done before the signal is heard
    with rallychat(tmp_path, *command) as process:
        grows(process, tmp_path / "out.jsonl", 3)
        process.send_signal(number)
        said = process.communicate()[1].decode()
    assert process.returncode == 128 + number
    assert "the same command goes on from there" in said
    assert "Traceback" not in said


def test_an_input_that_has_changed_is_noticed(tmp_path: Path) -> None:
    command = begun(tmp_path, [2] * 2000)
    with rallychat(tmp_path, *command) as process:
        grows(process, tmp_path / "out.jsonl", 3)
        process.kill()
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(lines({"prompt": "one more"}))
    before = (tmp_path / "out.jsonl").read_bytes()
    with rallychat(tmp_path, *command) as process:
        said = process.communicate()[1].decode()
    assert process.returncode == 1
    assert "was begun with another input" in said
    assert (tmp_path / "out.jsonl").read_bytes() == before
