/// A range of numbers, its end excluded.
#ifndef POPLAR_INTERVAL_HPP
#define POPLAR_INTERVAL_HPP

#include <cstddef>

namespace poplar {

class Interval {
public:
  Interval() = default;
  Interval(std::size_t begin, std::size_t end) : first(begin), last(end) {}
  std::size_t begin() const { return first; }
  std::size_t end() const { return last; }
  std::size_t size() const { return last - first; }

private:
  std::size_t first = 0, last = 0;
};

} // namespace poplar

#endif
