/// Names of what is made in a graph.
#ifndef POPLAR_DEBUGCONTEXT_HPP
#define POPLAR_DEBUGCONTEXT_HPP

#include <string>

namespace poplar {

class DebugNameAndId {
public:
  DebugNameAndId() = default;
  DebugNameAndId(const char *name) : name(name) {}
  DebugNameAndId(std::string name) : name(std::move(name)) {}
  std::string getPathName() const { return name; }

private:
  std::string name;
};

/// A name within the names of those that asked for it: `{context, "name"}`.
class DebugContext {
public:
  DebugContext() = default;
  DebugContext(const char *name) : path(name) {}
  DebugContext(std::string name) : path(std::move(name)) {}
  DebugContext(const DebugNameAndId &parent, std::string name = "") : path(joined(parent.getPathName(), name)) {}
  DebugContext(const DebugContext &parent, const std::string &name) : path(joined(parent.path, name)) {}
  std::string getPathName() const { return path; }

private:
  static std::string joined(const std::string &parent, const std::string &name) {
    return parent.empty() || name.empty() ? parent + name : parent + "/" + name;
  }
  std::string path;
};

} // namespace poplar

#endif
