/* The product of benches/cost.rs by ggml of May 2023: every weight row times every activation row by ggml's dot product of the format,
 * in the order of its matrix product, one thread.
 *
 *   ggml_cost FORMAT ROWS COLS N CALLS
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"

static float number(unsigned long long *state)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (float)(*state >> 40) / (float)(1 << 23) - 1.0f;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        enum ggml_type type;
    } types[] = {{"Q4_0", GGML_TYPE_Q4_0}, {"Q4_1", GGML_TYPE_Q4_1}, {"Q5_0", GGML_TYPE_Q5_0}, {"Q5_1", GGML_TYPE_Q5_1}, {"Q8_0", GGML_TYPE_Q8_0}};
    const size_t count = sizeof types / sizeof *types;
    size_t t = 0;
    if (argc != 6)
        return 2;
    while (t < count && strcmp(types[t].name, argv[1]))
        t++;
    if (t == count)
        return 3;
    const int rows = atoi(argv[2]), cols = atoi(argv[3]), n = atoi(argv[4]), calls = atoi(argv[5]);
    /* Also fills ggml's tables. */
    struct ggml_init_params params = {.mem_size = 1 << 20, .mem_buffer = NULL, .no_alloc = false};
    struct ggml_context *context = ggml_init(params);
    const quantize_fns_t f = ggml_internal_get_quantize_fn(types[t].type);
    const size_t row_bytes = (size_t)(cols / ggml_blck_size(types[t].type)) * ggml_type_size(types[t].type);
    const size_t x_bytes = (size_t)(cols / ggml_blck_size(f.vec_dot_type)) * ggml_type_size(f.vec_dot_type);
    float *values = malloc(sizeof(float) * cols), *out = malloc(sizeof(float) * rows * n);
    char *w = malloc(row_bytes * rows), *x = malloc(x_bytes * n);
    unsigned long long state = 1;
    if (!context || !values || !out || !w || !x)
        return 1;
    for (int r = 0; r < rows + n; r++) {
        for (int c = 0; c < cols; c++)
            values[c] = number(&state);
        if (r < rows)
            f.quantize_row_q(values, w + r * row_bytes, cols);
        else
            f.quantize_row_q_dot(values, x + (r - rows) * x_bytes, cols);
    }
    double sum = 0;
    for (int call = 0; call < calls; call++) {
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < n; i++)
                f.vec_dot_q(cols, out + i * rows + r, w + r * row_bytes, x + i * x_bytes);
        sum += out[call % (rows * n)];
    }
    printf("%g\n", sum);
    return 0;
}
