"""Conversations as files: what goes out comes in again, and foreign exports lose nothing unnamed."""

from __future__ import annotations

import html
import json
import zipfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from rallychat.errors import InvalidRequest
from rallychat.messages import FinishReason, Message, Part, Reasoning, Text
from rallychat.settings import Settings
from rallychat.store import ConversationStore
from rallychat.transfer import as_markdown, everything, import_file


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[ConversationStore]:
    async with ConversationStore.open(Settings(data_dir=tmp_path / "data")) as opened:
        yield opened


def written(folder: Path, what: Any) -> Path:
    path = folder / "file.json"
    path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())
    return path


def node(name: str, parent: str | None, role: str, text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    message = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}, **more}
    return name, {"id": name, "parent": parent, "children": [], "message": message}


def chatgpt(*nodes: tuple[str, dict[str, Any]], current: str) -> dict[str, Any]:
    root: dict[str, Any] = {"root": {"id": "root", "parent": None, "children": [], "message": None}}
    return {
        "conversation_id": "abc", "title": "Terns", "create_time": 1700000000.5, "update_time": 1700000100.0,
        "mapping": root | dict(nodes), "current_node": current, "is_archived": True,
    }  # fmt: skip


async def test_a_chatgpt_export_keeps_its_branches_and_names_what_it_loses(
    store: ConversationStore, tmp_path: Path
) -> None:
    thoughts = {"content_type": "thoughts", "thoughts": [{"summary": "Birds", "content": "small ones"}]}
    picture = {"content_type": "multimodal_text", "parts": [{"content_type": "image_asset_pointer"}, "See?"]}
    export = [
        chatgpt(
            node("sys", "root", "system", "be nice", metadata={"is_visually_hidden_from_conversation": True}),
            node("q", "sys", "user", "", content=picture),
            node("old", "q", "assistant", "first try"),
            node("t", "q", "assistant", "", content=thoughts),
            node("call", "t", "assistant", "search()", recipient="browser"),
            node("tool", "call", "tool", "a page"),
            node(
                "a",
                "tool",
                "assistant",
                "second try",
                metadata={"model_slug": "gpt-x"},
                create_time=1700000050,
            ),
            current="a",
        )
    ]
    report = await import_file(store, written(tmp_path, export))
    (made,) = await store.list()
    path = await store.path(made.id)
    assert [row.text for row in path] == ["See?", "second try"]
    assert path[1].parts[0] == Reasoning("Birds\n\nsmall ones")
    assert (path[1].model, path[1].created_at.timestamp()) == ("gpt-x", 1700000050)
    assert len(await store.siblings(path[1].id)) == 2
    assert (made.title, made.archived, made.created_at.timestamp()) == ("Terns", True, 1700000000.5)
    assert report.left_out == {"images": 1, "tool calls": 1, "tool results": 1}
    assert report.problems == [
        "Conversation 1 ('Terns'): not taken over: 1 images, 1 tool calls, 1 tool results."
    ]


async def test_a_second_import_brings_nothing_twice_and_a_zip_is_read_as_it_came(
    store: ConversationStore, tmp_path: Path
) -> None:
    export = [chatgpt(node("q", "root", "user", "hi"), current="q")]
    packed = tmp_path / "export.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("user.json", "{}")
        archive.writestr("conversations.json", json.dumps(export))
    assert (await import_file(store, packed)).imported == 1
    again = await import_file(store, written(tmp_path, export))
    assert (again.imported, again.already_here) == (0, 1)
    assert len(await store.list()) == 1


async def test_what_chatgpt_draws_in_an_answer_is_read_and_its_sources_are_named_as_lost(
    store: ConversationStore, tmp_path: Path
) -> None:
    told = (
        'It is \ue200entity\ue202["city","Paris","capital of France"]\ue201, '
        "see \ue200url\ue202the page\ue202turn0\ue201."
        "\ue200cite\ue202turn0search0\ue202turn0search1\ue201 \ue200entity\ue202broken\ue201"
    )
    export = [chatgpt(node("q", "root", "user", "Where?"), node("a", "q", "assistant", told), current="a")]
    report = await import_file(store, written(tmp_path, export))
    (made,) = await store.list()
    assert (await store.path(made.id))[1].text.strip() == "It is Paris, see the page."
    assert report.left_out == {"references to sources": 2}


async def test_an_open_webui_export_keeps_branches_thoughts_and_system_prompt(
    store: ConversationStore, tmp_path: Path
) -> None:
    told = '<details type="reasoning" done="true"><summary>Thought</summary>\n&gt; hm &amp; so\n</details>\nFish.'
    messages = {
        "1": {"id": "1", "parentId": None, "role": "user", "content": "q", "timestamp": 1700000000},
        "2": {
            "id": "2",
            "parentId": "1",
            "role": "assistant",
            "content": told.replace("&gt;", ">"),
            "model": "qwen",
        },
        "3": {
            "id": "3",
            "parentId": "1",
            "role": "assistant",
            "content": "Fowl.",
            "files": [{"type": "image"}],
        },
    }
    chat = {
        "title": "Food",
        "params": {"system": "Cook."},
        "history": {"messages": messages, "currentId": "2"},
    }
    report = await import_file(
        store, written(tmp_path, [{"id": "x", "title": "Food", "chat": chat, "pinned": True}])
    )
    (made,) = await store.list()
    path = await store.path(made.id)
    assert path[1].parts == (Reasoning("hm & so"), Text("Fish."))
    assert (path[1].model, made.system, made.pinned) == ("qwen", "Cook.", True)
    assert report.left_out == {"images": 1}


@pytest.mark.parametrize("quoted", ["> I & you:\n> 1 < 2\n", "&gt; I &amp; you:\n&gt; 1 &lt; 2\n"])
async def test_open_webui_s_thoughts_are_read_as_older_and_newer_versions_write_them(
    store: ConversationStore, tmp_path: Path, quoted: str
) -> None:
    fold = f'<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n{quoted}</details>\n'
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"{fold}Yes."}]
    await import_file(store, written(tmp_path, [{"id": "x", "chat": {"messages": said}}]))
    (made,) = await store.list()
    assert (await store.path(made.id))[1].parts == (Reasoning("I & you:\n1 < 2"), Text("Yes."))


async def test_open_webui_s_tool_calls_leave_with_their_results_however_long(
    store: ConversationStore, tmp_path: Path
) -> None:
    result = html.escape(json.dumps([{"title": f"Page {n}", "snippet": "a < b"} for n in range(200)]))
    call = (
        f'<details type="tool_calls" done="true" id="call_1" name="search" arguments="&quot;{{}}&quot;" '
        f'result="{result}" files="">\n<summary>Tool Executed</summary>\n</details>\n'
    )
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": f"Let me look.\n{call}Found it."},
    ]
    report = await import_file(store, written(tmp_path, [{"id": "x", "chat": {"messages": said}}]))
    (made,) = await store.list()
    assert [part.text.strip() for part in (await store.path(made.id))[1].parts] == [
        "Let me look.",
        "Found it.",
    ]
    assert report.left_out == {"tool calls": 1}


async def test_open_webui_s_chats_from_before_there_were_branches_are_a_list(
    store: ConversationStore, tmp_path: Path
) -> None:
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "r"},
    ]
    report = await import_file(
        store, written(tmp_path, [{"id": "x", "folder_id": "f", "chat": {"messages": said}}])
    )
    (made,) = await store.list()
    assert [message.text for message in await store.path(made.id)] == ["q", "a", "r"]
    assert report.left_out == {"folders": 1}


@pytest.mark.parametrize(
    ("row", "chat", "history", "tip"),
    [
        ({}, {}, {"currentId": "2"}, "two"),
        ({"current_message_id": "2"}, {"currentId": "3"}, {"currentId": "gone"}, "two"),
        ({"current_message_id": None}, {"currentId": "2"}, {}, "two"),
        ({}, {}, {}, "three"),
    ],
)
async def test_an_open_webui_chat_is_shown_from_the_message_that_was_current(
    store: ConversationStore,
    tmp_path: Path,
    row: dict[str, Any],
    chat: dict[str, Any],
    history: dict[str, Any],
    tip: str,
) -> None:
    tree = {
        "1": {"parentId": None, "role": "user", "content": "one"},
        "2": {"parentId": "1", "role": "assistant", "content": "two"},
        "3": {"parentId": "1", "role": "assistant", "content": "three"},
    }
    made = {"id": "x", **row, "chat": {**chat, "history": {"messages": tree, **history}}}
    await import_file(store, written(tmp_path, [made]))
    (found,) = await store.list()
    assert (await store.path(found.id))[-1].text == tip


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"[]", "no conversations in this file"),
        (b"7", "single value"),
        (b'{"a": 1}', "no conversations"),
        (b"PK\x03\x04 torn", "not valid JSON"),
        (b'[{"mapping": {}}, {"mapp', "not valid JSON"),
    ],
)
async def test_garbage_is_refused_in_one_sentence(
    store: ConversationStore, tmp_path: Path, held: bytes, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        await import_file(store, written(tmp_path, held))
    assert await store.list() == []


async def test_a_conversation_that_cannot_be_read_is_named_and_the_others_are_taken(
    store: ConversationStore, tmp_path: Path
) -> None:
    circle = [node("a", "b", "user", "x"), node("b", "a", "user", "y"), node("q", "root", "user", "hi")]
    export: list[Any] = [{"mapping": 3, "title": "Bad"}, 4, {"x": 1}, chatgpt(*circle, current="nowhere")]
    report = await import_file(store, written(tmp_path, export))
    assert (report.imported, report.failed) == (1, 3)
    assert report.problems[:2] == [
        "Conversation 1 was left out: 'mapping' is not an object.",
        "Conversation 2 was left out: it is not an object.",
    ]
    assert report.left_out == {"messages that follow each other in a circle": 2}


async def test_an_export_chooses_no_model_that_the_catalog_does_not_have(
    store: ConversationStore, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "hi"}]
    models = ("/srv/weights.gguf", "owner/repo:weights.gguf", "echo")
    held = [{"id": f"c{number}", "model": model, "messages": said} for number, model in enumerate(models)]
    report = await import_file(store, written(tmp_path, held), knows=lambda name: name == "echo")
    assert sorted(one.model or "" for one in await store.list()) == ["", "", "echo"]
    assert report.left_out == {"models that are not in the catalog": 2}


async def test_markdown_says_of_an_answer_that_is_not_whole_why(store: ConversationStore) -> None:
    chat = await store.create(title="Terns")
    said = [Message.of("system", "Be brief."), Message.of("user", "Hi")]
    tip = (await store.items.append(chat.id, said))[-1].id
    ended: dict[str, Any] = {"usage": None, "timings": None}
    told: list[str] = []
    endings: list[tuple[FinishReason, tuple[Part, ...], str | None]] = [
        ("stop", (Text("Whole"),), None),
        ("cancelled", (Text("Ha"),), None),
        ("interrupted", (Text("Half"),), "The engine died."),
        ("error", (), "It broke."),
    ]
    for reason, parts, error in endings:
        _, row = await store.answers.begin(chat.id, parent_id=tip, user=None, model="echo")
        path = await store.path(chat.id)
        assert as_markdown(chat, path).endswith("\n\n## echo\n\n*Still being written.*\n")
        await store.answers.finish(row.id, parts=parts, reason=reason, error=error, **ended)
        told.append(as_markdown(chat, await store.path(chat.id)))
    before = "# Terns\n\n## System\n\nBe brief.\n\n## You\n\nHi\n\n## echo\n\n"
    assert [text.removeprefix(before) for text in told] == [
        "Whole\n",
        "Ha\n\n*Stopped.*\n",
        "Half\n\n*Interrupted.* The engine died.\n",
        "*This answer failed.* It broke.\n",
    ]


async def test_an_export_has_every_conversation_whatever_happens_while_it_is_written(
    store: ConversationStore,
) -> None:
    made = [await store.create(title=f"Number {number}") for number in range(120)]
    pieces = everything(store)
    written_ = [await anext(pieces), await anext(pieces)]
    await store.items.append(made[0].id, [Message.of("user", "It moves to the top of the list.")])
    await store.library.erase(made[70].id)
    written_ += [piece async for piece in pieces]
    titles = [one["title"] for one in json.loads(b"".join(written_))["conversations"]]
    assert sorted(titles) == sorted(one.title for one in made if one is not made[70])
