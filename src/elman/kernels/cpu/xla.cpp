// One direction of one layer as operations of XLA's, forward and backward.
//
// XLA calls them on threads of its own, with Python's lock held by whoever has it: nothing here
// touches Python, but for what tells it where they are.
//
// Operands and results come in the order of Operand and of the functions below; what is absent is a
// buffer of the shape (0). With members, layers alike with weights of their own, every other buffer
// has a leading axis M, and they run one after another: each has the bits that it has alone.
#include "xla.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "arithmetic.h"
#include "ffi.h"
#include "layers.h"
#include "weights.h"

using namespace nanobind::literals;

namespace elman {
namespace {

std::atomic<index> most_threads = 1;

enum Operand {
  kX,
  kH0,
  kC0,
  kWih,
  kWhh,
  kBih,
  kBhh,
  kLengths,
  kReset,
  kKept,
  kDOutput,
  kDHn,
  kDCn
};
constexpr int kForwardOperands = kKept;

// One member's part of a buffer.
class View {
 public:
  View(const ffi::Buffer& buffer, index member, bool members)
      : buffer_(buffer), leading_(members && !is_absent() ? 1 : 0) {
    require(buffer.axes >= leading_, "a buffer's shape is off");
    for (index axis = leading_; axis < buffer.axes; ++axis) size_ *= buffer.shape[axis];
    first_ = leading_ * member * size_;
  }

  index shape(index axis) const { return buffer_.shape[leading_ + axis]; }
  index axes() const { return buffer_.axes - leading_; }
  index size() const { return size_; }
  int type() const { return buffer_.type; }
  bool is_absent() const { return buffer_.axes == 1 && buffer_.shape[0] == 0; }

  bool has_shape(std::initializer_list<index> shape) const {
    return std::equal(shape.begin(), shape.end(), buffer_.shape + leading_,
                      buffer_.shape + buffer_.axes);
  }

  // Null where absent.
  template <class T>
  T* data() const {
    return is_absent() ? nullptr : static_cast<T*>(buffer_.data) + first_;
  }

 private:
  const ffi::Buffer& buffer_;
  index leading_, size_ = 1, first_ = 0;
};

// What both operations begin with: one member's call.
template <class T>
class Call {
 public:
  Call(const ffi::CallFrame& frame, index member, bool members)
      : frame_(frame), member_(member), members_(members) {
    form.cell = cell_named(std::string(text("cell")));
    form.layers = form.directions = 1;
    form.reverse = flag("reverse");
    const View x = operand(kX), w_ih = operand(kWih), w_hh = operand(kWhh);
    require(x.axes() == 3 && w_ih.axes() == 2 && w_hh.axes() == 2, "a buffer's shape is off");
    steps = x.shape(0), batch = x.shape(1);
    const index H = w_hh.shape(1), rows = kernel().gates * H;
    form.first = {x.shape(2), H, H};
    require(H > 0 && w_ih.has_shape({rows, form.first.D}) && w_hh.has_shape({rows, H}),
            "a weight's shape is off");
    weights = {w_ih.data<T>(), w_hh.data<T>(), read(kBih, {rows}), read(kBhh, {rows}), nullptr};
    schedule.emplace(make_schedule());
  }

  const Kernel<T>& kernel() const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return kernels().float64[form.cell];
    } else {
      return kernels().float32[form.cell];
    }
  }

  View operand(int n) const { return {*frame_.operands.each[n], member_, members_}; }
  View result(int n) const { return {*frame_.results.each[n], member_, members_}; }

  // Where the buffer of this shape is, or null where there is none.
  const T* read(int n, std::initializer_list<index> shape) const { return at(operand(n), shape); }
  T* write(int n, std::initializer_list<index> shape) const { return at(result(n), shape); }

  // (L, N, features)
  Sequence<const T> read_sequence(int n, index features) const {
    return {read(n, {steps, batch, features}), batch * features, features, nullptr};
  }
  Sequence<T> write_sequence(int n, index features) const {
    return {write(n, {steps, batch, features}), batch * features, features, nullptr};
  }
  // (N, H)
  States<const T> read_state(int n) const {
    return {read(n, {batch, form.first.H}), 0, form.first.H};
  }
  States<T> write_state(int n) const { return {write(n, {batch, form.first.H}), 0, form.first.H}; }

  index kept_size() const { return elman::kept_size(kernel(), *schedule, form, false); }
  // A step's weights are then read as they lie, which takes no packing.
  bool is_small() const { return reads_weights_as_they_lie(*schedule, form); }

  Form form{};
  index steps, batch;
  Weights weights;
  std::optional<Schedule> schedule;

 private:
  static T* at(const View& view, std::initializer_list<index> shape) {
    if (view.is_absent()) return nullptr;
    const int type = sizeof(T) == sizeof(double) ? ffi::Buffer::kFloat64 : ffi::Buffer::kFloat32;
    require(view.has_shape(shape) && view.type() == type, "a buffer's shape or type is off");
    return view.data<T>();
  }

  Schedule make_schedule() const {
    const View lengths = operand(kLengths), reset = operand(kReset);
    std::vector<index> each;
    if (!lengths.is_absent()) {
      const bool is_int64 = lengths.type() == ffi::Buffer::kInt64;
      require(lengths.has_shape({batch}) && (is_int64 || lengths.type() == ffi::Buffer::kInt32),
              "lengths are int32 or int64, (N)");
      if (is_int64) {
        each.assign(lengths.data<std::int64_t>(), lengths.data<std::int64_t>() + batch);
      } else {
        each.assign(lengths.data<std::int32_t>(), lengths.data<std::int32_t>() + batch);
      }
    }
    Schedule::Reset resets;
    if (!reset.is_absent()) {
      require(reset.has_shape({steps, batch}) && reset.type() == ffi::Buffer::kBool,
              "reset is bool, (L, N)");
      resets = {reset.data<bool>(), batch, 1};
    }
    try {
      return Schedule::dense(steps, batch, each.empty() ? nullptr : each.data(), resets);
    } catch (const std::invalid_argument& e) {
      throw std::invalid_argument(std::string(kernel().kind) + ": " + e.what());
    }
  }

  const void* attribute(std::string_view name, int kind) const {
    const ffi::Attributes& a = frame_.attributes;
    for (index n = 0; n < a.count; ++n) {
      if (name == std::string_view(a.names[n]->data, a.names[n]->size) && a.kinds[n] == kind)
        return a.each[n];
    }
    throw std::invalid_argument("elman._engine: no attribute " + std::string(name));
  }
  std::string_view text(std::string_view name) const {
    const auto* bytes = static_cast<const ffi::Bytes*>(attribute(name, ffi::Attributes::kString));
    return {bytes->data, bytes->size};
  }
  bool flag(std::string_view name) const {
    const auto* scalar = static_cast<const ffi::Scalar*>(attribute(name, ffi::Attributes::kScalar));
    return *static_cast<const bool*>(scalar->value);
  }

  const ffi::CallFrame& frame_;
  const index member_;
  const bool members_;
};

void never_look() {}

// output, h_n, c_n, and what backward needs where there is room for it.
template <class T>
void forward(const Call<T>& call) {
  std::optional<Panels<T>> panels;
  if (!call.is_small())
    panels.emplace(call.kernel(), call.form, &call.weights, Panels<T>::kForward);
  const LayersForward<T> f{
      call.form,
      panels ? &*panels : nullptr,
      &call.weights,
      call.read_sequence(kX, call.form.first.D),
      {call.read_state(kH0), call.read_state(kC0)},
      call.write_sequence(0, call.form.first.H),
      {call.write_state(1), call.write_state(2)},
      call.result(3).template data<T>(),
      false,
  };
  require(!f.kept || call.result(3).size() >= call.kept_size(), "the size of what is kept is off");
  run_layers(call.kernel(), *call.schedule, f, most_threads, never_look);
}

// The gradients of the first seven operands, those of x and of the weights where there is room.
template <class T>
void backward(const Call<T>& call) {
  std::optional<Panels<T>> panels;
  if (!call.is_small())
    panels.emplace(call.kernel(), call.form, &call.weights, Panels<T>::kBackward);
  const auto [D, H, P] = call.form.first;
  const index rows = call.kernel().gates * H;
  T* const d_weights[kWeights] = {call.write(kWih, {rows, D}), call.write(kWhh, {rows, H}),
                                  call.write(kBih, {rows}), call.write(kBhh, {rows}), nullptr};
  require(call.operand(kKept).size() >= call.kept_size(), "the size of what is kept is off");
  const LayersBackward<T> b{
      call.form,
      panels ? &*panels : nullptr,
      &call.weights,
      nullptr,
      call.read_sequence(kX, D),
      call.operand(kKept).template data<T>(),
      call.read_sequence(kDOutput, H),
      {call.read_state(kDHn), call.read_state(kDCn)},
      call.write_sequence(kX, D),
      {call.write_state(kH0), call.write_state(kC0)},
      d_weights,
  };
  run_layers_backward(call.kernel(), *call.schedule, b, most_threads, never_look);
}

template <class T, class Run>
void run_members(const ffi::CallFrame& frame, const Run& run) {
  const ffi::Buffer& x = *frame.operands.each[kX];
  const bool members = x.axes == 4;
  for (index m = 0; m < (members ? x.shape[0] : 1); ++m) run(Call<T>(frame, m, members));
}

ffi::Error* error(const ffi::CallFrame& frame, int code, const char* message) {
  ffi::ErrorArguments arguments{sizeof(ffi::ErrorArguments), nullptr, message, code};
  return frame.api->create_error(&arguments);
}

// Answers what XLA asks about an operation, or runs it. No exception may leave it.
template <class Run>
ffi::Error* handle(ffi::CallFrame* frame, int operands, const Run& run) {
  for (ffi::Extension* e = frame->extensions; e; e = e->next) {
    if (e->type != ffi::Extension::kMetadata) continue;
    e->metadata->version.major = ffi::kMajor;
    e->metadata->version.minor = ffi::kMinor;
    return nullptr;
  }
  if (frame->stage != ffi::CallFrame::kExecute) return nullptr;
  try {
    require(frame->operands.count == operands, "operands are missing");
    const StandardArithmetic standard;
    run(*frame);
    return nullptr;
  } catch (const std::invalid_argument& e) {
    return error(*frame, ffi::ErrorArguments::kInvalidArgument, e.what());
  } catch (const std::bad_alloc&) {
    return error(*frame, ffi::ErrorArguments::kResourceExhausted, "elman: not enough memory");
  } catch (const std::exception& e) {
    return error(*frame, ffi::ErrorArguments::kInternal, e.what());
  }
}

bool is_float64(const ffi::CallFrame& frame) {
  return frame.operands.each[kX]->type == ffi::Buffer::kFloat64;
}

ffi::Error* handle_forward(ffi::CallFrame* frame) {
  return handle(frame, kForwardOperands, [](const ffi::CallFrame& f) {
    if (is_float64(f)) {
      run_members<double>(f, forward<double>);
    } else {
      run_members<float>(f, forward<float>);
    }
  });
}

ffi::Error* handle_backward(ffi::CallFrame* frame) {
  return handle(frame, kDCn + 1, [](const ffi::CallFrame& f) {
    if (is_float64(f)) {
      run_members<double>(f, backward<double>);
    } else {
      run_members<float>(f, backward<float>);
    }
  });
}

nb::capsule capsule(ffi::Handler* handler) { return nb::capsule(reinterpret_cast<void*>(handler)); }

}  // namespace

void bind_xla_calls(nb::module_& m) {
  m.def("xla_forward", [] { return capsule(handle_forward); }, "A handler of XLA's typed FFI.");
  m.def("xla_backward", [] { return capsule(handle_backward); }, "A handler of XLA's typed FFI.");
  m.def(
      "set_threads_of_xla_calls", [](index threads) { most_threads = threads; }, "threads"_a,
      "How many threads a call that XLA makes may take.");
}

}  // namespace elman
