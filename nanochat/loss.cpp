// Cross-entropy of soft-capped logits, and its gradient, row by row: loss.py has its slow twin,
// loss_and_grad. V numbers a row, a multiple of 16; no row is read by two threads.

#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

struct Row {
  int64_t V, target;
  float factor, cap;  // of the loss; of the logits
  const float* bias;  // (V,) or null, added to the capped logits
};

// The loss, times its factor. Its gradient takes the place of the logits. weights and slopes: room
// for V numbers each.
template <class T>
float loss(T* logits, Row row, float* weights, float* slopes) {
  Floats total = {};
  Ints unordered = {};
  for (int64_t v = 0; v < row.V; v += LANES) {
    const Floats x = load(logits + v);
    unordered |= x != x;
    const Floats s = 1.0f / (1.0f + exponential(x * (-2.0f / row.cap)));
    Floats y = row.cap * (2.0f * s - 1.0f);
    if (row.bias) y += load(row.bias + v);
    const Floats w = exponential(y);
    store(weights + v, w);
    store(slopes + v, 4.0f * s * (1.0f - s));
    total += w;
  }
  bool nan = false;  // subtle: exponential() makes numbers of NaN
  for (int lane = 0; lane < LANES; lane++) nan |= unordered[lane] != 0;
  const float all = nan ? NAN : sum(total), share = row.factor / all;
  for (int64_t v = 0; v < row.V; v += LANES)
    store(logits + v, load(weights + v) * load(slopes + v) * share);
  const float weight = weights[row.target];
  narrow((weight / all - 1) * slopes[row.target] * row.factor, logits + row.target);
  return row.factor * (float)std::log((double)all / weight);
}

template <class T>
void all_rows(T* logits, const int64_t* targets, const float* factors, int64_t N, Row row,
              float* losses) {
#pragma omp parallel
  {
    std::vector<float> memory(2 * row.V);
#pragma omp for
    for (int64_t n = 0; n < N; n++) {
      Row own = row;
      own.target = targets[n] < 0 ? 0 : targets[n];
      own.factor = targets[n] < 0 ? 0 : factors ? factors[n] : 1;
      losses[n] = loss(logits + n * row.V, own, memory.data(), memory.data() + row.V);
    }
  }
}

}  // namespace

// logits (N, V) float32 or bfloat16, in place; targets (N,), -1: none; factors (N,) and bias (V,)
// or null; losses (N,).
extern "C" void loss_rows(void* logits, const int64_t* targets, const float* factors,
                          const float* bias, int64_t N, int64_t V, float cap, bool bfloat16,
                          float* losses) {
  const Row row{V, 0, 0, cap, bias};
  bfloat16 ? all_rows((BFloat16*)logits, targets, factors, N, row, losses)
           : all_rows((float*)logits, targets, factors, N, row, losses);
}
