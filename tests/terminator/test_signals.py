"""Signals in every phase, from the first import to the interpreter's end: none kills, none is mistaken for another."""

import signal

import pytest
from terminator_process import (
    Terminator,
    Upstream,
    echo,
    echo_terminator,
    refused_address,
    run_command,
    write_credentials,
)

RELOADED = "certificates reloaded"
AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "gpu_provider.tls":
            for number in (signal.SIGHUP, signal.SIGUSR2):
                os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
"""
AFTER_LOADING = """
import os, signal
import gpu_provider.tls.terminator.lifecycle as lifecycle
load, calls = lifecycle.load_certificates, []
def load_and_send(*arguments):
    loaded = load(*arguments)
    calls.append(loaded)
    if len(calls) == 1:
        for name in {names}:
            os.kill(os.getpid(), getattr(signal, name))
    return loaded
lifecycle.load_certificates = load_and_send
"""
AT_EXIT = """
import atexit, os, signal
@atexit.register
def send():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(os.getpid(), number)
"""
RELOADING_FOR_EVER = """
import sys, threading
import gpu_provider.tls.terminator.lifecycle as lifecycle
load, calls = lifecycle.load_certificates, []
def load_or_hang(*arguments):
    calls.append(None)
    if len(calls) == 2:
        print("hanging", file=sys.stderr)
        threading.Event().wait()
    return load(*arguments)
lifecycle.load_certificates = load_or_hang
"""


def patched(directory, upstream, patch):
    (directory / "sitecustomize.py").write_text(patch)
    return Terminator(*write_credentials(directory), upstream=upstream.address, settings={"PYTHONPATH": str(directory)})


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGPIPE", "SIGTTOU"])
def test_harmless_ones_do_nothing(tmp_path, name):
    with echo_terminator(tmp_path) as terminator:
        with terminator.connect() as client:
            terminator.process.send_signal(getattr(signal, name))
            assert terminator.echo() == b"are you there?"
            terminator.process.send_signal(signal.SIGTERM)
            terminator.wait_for("draining")
            terminator.process.send_signal(getattr(signal, name))
            client.sendall(b"still here")
            assert client.recv(10) == b"still here"
            client.unwrap()
        assert terminator.wait() == 0


def test_those_that_come_while_it_is_imported_do_nothing(tmp_path):
    with Upstream(echo) as upstream, patched(tmp_path, upstream, AT_IMPORT) as terminator:
        assert terminator.echo() == b"are you there?"


def test_a_reload_asked_for_during_the_start_is_made_afterwards(tmp_path):
    patch = AFTER_LOADING.format(names=["SIGHUP", "SIGUSR2"])
    with Upstream(echo) as upstream, patched(tmp_path, upstream, patch) as terminator:
        terminator.wait_for(RELOADED)
        assert terminator.echo() == b"are you there?"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1"])
def test_an_end_asked_for_during_the_start_is_an_end_without_complaint(tmp_path, name):
    (tmp_path / "sitecustomize.py").write_text(AFTER_LOADING.format(names=[name, name]))
    flags = ["--listen", "127.0.0.1:0", "--admin", "off", "--upstream", refused_address(), *write_credentials(tmp_path)]
    result = run_command("terminator", *flags, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0
    assert "ready" not in result.stderr
    assert "Traceback" not in result.stderr


def test_those_that_come_while_the_interpreter_ends_do_not_change_the_exit_code(tmp_path):
    with Upstream(echo) as upstream, patched(tmp_path, upstream, AT_EXIT) as terminator:
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.wait() == 0


def test_many_reloads_at_once_and_an_end_among_them(tmp_path):
    with echo_terminator(tmp_path) as terminator:
        for _ in range(5):
            terminator.process.send_signal(signal.SIGHUP)
        terminator.wait_for(RELOADED)
        terminator.process.send_signal(signal.SIGHUP)
        terminator.process.send_signal(signal.SIGTERM)
        terminator.process.send_signal(signal.SIGHUP)
        assert terminator.wait() == 0


def test_a_reload_that_hangs_does_not_keep_the_process(tmp_path):
    """For example, a file on a network file system that does not answer."""
    with Upstream(echo) as upstream, patched(tmp_path, upstream, RELOADING_FOR_EVER) as terminator:
        terminator.process.send_signal(signal.SIGHUP)
        while not terminator.other_lines:
            assert terminator.echo() == b"are you there?"
        terminator.process.send_signal(signal.SIGTERM)
        assert terminator.wait() == 0
