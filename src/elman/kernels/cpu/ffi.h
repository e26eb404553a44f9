// What is used of the C interface by which XLA calls a custom operation ("typed FFI", api_version 1
// of a custom call), in its version 0.1: that of jaxlib 0.5.0, which later ones accept. Structures
// have grown at their ends alone since then.
// https://openxla.org/xla/custom_call
#pragma once

#include <cstddef>
#include <cstdint>

namespace elman::ffi {

inline constexpr int kMajor = 0, kMinor = 1;

struct Version {
  std::size_t size;
  void* extensions;
  int major, minor;
};

// Of an operation, filled in by itself when it is asked.
struct Metadata {
  std::size_t size;
  Version version;
  std::uint32_t traits;
};

// A link of the chain at which structures are extended.
struct Extension {
  static constexpr int kMetadata = 1;

  std::size_t size;
  int type;
  Extension* next;
  Metadata* metadata;  // there where the type is kMetadata
};

struct Error;  // XLA's own
struct ErrorArguments {
  static constexpr int kInvalidArgument = 3, kResourceExhausted = 8, kInternal = 13;

  std::size_t size;
  void* extensions;
  const char* message;
  int code;
};

// The functions that XLA offers: the first of them.
struct Api {
  std::size_t size;
  void* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
};

struct Buffer {
  static constexpr int kBool = 1, kInt32 = 4, kInt64 = 5, kFloat32 = 11, kFloat64 = 12;

  std::size_t size;
  void* extensions;
  int type;
  void* data;  // dense, the last axis contiguous
  std::int64_t axes;
  const std::int64_t* shape;
};

// Of the operands and of the results, all of them buffers.
struct Buffers {
  std::size_t size;
  void* extensions;
  std::int64_t count;
  const int* kinds;
  Buffer* const* each;
};

struct Bytes {
  const char* data;
  std::size_t size;
};
struct Scalar {
  int type;  // as a buffer's
  const void* value;
};

// By name, in the names' order.
struct Attributes {
  static constexpr int kScalar = 3, kString = 4;

  std::size_t size;
  void* extensions;
  std::int64_t count;
  const int* kinds;
  const Bytes* const* names;
  const void* const* each;  // a Scalar or Bytes, as the kind says
};

struct CallFrame {
  static constexpr int kExecute = 3;

  std::size_t size;
  Extension* extensions;
  const Api* api;
  void* context;
  int stage;
  Buffers operands, results;
  Attributes attributes;
};

// Null: all went well.
using Handler = Error*(CallFrame*);

}  // namespace elman::ffi
