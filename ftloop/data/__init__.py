"""Data: read files of any format, split them, encode labels, stream, and check for mistakes."""

from ftloop.data.source import Data

__all__ = ["Data"]
