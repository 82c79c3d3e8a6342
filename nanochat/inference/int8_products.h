// Products of rows, rounded to 7 bits, with an int8 matrix: integers until 64 inputs are summed.

#pragma once

#include <vector>

#include "products.h"

// 7 bits: the products of two inputs with two weights, 2 * 63 * 255 at most, must fit into 16 bits.
constexpr int LARGEST = 63;
constexpr int INT8_VECTORS = TILE_VECTORS<INT8>;
constexpr int INT8_ROWS = LANES == 8 ? 5 : TILE_ROWS<INT8>;  // a register holds ones

// Rows of numbers from -63 to 63, four of them in a word; 64 share a scale.
struct RoundedRows {
  struct Scale {
    float factor;
    int32_t start;  // what the OFFSET of each weight (matrix.h) makes too much, negative
  };

  int64_t words = 0, blocks = 0;  // of a row
  std::vector<uint32_t> numbers;
  std::vector<Scale> scales;

  void resize(int64_t rows, int64_t inputs) {
    blocks = round_up(inputs, INT8_BLOCK) / INT8_BLOCK, words = blocks * INT8_BLOCK / 4;
    if ((int64_t)numbers.size() < rows * words) numbers.resize(rows * words);
    if ((int64_t)scales.size() < rows * blocks) scales.resize(rows * blocks);
  }

  // Row n: x (inputs, filled up to a multiple of 16 with zeros), rounded to nearest.
  void keep(int64_t n, const float* x, int64_t inputs) {
    int8_t* bytes = (int8_t*)(numbers.data() + n * words);
    for (int64_t start = 0; start < inputs; start += INT8_BLOCK) {
      const int64_t end = std::min(round_up(inputs, 16), start + INT8_BLOCK);
      Ints most = {};  // as integers, so that a NaN, the largest then, is not lost
      for (int64_t i = start; i < end; i += LANES) {
        Ints size = (Ints)load(x + i) & 0x7FFFFFFF;
        most = size > most ? size : most;
      }
      float largest, sizes[LANES];
      std::memcpy(sizes, &most, sizeof sizes);
      largest = sizes[0];
      for (float size : sizes) largest = largest >= size ? largest : size;
      const float inverse = largest > 0 ? LARGEST / largest : 0;
      const float round = 12582912.0f;  // 1.5 * 2^23: added to a number, it rounds it to an integer
      Ints total = {};
      for (int64_t i = start; i < end; i += LANES) {
        Ints rounded = (Ints)(load(x + i) * inverse + round) - 0x4B400000;
        total += rounded;
        for (int lane = 0; lane < LANES; lane++) bytes[i + lane] = (int8_t)rounded[lane];
      }
      int32_t sum = 0;
      for (int lane = 0; lane < LANES; lane++) sum += total[lane];
      scales[n * blocks + start / INT8_BLOCK] = {largest / LARGEST, -OFFSET * sum};
    }
  }
};

// Adds the products of four numbers from -63 to 63, in x, with the four bytes of each output to
// `sums`.
inline Ints dot_bytes(Ints sums, uint32_t x, Words weights) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32((int)x));
#elif defined(__AVX512BW__)
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)weights, _mm512_set1_epi32((int)x));
  return sums + (Ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)weights, _mm256_set1_epi32((int)x));
  return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__SSE2__)
  const Shorts numbers = (Shorts)(Words{} + x), even = numbers << 8 >> 8, odd = numbers >> 8;
  sums += (Ints)_mm_madd_epi16((__m128i)even, (__m128i)(weights & 0x00FF00FFu));
  return sums + (Ints)_mm_madd_epi16((__m128i)odd, (__m128i)(weights >> 8 & 0x00FF00FFu));
#elif defined(__ARM_FEATURE_DOTPROD)
  return (Ints)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)(Words{} + x));
#elif defined(__aarch64__)
  const int8x16_t bytes = (int8x16_t)weights, numbers = (int8x16_t)(Words{} + x);
  const int16x8_t low = vmull_s8(vget_low_s8(bytes), vget_low_s8(numbers));
  const int16x8_t pairs = vpaddq_s16(low, vmull_high_s8(bytes, numbers));
  return (Ints)vpadalq_s16((int32x4_t)sums, pairs);
#else
#pragma GCC unroll 4
  for (int part = 0; part < 4; part++)
    sums += (int32_t)(int8_t)(x >> 8 * part) * (Ints)(weights >> 8 * part & 255u);
  return sums;
#endif
}

// Adds the products of a block of ROWS rows, from `first` on, with V vectors of a panel's outputs,
// from `output` on, to sums [row][32].
template <bool FETCH, int ROWS, int V>
inline void tile_of_int8(const RoundedRows& x, int64_t first, int64_t start, int64_t inputs,
                         const uint32_t* block, int64_t output, float* sums) {
  const uint32_t *numbers = x.numbers.data() + first * x.words + start / 4;
  const uint32_t *words = block + PANEL + output;
  const int64_t stride = x.words;
  const RoundedRows::Scale* scales = x.scales.data() + first * x.blocks + start / INT8_BLOCK;
  Ints totals[ROWS][V];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) totals[r][v] = Ints{} + scales[r * x.blocks].start;
  for (int64_t i = 0; i < inputs / 4; i++, words += PANEL) {
    if constexpr (FETCH)
      for (int v = 0; v < V; v += 64 / (4 * LANES))
        __builtin_prefetch(words + (1 + INT8_BLOCK / 4) * PANEL + v * LANES);
    Words w[V];
    for (int v = 0; v < V; v++) w[v] = load_words(words + v * LANES);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < V; v++) totals[r][v] = dot_bytes(totals[r][v], numbers[r * stride + i], w[v]);
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) {
      float* sum = sums + r * PANEL + output + v * LANES;
      Floats scale = scales[r * x.blocks].factor * load((const float*)block + output + v * LANES);
      store(sum, load(sum) + scale * __builtin_convertvector(totals[r][v], Floats));
    }
}

// The same for `rows` rows, ROWS at most, and all outputs of the panel.
template <bool FETCH, int ROWS>
inline void tile_of_int8(int64_t rows, const RoundedRows& x, int64_t first, int64_t start,
                         int64_t inputs, const uint32_t* block, float* sums) {
  if constexpr (ROWS > 1)
    if (rows < ROWS)
      return tile_of_int8<FETCH, ROWS - 1>(rows, x, first, start, inputs, block, sums);
  constexpr int V = ROWS * VECTORS <= REGISTERS / 2 ? VECTORS : INT8_VECTORS;
  for (int v = 0; v < VECTORS; v += V)
    tile_of_int8<FETCH, ROWS, V>(x, first, start, inputs, block, v * LANES, sums);
}

// As panel_product, with an int8 matrix.
template <class Finish>
void panel_product_of_int8(const RoundedRows& x, int64_t rows, const Matrix& matrix, int64_t p,
                           const Finish& finish) {
  alignas(64) float sums[ROWS_AT_ONCE * PANEL];
  for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
    const int64_t some = std::min(ROWS_AT_ONCE, rows - first);
    const uint32_t* block = matrix.words.get() + p * matrix.panel_words();
    std::memset(sums, 0, some * PANEL * sizeof(float));
    for (int64_t start = 0; start < matrix.inputs; start += INT8_BLOCK) {
      const int64_t inputs = std::min(INT8_BLOCK, matrix.inputs - start);
      auto tile = rows <= SINGLE_PASS ? tile_of_int8<false, INT8_ROWS> : tile_of_int8<true, INT8_ROWS>;
      for (int64_t done = 0, left = (some + INT8_ROWS - 1) / INT8_ROWS; left > 0; left--) {
        const int64_t size = (some - done + left - 1) / left;
        tile(size, x, first + done, start, inputs, block, sums + done * PANEL);
        done += size;
      }
      block += PANEL + inputs / 4 * PANEL;
    }
    for (int64_t r = 0; r < some; r++) finish(first + r, sums + r * PANEL);
  }
}
