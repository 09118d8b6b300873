"""Check the shape of the project: the size of its files and the direction of its imports.

`make house` runs this. It prints what it measured, then lists every broken rule, and exits with
status 1 if there is one. The rules and their bounds are in house.toml.

An import counts wherever it stands: at the top of a file, inside a function, or under
`TYPE_CHECKING`. So does a string that names a module of the package, such as "ftloop.report",
because `importlib.import_module` turns it into an import. Importing `a.b.c` also imports the
packages `a` and `a.b`, except those that contain the importing module.

The tool needs nothing but the standard library.
"""

import argparse
import ast
import gc
import io
import sys
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DYNAMIC_IMPORTS = ("__import__", "import_module", "exec", "eval", "run_module", "run_path")
Graph = dict[str, set[str]]


@dataclass
class Module:
    """One Python file: its place in the project, its lines and its syntax tree."""

    path: str  # relative to the root of the project, with forward slashes
    name: str  # "ftloop.tasks.text"; a package has the name of its folder
    part: str  # "core", the name of a folder in the package, the folder of a use, or "scripts"
    lines: list[str]
    nodes: list[ast.AST]  # of the syntax tree, the module first
    # Imported module of the project -> the first line that imports it
    imports: dict[str, int] = field(default_factory=dict)

    def hides(self, package: str) -> bool:
        """Return whether a package is imported only because a module in it is imported."""
        return any(name.startswith(f"{package}.") for name in self.imports)


@dataclass
class House:
    """The modules of a project, the rules of its house.toml and the rules that were broken."""

    rules: dict[str, Any]
    package: str
    modules: dict[str, Module] = field(default_factory=dict)  # by name
    parts: list[str] = field(default_factory=list)  # those in the table first, in its order
    problems: list[str] = field(default_factory=list)

    def is_inside(self, module: Module) -> bool:
        """Return whether a module belongs to the core or to a part."""
        return module.part == "core" or module.part in self.parts

    def members(self, part: str) -> list[Module]:
        return [module for module in self.modules.values() if module.part == part]

    def report(self, problem: str) -> None:
        self.problems.append(problem)


# Reading the project


def read_house(root: Path) -> House:
    """Parse every Python file of the project and resolve its imports."""
    with (root / "house.toml").open("rb") as file:
        rules = tomllib.load(file)
    package = rules["core"]["folder"]
    house = House(rules, package)
    for path in find_files(root, [package, *rules["uses"]["folders"]]):
        module = read_module(root, path, package)
        house.modules[module.name] = module
    folders = {path.parent.name for path in (root / package).glob("*/*.py")}
    table = [name for name in rules["imports"] if name in folders]
    house.parts = table + sorted(folders - {*table})
    for module in house.modules.values():
        for name, line in find_imports(module, house):
            if name != module.name:
                module.imports.setdefault(name, line)
    return house


def find_files(root: Path, folders: list[str]) -> Iterator[Path]:
    yield from sorted(root.glob("*.py"))
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def read_module(root: Path, path: Path, package: str) -> Module:
    relative = path.relative_to(root)
    parents = relative.parts[:-1]
    if not parents:
        part = "scripts"
    elif parents[0] != package:
        part = parents[0]
    else:
        part = parents[1] if len(parents) > 1 else "core"
    name = ".".join(parents if relative.stem == "__init__" else (*parents, relative.stem))
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text, filename=str(path))))
    return Module(relative.as_posix(), name, part, text.splitlines(), nodes)


def find_imports(module: Module, house: House) -> Iterator[tuple[str, int]]:
    """Yield the modules of the project that a module imports, with the line of each import."""
    # A string that stands alone, such as a docstring, imports nothing.
    docstrings = {node.value for node in module.nodes if isinstance(node, ast.Expr)}
    has_strings = house.is_inside(module)
    for node in module.nodes:
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute_name(module, node)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        elif has_strings and isinstance(node, ast.Constant) and node not in docstrings:
            targets = module_in_string(node.value, house.package)
        for target in targets:
            for name in resolve(target, module, house):
                yield name, node.lineno


def absolute_name(module: Module, node: ast.ImportFrom) -> str:
    """Return the module after `from`, with the dots of a relative import resolved."""
    if not node.level:
        return node.module or ""
    levels_up = node.level - module.path.endswith("__init__.py")
    parents = module.name.split(".")
    base = parents[: len(parents) - levels_up]
    return ".".join([*base, node.module] if node.module else base)


def module_in_string(value: object, package: str) -> list[str]:
    """Return the module that a string names: "ftloop.report" or "ftloop.report.page:build"."""
    if not isinstance(value, str) or not value.startswith(f"{package}."):
        return []
    name = value.partition(":")[0]
    return [name] if all(word.isidentifier() for word in name.split(".")) else []


def resolve(target: str, module: Module, house: House) -> list[str]:
    """Return the modules that importing `target` in `module` runs.

    A name that is no module is one of its parent's attributes: the parent is imported.
    """
    if target.split(".")[0] in house.rules["uses"]["libraries"]:
        return []
    words = target.split(".")
    names = [".".join(words[:count]) for count in range(len(words), 0, -1)]
    if not house.is_inside(module):  # tests import helpers that lie beside them
        names += [f"{module.part}.{name}" for name in names]
    known = [name for name in names if name in house.modules]
    if not known:
        return []
    packages = [name for name in known[1:] if not f"{module.name}.".startswith(f"{name}.")]
    return [known[0], *packages]


# Measuring


def count_code_lines(module: Module) -> int:
    """Count the lines of code: without blank lines, comments and docstrings."""
    docstrings = set()
    for node in module.nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add((node.lineno, node.col_offset))
    numbers = set()
    text = io.StringIO("\n".join(module.lines))
    for token in tokenize.generate_tokens(text.readline):
        is_layout = token.type == tokenize.COMMENT or not token.string.strip()
        if not is_layout and token.start not in docstrings:
            numbers.update(range(token.start[0], token.end[0] + 1))
    return sum(bool(module.lines[number - 1].strip()) for number in numbers)


def measure_functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[int, str]]:
    """Yield (lines, name) of each function below a node; methods are called "Class.method"."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{child.name}" if prefix else child.name
            if not isinstance(child, ast.ClassDef):
                yield child.end_lineno - child.lineno + 1, name
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from measure_functions(child, name)


def find_cycles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components with more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    cycles = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], index[target])
        if lowest[node] == index[node]:
            start = stack.index(node)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                cycles.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return cycles


# The checks: each prints what it measured and reports what breaks a rule


def check_core(house: House) -> None:
    """Check the number of files and the lines of code of the core."""
    bounds = house.rules["core"]
    sizes = {module.path: count_code_lines(module) for module in house.members("core")}
    total = sum(sizes.values())
    print("Lines of code in the core (without blank lines, comments and docstrings)")
    for path, size in sizes.items():
        print(f"  {path:<36}{size:>6}")
        if size > bounds["max_lines_per_file"]:
            limit = bounds["max_lines_per_file"]
            house.report(f"{path}: {size} lines of code (limit of a core file: {limit}).")
    print(f"  {'lines in all, of at most ' + str(bounds['max_lines']):<36}{total:>6}")
    print(f"  {'files, of at most ' + str(bounds['max_files']):<36}{len(sizes):>6}")
    if total > bounds["max_lines"]:
        house.report(f"core: {total} lines of code (limit {bounds['max_lines']}).")
    if len(sizes) > bounds["max_files"]:
        house.report(f"core: {len(sizes)} files (limit {bounds['max_files']}).")


def check_sizes(house: House) -> None:
    """Check the lengths of files and functions; print the longest of each part."""
    limits = house.rules["limits"]
    file_limit, function_limit = limits["max_lines_per_file"], limits["max_lines_per_function"]
    print(f"\nLongest file (limit {file_limit}) and function (limit {function_limit}) of each part")
    for part in ["core", *house.parts, "scripts", *house.rules["uses"]["folders"]]:
        is_bounded = part not in limits["reported_only"]
        files, functions = [], [(0, "-")]
        for module in house.members(part):
            files.append((len(module.lines), module.path))
            if is_bounded and len(module.lines) > file_limit:
                house.report(f"{module.path}: {len(module.lines)} lines (limit {file_limit}).")
            for length, name in measure_functions(module.nodes[0]):
                functions.append((length, name))
                limit = limits["functions"].get(f"{module.path}:{name}", function_limit)
                if is_bounded and length > limit:
                    house.report(f"{module.path}: {name}() has {length} lines (limit {limit}).")
        if files:
            lines, path = max(files)
            length, name = max(functions)
            note = "" if is_bounded else "  (not bounded)"
            print(f"  {part:<12}{path:<36}{lines:>5}   {name:<40}{length:>4}{note}")


def check_columns(house: House) -> None:
    """Check the width of every line."""
    limit = house.rules["limits"]["max_columns"]
    count = 0
    for module in house.modules.values():
        lines = enumerate(module.lines, start=1)
        numbers = [str(number) for number, line in lines if len(line) > limit]
        count += len(numbers)
        if numbers:
            examples = ", ".join([*numbers[:5], "..."] if len(numbers) > 5 else numbers)
            house.report(
                f"{module.path}: {len(numbers)} lines with over {limit} columns (line {examples})."
            )
    print(f"\nLines with more than {limit} columns: {count}")


def check_cycles(house: House) -> None:
    """Check that no modules, and no parts, import each other in a circle."""
    modules = {name: set(module.imports) for name, module in house.modules.items()}
    parts: Graph = defaultdict(set)
    for module in house.modules.values():
        if house.is_inside(module):
            targets = [house.modules[name] for name in module.imports]
            parts[module.part] |= {target.part for target in targets} - {module.part}
    module_cycles, part_cycles = find_cycles(modules), find_cycles(parts)
    print(f"Import cycles: {len(module_cycles)} of modules, {len(part_cycles)} of parts")
    for cycle in module_cycles:
        for name in cycle:
            module = house.modules[name]
            for target in sorted(set(module.imports) & set(cycle)):
                place = f"{module.path}:{module.imports[target]}"
                house.report(f"{place}: imports {target}, which closes an import cycle.")
    for cycle in part_cycles:
        house.report(f"parts: {', '.join(cycle)} import each other in a circle.")


def check_directions(house: House) -> None:
    """Check that imports point down, and only to the parts that the table allows."""
    table = house.rules["imports"]
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for module in filter(house.is_inside, house.modules.values()):
        for name, line in module.imports.items():
            target = house.modules[name].part
            place = f"{module.path}:{line}: imports {name}"
            if target in (module.part, "core") or module.hides(name):
                continue
            counts[module.part, target] += 1
            if target not in house.parts:
                house.report(f"{place}, but neither the core nor a part imports a use.")
            elif module.part == "core":
                house.report(f"{place}, but the core imports no part.")
            elif target not in table.get(module.part, ()):
                house.report(f"{place}, but house.toml does not list {module.part} -> {target}.")
    print("Imports between parts (in brackets: allowed by house.toml, but not used)")
    for part in house.parts:
        used = {target: counts[part, target] for target in house.parts if counts[part, target]}
        unused = [f"({target})" for target in table.get(part, ()) if target not in used]
        pairs = [f"{target} {count}" for target, count in used.items()] + unused
        print(f"  {part:<12}-> {', '.join(pairs) or 'the core only'}")


def check_dynamic_imports(house: House) -> None:
    """Check that no core file imports by a computed name or runs code that is not written there."""
    for module in house.members("core"):
        for node in module.nodes:
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [node.func.id]
            elif isinstance(node, ast.Attribute) and node.attr != "eval":
                names = [node.attr]  # of modules and methods; model.eval() is harmless
            for name in set(names) & set(DYNAMIC_IMPORTS):
                house.report(f"{module.path}:{node.lineno}: uses {name}, a dynamic import.")


def check_star_arguments(house: House) -> None:
    """Check that no call unpacks a tuple or list that is written out: use keyword arguments."""
    count = 0
    for module in house.modules.values():
        for node in module.nodes:
            if not isinstance(node, ast.Call):
                continue
            stars = [argument.value for argument in node.args if isinstance(argument, ast.Starred)]
            for value in stars:
                if isinstance(value, ast.Tuple | ast.List):
                    count += 1
                    house.report(
                        f"{module.path}:{value.lineno}: a call unpacks a tuple that is written"
                        " out; use keyword arguments."
                    )
    print(f"Star-unpacked tuples in calls: {count}")


def main(arguments: list[str] | None = None) -> int:
    """Print the measurements and the broken rules; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--root", type=Path, default=root, help="The folder of house.toml.")
    parser.add_argument("--only", default="", help="List only problems that start with this path.")
    options = parser.parse_args(arguments)
    house = read_house(options.root)
    check_core(house)
    check_sizes(house)
    check_columns(house)
    check_cycles(house)
    check_star_arguments(house)
    check_dynamic_imports(house)
    check_directions(house)
    problems = [text for text in house.problems if text.startswith(options.only)]
    if not problems:
        print("\nThe house is in order.")
        return 0
    print(f"\n{len(problems)} problems:")
    for problem in problems:
        print(f"  {problem}")
    return 1


if __name__ == "__main__":
    gc.disable()  # syntax trees are many small objects without garbage: twice as fast
    sys.exit(main())
