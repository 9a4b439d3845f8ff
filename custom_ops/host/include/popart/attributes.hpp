/// What an operator is created with besides its inputs.
#ifndef POPART_ATTRIBUTES_HPP
#define POPART_ATTRIBUTES_HPP

#include <map>
#include <set>
#include <string>
#include <vector>

#include <popart/names.hpp>

namespace host {
class AttributesAccess;
}

namespace popart {

class Attributes {
public:
  using Ints = std::vector<int64_t>;
  using Int = int64_t;
  using Float = float;
  using String = std::string;

  Attributes() = default;

  bool hasAttribute(const std::string &key) const;
  /// Throws `error` where there is no such attribute, and where it is of another type.
  template <typename T> T getAttribute(const std::string &key) const;

private:
  friend class host::AttributesAccess;

  std::map<std::string, Ints> lists;
  std::map<std::string, Int> wholes;
  std::map<std::string, Float> numbers;
  std::map<std::string, String> texts;
  mutable std::set<std::string> read; // keys that somebody asked for
};

template <> Attributes::Ints Attributes::getAttribute(const std::string &key) const;
template <> Attributes::Int Attributes::getAttribute(const std::string &key) const;
template <> Attributes::Float Attributes::getAttribute(const std::string &key) const;
template <> Attributes::String Attributes::getAttribute(const std::string &key) const;

} // namespace popart

#endif
