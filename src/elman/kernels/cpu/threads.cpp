#include "threads.h"

#include <algorithm>
#include <stdexcept>
#include <thread>
#include <vector>

#include "arithmetic.h"
#include "system.h"

namespace elman {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About one microsecond, as long as threads side by side wait at a barrier; and eighty, longer than
// they wait where each step is large.
constexpr int kFewestPauses = 32, kMostPauses = 2048;
// Some tens of microseconds where nobody else wants the processor.
constexpr int kYields = 128;
// Longer than a sleeper takes to wake up, shorter than a thread runs when it has got a processor.
constexpr std::chrono::microseconds kFirstLook{500};
constexpr std::chrono::milliseconds kBetweenLooks{100};
// From so long to so long calls work alone where members did not run.
constexpr std::chrono::microseconds kShortestRest{10'000}, kLongestRest{1'000'000};

// More where pausing has been enough of late. Threads that run side by side are best served by
// that; threads that share a processor keep one another from it.
std::atomic<int> pauses{kMostPauses};

std::atomic<bool> waits_always{false};

template <class Done>
bool pause_until(Done done) {
  const int most = pauses.load(std::memory_order_relaxed);
  for (int i = 0; i < most; ++i) {
    if (done()) {
      if (most < kMostPauses) pauses.store(2 * most, std::memory_order_relaxed);
      return true;
    }
    pause();
  }
  pauses.store(std::max(most / 2, kFewestPauses), std::memory_order_relaxed);
  return done();
}

// No longer than kFirstLook, but for whom others let wait.
template <class Done>
bool yield_until(Done done) {
  const Clock::time_point end = Clock::now() + kFirstLook;
  for (int i = 0; i < kYields && Clock::now() < end; ++i) {
    if (done()) return true;
    std::this_thread::yield();
  }
  return done();
}

}  // namespace

template <class Done, class Look>
void WaitingRoom::wait(Done done, Look look) {
  if (pause_until(done)) return;
  const Clock::time_point start = Clock::now();
  const bool is_done = yield_until(done);
  if (Clock::now() - start >= kFirstLook) look(Clock::now() - start);
  if (is_done) return;
  sleepers_.fetch_add(1);  // before done() is asked again: wake() asks in the other order
  Clock::duration next = kFirstLook;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (woken_.wait_for(lock, next, done)) break;
    }
    next = std::min<Clock::duration>(2 * next, kBetweenLooks);
    look(Clock::now() - start);
  }
  sleepers_.fetch_sub(1);
}

void WaitingRoom::wake() {
  if (sleepers_.load() == 0) return;
  {
    std::lock_guard lock(mutex_);
  }
  woken_.notify_all();
}

class Pool {
 public:
  std::atomic<bool> taken{false};  // by the team at work

  // At least `workers` of them, or as many as the system grants.
  int grow(int workers) {
    try {
      while (static_cast<int>(threads_.size()) < workers) {
        const int member = static_cast<int>(threads_.size()) + 1;
        threads_.emplace_back([this, member, seen = job_.load()] { serve(member, seen); });
      }
    } catch (const std::exception&) {
    }
    return static_cast<int>(threads_.size()) < workers ? static_cast<int>(threads_.size())
                                                       : workers;
  }

  // Before the work of so many.
  void expect(int members) { running_.store(members - 1, std::memory_order_relaxed); }

  // Calls work(context, member) on all members but the first, which is the caller.
  void start(int members, void (*work)(void*, int), void* context) {
    {
      std::lock_guard lock(mutex_);
      work_ = work;
      context_ = context;
      members_ = members;
      job_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  // For the caller after its own part, and for the others after theirs.
  template <class Look>
  void wait_for_members(Look look) {
    room_.wait([this] { return running_.load() == 0; }, look);
  }
  void leave() {
    if (running_.fetch_sub(1) == 1) room_.wake();
  }

  // For whoever has taken it: whether members did not run of late; and whether they did this time.
  bool rests() const { return Clock::now() < end_of_rest_; }
  void note(bool is_late) {
    if (is_late) end_of_rest_ = Clock::now() + rest_;
    rest_ =
        is_late ? std::min(2 * rest_, kLongestRest) : std::max(rest_ - rest_ / 16, kShortestRest);
  }

 private:
  [[noreturn]] void serve(int member, unsigned seen) {
    for (;;) {
      // The next call often follows at once: look for it a while before going to sleep.
      const auto is_called = [&] { return job_.load(std::memory_order_acquire) != seen; };
      if (!pause_until(is_called)) yield_until(is_called);
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return job_.load(std::memory_order_relaxed) != seen; });
      seen = job_.load(std::memory_order_relaxed);
      if (member >= members_) continue;
      const auto work = work_;
      void* const context = context_;
      lock.unlock();
      work(context, member);
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
  std::atomic<unsigned> job_{0};
  std::atomic<int> running_{0};
  WaitingRoom room_;  // of the caller, while others still run
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int members_ = 0;
  std::chrono::microseconds rest_ = kShortestRest;
  Clock::time_point end_of_rest_{};
};

// What OpenMP's runtime offers to the code that GCC writes, and to all.
struct OpenMP {
  void (*parallel)(void (*work)(void*), void* context, unsigned threads, unsigned flags);
  int (*thread_num)();
  int (*num_threads)();
  int (*max_threads)();
  int (*thread_limit)();
  int (*dynamic)();
  int (*in_parallel)();

  bool find() {
    return find(parallel, "GOMP_parallel") && find(thread_num, "omp_get_thread_num") &&
           find(num_threads, "omp_get_num_threads") && find(max_threads, "omp_get_max_threads") &&
           find(thread_limit, "omp_get_thread_limit") && find(dynamic, "omp_get_dynamic") &&
           find(in_parallel, "omp_in_parallel");
  }
  // Will work be done by as many threads as it is asked for?
  bool has(int members) const {
    return max_threads() >= members && thread_limit() >= max_threads() && !dynamic() &&
           !in_parallel();
  }

 private:
  template <class F>
  static bool find(F*& function, const char* name) {
    function = reinterpret_cast<F*>(find_symbol(name));
    return function != nullptr;
  }
};

namespace {

// Never destroyed: its threads sleep until the process ends. A forked child has none of them, and
// starts a new one. OpenMP's are gone for good there.
std::atomic<Pool*> the_pool{nullptr};
std::atomic<bool> is_forked{false};
[[maybe_unused]] const int at_fork = after_fork([] {
  the_pool.store(nullptr);
  is_forked.store(true);
});

Pool& pool() {
  if (Pool* p = the_pool.load(std::memory_order_acquire)) return *p;
  static std::mutex creating;
  std::lock_guard lock(creating);
  if (!the_pool.load()) the_pool.store(new Pool, std::memory_order_release);
  return *the_pool.load();
}

// Null where OpenMP does not have as many threads for this one. It may yet be loaded, and is looked
// for again.
const OpenMP* openmp(int members) {
  static OpenMP found;
  static bool is_found = false;
  // Each other thread that calls would get a pool of its own from it.
  if (is_forked || !is_main_thread()) return nullptr;
  if (!is_found) is_found = found.find();
  return is_found && found.has(members) ? &found : nullptr;
}

}  // namespace

void Barrier::wait(Team& team, bool caller) {
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1);
    room_.wake();
  } else {
    room_.wait([&] { return round_.load() != round; },
               [&](Clock::duration waited) { team.look(caller, waited, round); });
  }
}

Team::Team(int wanted, void (*watch)()) : watch_(watch) {
  if (wanted <= 1 || pool().taken.exchange(true)) return;
  pool_ = &pool();
  if (pool_->rests() && !waits_always) return;
  openmp_ = openmp(wanted);
  size_ = openmp_ ? wanted : 1 + pool_->grow(wanted - 1);
}

Team::~Team() {
  if (pool_) pool_->taken.store(false);
}

void Team::look(bool caller) {
  if (stopped_.load(std::memory_order_relaxed)) throw Stopped();
  if (!caller || !watch_) return;
  const Clock::time_point now = Clock::now();
  if (now < next_watch_) return;
  const bool first = next_watch_ == Clock::time_point{};
  next_watch_ = now + kBetweenLooks;
  if (!first) watch_();
}

bool Team::is_long(Clock::duration waited, unsigned meetings) const {
  if (waits_always) return false;
  const Clock::duration before = Clock::now() - started_ - waited;
  return waited >= kFirstLook && 4 * waited > 5 * before / (meetings + 1);
}

void Team::look(bool caller, Clock::duration waited, unsigned meetings) {
  look(caller);
  if (!is_long(waited, meetings)) return;
  if (!stopped_.exchange(true)) is_given_up_ = true;
  throw Stopped();
}

template <class F>
void Team::attempt(const F& work) {
  try {
    work();
  } catch (...) {
    if (!stopped_.exchange(true)) error_ = std::current_exception();
  }
}

bool Team::run(void (*work)(const void*, int), const void* context) {
  if (size_ == 1) {
    work(context, 0);
    return true;
  }
  started_ = Clock::now();
  Clock::time_point done;  // the caller's part
  auto take_part = [&](int member) {
    const StandardArithmetic standard;  // OpenMP's threads may have another
    attempt([&] { work(context, member); });
    if (member > 0) return pool_->leave();
    done = Clock::now();
    pool_->wait_for_members([this](Clock::duration) { attempt([this] { look(true); }); });
  };
  using TakePart = decltype(take_part);
  pool_->expect(size_);
  if (openmp_) {
    bool are_all_here = true;
    auto on_openmp = [&] {
      const int member = openmp_->thread_num();
      if (openmp_->num_threads() >= size_) {
        if (member < size_) take_part(member);
      } else if (member == 0) {
        are_all_here = false;
      }
    };
    using OnOpenMP = decltype(on_openmp);
    openmp_->parallel([](void* f) { (*static_cast<OnOpenMP*>(f))(); }, &on_openmp, 0, 0);
    if (!are_all_here) throw std::runtime_error("elman: OpenMP gave fewer threads than it has");
  } else {
    pool_->start(
        size_, [](void* f, int member) { (*static_cast<TakePart*>(f))(member); }, &take_part);
    take_part(0);
  }
  pool_->note(is_given_up_ || is_long(Clock::now() - done, 0));
  if (error_) std::rethrow_exception(error_);
  if (!is_given_up_) return true;
  stopped_ = false;
  size_ = 1;
  return false;
}

void always_wait(bool on) { waits_always = on; }

}  // namespace elman
