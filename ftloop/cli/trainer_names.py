"""What to write for an option of the Trainer, of its example scripts, of timm or of ftloop 0.1.

`python -m ftloop.cli.trainer_names` writes docs/trainer-names.md, the same table as a page.
"""

from collections.abc import Container
from pathlib import Path

# An option, with underscores, and what to do. "--ours {}" is what to write, where {} stands for the
# values that were given. Anything else is an instruction.
TRAINER = {  # transformers.TrainingArguments
    "per_device_train_batch_size": "--batch-size {} (rows per optimizer step, over all processes)",
    "per_gpu_train_batch_size": "--batch-size {} (rows per optimizer step, over all processes)",
    "train_batch_size": "--batch-size {}",
    "per_device_eval_batch_size": "--eval-batch-size {}",
    "gradient_accumulation_steps": "--micro-batch-size N (the batch size divided by {} and by the "
    "number of processes)",
    "auto_find_batch_size": "--micro-batch-size auto",
    "num_train_epochs": "--epochs {}",
    "output_dir": "--run-dir {}",
    "overwrite_output_dir": "--run-dir FOLDER with a new folder; a run never overwrites another",
    "run_name": "--run-dir runs/{}",
    "lr_scheduler_type": "--schedule {}",
    "lr_scheduler_kwargs": "--schedule-options KEY=VALUE",
    "warmup_ratio": "--warmup {} (a fraction below 1 of all steps)",
    "warmup_steps": "--warmup {} (1 or more: optimizer steps)",
    "optim": "--optimizer MODULE:NAME, a function f(model, config); AdamW is the default",
    "adam_beta1": "set optimizer=functools.partial(adamw, betas=(...)) in the config file",
    "adam_beta2": "set optimizer=functools.partial(adamw, betas=(...)) in the config file",
    "adam_epsilon": "set optimizer=functools.partial(adamw, eps={}) in the config file",
    "label_smoothing_factor": "define a task with its own losses(), as in configs/fork_example.py",
    "bf16": "--precision bf16",
    "fp16": "--precision fp16",
    "fp16_opt_level": "--precision fp16",
    "half_precision_backend": "--precision bf16 or --precision fp16",
    "bf16_full_eval": "--precision bf16",
    "fp16_full_eval": "--precision fp16",
    "tf32": "--matmul tf32",
    "torch_compile": "--compile",
    "full_determinism": "--deterministic",
    "no_cuda": "set ACCELERATE_USE_CPU=1 in the environment",
    "use_cpu": "set ACCELERATE_USE_CPU=1 in the environment",
    "local_rank": "leave it out: accelerate launch and torchrun set it",
    "fsdp": "run accelerate launch --config_file configs/fsdp2.yaml train.py ...",
    "fsdp_config": "run accelerate launch --config_file configs/fsdp2.yaml train.py ...",
    "deepspeed": "run accelerate launch --config_file configs/fsdp2.yaml train.py ... (FSDP2)",
    "ddp_find_unused_parameters": "--find-unused-parameters",
    "ddp_timeout": "--timeout {}",
    "dataloader_num_workers": "--workers {}",
    "dataloader_drop_last": "leave it out: every row is used in every epoch",
    "dataloader_pin_memory": "leave it out: it is decided by the device",
    "remove_unused_columns": "leave it out: the task reads only its columns",
    "length_column_name": "--group-by-length (lengths come from the task)",
    "evaluation_strategy": "--eval-every epoch, or --eval-every STEPS",
    "eval_strategy": "--eval-every epoch, or --eval-every STEPS",
    "eval_steps": "--eval-every {}",
    "save_strategy": "--save-every STEPS (there is also a checkpoint at every evaluation)",
    "save_steps": "--save-every {}",
    "save_total_limit": "--keep-last {}",
    "save_safetensors": "leave it out: model/ always has safetensors",
    "load_best_model_at_end": "leave it out: model/ has the best checkpoint, by --best-metric",
    "metric_for_best_model": "--best-metric {}",
    "greater_is_better": "--best-direction max, or --best-direction min",
    "early_stopping_patience": "--patience {}",
    "logging_steps": "--log-every {}",
    "logging_strategy": "--log-every STEPS",
    "logging_first_step": "--log-every 1 (every step is in metrics.jsonl anyway)",
    "logging_dir": "--run-dir FOLDER (the logs are in the run folder)",
    "logging_nan_inf_filter": "leave it out: a loss that is not finite ends the run",
    "report_to": "--track {}",
    "disable_tqdm": "--quiet",
    "log_level_replica": "--log-level LEVEL (only the main process logs)",
    "resume_from_checkpoint": "leave it out: the same command resumes an unfinished run",
    "hub_model_id": "--push-to-hub {}",
    "hub_private_repo": "--push-private",
    "hub_revision": "--push-revision {}",
    "hub_strategy": "--push-every end, or --push-every save",
    "hub_token": "set HF_TOKEN in the environment",
    "push_to_hub_model_id": "--push-to-hub {}",
    "data_seed": "--seed {} (and --data.split-seed for the split)",
    "do_train": "leave it out: train.py trains",
    "do_eval": "leave it out: train.py evaluates; evaluate.py RUN does so later",
    "do_predict": "leave it out: python predict.py RUN --file FILE predicts with a finished run",
    "neftune_noise_alpha": "define a task with its own compute_losses(), see docs/forking.md",
}
SCRIPTS = {  # run_glue.py, run_glue_no_trainer.py, run_image_classification.py and the like
    "model_name_or_path": "--model {}",
    "config_name": "--model-options KEY=VALUE (changes of the model's configuration)",
    "tokenizer_name": "--model FOLDER, with the tokenizer in the folder of the model",
    "image_processor_name": "--model FOLDER, with the image processor in the folder of the model",
    "use_slow_tokenizer": "leave it out: the fast tokenizer is used",
    "trust_remote_code": "leave it out: code from the Hub is never run",
    "cache_dir": "set HF_HOME={} in the environment",
    "task_name": "--data nyu-mll/glue --data.name {}",
    "dataset_name": "--data {}",
    "dataset_config_name": "--data.name {}",
    "train_file": "--data.files train {} validation FILE",
    "validation_file": "--data.files train FILE validation {}",
    "test_file": "--data.files train FILE test {}",
    "train_dir": "--data FOLDER (with train/ and validation/, each with a folder per class)",
    "validation_dir": "--data FOLDER (with train/ and validation/, each with a folder per class)",
    "train_val_split": "--data.validation {}",
    "max_seq_length": "--max-length {}",
    "pad_to_max_length": "--pad-to max",
    "text_column_name": "--text {}",
    "text_column_names": "--text {}",
    "label_column_name": "--label {}",
    "image_column_name": "--image {}",
    "max_train_samples": "--data.limit {}",
    "max_eval_samples": "--data.limit {}",
    "do_regression": "--problem-type regression",
    "metric_name": "--metrics {}",
    "ignore_mismatched_sizes": "leave it out: a head of another size is replaced, and logged",
    "num_warmup_steps": "--warmup {}",
    "checkpointing_steps": "--save-every {}",
    "with_tracking": "--track tensorboard",
    "preprocessing_num_workers": "leave it out: rows are prepared once and cached",
}
TIMM = {  # timm's train.py, and common spellings elsewhere
    "lr": "--learning-rate {}",
    "wd": "--weight-decay {}",
    "amp": "--precision bf16, or --precision fp16",
    "amp_dtype": "--precision {}",
    "mixed_precision": "--precision {}",
    "sched": "--schedule {}",
    "lr_scheduler": "--schedule {}",
    "warmup_epochs": "--warmup FRACTION (of all steps), or --warmup STEPS",
    "min_lr": "--schedule cosine_with_min_lr --schedule-options min_lr={}",
    "opt": "--optimizer MODULE:NAME, a function f(model, config)",
    "opt_eps": "set optimizer=functools.partial(adamw, eps={}) in the config file",
    "momentum": "define an optimizer of your own, as in configs/fork_example.py",
    "layer_decay": "define an optimizer of your own, as in configs/fork_example.py",
    "clip_grad": "--max-grad-norm {}",
    "grad_accum_steps": "--micro-batch-size N (the batch size divided by {} and by the number of "
    "processes)",
    "grad_checkpointing": "--gradient-checkpointing",
    "torchcompile": "--compile",
    "model_ema": "change the loop in a few lines, see docs/recipes.md",
    "smoothing": "define a task with its own losses(), as in configs/fork_example.py",
    "drop": "--dropout {}",
    "num_classes": "leave it out: the classes come from the labels",
    "pretrained": "--init pretrained, which is the default",
    "initial_checkpoint": "--model FOLDER, as save_pretrained wrote it",
    "img_size": "--image-size {}",
    "input_size": "--image-size {}",
    "data_dir": "--data {}",
    "dataset": "--data {}",
    "mixup": "--augment mixup={}",
    "cutmix": "--augment cutmix={}",
    "aa": "--augment randaugment=9",
    "auto_augment": "--augment randaugment=9",
    "reprob": "--augment erasing={}",
    "hflip": "--augment flip={}",
    "vflip": "--augment vertical-flip={}",
    "scale": "--augment crop=SMALLEST_SHARE",
    "color_jitter": "--augment jitter={}",
    "validation_batch_size": "--eval-batch-size {}",
    "eval_metric": "--best-metric {}",
    "log_interval": "--log-every {}",
    "log_wandb": "--track wandb",
    "checkpoint_hist": "--keep-last {}",
    "output": "--run-dir {}",
    "experiment": "--run-dir runs/{}",
    "num_workers": "--workers {}",
    "num_epochs": "--epochs {}",
    "bs": "--batch-size {}",
    "device": "set ACCELERATE_USE_CPU=1 or CUDA_VISIBLE_DEVICES in the environment",
}
REMOVED = {  # options of version 0.1
    "batching": "--group-by-length, --no-group-by-length, or --max-tokens N",
    "keep": "--keep-last N and --keep-best N",
    "cheaper_dropout": "leave it out: it was removed, because it replaced functions of torch",
    "profile": "leave it out: it was removed; wrap train(config) in torch.profiler",
    "on_save_error": "leave it out: it was removed; a run that cannot save ends with an error",
    "on_nan": "leave it out: it was removed; a loss that is not finite always ends the run",
}
OTHER_NAMES = {**TIMM, **SCRIPTS, **TRAINER, **REMOVED}
PAGE = Path(__file__).parents[2] / "docs" / "trainer-names.md"


def explain_other_names(unknown: list[tuple[str, list[str]]], options: Container[str]) -> str:
    """Return one message that says what to write for each option, or "" if no name is known.

    `unknown` holds options as they were typed, with their values; `options` those of the job.
    """
    lines = []
    for option, values in unknown:
        name = option.removeprefix("--").replace("-", "_")
        unprefixed = option.replace("_", "-").removeprefix("--task.")
        if f"--{unprefixed}" in options:
            answer = f"--{unprefixed} {{}}" if values else f"--{unprefixed}"
        elif name in OTHER_NAMES:
            answer = OTHER_NAMES[name]
        else:
            continue
        text = answer.replace("{}", " ".join(values) or "VALUE")
        verb = "write " if text.startswith("--") else ""
        lines.append((" ".join([option, *values]), verb + text))
    if not lines:
        return ""
    if len(lines) == 1:
        (typed, text), *_ = lines
        return f"{typed} is not an option here: {text}."
    width = max(len(typed) for typed, _ in lines)
    table = "\n".join(f"  {typed:<{width}}  {text}" for typed, text in lines)
    return f"these are not options here:\n{table}"


def page() -> str:
    """Return the text of docs/trainer-names.md."""
    lines = [
        "# Names from the Trainer and timm",
        "",
        "Written by `python -m ftloop.cli.trainer_names` from the table that answers these options",
        "on the command line. Where an option needs no counterpart, the right column says why.",
    ]
    tables = {
        "TrainingArguments of transformers": TRAINER,
        "Example scripts of transformers, such as run_glue_no_trainer.py": SCRIPTS,
        "timm and common spellings": TIMM,
        "Options of ftloop 0.1": REMOVED,
    }
    for title, table in tables.items():
        lines += ["", f"## {title}", "", "| there | here |", "|---|---|"]
        lines += [f"| `--{name}` | {as_markdown(table[name])} |" for name in sorted(table)]
    lines += [
        "",
        "Options of a task had the prefix `--task.` in version 0.1 and are now written without it:",
        "`--task.max-length` is `--max-length`; `--task.data.path` is `--data.path`, or `--data`.",
    ]
    return "\n".join(lines) + "\n"


def as_markdown(answer: str) -> str:
    """Format an answer as a cell: code if it is nothing but options."""
    text = answer.replace("{}", "VALUE")
    options, paren, comment = text.partition(" (")
    is_code = options.startswith("--") and not {",", "with", "in", "or"} & {*options.split(" ")}
    is_code = is_code and "," not in options
    return f"`{options}`{paren}{comment}" if is_code else text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
