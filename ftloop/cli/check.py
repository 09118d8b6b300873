"""--check: look for mistakes in the data, without training."""

import logging
import os

from ftloop.cli.job import Job
from ftloop.config import validate
from ftloop.errors import UserError

logger = logging.getLogger("ftloop")


def check_data(job: Job) -> int:
    """Log what looks like a mistake in the data. Returns 1 if anything does, else 0.

    Only rank 0 looks. Raises UserError for options that cannot work.
    """
    from ftloop.data.findings import ReadingMistakes
    from ftloop.logs.terminal import configure_logging

    if os.environ.get("RANK", "0") != "0":
        return 0
    validate(job)
    configure_logging(job.effective_log_level)
    check = getattr(job.task, "check_data", None)
    if check is None:
        raise UserError(f"{type(job.task).__name__} has no method check_data().", field="check")
    while_reading = ReadingMistakes()
    logger.addHandler(while_reading)
    try:
        mistakes = check(full=True) + while_reading.count
    finally:
        logger.removeHandler(while_reading)
    if mistakes:
        logger.info("check: %d finding(s) that usually are mistakes.", mistakes)
        return 1
    logger.info("check: nothing looks like a mistake.")
    return 0
