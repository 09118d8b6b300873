"""The progress bar over optimizer steps."""

from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

from ftloop.extensions import Observer
from ftloop.logs.terminal import terminal_stream

SECONDS_BETWEEN_LINES = 10  # in a pipe or a file, where each drawing is a line


class ProgressBar(Observer):
    """Shows step, epoch, loss and speed on the main process."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_start(self, run: Any) -> None:
        """Draw the bar, with the steps that were done before."""
        if not run.is_main_process:
            return
        stream = terminal_stream()
        in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
        is_interactive = stream.isatty() or in_notebook
        bar_class = tqdm if is_interactive else LineBar
        self.bar = bar_class(
            total=run.total_steps,
            initial=run.state.step,
            unit="step",
            file=stream,
            mininterval=0.1 if is_interactive else SECONDS_BETWEEN_LINES,
            miniters=1,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def on_log(self, run: Any, steps: list[Any], speed: dict[str, float]) -> None:
        """Show the mean loss of the newest steps, and the speed."""
        if self.bar is None:
            return
        mean_loss = sum(record.loss for record in steps) / len(steps)
        values = {"epoch": f"{steps[-1].epoch:.2f}", "loss": f"{mean_loss:.4f}"}
        values["rows/s"] = f"{speed['rows_per_second']:.0f}"
        if speed["data_wait"] >= 0.05:  # the share of the time in which the loop waited for batches
            values["data_wait"] = f"{speed['data_wait']:.0%}"
        self.bar.set_postfix(values, refresh=False)
        self.bar.update(steps[-1].step - self.bar.n)

    def on_finish(self, run: Any, scores: dict[str, dict[str, float]]) -> None:
        """End the line of the bar."""
        self.close(run)

    def close(self, run: Any) -> None:
        """End the line of the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class LineBar(plain_tqdm):
    """A progress bar for a pipe or a file: each drawing is a line, and nothing is drawn over."""

    monitor_interval = 0  # no thread that draws as well

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the bar as a line."""
        if self.disable or self.n > self.initial:  # `close` ends its line itself
            self.fp.write(f"{self}{'' if self.disable else chr(10)}")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Leave the lines as they are."""
