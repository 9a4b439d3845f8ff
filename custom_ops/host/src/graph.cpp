#include "graph.hpp"

#include <algorithm>
#include <string>

namespace poplar {

using host::Element;
using host::GraphState;
using host::TensorAccess;
using host::Variable;
using host::Word;

namespace {

constexpr std::int16_t unmapped = -1;

Tensor add(const std::shared_ptr<GraphState> &state, const Type &type, ArrayRef<std::size_t> shape,
           std::vector<Word> constant, const DebugContext &debugContext) {
  std::size_t size = 1;
  for (std::size_t extent : shape)
    size *= extent;
  const auto number = static_cast<std::uint32_t>(state->variables.size());
  const std::string path = debugContext.getPathName();
  const std::string kind = constant.empty() ? "variable" : "constant";
  const std::string name = kind + " '" + (path.empty() ? std::to_string(number) : path) + "'";
  state->variables.push_back({name, type, size, std::move(constant), std::vector<std::int16_t>(size, unmapped)});
  std::vector<Element> elements(size);
  for (std::uint32_t i = 0; i < size; ++i)
    elements[i] = {number, i};
  return TensorAccess::make(state, type, {shape.begin(), shape.end()}, std::move(elements));
}

void requireType(bool holds, const Type &type, const char *from) {
  if (!holds)
    throw poplar_error("addConstant of type " + type.toString() + " from " + from + "; give values of the type itself");
}

template <typename T, typename Set> std::vector<Word> words(const std::vector<T> &values, Set set) {
  if (values.empty())
    throw poplar_error("addConstant of no values");
  std::vector<Word> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    set(result[i], values[i]);
  return result;
}

} // namespace

Graph::Graph(const Target &target) : state(std::make_shared<GraphState>(GraphState{target, {}})) {}

const Target &Graph::getTarget() const { return state->target; }

Tensor Graph::addVariable(const Type &type, ArrayRef<std::size_t> shape, const DebugContext &debugContext) {
  if (type == Type())
    throw poplar_error("addVariable of no type");
  return add(state, type, shape, {}, debugContext);
}

std::size_t Graph::count(ArrayRef<std::size_t> shape) {
  std::size_t size = 1;
  for (std::size_t extent : shape)
    size *= extent;
  return size;
}

Tensor Graph::addValues(const Type &type, ArrayRef<std::size_t> shape, const std::vector<float> &values,
                        const DebugContext &debugContext) {
  requireType(type == FLOAT, type, "float");
  return add(state, type, shape, words(values, [](Word &word, float value) { word.number = value; }), debugContext);
}

Tensor Graph::addValues(const Type &type, ArrayRef<std::size_t> shape, const std::vector<int> &values,
                        const DebugContext &debugContext) {
  requireType(type == INT, type, "int");
  return add(state, type, shape, words(values, [](Word &word, int value) { word.whole = value; }), debugContext);
}

Tensor Graph::addValues(const Type &type, ArrayRef<std::size_t> shape, const std::vector<unsigned> &values,
                        const DebugContext &debugContext) {
  requireType(type == UNSIGNED_INT, type, "unsigned");
  return add(state, type, shape, words(values, [](Word &word, unsigned value) { word.natural = value; }), debugContext);
}

Tensor Graph::clone(const Type &type, const Tensor &tensor, const DebugContext &debugContext) {
  const Tensor result = addVariable(type, tensor.shape(), debugContext);
  const auto &from = TensorAccess::elements(tensor), &to = TensorAccess::elements(result);
  for (std::size_t i = 0; i < from.size(); ++i)
    state->variables[to[i].variable].tile[to[i].index] = state->variables[from[i].variable].tile[from[i].index];
  return result;
}

Tensor Graph::clone(const Tensor &tensor, const DebugContext &debugContext) {
  return clone(tensor.elementType(), tensor, debugContext);
}

void Graph::setTileMapping(const Tensor &tensor, unsigned tileNum) {
  if (tileNum >= state->target.getNumTiles())
    throw poplar_error("setTileMapping to tile " + std::to_string(tileNum) + " of " +
                       std::to_string(state->target.getNumTiles()));
  for (const Element &element : TensorAccess::elements(tensor))
    state->variables[element.variable].tile[element.index] = static_cast<std::int16_t>(tileNum);
}

void Graph::setTileMapping(const Tensor &tensor, const TileToTensorMapping &mapping) {
  if (mapping.size() > state->target.getNumTiles())
    throw poplar_error("setTileMapping names " + std::to_string(mapping.size()) + " tiles of " +
                       std::to_string(state->target.getNumTiles()));
  const Tensor flat = tensor.flatten();
  for (unsigned tile = 0; tile < mapping.size(); ++tile)
    for (const Interval &interval : mapping[tile])
      setTileMapping(flat.slice(interval.begin(), interval.end()), tile);
}

Graph::TileToTensorMapping Graph::getTileMapping(const Tensor &tensor) const {
  TileToTensorMapping result(state->target.getNumTiles());
  const auto &elements = TensorAccess::elements(tensor);
  for (std::size_t i = 0; i < elements.size(); ++i) {
    const Variable &variable = state->variables[elements[i].variable];
    const std::int16_t tile = variable.tile[elements[i].index];
    if (tile == unmapped)
      throw poplar_error("getTileMapping of " + variable.name + ", of which an element lies on no tile");
    auto &ranges = result[tile];
    if (!ranges.empty() && ranges.back().end() == i)
      ranges.back() = Interval(ranges.back().begin(), i + 1);
    else
      ranges.emplace_back(i, i + 1);
  }
  return result;
}

} // namespace poplar

namespace host {

Budget budget(const poplar::Graph &graph) {
  Budget result;
  for (const Variable &variable : GraphAccess::state(graph)->variables) {
    result.total += variable.bytes();
    result.largest = std::max(result.largest, variable.bytes());
    result.largestElements = std::max(result.largestElements, variable.size);
  }
  return result;
}

void checkMapping(const poplar::Graph &graph) {
  constexpr std::size_t largestOnOneTile = 16 * 1024; // of a tile's 624 KiB, which many variables share
  for (const Variable &variable : GraphAccess::state(graph)->variables) {
    const auto bounds = std::minmax_element(variable.tile.begin(), variable.tile.end());
    if (bounds.first == variable.tile.end())
      continue;
    if (*bounds.first < 0)
      throw poplar::poplar_error(variable.name + " has elements that lie on no tile; map it");
    if (*bounds.first == *bounds.second && variable.bytes() > largestOnOneTile && graph.getTarget().getNumTiles() > 1)
      throw poplar::poplar_error(variable.name + " of " + std::to_string(variable.bytes()) +
                                 " bytes lies on one tile alone; spread it");
  }
}

} // namespace host
