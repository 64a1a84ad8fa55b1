/* The entry point by which programs load the provider from a file. */
#include <pthread.h>

#include "provider/provider.h"
#include "queue/consumer.h"

__attribute__((visibility("default"))) OSSL_provider_init_fn OSSL_provider_init;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void set_kernels(void)
{
    static struct gpk_functions portable;

    portable = *gpk_functions_of(GPK_ISA_PORTABLE);
    portable.lanes = GP_SMALL_BATCH; /* in a group, though one after another */
    gp_provider_kernels.portable = &portable;
    gp_provider_kernels.fast = gpk_functions_of(GPK_ISA_IFMA);
}

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                       void **provider_context)
{
    pthread_once(&once, set_kernels);
    return gp_provider_init(handle, in, out, provider_context);
}
