// A matrix kept as float32, bfloat16 or int8, in the order in which products.h reads it.
//
// It lies in panels of 32 outputs, so that a panel's sums stay in registers while its inputs are
// gone through one by one. A 32-bit word holds one float32, two bfloat16 of neighbouring inputs
// (the order that dot-product instructions want), or four int8, to which OFFSET is added, because one
// factor of x86's instructions has no sign:
//
//   float32    [input][32 outputs]           bfloat16    [input / 2][32 outputs][2 inputs]
//   int8       per 64 inputs: [32 scales], [input / 4][32 outputs][4 inputs]

#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../vectors.h"

enum Kind { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

constexpr int64_t PANEL = 32;             // outputs
constexpr int VECTORS = PANEL / LANES;    // of a panel's sums
constexpr int64_t INT8_BLOCK = 64;        // inputs that share a scale
#if defined(__aarch64__)
constexpr int OFFSET = 0;
#else
constexpr int OFFSET = 128;
#endif

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
      uint8_t* bytes = (uint8_t*)(panel + PANEL);
      for (int64_t i = start; i < end; i++)
        bytes[((i - start) / 4 * PANEL + lane) * 4 + (i - start) % 4] =
            (uint8_t)(OFFSET + (int)std::nearbyint(widen(weights[i]) * inverse));
      panel += PANEL + INT8_BLOCK / 4 * PANEL;
    }
  }
}
