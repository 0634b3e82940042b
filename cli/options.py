"""Options that several commands share, each declared once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hashstream.locations import is_url, locate

F = TypeVar("F", bound=Callable[..., Any])


class LocalPath(click.Path):
    """A path on this machine, as a Path; a URL is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(
                f"{value.partition('://')[0]}://... is a URL; a path on this machine is expected here.", param, ctx
            )
        _check_encoding(self, value, param, ctx)
        return super().convert(value, param, ctx)


class AtlasPath(click.Path):
    """Where an atlas is: a path on this machine, as a Path, or a URL, as a string."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        _check_encoding(self, value, param, ctx)
        return locate(value) if is_url(value) else super().convert(value, param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Several paths of an environment variable; the colons of a URL and of its port are no separators."""
        separator = re.escape(os.pathsep)
        return re.findall(rf"\w[\w+.-]*://[^/{separator}]*(?::\d+(?=/))?[^{separator}]*|[^{separator}]+", rv)


def _check_encoding(
    kind: click.ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None
) -> None:
    """Refuse a path whose bytes are no text: records and stores could not name it."""
    try:
        os.fspath(value).encode()
    except UnicodeEncodeError:
        kind.fail(f"{os.fsencode(value)!r} is no UTF-8; rename the file or folder.", param, ctx)


PathType = LocalPath(path_type=Path)
AtlasType = AtlasPath(path_type=Path)


def _combine(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


sources = click.argument("sources", nargs=-1, required=True, type=AtlasType, metavar="ATLAS...")
run = click.argument("run", type=PathType, metavar="RUN")
force = click.option("--force", is_flag=True, help="Replace the target if it is there.")
layer = click.option(
    "--layer",
    metavar="NAME",
    help="Where the raw counts are: X, raw or a layer's name.  [default: the first with counts of X, counts and raw]",
)


def atlas_for(use: str = "", *, what: str = "the encoded atlas") -> Callable[[F], F]:
    """The option --atlas of a command that reads one again, always or only for some `use`."""
    words = f"Where {what} is now, if it was moved (repeatable)."
    return click.option(
        "--atlas", multiple=True, type=AtlasType, help=f"{use}: {words[0].lower()}{words[1:]}" if use else words
    )


atlas = atlas_for()
by = click.option(
    "--by",
    metavar="COLUMN",
    help="Groups: cluster, label or label_majority of the run, or a column of obs.  [default: cluster, else label]",
)
threads = click.option("--threads", type=click.IntRange(min=0), show_default=True, help="Kernel threads; 0: all cores.")
max_memory = click.option(
    "--max-memory", metavar="SIZE", show_default=True, help="Peak memory to keep to, such as 512MiB or 2GiB."
)
sample = click.option("--sample", type=click.IntRange(min=2), show_default=True, help="Most cells to learn from.")
bits = click.option("--bits", type=click.IntRange(1, 256), show_default=True, help="Length of the code.")
n_genes = click.option("--n-genes", type=click.IntRange(min=1), show_default=True, help="Highly variable genes to use.")
genes_by = click.option(
    "--genes-by",
    type=click.Choice(["auto", "dispersion", "pearson"]),
    show_default=True,
    help="Ranking of genes: by standardised dispersion, or by variance of Pearson residuals; auto: by the latter where "
    "cells are shallow.",
)
json = click.option("--json", is_flag=True, help="Print JSON, as the global option before the verb does.")

genes_within = click.option(
    "--batch-key", metavar="KEY", help="Column of obs with the batch of each cell: take genes that vary within most."
)
fit_options = _combine(bits, n_genes, genes_by, sample)

simulation = _combine(
    click.option("--cells", required=True, type=click.IntRange(min=1), help="Number of cells."),
    click.option("--genes", type=click.IntRange(min=50), show_default=True, help="Number of genes."),
    click.option("--types", type=click.IntRange(1, 32_767), show_default=True, help="Number of cell types."),
    click.option(
        "--batches", type=click.IntRange(1, 32_767), show_default=True, help="Number of batches; at most --cells."
    ),
    click.option(
        "--nnz-per-cell",
        type=click.IntRange(min=1),
        show_default=True,
        help="Mean genes a cell expresses; at most 70% of --genes.",
    ),
)


#: Where the context keeps the options that a user's YAML gives each command.
CONFIGURED = "hashstream.configured"
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def asked(*names: str) -> list[str]:
    """Those of some options that were given on the command line or in the environment, as they are called there."""
    context = click.get_current_context()
    parameters = {parameter.name: parameter for parameter in context.command.params}
    return [_as_given(context, parameters[name]) for name in names if _is_given(context, parameters[name])]


def _as_given(context: click.Context, parameter: click.Parameter) -> str:
    """An option as it is written; of a pair such as --counts/--no-counts the one that was."""
    off = parameter.secondary_opts and not context.params[str(parameter.name)]
    return str((parameter.secondary_opts if off else parameter.opts)[-1])


def _is_given(context: click.Context, parameter: click.Parameter) -> bool:
    name = str(parameter.name)
    if context.get_parameter_source(name) not in _GIVEN:
        return False
    # A flag that is off asks for nothing; of a pair such as --counts/--no-counts each does.
    alone = isinstance(parameter, click.Option) and parameter.is_flag and not parameter.secondary_opts
    return not alone or bool(context.params[name])


def configured(name: str) -> bool:
    """Whether an option was given at all: on the command line, in the environment, or in a user's YAML."""
    context = click.get_current_context()
    return bool(asked(name)) or name in context.meta.get(CONFIGURED, {}).get(context.info_name, {})


def refuse(mode: str, *names: str) -> None:
    """Raise UsageError where some of the options were asked for that have no effect in this mode.

    A mode is said as ``with --hasher, which has its own`` or ``without --majority``. Options of a YAML file may be
    there for other calls, and are passed over.
    """
    given = asked(*names)
    if given:
        do, them = ("does", "it") if len(given) == 1 else ("do", "them")
        what = f"{do} nothing" if mode.startswith("without ") else f"{do} not go"
        raise click.UsageError(f"{', '.join(given)} {what} {mode}; leave {them} out.")


def refuse_outside(mode: str, modes_of: Mapping[str, Sequence[str]]) -> None:
    """`refuse` the options that a table has for other modes only, such as ``--method neural``."""
    for name, modes in modes_of.items():
        if mode not in modes:
            refuse(f"with {mode}, but with {' or '.join(modes)}", name)


def exclusive(**values: Any) -> list[Any]:
    """Values of options that exclude each other: those of a YAML file give way to one that was asked for."""
    if not asked(*values):
        return list(values.values())
    return [value if asked(name) else None for name, value in values.items()]
