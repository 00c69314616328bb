"""boostr bench: every combination is a row, in three forms; what the figures are made of."""

import csv
import io
import json
import math

import numpy as np
import pytest
from tiny_model import make_tiny

from boostr import Tensor, backends, load
from boostr.bench import Row, Workload, bench
from boostr.bench.resources import PeakMemory, read_bandwidth
from boostr.ops import softmax

SMALL = ("-p", "8", "-n", "4", "-r", "2")


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boostr.bench.resources._PROBE_BYTES", 1 << 20)


def test_a_table(boostr, tiny: str) -> None:
    result = boostr("bench", "-m", tiny, *SMALL)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0].startswith("| model |") and lines[1].startswith("|--")
    assert " pp8 | " in lines[2] and " tg4 | " in lines[3] and "±" in lines[2]
    for part in ("peak memory", "GB/s of weights", "outside of native kernels", "not in the times"):
        assert part in result.stdout


def test_sweeps_are_all_combinations(boostr, tiny: str) -> None:
    args = ("-p", "8,16", "-n", "4", "-d", "0,8", "-b", "1,2", "-r", "2", "-o", "json")
    rows = json.loads(boostr("bench", "-m", tiny, *args).stdout)
    assert [row["test"] for row in rows] == [
        f"{name}{batch}{depth}"
        for depth in ("", " @ d8")
        for batch in ("", " x2")
        for name in ("pp8", "pp16", "tg4")
    ]
    for row in rows:
        assert len(row["samples_ts"]) == 2 and row["avg_ts"] > 0
        assert math.isclose(row["avg_ts"], np.mean(row["samples_ts"]))
        assert math.isclose(row["stddev_ts"], np.std(row["samples_ts"], ddof=1), abs_tol=1e-9)
        prompt = row["n_prompt"] > 0
        assert (row["first_token_seconds"] is not None) == prompt
        assert (row["bandwidth_share"] is None) == prompt == (row["step_seconds"] is None)
        assert row["version_boostr"] and row["excluded"]


def test_csv(boostr, tiny: str) -> None:
    result = boostr("bench", "-m", tiny, *SMALL, "-o", "csv", "--quantize", "int8")
    prompt, decode = csv.DictReader(io.StringIO(result.stdout))
    assert prompt["test"] == "pp8" and decode["n_gen"] == "4" and decode["backend"] == "numpy"


def test_one_kind_alone(boostr, tiny: str) -> None:
    def tests(*args: str) -> list[str]:
        result = boostr("bench", "-m", tiny, "-r", "1", "--json", *args)
        return [row["test"] for row in json.loads(result.stdout)]

    assert tests("-p", "0", "-n", "3") == ["tg3"]
    assert tests("-p", "3", "-n", "0") == ["pp3"]


@pytest.mark.parametrize(
    "args",
    [("-p", "0", "-n", "0"), ("-p", "x"), ("-p", "-1"), ("-b", "0"), ("-r", "0"), ("-t", "0"),
     ("-o", "xml"), ("-d", "1,,2")],
)  # fmt: skip
def test_wrong_usage(boostr, args: tuple[str, ...]) -> None:
    assert boostr("bench", "-m", "never-opened", *args).exit_code == 2


def test_more_than_the_context_holds(boostr, tiny: str) -> None:
    result = boostr("bench", "-m", tiny, "-p", "4000", "-d", "100")
    assert result.exit_code == 1 and "4100 positions" in result.stderr


def test_figures_of_the_weights(tmp_path) -> None:
    untied = load(make_tiny(tmp_path / "m"))
    report = bench(lambda: untied, Workload((), (3,), repetitions=1))
    embedding = 258 * 32 * 4
    assert report.weight_bytes - report.step_weight_bytes == embedding  # of it only rows are read
    row = report.rows[0]
    assert report.weight_bandwidth(row) == row.mean * report.step_weight_bytes
    assert report.weights == "float32" and row.step is not None
    assert 0 <= row.step.outside <= row.step.seconds


def test_kernels_are_timed_while_asked_for() -> None:
    backend = backends.get("numpy")
    x = Tensor(np.ones((64, 64), np.float32), backend=backend)
    timed = backend.timed_kernels()
    assert timed is not None
    with timed as clock:
        softmax(x)
    pytest.importorskip("numba", reason="the kernels are numba's")
    seconds = clock.seconds
    softmax(x)
    assert 0 < seconds == clock.seconds


def test_a_ring_of_keys_is_filled_anew_for_each_run(tmp_path) -> None:
    folder = make_tiny(tmp_path / "m", model_type="mistral", sliding_window=4)
    report = bench(lambda: load(folder), Workload((6,), (3,), depth=(9,), repetitions=2))
    assert [row.test for row in report.rows] == ["pp6 @ d9", "tg3 @ d9"]


def test_rows_without_a_spread() -> None:
    assert Row(8, 0, 0, 1, (5.0,)).sd == 0 and Row(8, 0, 0, 1, (5.0,)).mean == 5


def test_resources() -> None:
    assert read_bandwidth(1) > 0
    meter = PeakMemory()
    block = np.ones(64 << 20, np.uint8)  # beyond 32 MiB no freed memory is used again
    peak = meter.above_start()
    assert peak is None or peak > 0.9 * block.nbytes


def test_keys_and_values_have_a_size(boostr, tiny: str) -> None:
    bytes_of = {}
    for options in ((), ("--kv-dtype", "int8")):
        row = json.loads(boostr("bench", "-m", tiny, *SMALL, "--json", *options).stdout)[0]
        bytes_of[row["kv_dtype"]] = row["kv_bytes_per_token"]
    assert bytes_of == {"float32": 2 * 2 * 8 * 4, "int8": 2 * 2 * (8 + 4)}
    assert boostr("bench", "-m", tiny, *SMALL, "--kv-dtype", "int3").exit_code == 2
