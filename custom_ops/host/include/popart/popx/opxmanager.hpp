/// Registration of lowerings.
#ifndef POPART_POPX_OPXMANAGER_HPP
#define POPART_POPX_OPXMANAGER_HPP

#include <functional>
#include <memory>
#include <vector>

#include <popart/operatoridentifier.hpp>
#include <popart/popx/opx.hpp>

namespace popart {
namespace popx {

class OpxManager {
public:
  using OpxFactoryFunc = std::function<std::unique_ptr<Opx>(Op *op, Devicex *devicex)>;

  /// Throws where the operator has a lowering already.
  static void registerOpx(const OperatorIdentifier &opid, OpxFactoryFunc factory);
};

/// A file-scope object of this class registers the lowering of an operator, or of several.
template <class OPX> class OpxCreator {
public:
  OpxCreator(const OperatorIdentifier &opid) : OpxCreator(std::vector<OperatorIdentifier>{opid}) {}
  OpxCreator(const std::vector<OperatorIdentifier> &opids) {
    for (const auto &opid : opids)
      OpxManager::registerOpx(opid, [](Op *op, Devicex *devicex) -> std::unique_ptr<Opx> {
        return std::unique_ptr<OPX>(new OPX(op, devicex));
      });
  }
};

} // namespace popx
} // namespace popart

#endif
