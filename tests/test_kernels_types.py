"""A secret used as a branch, an address or a number does not compile: lines that must fail, and one that must not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parent.parent / "kernels"

PROGRAM = """
#include "lane_portable.h"
#include "pair.h"
using namespace gpk;
template <class V> long use(V secret, typename V::Bit bit, long *table)
{{
    (void)secret, (void)bit, (void)table;
    {line}
    return 0;
}}
template long use<Word>(Word, Word::Bit, long *);
"""


def compiles(line: str) -> bool:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{KERNELS}", "-x", "c++", "-"]
    result = subprocess.run(
        command, input=PROGRAM.format(line=line), capture_output=True, text=True, timeout=60, check=False
    )
    return result.returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        "if (secret) return 1;",
        "if (bit) return 1;",
        "while (secret & secret) return 1;",
        "return secret ? 1 : 2;",
        "return secret && true;",
        "if (!secret) return 1;",
        "if (secret == secret) return 1;",
        "if (secret < secret) return 1;",
        "switch (secret) { default: return 1; }",
        "return table[secret];",
        "return table[bit];",
        "return *(table + secret);",
        "for (int i = 0; i < secret; i++) table++;",
        "long number = secret; return number;",
        "return (long)secret;",
        "return static_cast<bool>(bit);",
        "return secret.v;",
        "return bit.mask;",
        "return 1 << secret;",
        "if (Pair<V>{secret, secret}) return 1;",
    ],
)
def test_secrets_are_no_conditions_and_no_indices(line: str) -> None:
    assert not compiles(line)


@pytest.mark.parametrize(
    "line",
    [
        "secret = secret + (secret >> Constant<52>{});",
        "secret = blend(bit_of(secret, 3), secret, mad52lo(secret, secret, secret));",
        "if (table[0]) return 1;",
    ],
)
def test_arithmetic_on_secrets_and_branches_on_others_compile(line: str) -> None:
    assert compiles(line)
