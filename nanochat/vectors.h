// Vectors of float32 as wide as the processor's registers, by the vector extensions of GCC and
// Clang: AVX-512, AVX2 with FMA, or 128 bits (NEON, SSE2), as the compiler's flags say.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));

// A bfloat16 number: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

inline Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline Words load_words(const uint32_t* p) {
  Words x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

inline Floats load(const BFloat16* p) {
  Halves x;
  std::memcpy(&x, p, sizeof x);
#if defined(__aarch64__)
  const uint16x4_t zero = vdup_n_u16(0);  // one instruction; GCC 12 would convert number by number
  return (Floats)vzip1q_u16(vcombine_u16(zero, zero), vcombine_u16((uint16x4_t)x, zero));
#else
  return (Floats)(__builtin_convertvector(x, Words) << 16);
#endif
}

inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }

inline float widen(float x) { return x; }

inline float widen(BFloat16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void narrow(float x, float* to) { *to = x; }

// The nearest bfloat16, of two the even one; NaN stays NaN.
inline void narrow(float x, BFloat16* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) {
    to->bits = (uint16_t)(bits >> 16 | 64);
    return;
  }
  to->bits = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline void store(BFloat16* p, Floats x) {
  const Words bits = (Words)x, rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  const Halves halves = __builtin_convertvector(x == x ? rounded : bits >> 16 | 64, Halves);
  std::memcpy(p, &halves, sizeof halves);
}

// The sum of a vector's elements, always in the same order.
inline float sum(Floats x) {
  float parts[LANES];
  store(parts, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return parts[0];
}

// The sum of a[i] b[i]; four chains, because an addition takes several cycles.
// subtle: what is left over is added by std::fma. The compiler would round a product of floats once
// or, where it makes vectors of them, twice: the bits would depend on how many there are.
template <class T>
inline float dot(const float* a, const T* b, int64_t n) {
  Floats chains[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int c = 0; c < 4; c++) chains[c] += load(a + i + c * LANES) * load(b + i + c * LANES);
  for (; i + LANES <= n; i += LANES) chains[0] += load(a + i) * load(b + i);
  float total = sum((chains[0] + chains[1]) + (chains[2] + chains[3]));
  for (; i < n; i++) total = std::fma(a[i], widen(b[i]), total);
  return total;
}

// e^x to about 1e-7 of itself, for x of -87 to 88; beyond, that of the nearest of them. As in
// Cephes: x = n ln 2 + r, a polynomial of r, and n added to the exponent's bits.
inline Floats exponential(Floats x) {
  const Floats low = Floats{} - 87.0f, high = Floats{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const float round = 12582912.0f;  // 1.5 * 2^23: added to a number, it rounds it to an integer
  Floats shifted = x * 1.44269504f + round;
  Floats n = shifted - round;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  Floats y = p * (r * r) + r + 1.0f;
  Ints exponent = (Ints)shifted - 0x4B400000;  // n as an integer
  return (Floats)((Ints)y + (exponent << 23));
}

// tanh x to about 1e-7.
inline Floats hyperbolic_tangent(Floats x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

struct Softmax {
  float most, total;  // the largest score, and the sum of the weights
};

// Scores of one query become weights, e^(score - the largest). What lies beyond `length`, up to
// `padded`, a multiple of LANES, becomes 0.
inline Softmax softmax_weights(float* scores, int64_t length, int64_t padded) {
  for (int64_t s = length; s < padded; s++) scores[s] = -INFINITY;
  Floats highest = load(scores), total = {};
  for (int64_t s = LANES; s < padded; s += LANES) {
    const Floats x = load(scores + s);
    highest = x > highest ? x : highest;
  }
  float most = highest[0];
  for (int lane = 1; lane < LANES; lane++) most = highest[lane] > most ? highest[lane] : most;
  for (int64_t s = 0; s < padded; s += LANES) {
    const Floats x = load(scores + s) - most;
    const Floats weights = x < -87.0f ? Floats{} : exponential(x);
    store(scores + s, weights);
    total += weights;
  }
  return {most, sum(total)};
}
