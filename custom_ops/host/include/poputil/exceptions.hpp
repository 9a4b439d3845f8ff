/// What PopLibs throws.
#ifndef POPUTIL_EXCEPTIONS_HPP
#define POPUTIL_EXCEPTIONS_HPP

#include <poplar/exceptions.hpp>

namespace poputil {

struct poplibs_error : poplar::poplar_error {
  using poplar::poplar_error::poplar_error;
};

} // namespace poputil

#endif
