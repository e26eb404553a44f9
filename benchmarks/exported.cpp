// Runs an exported model, or RTNeural's of the same file, over an input, piece by piece, and says
// what a step of the fastest piece took.
//
// exported INPUT OUTPUT PASSES [MODEL.json]: float32 files; prints nanoseconds a step.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#if RTNEURAL
#include <RTNeural/RTNeural.h>

struct Player {
  RTNeural::ModelT<float, 1, 1, RTNeural::LAYER<float, 1, HIDDEN>,
                   RTNeural::DenseT<float, HIDDEN, 1>>
      model;

  explicit Player(const char* file) {
    std::ifstream stream(file, std::ifstream::binary);
    model.parseJson(stream);
  }
  void reset() { model.reset(); }
  void run(const float* in, float* out, int steps) {
    for (int i = 0; i < steps; ++i) out[i] = model.forward(in + i);
  }
};
#else
#include "amp.h"

struct Player {
  amp_state state;

  explicit Player(const char*) {}
  void reset() { amp_init(&state); }
  void run(const float* in, float* out, int steps) { amp_run(&state, in, out, steps); }
};
#endif

constexpr int kPiece = 1000;

int main(int, char** arguments) {
  std::ifstream file(arguments[1], std::ifstream::binary | std::ifstream::ate);
  const int steps = static_cast<int>(file.tellg()) / 4;
  std::vector<float> in(steps), out(steps);
  file.seekg(0);
  file.read(reinterpret_cast<char*>(in.data()), 4 * steps);
  static Player player(arguments[4]);
  double best = 1e9;
  for (int pass = std::atoi(arguments[3]); pass > 0; --pass) {
    player.reset();
    for (int first = 0; first < steps; first += kPiece) {
      const auto start = std::chrono::steady_clock::now();
      player.run(in.data() + first, out.data() + first, kPiece);
      const std::chrono::duration<double, std::nano> taken =
          std::chrono::steady_clock::now() - start;
      best = std::min(best, taken.count() / kPiece);
    }
  }
  std::printf("%.3f\n", best);
  std::ofstream(arguments[2], std::ofstream::binary)
      .write(reinterpret_cast<char*>(out.data()), 4 * steps);
}
