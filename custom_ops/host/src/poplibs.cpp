#include "poplibs.hpp"

#include <poputil/TileMapping.hpp>

namespace host {

std::string text(const poplar::Tensor &tensor) {
  std::string result = tensor.elementType().toString() + " [";
  const Shape shape = tensor.shape();
  for (std::size_t i = 0; i < shape.size(); ++i)
    result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

poplar::Tensor makeResult(poplar::Graph &graph, const poplar::Type &type, const Shape &shape,
                          const poplar::DebugContext &debugContext, const std::string &name) {
  const poplar::Tensor result = graph.addVariable(type, shape, {debugContext, name});
  poputil::mapTensorLinearly(graph, result);
  return result;
}

void requireNumbers(const poplar::Tensor &tensor, const std::string &what) {
  require(tensor.elementType() == poplar::FLOAT || tensor.elementType() == poplar::HALF,
          what + " takes float or half, not " + text(tensor));
}

void requireWriteable(const poplar::Tensor &tensor, const std::string &what) {
  require(tensor.isParallelWriteable(), what + " writes to " + text(tensor) +
                                            ", which is a constant or has an element in several places (a broadcast)");
}

void requireOptions(const poplar::OptionFlags &options, const std::set<std::string> &known, const std::string &what) {
  for (const auto &flag : options)
    require(known.count(flag.first) > 0, what + " has no option '" + flag.first + "'");
}

std::string option(const poplar::OptionFlags &options, const std::string &name, const std::string &otherwise) {
  for (const auto &flag : options)
    if (flag.first == name)
      return flag.second;
  return otherwise;
}

} // namespace host

namespace poputil {

void mapTensorLinearly(poplar::Graph &graph, const poplar::Tensor &tensor) {
  const std::size_t size = tensor.numElements(), tiles = graph.getTarget().getNumTiles();
  const std::size_t each = (size + tiles - 1) / tiles;
  poplar::Graph::TileToTensorMapping mapping(tiles);
  for (std::size_t tile = 0, begin = 0; begin < size; ++tile, begin += each)
    mapping[tile].emplace_back(begin, std::min(begin + each, size));
  graph.setTileMapping(tensor, mapping);
}

} // namespace poputil
