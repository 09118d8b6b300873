"""Where rows come from (source), what their labels are (labels), and in what order they are served (order, loader)."""

from ftloop.data.source import Data

__all__ = ["Data"]
