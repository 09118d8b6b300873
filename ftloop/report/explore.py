"""Before training: the data part of a report alone, in a page of its own."""

from pathlib import Path

from ftloop.config import Config, validate
from ftloop.errors import UserError
from ftloop.report import data_part, page
from ftloop.report.page import Page


def write(config: Config, out: Path | None = None) -> Path:
    """Write the page about the data that a config describes, and return where.

    `out`: left out, beside the folder of the run, as NAME-explore.html: the folder itself stays empty until training.
    Raises UserError for data that cannot be read.
    """
    validate(config)
    task = config.task
    if not data_part.is_classification(task):
        raise UserError(f"{type(task).__name__} is no Classification: explore does not know its rows and labels")
    folder = Path(config.run_dir)
    out = out or folder.with_name(f"{folder.name}-explore.html")
    made = Page(f"Data of {folder.name}", "explore")
    rows = data_part.Rows(task, config.seed)
    data_part.add_data(made, rows)
    page.write(out, made.html(data_part.written_by()))
    return out
