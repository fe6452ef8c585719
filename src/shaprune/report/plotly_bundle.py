"""The one place that imports plotly: its script, to be written into a page."""

from __future__ import annotations

from importlib.util import find_spec

from shaprune.errors import InputError


def has_plotly() -> bool:
    """Whether plotly is installed."""
    return find_spec("plotly") is not None


def plotly_js() -> str:
    """The source of plotly.js, as the installed package ships it.

    Raises:
        InputError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError("the interactive report needs plotly: pip install 'shaprune[plotly]'") from error
    return str(get_plotlyjs())
