"""The manifests of `examples/kuberay/`: what they run is there, and does what they say of it.

There is no Kubernetes here. `.ci/kuberay` checks their pods against its schemas; the fields of a RayCluster
are listed below, in our words, as the reference of `ray.io/v1` has them.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agentmgr.cli.group import COMMANDS
from tests.cli.test_usage import every_command
from tests.processes import end_all_in

EXAMPLE = Path(__file__).parents[2] / "examples" / "kuberay"
DOCUMENTS = {
    (document["kind"], document["metadata"]["name"]): document
    for file in ("agentmgr.yaml", "redis.yaml")
    for document in yaml.safe_load_all((EXAMPLE / file).read_text())
}
RAY = DOCUMENTS["RayCluster", "agentmgr"]["spec"]
HEAD, *WORKERS = groups = [RAY["headGroupSpec"], *RAY["workerGroupSpecs"]]
PODS = [group["template"]["spec"] for group in groups]
MANAGER = PODS[0]["containers"][1]

# Every field that KubeRay 1.7 knows of those that the manifest may want, with the type of its value.
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"idleTimeoutSeconds": int, "version": str, "upscalingMode": str, "resources": dict},
    "gcsFaultToleranceOptions": {"redisAddress": str, "redisUsername": dict, "redisPassword": dict},
    "headGroupSpec": {"rayStartParams": dict, "template": dict, "labels": dict, "serviceType": str},
    "workerGroupSpecs": list,
}
GROUP = {
    "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict,
    "template": dict, "labels": dict, "idleTimeoutSeconds": int, "suspend": bool,
}  # fmt: skip


def check(found, known):
    for name, value in found.items():
        if isinstance(known[name], dict):
            check(value, known[name])
        else:
            assert isinstance(value, known[name]), name


def test_kuberay_knows_the_fields():
    check(RAY, CLUSTER)
    for group in WORKERS:
        check(group, GROUP)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    version = re.search(r"^FROM rayproject/ray:([\d.]+)-", (EXAMPLE / "Dockerfile").read_text(), re.MULTILINE)
    assert version is not None
    assert version[1] == RAY["rayVersion"]


def test_all_that_is_named_is_there():
    """Volumes, secrets and services; what KubeRay makes is named after the cluster."""
    volumes = {volume["name"]: volume for volume in PODS[0]["volumes"]}
    for pod in PODS:
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes.keys()
    claim = volumes["state"]["persistentVolumeClaim"]["claimName"]
    assert ("PersistentVolumeClaim", claim) in DOCUMENTS
    secrets = {
        (entry["valueFrom"]["secretKeyRef"]["name"], entry["valueFrom"]["secretKeyRef"]["key"])
        for pod in [*PODS, DOCUMENTS["StatefulSet", "agentmgr-redis"]["spec"]["template"]["spec"]]
        for container in pod["containers"]
        for entry in container.get("env", [])
        if "valueFrom" in entry
    }
    made = set(re.findall(r"--from-literal=(\w+)=", (EXAMPLE / "redis.yaml").read_text()))
    assert secrets == {("agentmgr", "auth_token")} | {("agentmgr-redis", key) for key in made}
    # Ray's driver looks for the raylet among the processes, and for its sockets in the file system.
    assert PODS[0]["shareProcessNamespace"] is True
    ray, manager = PODS[0]["containers"]
    assert [mount for mount in ray["volumeMounts"] if mount in manager["volumeMounts"]] == [
        {"name": "ray", "mountPath": "/tmp/ray"}
    ]
    assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= {entry["name"] for entry in manager["env"]}


def test_what_it_runs_of_ours_is_as_the_commands_have_it():
    options = {
        name: {word for option in command.params for word in (*option.opts, *option.secondary_opts)}
        for name, command in every_command()
    }
    settings = {entry["name"] for entry in MANAGER["env"] if entry["name"].startswith("AGENTMGR_")}
    shown = subprocess.check_output([sys.executable, "-m", "agentmgr", "settings"], text=True)
    assert settings <= set(re.findall(r"AGENTMGR_[A-Z_]+", shown))
    assert MANAGER["command"][0] == "agentmgr"
    commands = [MANAGER["command"][1:]]
    for pod in PODS[1:]:
        program, *words = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "agentmgr"
        commands.append(words)
    text = (EXAMPLE / "README.md").read_text()
    commands += [
        line.split()
        for line in re.findall(r"\bagentmgr ([a-z][^`#\n|]*)", text)
        if line.split()[0] in COMMANDS
    ]
    assert len(commands) > 8
    for name, *words in commands:
        group = next((n for n in (f"{name} {words[0]}" if words else name, name) if n in options), None)
        assert group is not None, name
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert named <= options[group] | {"--help"}, (name, words)


def test_ray_is_started_again_until_the_pod_ends(tmp_path):
    """While it is, the container lives, and in it the agents."""
    scripts = {pod["containers"][0]["args"][0] for pod in PODS}
    assert len(scripts) == 1
    (tmp_path / "ray.py").write_text(
        "import os, signal, sys\n"
        "ends = signal.SIGTERM, signal.SIGUSR1\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, ends)\n"
        "print(os.getpid(), *sys.argv[1:], flush=True)\n"
        "print(signal.Signals(signal.sigwait(ends)).name, flush=True)\n"
    )
    environment = {**os.environ, "KUBERAY_GEN_RAY_START_CMD": f"{sys.executable} ray.py start --block"}
    command = ["/bin/bash", "-c", scripts.pop().replace("sleep 2", ":")]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            for _ in range(2):
                pid, *words = process.stdout.readline().split()
                assert words == ["start", "--block"]
                os.kill(int(pid), signal.SIGUSR1)
                assert process.stdout.readline() == "SIGUSR1\n"
            assert process.stdout.readline().endswith(" start --block\n")
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "SIGTERM\n"
            assert process.wait(timeout=60) == 0
        finally:
            end_all_in(tmp_path)


def test_redis_takes_its_password_and_evicts_nothing(tmp_path):
    if shutil.which("redis-server") is None:
        pytest.skip("this machine has no redis-server")
    container = DOCUMENTS["StatefulSet", "agentmgr-redis"]["spec"]["template"]["spec"]["containers"][0]
    (script,) = container["args"]
    script = script.replace("redis-server -", "redis-server - --port 0 --unixsocket s", 1).replace(
        "/data", str(tmp_path)
    )
    environment = {**os.environ, "REDIS_PASSWORD": "secret"}
    with subprocess.Popen(
        ["/bin/sh", "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            while "ready to accept connections" not in (line := process.stdout.readline()).lower():
                assert line

            def ask(*words):
                command = ["redis-cli", "-s", str(tmp_path / "s"), *words]
                return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout

            assert "NOAUTH" in ask("ping")
            assert ask("--no-auth-warning", "-a", "secret", "config", "get", "maxmemory-policy").split() == [
                "maxmemory-policy",
                "noeviction",
            ]
        finally:
            end_all_in(tmp_path)
