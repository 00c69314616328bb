"""On a GPU in software each family runs in its first configuration, and by composites only Llama
does, whose sums the tests of ops hold for the others; `--large` asks for all."""

import cases
import pytest
from conftest import COMPOSITE


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        backend = params.get("backend", params.get("plain_backend", ""))
        case = params.get("case")
        if not isinstance(case, cases.Tiny) or not backend.startswith("wgpu"):
            continue
        if not case.first or (backend.endswith(COMPOSITE) and case.family != "llama"):
            item.add_marker(pytest.mark.large)
