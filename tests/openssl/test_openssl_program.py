"""The unmodified ``openssl`` program with the provider module, against the program without it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import rsa_keys
from openssl_program import NATIVE, OpenSSL
from paths import SUPPORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESSAGE = b"signed on the command line\n"
SHA2 = ["sha224", "sha256", "sha384", "sha512", "sha512-224", "sha512-256"]
PSS = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
OAEP = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha1"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("openssl")
    (directory / "message").write_bytes(MESSAGE)
    (directory / "digest").write_bytes(hashlib.sha256(MESSAGE).digest())
    for bits in (2048, 3000):
        key = rsa_keys.private_key(bits)
        (directory / f"key{bits}.pem").write_bytes(rsa_keys.private_pem(key))
        (directory / f"public{bits}.pem").write_bytes(rsa_keys.public_pem(key))
    return directory


@pytest.fixture(scope="module")
def plain(directory: Path) -> OpenSSL:
    return OpenSSL(directory, None)


@pytest.fixture(scope="module")
def ours(directory: Path) -> OpenSSL:
    return OpenSSL(directory, "default")


@pytest.fixture(scope="module")
def only_ours(directory: Path) -> OpenSSL:
    """Without OpenSSL's default provider: nobody else computes RSA."""
    return OpenSSL(directory, "base")


def test_module_loads_and_names_itself(ours: OpenSSL) -> None:
    listing = ours("list", "-providers", "-verbose").decode()
    version = importlib.metadata.version("gpu-provider")
    assert re.search(
        rf"gpu_provider\n\s+name: gpu_provider\n\s+version: {re.escape(version)}\n\s+status: active", listing
    )
    assert "@ gpu_provider" in ours("list", "-signature-algorithms").decode()


def test_module_exports_its_entry_point_alone() -> None:
    """Any other exported name could clash with one of the program that loads the module."""
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    command = ["nm", "-D", "--defined-only", "--format=posix", str(NATIVE / "gpu_provider.so")]
    symbols = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [line.split()[0] for line in symbols.splitlines()] == ["OSSL_provider_init"]


@pytest.mark.parametrize("digest", SHA2)
@pytest.mark.parametrize("options", [[], PSS], ids=["pkcs1", "pss"])
def test_dgst_signs_and_verifies(ours: OpenSSL, plain: OpenSSL, digest: str, options: list[str]) -> None:
    for signer, verifier in [(ours, plain), (plain, ours)]:
        signer("dgst", f"-{digest}", "-sign", "key2048.pem", *options, "-out", "signature", "message")
        arguments = ["dgst", f"-{digest}", "-verify", "public2048.pem", *options, "-signature", "signature"]
        assert b"Verified OK" in verifier(*arguments, "message")
        assert verifier.attempt(*arguments, "digest")[0] != 0


@pytest.mark.parametrize("bits", [2048, 3000])
def test_pkeyutl_signs_where_only_ours_knows_rsa(only_ours: OpenSSL, plain: OpenSSL, bits: int) -> None:
    key, public = f"key{bits}.pem", f"public{bits}.pem"
    for options in (["digest:sha256"], ["rsa_padding_mode:pss", "digest:sha256", "rsa_pss_saltlen:32"]):
        flags = [flag for option in options for flag in ("-pkeyopt", option)]
        only_ours("pkeyutl", "-sign", "-inkey", key, "-in", "digest", *flags, "-out", "signature")
        arguments = ["pkeyutl", "-verify", "-pubin", "-inkey", public, "-in", "digest", *flags, "-sigfile", "signature"]
        assert b"Signature Verified Successfully" in plain(*arguments)
        assert b"Signature Verified Successfully" in only_ours(*arguments)


def test_pkeyutl_recovers_what_was_signed(only_ours: OpenSSL, plain: OpenSSL) -> None:
    for signer, opener in [(only_ours, plain), (plain, only_ours)]:
        signer("pkeyutl", "-sign", "-inkey", "key2048.pem", "-in", "message", "-out", "signature")
        recovered = opener("pkeyutl", "-verifyrecover", "-pubin", "-inkey", "public2048.pem", "-in", "signature")
        assert recovered == MESSAGE


@pytest.mark.parametrize("options", [[], OAEP, [*OAEP, "-pkeyopt", "rsa_oaep_label:00ff41"]])
def test_pkeyutl_decrypts(only_ours: OpenSSL, plain: OpenSSL, options: list[str]) -> None:
    for sender, receiver in [(only_ours, plain), (plain, only_ours)]:
        sender("pkeyutl", "-encrypt", "-pubin", "-inkey", "public2048.pem", "-in", "message", *options, "-out", "ct")
        assert receiver("pkeyutl", "-decrypt", "-inkey", "key2048.pem", "-in", "ct", *options) == MESSAGE


def test_errors_are_those_of_the_default_provider(ours: OpenSSL, plain: OpenSSL) -> None:
    def reasons(program: OpenSSL) -> tuple[int, list[str]]:
        status, _, errors = program.attempt("pkeyutl", "-decrypt", "-inkey", "key2048.pem", data=bytes(257))
        return status, re.findall(r"error:(\w+):", errors)

    assert reasons(ours) == reasons(plain)
    assert reasons(ours)[0] != 0


def test_keys_are_made_written_and_read(ours: OpenSSL, plain: OpenSSL) -> None:
    ours("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "made.pem")
    assert b"Key is valid" in plain("pkey", "-in", "made.pem", "-check", "-noout")
    assert b"Key is valid" in ours("pkey", "-in", "made.pem", "-check", "-noout")
    for form in ("PEM", "DER"):
        ours("pkey", "-in", "made.pem", "-outform", form, "-out", f"again.{form}")
        assert ours("pkey", "-in", f"again.{form}", "-inform", form) == plain("pkey", "-in", "made.pem")
    assert ours("pkey", "-in", "made.pem", "-text") == plain("pkey", "-in", "made.pem", "-text")
    assert ours("pkey", "-in", "made.pem", "-pubout") == plain("pkey", "-in", "made.pem", "-pubout")


@pytest.mark.parametrize("options", [[], PSS], ids=["pkcs1", "pss"])
def test_certificates_are_signed(ours: OpenSSL, plain: OpenSSL, options: list[str]) -> None:
    subject = ["-subj", "/CN=localhost", "-days", "2", "-out", "certificate.pem"]
    ours("req", "-x509", "-new", "-key", "key2048.pem", *options, *subject)
    assert b"certificate.pem: OK" in plain("verify", "-CAfile", "certificate.pem", "certificate.pem")
    assert b"certificate.pem: OK" in ours("verify", "-CAfile", "certificate.pem", "certificate.pem")
    name = b"rsassaPss" if options else b"sha256WithRSAEncryption"
    assert name in plain("x509", "-in", "certificate.pem", "-noout", "-text")


@pytest.fixture
def server(ours: OpenSSL) -> Iterator[str]:
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-out", "server.pem"]
    ours("req", "-x509", "-new", "-key", "key2048.pem", *subject)
    options = ["-async", "-www", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-key", "key2048.pem"]
    process = ours.start("s_server", *options)
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(b"ACCEPT "):
                yield line.split()[1].decode()
                break
        else:
            pytest.fail("openssl s_server ended before it accepted connections")
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.parametrize(
    ("protocol", "cipher"),
    [
        ("-tls1_2", "AES128-GCM-SHA256"),
        ("-tls1_2", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("-tls1_3", "TLS_AES_256_GCM_SHA384"),
    ],
)
def test_s_server_async_serves_s_client(server: str, plain: OpenSSL, protocol: str, cipher: str) -> None:
    """The first cipher exchanges the key by RSA decryption, the others sign with PSS."""
    ciphers = ["-ciphersuites" if protocol == "-tls1_3" else "-cipher", cipher]
    trust = [
        "-CAfile",
        "server.pem",
        "-servername",
        "localhost",
        "-verify_hostname",
        "localhost",
        "-verify_return_error",
    ]
    client = ["s_client", "-connect", server, protocol, *ciphers, *trust, "-ign_eof"]
    for _ in range(3):
        page = plain(*client, data=b"GET / HTTP/1.0\r\n\r\n")
        assert b"HTTP/1.0 200 ok" in page
        assert f"Cipher is {cipher}".encode() in page
        assert b"Verify return code: 0 (ok)" in page


def test_speed_runs_async_jobs(ours: OpenSSL) -> None:
    output = ours("speed", "-async_jobs", "32", "-seconds", "1", "rsa2048").decode()
    line = re.search(r"^rsa +2048 bits (.*)$", output, re.MULTILINE)
    assert line
    rates = [float(column) for column in line[1].split() if not column.endswith("s")]
    assert len(rates) >= 2
    assert min(rates) > 0


def test_program_leaks_nothing(ours: OpenSSL, only_ours: OpenSSL) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    valgrind = ["valgrind", "--quiet", "--leak-check=full", "--error-exitcode=99"]
    sign = ["pkeyutl", "-sign", "-inkey", "key2048.pem", "-in", "digest", "-pkeyopt", "digest:sha256"]
    decrypt = ["pkeyutl", "-decrypt", "-inkey", "key2048.pem"]
    ciphertext = only_ours("pkeyutl", "-encrypt", "-inkey", "key2048.pem", data=MESSAGE)
    for program, (arguments, data) in itertools.product((ours, only_ours), [(sign, b""), (decrypt, ciphertext)]):
        status, _, errors = program.attempt(*arguments, data=data, prefix=valgrind)
        assert status == 0, errors


RELOAD = """
import resource, sys
sys.path.insert(0, {tests!r})
import evp, rsa_keys
der = rsa_keys.private_der(rsa_keys.private_key(2048))

def cycle():
    with evp.LibraryContext(base={base}) as context:
        key = evp.Key.load(context.pointer, der)
        key.decrypt(key.encrypt(b"abc", {{}}), {{}})
        key.digest_sign("SHA256", b"abc", evp.pss())
        del key

for i in range(300):
    if i == 100:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cycle()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("base", [False, True], ids=["default", "base"])
def test_module_unloads_and_loads_again(base: bool) -> None:
    script = RELOAD.format(tests=str(SUPPORT), base=base)
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=50
    ).stdout
    assert int(output) < 1024, "KiB more after 200 more times"


@pytest.mark.parametrize("command", ["cms", "smime"])
@pytest.mark.parametrize("name", ["a", "zz.a.longer.name.example"], ids=["sorts before", "sorts after"])
def test_messages_for_several_are_decrypted(ours: OpenSSL, plain: OpenSSL, command: str, name: str) -> None:
    """Without the recipient's certificate, OpenSSL tries the key on every part. Versions that reject implicitly there
    take the last one for the right one: then so do we. They decrypt with a random key then, whose padding is right once
    in 256 times.
    """
    subject = ["-days", "2", "-subj"]
    plain("req", "-x509", "-key", "key2048.pem", "-out", "mine.pem", *subject, "/CN=mine")
    others = ["-newkey", "rsa:2048", "-nodes", "-keyout", "other.key", "-out", "other.pem"]
    plain("req", "-x509", *others, *subject, f"/CN={name}")
    sealed = ["-aes256", "-in", "message", "-outform", "DER", "-out", "sealed", "mine.pem", "other.pem"]
    plain(command, "-encrypt", *sealed)
    for recipient in ([], ["-recip", "mine.pem"]):
        arguments = [command, "-decrypt", "-inform", "DER", "-in", "sealed", "-inkey", "key2048.pem", *recipient]
        theirs, mine = plain.attempt(*arguments), ours.attempt(*arguments)
        read = (0, MESSAGE.replace(b"\n", b"\r\n"))
        assert (mine[:2] == read) == (theirs[:2] == read), mine[2]
        assert theirs[:2] == read or not recipient
