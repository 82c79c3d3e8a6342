// Draws one token from a row of logits: sampling.py's `draw`, its slow twin, says the rules.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../vectors.h"

struct SamplingSettings {
  double temperature, top_k, top_p, min_p, noise;  // top_k 1: the likeliest; noise in [0, 1)
};

class Sampler {
 public:
  int64_t draw(const float* logits, int64_t V, const SamplingSettings& s) {
    const int64_t k = std::min((int64_t)s.top_k, V);
    if (k == V && s.top_p >= 1) {
      weigh(logits, V, largest(logits, V), s);
      return pick(V, s.noise, [](int64_t i) { return i; });
    }
    double mass = s.top_p;  // that the tokens before the last one kept must not reach
    if (k == V) {
      weigh(logits, V, largest(logits, V), s, false);
      mass *= total(V);
    }
    for (int64_t n = k < V ? k : std::min<int64_t>(V, 256);; n = std::min(V, 8 * n)) {
      likeliest(logits, V, n);
      if (n == 1) return best_[0].id;
      gathered_.clear();
      for (const Candidate& one : best_) gathered_.push_back(one.logit);
      weigh(gathered_.data(), n, gathered_[0], s, false);
      if (k < V) mass = s.top_p * total(n);
      int64_t kept = 0;
      for (int64_t before = 0; kept < n && before < mass; kept++) before += weights_[kept];
      if (kept < n || n == k) {
        best_.resize(kept);
        break;
      }
    }
    std::sort(best_.begin(), best_.end(),
              [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    const float most = gathered_[0];
    gathered_.clear();
    for (const Candidate& one : best_) gathered_.push_back(one.logit);
    weigh(gathered_.data(), gathered_.size(), most, s);
    return pick(gathered_.size(), s.noise, [this](int64_t i) { return best_[i].id; });
  }

 private:
  struct Candidate {
    float logit;
    int64_t id;
  };

  // Whether a comes first: the larger logit, of equal ones the lower id.
  static bool first(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  }

  static float largest(const float* logits, int64_t n) {
    float most = logits[0];
    for (int64_t i = 1; i < n; i++) most = logits[i] > most ? logits[i] : most;
    return most;
  }

  int64_t total(int64_t n) const {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += weights_[i];
    return sum;
  }

  // The k first of all tokens, in order. Few tokens are among the first so far, so that mostly 64
  // at a time are passed by.
  void likeliest(const float* logits, int64_t V, int64_t k) {
    best_.clear();
    for (int64_t id = 0; id < k; id++) best_.push_back({logits[id], id});
    std::make_heap(best_.begin(), best_.end(), first);  // the last of them is in front
    for (int64_t start = k; start < V; start += 64) {
      const int64_t end = std::min(V, start + 64);
      if (end - start == 64 && !any_larger(logits + start, best_[0].logit)) continue;
      for (int64_t id = start; id < end; id++) {
        if (!(logits[id] > best_[0].logit)) continue;
        std::pop_heap(best_.begin(), best_.end(), first);
        best_.back() = {logits[id], id};
        std::push_heap(best_.begin(), best_.end(), first);
      }
    }
    std::sort_heap(best_.begin(), best_.end(), first);
  }

  // Whether one of 64 numbers is larger than `bound`.
  static bool any_larger(const float* x, float bound) {
    Ints larger = {};
    for (int i = 0; i < 64; i += LANES) larger |= load(x + i) > bound;
    uint64_t words[LANES / 2], any = 0;
    std::memcpy(words, &larger, sizeof larger);
    for (uint64_t word : words) any |= word;
    return any;
  }

  // weights_: integers in proportion to the probabilities of `logits` (n), 2^40 for `most`; with
  // min_p, 0 where they are less than min_p of that.
  void weigh(const float* logits, int64_t n, float most, const SamplingSettings& s,
             bool with_min_p = true) {
    const float temperature = std::max((float)s.temperature, 1e-30f);
    const float least = with_min_p ? (float)s.min_p : 0;
    weights_.resize(n);
    for (int64_t i = 0; i < n; i += LANES) {
      const int64_t size = std::min<int64_t>(LANES, n - i);
      float shares[LANES] = {};
      for (int64_t j = 0; j < size; j++) shares[j] = (logits[i + j] - most) / temperature;
      Floats x = load(shares);
      store(shares, x < -87.0f ? Floats{} : exponential(x));
      for (int64_t j = 0; j < size; j++)
        weights_[i + j] = shares[j] < least ? 0 : (int64_t)(shares[j] * 1099511627776.0f);
    }
  }

  // The token, id(i) of n, in which the integer noise * total falls: they share [0, total) by their
  // weights.
  template <class Id>
  int64_t pick(int64_t n, double noise, const Id& id) const {
    const int64_t all = total(n), aim = std::min((int64_t)(noise * all), all - 1);
    int64_t sum = 0, i = 0;
    while (i < n - 1 && (sum += weights_[i]) <= aim) i++;
    return id(i);
  }

  std::vector<Candidate> best_;
  std::vector<float> gathered_;
  std::vector<int64_t> weights_;
};
