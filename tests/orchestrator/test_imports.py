"""Imports: schemes and attacks need torch, numpy, scipy and safetensors only, an inline run no Ray."""

import json
import subprocess
import sys

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

def tops():
    # wmarena.schemes.base -> wmarena.schemes; torch.nn -> torch
    return sorted({".".join(name.split(".")[: 2 if name.startswith("wmarena.") else 1]) for name in sys.modules})

def loaded(*packages):
    for package in packages:
        root = importlib.import_module(package)
        for found in pkgutil.walk_packages(root.__path__, package + "."):
            importlib.import_module(found.name)
    return tops()

first = loaded("wmarena.schemes", "wmarena.attacks")
for module in ("running.runner", "executors.inline", "executors.base", "plan.plugins"):
    importlib.import_module("wmarena.orchestrator." + module)
print(json.dumps([first, tops()]))
"""


def test_imports_stay_light() -> None:
    """All schemes and attacks load nothing but torch, numpy, scipy, safetensors; a run in this process needs no Ray."""
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    plugins, inline = (set(names) for names in json.loads(ran.stdout))

    assert {"wmarena.schemes", "wmarena.attacks", "torch"} <= plugins
    assert plugins & (HEAVY | {"wmarena.orchestrator", "wmarena.experiments"}) == set()
    assert inline & (HEAVY | {"wmarena.experiments"}) == set()
