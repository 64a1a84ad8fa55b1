"""Arrays of other libraries, by the DLPack protocol: JAX's, PyTorch's and others become NumPy's or CuPy's, uncopied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from gpu_provider.backends.cuda.device import is_cuda_array
from gpu_provider.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gpu_provider.backends.cuda.device import CudaArray
    from gpu_provider.library.operands import AnyOperand, Operand

__all__ = ["DlpackArray", "adopted", "adopted_on_host"]

_CPU, _CUDA = 1, 2  # kDLCPU and kDLCUDA of dlpack.h


class DlpackArray(Protocol):
    """An array of any library, in the processor's memory or an NVIDIA GPU's."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


def adopted(operand: AnyOperand, name: str) -> Operand | CudaArray:
    """The operand, as an array of NumPy's or CuPy's if it has DLPack's methods. NumPy's own arrays, and those with
    ``__cuda_array_interface__``, stay as they are. Raises InputError."""
    if isinstance(operand, np.ndarray) or not hasattr(operand, "__dlpack_device__"):
        return cast("Operand | CudaArray", operand)
    given: Any = operand
    device = int(given.__dlpack_device__()[0])
    if device == _CUDA and is_cuda_array(operand):
        return operand
    try:
        if device == _CUDA:
            from cupy import from_dlpack  # noqa: PLC0415 (slow to import, and may not be installed)

            return cast("CudaArray", from_dlpack(given))
        if device == _CPU:
            return cast("NDArray[np.uint64]", np.from_dlpack(given))
    except ImportError:
        raise InputError(f"the {name} array is on a GPU, which takes CuPy: install gpu-provider[cuda13]") from None
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the {name} array can't be taken over by DLPack: {error}") from error
    raise InputError(f"the {name} array is on a device of DLPack's type {device}; copy it to the host or a CUDA device")


def adopted_on_host(operand: AnyOperand, name: str) -> Operand:
    """The same for what must not be on a GPU."""
    found = adopted(operand, name)
    if is_cuda_array(found):
        raise InputError(f"the {name} array is on a GPU; call modexp(), which computes there, or copy it to the host")
    return found
