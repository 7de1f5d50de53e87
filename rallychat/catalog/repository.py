"""Which files of a checkpoint's repository are wanted, and what they say of it. Knows names and JSON; never a network.

Everything here is untrusted: a file that is not what it should be says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

Read = Callable[[str], bytes | None]
"""Gives a small file's content by its name, or None if there is none."""

CONFIG: Final = "config.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
MANIFEST: Final = "rallychat.json"
"""What RallyChat writes beside the files it fetched."""
_TELLING: Final = (CONFIG, ADAPTER_CONFIG, "generation_config.json")
_TOKENIZER: Final = re.compile(
    r"tokenizer\.(?:json|model)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(?:json|txt)|merges\.txt|spiece\.model|sentencepiece\.bpe\.model|tekken\.json"
    r"|[\w.-]+\.tiktoken|chat_template\.(?:jinja|json)"
)
_SHARD: Final = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_WEIGHTS: Final = ("model.safetensors", "adapter_model.safetensors")
_PICKLE: Final = re.compile(r"(?:pytorch_model|adapter_model|model)[\w.-]*\.(?:bin|pt|pth|ckpt)")
_PICKLED: Final = re.compile(r"(?:pytorch_|adapter_)model\.bin|pytorch_model-\d{5}-of-\d{5}\.bin")
"""How weights were published in 2023; turned into safetensors as they arrive."""
_INDEX: Final = "model.safetensors.index.json"


def wanted(names: Iterable[str], *, code: bool = False) -> list[str]:
    """The files that transformers reads, small ones first. `code`: its Python too."""
    there = set(names)
    small = [name for name in there if name in _TELLING or _TOKENIZER.fullmatch(name)]
    if code:
        small += [name for name in there if re.fullmatch(r"\w+\.py", name)]
    return [*sorted(small), *(weights(there) or pickled(there))]


def weights(names: Iterable[str]) -> list[str]:
    """The safetensors files, and their index if there are several."""
    there = set(names)
    shards = sorted(filter(_SHARD.fullmatch, there)) if _INDEX in there else []
    if shards:
        return [_INDEX, *shards, *(["adapter_model.safetensors"] if _WEIGHTS[1] in there else [])]
    return [name for name in _WEIGHTS if name in there]


def pickled(names: Iterable[str]) -> list[str]:
    """The pickles of a repository that has its weights in no other form, as `torch.save` writes them."""
    there = set(names)
    if weights(there):
        return []
    if is_adapter(there):
        return sorted(there & {"adapter_model.bin"})
    whole = there & {"pytorch_model.bin"}
    return sorted(whole or (name for name in there if _PICKLED.fullmatch(name)))


def as_safetensors(name: str) -> str:
    """What a pickle is called once it is safetensors."""
    return name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


def pickles(names: Iterable[str]) -> list[str]:
    """Files of weights that can run code when they are loaded."""
    return sorted(filter(_PICKLE.fullmatch, names))


def is_adapter(names: Iterable[str]) -> bool:
    """It holds an adapter, not a model by itself."""
    there = set(names)
    return ADAPTER_CONFIG in there and CONFIG not in there


@dataclass(frozen=True)
class Said:
    """What a checkpoint or adapter says of itself. `read` gives its small files."""

    read: Read
    _seen: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, folder: Path) -> Said:
        """What the files in a folder say."""

        def read(name: str) -> bytes | None:
            try:
                return (folder / name).read_bytes()
            except OSError:
                return None

        return cls(read)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """`config.json`; of a model that sees too, the part about text laid over the whole."""
        whole = self._table(CONFIG)
        text = whole.get("text_config")
        return {**whole, **text, **_naming(whole)} if isinstance(text, dict) else whole

    @cached_property
    def adapter(self) -> Mapping[str, Any]:
        """`adapter_config.json`."""
        return self._table(ADAPTER_CONFIG)

    @property
    def architecture(self) -> str:
        """The class that wrote it: `LlamaForCausalLM`; empty if it does not say."""
        named = self.config.get("architectures")
        return next((name for name in named if isinstance(name, str)), "") if isinstance(named, list) else ""

    @property
    def kind(self) -> str:
        """transformers' word for its architecture: `llama`, `gpt_neox`, `t5`."""
        return _text(self.config.get("model_type"))

    @property
    def own_code(self) -> bool:
        """It can only be opened by Python code that lies with it."""
        return isinstance(self.config.get("auto_map"), dict)

    @property
    def packing(self) -> str:
        """The method its weights were quantised with (`gptq`, `awq`); empty if they were not."""
        found = self.config.get("quantization_config")
        return _text(found.get("quant_method")) if isinstance(found, dict) else ""

    @property
    def base(self) -> str:
        """An adapter's base: the hub id or folder it was trained on."""
        return _text(self.adapter.get("base_model_name_or_path"))

    @property
    def window(self) -> int | None:
        """Tokens it was trained to see."""
        found = self._number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
        return found if found and found >= 256 else None

    @property
    def cache_bytes_per_token(self) -> int | None:
        """Bytes of KV cache one token takes at 16 bits, all layers together; None if it cannot be told."""
        layers = self._number("num_decoder_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
        heads = self._number("num_attention_heads", "n_head", "n_heads", "num_heads")
        if not layers or not heads:
            return None
        width = self.width
        head = self._number("head_dim", "d_kv") or (width // heads if width else 0)
        shared = 1 if self.config.get("multi_query") is True else None
        kept = self._number("num_key_value_heads", "num_kv_heads") or shared or heads
        both = 2 if self._number("num_decoder_layers") else 1  # an encoder's text is kept as well
        return 4 * both * layers * kept * head or None

    @property
    def width(self) -> int | None:
        """Numbers that stand for one token between two layers."""
        return self._number("hidden_size", "n_embd", "d_model")

    @cached_property
    def chat_template(self) -> str:
        """The Jinja chat template it ships, or empty."""
        if written := self.read("chat_template.jinja"):
            return written.decode("utf-8", errors="replace")
        for table in (self._table("chat_template.json"), self._tokenizer):
            if found := _template(table.get("chat_template")):
                return found
        return ""

    @property
    def bos_token(self) -> str:
        """Text of the token a sequence begins with, or empty."""
        return self._special("bos_token")

    @property
    def eos_token(self) -> str:
        """Text of the token an answer ends with, or empty."""
        return self._special("eos_token")

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts of the control tokens."""
        decoder = self._tokenizer.get("added_tokens_decoder")
        added = (
            list(decoder.values())
            if isinstance(decoder, dict)
            else self._table("tokenizer.json").get("added_tokens")
        )
        listed = added if isinstance(added, list) else []
        found = [
            _text(each.get("content"))
            for each in listed
            if isinstance(each, dict) and each.get("special") is True
        ]
        named = [self._special(f"{name}_token") for name in ("bos", "eos", "unk", "pad")]
        return tuple(dict.fromkeys(filter(None, [*found, *named])))

    @property
    def _tokenizer(self) -> Mapping[str, Any]:
        return self._table("tokenizer_config.json")

    def _special(self, name: str) -> str:
        for table in (self._tokenizer, self._table("special_tokens_map.json")):
            value = table.get(name)
            if found := _text(value.get("content") if isinstance(value, dict) else value):
                return found
        return ""

    def _number(self, *names: str) -> int | None:
        found = (self.config.get(name) for name in names)
        numbers = (value for value in found if isinstance(value, int) and not isinstance(value, bool))
        return next((value for value in numbers if 0 < value < 2**32), None)

    def _table(self, name: str) -> Mapping[str, Any]:
        if name not in self._seen:
            try:
                value = json.loads(self.read(name) or b"{}")
            except (ValueError, RecursionError):
                value = {}
            self._seen[name] = value if isinstance(value, dict) else {}
        table: Mapping[str, Any] = self._seen[name]
        return table


def _naming(whole: Mapping[str, Any]) -> dict[str, Any]:
    return {name: whole[name] for name in ("architectures", "model_type", "auto_map") if name in whole}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _template(value: object) -> str:
    """One template, or the default one of a list of named ones."""
    if isinstance(value, list):
        named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
        value = named.get("default")
    return _text(value)
