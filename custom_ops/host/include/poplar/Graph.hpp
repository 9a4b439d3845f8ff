/// A graph: the variables of a program, and the tiles that they lie on.
#ifndef POPLAR_GRAPH_HPP
#define POPLAR_GRAPH_HPP

#include <memory>
#include <type_traits>
#include <vector>

#include <poplar/ArrayRef.hpp>
#include <poplar/DebugContext.hpp>
#include <poplar/Interval.hpp>
#include <poplar/OptionFlags.hpp>
#include <poplar/Target.hpp>
#include <poplar/Tensor.hpp>
#include <poplar/Type.hpp>
#include <poplar/exceptions.hpp>

namespace host {
class GraphAccess;
}

namespace poplar {

class Graph {
public:
  /// For each tile the ranges of a tensor's elements that lie there.
  using TileToTensorMapping = std::vector<std::vector<Interval>>;

  explicit Graph(const Target &target);
  Graph(Graph &&) noexcept = default;
  Graph(const Graph &) = delete;

  const Target &getTarget() const;

  /// Memory that holds nothing yet and lies on no tile yet.
  Tensor addVariable(const Type &type, ArrayRef<std::size_t> shape, const DebugContext &debugContext = {});

  /// A tensor that never changes, of one value or of many, which lies on no tile yet. FLOAT from float and whole types
  /// from whole ones only: how a host's number becomes a HALF is not relied upon.
  template <typename T, typename = typename std::enable_if<std::is_arithmetic<T>::value>::type>
  Tensor addConstant(const Type &type, ArrayRef<std::size_t> shape, T value, const DebugContext &debugContext = {}) {
    return addValues(type, shape, std::vector<T>(count(shape), value), debugContext);
  }
  template <typename T>
  Tensor addConstant(const Type &type, ArrayRef<std::size_t> shape, const T *values,
                     const DebugContext &debugContext = {}) {
    return addValues(type, shape, std::vector<T>(values, values + count(shape)), debugContext);
  }

  /// A variable of the same shape on the same tiles.
  Tensor clone(const Type &type, const Tensor &tensor, const DebugContext &debugContext = {});
  Tensor clone(const Tensor &tensor, const DebugContext &debugContext = {});

  void setTileMapping(const Tensor &tensor, unsigned tileNum);
  void setTileMapping(const Tensor &tensor, const TileToTensorMapping &mapping);
  /// Throws `poplar_error` where an element lies on no tile.
  TileToTensorMapping getTileMapping(const Tensor &tensor) const;

private:
  friend class host::GraphAccess;

  static std::size_t count(ArrayRef<std::size_t> shape);
  Tensor addValues(const Type &, ArrayRef<std::size_t>, const std::vector<float> &, const DebugContext &);
  Tensor addValues(const Type &, ArrayRef<std::size_t>, const std::vector<int> &, const DebugContext &);
  Tensor addValues(const Type &, ArrayRef<std::size_t>, const std::vector<unsigned> &, const DebugContext &);

  std::shared_ptr<host::GraphState> state;
};

} // namespace poplar

#endif
