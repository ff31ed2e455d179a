"""The rules of the code's shape, read from the source: who may import whom, and how a file is written."""

import ast
import re
from functools import cache
from sys import stdlib_module_names

from tests.conftest import ROOT

LIBRARY = sorted((ROOT / "bert4x").rglob("*.py"))
PROGRAMS = sorted(path for folder in ("examples", "scripts") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Who may import whom inside bert4x. A package may always import its own modules.
PACKAGE_IMPORTS = {
    "backend": set(),
    "tokenizers": set(),
    "layers": {"backend"},
    "optimizers": {"backend"},
    "snippets": {"backend", "tokenizers.text"},
    "models": {"layers", "backend", "snippets"},
}
# These may import everything, and nothing imports them.
TOP_MODULES = {"compat", "doctor", "export"}

# Other libraries at the top of a module. Keras reaches the packages above through `bert4x.backend`.
OUTSIDE = {
    "backend": {"keras", "numpy"},
    "tokenizers": {"numpy"},  # encode_batch returns arrays
    "layers": {"numpy"},
    "optimizers": {"numpy"},
    "snippets": {"numpy", "tqdm"},
    "models": {"numpy", "h5py", "safetensors", "tqdm"},
}
# Other libraries inside functions only, so that a package can be used without them.
OUTSIDE_LAZY = {
    "tokenizers": {"sentencepiece", "tokenizers", "jieba"},
    "snippets": {"flask", "matplotlib"},
}
BACKENDS = {"tensorflow", "jax", "torch"}
# The only file that names a backend, and the files that read another framework's file format, lazily.
RUNTIME = "bert4x.backend.runtime"
FILE_FORMATS = {"bert4x.models.checkpoint", "bert4x.models.tensor_file"}

# Inside models, bottom up: these, base, then the families and what works on any model, then __init__, which
# may import all. A family writes its weight table and initial values with the words of `weights` and
# `initializers`.
MODELS_BOTTOM = {
    "config", "options", "blocks", "attention", "resize", "weights", "initializers", "step",
    "checkpoint", "checkpoint_path", "tensor_file", "tensor_index", "tensor_writer", "applications",
}
MODELS_ABOVE = {
    "base": MODELS_BOTTOM,
    **dict.fromkeys(("finetune", "pretrained", "teaforn"), MODELS_BOTTOM | {"base"}),
}
FAMILY_IMPORTS = {"applications", "base", "blocks", "checkpoint", "weights", "initializers"}
FAMILIES = {"bert", "albert", "nezha", "electra", "roformer", "gpt", "gpt2", "gpt2_ml", "cpm", "t5", "llama"}


@cache
def tree(path):
    """The parsed source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path, node):
    """`file:line`, relative to the repository."""
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def dotted(path):
    """Module name of a file; a package for its `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in LIBRARY}


def nodes(path):
    """All nodes of a file, each with whether it is inside a function, where an import is lazy."""
    stack = [(tree(path), False)]
    while stack:
        node, lazy = stack.pop()
        yield node, lazy
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        stack.extend((child, lazy) for child in ast.iter_child_nodes(node))


def import_targets(path, node):
    """Full names a statement imports: modules, or the packages that names come from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    source = node.module or ""
    if node.level:
        package = path.relative_to(ROOT).parts[: -node.level]
        source = ".".join([*package, *([source] if source else [])])
    inside = [f"{source}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else source for name in inside]


@cache
def imports(path):
    """Each import of a file: (full name, inside a function?, where)."""
    return [
        (target, lazy, where(path, node))
        for node, lazy in nodes(path)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for target in import_targets(path, node)
    ]


def library_imports():
    """Each import of the library: (module, its package's name, full name imported, lazy?, where)."""
    for name, path in MODULES.items():
        package = name.split(".")[1] if "." in name else ""
        for target, lazy, place in imports(path):
            yield name, package, target, lazy, place


def is_test_or_program(target):
    return target.split(".")[0] in {"examples", "scripts", "tests"}


def report(violations):
    """Fail with one line for each violation."""
    lines = [str(line) for line in violations]
    assert not lines, "\n" + "\n".join(lines)


def test_every_module_has_its_place():
    top = {name.split(".")[1] for name in MODULES if "." in name}
    models = {name.split(".")[2] for name in MODULES if name.startswith("bert4x.models.")}
    report(f"bert4x/{name}: not in PACKAGE_IMPORTS" for name in top - set(PACKAGE_IMPORTS) - TOP_MODULES)
    known = MODELS_BOTTOM | set(MODELS_ABOVE) | FAMILIES
    report(f"bert4x/models/{name}: say in tests/test_layout.py where it stands" for name in models - known)


def test_packages_import_only_what_is_below_them():
    def allowed(package, target):
        below = {f"bert4x.{name}" for name in PACKAGE_IMPORTS[package] | {package}}
        return any(target == name or target.startswith(name + ".") for name in below)

    report(
        f"{place}: {name} may not import {target}"
        for name, package, target, _, place in library_imports()
        if package not in TOP_MODULES and target.split(".")[0] == "bert4x"
        if not package or not allowed(package, target)
    )


def test_packages_use_only_their_libraries():
    def allowed(name, package, outside, lazy):
        if outside in BACKENDS:
            return name == RUNTIME or (name in FILE_FORMATS and lazy and outside != "jax")
        free = package in TOP_MODULES or outside in OUTSIDE.get(package, ())
        return free or (lazy and outside in OUTSIDE_LAZY.get(package, ()))

    report(
        f"{place}: {name} may not import {target}{' inside a function' if lazy else ''}"
        for name, package, target, lazy, place in library_imports()
        if target.split(".")[0] not in {"bert4x", *stdlib_module_names}
        if not allowed(name, package, target.split(".")[0], lazy)
    )


def test_only_runtime_names_a_backend():
    free = {RUNTIME, "bert4x.doctor"} | FILE_FORMATS
    report(
        f"{where(path, node)}: only {RUNTIME} compares or imports the name {node.value!r}"
        for name, path in MODULES.items()
        if name not in free
        for node, _ in nodes(path)
        if isinstance(node, ast.Constant) and node.value in BACKENDS
    )


def test_models_import_bottom_up():
    parents = {}
    for name, package, target, _, place in library_imports():
        if package != "models" or name == "bert4x.models" or not target.startswith("bert4x.models"):
            continue
        module, imported = name.split(".")[2], target.removeprefix("bert4x.models").lstrip(".")
        if module in FAMILIES and imported in FAMILIES:
            parents.setdefault(module, set()).add(imported)
            continue
        below = FAMILY_IMPORTS if module in FAMILIES else MODELS_ABOVE.get(module, MODELS_BOTTOM)
        assert imported in below, f"{place}: models.{module} may not import models.{imported or '__init__'}"
    several = {family: names for family, names in parents.items() if len(names) > 1}
    report(f"models.{family} has several parents: {sorted(names)}" for family, names in several.items())


def test_no_import_cycles():
    edges = {name: {target for target, lazy, _ in imports(path) if target in MODULES and not lazy}
             for name, path in MODULES.items()}
    done = set()

    def visit(name, trail):
        assert name not in trail, "imports in a circle: " + " -> ".join([*trail, name])
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, [*trail, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])


def test_nothing_imports_examples_scripts_or_tests():
    report(
        f"{place}: imports {target}"
        for path in LIBRARY + PROGRAMS
        for target, _, place in imports(path)
        if is_test_or_program(target)
    )


def test_one_example_never_imports_another():
    stems = {path.stem for path in PROGRAMS if path.is_relative_to(ROOT / "examples")}
    report(
        f"{place}: imports {target}"
        for path in PROGRAMS
        for target, _, place in imports(path)
        if target.split(".")[0] in stems
    )


def functions(paths):
    """Each function of the files: (lines, where, name)."""
    for path in paths:
        for node, _ in nodes(path):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node.end_lineno - node.lineno + 1, where(path, node), node.name


def test_functions_are_short():
    report(
        f"{place}: {name} has {lines} lines, 60 is the limit"
        for lines, place, name in functions(LIBRARY + PROGRAMS)
        if lines > 60
    )
    sizes = list(functions(LIBRARY))
    long = [f"{place}: {name} {lines}" for lines, place, name in sizes if lines > 40]
    assert len(long) <= 0.1 * len(sizes), "over 10% of the functions exceed 40 lines:\n" + "\n".join(long)


def test_no_print_and_no_assert_in_the_library():
    report(
        f"{where(path, node)}: {'assert' if isinstance(node, ast.Assert) else 'print'}"
        for path in LIBRARY
        for node, _ in nodes(path)
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
    )


def test_no_error_is_swallowed():
    report(
        f"{where(path, node)}: an except clause that only passes"
        for path in LIBRARY + PROGRAMS
        for node, _ in nodes(path)
        if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
    )


def test_every_file_says_what_it_holds():
    report(
        f"{path.relative_to(ROOT)}: does not start with a docstring"
        for path in [*LIBRARY, *PROGRAMS, *TESTS, ROOT / "setup.py"]
        if not ast.get_docstring(tree(path))
    )


def public_names(init):
    """The list `__all__` of a package's `__init__`, or None where it has none."""
    for node in tree(init).body:
        names = [getattr(target, "id", "") for target in getattr(node, "targets", ())]
        if "__all__" in names:
            return ast.literal_eval(node.value)
    return None


PACKAGE_FILES = [path for path in LIBRARY if path.name == "__init__.py"]


def test_every_package_lists_its_public_names():
    report(f"{path.relative_to(ROOT)}: no __all__" for path in PACKAGE_FILES if public_names(path) is None)


def test_every_public_class_and_function_has_a_docstring():
    for init in PACKAGE_FILES:
        public = set(public_names(init) or ())
        report(
            f"{where(path, node)}: {node.name} is public and has no docstring"
            for path in sorted(init.parent.glob("*.py"))
            for node in tree(path).body
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in public
            if not ast.get_docstring(node)
        )


def is_binary(call):
    """Whether an `open` has a mode with `b`: any literal argument made of mode letters only."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    literals = [str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)]
    return any("b" in literal and set(literal) <= set("rwxabt+") for literal in literals)


def opens_text(call):
    """Whether a call opens, reads or writes a text file: `open`, or those methods of a path."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "open" and not is_binary(call)
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr in ("read_text", "write_text"):
        return True
    other_open = getattr(call.func.value, "id", "") in {"os", "tarfile", "zipfile", "Image"}
    return call.func.attr == "open" and not other_open and not is_binary(call)


def names_encoding(call):
    """Whether a call has `encoding=`, or "utf-8" by position."""
    by_position = "utf-8" in [getattr(argument, "value", None) for argument in call.args]
    return by_position or "encoding" in [keyword.arg for keyword in call.keywords]


def has_our_open(path):
    """Whether `open` in a file is the one of bert4x.snippets, whose default encoding is utf-8."""
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("bert4x.snippets")
        and "open" in [name.asname or name.name for name in node.names]
        for node, _ in nodes(path)
    )


def test_every_open_names_its_encoding():
    report(
        f"{where(path, node)}: names no encoding"
        for path in [*LIBRARY, *PROGRAMS, *TESTS, ROOT / "setup.py"]
        if not has_our_open(path)
        for node, _ in nodes(path)
        if isinstance(node, ast.Call) and opens_text(node) and not names_encoding(node)
    )


def text_files():
    """Every file of the repository that a person wrote, apart from data."""
    kinds = {".py", ".md", ".toml", ".yml", ".yaml", ".cfg", ".sh"}
    folders = [ROOT / name for name in ("bert4x", "docs", "examples", "scripts", "tests", ".github", ".ci")]
    paths = [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]
    return [path for path in paths if path.suffix in kinds] + [ROOT / "Makefile", ROOT / ".ci/run"]


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|farm)/")
    report(
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    )
