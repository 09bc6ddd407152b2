"""The files in deploy/ agree with the code and with each other; what they do is tried by deploy/cluster-trial.sh and deploy/hosts-trial.sh."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.access.store import AccessStore
from services.settings import Settings
from workers.roles import ROLES, offered, resource

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
OURS = ("api", "ray-head", "sampler", "scorer", "learner")

# What KubeRay's published schema of ray.io/v1 allows and requires of the fields that the manifest uses.
CLUSTER_FIELDS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
HEAD_FIELDS = {"rayStartParams", "template"}


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return read


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """All Kubernetes objects by kind and name."""
    found = {}
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for item in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            found[item["kind"], item["metadata"]["name"]] = item
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = manifests()["RayCluster", "sparring"]["spec"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    yield "api", manifests()["Deployment", "sparring-api"]["spec"]["template"]["spec"]


def test_compose_has_a_node_for_every_role_and_knows_no_other() -> None:
    commands = {name: service.get("command", []) for name, service in compose()["services"].items()}
    of_nodes = [command[1:] for command in commands.values() if command and command[0] in ("ray-head", "ray-node")]
    named = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", role) for roles in of_nodes for role in roles]
    assert sorted(named) == sorted(ROLES)
    assert commands["ray-head"] == ["ray-head", "data"]


def test_compose_publishes_the_api_and_the_dashboards_to_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert set(published) == {"api", "prometheus", "grafana"}
    assert all(re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", port) for ports in published.values() for port in ports)


@pytest.mark.parametrize("name", [name for name in compose()["services"] if name != "secrets"])
def test_a_service_is_pinned_watched_restarted_and_confined(name: str) -> None:
    service = compose()["services"][name]
    assert name in OURS or re.search(r":v?\d+\.\d+", service["image"]), "a version that is said in full"
    assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"]
    assert "no-new-privileges:true" in service["security_opt"] and "privileged" not in service
    said = json.dumps(service.get("environment", {}))
    assert not re.search(r'(PASSWORD|KEY|TOKEN)": ', said), "secrets are in files"


def test_settings_that_compose_and_kubernetes_give_exist() -> None:
    own = {
        f"SPARRING_{name}" for name in ("NODE_CPUS", "OBJECT_STORE_BYTES", "METRICS_KEY_FILE", "WAIT_SECONDS")
    }  # of the entrypoint
    known = {f"SPARRING_{name.upper()}" for name in Settings.model_fields} | own
    given = {name for service in compose()["services"].values() for name in service.get("environment", {})}
    given |= {variable["name"] for _, pod in pods() for box in pod["containers"] for variable in box.get("env", ())}
    assert {name for name in given if name.startswith("SPARRING_")} <= known


def test_only_the_head_and_the_api_share_the_jobs() -> None:
    with_jobs = {name for name, service in compose()["services"].items() if "data:/data" in service.get("volumes", ())}
    assert with_jobs == {"ray-head", "api"}
    claims = {
        name: {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume}
        for name, pod in pods()
    }  # fmt: skip
    assert {name for name, used in claims.items() if "sparring-data" in used} == {"head", "api"}
    assert all("sparring-models" in used for used in claims.values())
    assert set().union(*claims.values()) == {name for kind, name in manifests() if kind == "PersistentVolumeClaim"}


def test_the_gpu_file_changes_services_that_there_are() -> None:
    override = compose("docker-compose.gpu.yml")["services"]
    assert set(override) <= set(compose()["services"])
    cards = [
        device["device_ids"]
        for service in override.values()
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", ())
    ]
    assert len(cards) == 3 and len({str(card) for card in cards}) == 3, "a card of its own for each"


def test_the_ray_cluster_is_what_its_operator_takes() -> None:
    cluster = manifests()["RayCluster", "sparring"]
    spec = cluster["spec"]
    assert cluster["apiVersion"] == "ray.io/v1" and set(spec) == CLUSTER_FIELDS
    assert set(spec["headGroupSpec"]) == HEAD_FIELDS
    locked = re.search(r"^ray==([\d.]+)", (ROOT / "requirements" / "gpu.txt").read_text(encoding="utf-8"), re.M)
    assert locked is not None and spec["rayVersion"] == locked[1]
    assert spec["authOptions"]["mode"] == "token"
    offers = [spec["headGroupSpec"]["rayStartParams"]]
    for group in spec["workerGroupSpecs"]:
        assert set(group) == GROUP_FIELDS and group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        offers.append(group["rayStartParams"])
    assert all(isinstance(value, str) for offer in offers for value in offer.values())
    # a shell takes the outer quotes away, as the operator writes `--resources=...` into a command line
    resources = [json.loads(json.loads(offer["resources"])) for offer in offers]
    assert {name for each in resources for name in each} == set(offered()) and resources[0] == {resource("data"): 1}


@pytest.mark.parametrize(("name", "pod"), list(pods()))
def test_a_pod_runs_as_nobody_in_particular_and_is_watched(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
    assert pod["enableServiceLinks"] is False, "the service `sparring` would set SPARRING_PORT to what is no port"
    volumes = {volume["name"] for volume in pod["volumes"]}
    for box in pod["containers"]:
        assert box["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"readinessProbe", "livenessProbe", "resources"} <= set(box)
        assert {mount["name"] for mount in box["volumeMounts"]} <= volumes


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The image's start, with a `ray` that says how it was called."""
    (tmp_path / "ray").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    return subprocess.run(
        ["bash", DEPLOY / "entrypoint.sh", *arguments],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "roles"),
    [
        (["ray-head"], ["data"]),
        (["ray-head", "data", "learner"], ["data", "learner"]),
        (["ray-node", "sampler scorer"], ["sampler", "scorer"]),
    ],
)
def test_a_node_offers_its_roles(arguments: list[str], roles: list[Any], tmp_path: Path) -> None:
    said = run(tmp_path, *arguments, SPARRING_RAY_ADDRESS="head:6379", SPARRING_NODE_CPUS="3").stdout.splitlines()
    given = next(line.removeprefix("--resources=") for line in said if line.startswith("--resources="))
    assert json.loads(given) == offered(roles)
    assert "--block" in said and "--num-cpus=3" in said
    assert ("--head" in said) == (arguments[0] == "ray-head") and ("--address=head:6379" in said) != ("--head" in said)


def test_a_node_whose_machine_has_no_address_says_where_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "hostname").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "hostname").chmod(0o755)
    refused = run(tmp_path, "ray-head")
    assert refused.returncode == 1 and "name this machine in /etc/hosts" in refused.stderr and not refused.stdout


def test_the_key_of_prometheus_is_kept_while_the_store_knows_it_and_made_anew_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "key"
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tools / "sparring").write_text(f'#!/bin/sh\n[ "$1" = serve ] || exec {sys.executable} -m services.cli.main "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    home = tmp_path / "home"
    given = {"SPARRING_RAY_ADDRESS": "head:6379", "SPARRING_API_KEY": "k" * 32, "SPARRING_METRICS_KEY_FILE": str(file)}
    given |= {"SPARRING_HOME": str(home), "PYTHONPATH": str(ROOT), "PATH": f"{tools}:{tmp_path}:{os.environ['PATH']}"}

    def start() -> str:
        said = run(tmp_path, "api", **given)
        assert said.returncode == 0, said.stderr
        return file.read_text().strip()

    def keys() -> list[str]:
        return [key.name for key in AccessStore(Settings(home=home).store_url).list_keys()]

    first = start()
    assert keys() == ["prometheus"] and start() == first
    assert keys() == ["prometheus"], "no second one while it is good"
    file.write_text("of another installation\n")
    second = start()
    assert second != first and AccessStore(Settings(home=home).store_url).find_key(second) is not None
    file.unlink()
    file.mkdir()
    said = run(tmp_path, "api", **given)
    assert said.returncode == 0 and "SPARRING_METRICS_KEY_FILE) cannot be written" in said.stderr
    assert keys() == ["prometheus"] * 2, "no key is made that nobody would have"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ray-node", "judge"], "judge is no role; a node carries one or more of data, sampler, scorer and learner"),
        (["ray-node"], "name them"),
        (["ray-node", "sampler"], "SPARRING_RAY_ADDRESS is not set; it names the Ray head"),
        (["api"], "SPARRING_RAY_ADDRESS is not set; it names the Ray head"),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_a_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    refused = run(tmp_path, *arguments, SPARRING_API_KEY="key", SPARRING_HOME=str(tmp_path))
    assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr
