"""The Transformers engine beside its answers: what it refuses, how it chooses tokens, how it falls back."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import checkpoints
from tests.transformers_world import Plain, answered, opened, unread

from rallychat.engines.backend import Step  # isort: skip
from rallychat.engines.protocol import CompletionRequest  # isort: skip
from rallychat.engines.slots import Slot  # isort: skip
from rallychat.engines.transformers import _Reader  # isort: skip
from rallychat.errors import EngineInterrupted, EngineUnavailable, SettingsError  # isort: skip

if TYPE_CHECKING:
    from rallychat.engines.hf_decoder import Work

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]

PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama(tmp_path_factory.mktemp("llama"))


def other(base: Path, folder: Path, **config: Any) -> Path:
    """The checkpoint, saying something else of itself."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).symlink_to(path)
    said = json.loads((base / "config.json").read_text()) | config
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(said))
    return folder


# --- what is refused --------------------------------------------------------------------------------------


async def test_pickled_weights_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    folder = other(llama, tmp_path / "it")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EngineUnavailable, match=r"pickles \(pytorch_model.bin\)"):
        opened(folder)


async def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no config\.json"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"model_type": "unheard-of", "architectures": ["UnheardForCausalLM"]},
            "does not know.*UnheardForCausalLM",
        ),
        ({"model_type": "bert", "architectures": ["BertModel"], "is_decoder": False}, "could not load.*lack"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "'ViTModel'.*no model that writes"),
        (
            {"model_type": "own", "architectures": ["Own"], "auto_map": {"AutoConfig": "own.Own"}},
            "'Own' brings Python code of its own",
        ),
    ],
)
async def test_what_cannot_be_run_is_refused_with_its_name(
    llama: Path, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(EngineUnavailable, match=says):
        opened(other(llama, tmp_path / "it", **config))


async def test_an_option_that_does_not_exist_is_refused(llama: Path) -> None:
    with pytest.raises(SettingsError, match="Option 'colour' of the transformers engine"):
        opened(llama, colour="red")


async def test_sharded_weights_are_the_same_weights(llama: Path, tmp_path: Path) -> None:
    sharded = checkpoints.llama(tmp_path / "sharded", sharded=True)
    found = [await answered(unread(opened(folder)), PROMPT) for folder in (llama, sharded)]
    assert found[0] == found[1]


async def test_no_prompt_has_cudnn_plan_its_attention(llama: Path) -> None:
    """On a GPU a plan takes 80 ms for each length there was not before; a captured step has one for ever."""
    import torch
    from torch.backends.cuda import cudnn_sdp_enabled

    from rallychat.engines.hf_graphs import planned

    torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    await answered(unread(opened(llama)), PROMPT)
    assert not cudnn_sdp_enabled()
    with planned():
        assert cudnn_sdp_enabled()
    assert not cudnn_sdp_enabled()


# --- tokens -----------------------------------------------------------------------------------------------


async def test_a_seed_gives_the_same_answer_alone_and_among_others(llama: Path) -> None:
    backend = unread(opened(llama))
    asked: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 40, "seed": 5}
    alone, _ = await answered(backend, PROMPT, 0, **asked)
    company = [answered(backend, PROMPT[n:], n, temperature=2.0) for n in (1, 2, 3)]
    among, *_ = await asyncio.gather(answered(backend, PROMPT, 0, **asked), *company)
    assert among[0] == alone
    assert (await answered(backend, PROMPT, 0, **asked | {"seed": 6}))[0] != alone


async def test_a_penalty_that_is_high_enough_lets_nothing_come_twice(llama: Path) -> None:
    ids, _ = await answered(
        unread(opened(llama)), PROMPT, repetition_penalty=1e6, max_tokens=30, ignore_eos=True
    )
    assert len(set(ids)) == 30
    assert not set(ids) & set(PROMPT)


# --- models that need another way -------------------------------------------------------------------------


async def test_a_sliding_window_is_kept(llama: Path, tmp_path: Path) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=442, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(3)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    ids, _ = await answered(unread(opened(tmp_path)), PROMPT)
    assert ids == Plain(tmp_path).answer(PROMPT)


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
async def test_a_model_that_cannot_share_a_cache_has_one_per_slot(
    llama: Path, tmp_path: Path, kind: str
) -> None:
    import torch
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    torch.manual_seed(3)
    small = {"vocab_size": 442, "hidden_size": 64, "initializer_range": 0.3}
    model = (
        BloomForCausalLM(BloomConfig(**small, n_layer=2, n_head=4))
        if kind == "bloom"
        else MambaForCausalLM(MambaConfig(**small, num_hidden_layers=2, state_size=8))
    )
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    backend = unread(opened(tmp_path, prefill=16))
    assert backend.info.rollback is (kind == "bloom")
    plain = Plain(tmp_path)
    asked = [PROMPT, PROMPT[:20], PROMPT[3:]]
    found = await asyncio.gather(*(answered(backend, prompt, n) for n, prompt in enumerate(asked)))
    assert [ids for ids, _ in found] == [plain.answer(prompt) for prompt in asked]
    more = [*PROMPT, *found[0][0], 7, 8, 9]
    ids, done = await answered(backend, more, 0)
    assert (ids, done.cached_tokens) == (plain.answer(more), len(more) - 4)
    ids, done = await answered(backend, PROMPT[:30], 0)
    assert (ids, done.cached_tokens) == (plain.answer(PROMPT[:30]), 29 if backend.info.rollback else 0)


# --- where rows lie ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 2])
async def test_turns_of_one_conversation_move_no_row(
    llama: Path, monkeypatch: pytest.MonkeyPatch, slot: int
) -> None:
    from rallychat.engines.hf_cache import SlotCache

    moved: list[tuple[int, int]] = []
    swap = SlotCache.swap

    def noted(cache: SlotCache, one: int, other: int, columns: int) -> None:
        moved.append((one, other))
        swap(cache, one, other, columns)

    monkeypatch.setattr(SlotCache, "swap", noted)
    backend, plain, prompt = unread(opened(llama, prefill=16)), Plain(llama), PROMPT
    for turn in range(3):
        ids, _ = await answered(backend, prompt, slot)
        assert ids == plain.answer(prompt)
        prompt = [*prompt, *ids, 7 + turn]
    assert not moved


async def test_scores_that_are_in_order_are_not_copied(llama: Path) -> None:
    """An index in the machine's memory makes a GPU's step wait for its end."""
    import torch

    from rallychat.engines.hf_decoder import Work

    backend, given = unread(opened(llama)), []
    runner: Any = backend._steps._runner
    forward = runner._forward

    class Recorded:
        def __call__(self, *said: Any) -> Any:
            given.append(forward(*said))
            return given[-1]

        def __getattr__(self, name: str) -> Any:
            return getattr(forward, name)

    runner._forward = Recorded()
    with torch.inference_mode():
        assert runner.evaluate([Work(3, PROMPT)]) is given[-1]
        runner.evaluate([Work(0, PROMPT[:9])])
        there, back = (runner.evaluate([Work(slot, [7]) for slot in order]) for order in ((0, 3), (3, 0)))
    assert there.shape == back.shape == given[-1].shape
    assert [each is one for each, one in zip((there, back), given[-2:], strict=True)].count(True) == 1


# --- failing and leaving ----------------------------------------------------------------------------------


async def test_a_step_that_fails_ends_its_answers_and_the_engine_goes_on(llama: Path) -> None:
    backend = unread(opened(llama))
    good, _ = await answered(backend, PROMPT)
    evaluate = backend._steps._runner.evaluate
    backend._steps._runner.evaluate = lambda work: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(EngineInterrupted, match="ZeroDivisionError"):
        await answered(backend, PROMPT)
    backend._steps._runner.evaluate = evaluate  # type: ignore[method-assign]
    ids, done = await answered(backend, PROMPT)
    assert (ids, done.cached_tokens) == (good, 0)


async def test_a_step_that_takes_the_gpu_along_ends_the_process(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    codes: list[int] = []
    backend = unread(opened(llama))
    backend._steps._runner.evaluate = lambda work: lost()  # type: ignore[method-assign]
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    for gone, expected in ((False, []), (True, [1])):
        if gone:
            monkeypatch.setattr(torch.cuda, "synchronize", lost)
        with pytest.raises(EngineInterrupted, match="illegal memory access"):
            await answered(backend, PROMPT)
        assert codes == expected, "another worker is started where this one can do nothing more"


def test_tokens_of_half_a_character_count_once_the_character_is_told() -> None:
    """A stop string may end the answer before: what was told of it is what it has cost."""

    class Withholding:
        def feed(self, tokens: list[int]) -> tuple[str, tuple[int, ...]]:
            return "a", tuple(tokens[:1])

    (step,) = _Reader(Withholding()).read(deque([7, 8, 9]))
    assert isinstance(step, Step)
    assert (step.ids, step.count) == ((7,), 1)


async def test_leaving_an_answer_of_which_nobody_heard_the_end_waits_without_turning(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told after one had left woke whoever waited for the slot at once, over and over."""
    from rallychat.engines.hf_steps import Running

    turns = 0
    listen = Running.listen

    def counted(answer: Running) -> None:
        nonlocal turns
        turns += 1
        listen(answer)

    backend = unread(opened(llama))
    request = CompletionRequest(prompt=PROMPT, max_tokens=200, temperature=0, ignore_eos=True)
    async with aclosing(backend.generate(request, Slot(0))) as events:
        async for event in events:
            if isinstance(event, Step):
                break
        monkeypatch.setattr(backend._steps, "cancel", lambda answer: None)  # it is slow to let go of the slot
        monkeypatch.setattr(Running, "listen", counted)
    assert turns <= 2 * 200


async def test_a_first_token_is_told_before_others_get_their_next(llama: Path) -> None:
    backend, begun, gate = unread(opened(llama)), threading.Event(), threading.Event()
    evaluate = backend._steps._runner.evaluate

    def held(work: Sequence[Work]) -> Any:
        if any(len(one.ids) > 1 for one in work):
            begun.set()
        elif begun.is_set():
            gate.wait(60)
        return evaluate(work)

    request = CompletionRequest(prompt=PROMPT, max_tokens=200, temperature=0, ignore_eos=True)
    async with aclosing(backend.generate(request, Slot(0))) as others:
        async for event in others:
            if isinstance(event, Step):
                break
        backend._steps._runner.evaluate = held  # type: ignore[method-assign]
        async with aclosing(backend.generate(request, Slot(1))) as events:
            try:
                async with asyncio.timeout(30):
                    assert [isinstance(await anext(events), Step) for _ in range(2)] == [False, True]
            finally:
                gate.set()


async def test_leaving_within_a_prompt_keeps_what_was_read_of_it(llama: Path) -> None:
    backend = unread(opened(llama, prefill=16))
    request = CompletionRequest(prompt=PROMPT * 4, max_tokens=5)
    async with aclosing(backend.generate(request, Slot(0))) as stream:
        await anext(stream)
    _, done = await answered(backend, PROMPT * 4)
    assert 16 <= done.cached_tokens <= 4 * len(PROMPT) - 1


@pytest.mark.parametrize("bits", ["int8", "int4"])
async def test_fewer_bits_change_the_scores_a_little(tmp_path: Path, llama: Path, bits: str) -> None:
    import torch

    plain = Plain(llama)
    scores = [opened(llama, quantize=quantize, dtype="float32")._steps._runner for quantize in ("none", bits)]
    from rallychat.engines.hf_decoder import Work

    with torch.inference_mode():
        exact, small = (runner.evaluate([Work(0, PROMPT)]) for runner in scores)
    assert torch.allclose(exact[0], plain.model(torch.tensor([PROMPT])).logits[0, -1], atol=1e-3)
    error = float((small - exact).norm() / exact.norm())
    assert 0 < error < (0.1 if bits == "int8" else 0.9)
