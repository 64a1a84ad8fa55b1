"""``gpu-provider openssl-config``, and ``check``'s first answer: the module joins the system's configuration, and is
reached."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import rsa_keys
from terminator_process import run_command

from gpu_provider.commands.openssl_config import MODULE, Configuration, _with_module

TIMEOUT: Final = 50
PLAIN: Final = """\
openssl_conf = openssl_init
[openssl_init]
[req]
distinguished_name = names
x509_extensions = v3_ca
[names]
[v3_ca]
basicConstraints = critical, CA:TRUE
"""
POLICY: Final = """\
openssl_conf = the_start
[the_start]
providers = the_providers
ssl_conf = tls
alg_section = the_properties
[the_providers]
default = the_default
[the_default]
activate = 1
[tls]
system_default = tls_defaults
[tls_defaults]
MinProtocol = TLSv1.3
[the_properties]
default_properties = ?some=property
""" + PLAIN[PLAIN.index("[req]") :]
INACTIVE: Final = PLAIN.replace("[openssl_init]", "[openssl_init]\nproviders = list\n[list]\ndefault = d\n[d]\n")
SYSTEMS: Final = {
    "plain": PLAIN,
    "policy": POLICY,
    "inactive": INACTIVE,
    "empty": PLAIN.partition("\n")[2],
    "none": None,
}


def environment(configuration: Path | None) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    return own if configuration is None else own | {"OPENSSL_CONF": str(configuration)}


def openssl(configuration: Path, *arguments: str, directory: Path, check: bool = True) -> str:
    done = subprocess.run(
        ["openssl", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment(configuration),
        timeout=TIMEOUT,
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def check(configuration: Path | None) -> tuple[int, str]:
    done = subprocess.run(
        [Path(sys.executable).parent / "gpu-provider", "check", "--seconds", "0", "--output", "table"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(configuration),
        timeout=TIMEOUT,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def speaks_tls_1_2(path: Path, directory: Path) -> bool:
    """Whether ``openssl s_client`` goes below what MinProtocol says."""
    certificate = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.pem", "-out", "server.pem"]
    openssl(path, *certificate, "-subj", "/CN=x", directory=directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}"]
        client = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(path),
        )
        connection, _ = listener.accept()
        try:
            context.wrap_socket(connection, server_side=True).close()
        except ssl.SSLError:
            return False
        finally:
            connection.close()
            client.wait(TIMEOUT)
    return True


@pytest.fixture(params=SYSTEMS)
def joined(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What is printed on a system with such a configuration."""
    system, path = tmp_path / "a system's $ # file.cnf", tmp_path / "joined.cnf"
    if SYSTEMS[request.param] is not None:
        system.write_text(SYSTEMS[request.param])
    path.write_text(_with_module(system))
    return path


def test_module_and_default_provider_are_active(joined: Path, tmp_path: Path) -> None:
    listed = openssl(joined, "list", "-providers", directory=tmp_path)
    assert listed.count("status: active") == 2
    assert "gpu_provider" in listed
    assert check(joined)[0] == 0


def test_what_the_system_configures_stays(joined: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    system = request.node.callspec.params["joined"]
    if system != "none":
        arguments = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-subj", "/CN=x"]
        certificate = openssl(joined, *arguments, "-text", directory=tmp_path)
        assert "Version: 3" in certificate
        assert "CA:TRUE" in certificate
    if system == "plain":
        assert speaks_tls_1_2(joined, tmp_path)
    if system == "policy":
        assert not speaks_tls_1_2(joined, tmp_path)
        configuration = Configuration(joined)
        assert configuration.get("the_start", "ssl_conf") == "tls"
        assert configuration.get("tls_defaults", "MinProtocol") == "TLSv1.3"
        properties = configuration.get("the_properties", "default_properties")
        assert properties == "?some=property,?gpu_provider.batched=yes"


def test_command_includes_the_systems_file(tmp_path: Path) -> None:
    path = tmp_path / "openssl.cnf"
    path.write_text(run_command("openssl-config").stdout)
    for name in ("index.txt", "private", "newcerts"):
        entry = tmp_path / "demoCA" / name
        entry.parent.mkdir(exist_ok=True)
        entry.write_text("") if name == "index.txt" else entry.mkdir()
    (tmp_path / "key.pem").write_bytes(rsa_keys.private_pem(rsa_keys.private_key(2048)))
    subject = "/C=DE/ST=x/O=y/CN=z"
    openssl(path, "req", "-new", "-key", "key.pem", "-subj", subject, "-out", "request.pem", directory=tmp_path)
    arguments = ["-selfsign", "-batch", "-create_serial", "-in", "request.pem", "-keyfile", "key.pem"]
    assert "BEGIN CERTIFICATE" in openssl(path, "ca", *arguments, directory=tmp_path)


# ---- check ----


def configured(path: Path, *, module: str = str(MODULE), activate: str = "activate = 1", properties: str = "") -> Path:
    path.write_text(
        "openssl_conf = start\n[start]\nproviders = list\nalg_section = algorithms\n[list]\ndefault = theirs\n"
        f"gpu_provider = ours\n[theirs]\nactivate = 1\n[ours]\nmodule = {module}\n{activate}\n"
        f"[algorithms]\ndefault_properties = {properties or '?gpu_provider.batched=yes'}\n"
    )
    return path


@pytest.mark.parametrize("properties", ["?gpu_provider.batched=yes", "?provider=gpu_provider"])
def test_check_says_that_the_module_is_reached(tmp_path: Path, properties: str) -> None:
    code, output = check(configured(tmp_path / "openssl.cnf", properties=properties))
    assert code == 0
    assert "computed by    gpu_provider" in output
    assert "The module is reached." in output


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    path, garbage = tmp_path / "openssl.cnf", tmp_path / "garbage.so"
    garbage.write_text("no module")
    for wrong, words in [
        (None, "OPENSSL_CONF is not set"),
        (tmp_path / "missing.cnf", "there is no file"),
        (configured(path, module="/no/such.so"), "'module = /no/such.so' is no file"),
    ]:
        code, output = check(wrong)
        assert (code, words in output) == (1, True), output
    for changes, words in [
        ({"module": str(garbage)}, "OpenSSL can't load"),
        ({"activate": ""}, "section [ours] of"),
        ({"properties": "?provider=default"}, "default_properties is ?provider=default"),
    ]:
        code, output = check(configured(path, **changes))
        assert (code, words in output) == (1, True), output
    path.write_text("openssl_conf = start\n[start\n")
    code, output = check(path)
    assert (code, "line 2" in output) == (1, True), output
    path.write_text(PLAIN)
    code, output = check(path)
    assert (code, "does not name gpu_provider" in output) == (1, True), output


def test_openssl_says_that_it_has_the_libcrypto_of_the_module(tmp_path: Path) -> None:
    listed = openssl(configured(tmp_path / "openssl.cnf"), "list", "-providers", "-verbose", directory=tmp_path)
    assert "build info: computes with the program's libcrypto" in listed
