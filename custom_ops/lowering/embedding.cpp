#include "lowering/embedding.hpp"

#include <popops/DynamicSlice.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Loop.hpp>
#include <popops/Reduce.hpp>
#include <popops/Zero.hpp>

namespace minidalle {

using poplar::DebugContext;
using poplar::Graph;
using poplar::Tensor;
using poplar::program::Copy;
using poplar::program::Sequence;

namespace {

/// One plan for lookups and another for updates, as PopART has it: each is laid out for one of them alone.
popops::SlicePlan planLookups(Graph &graph, const EmbeddingShape &shape, const EmbeddingOptions &options) {
  return popops::embedding::plan(graph, shape.type, shape.rows, shape.width, {shape.lookups},
                                 {{"usedForSlice", "true"},
                                  {"usedForUpdate", "false"},
                                  {"availableMemoryProportion", std::to_string(options.availableMemory)}});
}

popops::SlicePlan planUpdates(Graph &graph, const EmbeddingShape &shape, const EmbeddingOptions &options) {
  return popops::embedding::plan(graph, shape.type, shape.rows, shape.width, {shape.lookups},
                                 {{"usedForSlice", "false"},
                                  {"usedForUpdate", "true"},
                                  {"operationForUpdate", "add"},
                                  // else each of the many additions to one row rounds to HALF
                                  {"partialType", "float"},
                                  {"availableMemoryProportion", std::to_string(options.availableMemory)}});
}

/// The form in which PopLibs takes indices: UNSIGNED_INT [n, 1].
Tensor asOffsets(const Tensor &indices) { return indices.flatten().reinterpret(poplar::UNSIGNED_INT).expand({1}); }

} // namespace

Tensor createTable(Graph &graph, const EmbeddingShape &shape, const EmbeddingOptions &options,
                   const DebugContext &debugContext) {
  return popops::createSliceableTensor(graph, shape.type, {shape.rows, shape.width}, {0}, {1},
                                       planLookups(graph, shape, options), {}, {debugContext, "table"});
}

Tensor createIndices(Graph &graph, const EmbeddingShape &shape, const EmbeddingOptions &options,
                     const DebugContext &debugContext) {
  return popops::createIndicesTensor(graph, {0}, shape.lookups, planLookups(graph, shape, options), {},
                                     {debugContext, "indices"})
      .reinterpret(poplar::INT)
      .flatten();
}

Tensor embedding(Graph &graph, const Tensor &table, const Tensor &indices, const Tensor *position,
                 const EmbeddingOptions &options, Sequence &program, const DebugContext &debugContext) {
  const EmbeddingShape shape{table.elementType(), table.dim(0), table.dim(1), indices.numElements()};
  const Tensor rows = popops::multiSlice(graph, table, asOffsets(indices), {0}, {1}, program,
                                         planLookups(graph, shape, options), {}, {debugContext, "rows"});
  const Tensor out = rows.reshape({indices.dim(0), indices.dim(1), shape.width});
  if (position != nullptr)
    popops::addInPlace(graph, out, position->expand({0}), program, {debugContext, "position"});
  return out;
}

Tensor tableGradient(Graph &graph, const Tensor &outGradient, const Tensor &indices, std::size_t rows,
                     const EmbeddingOptions &options, Sequence &program, const DebugContext &debugContext) {
  const poplar::Type type = outGradient.elementType();
  const std::size_t width = outGradient.dim(2), partRows = rows / options.splits;
  const EmbeddingShape part{type, partRows, width, indices.numElements()};
  const popops::SlicePlan plan = planUpdates(graph, part, options);
  const Tensor gradients = outGradient.flatten(0, 2).expand({1}); // [B * N, 1, W]
  const Tensor sums =
      popops::createSliceableTensor(graph, type, {partRows, width}, {0}, {1}, plan, {}, {debugContext, "sums"});
  const Tensor one = graph.addConstant(poplar::FLOAT, {}, 1.0F, {debugContext, "one"});
  const Tensor step = graph.addConstant(poplar::INT, {1}, static_cast<int>(partRows), {debugContext, "step"});
  graph.setTileMapping(one, 0);
  graph.setTileMapping(step, 0);
  // counted from the part's first row; as unsigned numbers those before it are beyond its end, where updates leave them
  // out
  const Tensor counted = graph.clone(indices, {debugContext, "counted"});
  program.add(Copy(indices, counted, false, {debugContext, "counted"}));
  const Tensor gradient = popops::createSliceableTensor(graph, type, {options.splits, partRows, width}, {0}, {1}, 0,
                                                        {debugContext, "gradient"});
  const auto sumPart = [&](const Tensor &number) {
    Sequence body({}, {debugContext, "part"});
    popops::zero(graph, sums, body, {debugContext, "sums"});
    popops::multiUpdateAdd(graph, sums, gradients, asOffsets(counted), one, {0}, {1}, body, plan, {},
                           {debugContext, "add"});
    popops::dynamicUpdate(graph, gradient, sums.expand({0}), number, {0}, {1}, body, {debugContext, "put"});
    popops::subInPlace(graph, counted, step, body, {debugContext, "next"});
    return body;
  };
  program.add(popops::countedLoop(graph, options.splits, sumPart, {debugContext, "parts"}));
  const Tensor whole = gradient.flatten(0, 2);
  if (options.paddingRow >= 0)
    popops::zero(graph, whole.slice(options.paddingRow, options.paddingRow + 1), program, {debugContext, "padding"});
  return whole;
}

Tensor positionGradient(Graph &graph, const Tensor &outGradient, Sequence &program, const DebugContext &debugContext) {
  return popops::reduce(graph, outGradient, outGradient.elementType(), {0}, popops::Operation::ADD, program,
                        {debugContext, "position"});
}

} // namespace minidalle
