# Compiler flags, one NAME = FLAGS a line: the Makefile includes this file, setup.py and the tests read it.
C_STANDARD = -std=c11
CXX_STANDARD = -std=c++17
WARNINGS = -Wall -Wextra

# What is installed. Python's own flags come before these and have -g, whose debug information would be six times as large
# as the code. The names of functions stay, for backtraces.
OPTIMIZED = -O2 -g0 -fvisibility=hidden -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2

# The kernels for processors: the provider module, which is linked with them, needs no libstdc++ then.
NO_CXX_RUNTIME = -fno-exceptions -fno-rtti -fno-threadsafe-statics

# kernels/cpu/batch_ifma.cpp alone, and it runs only where the processor has AVX-512 IFMA. The compiler's own vectors stay
# out of it, so that a test can tell from its instructions that no secret leaves vector registers for an address.
IFMA_x86_64 = -mavx512f -mavx512dq -mavx512ifma -fno-tree-vectorize -fno-tree-slp-vectorize

# kernels/host/threads32.cpp and threads52.cpp: a warp's 32 threads in vectors, and rounding toward zero.
WARP = -ffp-contract=off -frounding-math
WARP_x86_64 = -mavx2 -mfma
