"""The command line: Job, config files, help, and the commands of `python -m ftloop.cli`."""

from ftloop.cli.job import Job

__all__ = ["Job"]
