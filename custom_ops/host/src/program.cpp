#include "program.hpp"

#include <poplar/exceptions.hpp>

namespace host {

using poplar::poplar_error;
using poplar::Tensor;

class SequenceNode : public Node {
public:
  void run(Memory &memory) const override {
    for (const auto &part : parts)
      part->run(memory);
  }
  void add(std::shared_ptr<Node> part) {
    if (frozen)
      throw poplar_error("a program is added to a sequence that is already a part of another one; add it before");
    part->frozen = true;
    parts.push_back(std::move(part));
  }
  bool isEmpty() const { return parts.empty(); }

private:
  std::vector<std::shared_ptr<Node>> parts;
};

namespace {

class OperationNode : public Node {
public:
  OperationNode(std::string name, Operation operation) : name(std::move(name)), operation(std::move(operation)) {}
  void run(Memory &memory) const override {
    try {
      operation(memory);
    } catch (const poplar_error &error) {
      throw poplar_error(name + ": " + error.what());
    }
  }

private:
  std::string name;
  Operation operation;
};

class RepeatNode : public Node {
public:
  RepeatNode(unsigned count, std::shared_ptr<Node> body) : count(count), body(std::move(body)) {
    this->body->frozen = true;
  }
  void run(Memory &memory) const override {
    for (unsigned i = 0; i < count; ++i)
      body->run(memory);
  }

private:
  unsigned count;
  std::shared_ptr<Node> body;
};

class IfNode : public Node {
public:
  IfNode(const Tensor &predicate, std::shared_ptr<Node> then, std::shared_ptr<Node> otherwise)
      : predicate(predicate), then(std::move(then)), otherwise(std::move(otherwise)) {
    this->then->frozen = this->otherwise->frozen = true;
  }
  void run(Memory &memory) const override { (predicate.whole(memory) ? then : otherwise)->run(memory); }

private:
  Access predicate;
  std::shared_ptr<Node> then, otherwise;
};

std::string operationName(const poplar::DebugContext &debugContext, const std::string &kind) {
  const std::string path = debugContext.getPathName();
  return path.empty() ? kind : path + " (" + kind + ")";
}

std::shared_ptr<Node> copyNode(const Tensor &source, const Tensor &destination,
                               const poplar::DebugContext &debugContext) {
  if (source.elementType() != destination.elementType() || source.shape() != destination.shape())
    throw poplar_error("Copy takes tensors of one type and shape");
  if (destination.containsAliases())
    throw poplar_error("Copy to a tensor that has an element in several places");
  const Access from(source), to(destination);
  return std::make_shared<OperationNode>(operationName(debugContext, "Copy"),
                                         [=](Memory &memory) { to.store(memory, from.words(memory).data()); });
}

std::shared_ptr<Node> forgetNode(const Tensor &tensor, const poplar::DebugContext &debugContext) {
  const Access access(tensor);
  return std::make_shared<OperationNode>(operationName(debugContext, "WriteUndef"),
                                         [=](Memory &memory) { access.forget(memory); });
}

std::shared_ptr<Node> ifNode(const Tensor &predicate, const poplar::program::Program &then,
                             const poplar::program::Program &otherwise) {
  if (predicate.elementType() != poplar::BOOL || predicate.rank() != 0)
    throw poplar_error("If decides by a BOOL of no dimensions");
  return std::make_shared<IfNode>(predicate, ProgramAccess::node(then), ProgramAccess::node(otherwise));
}

} // namespace

void record(poplar::program::Sequence &program, const poplar::DebugContext &debugContext, const std::string &kind,
            Operation operation) {
  auto &sequence = static_cast<SequenceNode &>(*ProgramAccess::node(program));
  sequence.add(std::make_shared<OperationNode>(operationName(debugContext, kind), std::move(operation)));
}

} // namespace host

namespace poplar {
namespace program {

using host::SequenceNode;

Program::Program() : node(std::make_shared<SequenceNode>()) {}

Program::Program(std::shared_ptr<host::Node> node) : node(std::move(node)) {}

bool Program::isEmpty() const {
  const auto *sequence = dynamic_cast<const SequenceNode *>(node.get());
  return sequence != nullptr && sequence->isEmpty();
}

Sequence::Sequence(const DebugContext &) {}

Sequence::Sequence(std::initializer_list<Program> programs, const DebugContext &) {
  for (const Program &program : programs)
    add(program);
}

void Sequence::add(const Program &program) {
  if (host::ProgramAccess::node(program) == node)
    throw poplar_error("a sequence adds itself; make another one for it");
  static_cast<SequenceNode &>(*node).add(host::ProgramAccess::node(program));
}

Copy::Copy(Tensor source, Tensor destination, bool, const DebugContext &debugContext)
    : Program(host::copyNode(source, destination, debugContext)) {}

Repeat::Repeat(unsigned count, const Program &body, const DebugContext &)
    : Program(std::make_shared<host::RepeatNode>(count, host::ProgramAccess::node(body))) {}

If::If(Tensor predicate, const Program &trueBody, const Program &falseBody, const DebugContext &)
    : Program(host::ifNode(predicate, trueBody, falseBody)) {}

WriteUndef::WriteUndef(Tensor tensor, const DebugContext &debugContext)
    : Program(host::forgetNode(tensor, debugContext)) {}

} // namespace program
} // namespace poplar
