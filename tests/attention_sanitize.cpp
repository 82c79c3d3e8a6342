// Runs attention.cpp on odd shapes, for the sanitizers: see runs/sanitize.sh.

#include <cstdio>
#include <cstdlib>

#include "../nanochat/attention.cpp"

template <class T>
bool finite(const std::vector<T>& x) {
  for (T value : x)
    if (!std::isfinite(widen(value))) return false;
  return true;
}

// One pass there and back; documents begin at every `apart` places, or not at all.
template <class T>
void check(Shape s, int64_t apart, bool bfloat16) {
  const int64_t queries = s.B * s.T * s.H * s.K, keys = s.B * s.T * s.Hkv * s.K;
  std::vector<T> q(queries), k(keys), v(keys), out(queries), grad(queries), dq(queries), dk(keys), dv(keys);
  std::vector<float> lse(s.B * s.H * s.T);
  std::vector<int64_t> documents(s.B * s.T);
  for (auto* x : {&q, &k, &v, &grad})
    for (size_t i = 0; i < x->size(); i++) narrow((float)((i * 7919) % 97) / 48 - 1, &(*x)[i]);
  for (size_t i = 0; i < documents.size(); i++) documents[i] = apart ? (int64_t)(i % s.T) / apart : 0;
  const int64_t sizes[] = {s.B, s.T, s.H, s.Hkv, s.K};
  const int64_t* of = apart ? documents.data() : nullptr;
  attention_forward(q.data(), k.data(), v.data(), of, sizes, bfloat16, out.data(), lse.data());
  attention_backward(q.data(), k.data(), v.data(), out.data(), grad.data(), lse.data(), of, sizes,
                     bfloat16, dq.data(), dk.data(), dv.data());
  if (finite(out) && finite(dq) && finite(dk) && finite(dv)) return;
  std::printf("not finite: T %ld, K %ld, documents of %ld\n", (long)s.T, (long)s.K, (long)apart);
  std::exit(1);
}

int main() {
  for (int64_t T : {1, 3, 8, 33, 130})
    for (int64_t K : {2, 6, 16, 64, 100})
      for (int64_t apart : {0, 1, 5, 32})
        for (int64_t Hkv : {1, 2}) {
          check<float>({2, T, 4, Hkv, K}, apart, false);
          check<BFloat16>({2, T, 4, Hkv, K}, apart, true);
        }
}
