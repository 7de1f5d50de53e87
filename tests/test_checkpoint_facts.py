"""What a checkpoint says of itself, read from its small files; what is not as it should be says nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat import templates
from rallychat.catalog import Catalog, Checkpoint, Model
from rallychat.catalog.repository import Said, is_adapter, pickles, wanted, weights
from rallychat.errors import NotFound
from rallychat.messages import Message
from rallychat.pool import Pool
from rallychat.settings import Settings
from rallychat.sources import Downloads
from tests.checkpoint_files import TEMPLATE, adapter_files, checkpoint_files


def said(files: dict[str, Any]) -> Said:
    return Said(lambda name: files[name] if isinstance(files.get(name), bytes) else None)


def written(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_checkpoint_says_its_architecture_its_window_and_what_a_token_takes() -> None:
    what = said(checkpoint_files())
    assert (what.architecture, what.kind, what.window) == ("LlamaForCausalLM", "llama", 2048)
    assert what.cache_bytes_per_token == 4 * 2 * 2 * 16
    assert (what.bos_token, what.eos_token, what.chat_template) == ("<s>", "</s>", "")
    assert what.control_tokens == ("<s>", "</s>")


@pytest.mark.parametrize(
    ("config", "window", "cache"),
    [
        # https://huggingface.co/EleutherAI/pythia-6.9b: no key-value heads are named
        ({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}, None, 4 * 32 * 4096),
        # T5 keeps what the decoder said and what the encoder read
        (
            {"d_model": 2048, "d_kv": 64, "num_heads": 32, "num_layers": 24, "num_decoder_layers": 24}
            | {"n_positions": 512},
            512,
            2 * 4 * 24 * 32 * 64,
        ),
        # one key-value head for all
        (
            {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "multi_query": True},
            None,
            4 * 32 * 64,
        ),
        ({"d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048}, 2048, 4 * 32 * 4096),
        ({"text_config": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}}, None, 256),
        ({"num_hidden_layers": -1, "num_attention_heads": "x", "max_position_embeddings": True}, None, None),
    ],
    ids=["neox", "t5", "falcon", "mpt", "gemma3", "nonsense"],
)
def test_every_kind_of_configuration_is_read(
    config: dict[str, Any], window: int | None, cache: int | None
) -> None:
    what = said({"config.json": json.dumps(config).encode()})
    assert (what.window, what.cache_bytes_per_token) == (window, cache)


def test_the_chat_template_is_found_wherever_it_stands() -> None:
    tokenizer = {
        "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    }
    files = {"tokenizer_config.json": json.dumps(tokenizer).encode()}
    assert said(files).chat_template == "D"
    files["chat_template.json"] = b'{"chat_template": "J"}'
    assert said(files).chat_template == "J"
    files["chat_template.jinja"] = b"X"
    assert said(files).chat_template == "X"


def test_control_tokens_are_those_of_the_tokenizer_file_where_the_configuration_names_none() -> None:
    added = [{"content": "<|end|>", "special": True}, {"content": "<tool>", "special": False}]
    what = said({"tokenizer.json": json.dumps({"added_tokens": added}).encode()})
    assert what.control_tokens == ("<|end|>",)


def test_names_decide_what_is_wanted() -> None:
    assert wanted(["config.json", "model.safetensors", "model.bin", "x/config.json", "../config.json"]) == [
        "config.json",
        "model.safetensors",
    ]
    index = "model.safetensors.index.json"
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert weights([*shards, index, "consolidated.safetensors"]) == [index, *shards]
    assert weights(["model-00001-of-00002.safetensors"]) == []
    assert pickles(["pytorch_model.bin", "training_args.bin", "adapter_model.bin"]) == [
        "adapter_model.bin",
        "pytorch_model.bin",
    ]
    assert is_adapter(adapter_files())
    assert not is_adapter(checkpoint_files())
    assert wanted(["modeling.py", "a b.py"], code=True) == ["modeling.py"]
    assert wanted(["modeling.py"]) == []


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "architectures",
    "model_type",
    "text_config",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
)
KEYS_OF_TOKENIZERS = ("chat_template", "bos_token", "added_tokens_decoder", "added_tokens")


@given(
    config=st.binary(max_size=64) | st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON)),
    tokenizer=st.binary(max_size=64)
    | st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS_OF_TOKENIZERS, JSON)),
)
def test_whatever_the_files_hold_they_say_something_or_nothing(config: Any, tokenizer: Any) -> None:
    held = {"config.json": config, "tokenizer_config.json": tokenizer, "tokenizer.json": tokenizer}
    files = {
        name: value if isinstance(value, bytes) else json.dumps(value).encode()
        for name, value in held.items()
    }
    what = said(files)
    texts = (what.architecture, what.kind, what.chat_template, what.bos_token, what.eos_token, what.base)
    assert all(isinstance(text, str) for text in (*texts, *what.control_tokens))
    for number in (what.window, what.cache_bytes_per_token, what.width):
        assert number is None or number > 0


def in_folder(folder: Path, family: str) -> Model:
    return Model(id="m", name="M", family=family, checkpoint=Checkpoint(path=str(folder)))


async def test_a_prompt_is_rendered_without_the_engine(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    families = Catalog.load(settings).families
    folder = written(checkpoint_files(template=TEMPLATE), tmp_path / "own")
    pool = Pool(settings, Downloads(settings))
    model = in_folder(folder, "shipped")
    template = await templates.of_model(model, families["shipped"], folder, pool)
    typed = template.render([Message.of("user", "a </s> b")])
    assert typed.text == "<user>a </s> b<assistant>"
    assert [piece.text for chunk in typed.chunks for piece in chunk.pieces if not piece.special] == ["</s>"]

    own = model.model_copy(update={"template": "own:{{ messages[0]['content'] }}"})
    assert (await templates.of_model(own, families["shipped"], folder, pool)).source.startswith("own:")
    with pytest.raises(NotFound, match="rallychat models download m"):
        await templates.of_model(model, families["shipped"], tmp_path / "none", pool)
