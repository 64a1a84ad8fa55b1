# Compiler flags, one NAME = FLAGS a line: the Makefile includes this file, setup.py and the tests read it.
C_STANDARD = -std=c11
CXX_STANDARD = -std=c++17
WARNINGS = -Wall -Wextra

# What is installed. -g1: a backtrace has line numbers; the rest of the debug information would take as long as half of the
# compilation. Python's own flags come before these.
OPTIMIZED = -O2 -g1 -fvisibility=hidden -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2

# The kernels for processors: the provider module, which is linked with them, needs no libstdc++ then.
NO_CXX_RUNTIME = -fno-exceptions -fno-rtti -fno-threadsafe-statics

# kernels/cpu/batch_ifma.cpp alone, and it runs only where the processor has AVX-512 IFMA. The compiler's own vectors stay
# out of it, so that a test can tell from its instructions that no secret leaves vector registers for an address.
IFMA_x86_64 = -mavx512f -mavx512dq -mavx512ifma -fno-tree-vectorize -fno-tree-slp-vectorize

# kernels/host/threads32.cpp and threads52.cpp: a warp's 32 threads in vectors, and rounding toward zero.
WARP = -ffp-contract=off -frounding-math
WARP_x86_64 = -mavx2 -mfma
