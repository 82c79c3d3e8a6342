// What a decode step is made of, on processors with AVX512-BF16: products of few rows with a large
// bfloat16 matrix, and attention of single queries. Sums are in float32 and rounded once.
//
// With few rows the time is that of reading the matrix, so it is read once. For one row it is read
// strictly in order, which memory serves fastest; for more, 4 outputs by up to 6 rows are summed in
// registers.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t OUTPUTS = 4;
constexpr int64_t LANES = 32;  // bfloat16 numbers in a register

__m512bh load(const uint16_t* p) {
  return (__m512bh)_mm512_loadu_si512(p);
}

__m512 widened(const uint16_t* p) {
  __m256i bits = _mm256_loadu_si256((const __m256i*)p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

void store(uint16_t* p, __m512 x) {
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x));
}

// The sums of a, b, c and d, in this order.
__m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
  __m512 all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  __m256 half = _mm256_add_ps(
      _mm512_castps512_ps256(all),
      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// One row of x with one of w; four chains of sums, for an addition takes several cycles.
uint16_t single(const uint16_t* x, const uint16_t* w, int64_t I) {
  __m512 sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= I; i += 4 * LANES)
    for (int k = 0; k < 4; k++)
      sum[k] = _mm512_dpbf16_ps(sum[k], load(x + i + k * LANES), load(w + i + k * LANES));
  for (; i < I; i += LANES) sum[0] = _mm512_dpbf16_ps(sum[0], load(x + i), load(w + i));
  __m512 pairs = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
  __m128bh out = _mm_cvtneps_pbh(_mm_set_ss(_mm512_reduce_add_ps(pairs)));
  return (uint16_t)_mm_extract_epi16((__m128i)out, 0);
}

// ROWS rows of x with OUTPUTS rows of w; the next OUTPUTS rows are asked for meanwhile.
template <int ROWS>
void tile(const uint16_t* x, const uint16_t* w, uint16_t* y, int64_t I, int64_t O) {
  __m512 sum[ROWS][OUTPUTS];
  for (int n = 0; n < ROWS; n++)
    for (int o = 0; o < OUTPUTS; o++) sum[n][o] = _mm512_setzero_ps();
  for (int64_t i = 0; i < I; i += LANES) {
    __m512bh weights[OUTPUTS];
    for (int o = 0; o < OUTPUTS; o++) {
      weights[o] = load(w + o * I + i);
      // subtle: beyond the last row this names memory that may not exist, which does no harm
      _mm_prefetch((const char*)(w + (o + OUTPUTS) * I + i), _MM_HINT_T0);
    }
    for (int n = 0; n < ROWS; n++) {
      __m512bh inputs = load(x + n * I + i);
      for (int o = 0; o < OUTPUTS; o++)
        sum[n][o] = _mm512_dpbf16_ps(sum[n][o], inputs, weights[o]);
    }
  }
  for (int n = 0; n < ROWS; n++) {
    __m128bh out = _mm_cvtneps_pbh(sums(sum[n][0], sum[n][1], sum[n][2], sum[n][3]));
    _mm_storel_epi64((__m128i*)(y + n * O), (__m128i)out);
  }
}

// Attention of one query (K) to `length` keys and values (length, K); K is a multiple of 64.
void attend(const uint16_t* q, const uint16_t* keys, const uint16_t* values, float* scores,
            uint16_t* out, int64_t length, int64_t K) {
  const float scale = 1 / std::sqrt((float)K);
  float most = -INFINITY, total = 0;
  for (int64_t s = 0; s < length; s++) {
    __m512 sum[2] = {};
    for (int64_t i = 0; i < K; i += 2 * LANES)
      for (int k = 0; k < 2; k++)
        sum[k] = _mm512_dpbf16_ps(sum[k], load(q + i + k * LANES), load(keys + s * K + i + k * LANES));
    scores[s] = scale * _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
    most = std::max(most, scores[s]);
  }
  for (int64_t s = 0; s < length; s++) total += scores[s] = std::exp(scores[s] - most);
  for (int64_t i = 0; i < K; i += 64) {
    __m512 sum[4] = {};
    for (int64_t s = 0; s < length; s++) {
      __m512 weight = _mm512_set1_ps(scores[s]);
      for (int k = 0; k < 4; k++)
        sum[k] = _mm512_fmadd_ps(weight, widened(values + s * K + i + 16 * k), sum[k]);
    }
    for (int k = 0; k < 4; k++)
      store(out + i + 16 * k, _mm512_div_ps(sum[k], _mm512_set1_ps(total)));
  }
}

// Rotates a head x (K) by cos and sin (K / 2), then divides it by its root mean square.
void rotate(const uint16_t* x, const float* cos, const float* sin, uint16_t* y, int64_t K,
            float eps) {
  const int64_t half = K / 2;
  float turned[512];
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < half; i += 16) {
    __m512 c = _mm512_loadu_ps(cos + i), s = _mm512_loadu_ps(sin + i);
    __m512 x1 = widened(x + i), x2 = widened(x + half + i);
    __m512 y1 = _mm512_fmadd_ps(x2, s, _mm512_mul_ps(x1, c));
    __m512 y2 = _mm512_fnmadd_ps(x1, s, _mm512_mul_ps(x2, c));
    squares = _mm512_fmadd_ps(y1, y1, _mm512_fmadd_ps(y2, y2, squares));
    _mm512_storeu_ps(turned + i, y1);
    _mm512_storeu_ps(turned + half + i, y2);
  }
  __m512 scale = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / K + eps));
  for (int64_t i = 0; i < K; i += 16)
    store(y + i, _mm512_mul_ps(scale, _mm512_loadu_ps(turned + i)));
}

}  // namespace

// q: N rows of H heads (H, K), row_stride apart. keys, values: slots of (Hkv, room, K), of which
// row n reads the first lengths[n] places of slots[n]. out (N, H, K).
extern "C" void single_attention(const uint16_t* q, const uint16_t* keys, const uint16_t* values,
                                 const int64_t* slots, const int64_t* lengths, uint16_t* out,
                                 int64_t N, int64_t H, int64_t Hkv, int64_t room, int64_t K,
                                 int64_t row_stride, int threads) {
  const int64_t longest = *std::max_element(lengths, lengths + N);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scores(longest);
#pragma omp for schedule(dynamic, 4)
    for (int64_t job = 0; job < N * H; job++) {
      const int64_t n = job / H, h = job % H;
      const int64_t place = (slots[n] * Hkv + h / (H / Hkv)) * room * K;
      attend(q + n * row_stride + h * K, keys + place, values + place, scores.data(),
             out + job * K, lengths[n], K);
    }
  }
}

// I is a multiple of 32, O of 4. Arrays are contiguous.
extern "C" void few_row_product(const uint16_t* x, const uint16_t* w, uint16_t* y, int64_t N,
                                int64_t I, int64_t O, int threads) {
  if (N == 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t o = 0; o < O; o++) y[o] = single(x, w + o * I, I);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t o = 0; o < O; o += OUTPUTS) {
    const uint16_t* weights = w + o * I;
    int64_t n = 0;
    for (; n + 6 <= N; n += 6) tile<6>(x + n * I, weights, y + n * O + o, I, O);
    const uint16_t* rest = x + n * I;
    uint16_t* out = y + n * O + o;
    switch (N - n) {
      case 5: tile<5>(rest, weights, out, I, O); break;
      case 4: tile<4>(rest, weights, out, I, O); break;
      case 3: tile<3>(rest, weights, out, I, O); break;
      case 2: tile<2>(rest, weights, out, I, O); break;
      case 1: tile<1>(rest, weights, out, I, O); break;
      default: break;
    }
  }
}

// qkv: N rows of H query, Hkv key and Hkv value heads of K <= 512. Queries and keys are rotated by
// row positions[n] of the tables (rows of K, of which the first half is read) and normalised;
// queries go to q (N, H, K), keys and values to place positions[n] of slot slots[n].
extern "C" void rotate_and_keep(const uint16_t* qkv, const float* cos, const float* sin,
                                const int64_t* slots, const int64_t* positions, uint16_t* q,
                                uint16_t* keys, uint16_t* values, int64_t N, int64_t H, int64_t Hkv,
                                int64_t room, int64_t K, float eps) {
  for (int64_t n = 0; n < N; n++) {
    const float *c = cos + positions[n] * K, *s = sin + positions[n] * K;
    const uint16_t* x = qkv + n * (H + 2 * Hkv) * K;
    for (int64_t h = 0; h < H; h++) rotate(x + h * K, c, s, q + (n * H + h) * K, K, eps);
    for (int64_t h = 0; h < Hkv; h++) {
      const int64_t place = ((slots[n] * Hkv + h) * room + positions[n]) * K;
      rotate(x + (H + h) * K, c, s, keys + place, K, eps);
      std::memcpy(values + place, x + (H + Hkv + h) * K, K * sizeof(uint16_t));
    }
  }
}

// y (N, D): the rows of x divided by their root mean squares; D is a multiple of 16.
extern "C" void rms_norm(const uint16_t* x, uint16_t* y, int64_t N, int64_t D, float eps) {
  for (int64_t n = 0; n < N; n++, x += D, y += D) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < D; i += 16)
      squares = _mm512_fmadd_ps(widened(x + i), widened(x + i), squares);
    __m512 scale = _mm512_set1_ps(1 / std::sqrt(_mm512_reduce_add_ps(squares) / D + eps));
    for (int64_t i = 0; i < D; i += 16) store(y + i, _mm512_mul_ps(scale, widened(x + i)));
  }
}
