"""Keys and batches for single kernels: what the CUDA backend does in C."""

import functools
import secrets

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa
from numpy.typing import NDArray

from gpu_provider.kernels.cubins import Arithmetic, Unit
from gpu_provider.kernels.launch import MODEXP_LAUNCH, PRIVATE_LAUNCH, Operation, key_record, modulus_record

from .launcher import Launcher

KEYS = 4


@functools.cache
def private_keys(bits: int) -> list[rsa.RSAPrivateNumbers]:
    """Some keys, made for this process alone."""
    return [rsa.generate_private_key(65537, bits).private_numbers() for _ in range(KEYS)]


@functools.cache
def _records(arithmetic: Arithmetic, class_bytes: int, record_bytes: int, sizes: tuple[int, ...]) -> NDArray[np.uint8]:
    keys = [key for bits in sizes for key in private_keys(bits)]
    records = np.zeros((len(keys), record_bytes), np.uint8)
    for record, key in zip(records, keys, strict=True):
        public = key.public_numbers
        key_record(
            record, arithmetic.radix_bits, class_bytes,
            n=public.n, e=public.e, p=key.p, q=key.q, dp=key.dmp1, dq=key.dmq1, qinv=key.iqmp,
        )  # fmt: skip
    return records


def to_rows(numbers: list[int], class_bytes: int) -> NDArray[np.uint8]:
    joined = b"".join(number.to_bytes(class_bytes, "little") for number in numbers)
    return np.frombuffer(joined, np.uint8).reshape(len(numbers), class_bytes)


def to_numbers(rows: NDArray[np.uint8]) -> list[int]:
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


class PrivateBatch:
    """A batch of private operations by one unit, with keys of these sizes in turn. It can be launched again and
    again, with more or fewer of its rows."""

    def __init__(self, launcher: Launcher, unit: Unit, rows: int, sizes: tuple[int, ...]) -> None:
        self._launcher, self._unit, self._rows = launcher, unit, rows
        keys = [key for bits in sizes for key in private_keys(bits)]
        kernel, width = launcher.kernels[unit, Operation.PRIVATE], unit.bytes
        records = _records(unit.arithmetic, width, kernel.record_bytes, sizes)
        index = np.arange(rows, dtype=np.uint32)
        self.moduli = [keys[row % len(keys)].public_numbers.n for row in range(rows)]
        self.inputs = launcher.host_array((rows, width), np.uint8)
        self.outputs = launcher.host_array((rows, width), np.uint8)
        self.ok = launcher.host_array((rows,), np.uint8)
        self.set_inputs([secrets.randbelow(n) for n in self.moduli])
        self._arguments = np.zeros(1, PRIVATE_LAUNCH)
        arguments = self._arguments[0]
        arguments["exponent_bits"] = max(max(key.p.bit_length(), key.q.bit_length()) for key in keys)
        arguments["any_e"] = functools.reduce(int.__or__, (key.public_numbers.e for key in keys))
        arguments["records"] = launcher.put(records)
        arguments["record_of_row"] = launcher.put(index % len(keys))
        arguments["pair_of_row"] = launcher.put(index)
        arguments["pairs"] = launcher.allocate(rows * kernel.pair_bytes)
        arguments["inputs"] = launcher.allocate(self.inputs.nbytes)
        arguments["outputs"] = launcher.allocate(self.outputs.nbytes)
        arguments["ok"] = launcher.allocate(rows)

    def set_inputs(self, numbers: list[int]) -> None:
        self.inputs[:] = to_rows(numbers, self._unit.bytes)

    def make_pairs(self) -> None:
        """Makes a pair for each row, and waits for them."""
        random = np.frombuffer(secrets.token_bytes(self.inputs.nbytes), np.uint8)
        arguments = self._arguments.copy()
        arguments["count"], arguments["inputs"] = self._rows, self._launcher.put(random)
        self._launcher.launch(self._unit, Operation.MAKE_PAIRS, arguments)
        self._launcher.wait()

    def upload(self, rows: int) -> None:
        self._launcher.upload(int(self._arguments[0]["inputs"]), self.inputs[:rows])

    def launch(self, rows: int) -> None:
        self._arguments["count"] = rows
        self._launcher.launch(self._unit, Operation.PRIVATE, self._arguments)

    def download(self, rows: int) -> None:
        self._launcher.download(self.outputs[:rows], int(self._arguments[0]["outputs"]))
        self._launcher.download(self.ok[:rows], int(self._arguments[0]["ok"]))


def modexp(
    launcher: Launcher,
    unit: Unit,
    bases: list[int],
    exponents: NDArray[np.uint8],
    moduli: list[int],
    *,
    bits: int,
) -> list[int]:
    """``bases[i] ** exponents[i] % moduli[i]`` for the low ``bits`` of the exponents, as the device computes it."""
    distinct = sorted(set(moduli))
    kernel = launcher.kernels[unit, Operation.MODEXP]
    records = np.zeros((len(distinct), kernel.record_bytes), np.uint8)
    for record, modulus in zip(records, distinct, strict=True):
        modulus_record(record, unit.arithmetic.radix_bits, unit.bytes, modulus)
    outputs = launcher.host_array((len(bases), unit.bytes), np.uint8)
    place = {modulus: index for index, modulus in enumerate(distinct)}
    arguments = np.zeros(1, MODEXP_LAUNCH)
    launch = arguments[0]
    launch["count"], launch["exponent_bits"], launch["exponent_stride"] = len(bases), bits, exponents.shape[1]
    for name, array in (
        ("modulus_of_row", np.array([place[modulus] for modulus in moduli], np.uint32)),
        ("moduli", records),
        ("bases", to_rows(bases, unit.bytes)),
        ("exponents", exponents),
    ):
        launch[name] = launcher.put(array)
    launch["outputs"] = launcher.allocate(outputs.nbytes)
    launcher.launch(unit, Operation.MODEXP, arguments)
    launcher.download(outputs, int(launch["outputs"]))
    launcher.wait()
    return to_numbers(outputs)
