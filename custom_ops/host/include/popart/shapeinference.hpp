/// Shapes and types of an operator's outputs, as PopART's builder asks for them.
#ifndef POPART_SHAPEINFERENCE_HPP
#define POPART_SHAPEINFERENCE_HPP

#include <functional>
#include <map>
#include <string>

#include <popart/attributes.hpp>
#include <popart/operatoridentifier.hpp>
#include <popart/tensorinfo.hpp>

namespace popart {

class ShapeInferenceContext {
public:
  ShapeInferenceContext(const std::map<int, TensorInfo> &inputInfos, const Attributes &attributes, int outputSize);

  const TensorInfo &inInfo(int index) const;
  const Shape &inShape(int index) const;
  DataType inType(int index) const;
  /// To be assigned.
  TensorInfo &outInfo(int index);
  const std::map<int, TensorInfo> &getOutputInfos();
  const Attributes &getAttributes() const;
  int getNumInputs() const;
  int getNumOutputs() const;

  template <typename T> T getAttribute(const std::string &key) { return attributes.getAttribute<T>(key); }

private:
  std::map<int, TensorInfo> inputInfos, outputInfos;
  Attributes attributes;
  int outputSize;
};

using ShapeInferenceFunction = std::function<void(ShapeInferenceContext &)>;

/// A file-scope object of this class registers a function; throws where the operator has one already.
class RegisterShapeInferenceFunction {
public:
  RegisterShapeInferenceFunction(const OperatorIdentifier &opid, ShapeInferenceFunction function);
};

} // namespace popart

#endif
