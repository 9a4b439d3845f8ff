/// Products of matrices.
#ifndef POPLIN_MATMUL_HPP
#define POPLIN_MATMUL_HPP

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

namespace poplin {

class PlanningCache;
namespace matmul {
class PlanningCache;
}

/// A [g, m, k] times B [g, k, n], group by group: [g, m, n]. Operands are of one type, FLOAT or HALF.
///
/// Options: availableMemoryProportion (0.6), partialsType float or half (float).
poplar::Tensor matMulGrouped(poplar::Graph &graph, const poplar::Tensor &A, const poplar::Tensor &B,
                             poplar::program::Sequence &prog, const poplar::Type &outputType,
                             const poplar::DebugContext &debugContext = {}, const poplar::OptionFlags &options = {},
                             PlanningCache *cache = nullptr);

/// C += k * A * B, group by group; the product has the type of C.
void matMulGroupedAcc(poplar::Graph &graph, const poplar::Tensor &C, float k, const poplar::Tensor &A,
                      const poplar::Tensor &B, poplar::program::Sequence &prog,
                      const poplar::DebugContext &debugContext = {}, const poplar::OptionFlags &options = {},
                      PlanningCache *cache = nullptr);

} // namespace poplin

#endif
