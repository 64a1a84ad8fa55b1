"""The ``openssl`` program, with the provider module or without it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import gpu_provider.native

NATIVE: Final = Path(gpu_provider.native.__file__).parent
TIMEOUT: Final = 50

_CONFIGURATION: Final = """\
openssl_conf = openssl_init

[openssl_init]
providers = provider_section
alg_section = algorithm_section

[provider_section]
{openssl} = activate_section
gpu_provider = activate_section

[activate_section]
activate = 1

[algorithm_section]
default_properties = ?gpu_provider.batched=yes

[req]
distinguished_name = distinguished_name

[distinguished_name]
"""


class OpenSSL:
    """Runs ``openssl`` in a directory. ``provider`` is None for the program alone, or the name of the OpenSSL provider
    that is active beside ours: ``default``, or ``base``, which reads key files but knows no RSA.
    """

    def __init__(self, directory: Path, provider: str | None) -> None:
        self.directory = directory
        configuration = directory / f"openssl-{provider}.cnf"
        self.environment = os.environ | {"OPENSSL_MODULES": str(NATIVE), "OPENSSL_CONF": str(configuration)}
        text = "[req]\ndistinguished_name = req\n" if provider is None else _CONFIGURATION.format(openssl=provider)
        configuration.write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = ["openssl", *arguments]
        return subprocess.Popen(
            command, cwd=self.directory, env=self.environment, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
        )

    def attempt(self, *arguments: str, data: bytes = b"", prefix: list[str] | None = None) -> tuple[int, bytes, str]:
        """Exit status, standard output and standard error."""
        result = subprocess.run(
            [*(prefix or []), "openssl", *arguments],
            check=False,
            input=data,
            capture_output=True,
            cwd=self.directory,
            env=self.environment,
            timeout=TIMEOUT,
        )
        return result.returncode, result.stdout, result.stderr.decode()

    def __call__(self, *arguments: str, data: bytes = b"") -> bytes:
        """Standard output of a command that must succeed."""
        status, output, errors = self.attempt(*arguments, data=data)
        assert status == 0, f"openssl {' '.join(arguments)}: {errors}"
        return output
