/// Operators lowered into one graph, ready to run.
#ifndef HOST_PASS_HPP
#define HOST_PASS_HPP

#include <memory>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

#include "engine.hpp"
#include "popart.hpp"

namespace host {

class Pass {
public:
  Pass();

  /// Append an operator's lowering. Inputs that are not in the graph yet are laid out by the lowering where it can, and
  /// else linearly.
  ///
  /// Throws `popart::error` if an input is laid out in another shape or type than the operator's, or with repeated or
  /// constant elements; and if an output is missing, has another shape or type, repeated or constant elements, or some
  /// in common with an input or another output.
  void grow(popart::Op &op);
  /// No more operators; throws `poplar_error` if an element lies on no tile.
  void finish();

  bool has(const popart::TensorId &id) const { return device.tensors.count(id) != 0; }
  /// FLOAT and HALF travel as float, INT as int32.
  void write(const popart::TensorId &id, const void *values);
  void run() { engine->run(); }
  /// See `Engine::saturate`.
  void saturate(bool saturates) { engine->saturate(saturates); }
  /// Throws on values that were never written, whether or not they are asked for: `values` may be null.
  void read(const popart::TensorId &id, void *values) const;

private:
  void addInput(const popart::popx::Opx &opx, popart::InIndex index, const popart::Tensor &tensor);
  poplar::Tensor createdInput(const popart::popx::Opx &opx, popart::InIndex index, const popart::Tensor &tensor);
  void checkOutput(const popart::Op &op, popart::OutIndex index, const popart::Tensor &tensor) const;

  poplar::Graph graph;
  poplar::program::Sequence program;
  popart::popx::Devicex device; // refers to the graph
  std::unique_ptr<Engine> engine;
};

} // namespace host

#endif
