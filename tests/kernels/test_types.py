"""A secret used as a branch, an address or a number does not compile: lines that must fail, and one that must not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"

PROGRAM = """
#include "cpu/vector_portable.h"
#include "cpu/vector_pair.h"
using namespace gpk;
template <class V> long use(V secret, typename V::Bit bit, long *table)
{{
    (void)secret, (void)bit, (void)table;
    {line}
    return 0;
}}
template long use<Word>(Word, Word::Bit, long *);
"""

WARP_PROGRAM = """
#include "gpu/carry_chain.h"
#include "gpu/exchange.h"
#include "gpu/memory.h"
using namespace gpk;
long use(Word32 word, Word64 secret, Real real, Mask bit, Public place, Where where, const uint32_t *table)
{{
    (void)word, (void)secret, (void)real, (void)bit, (void)place, (void)where, (void)table;
    {line}
    return 0;
}}
"""


def compiles(line: str, program: str = PROGRAM) -> bool:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{KERNELS}", "-x", "c++", "-"]
    result = subprocess.run(
        command, input=program.format(line=line), capture_output=True, text=True, timeout=60, check=False
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


@pytest.mark.parametrize(
    "line",
    [
        "if (word) return 1;",
        "if (secret) return 1;",
        "if (real) return 1;",
        "if (bit) return 1;",
        "return bit ? 1 : 2;",
        "while (!secret) return 1;",
        "if (secret == secret) return 1;",
        "if (real < real) return 1;",
        "switch (word) { default: return 1; }",
        "return table[word];",
        "return *(table + secret);",
        "word = Memory::load(table, word);",
        "place = Public::load(table, word);",
        "place = word;",
        "place = place + word;",
        "where = Where::less(word, 3);",
        "where = bit;",
        "word = keep(bit, word);",
        "secret = secret >> word;",
        "secret = from_thread<4>(secret, word);",
        "secret = from_thread<4>(secret, place);",
        "bit = bit_of(secret, word);",
        "long number = secret; return number;",
        "return (long)real;",
        "return static_cast<bool>(bit);",
        "return word.part[0][0];",
        "if (place) return 1;",
        "return table[place];",
    ],
)
def test_secrets_of_a_warp_are_no_conditions_and_no_indices(line: str) -> None:
    """Nor are what is public for each thread conditions of the whole warp."""
    assert not compiles(line, WARP_PROGRAM)


@pytest.mark.parametrize(
    "line",
    [
        "word = Memory::load(table, place * 4 + 1);",
        "word = keep(Where::less(place, 3), word);",
        "secret = blend(bit_of(secret, 3), secret, widen(word));",
        "real = from_thread<4>(real, 2);",
        "if (table[0]) return 1;",
    ],
)
def test_arithmetic_on_secrets_of_a_warp_compiles(line: str) -> None:
    assert compiles(line, WARP_PROGRAM)
