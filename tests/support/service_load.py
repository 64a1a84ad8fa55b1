"""Clients that come all the time to a program that uses the service."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from groups import Client, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from groups import Directory, Server

__all__ = ["load", "wait_for_more", "wait_until_served"]


@contextlib.contextmanager
def load(server: Server) -> Iterator[list[bytes]]:
    """Clients that come all the time. A connection that fails raises when the block ends."""
    done, answers = threading.Event(), []

    def client() -> None:
        while not done.is_set():
            answers.append(Client().get(server.port))

    with ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(client) for _ in range(8)]
        try:
            yield answers
        finally:
            done.set()
        for each in clients:
            each.result()
    assert set(answers) == {b"HTTP/1.1 200 OK"}


def wait_for_more(answers: list[bytes], count: int) -> None:
    wanted = len(answers) + count
    wait_until(lambda: len(answers) >= wanted, "the program does not answer")


def wait_until_served(directory: Directory, answers: list[bytes]) -> None:
    """Until the program computes nothing by itself."""
    for _ in range(100):
        before = directory.counts().operations
        wait_for_more(answers, 40)  # more than are under way, which may have been computed before
        if directory.counts().operations == before:
            return
    raise TimeoutError("the program does not reach the service")
