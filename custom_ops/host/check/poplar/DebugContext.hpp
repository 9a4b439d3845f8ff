/// For type checks alone: what the open headers of PopLibs and PopART name of Poplar, and the lowering does not.
#ifndef CHECK_POPLAR_DEBUGCONTEXT_HPP
#define CHECK_POPLAR_DEBUGCONTEXT_HPP

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <ostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include_next <poplar/DebugContext.hpp>

namespace poplar {

class StringRef {
public:
  StringRef(const char *);
  StringRef(const std::string &);
  operator std::string() const;
};

class ProfileValue {
public:
  using Map = std::map<std::string, ProfileValue>;
  ProfileValue();
  ProfileValue(const char *);
  ProfileValue(std::string);
  ProfileValue(Map);
};

class SourceLocation {
public:
  static SourceLocation Current();
};

class DebugInfo {
public:
  DebugInfo(const DebugContext &, std::string);
  virtual ~DebugInfo();
  bool setValue(std::string, const ProfileValue &);
  operator DebugContext() const;
};

} // namespace poplar

#endif
