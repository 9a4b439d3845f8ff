/// Operators with one flaw each, for the driver to find. All compute out = factor * x, and are named after their flaw;
/// `Sound` has none.

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Expr.hpp>
#include <poputil/TileMapping.hpp>

#include <popart/op.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/shapeinference.hpp>

#include "guard.hpp"

namespace {

using popart::DataType;
using popart::GradOpInType;
using popart::OpDefinition;
using popart::TensorInfo;
using poplar::Tensor;

const char *const domain = "tests.wrong";

popart::OperatorIdentifier identifier(const std::string &type) { return {domain, type, 1}; }

TensorInfo longer(const TensorInfo &info) {
  popart::Shape shape = info.shape();
  ++shape.back();
  return {info.dataType(), shape};
}

/// What an operator and its gradient have in common: their attribute, and the flaws of how they tell it.
class ScaledBase : public popart::Op {
public:
  ScaledBase(const popart::OperatorIdentifier &id, float factor, const popart::Op::Settings &settings)
      : popart::Op(id, settings), factor(factor) {}

  bool is(const std::string &flaw) const { return opid.type == flaw; }
  float getSubgraphValue() const override { return getLowSubgraphValue(); }

  void appendOutlineAttributes(popart::OpSerialiserBase &serialiser) const override {
    if (!is("OutlineWithoutBase"))
      popart::Op::appendOutlineAttributes(serialiser);
    if (is("OutlineOfSixDigits"))
      serialiser.appendAttribute("factor", factor);
    else if (!is("OutlineWithoutAttribute") && !is("GradientOutlineWithoutAttributeGrad"))
      serialiser.appendAttribute("factor", std::to_string(1e9 * factor));
  }

  const float factor;
};

class GradientOp : public ScaledBase {
public:
  GradientOp(const ScaledBase &forward, int of)
      : ScaledBase(identifier(forward.opid.type + "Grad"), forward.factor, forward.getSettings()) {
    inputs = {{0, 0, GradOpInType::GradOut}, {1, of, GradOpInType::In}};
    outputs = {{0, of}};
    if (forward.is("GradientOfMissingInput"))
      inputs[1] = {1, 1, GradOpInType::In};
    if (forward.is("GradientOfMissingOutput"))
      inputs[1] = {1, 1, GradOpInType::Out};
    if (forward.is("GradientConnectedTwice"))
      inputs[1] = {0, 0, GradOpInType::In};
    if (forward.is("GradientForMissingInput"))
      outputs = {{0, 5}};
    if (forward.is("GradientsForOneInput"))
      outputs = {{0, 0}};
  }

  std::unique_ptr<popart::Op> clone() const override { return std::make_unique<GradientOp>(*this); }
  void setup() override { outInfo(0) = is("GradientOfAnotherShapeGrad") ? longer(inInfo(1)) : inInfo(1); }
  const std::vector<popart::GradInOutMapper> &gradInputInfo() const override { return inputs; }
  const std::map<int, int> &gradOutToNonGradIn() const override { return outputs; }

private:
  std::vector<popart::GradInOutMapper> inputs;
  std::map<int, int> outputs;
};

class ScaledOp : public ScaledBase {
public:
  using ScaledBase::ScaledBase;

  std::unique_ptr<popart::Op> clone() const override;

  std::vector<std::unique_ptr<popart::Op>> getGradOps() override {
    std::vector<std::unique_ptr<popart::Op>> gradients;
    for (int of = 0; of < (is("WithoutGradient") ? 0 : static_cast<int>(inTensorCount())); ++of)
      gradients.push_back(std::make_unique<GradientOp>(*this, of));
    return gradients;
  }

  void setup() override {
    if (is("SetupOfNothing"))
      return;
    outInfo(0) = is("SetupThatChanges") && outInfo(0).isSet() ? longer(outInfo(0)) : inInfo(0);
    if (is("SetupOfTwoOutputs"))
      outInfo(1) = inInfo(0);
  }
};

class OtherOp : public ScaledOp {
  using ScaledOp::ScaledOp;
};

std::unique_ptr<popart::Op> ScaledOp::clone() const {
  if (is("CloneOfAnotherAttribute"))
    return std::make_unique<ScaledOp>(opid, factor + 1, settings);
  if (is("CloneOfAnotherClass"))
    return std::make_unique<OtherOp>(opid, factor, settings);
  if (is("CloneOfAnotherName"))
    return std::make_unique<ScaledOp>(identifier("Sound"), factor, settings);
  return std::make_unique<ScaledOp>(*this);
}

Tensor scaled(poplar::Graph &graph, const Tensor &x, float factor, poplar::program::Sequence &program) {
  return popops::map(graph, popops::expr::_1 * popops::expr::Const(factor), {x}, program);
}

Tensor mapped(poplar::Graph &graph, const poplar::Type &type, const std::vector<std::size_t> &shape) {
  const Tensor tensor = graph.addVariable(type, shape, "made");
  poputil::mapTensorLinearly(graph, tensor);
  return tensor;
}

/// Lowers the operators and their gradients, with the flaws of the lowering.
class ScaledOpx : public popart::popx::Opx {
public:
  using popart::popx::Opx::Opx;

  void grow(poplar::program::Sequence &program) const override {
    const Tensor x = getInTensor(0);
    if (is("WritesInput") || is("GradientWritesInputGrad"))
      popops::mulInPlace(graph(), x, x, program);
    if (is("ReadsMissingInput"))
      getInTensor(1);
    if (is("OutputNeverSet"))
      return;
    setOutTensor(0, output(x, program));
    if (is("OutputSetTwice"))
      setOutTensor(0, output(x, program));
  }

  popart::popx::InputCreatorType getInputCreatorType(popart::InIndex) const override {
    if (is("InputUnwound"))
      return popart::popx::InputCreatorType::CanUnwind;
    const bool creates =
        op_p->opid.type.compare(0, 5, "Input") == 0 && op_p->opid.type.find("Grad") == std::string::npos;
    return creates ? popart::popx::InputCreatorType::CanCreate : popart::popx::InputCreatorType::Deadend;
  }

  Tensor createInput(popart::InIndex index, const poplar::DebugNameAndId &dnai) const override {
    const std::vector<std::size_t> shape = inInfo(index).shape_szt();
    if (is("InputWithoutCreation"))
      return popart::popx::Opx::createInput(index, dnai);
    if (is("InputOfAnotherShape"))
      return mapped(graph(), poplar::FLOAT, longer(inInfo(index)).shape_szt());
    if (is("InputOfAnotherType"))
      return mapped(graph(), poplar::HALF, shape);
    if (is("InputOfRepeats"))
      return mapped(graph(), poplar::FLOAT, {1}).broadcast(static_cast<unsigned>(shape[0]), 0);
    if (is("InputUnmapped"))
      return graph().addVariable(poplar::FLOAT, shape, dnai);
    return mapped(graph(), poplar::FLOAT, shape);
  }

  std::set<popart::TensorId> mustExistBeforeCreate(int index) const override {
    if (is("InputWithoutNeeds"))
      return popart::popx::Opx::mustExistBeforeCreate(index);
    return is("InputOfLaterOnes") ? std::set<popart::TensorId>{"later"} : std::set<popart::TensorId>{};
  }

private:
  bool is(const std::string &flaw) const { return op_p->opid.type == flaw; }

  Tensor output(const Tensor &x, poplar::program::Sequence &program) const {
    const std::vector<std::size_t> shape = outInfo(0).shape_szt();
    if (is("OutputOfAnotherShape"))
      return mapped(graph(), poplar::FLOAT, {shape[0] + 1});
    if (is("OutputOfAnotherType"))
      return mapped(graph(), poplar::HALF, shape);
    if (is("OutputNeverAssigned"))
      return Tensor();
    if (is("OutputIsInput"))
      return x;
    if (is("OutputIsPartOfInput"))
      return poplar::concat({x[0].expand({0}), mapped(graph(), poplar::FLOAT, {shape[0] - 1})});
    if (is("OutputOfRepeats"))
      return mapped(graph(), poplar::FLOAT, {1}).broadcast(static_cast<unsigned>(shape[0]), 0);
    if (is("OutputOfConstants"))
      return graph().addConstant(poplar::FLOAT, shape, 1.0F);
    if (is("OutputUnmapped"))
      return graph().addVariable(poplar::FLOAT, shape, "lost");
    if (is("OutputNeverWritten"))
      return mapped(graph(), poplar::FLOAT, shape);
    return scaled(graph(), x, static_cast<ScaledBase *>(op_p)->factor, program);
  }
};

const std::vector<std::string> names = {"Sound",
                                        "WithoutGradient",
                                        "WithoutLowering",
                                        "WithoutShapeInference",
                                        "SetupOfNothing",
                                        "SetupThatChanges",
                                        "SetupOfTwoOutputs",
                                        "ShapeInferenceOfAnotherShape",
                                        "ShapeInferenceOfTwoOutputs",
                                        "OutlineWithoutBase",
                                        "OutlineWithoutAttribute",
                                        "OutlineOfSixDigits",
                                        "CloneOfAnotherAttribute",
                                        "CloneOfAnotherClass",
                                        "CloneOfAnotherName",
                                        "WritesInput",
                                        "ReadsMissingInput",
                                        "OutputNeverSet",
                                        "OutputSetTwice",
                                        "OutputOfAnotherShape",
                                        "OutputOfAnotherType",
                                        "OutputNeverAssigned",
                                        "OutputIsInput",
                                        "OutputIsPartOfInput",
                                        "OutputOfRepeats",
                                        "OutputOfConstants",
                                        "OutputUnmapped",
                                        "OutputNeverWritten",
                                        "InputSound",
                                        "InputUnwound",
                                        "InputWithoutCreation",
                                        "InputWithoutNeeds",
                                        "InputOfLaterOnes",
                                        "InputOfAnotherShape",
                                        "InputOfAnotherType",
                                        "InputOfRepeats",
                                        "InputUnmapped",
                                        "GradientOfMissingInput",
                                        "GradientOfMissingOutput",
                                        "GradientConnectedTwice",
                                        "GradientForMissingInput",
                                        "GradientsForOneInput",
                                        "GradientOfAnotherShape",
                                        "GradientWritesInput",
                                        "GradientOutlineWithoutAttribute",
                                        "GradientWithoutLowering"};

void infer(const std::string &name, popart::ShapeInferenceContext &context) {
  const TensorInfo x = context.inInfo(0);
  context.outInfo(0) = name == "ShapeInferenceOfAnotherShape" ? longer(x) : x;
  if (name == "ShapeInferenceOfTwoOutputs")
    context.outInfo(1) = x;
}

bool registerAll() {
  const OpDefinition::DataTypes type = {DataType::FLOAT};
  const OpDefinition definition(OpDefinition::Inputs({{"x", type}}), OpDefinition::Outputs({{"out", type}}),
                                OpDefinition::Attributes({{"factor", {"*"}}}));
  for (const std::string &name : names) {
    popart::OpCreator<ScaledOp>(
        popart::OpDefinitions({{identifier(name), definition}}),
        [](const popart::OpCreatorInfo &info) -> std::unique_ptr<popart::Op> {
          const float factor = info.attributes.getAttribute<popart::Attributes::Float>("factor");
          return std::make_unique<ScaledOp>(info.opid, factor, info.settings);
        },
        true);
    if (name != "WithoutLowering")
      popart::popx::OpxCreator<ScaledOpx>(identifier(name));
    if (name != "GradientWithoutLowering")
      popart::popx::OpxCreator<ScaledOpx>(identifier(name + "Grad"));
    if (name != "WithoutShapeInference")
      popart::RegisterShapeInferenceFunction(identifier(name),
                                             [name](popart::ShapeInferenceContext &context) { infer(name, context); });
  }
  return true;
}

const bool registered = registerAll();

} // namespace

/// Register an operator of these a second time, its lowering, or its shape inference.
HOST_VISIBLE int wrong_ops_register_again(int which) {
  return host::guarded([&] {
    const popart::OperatorIdentifier sound = identifier("Sound");
    if (which == 0)
      popart::OpCreator<ScaledOp>(
          popart::OpDefinitions({{sound, OpDefinition()}}),
          [](const popart::OpCreatorInfo &) -> std::unique_ptr<popart::Op> { return nullptr; }, registered);
    if (which == 1)
      popart::popx::OpxCreator<ScaledOpx> again(sound);
    if (which == 2)
      popart::RegisterShapeInferenceFunction(sound, [](popart::ShapeInferenceContext &) {});
  });
}

/// Throw an error whose format has two places, with so many arguments.
HOST_VISIBLE int wrong_ops_format(int arguments) {
  return host::guarded([&] {
    if (arguments == 1)
      throw popart::error("{} of {{}} and {}", 1);
    if (arguments == 3)
      throw popart::error("{} of {{}} and {}", 1, "two", 3.5F);
    throw popart::error("{} of {{}} and {}", 1, "two");
  });
}
