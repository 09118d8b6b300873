"""Pushing: what arrives is what was sent, twice is once, and the token goes nowhere but to the Hub."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_command, run_script, run_script_of_ftloop, sentences, write_csv
from hub_server import OTHER, READER, WRITER, Hub

from ftloop.config import Config
from ftloop.hub import card, push
from ftloop.run import beside

# The Hub's client uploads large files as its own HTTP client would no longer have it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
SECRETS = (WRITER, READER, OTHER, "hf_nobodynobody")


@pytest.fixture(scope="module")
def words(tiny, tmp_path_factory) -> list[str]:
    """A training of two steps, but for its folder."""
    rows = write_csv(tmp_path_factory.mktemp("rows") / "rows.csv", sentences(24))
    source = ["--task.model", tiny("bert"), "--task.data.path", rows, "--task.label-column", "colour"]
    source += ["--task.data.validation", "6", "--task.max-length", "32"]
    return ["configs/text.py", *source, "--batch-size", "8", "--max-steps", "2", "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "colours"
    result = run_script("train.py", *words, "--run-dir", run)
    assert result.code == 0, result.err
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "colours")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process talks to, logged in as "me"."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "".join(template[1:]))
        yield hub


def logits(place: str, **options) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    model = AutoModelForSequenceClassification.from_pretrained(place, **options)
    texts = [row["text"] for row in sentences(5, seed=9)]
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def without_secrets(*texts: str) -> bool:
    return not any(secret in text for secret in SECRETS for text in texts)


# ---- the command


def test_what_is_fetched_back_is_what_was_pushed(run, hub, tmp_path):
    from huggingface_hub import snapshot_download

    (run / "report.html").write_text("<p>a report</p>")
    result = run_script_of_ftloop("push", run, "colours")
    assert result.code == 0, result.err
    assert f"{hub.url}/me/colours, branch main, commit" in result.out
    assert "report.html is there too; it shows rows of the data" in result.out
    there = Path(snapshot_download("me/colours", local_dir=tmp_path / "fetched"))
    names = {file.name for file in (run / "model").iterdir()}
    assert {file.name for file in there.iterdir() if file.is_file()} == {*names, "report.html", ".gitattributes"}
    for name in names - {"README.md"}:
        assert (there / name).read_bytes() == (run / "model" / name).read_bytes()
    text = (there / "README.md").read_text()
    assert 'model = "me/colours"' in text
    assert not card.is_edited(text)
    assert torch.equal(logits(str(there)), logits(str(run / "model")))
    assert torch.equal(logits("me/colours"), logits(str(run / "model")))
    assert without_secrets(result.out, result.err)


def test_as_a_user_does_it_in_new_processes(run, hub, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": WRITER, "HF_HOME": str(tmp_path / "home")}
    pushed = run_command("python", "-m", "ftloop", "push", run, "me/colours", "--private", **environment)
    assert pushed.code == 0, pushed.err
    assert without_secrets(pushed.out, pushed.err)
    assert hub.repositories["me/colours"].private
    code = "from transformers import pipeline as of; print(of('text-classification', 'me/colours')('deep blue'))"
    asked = run_command("python", "-c", code, **environment)
    assert asked.code == 0, asked.err
    assert eval(asked.out)[0]["label"] in ("red", "green", "blue")


def test_a_second_push_sends_nothing_and_makes_no_commit(run, hub):
    push.push(run, "me/colours")
    history, puts = hub.repositories["me/colours"].history(), hub.count("PUT", "storage")
    push.push(run, "me/colours")
    assert (hub.repositories["me/colours"].history(), hub.count("PUT", "storage")) == (history, puts)


@pytest.mark.parametrize("fails", ["commit", "verify", "storage"])
def test_a_push_that_was_interrupted_sends_only_what_is_missing(run, hub, fails):
    Path(run / "model" / "second.safetensors").write_bytes(os.urandom(50_000))
    hub.fails[fails] = 418  # an answer that the client does not try to get better
    with pytest.raises(push.UserError, match=r"the Hub refused it \(418: .*\). The same command") as raised:
        push.push(run, "me/colours")
    assert without_secrets(str(raised.value))
    assert hub.repositories["me/colours"].history() == ["initial commit"]  # all or nothing
    stored = len(hub.stored)
    assert stored == {"commit": 2, "verify": 2, "storage": 0}[fails] or (fails == "verify" and stored == 1)
    hub.fails.clear()
    hub.requests.clear()
    push.push(run, "me/colours")
    assert hub.count("PUT", "storage") == 2 - stored
    assert set(hub.stored.values()) == {file.read_bytes() for file in (run / "model").glob("*.safetensors")}
    assert "second.safetensors" in hub.repositories["me/colours"].files()


def test_a_branch(run, hub):
    from huggingface_hub import snapshot_download

    (run / "report.html").write_text("<p>a report</p>")
    result = run_script_of_ftloop("push", run, "me/colours", "--revision", "v1", "--no-report")
    assert result.code == 0, result.err
    assert "report.html" not in hub.repositories["me/colours"].files("v1")
    assert set(hub.repositories["me/colours"].files("main")) == {".gitattributes"}
    assert "model.safetensors" in hub.repositories["me/colours"].files("v1")
    assert torch.equal(logits(snapshot_download("me/colours", revision="v1")), logits(str(run / "model")))


def test_a_card_that_was_edited_on_the_hub_stays(run, hub):
    push.push(run, "me/colours")
    there = hub.repositories["me/colours"]
    theirs = there.files()["README.md"].replace(b"[to be filled: who should use it, for what]", b"painters")
    there.commit("main", {**there.files(), "README.md": theirs}, "Update README.md")
    said = push.push(run, "me/colours")
    assert "was edited, and stays" in said[0]
    assert there.files()["README.md"] == theirs
    assert run_script_of_ftloop("push", run, "me/colours", "--overwrite-card").code == 0
    assert there.files()["README.md"] != theirs
    # One that was edited here is what a person wants to push.
    mine = (run / "model" / "README.md").read_text().replace("painters", "").replace("Not for: [to be", "Not for: [not")
    (run / "model" / "README.md").write_text(mine)
    there.commit("main", {**there.files(), "README.md": theirs}, "Update README.md")
    push.push(run, "me/colours")
    assert b"Not for: [not" in there.files()["README.md"]
    assert b'model = "me/colours"' in there.files()["README.md"]


@pytest.mark.parametrize(
    ("repo", "token", "says"),
    [
        ("me/colours", None, "there is no token: set HF_TOKEN, or log in once with `hf auth login`"),
        ("me/colours", "hf_nobodynobody", "is not accepted (401: Invalid username or password.)"),
        ("me/colours", READER, "the token may not write there"),
        ("else/colours", WRITER, "the token may not write there"),
        ("else/theirs", WRITER, "the token may not write there"),  # exists
        ("me/open", WRITER, "--private, but me/open exists and is public"),
        ("me/no/name", WRITER, "'repo_name' or 'namespace/repo_name'"),
        ("me/--no", WRITER, "'me/--no'"),
        ("https://me:hf_writerwriter@hub/me", WRITER, "'https://me:***@hub/me'"),
    ],
)
def test_what_will_not_be_possible_is_said_before_training(repo, token, says, words, hub, monkeypatch, tmp_path):
    from huggingface_hub import HfApi

    HfApi(token=OTHER).create_repo("theirs")
    HfApi(token=WRITER).create_repo("open")
    monkeypatch.setenv("HF_TOKEN", token or "")
    result = run_script("train.py", *words, "--run-dir", tmp_path / "run", "--push-to-hub", repo, "--private")
    assert result.code == 2
    assert result.err.startswith("error: --push-to-hub ")
    assert says in result.err
    assert without_secrets(result.out, result.err)
    assert not (tmp_path / "run").exists()  # nothing was trained


def test_without_a_network_too(words, hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    command = ["train.py", *words, "--run-dir", tmp_path / "run", "--push-to-hub", "me/colours"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    result = run_script(*command)
    assert (result.code, "http://127.0.0.1:9: ConnectError" in result.err) == (2, True), result.err
    monkeypatch.setattr(push, "PATIENCE", 0.2)
    monkeypatch.setattr(push, "_make_sure", lambda *_: __import__("time").sleep(2))
    assert "did not answer within 0.2 seconds" in run_script(*command).err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "told to be offline (HF_HUB_OFFLINE" in run_script(*command).err
    assert not (tmp_path / "run").exists()


def test_options_without_a_repository_are_refused(words, tmp_path):
    for option in (["--private"], ["--revision", "v1"], ["--push-every", "save"]):
        result = run_script("train.py", *words, "--run-dir", tmp_path / "run", *option)
        assert result.code == 2
        assert "has no effect without --push-to-hub REPOSITORY" in result.err


# ---- while training


def test_a_training_pushes_at_its_saves_and_at_its_end(words, hub, tmp_path):
    from huggingface_hub import snapshot_download

    run = tmp_path / "run"
    options = ["--push-to-hub", "colours", "--private", "--push-every", "save", "--save-every", "1"]
    result = run_script("train.py", *words, "--run-dir", run, *options, "--max-steps", "3", "--eval-every", "2")
    assert result.code == 0, result.err
    there = hub.repositories["me/colours"]
    assert there.private
    history = there.history()
    assert (history[0], history[1], history[-1]) == ("initial commit", "step 1", "run, by ftloop")
    first = list(there.commits.values())[1]
    assert b"these are the weights after step 1." in first["README.md"]
    for name, content in first.items():
        (tmp_path / "first").mkdir(exist_ok=True)
        (tmp_path / "first" / name).write_bytes(content)
    assert logits(str(tmp_path / "first")).isfinite().all()
    assert torch.equal(logits(snapshot_download("me/colours")), logits(str(run / "model")))
    assert not (run / "pushed").exists()
    assert "pushed      " in result.err
    kept = [file.read_bytes() for file in run.rglob("*") if file.is_file()]
    assert without_secrets(result.out, result.err)
    assert not any(secret.encode() in content for secret in SECRETS for content in kept)
    recorded = json.loads((run / "config.json").read_text())["config"]
    assert {name for name in recorded if "push" in name} == {name for name in vars(Config) if name.startswith("push_")}


def test_pushing_changes_no_result(words, finished, hub, tmp_path):
    run = tmp_path / "run"
    options = ["--push-to-hub", "me/colours", "--push-every", "save", "--save-every", "1"]
    assert run_script("train.py", *words, "--run-dir", run, *options).code == 0
    for name in ("ledger.jsonl", "model/model.safetensors", "scores.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def test_a_push_that_fails_leaves_a_whole_run_and_the_command(words, hub, tmp_path):
    run = tmp_path / "run"
    hub.fails["preupload"] = 418
    options = ["--push-to-hub", "me/colours", "--revision", "v1", "--push-every", "save", "--save-every", "1"]
    result = run_script("train.py", *words, "--run-dir", run, *options)
    assert result.code == 0, result.err
    assert "error: the push failed: push 'me/colours': the Hub refused it (418: as it was told" in result.err
    assert f"-m ftloop push {run} me/colours --revision v1" in result.err
    assert without_secrets(result.out, result.err)  # which the server's answer holds
    assert (run / "scores.json").is_file()
    hub.fails.clear()
    assert run_script_of_ftloop("push", run, "me/colours", "--revision", "v1").code == 0
    assert "model.safetensors" in hub.repositories["me/colours"].files("v1")
    again = run_script("train.py", *words, "--run-dir", run, *options)
    assert f"to push it: python -m ftloop push {run} me/colours" in again.err


def test_a_signal_ends_the_last_push_and_the_run_is_whole(run, hub, monkeypatch, caplog):
    monkeypatch.setattr(push, "push", lambda *_: __import__("time").sleep(5))
    task = None
    pushes = push.Pushes(Config(task=task, run_dir=str(run), push_to_hub="me/colours"))
    pushes.finish(lambda: True)
    assert "the push was left: the run is finished and whole" in caplog.text


def test_where_it_was_deleted_only_its_own_option_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert beside("hub.card") is None
    with pytest.raises(push.UserError, match=r"^--push-to-hub: ftloop\.hub\.push, which it needs, was deleted$"):
        beside("hub.push", "--push-to-hub")


@pytest.mark.parametrize("place", ["nowhere", "unfinished"])
def test_only_a_finished_run_is_pushed(place, hub, tmp_path):
    (tmp_path / "unfinished").mkdir()
    result = run_script_of_ftloop("push", tmp_path / place, "me/colours")
    assert result.code == 2
    assert "has no model/ to push" in result.err


def test_a_licence_that_the_hub_does_not_know_is_said(run, hub):
    file = run / "model" / "README.md"
    file.write_text(file.read_text().replace("# license: [to be filled: ", "license: mine # "))
    with pytest.raises(push.UserError, match=r"Invalid metadata in README\.md"):
        push.push(run, "me/colours")
