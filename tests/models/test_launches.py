"""A decode step's launches a layer on CUDA, which needs no GPU to be counted: see dry_cupy.py."""

import importlib.util
from pathlib import Path

import pytest
from dry_cupy import DryCupy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# norms behind each half are a kernel each; norms of all heads at once, or after rope, too
LAUNCHES = {
    5: "llama mistral ministral3 qwen2 qwen3 phi3 smollm3 granite granitemoehybrid seed_oss arcee "
       "helium ernie4_5 glm gemma nemotron gpt2 gpt_neox phi olmo stablelm starcoder2 cohere "
       "cohere2 opt bloom mpt falcon gpt_neo gptj gpt_bigcode",
    6: "hunyuan_v1_dense nanochat",
    7: "gemma2 gemma3_text glm4 exaone4",
    8: "olmo2 olmo3",
}  # fmt: skip


@pytest.fixture
def benchmark_of_families(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("benchmark_families", BENCHMARKS / "families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.VOCAB, module.PROMPT = 512, 6  # rows that the decode kernels take
    return module


@pytest.mark.parametrize(
    ("name", "count"), [(name, n) for n, names in LAUNCHES.items() for name in names.split()]
)
def test_launches_of_a_layer(benchmark_of_families, name, count):
    assert benchmark_of_families.launches(name, DryCupy()) == count
