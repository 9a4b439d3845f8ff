/// A tensor: a shape over references to elements of variables.
#ifndef POPLAR_TENSOR_HPP
#define POPLAR_TENSOR_HPP

#include <cstddef>
#include <memory>
#include <vector>

#include <poplar/ArrayRef.hpp>
#include <poplar/Type.hpp>

namespace host {
struct Element;
struct GraphState;
class TensorAccess;
} // namespace host

namespace poplar {

/// Views share elements: what is written through a slice, a transpose or a concatenation is written to its variable. A
/// broadcast has one element in many places and can't be written to.
///
/// Every method throws `poplar_error` on shapes, ranges and permutations that do not fit.
class Tensor {
public:
  Tensor() = default;

  Type elementType() const { return type; }
  std::vector<std::size_t> shape() const { return extents; }
  unsigned rank() const { return static_cast<unsigned>(extents.size()); }
  std::size_t dim(unsigned index) const;
  std::size_t numElements() const;
  bool valid() const { return elements != nullptr; }

  /// The part at an index of the first dimension, which disappears.
  Tensor operator[](std::size_t index) const &;
  /// The entries [begin, end) of a dimension.
  Tensor slice(std::size_t begin, std::size_t end, unsigned dimension = 0) const;
  /// The entries [begin, end) of every dimension.
  Tensor slice(ArrayRef<std::size_t> begin, ArrayRef<std::size_t> end) const;
  Tensor reshape(ArrayRef<std::size_t> shape) const;
  /// The dimensions [beginIndex, endIndex) replaced by others of as many elements.
  Tensor reshapePartial(unsigned beginIndex, unsigned endIndex, ArrayRef<std::size_t> newDims) const;
  Tensor flatten() const;
  /// The dimensions [dimBegin, dimEnd) as one.
  Tensor flatten(unsigned dimBegin, unsigned dimEnd) const;
  /// New dimensions of extent 1 before the given ones.
  Tensor expand(ArrayRef<std::size_t> indices) const;
  /// Without the given dimensions, which have extent 1.
  Tensor squeeze(ArrayRef<std::size_t> indices) const;
  Tensor dimShuffle(ArrayRef<unsigned> permutation) const;
  /// The dimensions `source` moved to the places `destination`; the others keep their order.
  Tensor dimShufflePartial(ArrayRef<unsigned> source, ArrayRef<unsigned> destination) const;
  Tensor dimRoll(unsigned dimIdx, unsigned newIdx = 0) const;
  /// Of two dimensions.
  Tensor transpose() const;
  /// The tensor n times, one after the other, along a dimension.
  Tensor broadcast(unsigned n, unsigned dimension) const;
  /// The same bits as another type of 32 bits.
  Tensor reinterpret(const Type &type) const;

  /// Whether every element is in one place only, and none is a constant.
  bool isParallelWriteable() const;
  bool containsAliases() const;
  bool containsConstant() const;
  bool intersectsWith(const Tensor &other) const;

private:
  friend class host::TensorAccess;
  using Elements = std::vector<host::Element>;

  Tensor sameElements(std::vector<std::size_t> shape) const;
  std::size_t product(unsigned begin, unsigned end) const;

  Type type;
  std::vector<std::size_t> extents;
  std::shared_ptr<const Elements> elements;
  std::shared_ptr<const host::GraphState> graph;
};

/// Tensors one after the other along a dimension; the others agree.
Tensor concat(ArrayRef<Tensor> tensors, unsigned dimension = 0);

} // namespace poplar

#endif
