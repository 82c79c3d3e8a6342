"""Imports go one way, importing does nothing, files stay short and the core stays small."""

import ast
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The packages of nanochat/: a file at its top, or a folder. Each imports only from those before it.
CORE_IN_ORDER = """
    hardware common files cpp configurator
    bpe tokenizer conversation data dataloader
    layers attention gpt loss adamw muon
    checkpoint checkpoint_manager inference engine
    train training rl
"""
CORE = CORE_IN_ORDER.split()
PLATFORM = ["tools", "evaluation", "report", "publishing", "chat"]
ORDER = CORE + PLATFORM
TASKS_MAY_IMPORT = {"common", "conversation", "data", "files", "inference.calculator", "tools"}

# What a person reads who wants to know how a model is made: the top of nanochat/, these folders and
# these scripts. The model card promises 83,500 tokens (bytes / 4), reinforcement learning included:
# reached before sharded training, rows of every format and word vectors came, and still the aim.
# The limit goes down with the count.
CORE_FOLDERS = ("bpe", "data", "training", "checkpoint", "inference")
CORE_SCRIPTS = ("tok_train", "base_train", "mid_train", "chat_sft", "chat_rl", "chat_cli")
CORE_TOKENS = 93_940

# Lines of a file: (beyond this a warning, beyond this a failure).
LONGEST_FILE = dict.fromkeys(("nanochat", "tasks", "bench", "notebooks"), (300, 320))
LONGEST_FILE |= {"scripts": (120, 150)}
LONGEST_FUNCTION = 75

# Names whose call or mention at module level would do something when the module is imported.
ACTING_NAMES = {"print", "open", "input", "exec", "eval", "compute_init", "print0", "parse", "cli"}
ACTING_MODULES = ("argparse.", "logging.", "os.environ", "os.getenv", "os.putenv", "subprocess.")
ACTING_MODULES += ("signal.", "random.seed", "torch.manual_seed", "torch.cuda.", "torch.backends.")
ACTING_MODULES += ("torch.set_", "torch.use_deterministic", "warnings.", "sys.", "tyro.")


def python_files(*folders: str) -> list[Path]:
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(tree: ast.AST) -> set[str]:
    """Dotted names of the project's own modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("a relative import")
            elif node.module in ("nanochat", "tasks", "scripts"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return {
        n for n in names if n.split(".")[0] in ("nanochat", "tasks", "scripts", "tests", "bench")
    }


def own_package(path: Path) -> tuple[str, str]:
    """("nanochat", "gpt") for nanochat/gpt.py; ("nanochat", "bpe") for nanochat/bpe/native.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0], parts[1]


def forbidden_imports(folder: str, module: str, imports: set[str]) -> list[str]:
    """Those of `imports` that folder/module.py may not have, each with the rule."""
    found = []
    for name in sorted(imports):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if folder == "nanochat":
            if package != "nanochat":
                found.append(f"{name}: nanochat/ imports only from nanochat/")
            elif target != module and target not in ORDER[: ORDER.index(module)]:
                found.append(f"{name}: it does not come before {module} in ORDER")
        elif folder == "tasks":
            if package == "nanochat" and not {target, rest} & TASKS_MAY_IMPORT:
                found.append(
                    f"{name}: of nanochat/, tasks/ imports only {sorted(TASKS_MAY_IMPORT)}"
                )
            elif package not in ("nanochat", "tasks"):
                found.append(f"{name}: tasks/ imports only from nanochat/ and tasks/")
        elif folder == "bench" and (
            name == "bench.record" or name.startswith(("bench.gpu_", "bench.engine_"))
        ):
            pass  # how every comparison keeps its figures; the parts of the GPU check
        elif package in ("scripts", "tests", "bench"):
            found.append(f"{name}: {folder}/ imports only from nanochat/ and tasks/")
    return found


def acting_statements(tree: ast.Module) -> list[str]:
    """Module-level statements that do more than define something, as "line: what"."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        allowed += (ast.Assign, ast.AnnAssign, ast.AugAssign)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (docstring or isinstance(node, allowed)):
            found.append(f"{node.lineno}: {ast.unparse(node).splitlines()[0]}")
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            text = [ast.unparse(n) for n in walk_outside_lambdas(node)]
            if any(t in ACTING_NAMES or t.startswith(ACTING_MODULES) for t in text):
                found.append(f"{node.lineno}: {ast.unparse(node).splitlines()[0]}")
    return found


def walk_outside_lambdas(node: ast.AST):
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Lambda):
            yield from walk_outside_lambdas(child)


CODE = python_files("nanochat", "tasks", "scripts", "bench", "notebooks")
MODULES = [p for p in CODE if p.name != "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path):
    folder, module = own_package(path)
    if folder == "nanochat":
        assert module in ORDER, f"{relative(path)} has no place in this test's ORDER"
    assert not forbidden_imports(folder, module, imported_modules(ast.parse(path.read_text())))


def test_the_order_is_complete_and_the_core_comes_first():
    there = {own_package(p)[1] for p in MODULES if own_package(p)[0] == "nanochat"}
    assert there <= set(ORDER) and len(ORDER) == len(set(ORDER))
    assert not [p for p in there if p in CORE and ORDER.index(p) >= len(CORE)]


@pytest.mark.parametrize("path", sorted((ROOT / "nanochat").rglob("__init__.py")), ids=relative)
def test_a_package_holds_a_docstring_and_nothing_else(path):
    (node,) = ast.parse(path.read_text()).body
    assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@pytest.mark.parametrize("path", python_files("nanochat/tools/confined"), ids=relative)
def test_what_runs_inside_the_sandbox_imports_the_standard_library_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            ours = name.startswith("nanochat.tools.confined")
            assert ours or name.split(".")[0] in sys.stdlib_module_names, name


def test_the_core_is_small_enough_to_read():
    files = python_files(*(f"nanochat/{folder}" for folder in CORE_FOLDERS))
    files += (ROOT / "nanochat").glob("*.py")
    files += [p for s in CORE_SCRIPTS if (p := ROOT / "scripts" / f"{s}.py").exists()]
    tokens = sum(path.stat().st_size for path in files) // 4
    print(f"the core: {len(files)} files, {tokens:,} tokens, at most {CORE_TOKENS:,}")
    assert tokens <= CORE_TOKENS, "shorten what is there"


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_importing_does_nothing(path):
    assert not acting_statements(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_no_global_statement(path):
    lines = [n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Global)]
    assert not lines


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_files_and_functions_are_short(path):
    length = len(path.read_text().splitlines())
    wanted, allowed = LONGEST_FILE[own_package(path)[0]]
    assert length <= allowed, f"{length} lines, expected up to about {wanted}"
    if length > wanted:
        warnings.warn(f"{relative(path)}: {length} lines, expected up to {wanted}", stacklevel=1)
    functions = [
        n for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]  # fmt: skip
    for node in functions:
        length = node.end_lineno - node.lineno + 1
        assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines, expected up to about 60"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[-2] == "scripts"], ids=relative)
def test_a_script_is_docstring_config_main_guard(path):
    tree = ast.parse(path.read_text())
    commands = (f"-m scripts.{path.stem}", f"python scripts/{path.name}")
    assert any(c in (ast.get_docstring(tree) or "") for c in commands), "docstring has no command"
    configs = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config"]
    assert configs and "frozen=True" in ast.unparse(configs[0].decorator_list[0])
    mains = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    assert mains and [a.arg for a in mains[0].args.args] == ["config"]
    assert ast.unparse(tree.body[-1]).splitlines()[0] == "if __name__ == '__main__':"


# The checks themselves, on a wrong and a right example of each rule.


def test_the_import_check_finds_violations():
    imports = imported_modules(ast.parse("from nanochat import engine\nimport nanochat.common"))
    assert imports == {"nanochat.engine", "nanochat.common"}
    assert len(forbidden_imports("nanochat", "gpt", imports)) == 1
    assert not forbidden_imports("nanochat", "evaluation", imports)
    assert len(forbidden_imports("nanochat", "training", {"nanochat.report.report"})) == 1
    assert not forbidden_imports("nanochat", "training", {"nanochat.training.log"})
    assert len(forbidden_imports("tasks", "mmlu", imports)) == 1
    assert not forbidden_imports("tasks", "gsm8k", {"nanochat.inference.calculator"})
    assert len(forbidden_imports("nanochat", "evaluation", {"tasks.mmlu"})) == 1
    assert not forbidden_imports("scripts", "chat_eval", {"tasks.mmlu", "nanochat.engine"})
    assert len(forbidden_imports("scripts", "mid_train", {"scripts.base_train"})) == 1


@pytest.mark.parametrize(
    "line",
    ["print('x')", "os.environ['A'] = '1'", "args = argparse.ArgumentParser().parse_args()",
     "for i in range(3): pass", "cuda = torch.cuda.is_available()", "if cuda: x = 1",
     "torch.manual_seed(1)", "home = os.environ.get('HOME')"],
)  # fmt: skip
def test_the_side_effect_check_finds(line):
    assert acting_statements(ast.parse(line))


def test_the_side_effect_check_lets_definitions_be():
    source = '''"""Docstring."""
import os
LIMIT: int = 2**20
PATTERN = re.compile("a+")
read = lambda: os.environ["A"]
class A: pass
def f(): print("x")
if __name__ == "__main__":
    f()
'''
    assert not acting_statements(ast.parse(source))
