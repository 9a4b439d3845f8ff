/// The driver as functions of C. They return 0, or null, or another number where they fail; `host_last_error` says why.

#include <cstdint>
#include <cstring>

#include "driver.hpp"
#include "guard.hpp"

using host::guarded;
using host::Operator;

namespace {

/// The types' numbers: 0 FLOAT, 1 HALF, 2 INT32.
constexpr popart::DataType types[] = {popart::DataType::FLOAT, popart::DataType::FLOAT16, popart::DataType::INT32};

popart::DataType typeOf(int number) {
  if (number < 0 || number > 2)
    throw popart::error("there is no type {}; take 0 FLOAT, 1 HALF or 2 INT32", number);
  return types[number];
}

int numberOf(popart::DataType type) {
  int number = 0;
  while (types[number] != type)
    ++number;
  return number;
}

Operator &the(void *handle) { return *static_cast<Operator *>(handle); }

template <typename T> int setAttribute(void *handle, const char *key, T value) {
  return guarded([&] { the(handle).setAttribute(key, value); });
}

} // namespace

HOST_VISIBLE void *host_operator_new(const char *domain, const char *name, int version) {
  void *handle = nullptr;
  guarded([&] { handle = new Operator(domain, name, version); });
  return handle;
}

HOST_VISIBLE int host_operator_attribute_int(void *handle, const char *key, int64_t value) {
  return setAttribute<popart::Attributes::Int>(handle, key, value);
}

HOST_VISIBLE int host_operator_attribute_ints(void *handle, const char *key, const int64_t *values, int count) {
  return setAttribute(handle, key, popart::Attributes::Ints(values, values + count));
}

HOST_VISIBLE int host_operator_attribute_float(void *handle, const char *key, float value) {
  return setAttribute<popart::Attributes::Float>(handle, key, value);
}

HOST_VISIBLE int host_operator_attribute_string(void *handle, const char *key, const char *value) {
  return setAttribute(handle, key, popart::Attributes::String(value));
}

HOST_VISIBLE int host_operator_input(void *handle, int type, int rank, const int64_t *shape) {
  return guarded([&] { the(handle).addInput({typeOf(type), popart::Shape(shape, shape + rank)}); });
}

HOST_VISIBLE int host_operator_compile(void *handle) {
  return guarded([&] { the(handle).compile(); });
}

/// Below 0 where it fails.
HOST_VISIBLE int host_operator_output_count(void *handle) {
  int count = -1;
  guarded([&] { count = the(handle).outputCount(); });
  return count;
}

/// `shape` has room for 8 numbers.
HOST_VISIBLE int host_operator_output(void *handle, int index, int *type, int *rank, int64_t *shape) {
  return guarded([&] {
    const popart::TensorInfo &info = the(handle).output(index);
    if (info.rank() > 8)
      throw popart::error("output {} has {} dimensions, and there is room for 8", index, info.rank());
    *type = numberOf(info.dataType());
    *rank = info.rank();
    for (int dimension = 0; dimension < info.rank(); ++dimension)
      shape[dimension] = info.dim(dimension);
  });
}

/// 0 or 1, or below 0 where it fails.
HOST_VISIBLE int host_operator_has_gradient(void *handle, int input) {
  int result = -1;
  guarded([&] { result = the(handle).hasGradient(input) ? 1 : 0; });
  return result;
}

/// What the operator appends to its outline attributes, as a text with a null behind it, into a buffer of `size` bytes.
HOST_VISIBLE int host_operator_outline(void *handle, char *buffer, int size) {
  return guarded([&] {
    const std::string &outline = the(handle).outline();
    if (size < 0 || outline.size() >= static_cast<std::size_t>(size))
      throw popart::error("a text of {} bytes and its end do not fit into {}", outline.size(), size);
    std::memcpy(buffer, outline.c_str(), outline.size() + 1);
  });
}

/// Whether numbers too large for HALF become its largest one (not 0), or are an error (0, as unless told otherwise).
HOST_VISIBLE int host_operator_saturate(void *handle, int saturates) {
  return guarded([&] { the(handle).saturate(saturates != 0); });
}

HOST_VISIBLE int host_operator_forward(void *handle, const void *const *inputs, void *const *outputs) {
  return guarded([&] { the(handle).forward(inputs, outputs); });
}

HOST_VISIBLE int host_operator_backward(void *handle, const void *const *inputs, const void *const *outputs,
                                        const void *const *out_gradients, void *const *in_gradients) {
  return guarded([&] { the(handle).backward(inputs, outputs, out_gradients, in_gradients); });
}

HOST_VISIBLE void host_operator_delete(void *handle) { delete static_cast<Operator *>(handle); }
