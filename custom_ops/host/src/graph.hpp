/// A graph's state, for those who implement Poplar.
#ifndef HOST_GRAPH_HPP
#define HOST_GRAPH_HPP

#include <cstddef>
#include <memory>

#include <poplar/Graph.hpp>

#include "memory.hpp"

namespace host {

class GraphAccess {
public:
  static std::shared_ptr<const GraphState> state(const poplar::Graph &graph) { return graph.state; }
};

/// Bytes of a graph's variables, constants among them.
struct Budget {
  std::size_t total = 0, largest = 0;
  std::size_t largestElements = 0; // of any one variable
};
Budget budget(const poplar::Graph &graph);

/// Throws `poplar_error` if an element lies on no tile, or if a variable too large for it lies on one alone.
void checkMapping(const poplar::Graph &graph);

} // namespace host

#endif
