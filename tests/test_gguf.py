from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.catalog.gguf import read_gguf
from rallychat.errors import SettingsError
from tests.gguf_file import CHAT, TOKENS, gguf_bytes


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_a_header_tells_what_the_model_is(tmp_path: Path) -> None:
    header = read_gguf(written(tmp_path, gguf_bytes()))
    assert (header.architecture, header.name, header.license) == ("llama", "Tiny", "mit")
    assert (header.context_length, header.chat_template) == (4096, "{{ messages }}")
    assert (header.tokens, header.control_tokens) == (TOKENS, ("<|start|>", "<|end|>"))
    assert (header.bos_token, header.eos_token, header.add_bos) == ("<|start|>", "<|end|>", False)
    assert header.parameters == 64 * 5 + 64
    assert header.rollback


def test_kv_bytes_are_two_bytes_for_each_key_and_value_of_each_layer(tmp_path: Path) -> None:
    assert read_gguf(written(tmp_path, gguf_bytes())).kv_bytes_per_token == 2 * 2 * 2 * (16 + 16)


def test_key_and_value_lengths_and_heads_by_layer_are_heeded(tmp_path: Path) -> None:
    metadata = CHAT | {
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 8,
        "llama.attention.head_count_kv": [1, 3],
    }
    assert read_gguf(written(tmp_path, gguf_bytes(metadata))).kv_bytes_per_token == 2 * 4 * (32 + 8)


@pytest.mark.parametrize("key", ["llama.attention.sliding_window", "llama.ssm.state_size"])
def test_a_sliding_window_or_a_recurrent_state_cannot_be_rolled_back(tmp_path: Path, key: str) -> None:
    assert not read_gguf(written(tmp_path, gguf_bytes(CHAT | {key: 512}))).rollback


def test_what_a_file_does_not_say_is_empty_not_guessed(tmp_path: Path) -> None:
    header = read_gguf(written(tmp_path, gguf_bytes({"general.architecture": "llama"}, tensors=())))
    assert (header.name, header.license, header.chat_template, header.context_length) == ("", "", None, None)
    assert (header.bos_token, header.eos_token, header.add_bos, header.control_tokens) == ("", "", None, ())
    assert (header.kv_bytes_per_token, header.parameters) == (None, 0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" * 8, "does not begin with 'GGUF'"),
        (b"GGUF", "ends within its header"),
        (gguf_bytes(version=1), "format version 1"),
        (gguf_bytes()[:200], "runs past its end"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "claims 1152921504606846976 metadata keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "a text of 4611686018427387904 bytes"),
        (
            b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 8, 1 << 61),
            "an array of 2305843009213693952 texts",
        ),
        (
            b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 4, 1 << 61),
            "an array of 2305843009213693952 numbers",
        ),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 9, 1), "items of the unsupported type 9"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 99), "value type 99"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 1, 0, 0, 1000), "claims 1000 dimensions"),
    ],
)
def test_a_broken_file_is_one_clear_sentence(tmp_path: Path, data: bytes, says: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(SettingsError) as caught:
        read_gguf(path)
    assert says in caught.value.message
    assert str(path) in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.gguf cannot be read: no such file"):
        read_gguf(tmp_path / "nowhere.gguf")


@given(at=st.integers(0, 600), replaced=st.binary(min_size=1, max_size=12), cut=st.integers(0, 2000))
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, replaced: bytes, cut: int
) -> None:
    whole = gguf_bytes()
    damaged = (whole[:at] + replaced + whole[at + len(replaced) :])[: cut or None]
    read_or_refused(tmp_path_factory.mktemp("damaged"), damaged)


@given(st.binary(max_size=400))
def test_any_bytes_behind_the_magic_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    read_or_refused(tmp_path_factory.mktemp("any"), b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + data)


@given(
    st.dictionaries(
        st.sampled_from(sorted(CHAT)),
        st.one_of(
            st.integers(0, 2**32 - 1),
            st.text(max_size=9),
            st.booleans(),
            st.lists(st.integers(-9, 9), min_size=1),
        ),
    )
)
def test_values_of_unexpected_types_never_raise(
    tmp_path_factory: pytest.TempPathFactory, strange: dict[str, Any]
) -> None:
    read_or_refused(tmp_path_factory.mktemp("strange"), gguf_bytes(CHAT | strange))


def read_or_refused(folder: Path, data: bytes) -> None:
    try:
        header = read_gguf(written(folder, data))
    except SettingsError:
        return
    assert isinstance(header.bos_token + header.eos_token + header.architecture, str)
    assert header.kv_bytes_per_token is None or header.kv_bytes_per_token >= 0
    assert all(isinstance(text, str) for text in header.control_tokens)


@pytest.mark.real
def test_the_default_model_says_what_its_authors_say(smollm2_gguf: Path) -> None:
    header = read_gguf(smollm2_gguf)
    assert (header.architecture, header.license, header.context_length) == ("llama", "apache-2.0", 8192)
    assert (len(header.tokens), header.parameters, header.kv_bytes_per_token) == (49152, 134515008, 23040)
    assert (header.bos_token, header.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_end|>" in header.control_tokens
    assert "<|im_start|>" in (header.chat_template or "")
