/// What the operators ask of their attributes and inputs.
#ifndef MINIDALLE_POPART_CHECKS_HPP
#define MINIDALLE_POPART_CHECKS_HPP

#include <cstdint>
#include <limits>
#include <sstream>
#include <string>

#include <popart/attributes.hpp>
#include <popart/error.hpp>
#include <popart/op.hpp>
#include <popart/tensorinfo.hpp>

namespace minidalle {

/// Throws `popart::error` with the operator's name and the message, a format of PopART's, unless the rule holds.
template <typename... Arguments>
void require(const popart::OperatorIdentifier &opid, bool holds, const std::string &message,
             const Arguments &...arguments) {
  if (!holds)
    throw popart::error("{}: " + message, opid.type, arguments...);
}

/// "[2, 80, 64]"
inline std::string text(const popart::Shape &shape) {
  std::string result;
  for (int64_t extent : shape)
    result += (result.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + result + "]";
}

/// Every bit of a number, for PopART to compare by: it would print six digits after the point, and take two numbers
/// that agree in them for one.
inline std::string exact(float value) {
  std::ostringstream stream;
  stream << std::hexfloat << value;
  return stream.str();
}

/// An attribute that is `lowest` or more, and fits an int.
inline int integer(const popart::OperatorIdentifier &opid, const popart::Attributes &attributes, const std::string &key,
                   int lowest) {
  const int highest = std::numeric_limits<int>::max();
  const int64_t value = attributes.getAttribute<popart::Attributes::Int>(key);
  require(opid, value >= lowest && value <= highest, "{}={} is out of range; take {} to {}", key, value, lowest,
          highest);
  return static_cast<int>(value);
}

/// An attribute that counts something.
inline unsigned natural(const popart::OperatorIdentifier &opid, const popart::Attributes &attributes,
                        const std::string &key) {
  return static_cast<unsigned>(integer(opid, attributes, key, 0));
}

/// Of a tensor of numbers with a fraction.
inline void requireFloating(const popart::OperatorIdentifier &opid, const std::string &name,
                            const popart::TensorInfo &info) {
  require(opid, info.dataType() == popart::DataType::FLOAT || info.dataType() == popart::DataType::FLOAT16,
          "{} is of type {}; make it FLOAT or FLOAT16", name, info.data_type());
}

inline void requireAvailableMemory(const popart::OperatorIdentifier &opid, float share) {
  require(opid, share > 0 && share <= 1,
          "available_memory={} is no share of a tile's memory; take more than 0 and at most 1", share);
}

} // namespace minidalle

#endif
