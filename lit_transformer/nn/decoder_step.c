/* One step of the Transformer's decoder for all rows of a search, on one core (Vaswani et al. 2017, section 3.1).

   The plain reference is Decoder.step in decoder.py; compiled.py builds this file and fills its structures. A matrix is
   cut into panels of 64 outputs, so that products need no sums across a vector: of float32 weights a panel holds
   [input][output], of 8-bit weights [input / 4][output][input % 4], as dot-product instructions read them. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

enum { LANES = 16, VECTORS = 4, PANEL = LANES * VECTORS };
enum { BLOCK = 6, FEW = 4 }; /* so many rows share what is read of a panel; their sums fit into the registers */
enum { RELU, GELU, SILU };

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef union {
    floats float_vectors[BLOCK][VECTORS];
    ints int_vectors[BLOCK][VECTORS];
    float floats[BLOCK][PANEL];
    int32_t ints[BLOCK][PANEL];
} Sums;

typedef struct {
    const void *weight;  /* in panels; outputs filled up to whole panels, 8-bit inputs to a multiple of 4 */
    const float *scale;  /* of each output; NULL for float32 weights */
    const int32_t *sums; /* of the 8-bit weights of each output */
    const float *bias;   /* NULL for none */
    int64_t inputs, outputs;
} Product;

typedef struct {
    const float *weight, *bias; /* NULL for none */
    double epsilon;
    int64_t is_there;
} Norm;

typedef struct {
    Product query_key_value, self_output, cross_query, cross_output, inner, outer;
    Norm self_norm, cross_norm, forward_norm;
} Layer;

typedef struct {
    const Layer *layers;
    Product projection;
    Norm final_norm;
    int64_t num_layers, d_model, d_ff, num_heads, d_k, d_v, is_pre_norm, activation;
} Decoder;

typedef struct {
    float *past;           /* (time, layer, row, keys and values of all heads) */
    const float *memory;   /* (layer, sentence, place, keys and values of all heads) */
    const uint8_t *mask;   /* (sentence, place), 1 at real tokens; NULL if all are */
    const int64_t *owners; /* the sentence of each row */
    int64_t num_rows, num_sentences, src_length, position;
} State;

#define INLINE static inline __attribute__((always_inline)) /* so `rows` is a constant and sums stay in registers */

INLINE void multiply_floats(const float *panel, const float *x, int64_t inputs, int rows, Sums *result) {
    floats sums[BLOCK][VECTORS] = {{{0}}};
    for (int64_t k = 0; k < inputs; k++)
        for (int v = 0; v < VECTORS; v++) {
            floats weight;
            memcpy(&weight, panel + k * PANEL + v * LANES, sizeof weight);
            for (int r = 0; r < rows; r++) sums[r][v] += x[r * inputs + k] * weight;
        }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) result->float_vectors[r][v] = sums[r][v];
}

INLINE ints add_four_products(ints sum, const uint8_t *x, const int8_t *weight) {
#ifdef __AVX512VNNI__
    int32_t four;
    memcpy(&four, x, 4);
    return (ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), _mm512_loadu_si512(weight));
#else
    for (int n = 0; n < LANES; n++)
        for (int k = 0; k < 4; k++) sum[n] += x[k] * weight[n * 4 + k];
    return sum;
#endif
}

INLINE void multiply_bytes(const int8_t *panel, const uint8_t *x, int64_t inputs, int rows, Sums *result) {
    ints sums[BLOCK][VECTORS] = {{{0}}};
    for (int64_t k = 0; k < inputs; k += 4)
        for (int v = 0; v < VECTORS; v++)
            for (int r = 0; r < rows; r++)
                sums[r][v] = add_four_products(sums[r][v], x + r * inputs + k, panel + k * PANEL + v * LANES * 4);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) result->int_vectors[r][v] = sums[r][v];
}

/* Rounds a row to 8 bits, 128 for zero; returns the size of a unit, NaN if a number is not finite. */
static float round_row(const float *x, int64_t inputs, int64_t room, uint8_t *bytes) {
    float most = 1e-12f, nothing = 0;
#pragma omp simd reduction(max : most)
    for (int64_t k = 0; k < inputs; k++) most = fabsf(x[k]) > most ? fabsf(x[k]) : most;
#pragma omp simd reduction(+ : nothing)
    for (int64_t k = 0; k < inputs; k++) nothing += x[k] * 0; /* NaN once an infinity or NaN is among them */
    if (nothing != 0) {
        memset(bytes, 128, room);
        return nothing;
    }
    float factor = 127 / most;
    for (int64_t k = 0; k < inputs; k++) bytes[k] = (uint8_t)(int32_t)(x[k] * factor + 128.5f);
    memset(bytes + inputs, 128, room - inputs);
    return most / 127;
}

/* y (rows, outputs) from x (rows, inputs). */
static void multiply(const Product *p, const float *x, int64_t rows, float *y) {
    int64_t room = p->scale ? (p->inputs + 3) / 4 * 4 : p->inputs;
    uint8_t *bytes = p->scale ? malloc(rows * room) : NULL;
    float *units = p->scale ? malloc(rows * sizeof(float)) : NULL;
    if (p->scale)
        for (int64_t r = 0; r < rows; r++) units[r] = round_row(x + r * p->inputs, p->inputs, room, bytes + r * room);
    for (int64_t n = 0; n < p->outputs; n += PANEL) {
        int64_t width = p->outputs - n < PANEL ? p->outputs - n : PANEL;
        for (int64_t r = 0, block; r < rows; r += block) {
            Sums sums;
            block = rows - r >= BLOCK ? BLOCK : rows - r >= FEW ? FEW : 1;
            if (p->scale) {
                const int8_t *panel = (const int8_t *)p->weight + n * room;
                const uint8_t *from = bytes + r * room;
                if (block == BLOCK) multiply_bytes(panel, from, room, BLOCK, &sums);
                else if (block == FEW) multiply_bytes(panel, from, room, FEW, &sums);
                else multiply_bytes(panel, from, room, 1, &sums);
                for (int64_t b = 0; b < block; b++)
                    for (int64_t j = 0; j < width; j++)
                        sums.floats[b][j] = (sums.ints[b][j] - 128 * p->sums[n + j]) * (units[r + b] * p->scale[n + j]);
            } else {
                const float *panel = (const float *)p->weight + n * room, *from = x + r * room;
                if (block == BLOCK) multiply_floats(panel, from, room, BLOCK, &sums);
                else if (block == FEW) multiply_floats(panel, from, room, FEW, &sums);
                else multiply_floats(panel, from, room, 1, &sums);
            }
            for (int64_t b = 0; b < block; b++)
                for (int64_t j = 0; j < width; j++)
                    y[(r + b) * p->outputs + n + j] = sums.floats[b][j] + (p->bias ? p->bias[n + j] : 0);
        }
    }
    free(bytes);
    free(units);
}

static void normalise(const Norm *norm, const float *x, int64_t rows, int64_t width, float *y) {
    for (int64_t r = 0; r < rows; r++, x += width, y += width) {
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += x[i];
        float mean = sum / width;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
        float factor = 1 / sqrtf(squares / width + (float)norm->epsilon);
        for (int64_t i = 0; i < width; i++)
            y[i] = (x[i] - mean) * factor * (norm->weight ? norm->weight[i] : 1) + (norm->bias ? norm->bias[i] : 0);
    }
}

/* What one head of one row gathers (equation 1); the next of `count` keys and values stand `stride` numbers away. */
static void attend(const Decoder *d, const float *query, const float *keys, const float *values, int64_t stride,
                   int64_t count, const uint8_t *mask, float *weights, float *result) {
    float most = -INFINITY, total = 0, scale = 1 / sqrtf((float)d->d_k);
    for (int64_t t = 0; t < count; t++) {
        float score = 0;
#pragma omp simd reduction(+ : score)
        for (int64_t i = 0; i < d->d_k; i++) score += query[i] * keys[t * stride + i];
        weights[t] = mask && !mask[t] ? -INFINITY : score * scale;
        most = weights[t] > most ? weights[t] : most;
    }
    memset(result, 0, d->d_v * sizeof(float));
    for (int64_t t = 0; t < count; t++) {
        if (weights[t] == -INFINITY) continue;
        float weight = expf(weights[t] - most);
        total += weight;
        for (int64_t i = 0; i < d->d_v; i++) result[i] += weight * values[t * stride + i];
    }
    for (int64_t i = 0; i < d->d_v; i++) result[i] /= total;
}

static void activate(int64_t kind, float *x, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        if (kind == RELU) x[i] = x[i] < 0 ? 0 : x[i]; /* so that NaN stays */
        else if (kind == GELU) x[i] = x[i] / 2 * (1 + erff(x[i] * (float)M_SQRT1_2));
        else x[i] = x[i] / (1 + expf(-x[i]));
    }
}

/* Self-attention: adds the newest position to the past and reads all of it. */
static void look_back(const Decoder *d, int64_t number, const State *s, const float *x, float *wide, float *heads,
                      float *weights, float *y) {
    const Layer *layer = d->layers + number;
    int64_t all_k = d->num_heads * d->d_k, both = all_k + d->num_heads * d->d_v;
    int64_t stride = d->num_layers * s->num_rows * both;
    multiply(&layer->query_key_value, x, s->num_rows, wide);
    for (int64_t r = 0; r < s->num_rows; r++) {
        float *past = s->past + (number * s->num_rows + r) * both, *query = wide + r * (all_k + both);
        memcpy(past + s->position * stride, query + all_k, both * sizeof(float));
        for (int64_t h = 0; h < d->num_heads; h++)
            attend(d, query + h * d->d_k, past + h * d->d_k, past + all_k + h * d->d_v, stride, s->position + 1, NULL,
                   weights, heads + (r * d->num_heads + h) * d->d_v);
    }
    multiply(&layer->self_output, heads, s->num_rows, y);
}

/* Attention over the source, of which all rows of a sentence share one copy. */
static void look_at_source(const Decoder *d, int64_t number, const State *s, const float *x, float *wide, float *heads,
                           float *weights, float *y) {
    const Layer *layer = d->layers + number;
    int64_t all_k = d->num_heads * d->d_k, both = all_k + d->num_heads * d->d_v;
    multiply(&layer->cross_query, x, s->num_rows, wide);
    for (int64_t r = 0; r < s->num_rows; r++) {
        int64_t owner = s->owners[r];
        const uint8_t *mask = s->mask ? s->mask + owner * s->src_length : NULL;
        const float *memory = s->memory + (number * s->num_sentences + owner) * s->src_length * both;
        for (int64_t h = 0; h < d->num_heads; h++)
            attend(d, wide + r * all_k + h * d->d_k, memory + h * d->d_k, memory + all_k + h * d->d_v, both,
                   s->src_length, mask, weights, heads + (r * d->num_heads + h) * d->d_v);
    }
    multiply(&layer->cross_output, heads, s->num_rows, y);
}

static void feed_forward(const Decoder *d, const Layer *layer, int64_t rows, const float *x, float *wide, float *y) {
    multiply(&layer->inner, x, rows, wide);
    activate(d->activation, wide, rows * d->d_ff);
    multiply(&layer->outer, wide, rows, y);
}

/* Reads the newest tokens' features x (rows, d_model), which it overwrites; writes logits (rows, vocabulary). */
void decoder_step(const Decoder *d, const State *s, float *x, float *logits) {
    int64_t rows = s->num_rows, size = rows * d->d_model, heads_width = d->num_heads * d->d_v;
    int64_t width = d->num_heads * 2 * d->d_k + heads_width, longest = s->position + 1;
    width = width > d->d_ff ? width : d->d_ff;
    longest = longest > s->src_length ? longest : s->src_length;
    float *normal = malloc((2 * size + rows * (width + heads_width) + longest) * sizeof(float)), *y = normal + size;
    float *wide = y + size, *heads = wide + rows * width, *weights = heads + rows * heads_width;
    for (int64_t number = 0; number < d->num_layers; number++) {
        const Layer *layer = d->layers + number;
        const Norm *norms[] = {&layer->self_norm, &layer->cross_norm, &layer->forward_norm};
        for (int part = 0; part < 3; part++) {
            const float *input = d->is_pre_norm ? normal : x;
            if (d->is_pre_norm) normalise(norms[part], x, rows, d->d_model, normal);
            if (part == 0) look_back(d, number, s, input, wide, heads, weights, y);
            if (part == 1) look_at_source(d, number, s, input, wide, heads, weights, y);
            if (part == 2) feed_forward(d, layer, rows, input, wide, y);
            for (int64_t i = 0; i < size; i++) x[i] += y[i];
            if (!d->is_pre_norm) normalise(norms[part], x, rows, d->d_model, x);
        }
    }
    if (d->final_norm.is_there) normalise(&d->final_norm, x, rows, d->d_model, x);
    multiply(&d->projection, x, rows, logits);
    free(normal);
}
