"""sign_many(), decrypt_many(), verify_many(): against ``cryptography``, with rows that fail among others that don't."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
import weakref
from itertools import groupby
from operator import itemgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest
import wycheproof
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding as paddings
from cryptography.hazmat.primitives.asymmetric import rsa, utils
from rsa_keys import private_key

from gpu_provider import (
    BatchingProvider,
    GpuProviderError,
    InputError,
    Key,
    OperationError,
    ProviderClosedError,
    ProviderConfig,
    RowsError,
)
from gpu_provider.backends.libcrypto import LibcryptoBackend
from gpu_provider.library.many import PIECES_IN_FLIGHT, ROWS_OF_A_PIECE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu_provider.backends.base import Batch
    from gpu_provider.testing import HeldBackend

SHA256 = hashes.SHA256()
PKCS1 = paddings.PKCS1v15()
PSS = paddings.PSS(paddings.MGF1(SHA256), paddings.PSS.MAX_LENGTH)
OAEP = paddings.OAEP(paddings.MGF1(SHA256), SHA256, None)
SIZES = (2048, 2049, 3072)
MORE_THAN_IN_FLIGHT = ROWS_OF_A_PIECE * (PIECES_IN_FLIGHT + 1) + 3


@pytest.fixture(scope="module")
def provider() -> Iterator[BatchingProvider]:
    with BatchingProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def key(provider: BatchingProvider) -> Key:
    return provider.load_key(private_key(2048))


@pytest.fixture(scope="module")
def keys(provider: BatchingProvider) -> list[Key]:
    """Of several sizes and size classes, in turn."""
    loaded = [provider.load_key(private_key(bits)) for bits in SIZES]
    return [key for key, _ in zip(itertools.cycle(loaded), range(20), strict=False)]


def texts(count: int) -> list[bytes]:
    return [b"message %d" % number for number in range(count)]


class TestSign:
    @pytest.mark.parametrize("padding", [PKCS1, PSS], ids=["PKCS1", "PSS"])
    def test_a_key_for_each_message(
        self, provider: BatchingProvider, keys: list[Key], padding: paddings.AsymmetricPadding
    ) -> None:
        signatures = provider.sign_many(keys, texts(20), padding, SHA256)
        for key, signature, text in zip(keys, signatures, texts(20), strict=True):
            private_key(key.bits).public_key().verify(signature, text, padding, SHA256)

    def test_more_messages_than_are_in_flight_come_in_order(self, provider: BatchingProvider, key: Key) -> None:
        done: list[int] = []
        count = MORE_THAN_IN_FLIGHT
        signatures = provider.sign_many(
            key, (b"%d" % (i % 7) for i in range(count)), PKCS1, SHA256, progress=done.append
        )
        expected = [private_key(2048).sign(b"%d" % i, PKCS1, SHA256) for i in range(7)]
        assert signatures == [expected[i % 7] for i in range(count)]
        assert done == [*range(ROWS_OF_A_PIECE, count, ROWS_OF_A_PIECE), count]

    def test_messages_are_not_kept(self, provider: BatchingProvider, key: Key) -> None:
        """Hazard: messages of a gigabyte together, out of a generator."""
        made: list[weakref.ref[Message]] = []

        class Message(bytearray):
            pass

        def messages() -> Iterator[bytearray]:
            for _ in range(50):
                assert sum(message() is not None for message in made) < 4
                message = Message(b"text")
                made.append(weakref.ref(message))
                yield message

        assert len(set(provider.sign_many(key, messages(), PKCS1, SHA256))) == 1

    def test_no_messages(self, provider: BatchingProvider, key: Key) -> None:
        assert provider.sign_many(key, [], PKCS1, SHA256) == []
        assert provider.sign_many([], [], PKCS1, SHA256) == []

    def test_rows_that_fail_do_not_disturb_the_others(self, provider: BatchingProvider, key: Key) -> None:
        closed = provider.load_key(private_key(2048))
        closed.close()
        digest = bytes(32)
        rows: list[tuple[Any, Any]] = [(key, digest), (key, b"short"), (closed, digest), (key, "text"), (key, digest)]
        messages = (message for _, message in rows)
        with pytest.raises(RowsError, match=r"3 of 5 rows failed; the one at index 1: ValueError") as raised:
            provider.sign_many((key for key, _ in rows), messages, PKCS1, utils.Prehashed(SHA256))
        good = private_key(2048).sign(digest, PKCS1, utils.Prehashed(SHA256))
        assert raised.value.results == [good, None, None, None, good]
        assert {row: type(error) for row, error in raised.value.errors.items()} == {
            1: ValueError,
            2: ProviderClosedError,
            3: TypeError,
        }

    def test_what_fits_one_key_may_be_too_long_for_another(self, provider: BatchingProvider) -> None:
        small, large = (provider.load_key(private_key(bits)) for bits in (2048, 3072))
        pss = paddings.PSS(paddings.MGF1(SHA256), 300)
        with pytest.raises(RowsError) as raised:
            provider.sign_many([small, large, small], texts(3), pss, SHA256)
        assert [result is None for result in raised.value.results] == [True, False, True]
        assert "salt length too long" in str(raised.value.errors[0])

    def test_an_error_can_be_pickled(self, provider: BatchingProvider, key: Key) -> None:
        """Hazard: a program that signs in a process of its own gets a second error instead of this one."""
        with pytest.raises(RowsError) as raised:
            provider.sign_many(key, [b"", 5], PKCS1, SHA256)  # type: ignore[list-item]
        copy = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 (our own)
        assert (str(copy), copy.results) == (str(raised.value), raised.value.results)


class TestDecrypt:
    @pytest.mark.parametrize("padding", [PKCS1, OAEP], ids=["PKCS1", "OAEP"])
    def test_a_key_for_each_ciphertext(
        self, provider: BatchingProvider, keys: list[Key], padding: paddings.AsymmetricPadding
    ) -> None:
        ciphertexts = [key.public_key().encrypt(text, padding) for key, text in zip(keys, texts(20), strict=True)]
        assert provider.decrypt_many(keys, ciphertexts, padding) == texts(20)

    def test_bad_padding_fails_alone(self, provider: BatchingProvider, key: Key) -> None:
        good = [key.public_key().encrypt(text, OAEP) for text in texts(9)]
        bad = {2: b"short", 4: bytes(255) + b"\2", 8: b"\xff" * 256}
        with pytest.raises(
            RowsError, match="index 2: ValueError: Ciphertext length must be equal to key size"
        ) as raised:
            provider.decrypt_many(key, [bad.get(row, ciphertext) for row, ciphertext in enumerate(good)], OAEP)
        assert raised.value.results == [None if row in bad else text for row, text in enumerate(texts(9))]
        assert str(raised.value.errors[4]) == "Decryption failed"

    def test_bad_pkcs1_padding_gives_the_message_that_openssl_gives(
        self, provider: BatchingProvider, keys: list[Key]
    ) -> None:
        """Hazard: an oracle for decryption (Bleichenbacher)."""
        ciphertexts = [(row + 2).to_bytes(key.bytes, "big") for row, key in enumerate(keys)]
        assert provider.decrypt_many(keys, ciphertexts, PKCS1) == [
            private_key(key.bits).decrypt(ciphertext, PKCS1) for key, ciphertext in zip(keys, ciphertexts, strict=True)
        ]


class TestVerify:
    @pytest.mark.parametrize(
        ("signing", "verifying", "verdict"),
        [
            (PKCS1, PKCS1, True),
            (PKCS1, PSS, False),
            (PSS, PSS, True),
            (PSS, paddings.PSS(paddings.MGF1(SHA256), paddings.PSS.AUTO), True),
            (PSS, paddings.PSS(paddings.MGF1(SHA256), 32), False),
            (PSS, paddings.PSS(paddings.MGF1(hashes.SHA384()), paddings.PSS.MAX_LENGTH), False),
        ],
    )
    def test_paddings(
        self, provider: BatchingProvider, keys: list[Key], signing: Any, verifying: Any, verdict: bool
    ) -> None:
        signatures = provider.sign_many(keys, texts(20), signing, SHA256)
        assert provider.verify_many(keys, signatures, texts(20), verifying, SHA256) == [verdict] * 20

    def test_forgeries_among_signatures(self, provider: BatchingProvider, key: Key) -> None:
        (good,) = provider.sign_many(key, [b"text"], PKCS1, SHA256)
        other = bytes([good[0], good[1] ^ 1]) + good[2:]
        too_large = (int.from_bytes(good, "big") + key.n).to_bytes(257, "big")
        signatures = [good, other, good, b"", b"\0" + good, good[:-1], b"\xff" * 256, too_large, good]
        messages = [b"text", b"text", b"texts", *[b"text"] * 6]
        verdicts = provider.verify_many(key, signatures, messages, PKCS1, SHA256)
        assert verdicts == [True, False, False, False, False, False, False, False, True]

    def test_public_keys_of_any_size_and_exponent(self, provider: BatchingProvider) -> None:
        plain = [private_key(1024), private_key(2048, 3), private_key(3072), private_key(2048)]
        signatures = [key.sign(b"text", PKCS1, SHA256) for key in plain]
        public = [key.public_key() for key in plain]
        assert provider.verify_many(public, signatures, [b"text"] * 4, PKCS1, SHA256) == [True] * 4
        assert provider.verify_many(public[::-1], signatures, [b"text"] * 4, PKCS1, SHA256) == [False] * 4

    def test_what_is_no_signature_is_an_error(self, provider: BatchingProvider, key: Key) -> None:
        (good,) = provider.sign_many(key, [b"text"], PKCS1, SHA256)
        with pytest.raises(RowsError) as raised:
            provider.verify_many(key, [good, "text", good], [b"text"] * 3, PKCS1, SHA256)  # type: ignore[list-item]
        assert raised.value.results == [True, None, True]

    @pytest.mark.parametrize("name", wycheproof.names("rsa_signature_2048_sha256_test", "rsa_pss_"))
    def test_wycheproof(self, provider: BatchingProvider, name: str) -> None:
        """``acceptable`` leaves the verdict open."""
        for group, cases in groupby(wycheproof.cases(name), itemgetter(0)):
            tests = [test for _, test in cases if test["result"] != "acceptable"]
            key = serialization.load_der_public_key(bytes.fromhex(group["publicKeyDer"]))
            assert isinstance(key, rsa.RSAPublicKey)
            algorithm, padding = algorithm_of(group["sha"]), PKCS1
            if "pss" in name:
                padding = paddings.PSS(paddings.MGF1(algorithm_of(group["mgfSha"])), group["sLen"])
            signatures, messages = ([bytes.fromhex(test[column]) for test in tests] for column in ("sig", "msg"))
            verdicts = provider.verify_many(key, signatures, messages, padding, algorithm)
            assert verdicts == [test["result"] == "valid" for test in tests]

    def test_random_salts_and_sizes_agree_with_cryptography(self, provider: BatchingProvider) -> None:
        for bits in (2048, 2049, 2050, 2055):
            plain = private_key(bits)
            for made, checked in itertools.product((0, 5, 32), (0, 5, 32, paddings.PSS.AUTO)):
                signature = plain.sign(b"text", paddings.PSS(paddings.MGF1(SHA256), made), SHA256)
                pss = paddings.PSS(paddings.MGF1(SHA256), checked)
                (verdict,) = provider.verify_many(plain.public_key(), [signature], [b"text"], pss, SHA256)
                assert verdict == verifies(plain.public_key(), signature, pss)


def algorithm_of(name: str) -> hashes.HashAlgorithm:
    return getattr(hashes, name.replace("-", "").replace("/", "_"))()  # type: ignore[no-any-return]


def verifies(key: rsa.RSAPublicKey, signature: bytes, padding: paddings.AsymmetricPadding) -> bool:
    try:
        key.verify(signature, b"text", padding, SHA256)
    except InvalidSignature:
        return False
    return True


class TestArguments:
    def test_what_is_wrong_with_all_rows_is_said_at_once(self, provider: BatchingProvider, key: Key) -> None:
        def never() -> Iterator[bytes]:
            pytest.fail("a message was taken")
            yield b""

        with pytest.raises(UnsupportedAlgorithm):
            provider.sign_many(key, never(), OAEP, SHA256)
        with pytest.raises(UnsupportedAlgorithm):
            provider.decrypt_many(key, never(), PSS)
        with pytest.raises(TypeError, match=r"Expected instance of hashes.HashAlgorithm"):
            provider.verify_many(key, never(), never(), PKCS1, None)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="the key is of type NoneType"):
            provider.sign_many(None, never(), PKCS1, SHA256)  # type: ignore[arg-type]

    def test_one_message_is_no_list_of_messages(self, provider: BatchingProvider, key: Key) -> None:
        """Hazard: bytes are an iterable, of ints."""
        with pytest.raises(InputError, match="messages must be a list of bytes, or another iterable, not bytes"):
            provider.sign_many(key, b"message", PKCS1, SHA256)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="signatures must be a list of bytes, or another iterable, not NoneType"):
            provider.verify_many(key, None, [b""], PKCS1, SHA256)  # type: ignore[arg-type]

    def test_columns_of_different_lengths(self, provider: BatchingProvider, key: Key) -> None:
        with pytest.raises(InputError, match="there are only 2 messages, but more keys; give as many of each"):
            provider.sign_many([key] * 3, texts(2), PKCS1, SHA256)
        with pytest.raises(InputError, match="there are only 1 signatures, but more messages"):
            provider.verify_many(key, [b""], texts(2), PKCS1, SHA256)

    def test_a_key_of_another_provider(self, key: Key) -> None:
        with BatchingProvider() as other:
            with pytest.raises(InputError, match="loaded by another provider"):
                other.sign_many(key, texts(2), PKCS1, SHA256)
            with pytest.raises(RowsError, match="loaded by another provider") as raised:
                other.sign_many([key, other.load_key(private_key(2048))], texts(2), PKCS1, SHA256)
            assert list(raised.value.errors) == [0]


class Stopped(Exception):  # noqa: N818 (not an error)
    pass


def stop(_: int) -> None:
    raise Stopped


class TestWaiting:
    def test_as_a_future(self, provider: BatchingProvider, key: Key) -> None:
        threads = set()
        signatures = provider.submit_sign_many(
            key, texts(3), PKCS1, SHA256, progress=lambda _: threads.add(threading.current_thread())
        ).result(30)
        assert threads.isdisjoint({threading.current_thread()})
        assert provider.submit_verify_many(key, signatures, texts(3), PKCS1, SHA256).result(30) == [True] * 3
        ciphertexts = [key.public_key().encrypt(text, OAEP) for text in texts(3)]
        assert provider.submit_decrypt_many(key, ciphertexts, OAEP).result(30) == texts(3)
        with pytest.raises(RowsError):
            provider.submit_decrypt_many(key, [b""], OAEP).result(30)

    def test_a_cancelled_future_takes_no_more_messages(self, provider: BatchingProvider, key: Key) -> None:
        """Hazard: a generator without an end."""
        ended = threading.Event()

        def messages() -> Iterator[bytes]:
            try:
                yield from itertools.repeat(b"")
            finally:
                ended.set()

        assert provider.submit_sign_many(key, messages(), PKCS1, SHA256).cancel()
        assert ended.wait(30)

    async def test_awaited(self, provider: BatchingProvider, key: Key) -> None:
        count = MORE_THAN_IN_FLIGHT
        signatures = await provider.sign_many_async(key, (b"text" for _ in range(count)), PKCS1, SHA256)
        assert signatures == [private_key(2048).sign(b"text", PKCS1, SHA256)] * count
        assert all(await provider.verify_many_async(key, signatures[:9], [b"text"] * 9, PKCS1, SHA256))
        ciphertexts = [key.public_key().encrypt(text, OAEP) for text in texts(3)]
        assert await provider.decrypt_many_async(key, ciphertexts, OAEP) == texts(3)
        with pytest.raises(RowsError):
            await provider.decrypt_many_async(key, [b""], OAEP)

    async def test_other_coroutines_have_their_turn_while_messages_are_taken(
        self, provider: BatchingProvider, key: Key
    ) -> None:
        """Hazard: a server that answers nobody while it prepares thousands of messages."""
        turns = 0

        async def another() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(another())
        seen = []

        def messages() -> Iterator[bytes]:
            for _ in range(3 * ROWS_OF_A_PIECE):
                seen.append(turns)
                yield b""

        await provider.sign_many_async(key, messages(), PKCS1, SHA256)
        task.cancel()
        first_of_pieces = seen[::ROWS_OF_A_PIECE]
        assert first_of_pieces == sorted(set(first_of_pieces))

    async def test_cancelled_while_it_waits(self, held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
        key = held_provider.load_key(private_key(2048))
        task = asyncio.create_task(held_provider.sign_many_async(key, texts(5000), PKCS1, SHA256))
        await asyncio.to_thread(held_backend.wait_for_batch)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held_backend.release_all()
        assert len(await held_provider.sign_many_async(key, texts(2), PKCS1, SHA256)) == 2

    @pytest.mark.parametrize("end", ["progress", "messages"])
    def test_the_programs_own_exceptions_end_the_call(self, provider: BatchingProvider, key: Key, end: str) -> None:
        def messages() -> Iterator[bytes]:
            yield from texts(2 * ROWS_OF_A_PIECE)
            if end == "messages":
                raise Stopped
            yield from itertools.repeat(b"")

        with pytest.raises(Stopped):
            provider.sign_many(key, messages(), PKCS1, SHA256, progress=stop if end == "progress" else None)

    def test_a_provider_that_is_closed_meanwhile(self) -> None:
        """Hazard: a generator without an end, whose rows all fail."""
        provider = BatchingProvider()
        with provider:
            key = provider.load_key(private_key(2048))
            with pytest.raises(ProviderClosedError):
                provider.sign_many(key, itertools.repeat(b""), PKCS1, SHA256, progress=lambda _: provider.close())
        with pytest.raises(ProviderClosedError):
            provider.sign_many(key, texts(1), PKCS1, SHA256)

    def test_a_futures_callback_may_not_wait(self, held_provider: BatchingProvider, held_backend: HeldBackend) -> None:
        """Hazard: the thread that runs the callback would wait for itself."""
        key = held_provider.load_key(private_key(2048))
        errors: SimpleQueue[GpuProviderError] = SimpleQueue()

        def callback(_: object) -> None:
            try:
                held_provider.sign_many(key, texts(1), PKCS1, SHA256)
            except GpuProviderError as error:
                errors.put(error)

        held_provider.submit(key, 2).add_done_callback(callback)
        held_backend.release_all()
        assert "must not wait" in str(errors.get(timeout=30))


class RefusesOne(LibcryptoBackend):
    """Has no result for one number, whoever asks."""

    def __init__(self, number: bytes) -> None:
        super().__init__(2)
        self._number = number

    def private_op(self, batch: Batch) -> None:
        super().private_op(batch)
        batch.ok[[row.tobytes().startswith(self._number) for row in batch.inputs]] = 0


def test_only_the_row_that_nobody_can_compute_fails() -> None:
    """Hazard: one key whose numbers don't fit together takes the signatures of all others along."""
    ciphertexts = [number.to_bytes(256, "big") for number in range(100, 140)]
    backend = RefusesOne(bytes([105, 0, 0, 0]))
    with BatchingProvider(ProviderConfig(), backends=[backend]) as provider:
        key = provider.load_key(private_key(2048))
        with pytest.raises(RowsError) as raised:
            provider.decrypt_many(key, ciphertexts, PKCS1)
    assert list(raised.value.errors) == [5]
    assert isinstance(raised.value.errors[5], OperationError)
    expected: list[bytes | None] = [private_key(2048).decrypt(ciphertext, PKCS1) for ciphertext in ciphertexts]
    expected[5] = None
    assert raised.value.results == expected
