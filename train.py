"""Fine-tune a model as a config file describes it.

    python train.py configs/quickstart_text.py                    MiniLM on docstrings; no network
    python train.py configs/quickstart_image.py                   a small ViT on digits; no network
    python train.py configs/mrpc.py --learning-rate 3e-5          any option of the config, changed
    python train.py configs/image.py --data photos                your own images
    python train.py configs/text.py --data reviews.csv --text review --label stars   your own texts
    python train.py configs/text.py --help                        the options that most people need
    python train.py configs/text.py --help-all                    all options
    python train.py configs/text.py --data reviews.csv --check    look for mistakes in the data
    accelerate launch train.py configs/mrpc.py                    on several GPUs or machines
    torchrun --nproc_per_node 2 train.py configs/mrpc.py          likewise

Run the same command again to resume a run that was interrupted.
"""

import sys

from ftloop.cli.config_file import from_command_line
from ftloop.cli.exit_codes import run_main
from ftloop.cli.help import list_configs
from ftloop.errors import UserError


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "--help-all"):
        print(__doc__, list_configs(), sep="\n")
        sys.exit(0 if words else 2)
    if words[0].startswith("-"):
        command = " ".join(words)
        raise UserError(f"the config file comes first: python train.py configs/text.py {command}")

    job = from_command_line(words)
    if job.check:
        from ftloop.cli.check import check_data

        sys.exit(check_data(job))
    from ftloop.loop import train  # imports torch, which --help does without

    train(job)


if __name__ == "__main__":
    sys.exit(run_main(main))
