"""Blind signatures as docs/library.md makes them, on the vectors of RFC 9474, appendix A."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding as paddings
from cryptography.hazmat.primitives.asymmetric import rsa

from gpu_provider import BatchingProvider

VECTORS = json.loads(Path(__file__).with_name("rfc9474.json").read_text())
LIBRARY = Path(__file__).resolve().parents[2] / "docs" / "library.md"


def documented() -> dict[str, Any]:
    """The functions of the page's snippet."""
    (snippet,) = re.findall(r"^```python\n([^`]*?def emsa_pss.*?)^```$", LIBRARY.read_text(), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(snippet.partition("\nwith ")[0], namespace)  # noqa: S102 (our own page)
    return namespace


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    p, q, e, d = (int(VECTORS["key"][name], 16) for name in "pqed")
    crt = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
    return rsa.RSAPrivateNumbers(p, q, d, *crt, rsa.RSAPublicNumbers(e, p * q)).private_key()


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_rfc_9474(private_key: rsa.RSAPrivateKey, vector: dict[str, str]) -> None:
    functions, public = documented(), private_key.public_key().public_numbers()
    message, salt = bytes.fromhex(vector["msg_prefix"] + vector["msg"]), bytes.fromhex(vector["salt"])
    r = pow(int(vector["inv"], 16), -1, public.n)
    with BatchingProvider() as provider:
        key = provider.load_key(private_key)
        blinded = functions["blind"](functions["emsa_pss"](message, key.bits, salt), public, r)
        assert blinded == int(vector["blinded_msg"], 16)
        blind_signature = provider.private_op(key, blinded)
        assert blind_signature == int(vector["blind_sig"], 16)
        signature = functions["finalize"](blind_signature, public, r)
        assert signature.hex() == vector["sig"]
        padding = paddings.PSS(paddings.MGF1(hashes.SHA384()), len(salt))
        assert provider.verify_many(key, [signature, signature], [message, b"other"], padding, hashes.SHA384()) == [
            True,
            False,
        ]
