"""`rallychat chat` as a person at a terminal sees it: keys in, screen out, the echo engine behind it."""

from __future__ import annotations

import asyncio
import io
import itertools
import signal
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from rallychat.bench.scripted import scripted
from rallychat.chat import ChatService
from rallychat.cli import slash_context
from rallychat.cli.chat import Talk, find, key_bindings, prompt_session, show_events
from rallychat.cli.render import read
from rallychat.cli.slash import COMMANDS
from rallychat.cli.stream import MarkdownStream
from rallychat.cli.whose import acting_for
from rallychat.errors import Conflict, Forbidden, NotFound
from rallychat.identity import acting_as
from rallychat.messages import (
    ContextReport,
    Event,
    Failed,
    Finished,
    Loading,
    Message,
    Queued,
    ReasoningDelta,
    Segment,
    Started,
    Text,
    TextDelta,
    Timings,
    Usage,
)
from rallychat.settings import Settings
from rallychat.store import Conversation, ConversationStore, Memory, Shelf, StoredMessage
from rallychat.transfer import import_file


class Terminal:
    """A talk with its keyboard and its screen."""

    def __init__(self, talk: Talk, keys: PipeInput, screen: io.StringIO) -> None:
        self.talk = talk
        self.service = talk.service
        self._keys = keys
        self._screen = screen

    async def types(self, *lines: str) -> str:
        """Type lines, then Ctrl-D; returns what was printed meanwhile."""
        before = len(self.shown)
        self._keys.send_text("".join(f"{line}\r" for line in lines) + "\x04")
        await self.talk.run()
        return self.shown[before:]

    @property
    def shown(self) -> str:
        return self._screen.getvalue()

    async def rows(self) -> list[StoredMessage]:
        assert self.talk.conversation is not None
        return await self.service.store.path(self.talk.conversation.id)

    async def texts(self) -> list[str]:
        return [row.text for row in await self.rows()]


@asynccontextmanager
async def terminal(folder: Path, model: str = "echo") -> AsyncIterator[Terminal]:
    scripted(folder, "slow", "delay_ms = 2")
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=False)
    with create_pipe_input() as keys:
        session: PromptSession[str] = PromptSession(
            input=keys, output=DummyOutput(), key_bindings=key_bindings(), multiline=True
        )
        async with ChatService.open(Settings(data_dir=folder, model=model)) as service:
            yield Terminal(Talk(service, console, session=session), keys, screen)


async def test_a_message_is_answered_and_both_are_stored(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        assert "Hello there" in await at.types("Hello there")
        assert await at.texts() == ["Hello there", "Hello there"]


async def test_alt_enter_begins_a_new_line_and_enter_sends(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("one\x1b\rtwo\nthree")
        assert (await at.texts())[0] == "one\ntwo\nthree"


async def test_an_empty_line_says_nothing(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("", "   ")
        assert at.talk.conversation is None


async def test_a_doubled_slash_is_a_message(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("//help")
        assert (await at.texts())[0] == "/help"


async def test_exit_leaves_before_what_follows(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("/exit", "Hello")
        assert at.talk.conversation is None


async def test_ctrl_c_at_the_prompt_clears_the_line(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        shown = await at.types("never sent\x03/new")
        assert "Ctrl-D leaves." in shown
        assert at.talk.conversation is None


async def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    async with terminal(tmp_path, model="slow") as at:
        talking = asyncio.create_task(at.types("!count 100000"))
        await until(lambda: any("1 2" in run.text for run in at.service.runs._growing.values()))
        signal.raise_signal(signal.SIGINT)
        shown = await talking
        assert "Stopped; /continue goes on" in shown
        answer = (await at.rows())[-1]
        assert (answer.status, answer.finish_reason) == ("complete", "cancelled")
        assert answer.text.startswith("1 2")


async def until(ready: Callable[[], object]) -> None:
    """Yields to the loop until something is so; the test's own limit is the only clock."""
    while not ready():  # noqa: ASYNC110 - nothing here can be awaited: the terminal owns the answer
        await asyncio.sleep(0)


async def test_help_lists_every_command(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        shown = await at.types("/help")
        assert [command.usage for command in COMMANDS.values() if command.usage not in shown] == []


async def test_an_unknown_command_is_named_with_near_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("/exprot")
    assert capsys.readouterr().err == "There is no command '/exprot'.\n  /export or /exit\n"


async def test_regenerate_adds_a_branch_beside_the_first_answer(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/regenerate")
        rows = await at.rows()
        assert [row.text for row in rows] == ["Hello", "Hello"]
        assert len(await at.service.store.siblings(rows[-1].id)) == 2


async def test_continue_goes_on_in_the_same_message(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("/set max_tokens 3", "!count 9", "/set max_tokens default", "/continue")
        rows = await at.rows()
        assert len(rows) == 2
        assert "length limit" in at.shown
        assert rows[1].text != "1 2"


async def test_edit_asks_with_the_old_text_and_keeps_the_old_branch(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/edit", " again")
        rows = await at.rows()
        assert [row.text for row in rows] == ["Hello again", "Hello again"]
        assert len(await at.service.store.siblings(rows[0].id)) == 2


async def test_a_memory_that_changed_while_it_was_edited_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello")
        contexts, chat = at.service.contexts, at.talk.conversation
        assert chat is not None
        memory = await contexts.commit(chat.id, Memory("facts", "- blue keys", (await at.rows())[-1].id))

        async def meanwhile(*_: object, **__: object) -> str:
            await contexts.commit(chat.id, memory)
            return "- red keys"

        monkeypatch.setattr(at.talk, "changed", meanwhile)
        with pytest.raises(Conflict):
            await slash_context.memory(at.talk, "edit")
        assert {memory.text for memory in await contexts.memories(chat.id)} == {"- blue keys"}


async def test_ctrl_c_leaves_what_is_being_edited_as_it_was(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/edit", " again\x03/title Still Hello")
        assert await at.texts() == ["Hello", "Hello"]
        assert stored(at).title == "Still Hello"


async def test_nothing_that_was_said_commands_the_terminal(tmp_path: Path) -> None:
    controls = "".join(chr(code) for code in (*range(1, 32), *range(127, 160)))
    async with terminal(tmp_path) as at:
        made = await at.service.store.create(title=f"Title {controls}", system=f"System {controls}")
        await (await at.service.turn(made.id, f"Said {controls} and more")).wait()
        until = (await at.service.store.path(made.id))[-1].id
        await at.service.contexts.commit(made.id, Memory("summary", controls, until, (until,), "model"))
        shown = await at.types(
            "/list",
            "/open 1",
            "/system",
            "/regenerate",
            "/memory",
            "/memory versions",
            "/pin",
            "/context",
            "/context full",
            f"/open {made.id}",
        )
        assert {character for character in shown if unicodedata.category(character) == "Cc"} == {"\n"}
        assert "\N{REPLACEMENT CHARACTER} and more" in shown


async def test_a_new_conversation_leaves_the_old_one_in_the_list(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        shown = await at.types("First talk", "/new", "Second talk", "/list")
        assert "*1  Second talk" in shown
        assert " 2  First talk" in shown


async def test_open_shows_the_conversation_and_goes_on_there(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("First talk", "/new", "Second talk", "/list", "/open 2", "more")
        assert await at.texts() == ["First talk", "First talk", "more", "more"]


@pytest.mark.parametrize("name", ["0", "7", "conv_nothing", ""])
async def test_opening_what_is_not_there_is_an_error_and_changes_nothing(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", f"/open {name}", "more")
        assert len(await at.texts()) == 4
    assert capsys.readouterr().err


async def test_the_title_can_be_changed(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/title Greetings")
        assert [row.title for row in await at.service.store.list()] == ["Greetings"]


async def test_a_deleted_conversation_is_in_the_trash_and_can_be_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/delete")
        assert at.talk.conversation is None
        assert await at.service.store.list() == []
        assert [row.title for row in await at.service.store.library.list(Shelf(trash=True))] == ["Hello"]
        await at.types("/restore", "more", "/restore")
        assert await at.texts() == ["Hello", "Hello", "more", "more"]
    assert "Nothing was deleted here." in capsys.readouterr().err


async def test_a_system_prompt_set_before_the_first_message_is_stored_with_it(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("/system Be a [pirate].", "Hello", "/system")
        assert stored(at).system == "Be a [pirate]."
        assert "Be a [pirate]." in at.shown


async def test_the_system_prompt_of_a_conversation_can_be_changed(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/system Be a pirate.")
        assert stored(at).system == "Be a pirate."


async def test_another_model_answers_from_then_on(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/model slow", "Hello")
        assert [row.model for row in await at.rows() if row.role == "assistant"] == ["echo", "slow"]


async def test_parameters_are_kept_with_the_conversation(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        shown = await at.types("/set temperature 0.5", '/set stop "a b" c', "/set")
        assert stored(at).sampling.as_dict() == {"temperature": 0.5, "stop": ["a b", "c"]}
        assert "temperature          0.5" in shown


async def test_a_parameter_that_looks_like_markup_is_shown_as_it_is(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        shown = await at.types("/set stop [/INST]", "/set")
        assert stored(at).sampling.as_dict() == {"stop": ["[/INST]"]}
        assert "stop is [/INST]." in shown
        assert "['[/INST]']" in shown


@pytest.mark.parametrize(
    "line",
    ["/set temperature hot", "/set temperature 9", "/set warmth 1", "/set top_k -1", "/set stop don't"],
)
async def test_a_wrong_parameter_is_refused_by_name(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types(line)
        assert at.talk.conversation is None
    assert line.split()[1] in capsys.readouterr().err


async def test_the_context_is_shown_in_parts_and_in_full(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        shown = await at.types("Hello", "/context", "/context full", "/context whole")
        assert "1 message word by word in the prompt" in shown
        assert "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHello" in shown


async def test_the_report_names_what_the_prompt_was_made_of_and_what_became_of_each_message(
    tmp_path: Path,
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("My [parrot] is Zorro.", "I live in Ghent.", "I like chess.")
        chat, rows, answers = stored(at), await at.rows(), at.service.store.answers
        asked = Message.of("user", "Who is Zorro?")
        question, answer = await answers.begin(chat.id, parent_id=rows[-1].id, user=asked, model="echo")
        assert question is not None
        ids = [row.id for row in rows]
        report = ContextReport(
            strategy="hybrid",
            window=4096,
            budget=3040,
            prompt_tokens=1234,
            segments=(
                Segment("memory", None, 1100),
                Segment("retrieved", ids[0], 20, 3.456, "words"),
                Segment("user", question.id, 114),
            ),
            kept=(question.id,),
            compacted=tuple(ids[1:4]),
            dropped=tuple(ids[4:]),
            retrieved=(ids[0],),
            why="the oldest turns left",
            high_mark=2188,
            budget_why="the machine is slow",
            memory=7,
            divergence="older turns became memory",
        )
        usage, timings = Usage(1234, 5, 1000), Timings(0, 300, 900)
        said = (Text("A parrot."),)
        await answers.finish(
            answer.id, parts=said, reason="stop", usage=usage, timings=timings, report=report
        )
        shown = flat(await at.types("/context"))
    for told in (
        "1,234 of 3,040 tokens; older turns are compacted from 2,188 on. Why: the machine is slow.",
        "The window is 4,096 tokens.",
        "Reused 1,000 tokens Read anew 234 tokens Answer 5 tokens",
        "Parts Memory 1,100, Quoted 20, You 114",
        "The prompt was read anew because older turns became memory.",
        "1 message word by word in the prompt You Who is Zorro?",
        "1 message quoted beside your question, as they fit it You My [parrot] is Zorro. score 3.46 by words",
        "3 messages became memory Answer My [parrot] is Zorro. You I live in Ghent. Answer I live in Ghent.",
        "2 messages left out to make room You I like chess. Answer I like chess.",
        "hybrid: the oldest turns left.",
        "Version 7 of the memory stood in the prompt.",
    ):
        assert told in shown


def flat(shown: str) -> str:
    """Without the lines and columns of the screen."""
    return " ".join(shown.split())


async def test_of_very_many_messages_the_newest_are_shown(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        shown = await at.types(*(f"Note {n}." for n in range(15)), "/context")
        kept = (await at.rows())[-1].report
        assert kept is not None
        assert f"… and {len(kept.kept) - 20} before these" in shown


async def test_a_strategy_is_chosen_and_left_to_the_model_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        assert "hybrid (the default). There are full, last_n" in await at.types("/strategy")
        assert at.talk.conversation is None
        await at.types("Hello", "/strategy ledger", "/strategy amnesia")
        assert stored(at).strategy == "ledger"
        assert "'amnesia'" in capsys.readouterr().err
        assert "hybrid (the default)" in await at.types("/strategy default")
        assert stored(at).strategy is None


async def test_a_budget_is_chosen_and_left_to_the_window_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        assert "What the window" in await at.types("/budget")
        assert at.talk.conversation is None
        assert "At most 1,200 tokens" in await at.types("Hello", "/budget 1200", "more")
        report = (await at.rows())[-1].report
        assert report is not None
        assert report.budget == 1200
        await at.types("/budget 9", f"/budget {10**30}", "/budget much")
        assert stored(at).budget == 1200
        told = capsys.readouterr().err
        assert told.count("at least 64") == 2
        assert "'much'" in told
        await at.types("/budget default")
        assert stored(at).budget is None


async def test_versions_of_the_memory_are_listed_and_one_that_was_undone_is_taken_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        assert "There are none yet." in await at.types("Hello", "/memory versions")
        chat, until = stored(at).id, (await at.rows())[-1].id
        await at.service.contexts.commit(chat, Memory("facts", "- red [keys]", until, (until,), "model"))
        shown = flat(await at.types("/memory undo", "/memory versions"))
        assert "Nothing is remembered any more." in shown
        assert "1 written by the model, of 1 message, undone - red [keys]" in shown
        shown = flat(await at.types("/memory restore 1", "/memory versions"))
        assert "version 1, facts, by model" in shown
        assert "*1 written by the model, of 1 message - red [keys]" in shown
        await at.types("/memory restore 7", "/memory restore", "/memory forget")
        told = capsys.readouterr().err
        assert [said in told for said in ("'7'", "Which version?", "'forget'")] == [True, True, True]


async def test_whether_other_conversations_are_quoted_is_shown_chosen_and_left_to_the_server(
    tmp_path: Path,
) -> None:
    async with terminal(tmp_path) as at:
        usual = "quoted" if at.service.settings.elsewhere else "not quoted"
        shown = await at.types("/elsewhere")
        assert f"Other conversations are {usual} (the default)." in shown
        assert at.talk.conversation is None
        for word, chosen, said in (
            ("on", True, "Other conversations are quoted."),
            ("off", False, "Other conversations are not quoted."),
            ("default", None, f"Other conversations are {usual} (the default)."),
        ):
            assert said in await at.types(f"/elsewhere {word}", "/elsewhere")
            assert at.talk.conversation is not None
            assert (await at.service.store.get(at.talk.conversation.id)).elsewhere is chosen


async def test_a_word_that_elsewhere_does_not_know_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("/elsewhere off", "/elsewhere maybe")
        assert "does not know 'maybe'" in capsys.readouterr().err
        assert at.talk.conversation is not None
        assert (await at.service.store.get(at.talk.conversation.id)).elsewhere is False


async def test_what_was_said_elsewhere_is_quoted_once_that_is_chosen(tmp_path: Path) -> None:
    said = "My parrot Zorro eats papaya seeds every morning."
    async with terminal(tmp_path) as at:
        await at.types(said)
        await at.types("/new", "/elsewhere off", "What does my parrot Zorro eat in the morning?")
        report = (await at.rows())[-1].report
        assert report is not None
        assert report.elsewhere == ()
        shown = await at.types("/elsewhere on", "And what does my parrot Zorro eat?", "/context full")
        assert said in shown
        report = (await at.rows())[-1].report
        assert report is not None
        assert report.elsewhere


async def test_an_export_is_markdown_or_json_that_render_reads_and_import_takes_in(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        await at.types("/system Be brief.", "Hello", "/regenerate")
        await at.types(f"/export {tmp_path}/talk.md", f"/export {tmp_path}/talk.json")
    said = "# Hello\n\n*System:* Be brief.\n\n## You\n\nHello\n\n## echo\n\nHello\n"
    assert (tmp_path / "talk.md").read_text() == said
    messages = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hello")]
    assert [(one.role, one.text) for one in read(str(tmp_path / "talk.json")).as_messages()] == messages
    async with ConversationStore.open(Settings(data_dir=tmp_path / "other")) as store:
        assert (await import_file(store, tmp_path / "talk.json")).messages == 3


async def test_an_export_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talk.md").write_text("mine")
    async with terminal(tmp_path) as at:
        await at.types("Hello", f"/export {tmp_path}/talk.md")
    assert (tmp_path / "talk.md").read_text() == "mine"
    assert "is there already" in capsys.readouterr().err


async def test_an_export_into_the_home_of_nobody_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("Hello", "/export ~nobody-is-called-so/talk.md")
    assert "nobody here is called so" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["/regenerate", "/continue", "/edit", "/context", "/export", "/title x", "/delete"]
)
async def test_a_command_about_a_conversation_needs_one(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types(line)
    assert capsys.readouterr().err == "This conversation has no messages yet.\n"


async def test_an_engine_that_dies_ends_the_answer_and_not_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with terminal(tmp_path) as at:
        await at.types("!crash 3", "Hello")
        assert (await at.texts())[-1] == "Hello"
    assert capsys.readouterr().err


async def test_as_an_account_one_goes_on_with_its_conversations_and_that_is_noted(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        store = at.service.store
        await at.types("Without login", "/new")
        ben = await store.people.add("ben", role="member")
        async with acting_for(store, "Ben", "user.chat"):
            assert "Without login" not in await at.types("As Ben", "/list", "/context")
        assert [row.title for row in await store.list()] == ["Without login"]
        with acting_as(ben.id):
            assert [row.title for row in await store.list()] == ["As Ben"]
        newest = (await store.deeds.list())[0]
        assert (newest.actor_name, newest.action, newest.target) == ("command line", "user.chat", "ben")


async def test_the_conversations_of_a_disabled_account_are_not_opened(tmp_path: Path) -> None:
    async with ConversationStore.open(Settings(data_dir=tmp_path)) as store:
        ben = await store.people.add("ben", role="member")
        await store.people.change(ben.id, disabled=True)
        with pytest.raises(Forbidden, match="ben is disabled"):
            async with acting_for(store, "ben", "user.chat"):
                raise AssertionError("it was opened")
        assert [deed.action for deed in await store.deeds.list()] == ["user.change", "user.add"]


def test_what_is_typed_for_an_account_is_in_no_file_of_its_own(tmp_path: Path) -> None:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        with acting_as("user_ben"):
            assert isinstance(prompt_session(Settings(data_dir=tmp_path)).history, InMemoryHistory)
        assert isinstance(prompt_session(Settings(data_dir=tmp_path)).history, FileHistory)


async def test_last_is_the_newest_conversation(tmp_path: Path) -> None:
    async with terminal(tmp_path) as at:
        with pytest.raises(NotFound):
            await find(at.service, "last")
        await at.types("Old", "/new", "New")
        assert await find(at.service, "last") == at.talk.conversation


def stored(at: Terminal) -> Conversation:
    assert at.talk.conversation is not None
    return at.talk.conversation


# --- the growing answer -------------------------------------------------------------------------------------

ANSWER = """# Title

Some *text* with `code`.

```python
def f():

    return 1
```

1. one

2. two
   - nested

| a | b |
|---|---|
| 1 | 2 |

> quoted

The end"""


def drawn(*pieces: str) -> str:
    """What stays on the screen of an answer that came in these pieces."""
    screen = io.StringIO()
    with MarkdownStream(Console(file=screen, width=60, force_terminal=False)) as stream:
        for piece in pieces:
            stream.add(piece)
    return screen.getvalue()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_every_split_of_an_answer_leaves_the_same_text(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ANSWER)]
    pieces = [ANSWER[a:b] for a, b in itertools.pairwise(edges)]
    assert drawn(*pieces).split() == drawn(ANSWER).split()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet="ab\n `#-*|>1.[]()\\~é"), max_size=20))
def test_no_answer_breaks_the_screen(pieces: list[str]) -> None:
    drawn(*pieces)


def test_finished_blocks_are_printed_before_the_answer_ends() -> None:
    screen = io.StringIO()
    with MarkdownStream(Console(file=screen, width=60, force_terminal=False)) as stream:
        stream.add("First paragraph.\n\nSecond")
        assert screen.getvalue().split() == ["First", "paragraph."]


def test_reasoning_comes_before_the_answer_and_is_not_markdown() -> None:
    screen = io.StringIO()
    with MarkdownStream(Console(file=screen, width=60, force_terminal=False)) as stream:
        stream.think("Hmm, *stars*")
        stream.add("An *answer*")
    assert [line.strip() for line in screen.getvalue().splitlines() if line.strip()] == [
        "Hmm, *stars*",
        "An answer",
    ]


async def test_every_event_of_a_turn_can_be_shown() -> None:
    finished = Finished("stop")
    events: list[Event] = [
        Queued(2),
        Loading("m", "download", 0.5),
        Loading("m", "load"),
        Started(ContextReport("full", window=1, budget=1, prompt_tokens=1)),
        ReasoningDelta("Hmm"),
        TextDelta("Hello"),
        finished,
    ]
    screen = io.StringIO()
    with MarkdownStream(Console(file=screen, width=60, force_terminal=True)) as stream:
        assert await show_events(each(events), stream) is finished
    for shown in (
        "2nd in line",
        "Downloading m ... 50%",
        "Loading m",
        "Reading the prompt",
        "Hmm",
        "Hello",
    ):
        assert shown in screen.getvalue()


async def test_a_failure_is_the_end_too() -> None:
    failed = Failed("engine_interrupted", "It died.")
    with MarkdownStream(Console(file=io.StringIO())) as stream:
        assert await show_events(each([failed]), stream) is failed


async def each(events: list[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event
