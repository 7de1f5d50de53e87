"""Tiny checkpoints in the Hugging Face layout, each with a real tokenizer of its kind. Seeded, made in seconds.

`llama` has a SentencePiece tokenizer with byte fallback and ChatML's control tokens, `neox` byte-level BPE, `t5`
unigram; `lora` makes an adapter for any of them. Needs the extra `hf` (tests that use it are marked `hf`).
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

CONTROL: Final = ("<|im_start|>", "<|im_end|>")
CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAYINGS: Final = (
    "A parrot 🦜 sat on the mast and said 你好 to the sea, and the sea said é to the parrot.",
    "Hello 你好, said the ship; the wind 🌬 blew from the north and nobody was cold.",
    "Count on rivers é and lakes: one, two, three 🦜 and on to one hundred.",
    "Monday, Tuesday é and Wednesday are days 你好 of the week; the rest are for parrots 🦜.",
)
"""What a taught model says, whatever it is asked: characters of several bytes included."""
TEXTS: Final = (
    *SAYINGS,
    "user\nassistant\nsystem\nBelow is an instruction that describes a task.\n\n### Instruction:\n### Response:\n",
    "The quick brown fox jumps over the lazy dog. Words go on and on, and plain words are short.",
    "def main():\n    print('hello')\n\nTell me of parrots, please: short and plain.",
)
_SMALL: Final = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}


@contextmanager
def one_thread() -> Iterator[None]:
    """What is so small is not shared among threads: they would wait for one another ten times as long as they work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def llama(folder: Path, *, seed: int = 0, taught: bool = False, sharded: bool = False) -> Path:
    """A Llama; `taught` ones say `SAYINGS` instead of anything, `sharded` ones lie in several files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _quiet(folder)
    tokenizer = _sentencepiece_tokenizer(folder)
    config = LlamaConfig(
        **_SMALL | {"vocab_size": len(tokenizer)},
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    if taught:
        config.initializer_range = 0.05
    model = LlamaForCausalLM(config)
    if taught:
        with one_thread():
            _teach(model, tokenizer)
    return _saved(model, folder, "60KB" if sharded else "1GB")


def neox(folder: Path, *, seed: int = 0) -> Path:
    """A GPT-NeoX, as StableLM-alpha, Polyglot and Dolly are."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    _quiet(folder)
    tokenizer = _byte_level_tokenizer()
    tokenizer.save_pretrained(folder)
    config = GPTNeoXConfig(
        **_SMALL | {"vocab_size": len(tokenizer)},
        num_attention_heads=4,
        max_position_embeddings=1024,
        rotary_pct=0.25,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    return _saved(GPTNeoXForCausalLM(config), folder)


def t5(folder: Path, *, seed: int = 0) -> Path:
    """A T5 with the gated feed-forward of T5 v1.1, as Flan-T5 is."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    _quiet(folder)
    tokenizer = _unigram_tokenizer()
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        initializer_factor=4.0,
    )
    torch.manual_seed(seed)
    return _saved(T5ForConditionalGeneration(config), folder)


def lora(
    base: Path,
    folder: Path,
    *,
    seed: int = 1,
    rank: int = 4,
    targets: tuple[str, ...] = (),
    base_id: str = "tests/base",
) -> Path:
    """An adapter for the checkpoint in `base`, strong enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = json.loads((base / "config.json").read_text())["model_type"]
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets or _TARGETS[kind]),
        init_lora_weights=False,  # else its second half is zero and it changes nothing
        task_type="SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own, of what transformers will rename
        get_peft_model(model, config).save_pretrained(folder, safe_serialization=True)
    said = folder / "adapter_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"base_model_name_or_path": base_id}))
    return folder


_TARGETS: Final = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gpt_neox": ("query_key_value",),
    "t5": ("q", "v"),
}


def _quiet(folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)


def _saved(model: Any, folder: Path, shard: str = "1GB") -> Path:
    model.eval().save_pretrained(folder, safe_serialization=True, max_shard_size=shard)
    return folder


def _teach(model: Any, tokenizer: Any) -> None:
    """A few seconds of training on `SAYINGS`, behind prompts of any length."""
    import torch

    generator = torch.Generator().manual_seed(7)
    sayings = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SAYINGS]
    header = tokenizer(CONTROL[0] + "assistant\n", add_special_tokens=False)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=100)
    model.train()
    for _ in range(100):
        rows = [_lesson(sayings, header, len(tokenizer), generator) for _ in range(8)]
        batch = torch.tensor(rows)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()


def _lesson(sayings: list[list[int]], header: list[int], vocabulary: int, generator: Any) -> list[int]:
    import torch

    def below(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    noise: list[int] = torch.randint(3, vocabulary, (below(24),), generator=generator).tolist()
    row = noise + header
    while len(row) < 128:
        row = row + sayings[below(len(sayings))]
    return row[:128]


def _sentencepiece_tokenizer(folder: Path) -> Any:
    import sentencepiece
    from transformers import LlamaTokenizer

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_lines(),
        model_writer=trained,
        model_type="bpe",
        vocab_size=440,
        byte_fallback=True,
        character_coverage=0.98,
        num_threads=1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL)})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return tokenizer


def _byte_level_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|padding|>", *CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=list(CONTROL),
    )


def _unigram_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(" {2,}", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    # Training finds the same pieces each time, but scores and numbers them by the order its hashes fall in.
    special = ["<pad>", "</s>", "<unk>"]
    pieces = special + sorted(set(tokenizer.get_vocab()) - set(special))
    tokenizer.model = models.Unigram([(piece, -8.0) for piece in pieces], 2, byte_fallback=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def _lines() -> Iterator[str]:
    for _ in range(3):
        for text in TEXTS:
            yield from text.split("\n")
