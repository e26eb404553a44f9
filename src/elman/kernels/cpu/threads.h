// A team of threads that run one function together.
#pragma once

#include <atomic>

namespace elman {

// Threads meet here again and again. They spin, since a step of the recurrence lasts microseconds.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait();

 private:
  const int members_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

class Pool;

// Holds up to `wanted` threads, the caller among them, for as long as it lives. There is one pool a
// process: whoever finds it taken works alone, so that two calls at once neither wait for one
// another nor crowd the machine.
class Team {
 public:
  explicit Team(int wanted);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls work(member) on every member at once, and returns when all have.
  template <class F>
  void run(const F& work) {
    run([](const void* f, int member) { (*static_cast<const F*>(f))(member); }, &work);
  }

 private:
  void run(void (*work)(const void*, int), const void* context);
  Pool* pool_ = nullptr;  // null: working alone
  int size_ = 1;
};

}  // namespace elman
