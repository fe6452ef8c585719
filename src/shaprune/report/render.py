"""Render a report: with a slider where plotly is installed, static figures otherwise."""

from __future__ import annotations

from collections.abc import Callable

from shaprune.report import plotly_bundle
from shaprune.report.content import Content, Evidence


def render_report(
    content: Content,
    evidence: Evidence | None = None,
    *,
    static: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """One HTML file.

    Args:
        content: of the report.
        evidence: what only the interactive report shows.
        static: pictures also where plotly is installed.
        say: callback for what is left out, and why.

    Raises:
        InputError: values, a plan or curves that do not fit the players.
    """
    evidence = evidence or Evidence()
    if not static and plotly_bundle.has_plotly():
        from shaprune.report.interactive import interactive

        return interactive(content, evidence)
    from shaprune.report.page import page

    if evidence.sensitivity is not None or evidence.frontiers:
        say("the report without scripts leaves out the curves and frontiers of this run")
    if not static:
        say("plotly is not installed: writing the report without a slider; pip install 'shaprune[plotly]' for it")
    return page(content)
