/// Reductions over whole dimensions.
#ifndef POPOPS_REDUCE_HPP
#define POPOPS_REDUCE_HPP

#include <string>
#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

#include <popops/Operation.hpp>

namespace popops {

struct ReduceParams {
  ReduceParams() = default;
  ReduceParams(popops::Operation op) : op(op) {}
  popops::Operation op = Operation::ADD;
};

/// `in` without the dimensions `dims`. Sums are accumulated in single precision and may change the type; MAX keeps it.
poplar::Tensor reduce(poplar::Graph &graph, const poplar::Tensor &in, const poplar::Type &outType,
                      const std::vector<std::size_t> &dims, ReduceParams params, poplar::program::Sequence &prog,
                      const poplar::DebugContext &debugContext = {}, const poplar::OptionFlags &options = {});

} // namespace popops

#endif
