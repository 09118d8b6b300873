"""Fine-tune what a config describes.

    python train.py configs/quickstart_text.py                         MiniLM on docstrings, no network, 2 minutes
    python train.py configs/quickstart_image.py                        a small ViT on handwritten digits, likewise
    python train.py configs/mrpc.py --learning-rate 3e-5               any option of the config, changed
    python train.py configs/text.py --task.data.path my.csv            your own texts and labels
    python train.py configs/image.py --task.data.path photos           your own images, a folder for each class
    python train.py configs/text.py --help                             every option, with meaning and default
    python train.py configs/text.py --task.data.path my.csv --check    look for mistakes in the data, and stop
    accelerate launch train.py configs/mrpc.py                         on many devices, as accelerate was configured
    torchrun --nproc_per_node 2 train.py configs/mrpc.py               likewise

The same command again goes on with a run that was interrupted.
"""

import logging
import os
import sys
from pathlib import Path

from ftloop.config import Config, from_command_line, validate
from ftloop.errors import UserError, exit_code_of


def explain() -> str:
    """This file's docstring, and the configs with the first line of theirs."""
    import ast

    lines = [__doc__ or "", "Configs:"]
    for file in sorted(Path(__file__).parent.glob("configs/*.py")):
        first = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        lines.append(f"    configs/{file.name:<24} {first}")
    return "\n".join(lines)


def look(config: Config) -> int:
    """The exit code of --check: 1 if anything in the data looks like a mistake. Only the main process looks."""
    from ftloop.logs.terminal import set_up_logging

    if os.environ.get("RANK", "0") != "0":
        return 0
    validate(config)
    set_up_logging(is_main_process=True, level=config.least_said)
    mistakes = config.task.check_data(full=True)
    verdict = f"{mistakes} finding(s) that usually are mistakes" if mistakes else "nothing looks like a mistake"
    logging.getLogger("ftloop").info("check: %s", verdict)
    return 1 if mistakes else 0


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(explain())
        sys.exit(0 if words else 2)
    if words[0].startswith("-"):
        raise UserError(f"the config file comes first: python train.py configs/text.py {' '.join(words)}")
    config = from_command_line(words)
    if config.check:
        sys.exit(look(config))
    from ftloop import train  # torch is imported here, after the command line was understood

    train(config)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
