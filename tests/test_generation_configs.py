"""Generation configs: YAML files of transformers' fields become sampling, or are refused with the line."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rallychat.catalog import Sampling
from rallychat.catalog.generation import KNOWN, SHIPPED, locate, parse, read, remarks, written
from rallychat.errors import SettingsError

SEED = """\
generation_config:
    temperature: 0.95
    top_p: 0.9
    top_k: 50
    num_beams: 1
    use_cache: True
    repetition_penalty: 1.2
    max_new_tokens: 1024
    do_sample: True
"""


def reading(folder: Path, text: str) -> Sampling:
    file = folder / "gen_config.yaml"
    file.write_text(text, encoding="utf-8")
    return read(file)


def below(*lines: str) -> str:
    return "\n".join(["generation_config:", *(f"  {line}" for line in lines), ""])


def refusal(folder: Path, text: str) -> SettingsError:
    with pytest.raises(SettingsError) as refused:
        reading(folder, text)
    return refused.value


def test_a_file_of_the_seed_is_read(tmp_path: Path) -> None:
    assert reading(tmp_path, SEED) == Sampling(
        temperature=0.95, top_p=0.9, top_k=50, repetition_penalty=1.2, max_tokens=1024
    )


SEED_SUMMARY = """\
generation_config:
    temperature: 1
    top_p: 0.9
    top_k: 50
    num_beams: 1
    use_cache: True
    max_length: 150
    min_length: 50
    do_sample: True
    repetition_penalty: 1.2
    eos_token_id: 1
    pad_token_id: 0
    """


def test_the_seeds_file_for_summaries_of_stablelm_is_read_and_what_is_done_otherwise_is_said(
    tmp_path: Path,
) -> None:
    assert reading(tmp_path, SEED_SUMMARY) == read(SHIPPED / "gen_config_summarization_stablelm.yaml")
    longest, shortest = remarks(tmp_path / "gen_config.yaml")
    assert "'max_length: 150' bounds the answer alone" in longest
    assert "'min_length: 50' has no effect" in shortest


def test_max_new_tokens_goes_before_max_length(tmp_path: Path) -> None:
    text = below("max_length: 150", "max_new_tokens: 7")
    assert reading(tmp_path, text).max_tokens == 7
    assert remarks(tmp_path / "gen_config.yaml") == ()


def test_no_file_asks_for_nothing() -> None:
    assert read(None) == Sampling()


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("max_new_tokens: 7", Sampling(max_tokens=7)),
        ("temperature: 1", Sampling(temperature=1.0)),
        ("temperature: 1e-3", Sampling(temperature=0.001)),
        ("temperature: null", Sampling()),
        ("top_p: 0.5", Sampling(top_p=0.5)),
        ("top_k: 0", Sampling(top_k=0)),
        ("min_p: 0.05", Sampling(min_p=0.05)),
        ("repetition_penalty: 1.5", Sampling(repetition_penalty=1.5)),
        ("stop_strings: '###'", Sampling(stop=("###",))),
        ("stop_strings: [END, 'User:', 42, nan]", Sampling(stop=("END", "User:", "42", "nan"))),
        ("do_sample: false", Sampling(temperature=0.0)),
        ("do_sample: no", Sampling(temperature=0.0)),
        ("do_sample: true", Sampling()),
        ("max_length: 150", Sampling(max_tokens=150)),
        ("min_length: 50", Sampling()),
        ("num_beams: 1", Sampling()),
        ("early_stopping: false", Sampling()),
        ("length_penalty: 1.0", Sampling()),
        ("typical_p: 1.0", Sampling()),
        ("no_repeat_ngram_size: 0", Sampling()),
        ("use_cache: False", Sampling()),
        ("eos_token_id: [0, 2]", Sampling()),
        ("transformers_version: 4.28.0", Sampling()),
    ],
)
def test_each_field_asks_for_what_it_says(tmp_path: Path, line: str, asked: Sampling) -> None:
    assert reading(tmp_path, below(line)) == asked


def test_greedy_wins_over_a_temperature(tmp_path: Path) -> None:
    assert reading(tmp_path, below("temperature: 0.9", "do_sample: false")).temperature == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("num_beams: 4", "'num_beams: 4' has no effect here"),
        ("num_beams: true", "'num_beams: true' has no effect here"),
        ("num_return_sequences: 2", "'num_return_sequences: 2' has no effect here"),
        ("max_length: 0", "'max_length' must be greater than or equal to 1"),
        ("max_length: long", "'max_length' must be a whole number"),
        ("min_length: -1", "'min_length' must be a whole number, 0 or more"),
        ("min_new_tokens: few", "'min_new_tokens' must be a whole number, 0 or more"),
        ("no_repeat_ngram_size: 3", "use repetition_penalty"),
        ("temperature: warm", "'temperature' must be a number"),
        ("temperature: true", "'temperature' must be a number"),
        ("temperature: 5.5", "'temperature' must be less than or equal to 5"),
        ("temperature: .nan", "'temperature' must be"),
        ("top_p: 0", "'top_p' must be greater than 0"),
        ("top_k: 1.5", "'top_k' must be a whole number"),
        ("top_k: -1", "'top_k' must be greater than or equal to 0"),
        ("max_new_tokens: 0", "'max_new_tokens' must be greater than or equal to 1"),
        ("do_sample: 1", "'do_sample' must be true or false"),
        ("stop_strings: ['']", "'stop_strings' must be text or a list of texts"),
        ("top_p: {a: 1}", "'top_p' must be a value or a list of values"),
        ("tempreature: 1", "'tempreature' is not a field"),
        ("top_k: 5", "'top_k' is given twice"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    other = "top_p: 0.9" if line.startswith("top_k") and "twice" not in said else "top_k: 5"
    refused = refusal(tmp_path, "# settings\n" + below(other, line))
    assert "gen_config.yaml, line 4: " in refused.message
    assert said in refused.message


def test_a_misspelt_field_is_guessed(tmp_path: Path) -> None:
    assert refusal(tmp_path, below("tempreature: 1")).hint == "did you mean temperature?"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", "", "is empty"),
        ("temperature: 1\n", "line 1", "'temperature' is not known here"),
        ("generation_config:\n  top_p: 1\nconstraints:\n  a: 1\n", "line 3", "'constraints' is not known"),
        ("generation_config: 5\n", "line 1", "'name: value'"),
        ("- 1\n", "line 1", "must stand here"),
        ("generation_config:\n  top_p: [1\n", "line 3", "this is not YAML"),
        ("generation_config:\n\ttop_p: 1\n", "line 2", "this is not YAML"),
        ("generation_config: &a [*a]\n", "line 1", "must stand here"),
        ("{}\n", "line 1", "'generation_config:' is missing"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_its_line(
    tmp_path: Path, text: str, line: str, said: str
) -> None:
    refused = refusal(tmp_path, text)
    assert said in refused.message
    assert line in refused.message


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    assert "is larger than" in refusal(tmp_path, "#" * 100_000).message


def test_a_file_that_is_not_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gen_config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="cannot be read"):
        read(tmp_path / "gen_config.yaml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="There is no generation config"):
        read(tmp_path / "nothing.yaml")


def test_a_file_of_ones_own_wins_over_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rallychat.catalog.generation.SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "one.yaml").write_text(below("top_k: 1"))
    found = locate(Path("configs/one.yaml"))
    assert (found.path, found.shipped) == (tmp_path / "shipped" / "one.yaml", True)
    own = tmp_path / "one.yaml"
    own.write_text(below("top_k: 2"))
    assert (locate(own).path, locate(own).shipped) == (own, False)
    with pytest.raises(SettingsError) as refused:
        locate(Path("configs/two.yaml"))
    assert refused.value.hint == "shipped are: one.yaml"


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.name)
def test_every_shipped_file_is_read(file: Path) -> None:
    assert read(file).max_tokens


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(
    st.sampled_from(KNOWN) | st.text(string.ascii_lowercase + "_", max_size=12), values, max_size=6
)


def outcome(folder: Path, text: str) -> Sampling | str:
    """What a file asks for, or why it is refused."""
    try:
        return reading(folder, text)
    except SettingsError as refused:
        return refused.message


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@unhurried
@given(fields)
def test_any_fields_are_either_obeyed_or_refused_with_a_line(
    tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any]
) -> None:
    text = yaml.safe_dump({"generation_config": asked}, allow_unicode=True)
    found = outcome(tmp_path_factory.getbasetemp(), text)
    if isinstance(found, str):
        assert "line " in found
        return
    longest = asked.get("max_new_tokens")
    assert found.max_tokens == (asked.get("max_length") if longest is None else longest)
    assert found.top_k == asked.get("top_k")
    assert (found.top_p, found.min_p) == (asked.get("top_p"), asked.get("min_p"))
    assert found.temperature == (0 if asked.get("do_sample") is False else asked.get("temperature"))


@unhurried
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_is_either_read_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    found = outcome(tmp_path_factory.getbasetemp(), text)
    assert isinstance(found, Sampling) or "gen_config.yaml" in found


@example(Sampling(stop=("\x85", "한국어")))
@given(
    st.builds(
        Sampling,
        temperature=st.none() | st.floats(0, 5),
        top_p=st.none() | st.floats(0.01, 1),
        top_k=st.none() | st.integers(0, 10**6),
        max_tokens=st.none() | st.integers(1, 10**6),
        repetition_penalty=st.none() | st.floats(0.1, 5),
        stop=st.none() | st.lists(st.text(min_size=1), min_size=1).map(tuple),
    )
)
def test_what_is_written_is_read_as_the_same(sampling: Sampling) -> None:
    assert parse(written(sampling), name="here") == sampling


def test_a_text_is_refused_with_its_line() -> None:
    with pytest.raises(SettingsError, match="here, line 3: 'topp' is not a field") as refused:
        parse("generation_config:\n    top_k: 3\n    topp: 1\n", name="here")
    assert refused.value.hint == "did you mean top_p?"
