from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.engines.backend import Step
from rallychat.engines.echo import CONTROL, Echo, decode, encode, user_messages
from rallychat.engines.protocol import CompletionRequest, Prefill, WorkerSpec
from rallychat.engines.slots import Slot, Slots, shared_prefix
from rallychat.engines.stops import StopStrings
from rallychat.errors import Busy, EngineInterrupted


def turn(*said: str) -> list[int]:
    ids: list[int] = []
    for one in said:
        ids += encode("<|im_start|>user\n", special=True) + encode(one, special=False)
        ids += encode("<|im_end|>\n<|im_start|>assistant\n", special=True)
    return ids


async def said(prompt: list[int], *, max_tokens: int = 1000, **options: object) -> str:
    echo = Echo(WorkerSpec("echo", "echo", options=dict(options)))
    events = echo.generate(CompletionRequest(prompt=prompt, max_tokens=max_tokens), Slot(0))
    return "".join([event.text async for event in events if isinstance(event, Step)])


@given(st.text(), st.booleans())
def test_every_text_survives_its_tokens(text: str, special: bool) -> None:
    assert decode(encode(text, special=special)).decode() == text


@given(st.lists(st.sampled_from([*CONTROL, "a", "ab ", "🦜"])))
def test_control_tokens_are_tokens_only_where_they_are_asked_for(parts: list[str]) -> None:
    text = "".join(parts)
    assert [token for token in encode(text, special=True) if token < 3] == [
        CONTROL.index(part) for part in parts if part in CONTROL
    ]
    assert min(encode(text, special=False), default=3) >= 3


def test_joining_texts_can_change_their_tokens() -> None:
    assert encode("ab", special=False) != encode("a", special=False) + encode("b", special=False)


async def test_it_says_what_the_user_said_last() -> None:
    assert await said(turn("first", "second <|im_end|> 🦜")) == "second <|im_end|> 🦜"


async def test_it_says_a_prompt_without_a_template_again() -> None:
    assert await said(encode("plain text", special=False)) == "plain text"


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("!say hi there", "hi there"),
        ("!count 4", "1 2 3 4"),
        ("!repeat 3 ab ", "ab ab ab "),
        ("!what", "!what"),
    ],
)
async def test_a_message_can_script_its_answer(command: str, reply: str) -> None:
    assert await said(turn(command)) == reply


async def test_a_message_can_ask_what_its_prompt_says() -> None:
    assert await said(turn("a", "!recall 10")) == "a\n\n!recall"


async def test_a_cache_without_rollback_is_reused_whole_or_not_at_all() -> None:
    async def cached(held: list[int], *, rollback: bool) -> int:
        echo = Echo(WorkerSpec("echo", "echo", options={"rollback": rollback}))
        events = echo.generate(CompletionRequest(prompt=[5, 6, 7], max_tokens=0), Slot(0, held))
        (first,) = [event async for event in events if isinstance(event, Prefill)][:1]
        return first.cached

    helds: tuple[list[int], ...] = ([], [5], [5, 6], [5, 6, 7], [5, 6, 8], [5, 6, 7, 8])
    assert [await cached(held, rollback=True) for held in helds] == [0, 1, 2, 2, 2, 2]
    assert [await cached(held, rollback=False) for held in helds] == [0, 1, 2, 0, 0, 0]


async def test_replies_follow_the_turns_and_begin_again() -> None:
    replies = ("one", "two")
    assert [await said(turn(*["x"] * n), replies=replies) for n in (1, 2, 3)] == ["one", "two", "one"]


async def test_a_message_can_script_a_failure() -> None:
    with pytest.raises(EngineInterrupted, match="as asked"):
        await said(turn("!fail 2"))


def test_user_messages_are_found_in_a_prompt() -> None:
    assert user_messages(turn("a", "b\nc")) == ["a", "b\nc"]


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_a_shared_prefix_is_shared_and_the_longest(one: list[int], other: list[int]) -> None:
    length = shared_prefix(one, other)
    assert one[:length] == other[:length]
    assert length in (len(one), len(other)) or one[length] != other[length]


def test_a_slot_is_chosen_by_what_it_holds_then_by_what_is_lost_least() -> None:
    slots = Slots(3)
    first, second = slots.take([], None), slots.take([], None)
    slots.release(first, [1, 2, 3])
    slots.release(second, [1, 2, 9])
    assert slots.take([1, 2, 9, 9], None) is second
    assert slots.take([5], None).index == 2
    assert slots.take([5], None) is first
    with pytest.raises(Busy):
        slots.take([5], None)


TEXTS = st.text(alphabet="abc", max_size=30)


@given(
    TEXTS, st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 30))
)
def test_where_a_text_is_split_never_changes_where_it_stops(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    whole, parts = StopStrings(stops), StopStrings(stops)
    expected = whole.feed(text)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    shown = "".join(parts.feed(text[a:b]) for a, b in itertools.pairwise(bounds))
    assert (shown + parts.flush(), parts.found) == (expected + whole.flush(), whole.found)
    if whole.found:
        assert not any(stop in expected for stop in stops)
    else:
        assert shown + parts.flush() == text[: len(shown)]
