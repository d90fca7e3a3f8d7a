#pragma once
/* Darwin on 64-bit ARM. */
typedef struct { unsigned long long fpsr, fpcr; } fenv_t;
extern const fenv_t _FE_DFL_DISABLE_DENORMS_ENV;
#define FE_DFL_DISABLE_DENORMS_ENV (&_FE_DFL_DISABLE_DENORMS_ENV)
int fesetenv(const fenv_t *);
