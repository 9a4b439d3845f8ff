#include <popops/Reduce.hpp>

#include <algorithm>
#include <numeric>

#include "poplibs.hpp"
#include "program.hpp"

namespace popops {

using host::Access;
using host::Memory;
using poplar::Tensor;

namespace {

float reduced(const float *values, std::size_t count, Operation op) {
  return op == Operation::MAX ? *std::max_element(values, values + count)
                              : std::accumulate(values, values + count, 0.0F);
}

} // namespace

Tensor reduce(poplar::Graph &graph, const Tensor &in, const poplar::Type &outType, const std::vector<std::size_t> &dims,
              ReduceParams params, poplar::program::Sequence &prog, const poplar::DebugContext &debugContext,
              const poplar::OptionFlags &options) {
  host::requireOptions(options, {}, "reduce");
  host::requireNumbers(in, "reduce");
  host::require(params.op == Operation::ADD || outType == in.elementType(),
                "reduce of " + host::text(in) + " by MAX to " + outType.toString() + "; only sums change the type");
  std::vector<unsigned> order;
  host::Shape kept;
  std::size_t count = 1;
  for (unsigned i = 0; i < in.rank(); ++i) {
    if (std::count(dims.begin(), dims.end(), i)) {
      count *= in.dim(i);
    } else {
      order.push_back(i);
      kept.push_back(in.dim(i));
    }
  }
  host::require(order.size() + dims.size() == in.rank() && count > 0,
                "reduce of " + host::text(in) + " over dimensions that it has not, has twice, or that are empty");
  order.insert(order.end(), dims.begin(), dims.end());
  const Tensor result = host::makeResult(graph, outType, kept, debugContext, "reduce");
  host::requireNumbers(result, "reduce");
  const Access from(in.dimShuffle(order)), to(result);
  host::record(prog, debugContext, "reduce", [=](Memory &memory) {
    const std::vector<float> values = from.floats(memory);
    std::vector<float> results(to.size());
    for (std::size_t i = 0; i < results.size(); ++i)
      results[i] = reduced(&values[i * count], count, params.op);
    to.store(memory, results);
  });
  return result;
}

} // namespace popops
