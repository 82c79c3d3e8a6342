// Causal attention within documents on a CPU, forward and backward, in float32 inside: attention.py
// has its slow twin.
//
// Dimensions: B batch, T time, H heads, Hkv key/value heads, K head_dim; q, out and their gradients
// (B, T, H, K), k and v (B, T, Hkv, K), lse (B, H, T). A document of n places is copied, widened
// and padded with zeros to `padded` rows of `width` columns. Nothing is added up by two threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t ROWS = 4, COLUMNS = 2 * LANES;  // of a product's tile: eight vectors of sums

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

struct Shape {
  int64_t B, T, H, Hkv, K;
  int64_t width() const { return round_up(K, COLUMNS); }
  int64_t group() const { return H / Hkv; }  // heads that share keys and values
};

// c (ROWS, columns) = a b, or with ADD c += a b: a (ROWS, depth), whose a[m][k] stands at
// a[m * row + k * column], and b (depth, columns). columns: a multiple of COLUMNS.
template <bool ADD>
void product(const float* a, int64_t row, int64_t column, int64_t depth, const float* b,
             int64_t b_row, float* c, int64_t c_row, int64_t columns) {
  for (int64_t n = 0; n < columns; n += COLUMNS) {
    Floats left[ROWS] = {}, right[ROWS] = {};
    if (ADD)
      for (int64_t m = 0; m < ROWS; m++) {
        left[m] = load(c + m * c_row + n);
        right[m] = load(c + m * c_row + n + LANES);
      }
    for (int64_t k = 0; k < depth; k++) {
      const Floats x = load(b + k * b_row + n), y = load(b + k * b_row + n + LANES);
      for (int64_t m = 0; m < ROWS; m++) {
        left[m] += a[m * row + k * column] * x;
        right[m] += a[m * row + k * column] * y;
      }
    }
    for (int64_t m = 0; m < ROWS; m++) {
      store(c + m * c_row + n, left[m]);
      store(c + m * c_row + n + LANES, right[m]);
    }
  }
}

// A document's part of one head: n rows of K numbers, `stride` apart.
template <class T>
struct Rows {
  T* first;
  int64_t stride, n, K;

  void read(float scale, float* to, int64_t width) const {
    for (int64_t i = 0; i < n; i++)
      for (int64_t d = 0; d < K; d++) to[i * width + d] = scale * widen(first[i * stride + d]);
  }
  void write(float scale, const float* from, int64_t width) const {
    for (int64_t i = 0; i < n; i++)
      for (int64_t d = 0; d < K; d++) narrow(scale * from[i * width + d], first + i * stride + d);
  }
};

void transpose(const float* x, int64_t n, int64_t width, float* to, int64_t padded) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t d = 0; d < width; d++) to[d * padded + i] = x[i * width + d];
}

// The first place after the document of place `first` of a row of T.
int64_t document_end(const int64_t* documents, int64_t first, int64_t T) {
  if (!documents) return T;
  int64_t last = first + 1;
  while (last < T && documents[last] == documents[first]) last++;
  return last;
}

// One document of one head. memory: room for 5 matrices of `width` and ROWS rows of scores.
template <class T>
void forward(Rows<const T> q, Rows<const T> k, Rows<const T> v, float scale, Rows<T> out, float* lse,
             int64_t width, float* memory) {
  const int64_t n = q.n, padded = round_up(n, COLUMNS), size = padded * width;
  std::fill(memory, memory + 5 * size, 0.0f);
  float *Q = memory, *K = Q + size, *V = K + size, *Kt = V + size, *O = Kt + size, *P = O + size;
  q.read(scale, Q, width);
  k.read(1, K, width);
  v.read(1, V, width);
  transpose(K, n, width, Kt, padded);
  for (int64_t i = 0; i < n; i += ROWS) {
    const int64_t columns = round_up(i + ROWS, COLUMNS);
    product<false>(Q + i * width, width, 1, q.K, Kt, padded, P, padded, columns);
    for (int64_t m = 0; m < ROWS && i + m < n; m++) {
      float* p = P + m * padded;
      const auto [most, total] = softmax_weights(p, i + m + 1, columns);
      for (int64_t j = 0; j < columns; j += LANES) store(p + j, load(p + j) / total);
      lse[i + m] = most + std::log(total);
    }
    const int64_t seen = std::min(i + ROWS, n);
    product<false>(P, padded, 1, seen, V, width, O + i * width, width, width);
  }
  out.write(1, O, width);
}

template <class T>
struct Gradients {
  Rows<const T> q, out, grad;
  const float* lse;
  Rows<T> dq;
};

// One document of one key/value head; heads: those that read it. With P the softmax and D the
// gradient by it, that of the scores is P (D - sum of out grad) (Dao et al. 2022). memory: room for
// 10 matrices of `width` and 2 of scores.
template <class T>
void backward(const std::vector<Gradients<T>>& heads, Rows<const T> k, Rows<const T> v, float scale,
              Rows<T> dk, Rows<T> dv, int64_t width, float* memory) {
  const int64_t n = k.n, padded = round_up(n, COLUMNS), size = padded * width;
  std::fill(memory, memory + 10 * size, 0.0f);
  float* matrices[10];
  for (int i = 0; i < 10; i++) matrices[i] = memory + i * size;
  auto [Q, K, V, Kt, Vt, O, dO, dQ, dK, dV] = matrices;
  float *P = memory + 10 * size, *D = P + padded * padded;
  k.read(1, K, width);
  v.read(1, V, width);
  transpose(K, n, width, Kt, padded);
  transpose(V, n, width, Vt, padded);
  for (const Gradients<T>& head : heads) {
    head.q.read(scale, Q, width);
    head.out.read(1, O, width);
    head.grad.read(1, dO, width);
    for (int64_t i = 0; i < n; i += ROWS) {
      const int64_t columns = round_up(i + ROWS, COLUMNS), at = i * width;
      product<false>(Q + at, width, 1, k.K, Kt, padded, P + i * padded, padded, columns);
      product<false>(dO + at, width, 1, k.K, Vt, padded, D + i * padded, padded, columns);
      for (int64_t m = i; m < i + ROWS; m++) {
        float *p = P + m * padded, *d = D + m * padded;
        const int64_t end = m < n ? m + 1 : 0;
        const float shift = m < n ? head.lse[m] : 0, mean = dot(O + m * width, dO + m * width, width);
        for (int64_t j = 0; j < round_up(end, LANES); j += LANES) {
          store(p + j, exponential(load(p + j) - shift));
          store(d + j, load(p + j) * (load(d + j) - mean));
        }
        std::fill(p + end, p + columns, 0.0f);
        std::fill(d + end, d + columns, 0.0f);
      }
      const int64_t seen = std::min(i + ROWS, n);
      product<false>(D + i * padded, padded, 1, seen, K, width, dQ + at, width, width);
    }
    for (int64_t j = 0; j < n; j += ROWS) {  // only the places from j on see it
      const int64_t corner = j * padded + j, at = j * width;
      product<true>(P + corner, 1, padded, n - j, dO + at, width, dV + at, width, width);
      product<true>(D + corner, 1, padded, n - j, Q + at, width, dK + at, width, width);
    }
    head.dq.write(scale, dQ, width);
  }
  dk.write(1, dK, width);
  dv.write(1, dV, width);
}

// The n places from `first` on of a head of tensor x (B, T, heads, K).
template <class T>
Rows<T> rows(T* x, const Shape& s, int64_t heads, int64_t b, int64_t first, int64_t head, int64_t n) {
  return {x + ((b * s.T + first) * heads + head) * s.K, heads * s.K, n, s.K};
}

template <class T>
void all_forward(const T* q, const T* k, const T* v, const int64_t* documents, Shape s, float scale,
                 T* out, float* lse) {
#pragma omp parallel
  {
    std::vector<float> memory(round_up(s.T, COLUMNS) * (5 * s.width() + ROWS));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < s.B * s.H; task++) {
      const int64_t b = task / s.H, h = task % s.H, shared = h / s.group();
      for (int64_t first = 0, last; first < s.T; first = last) {
        last = document_end(documents ? documents + b * s.T : nullptr, first, s.T);
        const int64_t n = last - first;
        forward(rows(q, s, s.H, b, first, h, n), rows(k, s, s.Hkv, b, first, shared, n),
                rows(v, s, s.Hkv, b, first, shared, n), scale, rows(out, s, s.H, b, first, h, n),
                lse + task * s.T + first, s.width(), memory.data());
      }
    }
  }
}

template <class T>
void all_backward(const T* q, const T* k, const T* v, const T* out, const T* grad, const float* lse,
                  const int64_t* documents, Shape s, float scale, T* dq, T* dk, T* dv) {
#pragma omp parallel
  {
    const int64_t most = round_up(s.T, COLUMNS);
    std::vector<float> memory(most * (10 * s.width() + 2 * most));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < s.B * s.Hkv; task++) {
      const int64_t b = task / s.Hkv, shared = task % s.Hkv;
      for (int64_t first = 0, last; first < s.T; first = last) {
        last = document_end(documents ? documents + b * s.T : nullptr, first, s.T);
        const int64_t n = last - first;
        std::vector<Gradients<T>> heads;
        for (int64_t h = shared * s.group(); h < (shared + 1) * s.group(); h++)
          heads.push_back({rows(q, s, s.H, b, first, h, n), rows(out, s, s.H, b, first, h, n),
                           rows(grad, s, s.H, b, first, h, n), lse + (b * s.H + h) * s.T + first,
                           rows(dq, s, s.H, b, first, h, n)});
        backward(heads, rows(k, s, s.Hkv, b, first, shared, n),
                 rows(v, s, s.Hkv, b, first, shared, n), scale,
                 rows(dk, s, s.Hkv, b, first, shared, n), rows(dv, s, s.Hkv, b, first, shared, n),
                 s.width(), memory.data());
      }
    }
  }
}

}  // namespace

// Contiguous tensors of float32, or all but lse of bfloat16; documents (B, T) or null: a number that
// changes where a document begins. sizes: those of Shape.
extern "C" void attention_forward(const void* q, const void* k, const void* v,
                                  const int64_t* documents, const int64_t* sizes, bool bfloat16,
                                  void* out, float* lse) {
  const Shape s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  const float scale = 1 / std::sqrt((float)s.K);
  auto run = [&](auto type) {
    using T = decltype(type);
    all_forward((const T*)q, (const T*)k, (const T*)v, documents, s, scale, (T*)out, lse);
  };
  bfloat16 ? run(BFloat16{}) : run(float{});
}

extern "C" void attention_backward(const void* q, const void* k, const void* v, const void* out,
                                   const void* grad, const float* lse, const int64_t* documents,
                                   const int64_t* sizes, bool bfloat16, void* dq, void* dk,
                                   void* dv) {
  const Shape s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
  const float scale = 1 / std::sqrt((float)s.K);
  auto run = [&](auto type) {
    using T = decltype(type);
    all_backward((const T*)q, (const T*)k, (const T*)v, (const T*)out, (const T*)grad, lse,
                 documents, s, scale, (T*)dq, (T*)dk, (T*)dv);
  };
  bfloat16 ? run(BFloat16{}) : run(float{});
}
