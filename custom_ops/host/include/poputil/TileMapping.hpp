/// Tensors onto tiles.
#ifndef POPUTIL_TILEMAPPING_HPP
#define POPUTIL_TILEMAPPING_HPP

#include <poplar/Graph.hpp>

namespace poputil {

/// Equal stretches of the tensor, in its own order, onto the tiles one after the other.
void mapTensorLinearly(poplar::Graph &graph, const poplar::Tensor &tensor);

} // namespace poputil

#endif
