"""What is deployed: cluster files that Ray's own loader takes, manifests and an image that agree with the project."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from wmarena.experiments.cli import make_parser
from wmarena.experiments.spec.experiment import SHIPPED

TREE = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
CLUSTERS = ("ray_cluster.yaml", "deploy/on_premise.yaml")
IMAGE = (TREE / "deploy" / "Containerfile").read_text()
MANIFESTS = [d for d in yaml.safe_load_all((TREE / "deploy" / "kuberay.yaml").read_text()) if d]


def loaded(name: str) -> dict[str, Any]:
    """A file for `ray up`."""
    found: dict[str, Any] = yaml.safe_load((TREE / name).read_text())
    return found


def manifest(kind: str) -> dict[str, Any]:
    """The one manifest of that kind."""
    (found,) = (d for d in MANIFESTS if d["kind"] == kind)
    return dict(found)


def ray_clusters() -> list[dict[str, Any]]:
    """Both descriptions of a cluster: the one to submit to, and the one that a job makes for itself."""
    return [manifest("RayCluster")["spec"], manifest("RayJob")["spec"]["rayClusterSpec"]]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Pod templates of the head and of every worker group."""
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


# ray up


@pytest.mark.parametrize("name", CLUSTERS)
def test_rays_own_loader_and_schema_take_the_file(name: str) -> None:
    """Filled with Ray's defaults as `ray up` does it, it is valid; limits are as written."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = loaded(name)
    prepared = prepare_config(config)
    validate_config(prepared)

    assert prepared["max_workers"] == config["max_workers"]
    assert sum(t["max_workers"] for t in prepared["available_node_types"].values()) >= config["max_workers"]
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_rays_schema_refuses_what_it_does_not_know() -> None:
    """The check above can fail: a field that Ray has dropped is found."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="initial_workers"):
        validate_config(prepare_config({**loaded("ray_cluster.yaml"), "initial_workers": 2}))


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_wants_the_token_and_the_dashboard_stays_on_loopback(name: str) -> None:
    """All `ray start` run with RAY_AUTH_MODE=token, the token's file comes along with mode 0600."""
    config = loaded(name)
    starts = [c for k in ("head", "worker") for c in config[f"{k}_start_ray_commands"] if "ray start" in c]
    (token,) = (remote for remote, local in config["file_mounts"].items() if local == "~/.ray/auth_token")

    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert f"chmod 600 {token}" in config["setup_commands"]
    assert token == f"/home/{config['auth']['ssh_user']}/.ray/auth_token"


@pytest.mark.parametrize("name", CLUSTERS)
def test_setup_installs_the_project_that_was_copied(name: str) -> None:
    """The project's root is copied, without what is private or large, and installed with the image's Ray."""
    config = loaded(name)
    (source,) = (remote for remote, local in config["file_mounts"].items() if local == ".")
    (install,) = (command for command in config["setup_commands"] if "pip install" in command)

    assert source in shlex.split(install)
    assert f"ray[default]=={ray_version()}" in install
    assert {".git/", ".venv/", "wmarena-store/"} <= set(config["rsync_exclude"])


@pytest.mark.parametrize("name", [*CLUSTERS, "deploy/kuberay.yaml"])
def test_the_commands_in_the_comments_are_understood(name: str) -> None:
    """`wmarena submit` lines of the heads parse as they stand."""
    lines = re.findall(r"^#\s+(wmarena .*)$", (TREE / name).read_text(), re.MULTILINE)

    assert lines
    for line in lines:
        assert make_parser().parse_args(shlex.split(line)[1:]).command == "submit"


# Kubernetes


def test_the_manifests_are_of_the_kinds_that_kuberay_serves() -> None:
    """A volume for the store, a cluster to submit to, a job that runs by itself."""
    assert [(d["apiVersion"], d["kind"]) for d in MANIFESTS] == [
        ("v1", "PersistentVolumeClaim"),
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayJob"),
    ]
    assert ray_clusters()[0] == ray_clusters()[1]


@pytest.mark.parametrize("cluster", ray_clusters())
def test_pods_ask_for_what_they_may_use_and_share_the_store(cluster: dict[str, Any]) -> None:
    """Requests equal limits, the image is the Containerfile's, the store is mounted everywhere, nobody is root."""
    (tag,) = re.findall(r"podman build -t (\S+)", IMAGE)
    for pod in pods(cluster):
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["image"] == tag
        assert container["volumeMounts"] == [{"name": "store", "mountPath": "/shared"}]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == MANIFESTS[0]["metadata"]["name"]
        assert container["securityContext"]["runAsNonRoot"]
    assert tag.endswith(f":{PROJECT['version']}")
    assert MANIFESTS[0]["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("cluster", ray_clusters())
def test_gpu_workers_come_and_go_within_limits(cluster: dict[str, Any]) -> None:
    """The autoscaler is on, the head takes no tasks, a worker has a GPU, tokens are wanted."""
    (group,) = cluster["workerGroupSpecs"]

    assert cluster["enableInTreeAutoscaling"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray_version()
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_job_runs_a_shipped_spec_and_ends() -> None:
    """Its command is one that the command line takes; it is repeated after a loss, and its cluster goes away."""
    spec = manifest("RayJob")["spec"]
    parsed = make_parser().parse_args(shlex.split(spec["entrypoint"])[1:])

    assert (parsed.command, parsed.address) == ("run", "auto")
    assert parsed.spec in SHIPPED.names()
    assert parsed.store.startswith("/shared/")
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0


# The image


def ray_version() -> str:
    """Ray's version in the image."""
    (found,) = re.findall(r"^ARG RAY_VERSION=(\S+)$", IMAGE, re.MULTILINE)
    return str(found)


def instructions() -> list[list[str]]:
    """Words of every instruction of the Containerfile."""
    text = re.sub(r"^#.*\n", "", IMAGE, flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip()]


def test_the_image_says_that_nobody_has_built_it() -> None:
    """Whoever builds it first should know."""
    assert "No container engine was at hand" in IMAGE.splitlines()[0]


def test_everything_that_the_image_copies_is_there() -> None:
    """Sources of COPY exist, and all packages of the project are among them."""
    sources = [word for words in instructions() if words[0] == "COPY" for word in words[1:-1]]
    packages = {"src", *(link.name for link in (TREE / "src" / "wmarena").iterdir() if link.is_symlink())}

    assert [s for s in sources if not (TREE / s).exists()] == []
    assert len(packages) == 5
    assert packages <= set(sources)
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= set(sources)


def test_versions_of_the_image_agree_with_the_project() -> None:
    """Python and Ray are ones that pyproject.toml admits; the Ray is the one under test."""
    (base,) = (words[1] for words in instructions() if words[0] == "FROM")
    (python,) = re.findall(r"python:(\d+\.\d+)", base)
    (ray,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray")

    assert python in SpecifierSet(PROJECT["requires-python"])
    assert ray_version() in ray.specifier
    assert [words[1] for words in instructions() if words[0] == "USER"] == ["ray"]
    assert instructions()[-1] == ["CMD", '["wmarena",', '"--help"]']
