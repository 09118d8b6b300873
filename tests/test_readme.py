"""README.md: the loop that it shows is that of ftloop/loop.py, and its four changes work.

Three of the changes are those of recipes/, which tests/test_design.py trains; the fourth one is
trained here.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from safetensors.torch import load_file
from snippets import LOOP, apply_patch, blocks, read_pages

from docs import generate
from ftloop.runs.finished import evaluate_run

README = read_pages()["README.md"]
LAWS = 8


def find_block(start: str) -> str:
    (block,) = [block for block in blocks(README) if block.startswith(start)]
    return block


def read_comments(code: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def test_the_functions_are_those_of_the_loop():
    """Nothing is left out but docstrings and blank lines; some lines are longer."""
    shown, functions = find_block("def train_step("), generate.read_functions()
    message = "run: python -m docs.generate"
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(functions)), message
    assert read_comments(shown) == read_comments(functions), message


def read_definitions(code: str) -> Iterator[tuple[str, str]]:
    """The names of functions and classes, with their code in a normal form without docstrings."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            yield node.name, ast.unparse(node)


@pytest.mark.parametrize(
    ("start", "recipe"),
    [
        ("@dataclass(frozen=True)\nclass RDrop", "r_drop.py"),
        ("def balanced_order", "balanced_order.py"),
    ],
)
def test_a_snippet_is_that_of_a_recipe(start, recipe):
    code = (ROOT / "recipes" / recipe).read_text(encoding="utf-8")
    assert set(read_definitions(find_block(start))) <= set(read_definitions(code))


def test_the_change_of_the_loop_is_that_of_a_recipe():
    source = LOOP.read_text(encoding="utf-8")
    patch = (ROOT / "recipes" / "ema.patch").read_text(encoding="utf-8").partition("\n--- ")[2]
    lines = [line for line in patch.splitlines()[2:] if line[:1] in ("+", "-", " ") and line[1:]]
    (shown,) = blocks(README, "diff")
    loops = [
        dict(read_definitions(apply_patch(source, text))) for text in ("\n".join(lines), shown)
    ]
    assert loops[0]["train"] == loops[1]["train"]


def test_the_body_rests_for_a_third_of_the_run(tiny, colours, tmp_path, monkeypatch):
    block = find_block("def body_and_head")
    options = re.search(r"Job\((.*)\)$", block, flags=re.MULTILINE)[1]
    imports = (
        "import torch\nfrom ftloop.cli import Job\nfrom ftloop.tasks import TextClassification"
    )
    config = tmp_path / "unfreeze_from_readme.py"
    config.write_text(f'{imports}\n{block}\nconfig = Job(TextClassification(), "", {options})\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    command = [str(config), *colours, "--model", tiny("bert"), "--max-steps", "6"]
    result = run_script("train.py", *command, "--save-every", "1", "--keep-last", "9")
    assert result.code == 0, result.err

    run, name = tmp_path / "run", "encoder.layer.0.output.dense.weight"
    before = load_file(Path(tiny("bert")) / "model.safetensors")[name]
    for step in range(1, 7):
        checkpoint = run / "checkpoints" / f"step-{step:06d}" / "weights.pt"
        after = torch.load(checkpoint, weights_only=True)[f"bert.{name}"]
        assert torch.equal(after, before) == (step <= 2)
    assert evaluate_run(run, "test")["loss"] > 0


def test_each_law_has_a_test():
    """tests/test_docs.py checks that they exist."""
    laws = re.findall(r"^- \*\*.+: `tests/\w+\.py(?:::\w+)?`", README, flags=re.MULTILINE)
    assert len(laws) == LAWS
