"""The list of architectures is that of the pinned transformers, read without importing it."""

from __future__ import annotations

import json

import pytest

from rallychat.catalog import architectures
from rallychat.catalog.repository import Said
from rallychat.errors import Unsupported


@pytest.mark.parametrize(
    ("architecture", "kind", "known"),
    [
        ("LlamaForCausalLM", "llama", True),
        ("LLaMAForCausalLM", "llama", True),
        ("GPTNeoXForCausalLM", "gpt_neox", True),
        ("T5ForConditionalGeneration", "t5", True),
        ("", "llama", True),
        ("", "nonsense", False),
        ("LlamaForSequenceClassification", "llama", False),
        ("ChatGLMModel", "chatglm", False),
    ],
)
def test_what_can_be_opened_is_known_by_its_class_or_its_kind(
    architecture: str, kind: str, known: bool
) -> None:
    assert architectures.supported(architecture, kind) is known


def of_config(**config: object) -> Said:
    return Said({"config.json": json.dumps(config).encode()}.get)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "new-one"])
def test_weights_quantised_in_a_way_that_cannot_be_read_are_refused_by_its_name(method: str) -> None:
    said = of_config(architectures=["LlamaForCausalLM"], quantization_config={"quant_method": method})
    with pytest.raises(Unsupported, match=f"lab/packed are quantised by the method '{method}'") as refused:
        architectures.check("lab/packed", said, code_allowed=False)
    assert "--quantize" in refused.value.hint


@pytest.mark.parametrize("packed", [{"quant_method": "mxfp4"}, {"quant_method": "bitsandbytes"}, {}, None, 4])
def test_weights_quantised_in_a_way_that_transformers_reads_are_not_refused(packed: object) -> None:
    said = of_config(architectures=["LlamaForCausalLM"], quantization_config=packed)
    architectures.check("lab/packed", said, code_allowed=False)


def test_tables_are_read_as_text_and_nothing_is_run() -> None:
    source = """
raise SystemExit("run")
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict([("a", "AForCausalLM"), ("b", ("B1", "B2"))])
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES = OrderedDict([("a", "AForConditionalGeneration")])
OTHER = OrderedDict([("c", "C")])
"""
    assert architectures.read_tables(source) == {
        "a": ["AForCausalLM", "AForConditionalGeneration"],
        "b": ["B1", "B2"],
    }


def test_the_shipped_list_is_that_of_the_installed_transformers() -> None:
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    real: dict[str, set[str]] = {}
    for table in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    ):
        for kind, classes in table.items():
            real.setdefault(kind, set()).update([classes] if isinstance(classes, str) else classes)
    assert {kind: sorted(classes) for kind, classes in real.items()} == architectures.shipped()
    assert architectures.installed() == architectures.shipped()
