"""Mutated inputs give our own errors and nothing else; benchmarks/fuzz.py does the same a million times."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz_targets import ALLOWED, LIMITS, TARGETS, check, codec, corpus
from mrsi_gadgets.errors import MrsiError
from mrsi_gadgets.gadgets.composition import recipe_from_text


def mutated(data: bytes, seed: int) -> bytes:
    """A valid input with some bytes changed, cut out, doubled, or moved."""
    rng = random.Random(seed)
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(made) + 1)
        length = rng.choice((1, 2, 4, 8, 32))
        kind = rng.randrange(5)
        if kind == 0 and made:
            made[at % len(made)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del made[at : at + length]
        elif kind == 3:
            made[at:at] = made[at : at + length]
        else:
            made[at : at + length] = rng.choice((b"\xff", b"\0", b"9", b'"', b"<", b"-")) * length
    return bytes(made)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_itself_is_accepted(name):
    if name == "codec":
        list(map(codec, corpus(name)))
        return
    for data in corpus(name)[: 3 if name != "config" else 2]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), which=st.integers(0, 100))
def test_mutated_inputs_give_our_own_errors(name, seed, which):
    inputs = corpus(name)
    check(TARGETS[name], mutated(inputs[which % len(inputs)], seed))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=600))
def test_any_bytes_on_the_wire_give_our_own_errors(data):
    check(codec, data)


def test_no_length_field_makes_the_codec_take_more_than_its_limit():
    seeds = [mutated(corpus("codec")[k % len(corpus("codec"))], k) for k in range(300)]
    for data in seeds:
        tracemalloc.start()
        check(codec, data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < len(data) + ALLOWED, (peak, LIMITS)


def test_what_a_peer_sends_cannot_forge_a_line_of_the_log():
    with pytest.raises(MrsiError) as refused:
        recipe_from_text("nothing\nERROR forged")
    assert "\n" not in str(refused.value)
    assert "nothing\\nERROR" in str(refused.value)
    with pytest.raises(MrsiError) as refused:
        recipe_from_text('<chain><reconstruct method="a&#10;b"/></chain>')
    assert "\n" not in str(refused.value)
