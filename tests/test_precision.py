"""Which precision is chosen for a checkpoint, from its size and the memory there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallychat.catalog.precision import CONTEXT, Machine, cards_of, choose_precision, weight_bytes

GB = 2**30
SEVEN = 6_738_415_616


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine("cuda", (80 * GB,)), ("bfloat16", "none")),
        (Machine("cuda", (14 * GB,), bfloat16=False), ("float16", "int8")),
        (Machine("cuda", (24 * GB,), bfloat16=False), ("float16", "none")),
        (Machine("cuda", (8 * GB,)), ("bfloat16", "int4")),
        (Machine("cuda", (80 * GB, 80 * GB)), ("bfloat16", "none")),
        (Machine("cpu", (64 * GB,)), ("float32", "none")),
        (Machine("cpu", (20 * GB,)), ("bfloat16", "none")),
        (Machine("cpu", (12 * GB,)), ("bfloat16", "int8")),
        (Machine("mps", (32 * GB,), bfloat16=False), ("float16", "none")),
    ],
)
def test_a_7b_is_loaded_as_exactly_as_the_memory_allows(machine: Machine, expected: tuple[str, str]) -> None:
    choice = choose_precision(SEVEN, machine)
    assert (choice.dtype, choice.quantize) == expected
    assert choice.fits


def test_several_gpus_are_used_together_in_float16() -> None:
    machine = Machine("cuda", (24 * GB,) * 4)
    choice = choose_precision(32_528_943_616, machine, multi_gpu=True)
    assert (choice.dtype, choice.quantize, choice.fits) == ("float16", "none", True)
    assert not choose_precision(32_528_943_616, machine, quantize="none").fits


def test_over_several_gpus_nothing_is_quantised_and_the_estimate_says_so() -> None:
    several = choose_precision(SEVEN, Machine("cuda", (24 * GB,) * 2), quantize="int8", multi_gpu=True)
    assert (several.precision, several.needed) == ("float16", weight_bytes(SEVEN, "float16"))
    one = choose_precision(SEVEN, Machine("cuda", (24 * GB,)), quantize="int8", multi_gpu=True)
    assert one.precision == "int8"


def test_the_caches_count() -> None:
    machine = Machine("cuda", (16 * GB,))
    assert choose_precision(SEVEN, machine).quantize == "none"
    assert choose_precision(SEVEN, machine, cache=4 * GB).quantize == "int8"


def test_what_was_asked_for_is_not_overruled_but_does_not_fit() -> None:
    choice = choose_precision(SEVEN, Machine("cuda", (8 * GB,)), dtype="float16", quantize="none")
    assert (choice.precision, choice.fits) == ("float16", False)


@given(st.integers(10**6, 10**11), st.integers(CONTEXT * 2, 2**40), st.integers(0, 2**34))
def test_more_memory_never_makes_it_less_exact(parameters: int, memory: int, cache: int) -> None:
    less = choose_precision(parameters, Machine("cuda", (memory,)), cache=cache)
    more = choose_precision(parameters, Machine("cuda", (memory * 2,)), cache=cache)
    assert weight_bytes(parameters, more.precision) >= weight_bytes(parameters, less.precision)
    assert more.fits or not less.fits


def test_what_nvidia_smi_says_is_read() -> None:
    said = "81042, 9.0\n15109, 7.5\n[N/A], 8.0\nNo devices were found\n"
    assert cards_of(said) == [(81042 * 2**20, True), (15109 * 2**20, False)]
