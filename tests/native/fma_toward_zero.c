/* a b + c, rounded once toward zero, element by element: for ptx_machine.py. */
#include <fenv.h>
#include <math.h>

void fma_toward_zero(int count, const double *a, const double *b, const double *c, double *result)
{
    const int before = fegetround();

    fesetround(FE_TOWARDZERO);
    for (int i = 0; i < count; i++)
        result[i] = fma(a[i], b[i], c[i]);
    fesetround(before);
}
