"""Every mistake in the settings ends with exit code 2 and one line that names the thing, its value and a remedy."""

import argparse
import os
import subprocess

import pytest
from rsa_keys import program_key
from terminator_process import run_command, write_credentials

from gpu_provider.addresses import Address, parse_address
from gpu_provider.commands.cli import main
from gpu_provider.errors import ConfigError
from gpu_provider.settings import load_config
from gpu_provider.tls.terminator.command import add_arguments
from gpu_provider.tls.terminator.config import TerminatorConfig

ADDRESSES = ["--listen", "127.0.0.1:0", "--upstream", "127.0.0.1:9", "--admin", "off"]


@pytest.fixture
def check(capsys, monkeypatch):
    """``gpu-provider terminator --check``, in this process because there are so many: exit code, stdout, stderr."""
    for name in [name for name in os.environ if name.startswith("GPU_PROVIDER_")]:
        monkeypatch.delenv(name)

    def run(*flags):
        try:
            code = main(["terminator", "--check", *flags])
        except SystemExit as leaving:  # argparse's way
            code = leaving.code
        return code, *capsys.readouterr()

    return run


def addresses_without(flags):
    pairs = zip(ADDRESSES[::2], ADDRESSES[1::2], strict=True)
    return [part for pair in pairs if pair[0] not in flags for part in pair]


def the_error(result):
    code, _, stderr = result
    assert code == 2, result
    (line,) = stderr.splitlines()
    return line


def test_good_settings_pass_the_check(check, tmp_path):
    flags = [*write_credentials(tmp_path), *write_credentials(tmp_path, kind="ECDSA", stem="ec")]
    assert check(*ADDRESSES, *flags) == (0, "the settings are valid\n", "")


def test_mistake_ends_the_command_with_code_2_and_no_traceback(tmp_path):
    result = run_command("terminator", *ADDRESSES, *write_credentials(tmp_path), "--queue-depth", "0")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("gpu-provider terminator: error: ")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--listen", "443"], ["listen", "'443' has no port", "HOST:PORT"]),
        (["--listen", "::1:443"], ["listen", "'::1:443'", "brackets"]),
        (["--listen", "[example]:443"], ["'example' in brackets is not an IPv6 address"]),
        (["--listen", "127.0.0.1:70000"], ["'70000' is not a port number"]),
        (["--listen", "127.0.0.1:https"], ["'https' is not a port number"]),
        (["--upstream", ":80"], ["upstream", "names no host"]),
        (["--upstream", "127.0.0.1:0"], ["upstream", "names no port"]),
        (["--upstream", "no-such-host.invalid:80"], ["upstream", "no-such-host.invalid", "can't be resolved"]),
        (["--admin", "nonsense"], ["admin", "'nonsense' has no port"]),
        (["--tls-min", "TLSv1.3", "--tls-max", "TLSv1.2"], ["tls_min", "tls_max", "no version is left"]),
        (["--ciphers", "NO-SUCH-CIPHER"], ["ciphers = 'NO-SUCH-CIPHER'", "openssl ciphers"]),
        (["--ciphersuites", "TLS_NONE"], ["ciphersuites = 'TLS_NONE'"]),
        (["--handshake-timeout", "0"], ["handshake_timeout = 0", "more than 0"]),
        (["--idle-timeout", "-1"], ["idle_timeout = -1"]),
        (["--max-connections", "0"], ["max_connections = 0"]),
        (["--queue-depth", "0"], ["queue_depth = 0"]),
        (["--max-batch", "-3"], ["max_batch = -3"]),
        (["--max-delay", "0"], ["max_delay = 0"]),
        (["--backend", "abacus"], ["backend = 'abacus'"]),
        (["--alpn", ""], ["alpn"]),
        (["--cert", "/no/such.pem"], ["cert names 2 files", "key names 1 file"]),
        (["--config", "/no/such.toml"], ["/no/such.toml", "can't be read"]),
    ],
)
def test_mistake_is_one_line_that_names_it(check, tmp_path, flags, words):
    line = the_error(check(*addresses_without(flags), *write_credentials(tmp_path), *flags))
    assert line.startswith("gpu-provider terminator: error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("flag", ["--tls-min", "--proxy-protocol", "--queue-depth", "--drain-timeout"])
def test_value_of_another_kind_is_refused_by_the_flag(check, flag):
    code, _, stderr = check(flag, "nonsense")
    assert code == 2
    assert flag in stderr.splitlines()[-1]


@pytest.mark.parametrize("missing", ["listen", "upstream", "cert"])
def test_what_must_be_given(check, tmp_path, missing):
    given = {"listen": "127.0.0.1:0", "upstream": "127.0.0.1:9", "cert": "c.pem", "key": "k.pem"}
    flags = [part for name, value in given.items() if name != missing for part in (f"--{name}", value)]
    line = the_error(check(*flags))
    assert f"{missing} is not given" in line
    assert f"--{missing}" in line


def make_encrypted(directory):
    write_credentials(directory)
    command = ["openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", directory / "server.key"]
    subprocess.run([*command, "-out", directory / "encrypted.key"], check=True, capture_output=True)
    (directory / "encrypted.key").replace(directory / "server.key")


def make_mismatched(directory):
    write_credentials(directory, "other.example")
    (directory / "server.key").rename(directory / "other.key")
    write_credentials(directory)
    (directory / "other.key").replace(directory / "server.key")


def make_mismatched_kinds(directory):
    write_credentials(directory, kind="ECDSA")
    (directory / "server.key").rename(directory / "other.key")
    write_credentials(directory)
    (directory / "other.key").replace(directory / "server.key")


def make_ed25519(directory):
    (directory / "server.key").write_bytes(program_key("ed25519"))
    command = ["openssl", "req", "-x509", "-key", directory / "server.key", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-out", directory / "server.pem"], check=True, capture_output=True)


def swap(directory):
    (directory / "server.pem").rename(directory / "x")
    (directory / "server.key").rename(directory / "server.pem")
    (directory / "x").rename(directory / "server.key")


@pytest.mark.parametrize(
    ("spoil", "file", "words"),
    [
        (lambda d: (d / "server.pem").unlink(), "server.pem", ["No such file"]),
        (lambda d: (d / "server.key").unlink(), "server.key", ["No such file"]),
        (lambda d: ((d / "server.key").unlink(), (d / "server.key").mkdir()), "server.key", ["Is a directory"]),
        (lambda d: (d / "server.pem").write_text("garbage"), "server.pem", ["no PEM certificate"]),
        (lambda d: (d / "server.key").write_text("garbage"), "server.key", ["no private key"]),
        (make_encrypted, "server.key", ["encrypted", "openssl pkey"]),
        (make_mismatched, "server.key", ["does not belong to", "server.pem"]),
        (make_mismatched_kinds, "server.key", ["does not belong to", "server.pem"]),
        (make_ed25519, "server.pem", ["ED25519", "RSA or EC"]),
        (swap, "server.pem", ["certificate"]),
    ],
)
def test_certificate_or_key_that_can_not_be_used(check, tmp_path, spoil, file, words):
    flags = write_credentials(tmp_path)
    spoil(tmp_path)
    line = the_error(check(*ADDRESSES, *flags))
    assert str(tmp_path / file) in line
    for word in words:
        assert word in line


def test_unreadable_key_is_named(check, tmp_path):
    flags = write_credentials(tmp_path)
    key = tmp_path / "server.key"
    key.chmod(0)
    try:
        key.read_bytes()
    except PermissionError:
        line = the_error(check(*ADDRESSES, *flags))
        assert str(key) in line
        assert "Permission denied" in line
    else:
        pytest.skip("the tests run as a user who can read every file, such as root")


# ---- flags over environment over file ----


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "terminator.toml"
    path.write_text(
        'listen = "127.0.0.1:1"\nupstream = "127.0.0.1:2"\ncert = ["c.pem"]\nkey = ["k.pem"]\nqueue_depth = 10\n'
        "max-batch = 11\nhandshake_timeout = 12\n"
    )
    return path


def test_flags_win_over_the_environment_and_that_over_the_file(config_file, monkeypatch):
    monkeypatch.setenv("GPU_PROVIDER_QUEUE_DEPTH", "20")
    monkeypatch.setenv("GPU_PROVIDER_MAX_BATCH", "21")
    monkeypatch.setenv("GPU_PROVIDER_ALPN", "h2,http/1.1")
    config = load_config(TerminatorConfig, config_file, os.environ, {"queue_depth": 30})
    assert (config.queue_depth, config.max_batch, config.handshake_timeout) == (30, 21, 12)
    assert config.alpn == ("h2", "http/1.1")


def test_unknown_key_in_the_file_is_an_error_with_a_hint(check, config_file):
    config_file.write_text(config_file.read_text() + "qeue_depth = 1\n")
    line = the_error(check("--config", str(config_file)))
    assert "qeue_depth" in line
    assert "queue_depth" in line


def test_wrong_type_in_the_file_is_named(check, config_file):
    config_file.write_text(config_file.read_text().replace("= 12", '= "soon"'))
    line = the_error(check("--config", str(config_file)))
    assert "handshake_timeout" in line
    assert "soon" in line


def test_every_setting_has_a_flag_of_its_name():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = {action.dest for action in parser._actions}
    assert set(TerminatorConfig.__struct_fields__) == flags - {"help", "config", "check"}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:443", Address("127.0.0.1", 443)),
        ("name.example:1", Address("name.example", 1)),
        ("[::1]:443", Address("::1", 443)),
        ("[fe80::1%eth0]:443", Address("fe80::1%eth0", 443)),
        (":443", Address("", 443)),
    ],
)
def test_address_forms(text, address):
    assert parse_address(text, any_host=True) == address


@pytest.mark.parametrize("text", ["", ":", "host:", "host:-1", "host:1e3", "host:٤٤٣", "[::1]443", "[::1]:", "[]:1"])
def test_what_is_no_address(text):
    with pytest.raises(ConfigError):
        parse_address(text, any_host=True)
