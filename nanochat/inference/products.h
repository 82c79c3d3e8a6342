// Products of float32 rows with a matrix kept as float32, bfloat16 or int8, which is read once, in
// the order in which it lies in memory. Sums are in float32.
//
// A matrix lies in panels of 32 outputs, so that a panel's sums stay in registers while its inputs
// are gone through one by one. A 32-bit word holds one float32, two bfloat16 of neighbouring inputs
// (the order that dot-product instructions want), or four int8:
//
//   float32    [input][32 outputs]           bfloat16    [input / 2][32 outputs][2 inputs]
//   int8       per 64 inputs: [32 scales], [input / 4][32 outputs][4 inputs]
//
// A sum is taken over the inputs in their order, however many rows and threads there are, so that a
// row's result has the same bits alone and among others. int8 sums 64 inputs before it scales.

#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vectors.h"

enum Kind { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

constexpr int64_t PANEL = 32;             // outputs
constexpr int VECTORS = PANEL / LANES;    // of a panel's sums
constexpr int64_t INT8_BLOCK = 64;        // inputs that share a scale
constexpr int64_t WIDE_BLOCK = 128;       // inputs whose weights are widened at a time
constexpr int64_t ROWS_AT_ONCE = 96;      // whose sums stay in the cache
constexpr int REGISTERS = LANES == 8 ? 16 : 32;
constexpr int TILE = std::max(1, (REGISTERS - 4) / VECTORS);  // rows whose sums fit the registers

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Inputs are filled up to a multiple of 4 with zeros, as the rows that are multiplied must be, and
// outputs to whole panels.
struct Matrix {
  int64_t outputs, inputs;
  Kind kind;
  std::shared_ptr<uint32_t> words;

  Matrix(int64_t outputs, int64_t inputs, Kind kind)
      : outputs(outputs), inputs(round_up(inputs, 4)), kind(kind) {
    const size_t page = 1 << 21, size = round_up(bytes(), page);
    void* memory = nullptr;
    if (posix_memalign(&memory, page, size)) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, size, MADV_HUGEPAGE);  // a small page's address is looked up for every 4 kB
#endif
    std::memset(memory, 0, bytes());
    words.reset((uint32_t*)memory, std::free);
  }

  int64_t panels() const { return (outputs + PANEL - 1) / PANEL; }
  int64_t panel_words() const {
    if (kind == FLOAT32) return inputs * PANEL;
    if (kind == BFLOAT16) return inputs / 2 * PANEL;
    return (inputs / 4 + (inputs + INT8_BLOCK - 1) / INT8_BLOCK) * PANEL;
  }
  int64_t bytes() const { return panels() * panel_words() * 4; }
};

// ---------------------------------------------------------------- keeping weights

// Writes one output's weights (inputs) into its place.
template <class Source>
void keep_row(Matrix& matrix, int64_t output, const Source* weights, int64_t inputs) {
  uint32_t* panel = matrix.words.get() + output / PANEL * matrix.panel_words();
  const int64_t lane = output % PANEL;
  if (matrix.kind == FLOAT32) {
    for (int64_t i = 0; i < inputs; i++) {
      float weight = widen(weights[i]);
      std::memcpy(panel + i * PANEL + lane, &weight, 4);
    }
  } else if (matrix.kind == BFLOAT16) {
    BFloat16* halves = (BFloat16*)panel;
    for (int64_t i = 0; i < inputs; i++)
      narrow(widen(weights[i]), halves + (i / 2 * PANEL + lane) * 2 + i % 2);
  } else {
    for (int64_t start = 0; start < inputs; start += INT8_BLOCK) {
      const int64_t end = std::min(inputs, start + INT8_BLOCK);
      float most = 0;
      for (int64_t i = start; i < end; i++) most = std::max(most, std::fabs(widen(weights[i])));
      const float scale = most / 127, inverse = most > 0 ? 127 / most : 0;
      std::memcpy(panel + lane, &scale, 4);
      int8_t* bytes = (int8_t*)(panel + PANEL);
      for (int64_t i = start; i < end; i++)
        bytes[((i - start) / 4 * PANEL + lane) * 4 + (i - start) % 4] =
            (int8_t)std::nearbyint(widen(weights[i]) * inverse);
      panel += PANEL + INT8_BLOCK / 4 * PANEL;
    }
  }
}

// ---------------------------------------------------------------- one row

inline void row_of_floats(const float* x, const uint32_t* panel, int64_t inputs, float* y) {
  Floats sums[VECTORS] = {};
  const float* weights = (const float*)panel;
  for (int64_t i = 0; i < inputs; i++, weights += PANEL)
    for (int v = 0; v < VECTORS; v++) sums[v] += x[i] * load(weights + v * LANES);
  for (int v = 0; v < VECTORS; v++) store(y + v * LANES, sums[v]);
}

inline void row_of_bfloat16(const float* x, const uint32_t* panel, int64_t inputs, float* y) {
  Floats sums[VECTORS] = {};
  for (int64_t i = 0; i < inputs; i += 2, panel += PANEL)
    for (int v = 0; v < VECTORS; v++) {
      Words pair = load_words(panel + v * LANES);
      sums[v] += x[i] * (Floats)(pair << 16);
      sums[v] += x[i + 1] * (Floats)(pair & 0xFFFF0000u);
    }
  for (int v = 0; v < VECTORS; v++) store(y + v * LANES, sums[v]);
}

inline void row_of_int8(const float* x, const uint32_t* panel, int64_t inputs, float* y) {
  Floats sums[VECTORS] = {};
  for (int64_t start = 0; start < inputs; start += INT8_BLOCK) {
    const float* scales = (const float*)panel;
    panel += PANEL;
    Floats block[VECTORS] = {};
    for (int64_t i = start; i < std::min(inputs, start + INT8_BLOCK); i += 4, panel += PANEL)
      for (int v = 0; v < VECTORS; v++) {
        Ints four = (Ints)load_words(panel + v * LANES);
        block[v] += x[i] * __builtin_convertvector((four << 24) >> 24, Floats);
        block[v] += x[i + 1] * __builtin_convertvector((four << 16) >> 24, Floats);
        block[v] += x[i + 2] * __builtin_convertvector((four << 8) >> 24, Floats);
        block[v] += x[i + 3] * __builtin_convertvector(four >> 24, Floats);
      }
    for (int v = 0; v < VECTORS; v++) sums[v] += load(scales + v * LANES) * block[v];
  }
  for (int v = 0; v < VECTORS; v++) store(y + v * LANES, sums[v]);
}

// ---------------------------------------------------------------- several rows

// Adds the products of ROWS rows of x, `stride` apart, with weights [input][32] to sums [row][32].
template <int ROWS>
inline void tile(const float* x, int64_t stride, const float* weights, int64_t inputs, float* sums) {
  Floats totals[ROWS][VECTORS];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) totals[r][v] = load(sums + r * PANEL + v * LANES);
  for (int64_t i = 0; i < inputs; i++, weights += PANEL) {
    Floats w[VECTORS];
    for (int v = 0; v < VECTORS; v++) w[v] = load(weights + v * LANES);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++) totals[r][v] += x[r * stride + i] * w[v];
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) store(sums + r * PANEL + v * LANES, totals[r][v]);
}

// The same for any number of rows.
inline void tiles(const float* x, int64_t stride, int64_t rows, const float* weights, int64_t inputs,
                  float* sums) {
  int64_t r = 0;
  for (; r + TILE <= rows; r += TILE)
    tile<TILE>(x + r * stride, stride, weights, inputs, sums + r * PANEL);
  if constexpr (TILE > 4)
    for (; r + 4 <= rows; r += 4) tile<4>(x + r * stride, stride, weights, inputs, sums + r * PANEL);
  if constexpr (TILE > 2)
    for (; r + 2 <= rows; r += 2) tile<2>(x + r * stride, stride, weights, inputs, sums + r * PANEL);
  for (; r < rows; r++) tile<1>(x + r * stride, stride, weights, inputs, sums + r * PANEL);
}

// Adds, for each output, both products of a pair of inputs with a pair of weights to `sums`.
inline Floats dot_pairs(Floats sums, uint32_t x, Words weights) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)_mm512_set1_epi32((int)x),
                                  (__m512bh)weights);
#else
  Words pair = Words{} + x;
  sums += (Floats)(pair << 16) * (Floats)(weights << 16);
  return sums + (Floats)(pair & 0xFFFF0000u) * (Floats)(weights & 0xFFFF0000u);
#endif
}

// ROWS rows of bfloat16 pairs of x, `stride` words apart, with a panel: sums [row][32].
template <int ROWS>
inline void tile_of_pairs(const uint32_t* x, int64_t stride, const uint32_t* panel, int64_t pairs,
                          float* sums) {
  Floats totals[ROWS][VECTORS] = {};
  for (int64_t i = 0; i < pairs; i++, panel += PANEL) {
    Words w[VECTORS];
    for (int v = 0; v < VECTORS; v++) w[v] = load_words(panel + v * LANES);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < VECTORS; v++)
        totals[r][v] = dot_pairs(totals[r][v], x[r * stride + i], w[v]);
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECTORS; v++) store(sums + r * PANEL + v * LANES, totals[r][v]);
}

// Words of bfloat16 pairs (inputs / 2, 32) as floats (inputs, 32).
inline void widen_bfloat16(const uint32_t* words, int64_t inputs, float* wide) {
  for (int64_t i = 0; i < inputs; i += 2, words += PANEL)
    for (int v = 0; v < VECTORS; v++) {
      Words pair = load_words(words + v * LANES);
      store(wide + i * PANEL + v * LANES, (Floats)(pair << 16));
      store(wide + (i + 1) * PANEL + v * LANES, (Floats)(pair & 0xFFFF0000u));
    }
}

// Words of four int8 (inputs / 4, 32) as floats (inputs, 32).
inline void widen_int8(const uint32_t* words, int64_t inputs, float* wide) {
  for (int64_t i = 0; i < inputs; i += 4, words += PANEL)
    for (int v = 0; v < VECTORS; v++) {
      Ints four = (Ints)load_words(words + v * LANES);
      float* to = wide + i * PANEL + v * LANES;
      store(to, __builtin_convertvector((four << 24) >> 24, Floats));
      store(to + PANEL, __builtin_convertvector((four << 16) >> 24, Floats));
      store(to + 2 * PANEL, __builtin_convertvector((four << 8) >> 24, Floats));
      store(to + 3 * PANEL, __builtin_convertvector(four >> 24, Floats));
    }
}

// Rows of x, up to ROWS_AT_ONCE, with one panel: sums [row][32]. Weights are widened a block at a
// time, which the first-level cache holds while all rows use it.
inline void rows_of_panel(const float* x, int64_t stride, int64_t rows, const Matrix& matrix,
                          const uint32_t* panel, float* sums) {
  alignas(64) float wide[WIDE_BLOCK * PANEL];
  alignas(64) float block[ROWS_AT_ONCE * PANEL];
  std::memset(sums, 0, rows * PANEL * sizeof(float));
  const int64_t size = matrix.kind == INT8 ? INT8_BLOCK : WIDE_BLOCK;
  for (int64_t start = 0; start < matrix.inputs; start += size) {
    const int64_t inputs = std::min(size, matrix.inputs - start);
    if (matrix.kind == FLOAT32) {
      tiles(x + start, stride, rows, (const float*)panel, inputs, sums);
      panel += inputs * PANEL;
    } else if (matrix.kind == BFLOAT16) {
      widen_bfloat16(panel, inputs, wide);
      tiles(x + start, stride, rows, wide, inputs, sums);
      panel += inputs / 2 * PANEL;
    } else {
      widen_int8(panel + PANEL, inputs, wide);
      std::memset(block, 0, rows * PANEL * sizeof(float));
      tiles(x + start, stride, rows, wide, inputs, block);
      for (int64_t r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) {
          float* total = sums + r * PANEL + v * LANES;
          Floats scaled = load((const float*)panel + v * LANES) * load(block + r * PANEL + v * LANES);
          store(total, load(total) + scaled);
        }
      panel += PANEL + inputs / 4 * PANEL;
    }
  }
}

// The product of bfloat16 pairs of x (rows, inputs / 2) with panel `p` of a bfloat16 matrix; as
// panel_product. Processors with AVX512-BF16 do two of its products in one.
template <class Finish>
void panel_product_of_pairs(const uint32_t* x, int64_t rows, const Matrix& matrix, int64_t p,
                            const Finish& finish) {
  alignas(64) float sums[TILE * PANEL];
  const uint32_t* panel = matrix.words.get() + p * matrix.panel_words();
  const int64_t pairs = matrix.inputs / 2;
  for (int64_t r = 0, some; r < rows; r += some) {
    const uint32_t* from = x + r * pairs;
    some = rows - r >= TILE ? TILE : rows - r >= 4 && TILE > 4 ? 4 : 1;
    if (some == TILE) tile_of_pairs<TILE>(from, pairs, panel, pairs, sums);
    else if (some == 4) tile_of_pairs<4>(from, pairs, panel, pairs, sums);
    else tile_of_pairs<1>(from, pairs, panel, pairs, sums);
    for (int64_t i = 0; i < some; i++) finish(r + i, sums + i * PANEL);
  }
}

// Panel `p` of the product of x (rows, inputs; `stride` apart) with the matrix; finish(row, sums)
// takes the panel's 32 sums of every row.
template <class Finish>
void panel_product(const float* x, int64_t stride, int64_t rows, const Matrix& matrix, int64_t p,
                   const Finish& finish) {
  alignas(64) float sums[ROWS_AT_ONCE * PANEL];
  const uint32_t* panel = matrix.words.get() + p * matrix.panel_words();
  if (rows == 1) {
    if (matrix.kind == FLOAT32) row_of_floats(x, panel, matrix.inputs, sums);
    if (matrix.kind == BFLOAT16) row_of_bfloat16(x, panel, matrix.inputs, sums);
    if (matrix.kind == INT8) row_of_int8(x, panel, matrix.inputs, sums);
    finish(0, sums);
    return;
  }
  for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
    const int64_t some = std::min(ROWS_AT_ONCE, rows - first);
    rows_of_panel(x + first * stride, stride, some, matrix, panel, sums);
    for (int64_t r = 0; r < some; r++) finish(first + r, sums + r * PANEL);
  }
}
