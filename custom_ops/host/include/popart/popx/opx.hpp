/// Lowerings: the part of a Poplar program that an operator becomes.
#ifndef POPART_POPX_OPX_HPP
#define POPART_POPX_OPX_HPP

#include <set>
#include <sstream>
#include <string>
#include <typeinfo>
#include <vector>

#include <poplar/DebugContext.hpp>
#include <poplar/Tensor.hpp>
#include <poplar/Type.hpp>

#include <popart/error.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>

namespace poplar {
class Graph;
namespace program {
class Sequence;
}
} // namespace poplar

namespace popart {
namespace popx {

class Devicex;

/// Whether a lowering can lay out an input of its own.
enum class InputCreatorType { CanCreate = 0, CanUnwind, CanCreateOrUnwind, Deadend, CanDelegate, CanDelegateOrUnwind };

class Opx {
public:
  Opx(Op *op, Devicex *devicex);
  virtual ~Opx();

  /// Append the lowering to a program; throws unless overridden.
  virtual void grow(poplar::program::Sequence &program) const;
  /// A tensor laid out for an input, of exactly its shape and type; throws unless overridden.
  virtual poplar::Tensor createInput(InIndex index, const poplar::DebugNameAndId &dnai) const;
  virtual InputCreatorType getInputCreatorType(InIndex index) const;
  /// The tensors that `createInput` needs; throws unless overridden.
  virtual std::set<TensorId> mustExistBeforeCreate(int index0) const;
  /// Which of several consumers lays out their common input: the one with the highest.
  double inputCreatorPriority{0.0};

  poplar::Graph &graph() const;
  const poplar::Tensor &getInTensor(InIndex index) const;
  void setOutTensor(OutIndex index, const poplar::Tensor &tensor) const;
  bool hasInput(InIndex index) const;
  bool hasOutput(OutIndex index) const;
  const TensorInfo &inInfo(InIndex index) const;
  const Shape &inShape(InIndex index) const;
  const TensorInfo &outInfo(OutIndex index) const;
  const Shape &outShape(OutIndex index) const;
  poplar::DebugContext debugContext(const std::string name = "") const;

  template <class OP> OP &getOp() const {
    OP *derived = dynamic_cast<OP *>(op_p);
    if (derived == nullptr)
      throw error("{} is not a {}", op_p->opid, typeid(OP).name());
    return *derived;
  }

  template <class OP> void verifyOp(Op *op, const OperatorIdentifier &opid) {
    if (op->opid.domain != opid.domain || op->opid.type != opid.type)
      throw error("a lowering of {} was made for {}", opid, op->opid);
  }
  template <class OP> void verifyOp(Op *op, std::vector<OperatorIdentifier> opids) {
    for (const auto &opid : opids)
      if (op->opid == opid)
        return;
    throw error("a lowering of other operators was made for {}", op->opid);
  }
  template <class OP> void verifyOp(Op *op) {
    if (!op->isConvertibleTo<OP>())
      throw error("a lowering of {} was made for {}", typeid(OP).name(), op->opid);
  }

  Op *op_p;

protected:
  Devicex *dv_p;
};

} // namespace popx
} // namespace popart

#endif
