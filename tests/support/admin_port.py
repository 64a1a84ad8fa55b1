"""What a terminator or a service says of itself over HTTP."""

from __future__ import annotations

import http.client
import time

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["AdminPort"]

_TIMEOUT = 20.0


class AdminPort:
    admin_address: tuple[str, int]

    def admin(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.admin_address[:2], timeout=_TIMEOUT)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all samples that have these labels; 0 if there is none."""
        text = self.admin("/metrics")[1]
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        """Waits until the metric has this value: it counts a moment after the client saw what happened."""
        deadline = time.monotonic() + _TIMEOUT
        while (current := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name}{labels} is {current}, not {value}"
