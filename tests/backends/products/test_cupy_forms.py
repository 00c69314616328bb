"""Which forms of weights CUDA's decoders read, and how they are told of them; no GPU needed."""

from dataclasses import replace

import numpy as np
import pytest

from boostr import shaders
from boostr.backends.cupy.products.gemv_plan import Plan
from boostr.backends.cupy.products.stored import form_macros, form_refusal
from boostr.quant.forms import CODES, Form, scheme_form
from boostr.quant.scheme import SCHEMES

Q4_0 = scheme_form(SCHEMES["q4_0"])


@pytest.mark.parametrize("form", [Form("bf16"), *map(scheme_form, SCHEMES.values())], ids=str)
def test_every_form_is_decoded(form):
    assert form_refusal(form) is None
    assert form_macros(form)["CODES"] == form.codes.upper()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (None, "dtype"),
        (replace(Q4_0, codes="c3"), "codes c3"),
        (scheme_form(replace(SCHEMES["q4_0"], scale=np.dtype("uint8"))), "scales uint8"),
        (replace(Q4_0, group=24), "groups of 24"),
        (replace(Q4_0, group=0, offsets=True), "offsets of whole rows"),
        (replace(Q4_0, codes="c8"), "signed codes with a zero"),
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


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_pieces_end_with_stages_and_rows(scheme, lanes):
    """What is copied at once divides the scales of a stage, and those of a row."""
    form, plan = scheme_form(SCHEMES[scheme]), Plan(lanes=lanes, unroll=1)
    for row_piece in (2, 4, 16) if form.group else ():
        piece = plan.piece(form, row_piece)
        scales, _, offsets = plan.small_slots(form)
        assert row_piece % piece == scales % piece == offsets % piece == 0
