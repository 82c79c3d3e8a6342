// Runs loss.cpp on rows of several sizes, for the sanitizers: see runs/sanitize.sh.

#include <cstdio>
#include <cstdlib>

#include "../nanochat/loss.cpp"

template <class T>
void check(int64_t N, int64_t V, bool weighted, bool bfloat16) {
  std::vector<T> logits(N * V);
  std::vector<int64_t> targets(N);
  std::vector<float> factors(N, 0.5f), bias(V, 0.1f), losses(N);
  for (size_t i = 0; i < logits.size(); i++) narrow((float)((i * 7919) % 97) - 48, &logits[i]);
  for (int64_t n = 0; n < N; n++) targets[n] = n % 3 ? n * 31 % V : -1;
  loss_rows(logits.data(), targets.data(), weighted ? factors.data() : nullptr,
            weighted ? bias.data() : nullptr, N, V, 15, bfloat16, losses.data());
  bool finite = true;
  for (T value : logits) finite &= std::isfinite(widen(value));
  for (float value : losses) finite &= std::isfinite(value);
  if (finite) return;
  std::printf("not finite: N %ld, V %ld\n", (long)N, (long)V);
  std::exit(1);
}

int main() {
  for (int64_t N : {0, 1, 7, 64})
    for (int64_t V : {16, 64, 1472})
      for (bool weighted : {false, true}) {
        check<float>(N, V, weighted, false);
        check<BFloat16>(N, V, weighted, true);
      }
}
