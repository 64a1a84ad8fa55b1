"""The files that describe containers name what is there: images, users, paths and ports that fit together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gpu_provider.service.config import ServiceConfig
from gpu_provider.settings import options

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "containers" / "compose.yaml").read_text())
DAEMON_SET: dict[str, Any] = yaml.safe_load((ROOT / "containers" / "kubernetes.yaml").read_text())
OPENSSL = (ROOT / "containers" / "openssl.cnf").read_text()
SOCKET = Path("/run/gpu-provider/service")
SETTINGS = {f"GPU_PROVIDER_{option.name.upper()}" for option in options(ServiceConfig)}
USER, GROUP = "65532", "65532"


def test_both_ends_of_the_socket_have_the_same_path() -> None:
    service, haproxy = COMPOSE["services"]["service"], COMPOSE["services"]["haproxy"]
    assert str(SOCKET) in service["command"]
    assert f"service = {SOCKET}\n" in OPENSSL
    assert f"socket:{SOCKET.parent}" in service["volumes"]
    assert f"socket:{SOCKET.parent}:ro" in haproxy["volumes"]
    assert "socket" in COMPOSE["volumes"]


def test_the_program_is_admitted_by_user_and_by_the_sockets_group() -> None:
    service, haproxy = COMPOSE["services"]["service"], COMPOSE["services"]["haproxy"]
    user, group = haproxy["user"].split(":")
    assert service["user"] == f"{USER}:{GROUP}"
    assert group == GROUP, "the socket's mode is 0660"
    assert service["command"][service["command"].index("--allow-users") + 1] == user
    assert f"USER {haproxy['user']}" in DOCKERFILE


def test_nothing_has_more_rights_than_it_needs() -> None:
    for one in COMPOSE["services"].values():
        assert one["read_only"]
        assert one["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in one["security_opt"]
        assert not one["user"].startswith("0:")


def test_images_and_files_are_there() -> None:
    targets = re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE)
    for one in COMPOSE["services"].values():
        assert one["build"].get("target", targets[0]) in targets
        assert (ROOT / "containers" / one["build"]["context"] / "Dockerfile").exists()
    module = re.search(r"^module = (\S+)$", OPENSSL, re.MULTILINE)
    assert module is not None
    assert f"native/gpu_provider.so {Path(module[1]).parent}/" in DOCKERFILE
    for file in re.findall(r"^COPY (containers/\S+) ", DOCKERFILE, re.MULTILINE):
        assert (ROOT / file).exists()


def test_the_daemon_set_shares_the_socket_and_is_watched() -> None:
    pod = DAEMON_SET["spec"]["template"]["spec"]
    (service,) = pod["containers"]
    assert DAEMON_SET["kind"] == "DaemonSet"
    labels = DAEMON_SET["spec"]["template"]["metadata"]["labels"]
    assert DAEMON_SET["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["args"] == ["service", "--socket", str(SOCKET)]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in service["volumeMounts"]}
    assert mounts[str(SOCKET.parent)]["hostPath"]["path"] == str(SOCKET.parent)
    variables = {one["name"]: one["value"] for one in service["env"]}
    assert {name for name in variables if name.startswith("GPU_PROVIDER_")} <= SETTINGS
    (port,) = service["ports"]
    assert variables["GPU_PROVIDER_ADMIN"].endswith(f":{port['containerPort']}")
    assert {service[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")} == {"/readyz"}
    assert service["livenessProbe"]["httpGet"] == {"path": "/livez", "port": port["name"]}
    assert service["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_daemon_sets_container_is_confined() -> None:
    pod = DAEMON_SET["spec"]["template"]["spec"]
    (service,) = pod["containers"]
    confined = service["securityContext"]
    assert confined["runAsNonRoot"]
    assert (str(confined["runAsUser"]), str(confined["runAsGroup"])) == (USER, GROUP)
    assert confined["capabilities"] == {"drop": ["ALL"]}
    assert confined["readOnlyRootFilesystem"]
    assert not confined["allowPrivilegeEscalation"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
