// A pass of the model over tokens of several sequences, in one call: fused_model.py's function on
// the CPU. Embedding, blocks, cache and head; threads of its own.

#include <cstdio>
#include <exception>
#include <vector>

#include "attention.h"
#include "int8_products.h"
#include "products.h"
#include "sampler.h"
#include "thread_pool.h"

namespace {

struct Shape {
  int64_t layers, D, H, Hkv, K, V, hidden;
};

// Rows of floats, each filled up with zeros to a multiple of 16; grows, and is kept between passes.
struct Rows {
  std::vector<float> data;
  int64_t stride = 0;

  void resize(int64_t rows, int64_t width) {
    stride = round_up(width, 16);
    if ((int64_t)data.size() < rows * stride) data.assign(rows * stride, 0.0f);
  }
  float* operator[](int64_t row) { return data.data() + row * stride; }
};

// Neighbouring rows of one sequence, whose queries read keys and values together.
struct Group {
  int64_t first, rows;
};

struct Pass {
  int64_t rows;
  const int64_t *ids, *slots, *positions;
  const void* embedding;  // (V, D)
  bool half_embedding;    // bfloat16, else float32
  void *const *keys, *const *values;  // of every layer, (slots, Hkv, room, K)
  int64_t room;
};

class Decoder {
 public:
  Decoder(Shape shape, float eps, float cap, const float* cos, const float* sin, Kind kind,
          bool pairs, int threads)
      : pool(threads), s_(shape), eps_(eps), cap_(cap), cos_(cos), sin_(sin), of_pairs_(pairs) {
    const int64_t heads = s_.H + 2 * s_.Hkv;
    matrices.emplace_back(s_.V, s_.D, kind);
    for (int64_t layer = 0; layer < s_.layers; layer++) {
      matrices.emplace_back(heads * s_.K, s_.D, kind);
      matrices.emplace_back(s_.D, s_.H * s_.K, kind);
      matrices.emplace_back(s_.hidden, s_.D, kind);
      matrices.emplace_back(s_.D, s_.hidden, kind);
    }
  }

  // T: of the keys and the values. chosen: rows whose logits (count, V) are wanted.
  template <class T>
  void run(const Pass& pass, const int64_t* chosen, int64_t count, float* logits) {
    const int64_t N = pass.rows, D = s_.D, heads = s_.H + 2 * s_.Hkv;
    x_.resize(N, D), normed_.resize(N, D), qkv_.resize(N, heads * s_.K);
    attended_.resize(N, s_.H * s_.K), hidden_.resize(N, s_.hidden);
    group(pass);
    for_rows(N, [&](int64_t n) {
      const int64_t from = pass.ids[n] * D;
      for (int64_t i = 0; i < D; i++)
        x_[n][i] = pass.half_embedding ? widen(((const BFloat16*)pass.embedding)[from + i])
                                       : ((const float*)pass.embedding)[from + i];
      rms_norm(x_[n], x_[n], D, eps_);
    });
    for (int64_t layer = 0; layer < s_.layers; layer++) {
      const Matrix* matrix = &matrices[1 + 4 * layer];
      norm_rows(N);
      product(normed_, N, matrix[0], [&](int64_t n, int64_t o, const float* sums, int64_t size) {
        std::memcpy(qkv_[n] + o, sums, size * sizeof(float));
      });
      attention<T>(pass, (T*)pass.keys[layer], (T*)pass.values[layer]);
      product(attended_, N, matrix[1], add_to(x_));
      norm_rows(N);
      product(normed_, N, matrix[2], [&](int64_t n, int64_t o, const float* sums, int64_t size) {
        float* y = hidden_[n] + o;
        for (int64_t i = 0; i < size; i++) y[i] = sums[i] > 0 ? sums[i] * sums[i] : 0;
      });
      product(hidden_, N, matrix[3], add_to(x_));
    }
    for (int64_t i = 0; i < count; i++) rms_norm(x_[chosen[i]], normed_[i], D, eps_);
    product(normed_, count, matrices[0], [&](int64_t n, int64_t o, float* sums, int64_t size) {
      for (int v = 0; cap_ > 0 && v < VECTORS; v++) {
        float* sum = sums + v * LANES;
        store(sum, cap_ * hyperbolic_tangent(load(sum) / cap_));
      }
      std::memcpy(logits + n * s_.V + o, sums, size * sizeof(float));
    });
  }

  // ids: drawn from logits (rows, V).
  void sample(const float* logits, const SamplingSettings* settings, int64_t rows, int64_t* ids) {
    pool.run(rows, [&](int64_t n) {
      static thread_local Sampler sampler;
      ids[n] = sampler.draw(logits + n * s_.V, s_.V, settings[n]);
    });
  }

  ThreadPool pool;
  std::vector<Matrix> matrices;  // head; then of every layer qkv, o, fc1, fc2

 private:
  // Calls work(row) for every row; by one thread where they are few.
  template <class Work>
  void for_rows(int64_t rows, const Work& work) {
    if (rows <= 4)
      for (int64_t n = 0; n < rows; n++) work(n);
    else
      pool.run(rows, work);
  }

  void norm_rows(int64_t N) {
    for_rows(N, [&](int64_t n) { rms_norm(x_[n], normed_[n], s_.D, eps_); });
  }

  static auto add_to(Rows& rows) {
    return [&rows](int64_t n, int64_t o, const float* sums, int64_t size) {
      float* y = rows[n] + o;
      for (int64_t i = 0; i < size; i++) y[i] += sums[i];
    };
  }

  // finish(row, first output, sums, outputs) takes each row's sums of a panel.
  template <class Finish>
  void product(Rows& x, int64_t rows, const Matrix& matrix, const Finish& finish) {
    if (!rows) return;
    if (of_pairs_) narrow_rows(x, rows, matrix.inputs);
    if (matrix.kind == INT8) {
      rounded_.resize(rows, matrix.inputs);
      for_rows(rows, [&](int64_t n) { rounded_.keep(n, x[n], matrix.inputs); });
    }
    // about 64 kB of weights at a time: less costs more than it takes
    const int64_t at_once = std::max<int64_t>(1, (64 << 10) / (matrix.panel_words() * 4) / rows);
    pool.run((matrix.panels() + at_once - 1) / at_once, [&](int64_t piece) {
      const int64_t end = std::min(matrix.panels(), (piece + 1) * at_once);
      for (int64_t p = piece * at_once; p < end; p++) {
        const int64_t o = p * PANEL, size = std::min(PANEL, matrix.outputs - o);
        auto finish_panel = [&](int64_t n, float* sums) { finish(n, o, sums, size); };
        if (of_pairs_)
          panel_product_of_pairs((uint32_t*)narrowed_.data(), rows, matrix, p, finish_panel);
        else if (matrix.kind == INT8)
          panel_product_of_int8(rounded_, rows, matrix, p, finish_panel);
        else
          panel_product(x[0], x.stride, rows, matrix, p, finish_panel);
      }
    });
  }

  // Rounds rows to bfloat16.
  void narrow_rows(Rows& x, int64_t rows, int64_t inputs) {
    if ((int64_t)narrowed_.size() < rows * inputs) narrowed_.resize(rows * inputs);
    for_rows(rows, [&](int64_t n) {
      for (int64_t i = 0; i < inputs; i++) narrow(x[n][i], &narrowed_[n * inputs + i]);
    });
  }

  // Rows that stand one after another in one slot, up to 16 at a time.
  void group(const Pass& pass) {
    groups_.clear();
    for (int64_t n = 0; n < pass.rows; n++) {
      const bool follows = n && pass.slots[n] == pass.slots[n - 1] &&
                           pass.positions[n] == pass.positions[n - 1] + 1;
      if (follows && groups_.back().rows < 16)
        groups_.back().rows++;
      else
        groups_.push_back({n, 1});
    }
  }

  // Rotates and normalises queries and keys, keeps keys and values, and attends.
  template <class T>
  void attention(const Pass& pass, T* keys, T* values) {
    const int64_t K = s_.K, of_group = s_.H / s_.Hkv;
    auto place = [&](int64_t slot, int64_t head) { return (slot * s_.Hkv + head) * pass.room * K; };
    for_rows(pass.rows, [&](int64_t n) {
      const int64_t position = pass.positions[n];
      const float *cos = cos_ + position * K, *sin = sin_ + position * K;
      for (int64_t h = 0; h < s_.H + s_.Hkv; h++) rotate(qkv_[n] + h * K, cos, sin, K, eps_);
      for (int64_t h = 0; h < s_.Hkv; h++) {
        const float* key = qkv_[n] + (s_.H + h) * K;
        const int64_t at = place(pass.slots[n], h) + position * K;
        for (int64_t i = 0; i < K; i++) narrow(key[i], keys + at + i);
        for (int64_t i = 0; i < K; i++) narrow(key[s_.Hkv * K + i], values + at + i);
      }
    });
    pool.run((int64_t)groups_.size() * s_.Hkv, [&](int64_t piece) {
      static thread_local std::vector<float> scratch;
      static thread_local std::vector<Query> queries;
      const Group& group = groups_[piece / s_.Hkv];
      const int64_t head = piece % s_.Hkv;
      queries.clear();
      for (int64_t n = group.first; n < group.first + group.rows; n++)
        for (int64_t h = head * of_group; h < (head + 1) * of_group; h++)
          queries.push_back({qkv_[n] + h * K, pass.positions[n] + 1, attended_[n] + h * K});
      const int64_t at = place(pass.slots[group.first], head);
      attend_all(queries.data(), queries.size(), keys + at, values + at, K, scratch);
    });
  }

  const Shape s_;
  const float eps_, cap_, *const cos_, *const sin_;
  const bool of_pairs_;  // whether rows are rounded to bfloat16 for products
  Rows x_, normed_, qkv_, attended_, hidden_;
  std::vector<BFloat16> narrowed_;
  RoundedRows rounded_;
  std::vector<Group> groups_;
};

}  // namespace

// shape: layers, D, H, Hkv, K, V, hidden. cos, sin: a row of K for each position, of which the first
// half is read; they must outlive the decoder. cap 0: none. pairs: products are of bfloat16 numbers,
// as in PyTorch in bfloat16; kind is BFLOAT16 then. null where memory is short.
extern "C" Decoder* decoder_new(const int64_t* shape, float eps, float cap, const float* cos,
                                const float* sin, int kind, bool pairs, int threads) try {
  const Shape s = {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6]};
  return new Decoder(s, eps, cap, cos, sin, (Kind)kind, pairs, threads);
} catch (const std::exception&) {
  return nullptr;
}

extern "C" void decoder_free(Decoder* decoder) { delete decoder; }

// Keeps weights (rows, inputs), float32 or bfloat16, as a matrix's outputs from `first` on.
extern "C" void decoder_keep(Decoder* decoder, int64_t index, int64_t first, const void* weights,
                             int64_t rows, int64_t inputs, int bfloat16) {
  Matrix& matrix = decoder->matrices[index];
  decoder->pool.run((rows + PANEL - 1) / PANEL, [&](int64_t piece) {
    for (int64_t row = piece * PANEL; row < std::min(rows, (piece + 1) * PANEL); row++) {
      if (bfloat16)
        keep_row(matrix, first + row, (const BFloat16*)weights + row * inputs, inputs);
      else
        keep_row(matrix, first + row, (const float*)weights + row * inputs, inputs);
    }
  });
}

// Reads tokens ids[n] at positions[n] of slots[n], those of one sequence in order; the embedding is
// bfloat16 or float32, and so is the cache. logits (count, V): of the chosen rows. False: memory is
// short.
extern "C" bool decoder_run(Decoder* decoder, const int64_t* ids, const int64_t* slots,
                            const int64_t* positions, int64_t rows, const void* embedding,
                            int half_embedding, void* const* keys, void* const* values,
                            int64_t room, int half_cache, const int64_t* chosen, int64_t count,
                            float* logits) try {
  const Pass pass = {rows, ids, slots, positions, embedding, half_embedding != 0,
                     keys, values, room};
  if (half_cache)
    decoder->run<BFloat16>(pass, chosen, count, logits);
  else
    decoder->run<float>(pass, chosen, count, logits);
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

// Draws ids (rows) from logits (rows, V); settings: five numbers for each row.
extern "C" void decoder_sample(Decoder* decoder, const float* logits, const void* settings,
                               int64_t rows, int64_t* ids) {
  decoder->sample(logits, (const SamplingSettings*)settings, rows, ids);
}
