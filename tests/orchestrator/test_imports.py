"""What is loaded with what: schemes and attacks run where only torch is installed, an inline run without Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]

HEAVY = {
    "ray",
    "mlflow",
    "optuna",
    "pydantic",
    "yaml",
    "rich",
    "pyarrow",
    "segno",
    "torchvision",
    "matplotlib",
    "sklearn",
}

CODE = """
import importlib, json, pkgutil, sys

def loaded(*packages):
    for package in packages:
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, package + "."):
            importlib.import_module(found.name)
    return sorted({name.partition(".")[0] for name in sys.modules})

first = loaded("wmarena.schemes", "wmarena.attacks")
for module in ("running.runner", "executors.inline", "executors.base", "plan.plugins"):
    importlib.import_module("wmarena.orchestrator." + module)
print(json.dumps([first, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_imports_stay_light() -> None:
    """All schemes and attacks load nothing but torch, numpy, scipy, safetensors; a run in this process needs no Ray."""
    environment = {**os.environ, "PYTHONPATH": str(TREE)}
    ran = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    plugins, inline = (set(names) for names in json.loads(ran.stdout))

    assert {"schemes", "attacks", "torch"} <= plugins
    assert plugins & (HEAVY | {"orchestrator", "experiments"}) == set()
    assert inline & (HEAVY | {"experiments"}) == set()
