"""`boostr rerank`: texts in the order in which they answer a query."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from boostr.cli.messages import given_texts
from boostr.cli.options import ModelChoice, as_json, task_model
from boostr.cli.output import print_json
from boostr.cli.types import TEXT
from boostr.errors import OptionError


@click.command("rerank")
@task_model
@click.argument("texts", metavar="TEXT...", type=TEXT, nargs=-1)
@click.option("--query", type=TEXT, required=True, metavar="TEXT", help="What is asked.")
@click.option("--file", metavar="FILE", help='Texts, one a line; "-" is stdin.')
@click.option("--top-k", type=int, metavar="N", help="Print the best N.")
@click.option("--prompt", type=TEXT, metavar="TEXT", help="Before the query: an instruction.")
@click.option("--template", metavar="NAME", help="Of a plain decoder: qwen3 or bge.")
@as_json
def command(
    texts: tuple[str, ...],
    choice: ModelChoice,
    query: str,
    file: str | None,
    top_k: int | None,
    prompt: str | None,
    template: str | None,
    as_json: bool,
) -> None:
    """Print TEXTs with their scores, the best answer to --query first.

    MODEL is a cross-encoder such as ms-marco-MiniLM, or a decoder that ranks; --template says how
    a decoder is asked whose folder does not say it (Qwen3-Reranker).
    """
    from boostr.engine.model import LanguageModel

    chosen = given_texts(texts, file)
    model, load_seconds = choice.load()
    start = time.perf_counter()
    if isinstance(model, LanguageModel):
        ranked = model.rerank(query, chosen, template=template, instruction=prompt, top_k=top_k)
    elif template is not None:
        raise OptionError(f"{model.source} says itself how it ranks; leave --template out")
    else:
        ranked = model.rerank(query, chosen, top_k=top_k, prompt=prompt)
    seconds = time.perf_counter() - start
    if not as_json:
        for row in ranked:
            click.echo(f"{row.score:.6f}\t{row.index}\t{row.text}")
        return
    print_json(
        {
            "model": model.source,
            "backend": model.backend.device,
            "query": query,
            "ranked": [asdict(row) for row in ranked],
            "timings": {"load_seconds": load_seconds, "rerank_seconds": seconds},
        }
    )
