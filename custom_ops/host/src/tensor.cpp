#include <poplar/Tensor.hpp>

#include <algorithm>
#include <numeric>
#include <string>

#include <poplar/exceptions.hpp>

#include "memory.hpp"

namespace poplar {

using host::Element;
using host::TensorAccess;
using Shape = std::vector<std::size_t>;

struct Types {
  static Type make(const char *name) { return Type(name); }
};

const Type BOOL = Types::make("bool"), INT = Types::make("int"), UNSIGNED_INT = Types::make("unsigned int"),
           HALF = Types::make("half"), FLOAT = Types::make("float");

namespace {

std::string text(ArrayRef<std::size_t> shape) {
  std::string result = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

std::size_t count(const Shape &shape) {
  return std::accumulate(shape.begin(), shape.end(), std::size_t(1), std::multiplies<std::size_t>());
}

void require(bool holds, const std::string &rule) {
  if (!holds)
    throw poplar_error(rule);
}

/// Elements of a graph that were met.
class ElementSet {
public:
  explicit ElementSet(const host::GraphState &graph) : graph(graph), met(graph.variables.size()) {}
  /// Whether it was not yet among them.
  bool insert(const Element &element) {
    std::vector<bool> &variable = met[element.variable];
    if (variable.empty())
      variable.resize(graph.variables[element.variable].size);
    const bool fresh = !variable[element.index];
    variable[element.index] = true;
    return fresh;
  }
  bool contains(const Element &element) const {
    const std::vector<bool> &variable = met[element.variable];
    return !variable.empty() && variable[element.index];
  }

private:
  const host::GraphState &graph;
  std::vector<std::vector<bool>> met;
};

/// How far apart neighbours along each dimension lie in reading order.
Shape strides(const Shape &shape) {
  Shape result(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 1;)
    result[i - 1] = result[i] * shape[i];
  return result;
}

/// The elements at `start + sum of index * step` for all indices of `shape`, the last running fastest.
std::vector<Element> gather(const std::vector<Element> &elements, const Shape &shape, const Shape &steps,
                            std::size_t start) {
  std::vector<Element> result;
  result.reserve(count(shape));
  if (count(shape) == 0)
    return result;
  Shape index(shape.size(), 0);
  std::size_t position = start;
  for (;;) {
    result.push_back(elements[position]);
    std::size_t dimension = shape.size();
    while (dimension > 0 && ++index[dimension - 1] == shape[dimension - 1]) {
      --dimension;
      position -= steps[dimension] * (shape[dimension] - 1);
      index[dimension] = 0;
    }
    if (dimension == 0)
      return result;
    position += steps[dimension - 1];
  }
}

} // namespace

std::size_t Tensor::dim(unsigned index) const {
  require(index < rank(), "dimension " + std::to_string(index) + " of a tensor of shape " + text(extents));
  return extents[index];
}

std::size_t Tensor::numElements() const { return TensorAccess::elements(*this).size(); }

std::size_t Tensor::product(unsigned begin, unsigned end) const {
  require(begin <= end && end <= rank(), "dimensions [" + std::to_string(begin) + ", " + std::to_string(end) +
                                             ") of a tensor of shape " + text(extents));
  return std::accumulate(extents.begin() + begin, extents.begin() + end, std::size_t(1),
                         std::multiplies<std::size_t>());
}

Tensor Tensor::sameElements(Shape shape) const {
  Tensor result = *this;
  result.extents = std::move(shape);
  return result;
}

Tensor Tensor::operator[](std::size_t index) const & {
  require(rank() > 0, "an index into a tensor of no dimensions");
  return slice(index, index + 1, 0).squeeze({0});
}

Tensor Tensor::slice(std::size_t begin, std::size_t end, unsigned dimension) const {
  dim(dimension);
  Shape first(rank(), 0), last = extents;
  first[dimension] = begin;
  last[dimension] = end;
  return slice(first, last);
}

Tensor Tensor::slice(ArrayRef<std::size_t> begin, ArrayRef<std::size_t> end) const {
  require(begin.size() == rank() && end.size() == rank(),
          "a slice from " + text(begin) + " to " + text(end) + " of a tensor of shape " + text(extents));
  const Shape steps = strides(extents);
  Shape shape(rank());
  std::size_t start = 0;
  for (unsigned i = 0; i < rank(); ++i) {
    require(begin[i] <= end[i] && end[i] <= extents[i],
            "a slice from " + text(begin) + " to " + text(end) + " of a tensor of shape " + text(extents));
    shape[i] = end[i] - begin[i];
    start += begin[i] * steps[i];
  }
  return TensorAccess::make(graph, type, shape, gather(TensorAccess::elements(*this), shape, steps, start));
}

Tensor Tensor::reshape(ArrayRef<std::size_t> shape) const {
  Shape wanted(shape.begin(), shape.end());
  require(count(wanted) == numElements(), "a tensor of shape " + text(extents) + " reshaped to " + text(shape));
  return sameElements(std::move(wanted));
}

Tensor Tensor::reshapePartial(unsigned beginIndex, unsigned endIndex, ArrayRef<std::size_t> newDims) const {
  product(beginIndex, endIndex);
  Shape shape(extents.begin(), extents.begin() + beginIndex);
  shape.insert(shape.end(), newDims.begin(), newDims.end());
  shape.insert(shape.end(), extents.begin() + endIndex, extents.end());
  return reshape(shape);
}

Tensor Tensor::flatten() const { return flatten(0, rank()); }

Tensor Tensor::flatten(unsigned dimBegin, unsigned dimEnd) const {
  return reshapePartial(dimBegin, dimEnd, {product(dimBegin, dimEnd)});
}

Tensor Tensor::expand(ArrayRef<std::size_t> indices) const {
  Shape shape;
  for (unsigned i = 0; i <= rank(); ++i) {
    shape.insert(shape.end(), std::count(indices.begin(), indices.end(), i), 1);
    if (i < rank())
      shape.push_back(extents[i]);
  }
  require(shape.size() == rank() + indices.size(),
          "a tensor of shape " + text(extents) + " expanded at " + text(indices));
  return sameElements(std::move(shape));
}

Tensor Tensor::squeeze(ArrayRef<std::size_t> indices) const {
  Shape shape;
  for (unsigned i = 0; i < rank(); ++i) {
    const bool dropped = std::count(indices.begin(), indices.end(), i) > 0;
    require(!dropped || extents[i] == 1, "dimensions " + text(indices) + " squeezed out of shape " + text(extents));
    if (!dropped)
      shape.push_back(extents[i]);
  }
  require(shape.size() + indices.size() == rank(),
          "dimensions " + text(indices) + " squeezed out of shape " + text(extents));
  return sameElements(std::move(shape));
}

Tensor Tensor::dimShuffle(ArrayRef<unsigned> permutation) const {
  std::vector<unsigned> sorted(permutation.begin(), permutation.end()), expected(rank());
  std::sort(sorted.begin(), sorted.end());
  std::iota(expected.begin(), expected.end(), 0U);
  require(sorted == expected, "dimShuffle takes each dimension of shape " + text(extents) + " once");
  const Shape steps = strides(extents);
  Shape shape, taken;
  for (unsigned dimension : permutation) {
    shape.push_back(extents[dimension]);
    taken.push_back(steps[dimension]);
  }
  return TensorAccess::make(graph, type, shape, gather(TensorAccess::elements(*this), shape, taken, 0));
}

Tensor Tensor::dimShufflePartial(ArrayRef<unsigned> source, ArrayRef<unsigned> destination) const {
  require(source.size() == destination.size(), "dimShufflePartial takes as many sources as destinations");
  constexpr unsigned open = ~0U;
  std::vector<unsigned> permutation(rank(), open);
  for (std::size_t i = 0; i < source.size(); ++i) {
    require(destination[i] < rank() && permutation[destination[i]] == open,
            "dimShufflePartial moves each dimension of shape " + text(extents) + " to one place of its own");
    permutation[destination[i]] = source[i];
  }
  unsigned next = 0;
  for (unsigned &dimension : permutation) {
    if (dimension != open)
      continue;
    while (std::count(source.begin(), source.end(), next))
      ++next;
    dimension = next++;
  }
  return dimShuffle(permutation);
}

Tensor Tensor::dimRoll(unsigned dimIdx, unsigned newIdx) const { return dimShufflePartial({dimIdx}, {newIdx}); }

Tensor Tensor::transpose() const {
  require(rank() == 2, "transpose takes two dimensions, and the shape is " + text(extents));
  return dimShuffle({1, 0});
}

Tensor Tensor::broadcast(unsigned n, unsigned dimension) const {
  dim(dimension);
  return concat(std::vector<Tensor>(n, *this), dimension);
}

Tensor Tensor::reinterpret(const Type &wanted) const {
  const auto has32Bits = [](const Type &type) { return type == INT || type == UNSIGNED_INT || type == FLOAT; };
  require(type == wanted || (has32Bits(type) && has32Bits(wanted)),
          type.toString() + " reinterpreted as " + wanted.toString() + ", which is of another size");
  Tensor result = *this;
  result.type = wanted;
  return result;
}

bool Tensor::containsConstant() const {
  const auto &variables = TensorAccess::graph(*this).variables;
  const auto &all = TensorAccess::elements(*this);
  return std::any_of(all.begin(), all.end(), [&](const Element &e) { return !variables[e.variable].constant.empty(); });
}

bool Tensor::isParallelWriteable() const { return !containsAliases() && !containsConstant(); }

bool Tensor::containsAliases() const {
  ElementSet seen(TensorAccess::graph(*this));
  for (const Element &element : TensorAccess::elements(*this))
    if (!seen.insert(element))
      return true;
  return false;
}

bool Tensor::intersectsWith(const Tensor &other) const {
  if (graph != other.graph)
    return false;
  ElementSet mine(*graph);
  for (const Element &element : TensorAccess::elements(*this))
    mine.insert(element);
  const auto &others = TensorAccess::elements(other);
  return std::any_of(others.begin(), others.end(), [&](const Element &element) { return mine.contains(element); });
}

Tensor concat(ArrayRef<Tensor> tensors, unsigned dimension) {
  require(!tensors.empty(), "concat of no tensors");
  const Tensor &first = tensors[0];
  first.dim(dimension);
  Shape shape = first.shape();
  shape[dimension] = 0;
  for (const Tensor &tensor : tensors) {
    Shape rest = tensor.shape(), expected = shape;
    require(tensor.rank() == first.rank() && tensor.elementType() == first.elementType(),
            "concat of tensors of shapes " + text(first.shape()) + " and " + text(rest) + " or of different types");
    expected[dimension] = rest[dimension];
    require(rest == expected, "concat of shapes " + text(first.shape()) + " and " + text(rest) + " along dimension " +
                                  std::to_string(dimension));
    shape[dimension] += rest[dimension];
  }
  return TensorAccess::joined(tensors, dimension, std::move(shape));
}

} // namespace poplar
