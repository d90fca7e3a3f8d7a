#pragma once
double sqrt(double), log(double), sin(double), cos(double), tan(double), atan2(double, double), fabs(double), exp(double), pow(double, double);
float sqrtf(float), logf(float), sinf(float), cosf(float), fabsf(float), expf(float);
