"""Write a page about the data of a config, before training."""

from pathlib import Path

from ftloop.config import Config, validate
from ftloop.errors import UserError
from ftloop.report.data_section import add_data_sections
from ftloop.report.page import Page, write_page
from ftloop.report.sections import page_footer
from ftloop.report.task_rows import TaskRows, is_classification


def write_data_page(config: Config, out: Path | None = None) -> Path:
    """Write the page about the data of a config, and return where it is.

    `out` defaults to NAME-explore.html beside the run folder, because training begins in an empty
    folder. Raises UserError for data that cannot be read.
    """
    validate(config)
    task = config.task
    if not is_classification(task):
        raise UserError(
            f"explore shows the rows and labels of a Classification task, but the task is "
            f"{type(task).__name__}."
        )
    run_dir = Path(config.run_dir)
    out = out or run_dir.with_name(f"{run_dir.name}-explore.html")
    page = Page(f"Data of {run_dir.name}", "explore")
    add_data_sections(page, TaskRows(task, config.seed))
    write_page(out, page.render(page_footer()))
    return out
