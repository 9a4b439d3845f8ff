/// For type checks alone; see DebugContext.hpp beside it.
#ifndef CHECK_POPLAR_TENSORCLONEMETHOD_HPP
#define CHECK_POPLAR_TENSORCLONEMETHOD_HPP

namespace poplar {

enum class TensorCloneMethod { PRESERVE_ORDER_AND_ALIASES, PRESERVE_ORDER_UNLESS_ALIASES };

} // namespace poplar

#endif
