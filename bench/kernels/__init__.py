"""The kernels: their speed and timing on this processor, and the machine code that they become on a GPU."""
