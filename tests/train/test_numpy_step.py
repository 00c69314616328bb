"""Steps on numpy with kernels: no composite steps in, and the same bits in every run."""

import numpy as np
import pytest

import boostr
from boostr import dispatch
from boostr.train import AdamW, clip_grad_norm, pack

pytest.importorskip("numba")
from boostr.backends.numpy.runtime import threads

CONFIGS = {
    "llama": {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
              "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96,
              "rms_norm_eps": 1e-5, "max_position_embeddings": 256},
    "gemma2": {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
               "head_dim": 16, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96,
               "sliding_window": 20, "max_position_embeddings": 256},
}  # fmt: skip


@pytest.fixture(params=(1, 2))
def pool(request, monkeypatch):
    made = threads.Pool(request.param)
    monkeypatch.setattr(threads, "_pool", made)
    yield made
    made.close()


def trained(family):
    """Losses of three steps, and what became of the weights."""
    model = boostr.create(family, CONFIGS[family], backend="numpy")
    optimizer, rng, losses = AdamW(model.parameters(), lr=1e-2), np.random.default_rng(0), []
    batch = pack([rng.integers(0, 96, n).tolist() for n in (1, 70, 2, 30)])
    for _ in range(3):
        loss = model.loss(batch)
        loss.backward()
        clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, {name: x.numpy().copy() for name, x in model.named_parameters()}


@pytest.mark.parametrize("family", CONFIGS)
def test_steps_repeat_bit_for_bit(family, pool):
    with dispatch.strict():
        first, second = trained(family), trained(family)
    assert first[0] == second[0] and first[0][-1] < first[0][0]
    for name, weight in first[1].items():
        np.testing.assert_array_equal(weight, second[1][name], err_msg=name)
