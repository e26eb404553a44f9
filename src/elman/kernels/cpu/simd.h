// The vector of one instruction set, and exp, tanh and sigmoid on it.
//
// This header and those above it (cells.h, gemm.h, panels.h, forward.h, step.h, backward.h) are
// compiled once for each instruction set, each time in a namespace named by ELMAN_ISA. They call
// no function that lives outside that namespace: an inline function of the standard library,
// compiled here for AVX-512, could be the copy that the linker keeps for everyone.
//
// Every operation rounds as IEEE 754 says, and fma() is one rounding everywhere, so that all
// instruction sets give the same bits. Compile with -ffp-contract=off.
#pragma once

#include <cstdint>
#include <utility>

#include "engine.h"

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ELMAN_INLINE inline __attribute__((always_inline))
#define ELMAN_APART __attribute__((noinline))

// Long emulations are not repeated in every line of every tile.
#if defined(__FMA__) || defined(__aarch64__)
#define ELMAN_EMULATED ELMAN_INLINE
#else
#define ELMAN_EMULATED static ELMAN_APART
#endif

namespace elman::ELMAN_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr int kAccumulators = 24;  // of 32 registers
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
inline constexpr int kAccumulators = 12;  // of 16 registers
#elif defined(__aarch64__)
inline constexpr int kVectorBytes = 16;
inline constexpr int kAccumulators = 24;
#else
inline constexpr int kVectorBytes = 16;
inline constexpr int kAccumulators = 12;
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef std::int32_t Int;
  typedef Int Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23;
  static constexpr Int kBias = 127;
  static constexpr float kRound = 0x1.8p23f;  // adding it rounds to the nearest integer
  static constexpr float kLowest = -87.0f;    // exp of it is still a normal number
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // q of e^r - 1 = r + r^2 q(r) for |r| <= ln(2)/2: minimax, relative error 1.3e-8.
  static constexpr float kExp[] = {0.4999999814957756623f, 0.16666543424445384059f,
                                   0.041667200730433014982f, 0.0083665471194146427098f,
                                   0.0013882515212956579815f};
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef std::int64_t Int;
  typedef Int Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52;
  static constexpr Int kBias = 1023;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLowest = -708.0;
  static constexpr double kLn2High = 6.93147180369123816490e-01,
                          kLn2Low = 1.90821492927058770002e-10;
  // As above: relative error 3e-21.
  static constexpr double kExp[] = {
      0.4999999999999999999,      0.16666666666666666686,   0.041666666666666691201,
      0.0083333333333333124141,   0.0013888888888872261992, 0.00019841269841343028827,
      0.000024801587349499473197, 2.7557319117290021591e-6, 2.755725235564181777e-7,
      2.5052167835488305873e-8,   2.0921456544263214734e-9, 1.6059720361250740735e-10};
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Bits = typename Simd<T>::Bits;

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
ELMAN_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
ELMAN_INLINE void store(T* to, Vector<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// The first `count` lanes only; the others load as zero. Memory past them is not touched.
ELMAN_INLINE Vector<float> load_part(const float* from, index count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
#else
  if (count == kLanes<float>) return load<float>(from);
  Vector<float> v = {};
  for (index i = 0; i < count; ++i) v[i] = from[i];
  return v;
#endif
}

ELMAN_INLINE Vector<double> load_part(const double* from, index count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
#else
  if (count == kLanes<double>) return load<double>(from);
  Vector<double> v = {};
  for (index i = 0; i < count; ++i) v[i] = from[i];
  return v;
#endif
}

ELMAN_INLINE void store_part(float* to, Vector<float> v, index count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v);
#else
  if (count == kLanes<float>) return store<float>(to, v);
  for (index i = 0; i < count; ++i) to[i] = v[i];
#endif
}

ELMAN_INLINE void store_part(double* to, Vector<double> v, index count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), v);
#else
  if (count == kLanes<double>) return store<double>(to, v);
  for (index i = 0; i < count; ++i) to[i] = v[i];
#endif
}

template <class T>
ELMAN_INLINE Vector<T> load_units(const T* from, index count) {
  return count >= kLanes<T> ? load<T>(from) : load_part(from, count);
}

template <class T>
ELMAN_INLINE void store_units(T* to, Vector<T> v, index count) {
  if (count >= kLanes<T>) {
    store<T>(to, v);
  } else {
    store_part(to, v, count);
  }
}

// Half precision. A float has every value of it, so nothing is rounded here.
typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

template <class Half>
ELMAN_INLINE Halves load_halves(const Half* from, index count) {
  Halves v = {};
  if (count == kLanes<float>) {
    __builtin_memcpy(&v, from, sizeof v);
  } else {
    for (index i = 0; i < count; ++i) v[i] = from[i].bits;
  }
  return v;
}

ELMAN_EMULATED Vector<float> widen(Halves v, bfloat16) {
#if defined(__AVX512F__)
  return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)v), 16);
#elif defined(__AVX2__)
  return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)v), 16);
#else
  return (Vector<float>)(__builtin_convertvector(v, Bits<float>) << 16);
#endif
}

ELMAN_EMULATED Vector<float> widen(Halves v, float16) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)v);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)v);
#else
  // The exponent and mantissa of a float, times 2^112 for the difference of the biases, which also
  // makes subnormal numbers normal.
  const Bits<float> bits = __builtin_convertvector(v, Bits<float>);
  const Bits<float> magnitude = (bits & 0x7fff) << 13;
  const Bits<float> finite = (Bits<float>)((Vector<float>)magnitude * 0x1p112f);
  const Bits<float> all = magnitude < (31 << 23) ? finite : magnitude | (255 << 23);
  return (Vector<float>)(all | (bits & 0x8000) << 16);
#endif
}

template <class T, class Half>
  requires requires(Half h) { h.bits; }
ELMAN_INLINE Vector<T> load(const Half* from) {
  return widen(load_halves(from, kLanes<T>), Half{});
}

template <class Half>
  requires requires(Half h) { h.bits; }
ELMAN_INLINE Vector<float> load_part(const Half* from, index count) {
  return widen(load_halves(from, count), Half{});
}

// Values that are only moved: a lane each, whatever they mean.
template <class T>
ELMAN_INLINE Vector<T> load_raw(const T* from, index count) {
  return load_part(from, count);
}

template <class Half>
  requires requires(Half h) { h.bits; }
ELMAN_INLINE Vector<float> load_raw(const Half* from, index count) {
  return (Vector<float>)__builtin_convertvector(load_halves(from, count), Bits<float>);
}

template <class T>
ELMAN_INLINE void store_raw(T* to, Vector<T> v) {
  store<T>(to, v);
}

template <class Half>
  requires requires(Half h) { h.bits; }
ELMAN_INLINE void store_raw(Half* to, Vector<float> v) {
  const Halves halves = __builtin_convertvector((Bits<float>)v, Halves);
  __builtin_memcpy(to, &halves, sizeof halves);
}

ELMAN_INLINE Vector<float> broadcast(float x) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(x);
#elif defined(__AVX2__)
  return _mm256_set1_ps(x);
#else
  return Vector<float>{x, x, x, x};
#endif
}

ELMAN_INLINE Vector<double> broadcast(double x) {
#if defined(__AVX512F__)
  return _mm512_set1_pd(x);
#elif defined(__AVX2__)
  return _mm256_set1_pd(x);
#else
  return Vector<double>{x, x};
#endif
}

// a * b + c with one rounding.
ELMAN_EMULATED Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  // The product of two floats is exact as a double. The sum is rounded to odd: where it is inexact
  // its last bit is made 1, which keeps the second rounding, to float, from falling on a false tie
  // (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE Transactions on
  // Computers 57 (2008)).
  typedef double Wide __attribute__((vector_size(2 * kVectorBytes)));
  typedef std::int64_t WideBits __attribute__((vector_size(2 * kVectorBytes)));
  const Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
  const Wide addend = __builtin_convertvector(c, Wide);
  const Wide sum = product + addend;
  const Wide kept = sum - product;
  const Wide lost = (product - (sum - kept)) + (addend - kept);
  const WideBits bits = (WideBits)sum;
  const WideBits inexact = (lost > 0) | (lost < 0);
  const WideBits towards = ((lost > 0) == (sum > 0)) ? WideBits{} + 1 : WideBits{} - 1;
  const WideBits odd = bits + (towards & inexact & ((bits & 1) - 1));
  return __builtin_convertvector((Wide)odd, Vector<float>);
#endif
}

ELMAN_EMULATED Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  Vector<double> result;
  for (int i = 0; i < kLanes<double>; ++i) result[i] = __builtin_fma(a[i], b[i], c[i]);
  return result;
#endif
}

// The lanes of the lower (or upper) halves of a and b in turn: a0 b0 a1 b1 ... in each N lanes.
template <class T, int N, int From, int... I>
ELMAN_INLINE Vector<T> riffle(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / N * N + From + I % N / 2 + I % 2 * kLanes<T>)...);
}

// Rows become columns, in each N lanes of N vectors: after log2(N) riffles of the first half of the
// rows with the second.
template <class T, int N>
ELMAN_INLINE void transpose(Vector<T> (&rows)[N]) {
  constexpr auto all = std::make_integer_sequence<int, kLanes<T>>();
#pragma GCC unroll 4
  for (int round = 1; round < N; round *= 2) {
    Vector<T> next[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      next[2 * i] = riffle<T, N, 0>(rows[i], rows[i + N / 2], all);
      next[2 * i + 1] = riffle<T, N, N / 2>(rows[i], rows[i + N / 2], all);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) rows[i] = next[i];
  }
}

// Rows in memory are turned into columns, so many at a time: row(i) is where row i begins, and only
// its first `count` values are read. AVX2 brings pieces of 16 bytes together while it loads them,
// which spares it most of the shuffles of a whole square.
#if defined(__AVX2__) && !defined(__AVX512F__)
template <class T>
inline constexpr int kTurned = 16 / static_cast<int>(sizeof(T));

template <class T>
ELMAN_INLINE Vector<T> load_pieces(const T* low, const T* high) {
  const auto piece = [](const T* from) {
    return _mm_loadu_ps(static_cast<const float*>(static_cast<const void*>(from)));
  };
  return (Vector<T>)_mm256_insertf128_ps(_mm256_castps128_ps256(piece(low)), piece(high), 1);
}

template <class T, class Row>
ELMAN_INLINE Vector<T> load_column(Row row, index k) {
  Vector<T> column;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) column[i] = row(i)[k];
  return column;
}

template <class T, class Row>
ELMAN_INLINE void load_columns(Vector<T> (&to)[kTurned<T>], Row row, index count) {
  if (count == kTurned<T>) {
#pragma GCC unroll 16
    for (int i = 0; i < kTurned<T>; ++i) to[i] = load_pieces(row(i), row(i + kTurned<T>));
    transpose<T>(to);
  } else {
#pragma GCC unroll 16
    for (int k = 0; k < kTurned<T>; ++k) {
      if (k < count) to[k] = load_column<T>(row, k);
    }
  }
}
#else
template <class T>
inline constexpr int kTurned = kLanes<T>;

template <class T, class Row>
ELMAN_INLINE void load_columns(Vector<T> (&to)[kTurned<T>], Row row, index count) {
#pragma GCC unroll 16
  for (int i = 0; i < kTurned<T>; ++i) {
    to[i] = count == kTurned<T> ? load<T>(row(i)) : load_part(row(i), count);
  }
  transpose<T>(to);
}
#endif

template <class T>
struct ScaledExpm1 {
  Vector<T> scale, rest;  // e^x = scale * (1 + rest), scale a power of two
};

// For x <= 0 or NaN; below kLowest as at kLowest.
template <class T>
ELMAN_INLINE ScaledExpm1<T> scaled_expm1(Vector<T> x) {
  using S = Simd<T>;
  const Vector<T> lowest = broadcast(S::kLowest);
  x = x < lowest ? lowest : x;
  const Vector<T> round = broadcast(S::kRound);
  const Vector<T> shifted = fma(x, broadcast(static_cast<T>(1.44269504088896340736)), round);
  const Vector<T> n = shifted - round;
  Vector<T> r = fma(n, broadcast(-S::kLn2High), x);
  r = fma(n, broadcast(-S::kLn2Low), r);
  constexpr int terms = sizeof(S::kExp) / sizeof(T);
  Vector<T> q = broadcast(S::kExp[terms - 1]);
#pragma GCC unroll 16
  for (int i = terms - 2; i >= 0; --i) q = fma(q, r, broadcast(S::kExp[i]));
  // The low bits of `shifted` hold n as an integer; the shift drops everything above them.
  const Bits<T> exponent = ((Bits<T>)shifted + S::kBias) << S::kMantissa;
  return {(Vector<T>)exponent, fma(r * r, q, r)};
}

template <class T>
inline constexpr typename Simd<T>::Int kSign = typename Simd<T>::Int{1} << (sizeof(T) * 8 - 1);

// -|x|
template <class T>
ELMAN_INLINE Vector<T> negative(Vector<T> x) {
  return (Vector<T>)((Bits<T>)x | kSign<T>);
}

// tanh|x| = -m / (2 + m) with m = e - 1 and e = e^(-2|x|): no overflow at any x, no cancellation
// near 0. From 1/2 on 1 - 2e / (1 + e), in which the rounding of e and of 1 + e counts for less.
template <class T>
ELMAN_INLINE Vector<T> tanh(Vector<T> x) {
  const auto [scale, rest] = scaled_expm1<T>(negative<T>(x + x));
  const Vector<T> e = fma(scale, rest, scale), m = fma(scale, rest, scale - 1);
  const Vector<T> zero = {}, one = broadcast(static_cast<T>(1));
  const auto large = e < broadcast(static_cast<T>(1.0 / 3));
  const Vector<T> t = (large ? one : zero) - (large ? e + e : m) / (e + 1);
  return (Vector<T>)(((Bits<T>)t & ~kSign<T>) | ((Bits<T>)x & kSign<T>));
}

// 1 / (1 + e^-|x|), or e^-|x| / (1 + e^-|x|) where x < 0.
template <class T>
ELMAN_INLINE Vector<T> sigmoid(Vector<T> x) {
  const auto [scale, rest] = scaled_expm1<T>(negative<T>(x));
  const Vector<T> e = fma(scale, rest, scale);
  const Vector<T> one = broadcast(static_cast<T>(1));
  return (x < 0 ? e : one) / (e + 1);
}

}  // namespace elman::ELMAN_ISA
