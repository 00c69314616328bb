"""Flops and rates of training, counted one by one."""

import numpy as np
import pytest
from train.conftest import BERT

import boostr
from boostr import train
from boostr.train.flops import ModelFlops, peak_flops
from boostr.train.meter import Meter


def counted_pairs(lengths, window):
    seen = ((q, k) for n in lengths for q in range(n) for k in range(q + 1))
    return sum(window is None or q - k < window for q, k in seen)


@pytest.mark.parametrize("tied", [True, False])
def test_all_weights(make, sequences, tied):
    """6 for each weight of a product, once, the table of a tied head among them; and attention."""
    model, T = make(tie_word_embeddings=tied), sum(map(len, sequences))
    matrices = {n: p.size for n, p in model.named_parameters() if p.ndim == 2}
    if not tied:
        del matrices["model.embed_tokens.weight"]
    model.make_trainable()
    attention = 2 * 12 * 32 * counted_pairs(map(len, sequences), None)  # 2 layers, H D = 32
    want = 6 * sum(matrices.values()) * T + attention
    assert ModelFlops(model).of(train.pack(sequences)) == want


def test_an_adapter(make, sequences):
    """The weights below it have no gradient."""
    model = make(tie_word_embeddings=False)
    base = sum(p.size for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    train.add_lora(model, r=2)
    own = sum(p.size for p in model.parameters() if p.requires_grad)
    attention = 2 * 12 * 32 * counted_pairs(map(len, sequences), None)
    assert ModelFlops(model).of(train.pack(sequences)) == (
        (4 * base + 6 * own) * sum(map(len, sequences)) + attention
    )


def test_windows(sequences):
    config = {
        "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 1, "vocab_size": 50,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "sliding_window": 5,
    }  # fmt: skip
    model = boostr.create("mistral", config, 3, backend="numpy")
    flops, one = ModelFlops(model), np.ones(64, int).tolist()
    apart = flops.of(train.pack([[1]] * 64))  # 64 pairs
    both = flops.of(train.pack([one])) - apart
    assert both == 12 * 32 * (counted_pairs([64], 5) - 64)


def test_an_encoder(sequences):
    """Every token sees all of its sequence, and no table is a head."""
    model = boostr.create("bert", BERT, backend="numpy")
    products = sum(p.size for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    lengths = np.array([len(own) for own in sequences])
    want = 6 * products * lengths.sum() + 2 * 12 * 32 * (lengths**2).sum()
    assert ModelFlops(model).of(train.pack(sequences)) == want


def test_rates(make, sequences, monkeypatch):
    model, now = make(), [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter, batch = Meter(model, peak=1e9), train.pack(sequences)
    for _ in range(2):
        meter.add([batch, batch])
        now[0] += 4.0
        with meter.paused():
            now[0] += 100.0
        rates = meter.read(steps_left=6)
    work = 2 * ModelFlops(model).of(batch)
    assert rates.mfu == pytest.approx(work / 4 / 1e9) and rates.seconds_left == 24
    assert rates.tokens == 4 * len(batch) and rates.tokens_per_second == 2 * len(batch) / 4
    assert rates.memory > 1 << 20  # this process


def test_peaks(make):
    """Known for 16 bits on some GPUs; never guessed."""
    model = make()
    assert peak_flops(model) is None and Meter(model).read(0).mfu is None
