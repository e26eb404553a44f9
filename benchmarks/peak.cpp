// The machine's limits, for peaks.py: arithmetic and reading, on so many threads at once.
//
// usage: peak THREADS BYTES...
// Prints JSON: {"gflops": fused multiply-adds counted as two, "gbytes": {"BYTES": a second}}, where
// each thread reads so many bytes of its own over and over. Best of several, all threads together.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, chains = 24;
#elif defined(__AVX__)
constexpr int vector_bytes = 32, chains = 12;
#else
constexpr int vector_bytes = 16, chains = 24;
#endif
typedef float Vector __attribute__((vector_size(vector_bytes)));
constexpr int lanes = vector_bytes / sizeof(float);

// The compiler must not know these.
volatile float start = 1, factor = 0.999f, term = 0.001f, sink;

void keep(Vector v) {
  float sum = 0;
  for (int lane = 0; lane < lanes; ++lane) sum += v[lane];
  sink = sum;
}

// As many independent chains as hide the latency and stay in registers.
void multiply_add(long steps) {
  Vector sums[chains];
  for (Vector& sum : sums) sum = Vector{} + start;
  const Vector a = Vector{} + factor, b = Vector{} + term;
  for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (int i = 0; i < chains; ++i) sums[i] = sums[i] * a + b;
  }
  for (int i = 1; i < chains; ++i) sums[0] += sums[i];
  keep(sums[0]);
}

void read(const std::vector<Vector>& data, long passes) {
  constexpr int unroll = 8;
  Vector sums[unroll] = {};
  for (long pass = 0; pass < passes; ++pass) {
    const Vector* at = data.data();
    const Vector* end = at + data.size() / unroll * unroll;
    asm volatile("" : "+r"(at));  // as if elsewhere, so that every pass reads
    for (; at != end; at += unroll) {
#pragma GCC unroll 8
      for (int i = 0; i < unroll; ++i) sums[i] += at[i];
    }
  }
  for (int i = 1; i < unroll; ++i) sums[0] += sums[i];
  keep(sums[0]);
}

// Seconds until all threads, which begin together, have run work(thread).
template <class Work>
double together(int threads, const Work& work) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> waiting = threads;
  std::vector<Clock::time_point> begun(threads), ended(threads);
  std::vector<std::thread> pool;
  for (int thread = 0; thread < threads; ++thread) {
    pool.emplace_back([&, thread] {
      for (--waiting; waiting > 0;) std::this_thread::yield();
      begun[thread] = Clock::now();
      work(thread);
      ended[thread] = Clock::now();
    });
  }
  for (std::thread& each : pool) each.join();
  const auto first = *std::min_element(begun.begin(), begun.end());
  const auto last = *std::max_element(ended.begin(), ended.end());
  return std::chrono::duration<double>(last - first).count();
}

// The best rate of several tries, each of which does `amount` times `repeats` and lasts a while.
template <class Work>
double best_rate(int threads, double amount, const Work& work) {
  constexpr double seconds = 0.003;  // short, so that some try meets no one else
  constexpr int tries = 40;
  long repeats = 1;
  const auto attempt = [&] {
    return together(threads, [&](int thread) { work(thread, repeats); });
  };
  while (std::min({attempt(), attempt(), attempt()}) < seconds) repeats *= 2;
  double best = 0;
  for (int i = 0; i < tries; ++i) {
    best = std::max(best, threads * repeats * amount / attempt());
  }
  return best;
}

int main(int count, char** arguments) {
  if (count < 2) return 2;
  const int threads = std::atoi(arguments[1]);
  constexpr long steps = 10000;
  const double flops = best_rate(threads, 2.0 * lanes * chains * steps, [](int, long repeats) {
    for (long i = 0; i < repeats; ++i) multiply_add(steps);
  });
  std::printf("{\"gflops\": %.1f, \"gbytes\": {", flops / 1e9);
  for (int i = 2; i < count; ++i) {
    const long bytes = std::atol(arguments[i]);
    const std::vector<Vector> zeros(bytes / vector_bytes);
    const std::vector<std::vector<Vector>> data(threads, zeros);
    const double rate = best_rate(threads, static_cast<double>(bytes),
                                  [&](int thread, long passes) { read(data[thread], passes); });
    std::printf("%s\"%ld\": %.1f", i > 2 ? ", " : "", bytes, rate / 1e9);
  }
  std::printf("}}\n");
}
