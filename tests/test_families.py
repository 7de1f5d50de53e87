"""Every family that is shipped: its format to the newline, and what holds for all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rallychat.catalog import Catalog, Family
from rallychat.catalog.gguf import read_gguf
from rallychat.catalog.load import SHIPPED
from rallychat.messages import Message
from rallychat.settings import Settings
from rallychat.templates import of_family
from tests.golden import FOLDER, golden
from tests.golden.table import pages

CATALOG = Catalog.load(Settings(data_dir=Path("/nowhere")))
FAMILIES = {family.id: family for family in CATALOG.families.values() if family.template}
CONFIGS = SHIPPED / "generation_configs"
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def said(*texts: str) -> list[Message]:
    return [Message.of("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]


def prompt(family: str, *texts: str, memory: str = "") -> str:
    """The prompt of a conversation with the family's own system prompt."""
    default = FAMILIES[family].default_system
    head = [Message.of("system", default)] if default else []
    return of_family(FAMILIES[family]).render([*head, *said(*texts)], memory=memory).text


@every_family
def test_the_golden_render_has_not_changed(family: Family) -> None:
    path = FOLDER / f"{family.id}.txt"
    assert path.is_file(), "no golden render yet: python -m tests.golden"
    assert golden(family) == path.read_bytes().decode()


def test_no_golden_render_is_left_of_a_family_that_is_gone() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(FAMILIES)


@pytest.mark.parametrize(("page", "text"), pages(CATALOG).items(), ids=["families", "models"])
def test_the_tables_of_families_and_models_in_the_docs_are_those_of_the_files(page: Path, text: str) -> None:
    assert page.read_text(encoding="utf-8") == text, "python -m tests.golden"


REQUEST = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
CURIOUS = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

AUTHORS = [
    ("alpaca", ["Hi"], f"<s>{REQUEST}\n\n### Instruction:\nHi\n\n### Response:"),
    ("alpaca-lora", ["Hi"], f"<s>{REQUEST}\n\n### Instruction:\nHi\n\n### Response:\n"),
    ("koalpaca", ["딥러닝이 뭐야?"], "### 질문: 딥러닝이 뭐야?\n\n### 답변:"),
    ("dolly-v2", ["Hi"], f"{REQUEST}\n\n### Instruction:\nHi\n\n### Response:\n"),
    ("flan-alpaca", ["Write an email."], "Write an email."),
    ("oasst-stablelm", ["Hi"], "<|prompter|>Hi<|endoftext|><|assistant|>"),
    ("oasst-llama", ["Hi", "Yo", "Bye"], "<s><|prompter|>Hi</s><|assistant|>Yo</s><|prompter|>Bye</s><|assistant|>"),
    (
        "koala",  # EasyLM, docs/koala.md
        ["Hello!", "Hi! How can I help you?", "What is the largest animal on earth?"],
        "<s>BEGINNING OF CONVERSATION: USER: Hello! GPT:Hi! How can I help you?</s>"
        "USER: What is the largest animal on earth? GPT:",
    ),
    (
        "vicuna-v0",  # FastChat, docs/vicuna_weights_version.md
        ["Hello!", "Hello!", "How are you?"],
        f"<s>{CURIOUS}\n\n### Human: Hello!\n### Assistant: Hello!\n### Human: How are you?\n### Assistant:",
    ),
    (
        "vicuna",
        ["Hello!", "Hello!", "How are you?"],
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
        "USER: Hello! ASSISTANT: Hello!</s>USER: How are you? ASSISTANT:",
    ),
    (
        "guanaco",
        ["Introduce yourself"],
        "<s>A chat between a curious human and an artificial intelligence assistant.The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.\n### Human: Introduce yourself ### Assistant:",
    ),
    ("redpajama", ["Who is Alan Turing?"], "<human>: Who is Alan Turing?\n<bot>:"),
    ("falcon-instruct", ["Hi", "Yo", "Bye"], "User: Hi\n\nAssistant: Yo\n\nUser: Bye\n\nAssistant:"),
    ("starchat", ["Hi"], "<|system|>\n<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>"),
    ("wizardlm", ["Hi"], "<s>Hi\n\n### Response:"),
    ("wizardcoder", ["Hi"], f"{REQUEST}\n\n### Instruction:\nHi\n\n### Response:"),
    ("camel", ["Hi"], f"{REQUEST}\n\n### Instruction:\nHi\n\n### Response:"),
    ("xgen", ["Hi"], f"{CURIOUS}\n\n### Human: Hi\n### Assistant:"),
    (
        "orca-mini",
        ["Hi"],
        "<s>### System:\nYou are an AI assistant that follows instruction extremely well. Help as much as you can."
        "\n\n### User:\nHi\n\n### Response:\n",
    ),
    (
        "kullm",
        ["안녕?"],
        "아래는 작업을 설명하는 명령어입니다. 요청을 적절히 완료하는 응답을 작성하세요.\n\n"
        "### 명령어:\n안녕?\n\n### 응답:\n",
    ),
    ("llama-2-chat", ["Hi", "Yo", "Bye"], "<s>[INST] Hi [/INST] Yo </s><s>[INST] Bye [/INST]"),
    ("mistral-instruct", ["Hi", "Yo", "Bye"], "<s>[INST] Hi [/INST]Yo</s>[INST] Bye [/INST]"),
    ("mistral-v3", ["Hi", "Yo", "Bye"], "<s>[INST] Hi[/INST] Yo</s>[INST] Bye[/INST]"),
    ("zephyr", ["Hi", "Yo", "Bye"], "<|user|>\nHi</s>\n<|assistant|>\nYo</s>\n<|user|>\nBye</s>\n<|assistant|>\n"),
    ("phi-3", ["Hi"], "<|user|>\nHi<|end|>\n<|assistant|>\n"),
    ("phi-4", ["Hi"], "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>"),
    ("phi-4-mini", ["Hi"], "<|user|>Hi<|end|><|assistant|>"),
    (
        "gemma",
        ["Hi", "Yo", "Bye"],
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "llama-3.1",
        ["Hi"],
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "turns", "expected"), AUTHORS, ids=[f"{a[0]}-{len(a[1])}" for a in AUTHORS]
)
def test_the_format_is_the_one_its_authors_write_down(family: str, turns: list[str], expected: str) -> None:
    assert prompt(family, *turns) == expected


def test_a_system_prompt_stands_where_the_authors_of_llama_2_put_it() -> None:
    rendered = of_family(FAMILIES["llama-2-chat"]).render([Message.of("system", "Be brief."), *said("Hi")])
    assert rendered.text == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("koalpaca", "### 맥락: Ann plays.\n\n### 질문: Hi\n\n### 답변:"),
        ("alpaca", f"<s>{WITH_INPUT}\n\n### Input:\nAnn plays.\n\n### Instruction:\nHi\n\n### Response:"),
        ("dolly-v2", f"{REQUEST}\n\nInput:\nAnn plays.\n\n### Instruction:\nHi\n\n### Response:\n"),
        ("flan-alpaca", "Ann plays.\n=====\nHi"),
        ("redpajama", "<human>: Earlier in this conversation:\nAnn plays.\n\nHi\n<bot>:"),
    ],
)
def test_a_summary_stands_where_the_format_has_a_place_for_it(family: str, expected: str) -> None:
    assert prompt(family, "Hi", memory="Ann plays.") == expected


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    str.strip
) | st.sampled_from(["### Human:", "USER: x", "</s>", "<|im_end|>", " lead", "trail ", "a\n\nb", "<think>b"])


@every_family
@settings(max_examples=20)
@given(data=st.data())
def test_a_prompt_only_grows_from_turn_to_turn(family: Family, data: st.DataObject) -> None:
    """The prompt of n turns begins the prompt of n + 1; and cut into chunks it is still the same text."""
    template = of_family(family)
    turns = said(
        *data.draw(st.lists(texts, min_size=3, max_size=7).map(lambda t: t[: len(t) // 2 * 2 - 1] or t[:1]))
    )
    system = data.draw(st.sampled_from(["", "Be brief."]))
    memory = data.draw(st.sampled_from(["", "Ann plays </s> <|im_end|>"]))
    head = [Message.of("system", system)] if system else []
    few = template.render([*head, *turns], memory=memory)
    many = template.render([*head, *turns, *said("!", "more", "and more")[1:]], memory=memory)
    assert many.text.startswith(few.text)
    assert [chunk.message for chunk in few.chunks].count(None) == bool(memory and few.segmented)
    if few.segmented and many.segmented:
        assert many.chunks[: len(few.chunks) - 1] == few.chunks[:-1]
        later, now = (r.chunks[len(few.chunks) - 1].text.rstrip() for r in (many, few))
        assert later == now or (family.reasoning and later.startswith(now))  # its header is the model's own


@every_family
def test_boundaries_are_known_wherever_the_log_can_be_kept(family: Family) -> None:
    rendered = of_family(family).render(
        [Message.of("system", "Be brief."), *said("Hi", "Yo", "Bye")], memory="x"
    )
    assert rendered.segmented or family.id == "flan-alpaca"  # T5 reads its whole input anew at every turn


@every_family
def test_a_control_token_typed_by_a_person_stays_text(family: Family) -> None:
    template = of_family(family)
    tokens = {*family.special_tokens, *filter(None, (family.bos_token, family.eos_token))}
    plain = template.render([Message.of("system", "S"), *said("x", "y", "z")], memory="m")
    for token in tokens:
        typed = template.render([Message.of("system", f"S{token}"), *said(f"x{token}", f"y{token}", f"z{token}")],
                                memory=f"m{token}")  # fmt: skip
        assert [p.text for c in typed.chunks for p in c.pieces if not p.special] == [token] * 5
        meant = "".join(p.text for c in typed.chunks for p in c.pieces if p.special)
        assert meant == plain.text, token


@every_family
def test_every_control_token_of_a_format_is_named(family: Family) -> None:
    """What looks like a control token in a template is listed, so that a person's own stays text."""
    named = {*family.special_tokens, family.bos_token, family.eos_token}
    tokens = set(
        re.findall(r"<\|[a-zA-Z_]+\|>|<start_of_turn>|<end_of_turn>|</s>|\[/?INST\]", golden(family))
    )
    unnamed = tokens - named
    assert unnamed <= {"[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|system|>"}, (
        "plain text in some vocabularies"
    )
    if family.id not in {"llama-2-chat", "mistral-instruct", "zephyr"}:
        assert not unnamed


@every_family
def test_what_a_template_does_with_a_system_prompt_is_what_its_family_says(family: Family) -> None:
    found_out = of_family(family.model_copy(update={"takes_system": None}))
    assert of_family(family).takes_system <= found_out.takes_system


def test_families_whose_authors_leave_old_thoughts_out_say_so() -> None:
    rewriting = {name for name, family in FAMILIES.items() if of_family(family).rewrites_history}
    assert rewriting == {"qwen3", "gpt-oss", "flan-alpaca"}


@every_family
def test_the_generation_configs_of_a_family_are_there(family: Family) -> None:
    for name in filter(None, (family.generation.answer, family.generation.summary)):
        config = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
        assert list(config) == ["generation_config"]
        assert config["generation_config"]["max_new_tokens"] > 0


def test_no_generation_config_is_without_a_family() -> None:
    named = {n for f in CATALOG.families.values() for n in (f.generation.answer, f.generation.summary)}
    assert {path.name for path in CONFIGS.glob("*.yaml")} == named - {""}


@pytest.mark.real
def test_smollm2_s_own_template_and_the_family_s_write_the_same(smollm2_gguf: Path) -> None:
    header = read_gguf(smollm2_gguf)
    assert header.chat_template
    family = FAMILIES["smollm2"]
    for head in ([], [Message.of("system", "Be brief.")]):
        messages = [*head, *said("Hi <|im_end|>", "Yo", " Bye\n")]
        shipped, own = (of_family(family, source).render(messages) for source in (header.chat_template, ""))
        assert shipped == own
