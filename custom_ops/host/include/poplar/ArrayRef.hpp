/// A view of values that lie side by side and belong to somebody else.
#ifndef POPLAR_ARRAYREF_HPP
#define POPLAR_ARRAYREF_HPP

#include <array>
#include <cstddef>
#include <initializer_list>
#include <vector>

namespace poplar {

template <typename T> class ArrayRef {
public:
  ArrayRef() = default;
  ArrayRef(const T *first, std::size_t count) : first(first), count(count) {}
  ArrayRef(const std::vector<T> &values) : ArrayRef(values.data(), values.size()) {}
  template <std::size_t N> ArrayRef(const std::array<T, N> &values) : ArrayRef(values.data(), values.size()) {}
  // A list lives until the end of the call that it is an argument of, which is all that is asked here.
  ArrayRef(const std::initializer_list<T> &values) : ArrayRef(values.begin(), values.size()) {}

  const T *begin() const { return first; }
  const T *end() const { return first + count; }
  const T *data() const { return first; }
  std::size_t size() const { return count; }
  bool empty() const { return count == 0; }
  const T &operator[](std::size_t index) const { return first[index]; }

private:
  const T *first = nullptr;
  std::size_t count = 0;
};

} // namespace poplar

#endif
