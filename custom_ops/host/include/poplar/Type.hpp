/// The types of elements.
#ifndef POPLAR_TYPE_HPP
#define POPLAR_TYPE_HPP

#include <string>

namespace poplar {

/// One of the five types below; a default-constructed one is none of them.
class Type {
public:
  Type() = default;
  bool operator==(const Type &other) const { return name == other.name; }
  bool operator!=(const Type &other) const { return name != other.name; }
  std::string toString() const { return name; }

private:
  friend struct Types;
  explicit Type(const char *name) : name(name) {}
  const char *name = "none"; // one literal a type, so that comparing addresses is enough
};

extern const Type BOOL, INT, UNSIGNED_INT, HALF, FLOAT;

} // namespace poplar

#endif
