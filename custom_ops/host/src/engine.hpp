/// Runs a program over a graph's memory.
#ifndef HOST_ENGINE_HPP
#define HOST_ENGINE_HPP

#include <cstdint>
#include <memory>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

#include "memory.hpp"

namespace host {

class Node;

/// The graph is complete by now: what is added afterwards has no memory here.
class Engine {
public:
  /// Throws `poplar_error` if an element lies on no tile.
  Engine(const poplar::Graph &graph, const poplar::program::Program &program);

  /// Give a tensor its values; it is read-only from then on: a program that writes to it is an error. HALF is rounded.
  void write(const poplar::Tensor &tensor, const float *values);
  void write(const poplar::Tensor &tensor, const std::int32_t *values);
  /// Run the program. What was not given from outside begins as unwritten.
  void run();
  /// The values of a tensor; throws `poplar_error` on such as were never written.
  void read(const poplar::Tensor &tensor, float *values) const;
  void read(const poplar::Tensor &tensor, std::int32_t *values) const;

  /// Let numbers too large for HALF become its largest, as IPUs do unless told otherwise, in place of an error.
  void saturate(bool saturates) { memory.saturates = saturates; }

private:
  std::shared_ptr<const GraphState> graph; // memory refers to its variables
  Memory memory;
  std::shared_ptr<const Node> program;
};

} // namespace host

#endif
