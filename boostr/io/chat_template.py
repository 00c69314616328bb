"""Chat templates."""

from typing import Any


def render(source: str, variables: dict[str, Any], name: str) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return (
        ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        .from_string(source)
        .render(variables)
    )
