/// Names for what PopART's numbers and texts stand for.
#ifndef POPART_NAMES_HPP
#define POPART_NAMES_HPP

#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace popart {

using Shape = std::vector<int64_t>;
using Rank = int;
using TensorId = std::string;
using OpDomain = std::string;
using OpType = std::string;
using OpVersion = unsigned;
using OpId = int;
using InIndex = int;
using OutIndex = int;

class Graph;
class Op;
class Tensor;
class TensorIndexMap;
class TensorInfo;

} // namespace popart

#endif
