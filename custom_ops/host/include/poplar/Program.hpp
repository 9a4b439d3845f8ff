/// Programs: what is done with a graph's tensors, and in which order. Nothing runs while a program is made.
#ifndef POPLAR_PROGRAM_HPP
#define POPLAR_PROGRAM_HPP

#include <initializer_list>
#include <memory>

#include <poplar/DebugContext.hpp>
#include <poplar/Tensor.hpp>

namespace host {
class Node;
class SequenceNode;
class ProgramAccess;
} // namespace host

namespace poplar {
namespace program {

class Program {
public:
  Program();
  /// Whether it does nothing at all.
  bool isEmpty() const;

protected:
  friend class host::ProgramAccess;
  explicit Program(std::shared_ptr<host::Node> node);
  std::shared_ptr<host::Node> node;
};

/// Programs one after the other. Copies mean the same sequence. Once it is a part of another program nothing can be
/// added any more: Poplar does not say whether that would take part.
class Sequence : public Program {
public:
  explicit Sequence(const DebugContext &debugContext = {});
  Sequence(std::initializer_list<Program> programs, const DebugContext &debugContext = {});
  void add(const Program &program);
};

/// Tensors of equal type and shape; all is read before anything is written.
class Copy : public Program {
public:
  Copy(Tensor source, Tensor destination, bool dontOutline = false, const DebugContext &debugContext = {});
};

class Repeat : public Program {
public:
  Repeat(unsigned count, const Program &body, const DebugContext &debugContext = {});
};

/// One of two programs, by a BOOL of no dimensions.
class If : public Program {
public:
  If(Tensor predicate, const Program &trueBody, const Program &falseBody, const DebugContext &debugContext = {});
};

/// The tensor's values are not needed any more.
class WriteUndef : public Program {
public:
  explicit WriteUndef(Tensor tensor, const DebugContext &debugContext = {});
};

} // namespace program
} // namespace poplar

#endif
