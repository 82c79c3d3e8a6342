// What happens between the products: norm, rotation, and attention to cached keys and values, which
// are float32 or bfloat16. A row's result has the same bits alone and among others.

#pragma once

#include <vector>

#include "../vectors.h"

constexpr int QUERIES = 4;        // that read the keys and values together
constexpr int64_t AHEAD = 8;      // places whose keys or values are fetched ahead of their use

// Fetches n numbers into the cache.
template <class T>
inline void fetch(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / (int64_t)sizeof(T)) __builtin_prefetch(p + i);
}

// y: x (n) divided by its root mean square.
inline void rms_norm(const float* x, float* y, int64_t n, float eps) {
  const float scale = 1 / std::sqrt(dot(x, x, n) / n + eps);
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * scale;
}

// Rotates a head x (K) by cos and sin (K / 2), in place, and normalises it.
inline void rotate(float* x, const float* cos, const float* sin, int64_t K, float eps) {
  const int64_t half = K / 2;
  for (int64_t i = 0; i < half; i++) {
    const float x1 = x[i], x2 = x[half + i];
    x[i] = x1 * cos[i] + x2 * sin[i];
    x[half + i] = x2 * cos[i] - x1 * sin[i];
  }
  rms_norm(x, x, K, eps);
}

template <class T>
void keep(const float* x, T* place, int64_t K) {
  for (int64_t i = 0; i < K; i++) narrow(x[i], place + i);
}

// A query (K), how many places it sees, and where its result (K) goes.
struct Query {
  const float* q;
  int64_t length;
  float* out;
};

// out[n][i], ..., over V vectors from column i, of n queries: sums of weights times values.
template <int N, int V, class T>
inline void mix(const Query* queries, const float* const* weights, const float* totals,
                const T* values, int64_t length, int64_t K, int64_t i) {
  Floats sums[N][V] = {};
  for (int64_t s = 0; s < length; s++) {
    fetch(values + (s + AHEAD) * K + i, V * LANES);
    for (int v = 0; v < V; v++) {
      Floats value = load(values + s * K + i + v * LANES);
      for (int n = 0; n < N; n++) sums[n][v] += weights[n][s] * value;
    }
  }
  for (int n = 0; n < N; n++)
    for (int v = 0; v < V; v++) store(queries[n].out + i + v * LANES, sums[n][v] / totals[n]);
}

// N queries of one head, which see the first places of the same keys and values (places, K).
template <int N, class T>
void attend(const Query* queries, const T* keys, const T* values, int64_t K,
            std::vector<float>& scratch) {
  int64_t longest = 0;
  for (int n = 0; n < N; n++) longest = std::max(longest, queries[n].length);
  const int64_t padded = (longest + LANES - 1) / LANES * LANES;
  if ((int64_t)scratch.size() < N * padded) scratch.resize(N * padded);
  float *scores[N], totals[N];
  const float scale = 1 / std::sqrt((float)K);
  for (int n = 0; n < N; n++) scores[n] = scratch.data() + n * padded;
  for (int64_t s = 0; s < longest; s++) {
    fetch(s + AHEAD < longest ? keys + (s + AHEAD) * K : values + (s + AHEAD - longest) * K, K);
    for (int n = 0; n < N; n++) scores[n][s] = scale * dot(queries[n].q, keys + s * K, K);
  }
  for (int n = 0; n < N; n++) totals[n] = softmax_weights(scores[n], queries[n].length, padded).total;
  const float* weights[N];
  for (int n = 0; n < N; n++) weights[n] = scores[n];
  int64_t i = 0;
  constexpr int WIDE = N == 1 ? 8 : 12 / N;
  for (; i + WIDE * LANES <= K; i += WIDE * LANES)
    mix<N, WIDE>(queries, weights, totals, values, longest, K, i);
  for (; i + LANES <= K; i += LANES) mix<N, 1>(queries, weights, totals, values, longest, K, i);
  for (; i < K; i++)
    for (int n = 0; n < N; n++) {
      float total = 0;
      for (int64_t s = 0; s < longest; s++)
        total = std::fma(weights[n][s], widen(values[s * K + i]), total);  // as in `dot`
      queries[n].out[i] = total / totals[n];
    }
}

// The same for any number of queries.
template <class T>
void attend_all(const Query* queries, int64_t count, const T* keys, const T* values, int64_t K,
                std::vector<float>& scratch) {
  for (; count >= QUERIES; count -= QUERIES, queries += QUERIES)
    attend<QUERIES>(queries, keys, values, K, scratch);
  if (count >= 2) {
    attend<2>(queries, keys, values, K, scratch);
    count -= 2, queries += 2;
  }
  if (count) attend<1>(queries, keys, values, K, scratch);
}
