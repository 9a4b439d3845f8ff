/// Programs as trees of nodes, and how operations get into them.
#ifndef HOST_PROGRAM_HPP
#define HOST_PROGRAM_HPP

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <poplar/Program.hpp>

#include "memory.hpp"

namespace host {

/// A part of a program. It is made once, and runs as often as what it is a part of says.
class Node {
public:
  virtual ~Node() = default;
  virtual void run(Memory &memory) const = 0;
  bool frozen = false; // a part of another: nothing may be added
};

class ProgramAccess {
public:
  static const std::shared_ptr<Node> &node(const poplar::program::Program &program) { return program.node; }
};

using Operation = std::function<void(Memory &)>;

/// Append an operation to a sequence. Its errors name it.
void record(poplar::program::Sequence &program, const poplar::DebugContext &debugContext, const std::string &kind,
            Operation operation);

} // namespace host

#endif
