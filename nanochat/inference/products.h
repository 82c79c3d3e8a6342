// Products of float32 rows with a matrix, which is read once, in the order in which it lies in
// memory (matrix.h). Sums are in float32.
//
// A sum is taken over the inputs in their order, however many rows and threads there are, so that a
// row's result has the same bits alone and among others. For int8 weights the rows are rounded to
// 7 bits; 64 inputs are summed in integers, exactly, before they are scaled.

#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "matrix.h"

constexpr int64_t BLOCK = INT8_BLOCK;  // inputs that all rows go through before the next ones
constexpr int64_t SINGLE_PASS = 3;     // rows that need no blocks
constexpr int64_t FEW_ROWS = 32;       // that wait for memory; more are computed from larger blocks
constexpr int64_t ROWS_AT_ONCE = 96;   // whose sums stay in the cache
#if defined(__aarch64__)
constexpr int REGISTERS = 32, SPARE = 12;  // no instruction multiplies what is in memory
#else
constexpr int REGISTERS = LANES == 16 ? 32 : 16, SPARE = 4;
#endif

// A tile's sums fill the registers. Words that have to be widened leave fewer to them, and a panel's
// vectors of 128 bits are many, so it takes a part of the vectors and more rows, which share the work.
template <Kind KIND>
constexpr int TILE_VECTORS =
    KIND == FLOAT32 && LANES > 4 ? VECTORS : std::min(VECTORS, REGISTERS / 8);
template <Kind KIND>
constexpr int TILE_ROWS = std::min(8, (REGISTERS - SPARE) / TILE_VECTORS<KIND>);

// Inputs in a word of float32 or bfloat16.
template <Kind KIND>
constexpr int PER_WORD = KIND == FLOAT32 ? 1 : 2;

// The part-th input of each word, as a float.
template <Kind KIND>
inline Floats widen_part(Words words, int part) {
  if constexpr (KIND == FLOAT32) return (Floats)words;
  return (Floats)(part ? words & 0xFFFF0000u : words << 16);
}

// Fetches what the next block holds into the cache, while this one is computed.
template <Kind KIND, int V>
inline void fetch_ahead(const uint32_t* words) {
  for (int byte = 0; byte < V * LANES * 4; byte += 64)
    __builtin_prefetch((const char*)(words + BLOCK / PER_WORD<KIND> * PANEL) + byte);
}

// Adds the products of ROWS rows of x, `stride` apart, with V vectors of a panel's outputs to sums
// [row][32].
template <Kind KIND, bool FETCH, int ROWS, int V>
inline void tile(const float* x, int64_t stride, const uint32_t* words, int64_t inputs, float* sums) {
  Floats totals[ROWS][V];
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) totals[r][v] = load(sums + r * PANEL + v * LANES);
  for (int64_t i = 0; i < inputs; i += PER_WORD<KIND>, words += PANEL) {
    if constexpr (FETCH) fetch_ahead<KIND, V>(words);
#pragma GCC unroll 2
    for (int part = 0; part < PER_WORD<KIND>; part++) {
      Floats w[V];
      for (int v = 0; v < V; v++) w[v] = widen_part<KIND>(load_words(words + v * LANES), part);
      for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < V; v++) totals[r][v] += x[r * stride + i + part] * w[v];
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) store(sums + r * PANEL + v * LANES, totals[r][v]);
}

// The same for `rows` rows, ROWS at most, and all outputs of the panel.
template <Kind KIND, bool FETCH, int ROWS>
inline void tile_of(int64_t rows, const float* x, int64_t stride, const uint32_t* words,
                    int64_t inputs, float* sums) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return tile_of<KIND, FETCH, ROWS - 1>(rows, x, stride, words, inputs, sums);
  constexpr int V = ROWS * VECTORS <= REGISTERS / 2 ? VECTORS : TILE_VECTORS<KIND>;
  for (int v = 0; v < VECTORS; v += V)
    tile<KIND, FETCH, ROWS, V>(x, stride, words + v * LANES, inputs, sums + v * LANES);
}

// The same for any number of rows, in tiles of about the same size.
template <Kind KIND, bool FETCH>
inline void tiles(const float* x, int64_t stride, int64_t rows, const uint32_t* words,
                  int64_t inputs, float* sums) {
  constexpr int ROWS = TILE_ROWS<KIND>;
  for (int64_t left = (rows + ROWS - 1) / ROWS; left > 0; left--) {
    const int64_t some = (rows + left - 1) / left;
    tile_of<KIND, FETCH, ROWS>(some, x, stride, words, inputs, sums);
    x += some * stride, sums += some * PANEL, rows -= some;
  }
}

// Rows of x, up to ROWS_AT_ONCE, with one panel of float32 or bfloat16: sums [row][32]. The
// first-level cache holds a block's weights while all rows use them.
template <Kind KIND>
inline void rows_of_panel(const float* x, int64_t stride, int64_t rows, const uint32_t* panel,
                          int64_t inputs, float* sums) {
  // subtle: for weights that are used but a few times the processor fetches ahead by itself, better
  if (rows <= SINGLE_PASS) return tiles<KIND, false>(x, stride, rows, panel, inputs, sums);
  const int64_t size = rows <= FEW_ROWS ? BLOCK : 2 * BLOCK;
  for (int64_t start = 0; start < inputs; start += size) {
    const int64_t some = std::min(size, inputs - start);
    const uint32_t* words = panel + start / PER_WORD<KIND> * PANEL;
    if (rows <= FEW_ROWS)
      tiles<KIND, true>(x + start, stride, rows, words, some, sums);
    else
      tiles<KIND, false>(x + start, stride, rows, words, some, sums);
  }
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

// The product of bfloat16 pairs of x (rows, inputs / 2) with panel `p` of a bfloat16 matrix; as
// panel_product. Processors with AVX512-BF16 do two of its products in one.
template <class Finish>
void panel_product_of_pairs(const uint32_t* x, int64_t rows, const Matrix& matrix, int64_t p,
                            const Finish& finish) {
  constexpr int TILE = std::min(8, (REGISTERS - SPARE) / VECTORS);
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

// Panel `p` of the product of x (rows, inputs; `stride` apart) with a float32 or bfloat16 matrix;
// finish(row, sums) takes the panel's 32 sums of every row.
template <class Finish>
void panel_product(const float* x, int64_t stride, int64_t rows, const Matrix& matrix, int64_t p,
                   const Finish& finish) {
  alignas(64) float sums[ROWS_AT_ONCE * PANEL];
  const uint32_t* panel = matrix.words.get() + p * matrix.panel_words();
  for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
    const int64_t some = std::min(ROWS_AT_ONCE, rows - first), inputs = matrix.inputs;
    const float* from = x + first * stride;
    std::memset(sums, 0, some * PANEL * sizeof(float));
    if (matrix.kind == FLOAT32) rows_of_panel<FLOAT32>(from, stride, some, panel, inputs, sums);
    if (matrix.kind == BFLOAT16) rows_of_panel<BFLOAT16>(from, stride, some, panel, inputs, sums);
    for (int64_t r = 0; r < some; r++) finish(first + r, sums + r * PANEL);
  }
}
