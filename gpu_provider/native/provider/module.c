/* The entry point by which programs load the provider from a file. */
#include "provider/provider.h"

__attribute__((visibility("default"))) OSSL_provider_init_fn OSSL_provider_init;

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out,
                       void **provider_context)
{
    return gp_provider_init(handle, in, out, provider_context);
}
