/// What the host's PopLibs share: results and their places, and the checks of their arguments.
#ifndef HOST_POPLIBS_HPP
#define HOST_POPLIBS_HPP

#include <set>
#include <string>
#include <vector>

#include <poplar/Graph.hpp>
#include <poputil/exceptions.hpp>

namespace host {

using Shape = std::vector<std::size_t>;

/// Throws `poplibs_error` with the message unless it holds.
inline void require(bool holds, const std::string &rule) {
  if (!holds)
    throw poputil::poplibs_error(rule);
}

/// "type [extents]".
std::string text(const poplar::Tensor &tensor);

/// A new tensor for a result, mapped linearly.
poplar::Tensor makeResult(poplar::Graph &graph, const poplar::Type &type, const Shape &shape,
                          const poplar::DebugContext &debugContext, const std::string &name);

/// FLOAT or HALF.
void requireNumbers(const poplar::Tensor &tensor, const std::string &what);

/// Each element in one place only, and none a constant.
void requireWriteable(const poplar::Tensor &tensor, const std::string &what);

/// Only options of these names, as PopLibs has it.
void requireOptions(const poplar::OptionFlags &options, const std::set<std::string> &known, const std::string &what);

/// The option's value, or what holds without it.
std::string option(const poplar::OptionFlags &options, const std::string &name, const std::string &otherwise);

} // namespace host

#endif
