// decoder.cpp on small models of odd shapes, compiled by runs/sanitize.sh with the sanitizers. Every
// array that it is given lies in memory of exactly its size.

#include "../../nanochat/inference/decoder.cpp"

#include <cstdlib>
#include <random>

namespace {

thread_local std::mt19937_64 rng(1);

std::vector<float> random_floats(int64_t n) {
  std::vector<float> x(n);
  for (float& one : x) one = (float)(rng() % 2001) / 1000 - 1;
  x.shrink_to_fit();
  return x;
}

// Logits of every token of three sequences, read `at_once` tokens at a time; bfloat16: of
// the cache, and with bfloat16 weights of embedding and products.
std::vector<float> logits_of(const Shape& s, int kind, bool bfloat16, int threads, int64_t at_once) {
  rng.seed(s.D);
  const int64_t slots = 3, room = 12, tokens = 9;
  auto cos = random_floats(room * s.K), sin = random_floats(room * s.K);
  const int64_t shape[] = {s.layers, s.D, s.H, s.Hkv, s.K, s.V, s.hidden};
  Decoder* decoder = decoder_new(shape, 1e-6f, 15, cos.data(), sin.data(), kind,
                                 bfloat16 && kind == BFLOAT16, threads);
  for (size_t index = 0; index < decoder->matrices.size(); index++) {
    const int64_t place = (int64_t)index - 1, outputs = decoder->matrices[index].outputs;
    const int64_t inputs = index == 0 ? s.D : place % 4 == 1 ? s.H * s.K : place % 4 == 3 ? s.hidden : s.D;
    auto weights = random_floats(outputs * inputs);
    const int64_t first = outputs / 3;  // in two parts, as q and k
    decoder_keep(decoder, index, 0, weights.data(), first, inputs, 0);
    decoder_keep(decoder, index, first, weights.data() + first * inputs, outputs - first, inputs, 0);
  }
  const int64_t size = bfloat16 ? 2 : 4;
  std::vector<std::vector<uint8_t>> caches(2 * s.layers);
  std::vector<void*> keys, values;
  for (auto& cache : caches) cache.resize(slots * s.Hkv * room * s.K * size);
  for (int64_t layer = 0; layer < s.layers; layer++) {
    keys.push_back(caches[2 * layer].data());
    values.push_back(caches[2 * layer + 1].data());
  }
  auto embedding = random_floats(s.V * s.D);
  std::vector<BFloat16> halves(s.V * s.D);
  for (int64_t i = 0; i < s.V * s.D; i++) narrow(embedding[i], &halves[i]);
  const void* table = bfloat16 && kind == BFLOAT16 ? (void*)halves.data() : (void*)embedding.data();
  std::vector<float> all(slots * tokens * s.V);
  for (int64_t start = 0; start < tokens; start += at_once) {
    std::vector<int64_t> ids, in, at, chosen;
    const int64_t end = std::min(tokens, start + at_once);
    for (int64_t slot = 0; slot < slots; slot++)
      for (int64_t t = start; t < end; t++) {
        ids.push_back((slot * 31 + t * 7) % s.V), in.push_back(slot), at.push_back(t);
        chosen.push_back(chosen.size());
      }
    std::vector<float> logits(ids.size() * s.V);
    decoder_run(decoder, ids.data(), in.data(), at.data(), ids.size(), table, bfloat16 && kind == BFLOAT16,
                keys.data(), values.data(), room, bfloat16, chosen.data(), chosen.size(), logits.data());
    for (size_t n = 0; n < ids.size(); n++)
      std::copy_n(&logits[n * s.V], s.V, &all[(in[n] * tokens + at[n]) * s.V]);
    const double settings[][5] = {{1, 1, 1, 0, .5}, {.7, 5, .9, .1, .999}, {1, 1e9, .5, 0, .2}, {2, 1e9, 1, .01, 0}};
    for (auto& setting : settings) {
      int64_t id = -1;
      decoder_sample(decoder, logits.data(), setting, 1, &id);
      if (id < 0 || id >= s.V) std::abort();
    }
  }
  decoder_free(decoder);
  return all;
}

// Whether decoders of several threads, at the same time, compute something else than one alone.
bool threads_disagree(const Shape& shape) {
  const auto alone = logits_of(shape, FLOAT32, false, 1, 3);
  std::atomic<bool> differ{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++)
    threads.emplace_back([&] {
      for (int turn = 0; turn < 3; turn++)
        if (logits_of(shape, FLOAT32, false, 3, 3) != alone) differ = true;
    });
  for (auto& thread : threads) thread.join();
  return differ;
}

// A pool whose jobs are short, long, of one piece and of none, with pauses in which its threads fall
// asleep; each job's pieces write what the next job's read.
bool pool_loses_a_piece() {
  ThreadPool pool(4);
  std::vector<int64_t> done(300);
  int64_t wanted = 0;
  for (int64_t job = 0; job < 2000; job++) {
    const int64_t pieces = job % 7 ? job % 7 - 1 : 300;
    pool.run(pieces, [&](int64_t i) { done[i]++; });
    pool.run(pieces, [&](int64_t i) { done[pieces - 1 - i]++; });
    wanted += 2 * pieces;
    if (job % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (int64_t count : done) wanted -= count;
  return wanted != 0;
}

}  // namespace

// With an argument, the logits are written to standard output.
int main(int argc, char**) {
  if (pool_loses_a_piece()) return std::fprintf(stderr, "the pool loses a piece\n"), 1;
  const Shape shapes[] = {{2, 64, 4, 4, 16, 64, 256}, {1, 66, 11, 11, 6, 192, 264}, {1, 72, 3, 1, 24, 320, 288}};
  if (threads_disagree(shapes[1])) return std::fprintf(stderr, "decoders disturb each other\n"), 1;
  for (const Shape& shape : shapes)
    for (int kind : {FLOAT32, BFLOAT16, INT8})
      for (bool bfloat16 : {false, true}) {
        auto one = logits_of(shape, kind, bfloat16, 1, 9);
        if (one != logits_of(shape, kind, bfloat16, 4, 1) || one != logits_of(shape, kind, bfloat16, 2, 4)) {
          std::fprintf(stderr, "D %d, kind %d: the bits differ\n", (int)shape.D, kind);
          return 1;
        }
        if (argc > 1) std::fwrite(one.data(), sizeof(float), one.size(), stdout);
      }
}
