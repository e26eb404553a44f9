/* Layers of Elman's, a step at a time, in C99 and C++11.

   The bits are those of Elman's Python packages, whatever the compiler, the processor and its
   vectors are. To that end every operation is one of IEEE 754's, and every sum has one order: fused
   multiply-adds in ascending order of the terms, each 64 of them from zero, those sums added in
   order, and the bias last. Nowhere is a product added to anything but by elman_fma(), so that a
   compiler finds nothing to contract.

   Sizes are constants wherever these functions are called, and all of them are inlined there: then
   inner loops are over constant numbers of values that lie side by side, which compilers turn into
   vectors. Sums and exp are written with AVX2's where there are, several of them under way at once,
   so that none waits for what the one before it gives. */
#ifndef ELMAN_LAYERS
#define ELMAN_LAYERS

#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(_M_FP_FAST)
#error "Elman: -ffast-math and its kind reorder sums; compile without it, for the same bits"
#endif
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "Elman: float must be computed as float; on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#if defined(__GNUC__) && defined(__OPTIMIZE__)
#define ELMAN_INLINE static inline __attribute__((always_inline))
#define ELMAN_ALIGNED __attribute__((aligned(64)))
#elif defined(_MSC_VER)
#define ELMAN_INLINE static __forceinline
#define ELMAN_ALIGNED __declspec(align(64))
#else
#define ELMAN_INLINE static inline
#define ELMAN_ALIGNED
#endif

/* a * b + c with one rounding. */
#if defined(__GNUC__) && defined(__OPTIMIZE__) && \
    (defined(__FMA__) || defined(__aarch64__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF))
ELMAN_INLINE float elman_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#elif defined(_MSC_VER) && (defined(__AVX2__) || defined(_M_ARM64))
#include <math.h>
ELMAN_INLINE float elman_fma(float a, float b, float c) { return fmaf(a, b, c); }
#else
/* The product of two floats is exact as a double. The sum is rounded to odd: where it is inexact its
   last bit is made 1, which keeps the second rounding, to float, from falling on a false tie (Boldo
   and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE Transactions on Computers 57
   (2008)). */
ELMAN_INLINE float elman_fma(float a, float b, float c) {
  const double product = (double)a * (double)b, addend = (double)c;
  const double sum = product + addend;
  const double kept = sum - product;
  const double lost = (product - (sum - kept)) + (addend - kept);
  int64_t bits;
  double odd;
  memcpy(&bits, &sum, sizeof bits);
  if ((lost < 0) | (lost > 0)) bits += (1 - (bits & 1)) * ((lost > 0) == (sum > 0) ? 1 : -1);
  memcpy(&odd, &bits, sizeof odd);
  return (float)odd;
}
#endif

#if defined(__GNUC__) && defined(__OPTIMIZE__) && defined(__AVX2__) && defined(__FMA__)
#define ELMAN_AVX 1
#include <immintrin.h>
#endif
#if defined(__clang__)
#define ELMAN_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define ELMAN_UNROLL _Pragma("GCC unroll 32")
#else
#define ELMAN_UNROLL
#endif

/* Lanes: as many floats as one instruction takes, of AVX2 or else one. Vectors of n values begin at
   ELMAN_AT(0, n), ELMAN_AT(1, n), ...: where n is no multiple of their width the last one begins
   earlier, and gives some values once more. */
#if ELMAN_AVX
enum { ELMAN_WIDTH = 8, ELMAN_ABREAST = 4 };
typedef __m256 elman_lanes;

ELMAN_INLINE elman_lanes elman_load(const float *from) { return _mm256_loadu_ps(from); }
ELMAN_INLINE void elman_store(float *to, elman_lanes x) { _mm256_storeu_ps(to, x); }
ELMAN_INLINE elman_lanes elman_each(float x) { return _mm256_set1_ps(x); }
ELMAN_INLINE elman_lanes elman_fmas(elman_lanes a, elman_lanes b, elman_lanes c) {
  return _mm256_fmadd_ps(a, b, c);
}
/* a < b ? x : other */
ELMAN_INLINE elman_lanes elman_below(elman_lanes a, elman_lanes b, elman_lanes x,
                                     elman_lanes other) {
  return _mm256_blendv_ps(other, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
/* x with the sign of another number. */
ELMAN_INLINE elman_lanes elman_signed(elman_lanes x, elman_lanes sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, x), _mm256_and_ps(bit, sign));
}
/* 2^n, where n stands in the low bits of x. */
ELMAN_INLINE elman_lanes elman_power(elman_lanes x) {
  const __m256i n = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
#else
enum { ELMAN_WIDTH = 1, ELMAN_ABREAST = 1 };
typedef float elman_lanes;

ELMAN_INLINE elman_lanes elman_load(const float *from) { return *from; }
ELMAN_INLINE void elman_store(float *to, elman_lanes x) { *to = x; }
ELMAN_INLINE elman_lanes elman_each(float x) { return x; }
ELMAN_INLINE elman_lanes elman_fmas(float a, float b, float c) { return elman_fma(a, b, c); }
/* By bits, since a branch would keep compilers from vectors. */
ELMAN_INLINE elman_lanes elman_below(float a, float b, float x, float other) {
  const uint32_t mask = 0u - (uint32_t)(a < b);
  uint32_t bits, others;
  memcpy(&bits, &x, sizeof bits);
  memcpy(&others, &other, sizeof others);
  bits = (bits & mask) | (others & ~mask);
  memcpy(&x, &bits, sizeof bits);
  return x;
}
ELMAN_INLINE elman_lanes elman_signed(float x, float sign) {
  uint32_t bits, other;
  memcpy(&bits, &x, sizeof bits);
  memcpy(&other, &sign, sizeof other);
  bits = (bits & 0x7fffffffu) | (other & 0x80000000u);
  memcpy(&x, &bits, sizeof bits);
  return x;
}
ELMAN_INLINE elman_lanes elman_power(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits + 127u) << 23;
  memcpy(&x, &bits, sizeof bits);
  return x;
}
#endif
#define ELMAN_AT(j, n) ((j + 1) * ELMAN_WIDTH <= (n) ? (j)*ELMAN_WIDTH : (n)-ELMAN_WIDTH)
#define ELMAN_EACH ELMAN_UNROLL for (j = 0; j < count; ++j)

/* exp, tanh and sigmoid, each of `count` vectors, operation after operation of all of them. */

/* e^x = scale * (1 + rest), scale a power of two, for x <= 0 or NaN; below -87 as at -87, whose exp
   is still a normal number. */
ELMAN_INLINE void elman_exp(const elman_lanes *x, int count, elman_lanes *scale,
                            elman_lanes *rest) {
  const elman_lanes lowest = elman_each(-87.0f);
  const elman_lanes round = elman_each(12582912.0f); /* adding it rounds to the nearest integer */
  elman_lanes r[ELMAN_ABREAST], q[ELMAN_ABREAST];
  int j;
  ELMAN_EACH {
    r[j] = elman_below(x[j], lowest, lowest, x[j]);
    scale[j] = elman_fmas(r[j], elman_each(1.44269504088896340736f), round);
  }
  ELMAN_EACH {
    const elman_lanes whole = scale[j] - round;
    r[j] = elman_fmas(whole, elman_each(-0.693359375f), r[j]);
    r[j] = elman_fmas(whole, elman_each(2.12194440e-4f), r[j]);
    scale[j] = elman_power(scale[j]);
  }
  ELMAN_EACH q[j] = elman_fmas(elman_each(0.0013882515212956579815f), r[j],
                               elman_each(0.0083665471194146427098f));
  ELMAN_EACH q[j] = elman_fmas(q[j], r[j], elman_each(0.041667200730433014982f));
  ELMAN_EACH q[j] = elman_fmas(q[j], r[j], elman_each(0.16666543424445384059f));
  ELMAN_EACH q[j] = elman_fmas(q[j], r[j], elman_each(0.4999999814957756623f));
  ELMAN_EACH rest[j] = elman_fmas(r[j] * r[j], q[j], r[j]);
}

#ifdef ELMAN_FAST_TANH
/* Not the same bits: tanh as its continued fraction, off by at most 1e-4. */
ELMAN_INLINE void elman_tanh(elman_lanes *x, int count) {
  const elman_lanes most = elman_each(4.97f), least = elman_each(-4.97f);
  int j;
  ELMAN_EACH {
    const elman_lanes up = elman_below(x[j], least, least, x[j]);
    const elman_lanes a = elman_below(most, up, most, up), s = a * a;
    const elman_lanes above = elman_each(17325.0f) + s * (elman_each(378.0f) + s);
    const elman_lanes below = elman_each(3150.0f) + elman_each(28.0f) * s;
    x[j] = a * (elman_each(135135.0f) + s * above) /
           (elman_each(135135.0f) + s * (elman_each(62370.0f) + s * below));
  }
}

ELMAN_INLINE void elman_sigmoid(elman_lanes *x, int count) {
  const elman_lanes half = elman_each(0.5f);
  int j;
  ELMAN_EACH x[j] = half * x[j];
  elman_tanh(x, count);
  ELMAN_EACH x[j] = half + half * x[j];
}
#else
ELMAN_INLINE void elman_tanh(elman_lanes *x, int count) {
  const elman_lanes zero = elman_each(0.0f), one = elman_each(1.0f), third = one / elman_each(3.0f);
  elman_lanes e[ELMAN_ABREAST], scale[ELMAN_ABREAST], rest[ELMAN_ABREAST];
  int j;
  ELMAN_EACH e[j] = elman_signed(x[j] + x[j], elman_each(-1.0f));
  elman_exp(e, count, scale, rest);
  ELMAN_EACH {
    const elman_lanes m = elman_fmas(scale[j], rest[j], scale[j] - one);
    e[j] = elman_fmas(scale[j], rest[j], scale[j]);
    rest[j] = elman_below(e[j], third, e[j] + e[j], m) / (e[j] + one);
  }
  ELMAN_EACH x[j] = elman_signed(elman_below(e[j], third, one, zero) - rest[j], x[j]);
}

ELMAN_INLINE void elman_sigmoid(elman_lanes *x, int count) {
  const elman_lanes zero = elman_each(0.0f), one = elman_each(1.0f);
  elman_lanes e[ELMAN_ABREAST], scale[ELMAN_ABREAST], rest[ELMAN_ABREAST];
  int j;
  ELMAN_EACH e[j] = elman_signed(x[j], elman_each(-1.0f));
  elman_exp(e, count, scale, rest);
  ELMAN_EACH {
    e[j] = elman_fmas(scale[j], rest[j], scale[j]);
    x[j] = elman_below(x[j], zero, e[j], one) / (e[j] + one);
  }
}
#endif

/* e^x for x <= 0. */
ELMAN_INLINE void elman_exponential(elman_lanes *x, int count) {
  elman_lanes scale[ELMAN_ABREAST], rest[ELMAN_ABREAST];
  int j;
  elman_exp(x, count, scale, rest);
  ELMAN_EACH x[j] = elman_fmas(scale[j], rest[j], scale[j]);
}

/* One of them of n values: to must be elsewhere than x. */
#define ELMAN_OF_ALL(name)                                                       \
  ELMAN_INLINE void elman_##name##_block(const float *x, int n, float *to) {     \
    const int count = (n + ELMAN_WIDTH - 1) / ELMAN_WIDTH;                       \
    elman_lanes lanes[ELMAN_ABREAST];                                            \
    int j;                                                                       \
    ELMAN_EACH lanes[j] = elman_load(x + ELMAN_AT(j, n));                        \
    elman_##name(lanes, count);                                                  \
    ELMAN_EACH elman_store(to + ELMAN_AT(j, n), lanes[j]);                       \
  }                                                                              \
  ELMAN_INLINE void elman_##name##_all(const float *x, int n, float *to) {       \
    const int block = ELMAN_WIDTH * ELMAN_ABREAST, whole = n / block * block;    \
    int i;                                                                       \
    if (n < ELMAN_WIDTH) {                                                       \
      float few[ELMAN_WIDTH] = {0}, found[ELMAN_WIDTH];                          \
      for (i = 0; i < n; ++i) few[i] = x[i];                                     \
      elman_##name##_block(few, ELMAN_WIDTH, found);                             \
      for (i = 0; i < n; ++i) to[i] = found[i];                                  \
      return;                                                                    \
    }                                                                            \
    for (i = 0; i < whole; i += block) elman_##name##_block(x + i, block, to + i); \
    if (whole < n) elman_##name##_block(x + whole, n - whole, to + whole);       \
  }

ELMAN_OF_ALL(tanh)
ELMAN_OF_ALL(sigmoid)
ELMAN_OF_ALL(exponential)

ELMAN_INLINE float elman_relu(float x) { return x < 0.0f ? 0.0f : x; }

/* Products */

/* Rows that are summed at once, in as many registers as there are. */
#ifndef ELMAN_TILE
#if ELMAN_AVX && defined(__AVX512VL__)
#define ELMAN_TILE 192
#elif ELMAN_AVX
#define ELMAN_TILE 96
#elif defined(__aarch64__)
#define ELMAN_TILE 64
#else
#define ELMAN_TILE 48
#endif
#endif

/* to[j] = x[k] * w[k * stride + j] added up over k = from .. end - 1, plus add[j] where there is
   something to add, j < rows. That may stand where the sums go. */
ELMAN_INLINE void elman_chain(const float *__restrict w, int stride, const float *__restrict x,
                              int from, int end, int rows, const float *add, float *to) {
  float sum[ELMAN_TILE];
  int j, k;
#if ELMAN_AVX
  /* Left to itself GCC takes short vectors for some processors, and none at -O2. */
  if (rows >= ELMAN_WIDTH) {
    const int count = (rows + ELMAN_WIDTH - 1) / ELMAN_WIDTH;
    elman_lanes sums[ELMAN_TILE / ELMAN_WIDTH];
    ELMAN_EACH sums[j] = elman_each(0.0f);
    for (k = from; k < end; ++k) {
      const elman_lanes value = elman_each(x[k]);
      const float *row = w + k * stride;
      ELMAN_EACH sums[j] = elman_fmas(value, elman_load(row + ELMAN_AT(j, rows)), sums[j]);
    }
    if (add) {
      ELMAN_EACH sums[j] = sums[j] + elman_load(add + ELMAN_AT(j, rows));
    }
    ELMAN_EACH elman_store(to + ELMAN_AT(j, rows), sums[j]);
    return;
  }
#endif
  for (j = 0; j < rows; ++j) sum[j] = elman_fma(x[from], w[from * stride + j], 0.0f);
  for (k = from + 1; k < end; ++k) {
    for (j = 0; j < rows; ++j) sum[j] = elman_fma(x[k], w[k * stride + j], sum[j]);
  }
  for (j = 0; j < rows; ++j) to[j] = add ? sum[j] + add[j] : sum[j];
}

/* to[j] = the sum over all k < terms, plus bias[j] where there is a bias. */
ELMAN_INLINE void elman_tile(const float *w, int stride, const float *x, int terms, int rows,
                             const float *bias, float *to) {
  float sum[ELMAN_TILE];
  int from, j;
  if (terms <= 64) {
    elman_chain(w, stride, x, 0, terms, rows, bias, to);
    return;
  }
  elman_chain(w, stride, x, 0, 64, rows, 0, sum);
  for (from = 64; from < terms; from += 64) {
    elman_chain(w, stride, x, from, terms - from < 64 ? terms : from + 64, rows, sum, sum);
  }
  for (j = 0; j < rows; ++j) to[j] = bias ? sum[j] + bias[j] : sum[j];
}

/* The same of any number of rows: w is (terms, rows). The bias may stand where the sums go. */
ELMAN_INLINE void elman_product(const float *w, const float *x, int terms, int rows,
                                const float *bias, float *to) {
  const int tiles = (rows + ELMAN_TILE - 1) / ELMAN_TILE;
  const int tile = ((rows + tiles - 1) / tiles + 7) / 8 * 8, last = rows / tile * tile;
  int row;
  for (row = 0; row < last; row += tile) {
    elman_tile(w + row, rows, x, terms, tile, bias ? bias + row : 0, to + row);
  }
  if (last < rows) {
    elman_tile(w + last, rows, x, terms, rows - last, bias ? bias + last : 0, to + last);
  }
}

ELMAN_INLINE void elman_copy(float *to, const float *from, int n) {
  int i;
  for (i = 0; i < n; ++i) to[i] = from[i];
}

ELMAN_INLINE void elman_clear(float *to, int n) {
  int i;
  for (i = 0; i < n; ++i) to[i] = 0.0f;
}

/* Layers, a step of each. A layer's weights are one behind the other, as its function reads them;
   matrices are (terms, rows). `work` is room for what is computed on the way. */

/* h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu
   Weights: W_ih (D, H), both biases' sum (H), W_hh (H, H). */

ELMAN_INLINE void elman_rnn(const float *w, const float *x, int D, int H, const float *h,
                            float *sums) {
  elman_product(w, x, D, H, w + D * H, sums);
  elman_product(w + (D + 1) * H, h, H, H, sums, sums);
}

ELMAN_INLINE void elman_rnn_tanh(const float *w, const float *x, int D, int H, float *h,
                                 float *work) {
  elman_rnn(w, x, D, H, h, work);
  elman_tanh_all(work, H, h);
}

ELMAN_INLINE void elman_rnn_relu(const float *w, const float *x, int D, int H, float *h,
                                 float *work) {
  int i;
  elman_rnn(w, x, D, H, h, work);
  for (i = 0; i < H; ++i) h[i] = elman_relu(work[i]);
}

/* r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
   z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
   m = tanh(W_in x + b_in + r * (W_hn h + b_hn))
   h' = (1 - z) * m + z * h
   Weights: W_ih (D, 3H), biases (3H), which are sums for r and z, W_hh (H, 3H), biases (3H), which
   are 0 for r and z. */

ELMAN_INLINE void elman_gru(const float *w, const float *x, int D, int H, float *h, float *work) {
  const int rows = 3 * H;
  const float *w_hh = w + (D + 1) * rows;
  float *u = work + rows, *r = u, *z = u + H, *m = work;
  int i;
  elman_product(w, x, D, rows, w + D * rows, work);
  elman_product(w_hh, h, H, rows, w_hh + H * rows, u);
  for (i = 0; i < 2 * H; ++i) work[i] += u[i];
  elman_sigmoid_all(work, 2 * H, r);
  for (i = 0; i < H; ++i) work[2 * H + i] = elman_fma(r[i], u[2 * H + i], work[2 * H + i]);
  elman_tanh_all(work + 2 * H, H, m);
  for (i = 0; i < H; ++i) h[i] = elman_fma(z[i], h[i] - m[i], m[i]);
}

/* m = tanh(W_in x + b_in + W_hn (r * h) + b_hn), and else the same
   Weights: of r and z, W_ih (D, 2H), both biases' sum (2H), W_hh (H, 2H); of m the same (D, H), (H),
   (H, H). */

ELMAN_INLINE void elman_gru_reset_before(const float *w, const float *x, int D, int H, float *h,
                                         float *work) {
  const int rows = 2 * H;
  const float *late = w + (D + 1 + H) * rows;
  float *r = work + rows, *z = r + H, *sums = z + H, *m = sums + H;
  int i;
  elman_product(w, x, D, rows, w + D * rows, work);
  elman_product(w + (D + 1) * rows, h, H, rows, work, work);
  elman_sigmoid_all(work, rows, r);
  for (i = 0; i < H; ++i) r[i] *= h[i];
  elman_product(late, x, D, H, late + D * H, sums);
  elman_product(late + (D + 1) * H, r, H, H, sums, sums);
  elman_tanh_all(sums, H, m);
  for (i = 0; i < H; ++i) h[i] = elman_fma(z[i], h[i] - m[i], m[i]);
}

/* i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
   f = sigmoid(W_if x + b_if + W_hf h + b_hf)
   g = tanh(W_ig x + b_ig + W_hg h + b_hg)
   o = sigmoid(W_io x + b_io + W_ho h + b_ho)
   c' = f * c + i * g
   h' = o * tanh(c'), or where P > 0 the P values W_hr (o * tanh(c'))
   Weights: W_ih (D, 4H), both biases' sum (4H), W_hh (H or P, 4H), W_hr (H, P) where P > 0; of the
   4H rows those of i, f, o, g in this order. */

ELMAN_INLINE void elman_lstm(const float *w, const float *x, int D, int H, int P, float *h, float *c,
                             float *work) {
  const int rows = 4 * H, size = P > 0 ? P : H;
  const float *w_hh = w + (D + 1) * rows;
  float *i = work + rows, *f = i + H, *o = f + H, *g = o + H, *hidden = P > 0 ? g : h;
  int j;
  elman_product(w, x, D, rows, w + D * rows, work);
  elman_product(w_hh, h, size, rows, work, work);
  elman_sigmoid_all(work, 3 * H, i);
  elman_tanh_all(work + 3 * H, H, g);
  for (j = 0; j < H; ++j) c[j] = elman_fma(f[j], c[j], i[j] * g[j]);
  elman_tanh_all(c, H, work);
  for (j = 0; j < H; ++j) hidden[j] = o[j] * work[j];
  if (P > 0) elman_product(w_hh + P * rows, hidden, H, P, 0, h);
}

/* W x + b: weights (D, rows), then biases (rows). */
ELMAN_INLINE void elman_linear(const float *w, const float *x, int D, int rows, float *to) {
  elman_product(w, x, D, rows, w + D * rows, to);
}

/* The same of eight steps, x (8, D) and to (8, rows): a sum waits for each of its terms, and those of
   eight steps wait side by side. For a few rows. */
ELMAN_INLINE void elman_linear_eight(const float *w, const float *x, int D, int rows, float *to) {
  float sum[8], chain[8];
  int row, from, k, t;
  for (row = 0; row < rows; ++row) {
    for (from = 0; from < D; from += 64) {
      const int end = D - from < 64 ? D : from + 64;
      ELMAN_UNROLL
      for (t = 0; t < 8; ++t) chain[t] = elman_fma(x[t * D + from], w[from * rows + row], 0.0f);
      for (k = from + 1; k < end; ++k) {
        const float weight = w[k * rows + row];
        ELMAN_UNROLL
        for (t = 0; t < 8; ++t) chain[t] = elman_fma(x[t * D + k], weight, chain[t]);
      }
      for (t = 0; t < 8; ++t) sum[t] = from ? sum[t] + chain[t] : chain[t];
    }
    for (t = 0; t < 8; ++t) to[t * rows + row] = sum[t] + w[D * rows + row];
  }
}

/* A causal convolution: of a ring of the last (kernel - 1) * dilation + 1 inputs of C values each,
   in which the next one is written at *at, every dilation-th. Weights (kernel, C, rows), the oldest
   input's first, then biases (rows). */
ELMAN_INLINE void elman_conv1d(const float *w, const float *x, int C, int kernel, int dilation,
                               int rows, float *ring, int *at, float *work, float *to) {
  const int size = (kernel - 1) * dilation + 1;
  int k, i, from = *at + 1 == size ? 0 : *at + 1; /* the oldest */
  for (i = 0; i < C; ++i) ring[*at * C + i] = x[i];
  *at = from;
  for (k = 0; k < kernel; ++k) {
    for (i = 0; i < C; ++i) work[k * C + i] = ring[from * C + i];
    from += dilation;
    if (from >= size) from -= size;
  }
  elman_product(w, work, kernel * C, rows, w + kernel * C * rows, to);
}

ELMAN_INLINE void elman_relu_all(const float *x, int n, float *to) {
  int i;
  for (i = 0; i < n; ++i) to[i] = elman_relu(x[i]);
}

/* e^(x - max x) over their sum, which is taken in order. */
ELMAN_INLINE void elman_softmax_all(const float *x, int n, float *work, float *to) {
  float most = x[0], sum = 0.0f;
  int i;
  for (i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
  for (i = 0; i < n; ++i) work[i] = x[i] - most;
  elman_exponential_all(work, n, to);
  for (i = 0; i < n; ++i) sum += to[i];
  for (i = 0; i < n; ++i) to[i] /= sum;
}

#endif /* ELMAN_LAYERS */
