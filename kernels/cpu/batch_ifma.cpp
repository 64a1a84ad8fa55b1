/* The batches on AVX-512 IFMA. Compiled with IFMA of flags.mk, and only called where the processor has it. */
#if defined(__x86_64__)

#include "cpu/vector_ifma.h"

#include "cpu/batch.h"
#include "cpu/batches.h"

namespace gpk {

void private_ifma(void *workspace, const PrivateBatch &batch) { private_batch<Vec8>(workspace, batch); }
void modexp_ifma(void *workspace, const ModexpBatch &batch) { modexp_batch<Vec8>(workspace, batch); }

} // namespace gpk

#endif
