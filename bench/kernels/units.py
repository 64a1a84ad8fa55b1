"""Every kernel that can be compiled, whether the backend uses it or not."""

from gpu_provider.kernels import cubins
from gpu_provider.kernels.launch import Kernel

WINDOWS = (3, 4, 5)


def all_units() -> list[cubins.Unit]:
    """Both arithmetics, whatever the GPU, and every window: to compare them is the point. The backend's come first."""
    others = (unit for window in WINDOWS for unit in cubins.units(cubins.Arithmetic, window))
    return list(dict.fromkeys([*cubins.units(cubins.Arithmetic), *others]))


def unit_of(kernel: Kernel) -> cubins.Unit:
    """The unit that a kernel was compiled in."""
    return next(unit for unit in all_units() if unit.kernel(kernel.operation, kernel.index) == kernel)
