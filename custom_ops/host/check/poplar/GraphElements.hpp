/// For type checks alone; see DebugContext.hpp beside it.
#ifndef CHECK_POPLAR_GRAPHELEMENTS_HPP
#define CHECK_POPLAR_GRAPHELEMENTS_HPP

namespace poplar {

class ComputeSet {};

} // namespace poplar

#endif
