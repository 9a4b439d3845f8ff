/// For type checks alone; see DebugContext.hpp beside it.
#ifndef CHECK_POPLAR_TYPETRAITS_HPP
#define CHECK_POPLAR_TYPETRAITS_HPP

#include <cstddef>
#include <type_traits>

#include <poplar/Type.hpp>

namespace poplar {

template <typename T> struct equivalent_device_type {
  Type value;
};

struct TypeTraits {
  std::size_t size;
  template <typename T> static TypeTraits make();
  template <typename T> static constexpr bool isSimpleType() { return std::is_arithmetic<T>::value; }
};

} // namespace poplar

#endif
