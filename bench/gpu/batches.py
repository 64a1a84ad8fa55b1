"""Keys and batches on a device for the GPU suite: what the CUDA backend does in C, for one kernel at a time."""

import functools
import secrets

import numpy as np
from cryptography.hazmat.primitives.asymmetric import rsa
from numpy.typing import NDArray

from gpu_provider.backends.cuda.device import MODEXP_LAUNCH, PRIVATE_LAUNCH
from gpu_provider.kernels import cubins, warp
from gpu_provider.kernels.warp import Operation

from .device import Device, Variant, layouts

KEYS = 4


@functools.cache
def private_keys(bits: int) -> list[rsa.RSAPrivateNumbers]:
    """Several, made for this process alone."""
    return [rsa.generate_private_key(65537, bits).private_numbers() for _ in range(KEYS)]


@functools.cache
def _records(arithmetic: cubins.Arithmetic, class_bytes: int, sizes: tuple[int, ...]) -> NDArray[np.uint8]:
    keys = [key for bits in sizes for key in private_keys(bits)]
    records = np.zeros((len(keys), layouts()[arithmetic, class_bytes].key), np.uint8)
    for record, key in zip(records, keys, strict=True):
        public = key.public_numbers
        warp.key_record(
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
    """A batch of private operations of one variant, with keys of these sizes by turns. Can be launched again and again,
    with more or fewer of its rows."""

    def __init__(self, device: Device, variant: Variant, rows: int, sizes: tuple[int, ...]) -> None:
        self._device, self._variant, self._rows = device, variant, rows
        keys = [key for bits in sizes for key in private_keys(bits)]
        layout, width = layouts()[variant.arithmetic, variant.class_bytes], variant.class_bytes
        records = _records(variant.arithmetic, width, sizes)
        index = np.arange(rows, dtype=np.uint32)
        self.moduli = [keys[row % len(keys)].public_numbers.n for row in range(rows)]
        self.inputs = device.host_array((rows, width), np.uint8)
        self.outputs = device.host_array((rows, width), np.uint8)
        self.ok = device.host_array((rows,), np.uint8)
        self.set_inputs([secrets.randbelow(n) for n in self.moduli])
        self._arguments = np.zeros(1, PRIVATE_LAUNCH)
        arguments = self._arguments[0]
        arguments["exponent_bits"] = max(max(key.p.bit_length(), key.q.bit_length()) for key in keys)
        arguments["any_e"] = functools.reduce(int.__or__, (key.public_numbers.e for key in keys))
        arguments["records"] = self._put(records)
        arguments["record_of_row"] = self._put(index % len(keys))
        arguments["pair_of_row"] = self._put(index)
        arguments["pairs"] = device.allocate(rows * layout.pair)
        arguments["inputs"] = device.allocate(self.inputs.nbytes)
        arguments["outputs"] = device.allocate(self.outputs.nbytes)
        arguments["ok"] = device.allocate(rows)

    def _put(self, array: NDArray[np.generic]) -> int:
        address = self._device.allocate(array.nbytes)
        self._device.upload(address, array)
        self._device.wait()
        return address

    def set_inputs(self, numbers: list[int]) -> None:
        self.inputs[:] = to_rows(numbers, self._variant.class_bytes)

    def make_pairs(self) -> None:
        """As many as there are rows; waits for them."""
        random = np.frombuffer(secrets.token_bytes(self.inputs.nbytes), np.uint8)
        arguments = self._arguments.copy()
        arguments["count"], arguments["inputs"] = self._rows, self._put(random)
        self._device.launch(self._variant, Operation.MAKE_PAIRS, arguments)
        self._device.wait()

    def upload(self, rows: int) -> None:
        self._device.upload(int(self._arguments[0]["inputs"]), self.inputs[:rows])

    def launch(self, rows: int) -> None:
        self._arguments["count"] = rows
        self._device.launch(self._variant, Operation.PRIVATE, self._arguments)

    def download(self, rows: int) -> None:
        self._device.download(self.outputs[:rows], int(self._arguments[0]["outputs"]))
        self._device.download(self.ok[:rows], int(self._arguments[0]["ok"]))


def modexp(
    device: Device, variant: Variant, bases: list[int], exponents: NDArray[np.uint8], moduli: list[int], *, bits: int
) -> list[int]:
    """``bases[i] ** exponents[i] % moduli[i]`` for the low ``bits`` of the exponents, as the device says."""
    distinct = sorted(set(moduli))
    records = np.zeros((len(distinct), layouts()[variant.arithmetic, variant.class_bytes].modulus), np.uint8)
    for record, modulus in zip(records, distinct, strict=True):
        warp.modulus_record(record, variant.arithmetic.radix_bits, variant.class_bytes, modulus)
    outputs = device.host_array((len(bases), variant.class_bytes), np.uint8)
    place = {modulus: index for index, modulus in enumerate(distinct)}
    arguments = np.zeros(1, MODEXP_LAUNCH)
    launch = arguments[0]
    launch["count"], launch["exponent_bits"], launch["exponent_stride"] = len(bases), bits, exponents.shape[1]
    for name, array in (
        ("modulus_of_row", np.array([place[modulus] for modulus in moduli], np.uint32)),
        ("moduli", records),
        ("bases", to_rows(bases, variant.class_bytes)),
        ("exponents", exponents),
    ):
        launch[name] = device.allocate(array.nbytes)
        device.upload(int(launch[name]), array)
        device.wait()
    launch["outputs"] = device.allocate(outputs.nbytes)
    device.launch(variant, Operation.MODEXP, arguments)
    device.download(outputs, int(launch["outputs"]))
    device.wait()
    return to_numbers(outputs)
