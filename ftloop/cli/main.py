"""Run the main function of a script: errors without a traceback, options instead of fields."""

from collections.abc import Callable

from ftloop.cli.options import option_name
from ftloop.cli.exit_codes import run_main
from ftloop.errors import UserError


def run(main: Callable[[], None]) -> int:
    """Run a main function and return its exit code, as `ftloop.cli.exit_codes.run_main` does.

    A UserError about a field of the config names the option: "--batch-size: must be at least 1".
    """

    def main_with_option_names() -> None:
        try:
            main()
        except UserError as error:
            if error.field is None:
                raise
            raise UserError(f"{option_name(error.field)}: {error.message}") from error

    return run_main(main_with_option_names)
