"""Generation configs: YAML files with `generation_config:` and the names of transformers' fields below it.

What an engine here can do becomes `Sampling`. A field that has no effect here is accepted with the one value that
asks for nothing; anything else is refused with the file and the line, never silently left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from rallychat.catalog.types import Sampling, SamplingFacts
from rallychat.errors import SettingsError

SHIPPED: Final = Path(__file__).resolve().parent.parent / "data" / "generation_configs"
ROOT: Final = "generation_config"
LARGEST: Final = 64 * 1024
"""Bytes; a generation config has some twenty lines."""

_OBEYED: Final[Mapping[str, str]] = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "stop_strings": "stop",
}
"""Transformers' names and ours."""

_BEAMS: Final = "answers are sampled token by token while they are shown, so there are no beams"
_ACCEPTED_ONLY: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "num_beams": ((1,), _BEAMS),
    "num_beam_groups": ((1,), _BEAMS),
    "early_stopping": ((False,), _BEAMS),
    "length_penalty": ((1,), _BEAMS),
    "diversity_penalty": ((0,), _BEAMS),
    "num_return_sequences": ((1,), "a message has one answer; ask again for another"),
    "typical_p": ((1,), "use top_p or min_p"),
    "top_h": ((), "use top_p or min_p"),
    "epsilon_cutoff": ((0,), "use min_p"),
    "eta_cutoff": ((0,), "use min_p"),
    "encoder_repetition_penalty": ((1,), "use repetition_penalty"),
    "no_repeat_ngram_size": ((0,), "use repetition_penalty"),
    "encoder_no_repeat_ngram_size": ((0,), "use repetition_penalty"),
    "penalty_alpha": ((0,), "contrastive search is not built"),
    "guidance_scale": ((1,), "guidance is not built"),
    "renormalize_logits": ((True, False), "probabilities always add up to 1 here"),
}
"""Fields whose effect is not built: the values that ask for nothing, and what to say to others."""

_MACHINERY: Final = frozenset(
    {
        "use_cache",
        "cache_implementation",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "transformers_version",
        "_from_model_config",
        "return_dict_in_generate",
        "output_scores",
        "output_logits",
        "output_attentions",
        "output_hidden_states",
        "remove_invalid_values",
        "disable_compile",
        "low_memory",
    }
)
"""Fields that change how transformers works and not what is said: any value is accepted. Which tokens end an
answer is the model's and its family's to say."""

_SHORTEST: Final = ("min_length", "min_new_tokens")
_LONGEST: Final = "max_length"
"""Counts the prompt too, which grows with the conversation; what is left of it is a bound of the answer."""

_REMARKS: Final[Mapping[str, str]] = {
    _LONGEST: "bounds the answer alone; the prompt, which it counts in transformers, is bounded by the window.",
    **dict.fromkeys(_SHORTEST, "has no effect: a model ends its answer when it is done."),
}

KNOWN: Final = ("do_sample", *_OBEYED, _LONGEST, *_SHORTEST, *_ACCEPTED_ONLY, *sorted(_MACHINERY))
"""Every field that is understood."""


@dataclass(frozen=True, slots=True)
class Located:
    """A generation config that was found. `shipped`: not where it was said to be, but among those that come along."""

    path: Path
    shipped: bool


def locate(path: Path) -> Located:
    """The file at `path`; where there is none, the shipped one of the same name.

    Raises:
        SettingsError: there is neither.
    """
    if path.is_file():
        return Located(path, shipped=False)
    if (found := SHIPPED / path.name).is_file():
        return Located(found, shipped=True)
    names = sorted(each.name for each in SHIPPED.glob("*.yaml"))
    near = get_close_matches(path.name, names, n=1) or names
    raise SettingsError(
        f"There is no generation config '{path}'.",
        hint=f"shipped are: {', '.join(near)}" if near else "give the path of a YAML file",
    )


def read(path: Path | None) -> Sampling:
    """What a generation config asks for; nothing if there is none. `locate` says where it is looked for.

    `do_sample: false` is greedy, whatever the temperature. Where `do_sample` is not given, the temperature decides.

    Raises:
        SettingsError: the file is missing or wrong; the message names the line.
    """
    return Sampling() if path is None else _reader(path).sampling()


def remarks(path: Path | None) -> tuple[str, ...]:
    """Sentences about what a generation config asks for and is done in another way. Raises as `read`."""
    return () if path is None else _reader(path).remarks()


def _reader(path: Path) -> _Reader:
    found = locate(path).path
    try:
        if found.stat().st_size > LARGEST:
            raise SettingsError(f"{found} is larger than {LARGEST} bytes; is it a generation config?")
        return _Reader(str(found), found.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{found} cannot be read: {exc}.") from exc


def parse(text: str, *, name: str) -> Sampling:
    """As `read`, of a text; `name` is what sentences call it."""
    return _Reader(name, text).sampling()


def written(sampling: Sampling) -> str:
    """The generation config that asks for this. A seed is no field of transformers and is left out."""
    import yaml  # not needed by workers, which import this package too

    given = sampling.as_dict()
    fields = {field: given[ours] for field, ours in _OBEYED.items() if ours in given}
    if "temperature" in fields:
        fields["do_sample"] = fields["temperature"] > 0
        if not fields["do_sample"]:
            del fields["temperature"]  # transformers wants none above 0 there
    if not fields:
        return f"{ROOT}: {{}}\n"
    # YAML takes some characters for the end of a line, so what cannot be seen is written as its number.
    seen = all(text.isprintable() for text in given.get("stop") or ())
    return yaml.safe_dump({ROOT: fields}, allow_unicode=seen, sort_keys=False, indent=4)


@cache
def shipped(name: str) -> Sampling:
    """What the shipped file of this name asks for; nothing if it has none."""
    return read(Path(name)) if name else Sampling()


class _Reader:
    """Reads one generation config."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text

    def sampling(self) -> Sampling:
        given: dict[str, Any] = {}
        greedy = False
        longest: int | None = None
        for name, node in self._fields():
            value = self._value(name, node)
            if value is None:
                continue
            if name == "do_sample":
                greedy = not self._flag(name, value, node)
            elif name in _OBEYED:
                given[_OBEYED[name]] = self._obeyed(name, value, node)
            elif name == _LONGEST:
                longest = self._obeyed(name, value, node)
            elif name in _SHORTEST:
                self._count(name, value, node)
            elif name in _ACCEPTED_ONLY:
                self._refuse_effect(name, value, node)
        if longest is not None:
            given.setdefault("max_tokens", longest)  # as in transformers, max_new_tokens goes before it
        return Sampling(**given | ({"temperature": 0.0} if greedy else {}))

    def remarks(self) -> tuple[str, ...]:
        """See the function of this name."""
        fields = {name: self._value(name, node) for name, node in self._fields()}
        return tuple(
            f"{self._name}: '{name}: {value}' {_REMARKS[name]}"
            for name, value in fields.items()
            if value and name in _REMARKS and not (name == _LONGEST and fields.get("max_new_tokens"))
        )

    def _fields(self) -> list[tuple[str, Any]]:
        """The fields below `generation_config:` and their nodes."""
        fields = self._mapping(self._root(), KNOWN)
        for name, node in fields:
            if name not in KNOWN:
                near = get_close_matches(name, KNOWN, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(['do_sample', *_OBEYED])}"
                self._refuse(node, f"'{name}' is not a field that is understood", hint=hint)
        return fields

    def _root(self) -> Any:
        import yaml  # not needed by workers, which import this package too

        try:
            root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, RecursionError) as exc:
            mark = getattr(exc, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            what = getattr(exc, "problem", None) or type(exc).__name__
            raise SettingsError(f"{self._name}{where}: this is not YAML: {what}.") from exc
        if root is None:
            raise SettingsError(f"{self._name} is empty.", hint=f"begin it with '{ROOT}:'")
        tops = self._mapping(root, (ROOT,))
        for name, node in tops:
            if name != ROOT:
                self._refuse(node, f"'{name}' is not known here", hint=f"fields stand below '{ROOT}:'")
        if not tops:
            self._refuse(root, f"'{ROOT}:' is missing")
        return tops[0][1]

    def _mapping(self, node: Any, known: tuple[str, ...]) -> list[tuple[str, Any]]:
        """Keys and nodes of a mapping; a key's line is that of its value's node, or its own if that is empty."""
        import yaml

        if not isinstance(node, yaml.MappingNode):
            what = f"'{ROOT}:' with fields" if known == (ROOT,) else f"fields below '{ROOT}:'"
            self._refuse(node, f"{what} must stand here, as 'name: value'")
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "a field's name must be a word")
            if key.value in found:
                self._refuse(key, f"'{key.value}' is given twice")
            value.start_mark = key.start_mark  # the line a person looks for is the key's
            found[key.value] = value
        return list(found.items())

    def _value(self, name: str, node: Any) -> Any:
        """A plain value: number, text, true or false, nothing, or a list of these."""
        import yaml

        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(each, yaml.ScalarNode) for each in nodes):
            self._refuse(node, f"'{name}' must be a value or a list of values")
        as_text = name == "stop_strings"
        values = [each.value if as_text and each.value else _scalar(each) for each in nodes]
        return values if isinstance(node, yaml.SequenceNode) else values[0]

    def _flag(self, name: str, value: Any, node: Any) -> bool:
        if not isinstance(value, bool):
            self._refuse(node, f"'{name}' must be true or false")
        return bool(value)

    def _count(self, name: str, value: Any, node: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            self._refuse(node, f"'{name}' must be a whole number, 0 or more")

    def _obeyed(self, name: str, value: Any, node: Any) -> Any:
        """The value as `Sampling` takes it."""
        if name == "stop_strings":
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
                self._refuse(node, f"'{name}' must be text or a list of texts")
            return tuple(value)
        whole = name in ("max_new_tokens", "top_k", _LONGEST)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            self._refuse(node, f"'{name}' must be a {'whole ' if whole else ''}number")
        try:
            SamplingFacts(**{_OBEYED.get(name, "max_tokens"): value})
        except ValidationError as exc:
            said = exc.errors()[0]["msg"].replace("Input should be", "must be")
            self._refuse(node, f"'{name}' {said}")
        return value if whole else float(value)

    def _refuse_effect(self, name: str, value: Any, node: Any) -> None:
        neutral, reason = _ACCEPTED_ONLY[name]
        same = [each for each in neutral if isinstance(each, bool) == isinstance(value, bool)]
        if value not in same:
            only = f"only {' or '.join(_as_yaml(each) for each in neutral)} is accepted" if neutral else ""
            self._refuse(node, f"'{name}: {_as_yaml(value)}' has no effect here: {reason}", hint=only)

    def _refuse(self, node: Any, problem: str, *, hint: str = "") -> NoReturn:
        raise SettingsError(f"{self._name}, line {node.start_mark.line + 1}: {problem}.", hint=hint)


def _scalar(node: Any) -> Any:
    import yaml

    try:
        value = yaml.SafeLoader("").construct_object(node)
        # YAML 1.1 wants a dot in 1e-3; people, and YAML 1.2, do not
        return float(value) if isinstance(value, str) and node.style is None else value
    except (ValueError, OverflowError, yaml.YAMLError):
        return node.value


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
