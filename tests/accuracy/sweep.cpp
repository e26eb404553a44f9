// exp, tanh and sigmoid of one instruction set at every float32: the worst error in units in the
// last place (ulp), where it is, and a digest of all results. `make accuracy` compiles this once
// for each instruction set, with ELMAN_ISA naming it, and compares.
//
// An argument of n looks at every n-th float only.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <vector>

#include "simd.h"

namespace elman::ELMAN_ISA {
namespace {

// As cells.h takes it: of arguments that are not positive.
Vector<float> exp(Vector<float> x) {
  const auto [scale, rest] = scaled_expm1<float>(x);
  return fma(scale, rest, scale);
}

struct Function {
  const char* name;
  Vector<float> (*approximate)(Vector<float>);
  double (*exact)(double);
  double from, to;  // where it is computed as such; elsewhere see `beyond`
};

double exact_sigmoid(double x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

const Function kFunctions[] = {
    {"exp", [](Vector<float> x) { return exp(x); }, std::exp, -87, 0},
    {"tanh", [](Vector<float> x) { return tanh<float>(x); }, std::tanh, -INFINITY, INFINITY},
    {"sigmoid", [](Vector<float> x) { return sigmoid<float>(x); }, exact_sigmoid, -87, INFINITY},
};

struct Worst {
  double ulps = 0, beyond = 0;  // beyond: the largest absolute error below `from`
  float at = 0;
  std::uint64_t digest = 0;
  bool nan_stays = true;
};

double ulp(double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

// Floats whose bits lie in first .. last-1.
Worst sweep(const Function& f, std::uint64_t first, std::uint64_t last, std::uint64_t every) {
  constexpr int lanes = kLanes<float>;
  Worst worst;
  for (std::uint64_t i = first; i < last; i += every * lanes) {
    float x[lanes], y[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const auto bits = static_cast<std::uint32_t>(i + lane * every);
      std::memcpy(&x[lane], &bits, sizeof bits);
    }
    store<float>(y, f.approximate(load<float>(x)));
    for (int lane = 0; lane < lanes; ++lane) {
      if (i + lane * every >= last) break;
      std::uint32_t bits;
      std::memcpy(&bits, &y[lane], sizeof bits);
      if (std::isnan(x[lane])) {
        worst.nan_stays = worst.nan_stays && std::isnan(y[lane]);
        continue;
      }
      if (x[lane] > f.to) continue;
      worst.digest += (bits ^ (i + lane * every)) * 0x9E3779B97F4A7C15u;  // in any order
      const double exact = f.exact(x[lane]), error = std::fabs(y[lane] - exact);
      if (x[lane] < f.from) {
        worst.beyond = std::fmax(worst.beyond, error);
      } else if (!(error / ulp(exact) <= worst.ulps)) {
        worst.ulps = error / ulp(exact);
        worst.at = x[lane];
      }
    }
  }
  return worst;
}

}  // namespace
}  // namespace elman::ELMAN_ISA

int main(int count, char** arguments) {
  using namespace elman::ELMAN_ISA;
  const std::uint64_t every = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1;
  const std::uint64_t threads = std::thread::hardware_concurrency();
  for (const Function& f : kFunctions) {
    std::vector<Worst> parts(threads);
    std::vector<std::thread> team;
    for (std::uint64_t t = 0; t < threads; ++t) {
      // Shares begin at multiples of `every`, so that their number changes nothing.
      const std::uint64_t all = (std::uint64_t{1} << 32) / every;
      team.emplace_back([&, t, all] {
        parts[t] = sweep(f, all * t / threads * every, all * (t + 1) / threads * every, every);
      });
    }
    for (std::thread& thread : team) thread.join();
    Worst worst = parts[0];
    for (std::uint64_t t = 1; t < threads; ++t) {
      if (parts[t].ulps > worst.ulps) worst.ulps = parts[t].ulps, worst.at = parts[t].at;
      worst.beyond = std::fmax(worst.beyond, parts[t].beyond);
      worst.digest += parts[t].digest;
      worst.nan_stays = worst.nan_stays && parts[t].nan_stays;
    }
    std::printf("%s %.6f %a %.3g %d %016llx\n", f.name, worst.ulps, worst.at, worst.beyond,
                worst.nan_stays, static_cast<unsigned long long>(worst.digest));
  }
}
