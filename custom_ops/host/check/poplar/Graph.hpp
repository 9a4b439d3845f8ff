/// For type checks alone; see DebugContext.hpp beside it.
#ifndef CHECK_POPLAR_GRAPH_HPP
#define CHECK_POPLAR_GRAPH_HPP

#include_next <poplar/Graph.hpp>

#include <poplar/GraphElements.hpp>

#endif
