"""On a GPU in software each family runs in its first configuration; `--large` asks for all."""

import cases
import pytest


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        backend = params.get("backend", params.get("plain_backend", ""))
        case = params.get("case")
        if isinstance(case, cases.Tiny) and not case.first and backend.startswith("wgpu"):
            item.add_marker(pytest.mark.large)
