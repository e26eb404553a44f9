/* Layers of Elman's, a step at a time, in C99 and C++11.

   The bits are those of Elman's Python packages, whatever the compiler, the processor and its
   vectors are. To that end every operation is one of IEEE 754's, and every sum has one order: fused
   multiply-adds in ascending order of the terms, each 64 of them from zero, those sums added in
   order, and the bias last. Nowhere is a product added to anything but by elman_fma(), so that a
   compiler finds nothing to contract.

   Sizes are constants wherever these functions are called, and all of them are inlined there: then
   inner loops are over constant numbers of units or rows that lie side by side, which compilers turn
   into vectors. One of them, the sums', is written with AVX2's where there are. */
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
#define ELMAN_UNROLL _Pragma("GCC unroll 16")
#else
#define ELMAN_UNROLL
#endif

/* exp, tanh and sigmoid */

/* e^x = scale * (1 + rest), scale a power of two. */
typedef struct {
  float scale, rest;
} elman_exponential;

/* For x <= 0 or NaN; below -87 as at -87, whose exp is still a normal number. */
ELMAN_INLINE elman_exponential elman_exp(float x) {
  const float lowest = -87.0f, round = 12582912.0f; /* adding it rounds to the nearest integer */
  const float at = x < lowest ? lowest : x;
  const float shifted = elman_fma(at, 1.44269504088896340736f, round);
  const float whole = shifted - round;
  const float high = elman_fma(whole, -0.693359375f, at);
  const float r = elman_fma(whole, 2.12194440e-4f, high);
  float q = 0.0013882515212956579815f;
  uint32_t bits;
  elman_exponential e;
  q = elman_fma(q, r, 0.0083665471194146427098f);
  q = elman_fma(q, r, 0.041667200730433014982f);
  q = elman_fma(q, r, 0.16666543424445384059f);
  q = elman_fma(q, r, 0.4999999814957756623f);
  memcpy(&bits, &shifted, sizeof bits); /* its low bits hold the integer */
  bits = (bits + 127u) << 23;
  memcpy(&e.scale, &bits, sizeof bits);
  e.rest = elman_fma(r * r, q, r);
  return e;
}

/* x if the condition, 0 or 1, holds, else other: by bits, since a branch would keep compilers from
   vectors. */
ELMAN_INLINE float elman_either(int condition, float x, float other) {
  const uint32_t mask = 0u - (uint32_t)condition;
  uint32_t bits, others;
  memcpy(&bits, &x, sizeof bits);
  memcpy(&others, &other, sizeof others);
  bits = (bits & mask) | (others & ~mask);
  memcpy(&x, &bits, sizeof bits);
  return x;
}

/* x with the sign of another number. */
ELMAN_INLINE float elman_signed(float x, float sign) {
  uint32_t bits, other;
  memcpy(&bits, &x, sizeof bits);
  memcpy(&other, &sign, sizeof other);
  bits = (bits & 0x7fffffffu) | (other & 0x80000000u);
  memcpy(&x, &bits, sizeof bits);
  return x;
}

#ifdef ELMAN_FAST_TANH
/* Not the same bits: tanh as its continued fraction, off by at most 1e-4. */
ELMAN_INLINE float elman_tanh(float x) {
  const float most = 4.97f;
  const float a = x < -most ? -most : x > most ? most : x, s = a * a;
  return a * (135135.0f + s * (17325.0f + s * (378.0f + s))) /
         (135135.0f + s * (62370.0f + s * (3150.0f + 28.0f * s)));
}

ELMAN_INLINE float elman_sigmoid(float x) { return 0.5f + 0.5f * elman_tanh(0.5f * x); }
#else
ELMAN_INLINE float elman_tanh(float x) {
  const elman_exponential part = elman_exp(elman_signed(x + x, -1.0f));
  const float e = elman_fma(part.scale, part.rest, part.scale);
  const float m = elman_fma(part.scale, part.rest, part.scale - 1.0f), twice = e + e;
  const int large = e < 1.0f / 3.0f;
  return elman_signed(elman_either(large, 1.0f, 0.0f) - elman_either(large, twice, m) / (e + 1.0f), x);
}

ELMAN_INLINE float elman_sigmoid(float x) {
  const elman_exponential part = elman_exp(elman_signed(x, -1.0f));
  const float e = elman_fma(part.scale, part.rest, part.scale);
  return elman_either(x < 0.0f, e, 1.0f) / (e + 1.0f);
}
#endif

ELMAN_INLINE float elman_relu(float x) { return x < 0.0f ? 0.0f : x; }

/* Products */

/* Rows that are summed at once, in as many registers as there are. */
#ifndef ELMAN_TILE
#if defined(__AVX512F__)
#define ELMAN_TILE 256
#elif defined(__AVX__) || defined(__aarch64__)
#define ELMAN_TILE 64
#else
#define ELMAN_TILE 48
#endif
#endif

/* sum[j] = x[k] * w[k * stride + j] added up over k = from .. end - 1, j < rows. */
ELMAN_INLINE void elman_chain(const float *__restrict w, int stride, const float *__restrict x,
                              int from, int end, int rows, float *__restrict sum) {
  int j, k;
#if ELMAN_AVX
  /* Vectors written out: left to itself GCC takes short ones for some processors, and none at -O2. */
  __m256 sums[ELMAN_TILE / 8];
  const int whole = rows / 8;
  for (j = 0; j < whole; ++j) sums[j] = _mm256_setzero_ps();
  for (k = from; k < end; ++k) {
    const __m256 value = _mm256_broadcast_ss(x + k);
    const float *row = w + k * stride;
    ELMAN_UNROLL
    for (j = 0; j < whole; ++j) {
      sums[j] = _mm256_fmadd_ps(value, _mm256_loadu_ps(row + 8 * j), sums[j]);
    }
  }
  for (j = 0; j < whole; ++j) _mm256_storeu_ps(sum + 8 * j, sums[j]);
  w += 8 * whole;
  sum += 8 * whole;
  rows -= 8 * whole;
#endif
  for (j = 0; j < rows; ++j) sum[j] = elman_fma(x[from], w[from * stride + j], 0.0f);
  for (k = from + 1; k < end; ++k) {
    for (j = 0; j < rows; ++j) sum[j] = elman_fma(x[k], w[k * stride + j], sum[j]);
  }
}

/* to[j] = the sum over all k < terms, plus bias[j] where there is a bias. */
ELMAN_INLINE void elman_tile(const float *__restrict w, int stride, const float *__restrict x,
                             int terms, int rows, const float *bias, float *to) {
  float sum[ELMAN_TILE], more[ELMAN_TILE];
  int from, j;
  elman_chain(w, stride, x, 0, terms < 64 ? terms : 64, rows, sum);
  for (from = 64; from < terms; from += 64) {
    elman_chain(w, stride, x, from, terms - from < 64 ? terms : from + 64, rows, more);
    for (j = 0; j < rows; ++j) sum[j] += more[j];
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

/* Layers, a step of each

   The units of a recurrent layer are cut into panels of 16, then 8, 4, and what remains. Where a
   matrix has rows of several gates they stand panel after panel, and in a panel gate after gate; so
   do biases. A layer's weights are one behind the other, as its function reads them; matrices are
   (terms, rows). `work` is room for what is computed on the way. */

/* Does something for each panel: of n units, which begin at `unit`. */
#define ELMAN_PANELS(units, something)                 \
  do {                                                 \
    int unit = 0;                                      \
    for (; unit + 16 <= (units); unit += 16) {         \
      enum { n = 16 };                                 \
      something;                                       \
    }                                                  \
    if ((units) & 8) {                                 \
      enum { n = 8 };                                  \
      something;                                       \
      unit += n;                                       \
    }                                                  \
    if ((units) & 4) {                                 \
      enum { n = 4 };                                  \
      something;                                       \
      unit += n;                                       \
    }                                                  \
    if ((units) & 3) {                                 \
      const int n = (units) & 3;                       \
      something;                                       \
    }                                                  \
  } while (0)

/* h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu
   Weights: W_ih (D, H), both biases' sum (H), W_hh (H, H). */

ELMAN_INLINE void elman_rnn(const float *w, const float *x, int D, int H, const float *h,
                            float *sums) {
  elman_product(w, x, D, H, w + D * H, sums);
  elman_product(w + (D + 1) * H, h, H, H, sums, sums);
}

ELMAN_INLINE void elman_rnn_tanh(const float *w, const float *x, int D, int H, float *h,
                                 float *work) {
  int i;
  elman_rnn(w, x, D, H, h, work);
  for (i = 0; i < H; ++i) h[i] = elman_tanh(work[i]);
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

ELMAN_INLINE void elman_gru_units(int n, const float *__restrict x, const float *__restrict u,
                                  float *__restrict h) {
  int i;
  for (i = 0; i < n; ++i) {
    const float r = elman_sigmoid(u[i] + x[i]), z = elman_sigmoid(u[n + i] + x[n + i]);
    const float m = elman_tanh(elman_fma(r, u[2 * n + i], x[2 * n + i]));
    h[i] = elman_fma(z, h[i] - m, m);
  }
}

ELMAN_INLINE void elman_gru(const float *w, const float *x, int D, int H, float *h, float *work) {
  const int rows = 3 * H;
  const float *w_hh = w + (D + 1) * rows;
  float *u = work + rows;
  elman_product(w, x, D, rows, w + D * rows, work);
  elman_product(w_hh, h, H, rows, w_hh + H * rows, u);
  ELMAN_PANELS(H, elman_gru_units(n, work + 3 * unit, u + 3 * unit, h + unit));
}

/* m = tanh(W_in x + b_in + W_hn (r * h) + b_hn), and else the same
   Weights: of r and z, W_ih (D, 2H), both biases' sum (2H), W_hh (H, 2H); of m the same (D, H), (H),
   (H, H). */

ELMAN_INLINE void elman_gru_reset_before_gates(int n, const float *__restrict sums,
                                               const float *__restrict h,
                                               float *__restrict gated, float *__restrict z) {
  int i;
  for (i = 0; i < n; ++i) {
    gated[i] = elman_sigmoid(sums[i]) * h[i];
    z[i] = elman_sigmoid(sums[n + i]);
  }
}

ELMAN_INLINE void elman_gru_reset_before(const float *w, const float *x, int D, int H, float *h,
                                         float *work) {
  const int rows = 2 * H;
  const float *late = w + (D + 1 + H) * rows;
  float *gated = work + rows, *z = gated + H;
  int i;
  elman_product(w, x, D, rows, w + D * rows, work);
  elman_product(w + (D + 1) * rows, h, H, rows, work, work);
  ELMAN_PANELS(H, elman_gru_reset_before_gates(n, work + 2 * unit, h + unit, gated + unit,
                                               z + unit));
  elman_product(late, x, D, H, late + D * H, work);
  elman_product(late + (D + 1) * H, gated, H, H, work, work);
  for (i = 0; i < H; ++i) {
    const float m = elman_tanh(work[i]);
    h[i] = elman_fma(z[i], h[i] - m, m);
  }
}

/* i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
   f = sigmoid(W_if x + b_if + W_hf h + b_hf)
   g = tanh(W_ig x + b_ig + W_hg h + b_hg)
   o = sigmoid(W_io x + b_io + W_ho h + b_ho)
   c' = f * c + i * g
   h' = o * tanh(c'), or where P > 0 the P values W_hr (o * tanh(c'))
   Weights: W_ih (D, 4H), both biases' sum (4H), W_hh (H or P, 4H), W_hr (H, P) where P > 0. */

ELMAN_INLINE void elman_lstm_units(int n, const float *__restrict sums, float *__restrict c,
                                   float *__restrict h) {
  int j;
  for (j = 0; j < n; ++j) {
    const float i = elman_sigmoid(sums[j]), f = elman_sigmoid(sums[n + j]);
    const float g = elman_tanh(sums[2 * n + j]), o = elman_sigmoid(sums[3 * n + j]);
    c[j] = elman_fma(f, c[j], i * g);
    h[j] = o * elman_tanh(c[j]);
  }
}

ELMAN_INLINE void elman_lstm(const float *w, const float *x, int D, int H, int P, float *h, float *c,
                             float *work) {
  const int rows = 4 * H, size = P > 0 ? P : H;
  const float *w_hh = w + (D + 1) * rows;
  float *hidden = P > 0 ? work + rows : h;
  elman_product(w, x, D, rows, w + D * rows, work);
  elman_product(w_hh, h, size, rows, work, work);
  ELMAN_PANELS(H, elman_lstm_units(n, work + 4 * unit, c + unit, hidden + unit));
  if (P > 0) elman_product(w_hh + P * rows, hidden, H, P, 0, h);
}

/* W x + b: weights (D, rows), then biases (rows). */
ELMAN_INLINE void elman_linear(const float *w, const float *x, int D, int rows, float *to) {
  elman_product(w, x, D, rows, w + D * rows, to);
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

ELMAN_INLINE void elman_tanh_all(const float *x, int n, float *to) {
  int i;
  for (i = 0; i < n; ++i) to[i] = elman_tanh(x[i]);
}

ELMAN_INLINE void elman_sigmoid_all(const float *x, int n, float *to) {
  int i;
  for (i = 0; i < n; ++i) to[i] = elman_sigmoid(x[i]);
}

ELMAN_INLINE void elman_relu_all(const float *x, int n, float *to) {
  int i;
  for (i = 0; i < n; ++i) to[i] = elman_relu(x[i]);
}

/* e^(x - max x) over their sum, which is taken in order. */
ELMAN_INLINE void elman_softmax_all(const float *x, int n, float *to) {
  float most = x[0], sum = 0.0f;
  int i;
  for (i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
  for (i = 0; i < n; ++i) {
    const elman_exponential part = elman_exp(x[i] - most);
    to[i] = elman_fma(part.scale, part.rest, part.scale);
    sum += to[i];
  }
  for (i = 0; i < n; ++i) to[i] /= sum;
}

#endif /* ELMAN_LAYERS */
