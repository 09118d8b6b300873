"""Pushing: the Hub gets what was sent, a repeated push sends nothing, and no text has the token."""

import json
import os
import shutil
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import run_command, run_script, run_script_of_ftloop, sentences, write_csv
from hub_server import OTHER, READER, WRITER, Hub

from ftloop.cli.job import Job
from ftloop.errors import UserError
from ftloop.hub import card, push, repository
from ftloop.tasks.text_classification import TextClassification

# The Hub's client uploads large files in a way that its HTTP client deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SECRETS = (WRITER, READER, OTHER, "hf_nobodynobody")


@pytest.fixture(scope="module")
def command(tiny, tmp_path_factory) -> list[str]:
    """A training of two steps, without --run-dir."""
    rows = write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", sentences(24))
    command = ["train.py", "configs/text.py", "--model", tiny("bert"), "--data.path", rows]
    command += ["--label-column", "colour", "--data.validation", "6", "--max-length", "32"]
    return [*command, "--batch-size", "8", "--max-steps", "2", "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "colours"
    result = run_script(*command, "--run-dir", run)
    assert result.code == 0, result.err
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "colours")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local Hub that the client in this process talks to, logged in as "me"."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "".join(template[1:])
        )
        yield hub


def logits(name: str) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name)
    texts = [row["text"] for row in sentences(5, seed=9)]
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def has_no_secrets(*texts: str) -> bool:
    return not any(secret in text for secret in SECRETS for text in texts)


def was_not_started(run: Path) -> bool:
    """Tell whether a run folder is empty, except for its lock."""
    return [file.name for file in run.iterdir()] == ["lock"]


# The command


def test_the_hub_has_what_was_pushed(run, hub, tmp_path):
    from huggingface_hub import snapshot_download

    (run / "report.html").write_text("<p>a report</p>")
    result = run_script_of_ftloop("push", run, "colours")
    assert result.code == 0, result.err
    assert f"{hub.url}/me/colours, branch main, commit" in result.out
    assert "report.html is included and shows rows of the data" in result.out
    assert "files: README.md, config.json, model.safetensors, report.html, " in result.out
    fetched = Path(snapshot_download("me/colours", local_dir=tmp_path / "fetched"))
    names = {file.name for file in (run / "model").iterdir()}
    fetched_names = {file.name for file in fetched.iterdir() if file.is_file()}
    assert fetched_names == {*names, "report.html", ".gitattributes"}
    for name in names - {"README.md"}:
        assert (fetched / name).read_bytes() == (run / "model" / name).read_bytes()
    text = (fetched / "README.md").read_text()
    assert 'model = "me/colours"' in text
    assert not card.is_edited(text)
    assert torch.equal(logits(str(fetched)), logits(str(run / "model")))
    assert torch.equal(logits("me/colours"), logits(str(run / "model")))
    assert has_no_secrets(result.out, result.err)


def test_push_and_pipeline_in_new_processes(run, hub, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home")}
    push = ["python", "-m", "ftloop.cli", "push", run, "me/colours", "--private"]
    result = run_command(*push, **environment)
    assert result.code == 0, result.err
    assert has_no_secrets(result.out, result.err)
    assert hub.repositories["me/colours"].private
    code = (
        "from transformers import pipeline\n"
        "print(pipeline('text-classification', 'me/colours')('deep blue'))"
    )
    result = run_command("python", "-c", code, **environment)
    assert result.code == 0, result.err
    assert eval(result.out)[0]["label"] in ("red", "green", "blue")


def test_a_second_push_sends_nothing_and_makes_no_commit(run, hub):
    push.push(run, "me/colours")
    history, puts = hub.repositories["me/colours"].history(), hub.count("PUT", "storage")
    push.push(run, "me/colours")
    assert hub.repositories["me/colours"].history() == history
    assert hub.count("PUT", "storage") == puts


@pytest.mark.parametrize("failing", ["commit", "verify", "storage"])
def test_after_an_interrupted_push_only_missing_files_are_sent(run, hub, failing):
    Path(run / "model" / "second.safetensors").write_bytes(os.urandom(50_000))
    hub.fails[failing] = 418  # a status after which the client does not try again
    message = r"the Hub refused it \(418: .*\). The same command"
    with pytest.raises(UserError, match=message) as raised:
        push.push(run, "me/colours")
    assert has_no_secrets(str(raised.value))
    assert hub.repositories["me/colours"].history() == ["initial commit"]  # all or nothing
    stored = len(hub.stored)
    assert stored in {"commit": [2], "verify": [1, 2], "storage": [0]}[failing]
    hub.fails.clear()
    hub.requests.clear()
    push.push(run, "me/colours")
    assert hub.count("PUT", "storage") == 2 - stored
    large_files = {file.read_bytes() for file in (run / "model").glob("*.safetensors")}
    assert set(hub.stored.values()) == large_files
    assert "second.safetensors" in hub.repositories["me/colours"].files()


def test_a_branch(run, hub):
    from huggingface_hub import snapshot_download

    (run / "report.html").write_text("<p>a report</p>")
    result = run_script_of_ftloop("push", run, "me/colours", "--revision", "v1", "--no-report")
    assert result.code == 0, result.err
    assert "report.html" not in hub.repositories["me/colours"].files("v1")
    assert set(hub.repositories["me/colours"].files("main")) == {".gitattributes"}
    assert "model.safetensors" in hub.repositories["me/colours"].files("v1")
    fetched = snapshot_download("me/colours", revision="v1")
    assert torch.equal(logits(fetched), logits(str(run / "model")))


def test_a_card_that_was_edited_on_the_hub_is_kept(run, hub):
    push.push(run, "me/colours")
    pushed = hub.repositories["me/colours"]
    card_on_hub = pushed.files()["README.md"]
    edited = card_on_hub.replace(b"[to be filled: who should use it, for what]", b"painters")
    assert edited != card_on_hub
    pushed.commit("main", {**pushed.files(), "README.md": edited}, "Update README.md")
    lines = push.push(run, "me/colours")
    assert "was edited and is not changed" in lines[0]
    assert pushed.files()["README.md"] == edited
    assert run_script_of_ftloop("push", run, "me/colours", "--overwrite-card").code == 0
    assert pushed.files()["README.md"] != edited

    # A card that was edited here replaces it.
    file = run / "model" / "README.md"
    file.write_text(file.read_text().replace("Not for: [to be", "Not for: [not"))
    pushed.commit("main", {**pushed.files(), "README.md": edited}, "Update README.md")
    push.push(run, "me/colours")
    assert b"Not for: [not" in pushed.files()["README.md"]
    assert b'model = "me/colours"' in pushed.files()["README.md"]


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (
            "me/colours",
            None,
            "there is no token. Set HF_TOKEN, or log in once with `hf auth login`",
        ),
        ("me/colours", "hf_nobodynobody", "is not accepted (401: Invalid username or password.)"),
        ("me/colours", READER, "the token may not write there"),
        ("else/colours", WRITER, "the token may not write there"),
        ("else/theirs", WRITER, "the token may not write there"),  # exists
        ("me/open", WRITER, "--private is given, but me/open exists and is public"),
        ("me/no/name", WRITER, "'repo_name' or 'namespace/repo_name'"),
        ("me/--no", WRITER, "'me/--no'"),
        ("https://me:hf_writerwriter@hub/me", WRITER, "'https://me:***@hub/me'"),
    ],
)
def test_an_impossible_push_is_an_error_before_training(
    name, token, message, command, hub, monkeypatch, tmp_path
):
    from huggingface_hub import HfApi

    HfApi(token=OTHER).create_repo("theirs")
    HfApi(token=WRITER).create_repo("open")
    monkeypatch.setenv("HF_TOKEN", token or "")
    options = ["--run-dir", tmp_path / "run", "--push-to-hub", name, "--private"]
    result = run_script(*command, *options)
    assert result.code == 2
    assert result.err.startswith("error: --push-to-hub")
    assert message in result.err
    assert has_no_secrets(result.out, result.err)
    assert was_not_started(tmp_path / "run")


def test_a_push_without_network_is_an_error_before_training(command, hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    command = [*command, "--run-dir", tmp_path / "run", "--push-to-hub", "me/colours"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = run_script(*command)
    assert result.code == 2
    assert "http://127.0.0.1:9: ConnectError" in result.err
    monkeypatch.setattr(repository, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(repository, "_create_repository", lambda *_: time.sleep(2))
    assert "did not answer within 0.2 seconds" in run_script(*command).err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is in offline mode. Unset HF_HUB_OFFLINE" in run_script(*command).err
    assert was_not_started(tmp_path / "run")


def test_push_options_without_a_repository_are_refused(command, tmp_path):
    for options in (["--private"], ["--revision", "v1"], ["--push-every", "save"]):
        result = run_script(*command, "--run-dir", tmp_path / "run", *options)
        assert result.code == 2
        assert "has no effect without --push-to-hub REPOSITORY" in result.err


# In training


def test_training_pushes_checkpoints_and_the_finished_run(command, hub, tmp_path):
    from huggingface_hub import snapshot_download

    run = tmp_path / "run"
    options = ["--push-to-hub", "colours", "--private", "--push-every", "save", "--save-every", "1"]
    options += ["--max-steps", "3", "--eval-every", "2", "--run-dir", run]
    result = run_script(*command, *options)
    assert result.code == 0, result.err
    pushed = hub.repositories["me/colours"]
    assert pushed.private
    messages = pushed.history()
    assert messages[:2] == ["initial commit", "step 1"]
    assert messages[-1] == "run, trained with ftloop"
    first = list(pushed.commits.values())[1]
    assert b"these are the weights after step 1." in first["README.md"]
    (tmp_path / "first").mkdir()
    for name, content in first.items():
        (tmp_path / "first" / name).write_bytes(content)
    assert logits(str(tmp_path / "first")).isfinite().all()
    assert torch.equal(logits(snapshot_download("me/colours")), logits(str(run / "model")))
    assert not (run / "pushed").exists()
    assert "pushed      " in result.err
    assert has_no_secrets(result.out, result.err)
    files = [file.read_bytes() for file in run.rglob("*") if file.is_file()]
    assert not any(secret.encode() in content for secret in SECRETS for content in files)
    recorded = json.loads((run / "config.json").read_text())["config"]
    push_options = {field.name for field in fields(Job) if field.name.startswith("push_")}
    assert {name for name in recorded if "push" in name} == push_options


def test_pushing_does_not_change_the_result(command, finished, hub, tmp_path):
    run = tmp_path / "run"
    options = ["--push-to-hub", "me/colours", "--push-every", "save", "--save-every", "1"]
    assert run_script(*command, "--run-dir", run, *options).code == 0
    for name in ("ledger.jsonl", "model/model.safetensors", "scores.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_after_a_failed_push_the_run_is_finished_and_the_command_is_logged(command, hub, tmp_path):
    run = tmp_path / "run"
    hub.fails["preupload"] = 418
    options = ["--push-to-hub", "me/colours", "--revision", "v1"]
    options += ["--push-every", "save", "--save-every", "1", "--run-dir", run]
    result = run_script(*command, *options)
    assert result.code == 0, result.err
    failure = "The push failed: cannot push to 'me/colours': the Hub refused it (418: failing on"
    assert failure in result.err
    assert f"-m ftloop.cli push {run} me/colours --revision v1" in result.err
    assert has_no_secrets(result.out, result.err)  # the server's answer has the token
    assert (run / "scores.json").is_file()
    hub.fails.clear()
    assert run_script_of_ftloop("push", run, "me/colours", "--revision", "v1").code == 0
    assert "model.safetensors" in hub.repositories["me/colours"].files("v1")
    again = run_script(*command, *options)
    assert f"-m ftloop.cli push {run} me/colours" in again.err


def test_a_signal_stops_the_last_push(run, hub, monkeypatch, caplog):
    monkeypatch.setattr(push, "push", lambda *_: time.sleep(5))
    pusher = push.Pusher(run_dir=run, repository="me/colours")
    pusher.push_finished_run(is_stopped=lambda: True)
    assert "The push was stopped. The run is finished; to push it:" in caplog.text


def test_without_the_folder_hub_only_its_option_is_refused(monkeypatch):
    for module in ("ftloop.hub", "ftloop.hub.card", "ftloop.hub.push"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it raises ModuleNotFoundError
    job = Job(task=TextClassification(model="m"), run_dir="run", report=False)
    assert not any(type(each).__name__ == "CardWriter" for each in job.observers())
    with pytest.raises(UserError, match=r"^push_to_hub: .*ftloop\.hub"):
        replace(job, push_to_hub="me/colours").observers()


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        (lambda file, mine: file.symlink_to(mine), "is a symbolic link"),
        (lambda file, mine: file.symlink_to(mine.parent), "is a symbolic link"),
        (lambda file, mine: file.hardlink_to(mine), "has another name (a hard link)"),
        (lambda file, mine: os.mkfifo(file), "is not an ordinary file"),
        (lambda file, mine: shutil.copy(mine, file.with_name(".netrc")), "is hidden"),
    ],
)
def test_only_ordinary_files_are_pushed(plant, problem, run, hub, tmp_path):
    mine = tmp_path / "private" / "key"
    mine.parent.mkdir()
    mine.write_text("secret")
    (run / "model" / "more").mkdir()
    plant(run / "model" / "more" / "vocab.txt", mine)
    result = run_script_of_ftloop("push", run, "colours")
    assert result.code == 2
    assert f"{problem} and is not pushed" in result.err
    assert str(run / "model" / "more") in result.err
    assert not hub.repositories


@pytest.mark.parametrize("place", ["nowhere", "unfinished"])
def test_a_run_that_is_not_finished_cannot_be_pushed(place, hub, tmp_path):
    (tmp_path / "unfinished").mkdir()
    result = run_script_of_ftloop("push", tmp_path / place, "me/colours")
    assert result.code == 2
    assert "has no folder model/ to push" in result.err


def test_a_license_that_the_hub_does_not_know_is_an_error(run, hub):
    file = run / "model" / "README.md"
    file.write_text(file.read_text().replace("# license: [to be filled: ", "license: mine # "))
    with pytest.raises(UserError, match=r"Invalid metadata in README\.md"):
        push.push(run, "me/colours")
