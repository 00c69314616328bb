"""Which forms of weights CUDA's decoders read, and how they are told of them; no GPU needed."""

from dataclasses import replace

import numpy as np
import pytest
from ops.test_schemes import TOYS

from boostr import shaders
from boostr.backends.cupy.products.gemv_plan import CHUNK, Plan
from boostr.backends.cupy.products.stored import form_macros, form_refusal
from boostr.quant.forms import CODES, Form, scheme_form
from boostr.quant.scheme import SCHEMES

Q4_0 = scheme_form(SCHEMES["q4_0"])


TOY_FORMS = [scheme_form(scheme) for scheme in TOYS if scheme.group_size not in (8, 96)]


@pytest.mark.parametrize(
    "form", [Form("bf16"), *map(scheme_form, SCHEMES.values()), *TOY_FORMS], ids=str
)
def test_every_form_is_decoded(form):
    assert form_refusal(form) is None
    assert form_macros(form)["CODES"] == form.codes.upper()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (None, "dtype"),
        (replace(Q4_0, codes="c6", zero=0, table=(1.0, 2.0)), "a table of numbers for codes c6"),
        (replace(Q4_0, table=(1.0, 2.0)), "with a zero"),
        (replace(Q4_0, codes="c8"), "a zero of 8 with codes c8"),
        (replace(Q4_0, zero=-1), "a zero of -1 with codes c4"),
        (replace(Q4_0, group=24), "groups of 24"),
        (replace(Q4_0, group=8), "groups of 8"),
        (replace(Q4_0, group=96), "groups of 96"),
        (replace(Q4_0, super=48), "groups of 32 and 48"),
        (replace(Q4_0, group=0, super=256), "super-scales of 256 inputs over groups of 0"),
        (replace(Q4_0, group=0, offsets="f16"), "offsets of whole rows"),
        (replace(Q4_0, rounds_input=True), "rounded input"),
    ],
)
def test_another_form_is_refused_by_name(form, reason):
    assert reason in str(form_refusal(form))


def test_forms_are_numbered_once():
    text = shaders.cuda_source("gemv", {})
    for name, number in CODES.items():
        assert text.count(f"#define {name.upper()} {number}\n") == 1
    macros = form_macros(scheme_form(SCHEMES["q6_k"]))
    assert macros == {"CODES": "C6", "ZERO": 32, "GROUP": 16, "SCALE_T": "i8", "SUPER": 256}


def test_tables_are_words_of_bytes():
    """Of integers 16 bytes; of floats the first bytes of all 16, then the second, ..."""
    nibbles = replace(Q4_0, zero=0, table=tuple(float(n) for n in range(-8, 8)))
    words = [int(word[:-1], 16) for word in form_macros(nibbles)["TABLE"].split(",")]
    assert np.array(words, "<u4").view(np.int8).tolist() == list(range(-8, 8))
    floats = tuple(np.linspace(-1, 1, 16, dtype=np.float32).tolist())
    macros = form_macros(replace(nibbles, table=floats))
    words = [int(word[:-1], 16) for word in macros["TABLE"].split(",")]
    planes = np.array(words, "<u4").view(np.uint8).reshape(4, 16)
    assert macros["TABLE_FLOATS"] == 1
    assert np.ascontiguousarray(planes.T).view("<f4").ravel().tolist() == list(floats)


@pytest.mark.parametrize("form", [*map(scheme_form, SCHEMES.values()), *TOY_FORMS], ids=str)
@pytest.mark.parametrize("lanes", [4, 8, 16, 32])
def test_pieces_end_with_stages_and_rows(form, lanes):
    """What is copied at once divides the planes of a stage, and those of a row."""
    plan = Plan(lanes=lanes, unroll=1)
    for unit in (4, 16):
        pieces = plan.pieces(form, (unit, unit))
        scales, _, offsets, _ = plan.small_slots(form)
        high = lanes * (CHUNK[form.codes][1] - 16)
        assert ("PIECE" in pieces, "HIGH_PIECE" in pieces) == (form.group > 0, high > 0)
        for name, *wholes in (("PIECE", scales, offsets), ("HIGH_PIECE", high)):
            assert all(n % pieces.get(name, 1) == 0 for n in (unit, *wholes))
