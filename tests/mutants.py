"""Small changes to the rules that decide verdicts: each should make a test fail.

    python tests/mutants.py                              ten changes of each module, always the same ones
    python tests/mutants.py --module costs --sample 0    every change of one module
    python tests/mutants.py --seed 1                     another ten

Works on a temporary copy of the tree, so nothing here is ever touched. A change that no test of its module notices
survives: it is printed with its place, and the exit status is 1, unless ``mutants_accepted.json`` names it with the
reason why it makes no difference. Operators are those of Cosmic Ray, as far as they are mistakes that people make.
"""

import argparse
import difflib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "tests" / "mutants_accepted.json"

RULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "statistics": ("schemes/statistics.py", ("tests/schemes/test_statistics.py",)),
    "params": ("schemes/params.py", ("tests/schemes/test_params.py",)),
    "costs": ("experiments/results/costs.py", ("tests/experiments/results/test_costs.py",)),
    "table": ("experiments/results/table.py", ("tests/experiments/results/test_results.py",)),
    "rows": (
        "experiments/results/rows.py",
        ("tests/experiments/results/test_results.py", "tests/experiments/results/test_costs.py"),
    ),
    "gamma": ("experiments/study/gamma.py", ("tests/experiments/study/test_gamma.py",)),
    "pareto": ("experiments/study/pareto.py", ("tests/experiments/study/test_pareto.py",)),
    "search": ("experiments/planning/search.py", ("tests/experiments/planning/test_search.py",)),
    "roles": ("orchestrator/worker/roles.py", ("tests/orchestrator/worker/test_perform.py",)),
}
"""Module -> its file, and the tests that should notice."""

_COMPARISONS = "Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is"
_ARITHMETIC = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Pow_Mul"
OPERATORS = (
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in _COMPARISONS.split()),
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in _ARITHMETIC.split()),
    *("core/ReplaceUnaryOperator_Delete_Not", "core/ReplaceUnaryOperator_Delete_USub", "core/AddNot"),
    *("core/ReplaceAndWithOr", "core/ReplaceOrWithAnd", "core/ReplaceTrueWithFalse", "core/ReplaceFalseWithTrue"),
    *("core/NumberReplacer", "core/ReplaceContinueWithBreak"),
)

_HEAVY = ("torch", "numpy", "scipy.stats", "pyarrow.parquet", "hypothesis", "pytest", "pydantic", "yaml", "xdist")
"""Imported once, before each change gets a process of its own."""


@dataclass(frozen=True)
class Mutant:
    """One change: its line, what stood there and what stands there now."""

    module: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{RULES[self.module][0]}:{self.line}\n    - {self.before}\n    + {self.after}"


def mutants_of(module: str) -> Iterator[Mutant]:
    """Every change of a module that is still Python."""
    source = (ROOT / RULES[module][0]).read_text(encoding="utf-8")
    nodes = list(ast_nodes(get_ast(source)))
    for operator in (plugins.get_operator(name)() for name in OPERATORS):
        for occurrence in range(sum(len(list(operator.mutation_positions(node))) for node in nodes)):
            changed = mutate_code(source, operator, occurrence)
            if changed is None:
                continue
            try:
                compile(changed, module, "exec")
            except SyntaxError:
                continue
            mutant = _located(module, source, changed)
            if mutant.before.replace("strict=True", "strict=False") != mutant.after:  # zip() of equal lengths
                yield mutant


def _located(module: str, source: str, changed: str) -> Mutant:
    old, new = source.splitlines(), changed.splitlines()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    _, first, end, start, stop = next(code for code in matcher.get_opcodes() if code[0] != "equal")
    before, after = (" ".join(map(str.strip, lines)) for lines in (old[first:end], new[start:stop]))
    return Mutant(module, first + 1, before, after, changed)


def copy_of_the_tree(target: Path) -> None:
    """Tracked and new files; links stay links, because a package may be reached through one."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def passes(tree: Path, tests: Sequence[str], limit: float) -> bool:
    """Whether the tests pass on the tree; what takes longer than ``limit`` seconds does not."""
    child = multiprocessing.get_context("fork").Process(target=_run, args=(tree, tests))
    child.start()
    child.join(limit)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def _run(tree: Path, tests: Sequence[str]) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(tree)
    sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
    if not Path(str(importlib.import_module("wmarena").__file__)).is_relative_to(tree):
        os._exit(3)
    options = ["-x", "-q", "-n0", "-p", "no:randomly", "-p", "no:cacheprovider", f"--rootdir={tree}"]
    os._exit(int(importlib.import_module("pytest").main([*options, *tests])))


def survivors_of(module: str, tree: Path, *, sample: int, seed: int) -> tuple[int, list[Mutant]]:
    """(number of changes tried, those that no test noticed)."""
    place, tests = RULES[module]
    began = time.monotonic()
    if not passes(tree, tests, 600):
        raise SystemExit(
            f"expected the tests of {module} to pass on an unchanged copy; run pytest -n0 {' '.join(tests)}"
        )
    limit = 30 + 5 * (time.monotonic() - began)
    found = list(mutants_of(module))
    chosen = found if sample == 0 else random.Random(f"{seed}/{module}").sample(found, min(sample, len(found)))
    original = (tree / place).read_bytes()
    left = []
    for mutant in sorted(chosen, key=lambda m: m.line):
        (tree / place).write_text(mutant.source, encoding="utf-8")
        if passes(tree, tests, limit):
            left.append(mutant)
    (tree / place).write_bytes(original)
    return len(chosen), left


def accepted() -> dict[tuple[str, str, str], str]:
    """(module, line before, line after) -> why the change makes no difference."""
    listed: list[dict[str, Any]] = json.loads(ACCEPTED.read_text(encoding="utf-8"))
    return {(e["module"], e["before"], e["after"]): e["reason"] for e in listed}


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Prints what survives; 1 if anything does without a reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", action="append", choices=RULES, help="one of the modules; may be repeated")
    parser.add_argument("--sample", type=int, default=10, help="changes of each module; 0: all (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    asked = parser.parse_args()
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    for name in _HEAVY:
        importlib.import_module(name)
    known, unexplained = accepted(), 0
    with tempfile.TemporaryDirectory(prefix="wmarena-mutants-") as folder:
        copy_of_the_tree(Path(folder))
        for module in asked.module or RULES:
            tried, left = survivors_of(module, Path(folder), sample=asked.sample, seed=asked.seed)
            fresh = [m for m in left if (m.module, m.before, m.after) not in known]
            unexplained += len(fresh)
            say(f"{module}: {tried} tried, {tried - len(left)} noticed, {len(left) - len(fresh)} accepted")
            for mutant in fresh:
                say(f"  survived: {mutant}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
