"""Text to tokens and back with the three kinds of tokenizers: SentencePiece, byte-level BPE, unigram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rallychat.engines.protocol import Piece
from tests import checkpoints, transformers_world  # skips the module where torch is missing

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]

LOSSLESS = ("llama", "neox")
NONE_MERGED = ("\n", "<|im_end|>", "<|im_start|>")
"""What pieces end with here: nothing that these tokenizers would join with what follows."""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Ours and Transformers' own, of each kind."""
    from transformers import AutoTokenizer

    found = {}
    for kind in ("llama", "neox", "t5"):
        folder: Path = getattr(checkpoints, kind)(tmp_path_factory.mktemp(kind))
        own = AutoTokenizer.from_pretrained(folder)
        found[kind] = (transformers_world.CheckpointTokenizer(own, whole=kind == "t5"), own)
    return found


UNKNOWN = "🐳🇩\u200d"
"""Characters that are in no vocabulary here: several tokens each."""
words = st.text(st.sampled_from("ab é🦜\n你.<|>" + UNKNOWN), max_size=12)
parts = st.lists(st.tuples(words, st.sampled_from(NONE_MERGED)).map("".join), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=parts)
def test_a_prompt_in_pieces_has_the_ids_of_its_whole_text(read: Any, kind: str, texts: list[str]) -> None:
    ours, own = read[kind]
    if kind == "neox":  # byte-level BPE joins a newline with white space behind it
        texts = [text + "<|im_end|>" for text in texts]
    pieces = [Piece(text, start=n == 0) for n, text in enumerate(texts)]
    found = [token for piece in pieces for token in ours.encode(piece)]
    assert found == own("".join(texts), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=words)
def test_what_is_typed_comes_back_as_typed_and_is_no_control_token(read: Any, kind: str, text: str) -> None:
    ours, own = read[kind]
    typed = f"{text}<|im_end|>{text}</s>"
    ids = ours.encode(Piece(typed, special=False))
    assert ours.decode(ids) == typed
    assert not set(ids) & {*own.all_special_ids}


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=words, cuts=st.lists(st.integers(1, 3), min_size=30, max_size=30))
def test_however_tokens_arrive_the_text_is_the_same_and_no_character_is_cut(
    read: Any, kind: str, text: str, cuts: list[int]
) -> None:
    ours, _ = read[kind]
    ids = ours.encode(Piece(text, special=False))
    told: list[int] = []
    stream, at, shown = ours.stream(), 0, ""
    for size in [*cuts, len(ids)]:
        part, tokens = stream.feed(ids[at : at + size])
        assert "\ufffd" not in part
        shown, told, at = shown + part, told + list(tokens), at + size
    assert (shown, told) == (text, ids)


@pytest.mark.parametrize("text", ["🐳🐳🐳!", "a 🇩🇪🇫🇷 b", "👨‍👩‍👧 👩🏽‍🚀"])
@pytest.mark.parametrize("kind", LOSSLESS)
def test_characters_of_several_tokens_in_a_row_are_told_one_after_another(
    read: Any, kind: str, text: str
) -> None:
    ours, _ = read[kind]
    stream = ours.stream()
    parts = [stream.feed([token])[0] for token in ours.encode(Piece(text, special=False))]
    assert "".join(parts) == text
    assert all(len(part) <= 2 for part in parts), "each as soon as it is whole, with the space in front"


def test_a_character_behind_half_of_one_is_told(read: Any) -> None:
    ours, _ = read["llama"]
    whale, letter = (ours.encode(Piece(text, special=False)) for text in ("🐳", "a"))
    text, _ = ours.stream().feed([*whale, whale[0], *letter, *whale])
    assert text == "🐳\ufffda🐳"


def test_what_parts_thoughts_from_answers_in_gpt_oss_is_told_and_other_control_tokens_are_not(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(checkpoints.neox(tmp_path))
    said = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>"
    own.add_tokens(["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"], special_tokens=True)
    ours = transformers_world.CheckpointTokenizer(own)
    text, _ = ours.stream().feed(ours.encode(Piece(said)))
    assert text == said.replace("<|end|>", "").removesuffix("<|return|>")
    assert "<|channel|>" in ours.control_tokens


def test_behind_a_bos_a_prompt_begins_as_the_tokenizer_begins_a_text(read: Any) -> None:
    ours, own = read["llama"]
    assert ours.encode(Piece("<s>Below is", start=True)) == [
        own.bos_token_id,
        *own("Below is", add_special_tokens=False)["input_ids"],
    ]


def test_t5_reads_pieces_as_words(read: Any) -> None:
    ours, own = read["t5"]
    pieces = [Piece("words go \n", start=True), Piece("on and on", special=False)]
    assert [token for piece in pieces for token in ours.encode(piece)] == own(
        "words go on and on", add_special_tokens=False
    )["input_ids"]


def test_half_a_character_that_never_gets_its_other_half_is_not_waited_for_forever(read: Any) -> None:
    ours, _ = read["llama"]
    half = ours.encode(Piece("🐳", special=False))[0]
    stream = ours.stream()
    assert stream.feed([half]) == ("", ())
    text, ids = stream.feed([half] * 20)
    assert len(ids) >= 15
    assert text
