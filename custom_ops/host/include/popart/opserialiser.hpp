/// How operators tell what they are made with.
#ifndef POPART_OPSERIALISER_HPP
#define POPART_OPSERIALISER_HPP

#include <cstdint>
#include <string>
#include <vector>

#include <popart/names.hpp>

namespace popart {

/// As PopART does, numbers that are not whole are written with six digits after the point: two that differ further
/// behind are the same.
class OpSerialiserBase {
public:
  virtual ~OpSerialiserBase() {}

  void appendAttribute(const std::string &name, float value);
  void appendAttribute(const std::string &name, double value);
  void appendAttribute(const std::string &name, int value);
  void appendAttribute(const std::string &name, int64_t value);
  void appendAttribute(const std::string &name, uint32_t value);
  void appendAttribute(const std::string &name, uint64_t value);
  void appendAttribute(const std::string &name, bool value);
  void appendAttribute(const std::string &name, const std::string &value);
  void appendAttribute(const std::string &name, const std::vector<int64_t> &value);
  void appendAttribute(const std::string &name, const char *value) = delete; // would be the bool

private:
  virtual void appendStrAttr(const std::string &name, const std::string &value) = 0;
};

} // namespace popart

#endif
