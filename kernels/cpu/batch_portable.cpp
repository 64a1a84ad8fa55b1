/* The batches on any processor. */
#include "cpu/vector_portable.h"

#include "cpu/batch.h"
#include "cpu/batches.h"

namespace gpk {

void private_portable(void *workspace, const PrivateBatch &batch) { private_batch<Word>(workspace, batch); }
void modexp_portable(void *workspace, const ModexpBatch &batch) { modexp_batch<Word>(workspace, batch); }

} // namespace gpk
