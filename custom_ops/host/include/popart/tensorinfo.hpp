/// Shape and type of a tensor of the intermediate representation.
#ifndef POPART_TENSORINFO_HPP
#define POPART_TENSORINFO_HPP

#include <cstddef>
#include <string>
#include <vector>

#include <popart/datatype.hpp>
#include <popart/error.hpp>
#include <popart/names.hpp>

namespace popart {

class TensorInfo {
public:
  TensorInfo() = default;
  TensorInfo(DataType type, const Shape &shape);
  void set(DataType type, const Shape &shape);

  const Shape &shape() const;
  std::vector<size_t> shape_szt() const;
  Rank rank() const;
  /// Elements in all.
  int64_t nelms() const;
  /// Throws on a dimension that is not there.
  int64_t dim(int i) const;
  DataType dataType() const;
  /// The type's name: "FLOAT16".
  const std::string &data_type() const;
  bool isSet() const;
  bool operator==(const TensorInfo &other) const;
  bool operator!=(const TensorInfo &other) const;

private:
  DataType type = DataType::UNDEFINED;
  Shape extents;
};

} // namespace popart

#endif
