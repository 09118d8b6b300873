"""The command line: options, their help, and what answers a name that is not an option."""

import ast
import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any

import pytest
from conftest import ROOT, run_command, run_script

from ftloop import Config, UserError, optim
from ftloop.cli import Job, trainer_names
from ftloop.cli.config_file import from_command_line, load_config_file
from ftloop.cli.option_names import OptionNames
from ftloop.data import Data
from ftloop.tasks import TextClassification

CONFIGS = sorted(ROOT.glob("configs/*.py"))
TEXT = str(ROOT / "configs" / "text.py")
IMAGE = str(ROOT / "configs" / "image.py")


@dataclass(frozen=True)
class Margins(TextClassification):
    """A task of a fork."""

    margin: float = 0.5  # Distance between classes. Not used.


@dataclass(frozen=True)
class LearningTask(TextClassification):
    learning_rate: float = 1.0  # has the name of a field of Config


def falling(step: int, total_steps: int, warmup_steps: int) -> float:
    return 1 - step / total_steps


def parse(*words: str) -> Job:
    return from_command_line([TEXT, *words])


def look_up(config: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), config)


def printed(result: Any) -> str:
    """What a command printed, in one line and without the frames of tyro."""
    return " ".join((result.out + result.err).replace("│", " ").split())


# Options


def test_the_command_line_overrides_the_file_and_the_file_overrides_the_default():
    default = Config(task=TextClassification(), run_dir="x")
    assert default.warmup == 0.0
    assert parse().warmup == 0.06
    assert parse("--warmup", "0.2").warmup == 0.2
    assert parse("--warmup", "0.2").epochs == default.epochs


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        ("--run-dir elsewhere/run", "run_dir", "elsewhere/run"),
        ("--epochs 7", "epochs", 7),
        ("--max-steps 100", "max_steps", 100),
        ("--batch-size 64", "batch_size", 64),
        ("--micro-batch-size 16", "micro_batch_size", 16),
        ("--learning-rate 3e-5", "learning_rate", 3e-5),
        ("--weight-decay 0.1", "weight_decay", 0.1),
        ("--warmup 100", "warmup", 100.0),
        ("--warmup 0.1", "warmup", 0.1),
        ("--schedule cosine", "schedule", "cosine"),
        ("--schedule test_command_line:falling", "schedule", falling),
        ("--schedule-options num_cycles 2", "schedule_options", {"num_cycles": 2}),
        ("--optimizer ftloop.optim:adamw", "optimizer", optim.adamw),
        ("--max-grad-norm 0", "max_grad_norm", 0.0),
        ("--seed 7", "seed", 7),
        ("--precision fp32", "precision", "fp32"),
        ("--precision bf16", "precision", "bf16"),
        ("--precision fp16", "precision", "fp16"),
        ("--workers 2", "workers", 2),
        ("--eval-every 50", "eval_every", 50),
        ("--eval-every epoch", "eval_every", "epoch"),
        ("--best-metric f1_macro", "best_metric", "f1_macro"),
        ("--patience 3", "patience", 3),
        ("--keep-last 2", "keep_last", 2),
        ("--keep-best 3", "keep_best", 3),
        ("--micro-batch-size auto", "micro_batch_size", "auto"),
        ("--max-tokens 4096", "max_tokens", 4096),
        ("--group-by-length", "group_by_length", True),
        ("--no-group-by-length", "group_by_length", False),
        ("--row-order test_command_line:falling", "row_order", falling),
        ("--row-order None", "row_order", None),
        ("--resume none", "resume", "none"),
        ("--gradient-checkpointing", "gradient_checkpointing", True),
        ("--no-report", "report", False),
        ("--track tensorboard", "track", ("tensorboard",)),
        ("--data my.csv", "task.data.path", "my.csv"),
        ("--data=my.csv", "task.data.path", "my.csv"),
        ("--text a b", "task.text_columns", ("a", "b")),
        ("--label colour", "task.label_column", ("colour",)),
        ("--model some/folder", "task.model", "some/folder"),
        ("--init random", "task.init", "random"),
        ("--text-columns a b", "task.text_columns", ("a", "b")),
        ("--label-column a b c", "task.label_column", ("a", "b", "c")),
        ("--label-separator ,", "task.label_separator", ","),
        ("--label-names no yes", "task.label_names", ("no", "yes")),
        ("--problem-type regression", "task.problem_type", "regression"),
        ("--max-length 64", "task.max_length", 64),
        ("--pad-to max", "task.pad_to", "max"),
        ("--dropout 0.0", "task.dropout", 0.0),
        ("--metrics accuracy f1_macro", "task.metrics", ("accuracy", "f1_macro")),
        ("--data.path my.csv", "task.data.path", "my.csv"),
        (
            "--data.files train a.csv test b.csv",
            "task.data.files",
            {"train": "a.csv", "test": "b.csv"},
        ),
        (
            "--data.files train=a.csv test=b.csv",
            "task.data.files",
            {"train": "a.csv", "test": "b.csv"},
        ),
        (
            "--data.files train=a.csv test b.csv",
            "task.data.files",
            {"train": "a.csv", "test": "b.csv"},
        ),
        ("--data.options sep ; quoting 3", "task.data.options", {"sep": ";", "quoting": 3}),
        ("--data.options sep=; quoting=3", "task.data.options", {"sep": ";", "quoting": 3}),
        ("--data.options sep \\t", "task.data.options", {"sep": "\t"}),
        ("--data.options sep \t", "task.data.options", {"sep": "\t"}),
        ("--data.options encoding latin-1", "task.data.options", {"encoding": "latin-1"}),
        ("--data.options names text,label", "task.data.options", {"names": "text,label"}),
        (
            '--data.options names ["text","label"]',
            "task.data.options",
            {"names": ["text", "label"]},
        ),
        (
            "--data.options header None skiprows 1",
            "task.data.options",
            {"header": None, "skiprows": 1},
        ),
        ("--data.options header null", "task.data.options", {"header": None}),
        ("--data.options na_filter=false", "task.data.options", {"na_filter": False}),
        ("--data.format tsv", "task.data.format", "tsv"),
        ("--data.validation 200", "task.data.validation", 200.0),
        ("--data.no-stratify", "task.data.stratify", False),
        ("--data.drop-empty", "task.data.drop_empty", True),
    ],
)
def test_an_option_reaches_the_config(words, path, value):
    found = look_up(parse(*words.split(" ")), path)
    assert found == value
    assert type(found) is type(value)


def test_an_image_column_has_a_short_form():
    task = from_command_line([IMAGE, "--data", "photos", "--image", "file"]).task
    assert (task.data.path, task.image_column) == ("photos", "file")


def test_an_option_leaves_all_others_as_they_are():
    config = parse("--data.options", "sep", ";")
    data = dataclasses.replace(config.task.data, options={})
    task = dataclasses.replace(config.task, data=data)
    assert dataclasses.replace(config, task=task) == load_config_file(TEXT)


def test_underscores_are_read_as_dashes():
    assert parse("--learning_rate", "3e-5").learning_rate == 3e-5
    assert parse("--data.drop_empty").task.data.drop_empty


def test_a_function_in_the_config_survives_the_command_line(tmp_path, fresh_imports):
    (tmp_path / "with_partial.py").write_text(
        "import functools\n"
        "from ftloop import optim\n"
        "from ftloop.cli import Job\n"
        "from ftloop.tasks import TextClassification\n"
        "config = Job(task=TextClassification(model='m'), run_dir='r',\n"
        "             optimizer=functools.partial(optim.adamw, betas=(0.9, 0.98)))\n"
    )
    config = from_command_line([str(tmp_path / "with_partial.py"), "--epochs", "1"])
    assert config.optimizer.keywords == {"betas": (0.9, 0.98)}


def test_the_fields_of_a_forks_task_are_options(tmp_path, fresh_imports):
    (tmp_path / "own_margin.py").write_text(
        "from ftloop.cli import Job\n"
        "from test_command_line import Margins\n"
        "config = Job(task=Margins(model='m'), run_dir='r')\n"
    )
    file = str(tmp_path / "own_margin.py")
    assert from_command_line([file, "--margin", "2"]).task.margin == 2.0
    result = run_script("train.py", file, "--help")
    assert re.search(
        r"Options of Margins\n +--margin +Distance between classes \[0.5\]", result.out
    )


def test_a_task_that_is_not_a_dataclass_has_no_options(tmp_path, fresh_imports):
    (tmp_path / "plain_task.py").write_text(
        "from ftloop import Task\n"
        "from ftloop.cli import Job\n"
        "class Plain(Task):\n"
        "    pass\n"
        "config = Job(task=Plain(), run_dir='r')\n"
    )
    job = from_command_line([str(tmp_path / "plain_task.py"), "--epochs", "2"])
    assert (type(job.task).__name__, job.epochs) == ("Plain", 2)
    assert "--task" not in OptionNames.of(job)


def test_a_field_of_a_task_with_the_name_of_a_field_of_config_is_an_error():
    with pytest.raises(UserError, match="both be the option --learning-rate: rename"):
        OptionNames.of(Job(task=LearningTask(), run_dir="r"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--learning-rte 3e-5",
            "--learning-rte is not an option (did you mean '--learning-rate'?)",
        ),
        ("--maxlength 64", "(did you mean '--max-length'?)"),
        ("--data.file train a.csv", "(did you mean '--data.files'?)"),
        ("--labels stars", "(did you mean '--label'?)"),
        ("--epochs many", "--epochs"),
        ("--precision fp8", "bf16"),
        ("--eval-every never", "--eval-every"),
        ("--data.options quoting", "'quoting' has no value"),
        ("--optimizer torch.optim:Nope", "--optimizer: 'torch.optim:Nope' cannot be imported"),
        ("--optimizer adamw", "--optimizer: 'adamw' is not a qualified name: write MODULE:NAME"),
        ("--data.map nomodule:f", "--data.map: 'nomodule:f' cannot be imported"),
        ("--push-to-hub", "--push-to-hub needs a repository"),
        ("--compile True", "--compile takes no value: write --compile."),
        ("--report false", "--report takes no value: write --no-report."),
        ("--batch-size 0", "--batch-size: must be at least 1, but is 0."),
        ("--report-every 0", "--report-every: must be at least 1, but is 0."),
        ("--quiet --log-level debug", "--quiet and --log-level debug contradict each other"),
        ("--push-private", "--push-private: has no effect without --push-to-hub"),
        ("--track tensorbord", "did you mean 'tensorboard'?"),
        ("--compile --packing", "--compile: cannot be combined with --packing"),
    ],
)
def test_a_wrong_option_is_answered_with_its_name_and_the_choices(words, message, tmp_path):
    result = run_script("train.py", TEXT, "--data", tmp_path / "rows.csv", *words.split())
    assert result.code == 2
    assert message in printed(result)


def test_the_config_file_comes_first():
    result = run_script("train.py", "--epochs", "3", "configs/text.py")
    assert result.code == 2
    assert "the config file comes first" in result.err


# Names of the Trainer, of its scripts, of timm, and of version 0.1


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--lr 3e-5", "--lr 3e-5 is not an option here: write --learning-rate 3e-5."),
        ("--bf16", "write --precision bf16"),
        ("--fp16 True", "write --precision fp16"),
        ("--per_device_train_batch_size 8", "write --batch-size 8"),
        ("--per-device-train-batch-size=8", "write --batch-size 8"),
        ("--gradient_accumulation_steps 4", "write --micro-batch-size N"),
        ("--num_train_epochs 3", "write --epochs 3"),
        ("--output_dir out", "write --run-dir out"),
        ("--warmup_ratio 0.1", "write --warmup 0.1"),
        ("--report_to wandb mlflow", "write --track wandb mlflow"),
        ("--load_best_model_at_end", "leave it out: model/ has the best checkpoint"),
        ("--model_name_or_path bert-base-cased", "write --model bert-base-cased"),
        ("--train_file a.csv", "write --data.files train a.csv"),
        ("--hub_token secret", "set HF_TOKEN"),
        ("--amp", "write --precision bf16"),
        ("--mixup 0.2", "write --augment mixup=0.2"),
        ("--task.max-length 64", "write --max-length 64"),
        ("--task.max_length=64", "write --max-length 64"),
        ("--task.data.path my.csv", "write --data.path my.csv"),
        ("--task.data.no-stratify", "write --data.no-stratify"),
        ("--batching tokens", "--max-tokens N"),
        ("--keep last=1,best=2", "--keep-last N and --keep-best N"),
        ("--cheaper-dropout", "it was removed"),
        ("--profile 10", "it was removed"),
        ("--on-nan skip", "it was removed"),
        ("--on-save-error continue", "it was removed"),
    ],
)
def test_a_name_of_another_library_is_answered_with_ours(words, answer):
    result = run_script("train.py", TEXT, *words.split())
    assert result.code == 2
    assert answer in printed(result)
    assert result.err.count("error:") == 1


def test_several_names_of_another_library_get_one_answer():
    words = "--lr 3e-5 --epochs 2 --output_dir out --load_best_model_at_end"
    result = run_script("train.py", TEXT, *words.split())
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: these are not options here:",
        "  --lr 3e-5                 write --learning-rate 3e-5",
        "  --output_dir out          write --run-dir out",
        "  --load_best_model_at_end  leave it out: model/ has the best checkpoint, by "
        "--best-metric",
    ]


def test_the_answers_name_options_that_exist():
    names = [OptionNames.of(load_config_file(file)) for file in (TEXT, IMAGE)]
    assert len(trainer_names.OTHER_NAMES) >= 45
    scripts = "--file", "--config_file"  # of predict.py and of accelerate
    for name, answer in trainer_names.OTHER_NAMES.items():
        option = f"--{name.replace('_', '-')}"
        assert not any(option in options for options in names), f"{option} is an option of ours"
        for option in re.findall(r"--[a-z][\w.-]*", answer):
            known = any(option in options or option in options.short_forms() for options in names)
            assert known or option in scripts, f"{name}: {option} is not an option"


def test_the_page_has_the_table():
    assert trainer_names.PAGE.read_text(encoding="utf-8") == trainer_names.page()


# Help


def help_entries(text: str) -> dict[str, str]:
    """Return the text beside or under each option in tyro's help, without the default."""
    entries, current = {}, ()
    for line in (framed.strip("│| ") for framed in text.splitlines()):
        option = re.match(r"(--[a-z][\w.-]*)(.*?)(?: {2,}(.*))?$", line)
        if option:
            current = (option[1], *re.findall(r", (--[a-z][\w.-]*)", option[2]))  # and its aliases
            entries |= dict.fromkeys(current, "")
            line = option[3] or ""
        for name in current:
            entries[name] += f"{line} "
    return {name: entry.partition("(default:")[0].strip() for name, entry in entries.items()}


@pytest.mark.parametrize(
    ("cls", "prefix"), [(Job, "--"), (TextClassification, "--"), (Data, "--data.")]
)
def test_the_long_help_has_every_field_with_its_meaning(cls, prefix):
    entries = help_entries(run_script("train.py", TEXT, "--help-all").out)
    # Tasks and data have options of their own; the others are for Python only.
    names = {field.name for field in dataclasses.fields(cls)}
    for name in sorted(names - {"task", "data", "sources", "probabilities"}):
        meaning = entries[prefix + name.replace("_", "-")]
        assert len(meaning) > 10, f"{name} has no meaning: is its comment on the line of the field?"


@pytest.mark.parametrize(("file", "own"), [(TEXT, "--text"), (IMAGE, "--image")])
def test_the_short_help_has_a_line_for_each_of_some_twenty_options(file, own):
    result = run_script("train.py", file, "--help")
    assert result.code == 0
    options = re.findall(r"^  (--[\w.-]+)", result.out, re.MULTILINE)
    common = {"--data", "--label", "--model", "--epochs", "--batch-size", "--run-dir"}
    assert common | {own} < {*options}
    assert 18 <= len(options) <= 24
    assert len(result.out.splitlines()) <= 40
    assert all(len(line) <= 100 for line in result.out.splitlines())
    for line in result.out.splitlines():
        if line.startswith("  --"):
            assert re.fullmatch(r"  --[\w.-]+( [A-Z. ]+)? +[A-Zf].{10,}", line), line
    assert "--help-all shows all options" in result.out


@pytest.mark.parametrize(
    ("script", "positional"),
    [("evaluate.py", "RUN"), ("predict.py", "RUN [TEXT|IMAGE|FOLDER|- ...]")],
)
def test_the_help_of_the_other_scripts_has_every_option_with_its_meaning(script, positional):
    result = run_script(script, "--help")
    assert result.code == 0
    assert f"usage: {script} [-h] [OPTIONS] {positional}" in result.out
    entries = help_entries(result.out)
    assert "--batch-size" in entries
    assert all(entries.values()), entries


@pytest.mark.parametrize(
    "words", [["--help"], ["--help-all"], ["--learning-rte", "1"], ["--lr", "1"]]
)
def test_help_and_wrong_options_need_no_torch(tmp_path, words):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import runpy, sys\n"
        f"sys.argv = ['train.py', {TEXT!r}, *{words!r}]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    slow = {'torch', 'transformers', 'datasets', 'pandas', 'accelerate'}\n"
        "    print('LOADED', sorted(slow & set(sys.modules)))\n"
    )
    result = run_command("python", str(probe))
    assert result.code == (0 if "--help" in words[0] else 2), result.err
    assert "LOADED []" in result.out


def test_train_without_arguments_explains_itself():
    result = run_script("train.py")
    assert result.code == 2
    assert "python train.py configs/text.py --help" in result.out
    for file in CONFIGS:
        first = ast.get_docstring(ast.parse(file.read_text())).partition("\n")[0]
        assert re.search(rf"configs/{file.name} +{re.escape(first)}", result.out)
    assert run_script("train.py", "--help").code == 0
