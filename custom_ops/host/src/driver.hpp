/// Runs one registered operator and its gradient, as PopART would, and checks what PopART relies upon.
#ifndef HOST_DRIVER_HPP
#define HOST_DRIVER_HPP

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pass.hpp"
#include "popart.hpp"

namespace host {

class Operator {
public:
  /// Throws where there is no such operator.
  Operator(const std::string &domain, const std::string &name, int version);

  template <typename T> void setAttribute(const std::string &key, T value) {
    requireNotCompiled();
    AttributesAccess::set(attributes, key, value);
  }
  void addInput(const popart::TensorInfo &info);

  /// Create the operator and its gradient operators, and lower both. Every operator is replaced by its `clone()` before
  /// it is lowered.
  ///
  /// Throws `popart::error` on attributes that nobody reads; on a `setup()` that gives other outputs the second time,
  /// or others than the shape inference; on a clone that differs; on outline attributes that do not begin with those of
  /// `Op`, or that are equal to those of an operator made with other attributes; on gradient operators that are
  /// connected to what is not there, or whose outputs do not look like the inputs that they are the gradients of; and
  /// on all that `Pass::grow` refuses.
  void compile();

  int outputCount() const;
  const popart::TensorInfo &output(int index) const;
  bool hasGradient(int input) const;
  /// What the operator appends to its outline attributes: the values, joined by "_".
  const std::string &outline() const;

  /// Let numbers too large for FLOAT16 become its largest one, in place of an error.
  void saturate(bool saturates);

  /// One entry for each input and each output; outputs that are null are checked only. See `Pass` for the types.
  void forward(const void *const *inputs, void *const *outputs);
  /// The gradients of the inputs that have one, from those of the outputs; what the gradient operators do not take may
  /// be null, but not the gradient of an output that would be dropped.
  void backward(const void *const *inputs, const void *const *outputs, const void *const *outGradients,
                void *const *inGradients);

private:
  void requireCompiled() const;
  void requireNotCompiled() const;
  popart::Tensor *tensor(const popart::TensorId &id);
  std::unique_ptr<popart::Op> create();
  void infer(const popart::Op &created) const;
  void connectInputs(popart::Op &gradient);
  void connectOutputs(popart::Op &gradient);
  void checkGradient(const popart::Op &gradient);

  popart::OpManager::OpInfo info;
  popart::Graph graph;
  popart::Attributes attributes;
  std::map<popart::TensorId, popart::Tensor> tensors;
  int inputs = 0;
  std::unique_ptr<popart::Op> op;
  std::vector<std::unique_ptr<popart::Op>> gradients;
  std::string outlined;
  Pass forwardPass, backwardPass;
};

} // namespace host

#endif
