/// Loops.
#ifndef POPOPS_LOOP_HPP
#define POPOPS_LOOP_HPP

#include <functional>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

namespace popops {

/// What a loop's body does, of its counter: UNSIGNED_INT [1], from 0. It is called once, and what it returns runs
/// often.
using CountedLoopBodyType = std::function<poplar::program::Program(const poplar::Tensor &)>;

/// Run the body `count` times.
poplar::program::Sequence countedLoop(poplar::Graph &graph, std::size_t count, const CountedLoopBodyType &body,
                                      const poplar::DebugContext &debugContext = {});

} // namespace popops

#endif
