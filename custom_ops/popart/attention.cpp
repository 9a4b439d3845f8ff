/// Fused attention for PopART: softmax(scale q k^T + mask) v, and its gradient from the log-sum-exp of the scores.
///
/// Inputs q, k, v: [..., N, d] of one type, FLOAT or FLOAT16. Outputs: out, as q, and lse [..., N] FLOAT, which only
/// the gradient uses.

#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

#include <popart/attributes.hpp>
#include <popart/error.hpp>
#include <popart/op.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/shapeinference.hpp>
#include <popart/tensorinfo.hpp>

#include "checks.hpp"
#include "lowering/attention.hpp"

namespace {

using minidalle::require;
using popart::Attributes;
using popart::GradOpInType;
using popart::OpDefinition;

const popart::OperatorIdentifier attentionId("minidalle.ops", "FusedAttention", 1, 3, 2);
const popart::OperatorIdentifier attentionGradientId("minidalle.ops", "FusedAttentionGrad", 1, 5, 3);

popart::TensorInfo logSumExpInfo(const popart::TensorInfo &q) {
  const popart::Shape &shape = q.shape();
  return {popart::DataType::FLOAT, popart::Shape(shape.begin(), shape.end() - 1)};
}

/// What attention and its gradient have in common: all that they are made with.
class AttentionBase : public popart::Op {
public:
  AttentionBase(const popart::OperatorIdentifier &id, const minidalle::AttentionOptions &options,
                const popart::Op::Settings &settings)
      : popart::Op(id, settings), options(options) {}

  float getSubgraphValue() const override { return getHighSubgraphValue(); }

  void appendOutlineAttributes(popart::OpSerialiserBase &serialiser) const override {
    popart::Op::appendOutlineAttributes(serialiser);
    const minidalle::AttentionPattern &pattern = options.pattern;
    serialiser.appendAttribute("pattern", pattern.kind);
    serialiser.appendAttribute("text_len", pattern.textLen);
    serialiser.appendAttribute("rows", pattern.rows);
    serialiser.appendAttribute("columns", pattern.columns);
    serialiser.appendAttribute("kernel_size", pattern.kernelSize);
    serialiser.appendAttribute("dilation", pattern.dilation);
    serialiser.appendAttribute("window", pattern.window);
    serialiser.appendAttribute("block_size", pattern.blockSize);
    serialiser.appendAttribute("drawn_blocks", pattern.drawnBlocks);
    serialiser.appendAttribute("scale", minidalle::exact(options.scale));
    serialiser.appendAttribute("chunks", options.chunks);
    serialiser.appendAttribute("available_memory", minidalle::exact(options.availableMemory));
    serialiser.appendAttribute("partials_type", options.partialsType);
  }

  const minidalle::AttentionOptions options;
};

/// Inputs: gradient of out, q, k, v, lse. Outputs: gradients of q, k and v.
class AttentionGradientOp : public AttentionBase {
public:
  explicit AttentionGradientOp(const AttentionBase &forward)
      : AttentionBase(attentionGradientId, forward.options, forward.getSettings()) {}

  std::unique_ptr<popart::Op> clone() const override { return std::make_unique<AttentionGradientOp>(*this); }

  void setup() override {
    for (int operand = 0; operand < 3; ++operand)
      outInfo(operand) = inInfo(operand + 1);
  }

  const std::vector<popart::GradInOutMapper> &gradInputInfo() const override {
    static const std::vector<popart::GradInOutMapper> inputs = {{0, 0, GradOpInType::GradOut},
                                                                {1, 0, GradOpInType::In},
                                                                {2, 1, GradOpInType::In},
                                                                {3, 2, GradOpInType::In},
                                                                {4, 1, GradOpInType::Out}};
    return inputs;
  }

  const std::map<int, int> &gradOutToNonGradIn() const override {
    static const std::map<int, int> outputs = {{0, 0}, {1, 1}, {2, 2}};
    return outputs;
  }
};

class AttentionOp : public AttentionBase {
public:
  using AttentionBase::AttentionBase;

  std::unique_ptr<popart::Op> clone() const override { return std::make_unique<AttentionOp>(*this); }

  std::vector<std::unique_ptr<popart::Op>> getGradOps() override {
    std::vector<std::unique_ptr<popart::Op>> gradients;
    gradients.push_back(std::make_unique<AttentionGradientOp>(*this));
    return gradients;
  }

  void setup() override {
    checkInputs();
    checkPattern();
    checkOptions();
    outInfo(0) = inInfo(0);
    outInfo(1) = logSumExpInfo(inInfo(0));
  }

private:
  int64_t positions() const { return inShape(0)[inShape(0).size() - 2]; }

  void checkInputs() const {
    require(opid, inTensorCount() == 3, "it has {} inputs; give it 3: q, k and v", inTensorCount());
    const popart::TensorInfo &q = inInfo(0);
    minidalle::requireFloating(opid, "q", q);
    require(opid, q.rank() >= 3 && q.nelms() > 0,
            "q has the shape {}; give it 3 dimensions or more, [..., positions, width], none empty",
            minidalle::text(q.shape()));
    for (int operand : {1, 2}) {
      const popart::TensorInfo &other = inInfo(operand);
      require(opid, other == q, "{} is {} {}, and q is {} {}; make them the same", operand == 1 ? "k" : "v",
              other.data_type(), minidalle::text(other.shape()), q.data_type(), minidalle::text(q.shape()));
    }
  }

  void checkPattern() const {
    const minidalle::AttentionPattern &pattern = options.pattern;
    try {
      minidalle::checkPattern(pattern);
    } catch (const std::invalid_argument &broken) {
      require(opid, false, "{}", broken.what());
    }
    const uint64_t longest = minidalle::fedPositions(pattern);
    require(
        opid, static_cast<uint64_t>(positions()) <= longest,
        "a sequence of {} positions is longer than text_len={} and rows={} times columns={} without the last pixel, "
        "which is only predicted; give {} positions at most",
        positions(), pattern.textLen, pattern.rows, pattern.columns, longest);
  }

  void checkOptions() const {
    require(opid, std::isfinite(options.scale) && options.scale > 0,
            "scale={} does not scale; take a number above 0, as one over the root of q's width", options.scale);
    require(opid, options.chunks > 0 && positions() % options.chunks == 0,
            "chunks={} does not divide a sequence of {} positions; take one of its divisors", options.chunks,
            positions());
    minidalle::requireAvailableMemory(opid, options.availableMemory);
    require(opid, options.partialsType == "float" || options.partialsType == "half",
            "partials_type={} is neither float nor half; take one of them", options.partialsType);
  }
};

/// Leading dimensions as one: [..., N, d] as [G, N, d], for example, with two inner ones.
poplar::Tensor grouped(const poplar::Tensor &tensor, unsigned inner) {
  return tensor.flatten(0, tensor.rank() - inner);
}

class AttentionOpx : public popart::popx::Opx {
public:
  AttentionOpx(popart::Op *op, popart::popx::Devicex *devicex) : popart::popx::Opx(op, devicex) {
    verifyOp<AttentionOp>(op, attentionId);
  }

  void grow(poplar::program::Sequence &program) const override {
    const minidalle::AttentionResult result = minidalle::attention(
        graph(), grouped(getInTensor(0), 2), grouped(getInTensor(1), 2), grouped(getInTensor(2), 2),
        getOp<AttentionOp>().options, program, debugContext("attention"));
    setOutTensor(0, result.out.reshape(outInfo(0).shape_szt()));
    setOutTensor(1, result.logSumExp.reshape(outInfo(1).shape_szt()));
  }
};

class AttentionGradientOpx : public popart::popx::Opx {
public:
  AttentionGradientOpx(popart::Op *op, popart::popx::Devicex *devicex) : popart::popx::Opx(op, devicex) {
    verifyOp<AttentionGradientOp>(op, attentionGradientId);
  }

  void grow(poplar::program::Sequence &program) const override {
    const minidalle::AttentionGradients gradients =
        minidalle::attentionGradient(graph(), grouped(getInTensor(0), 2), grouped(getInTensor(1), 2),
                                     grouped(getInTensor(2), 2), grouped(getInTensor(3), 2), grouped(getInTensor(4), 1),
                                     getOp<AttentionGradientOp>().options, program, debugContext("attentionGradient"));
    setOutTensor(0, gradients.q.reshape(outInfo(0).shape_szt()));
    setOutTensor(1, gradients.k.reshape(outInfo(1).shape_szt()));
    setOutTensor(2, gradients.v.reshape(outInfo(2).shape_szt()));
  }
};

minidalle::AttentionPattern readPattern(const popart::OperatorIdentifier &opid, const Attributes &attributes) {
  minidalle::AttentionPattern pattern;
  pattern.kind = attributes.getAttribute<Attributes::String>("pattern");
  pattern.textLen = minidalle::natural(opid, attributes, "text_len");
  pattern.rows = minidalle::natural(opid, attributes, "rows");
  pattern.columns = minidalle::natural(opid, attributes, "columns");
  if (pattern.kind == "conv_like") {
    pattern.kernelSize = minidalle::natural(opid, attributes, "kernel_size");
    pattern.dilation = minidalle::natural(opid, attributes, "dilation");
    pattern.window = attributes.getAttribute<Attributes::String>("window");
  }
  if (pattern.kind == "sparse") {
    pattern.blockSize = minidalle::natural(opid, attributes, "block_size");
    pattern.drawnBlocks = attributes.getAttribute<Attributes::Ints>("drawn_blocks");
  }
  return pattern;
}

minidalle::AttentionOptions readOptions(const popart::OperatorIdentifier &opid, const Attributes &attributes) {
  minidalle::AttentionOptions options;
  options.pattern = readPattern(opid, attributes);
  options.scale = attributes.getAttribute<Attributes::Float>("scale");
  options.chunks = minidalle::natural(opid, attributes, "chunks");
  options.availableMemory = attributes.getAttribute<Attributes::Float>("available_memory");
  options.partialsType = attributes.getAttribute<Attributes::String>("partials_type");
  return options;
}

const OpDefinition::DataTypes floating = {popart::DataType::FLOAT, popart::DataType::FLOAT16};

const OpDefinition attentionDefinition(OpDefinition::Inputs({{"q", floating}, {"k", floating}, {"v", floating}}),
                                       OpDefinition::Outputs({{"out", floating}, {"lse", {popart::DataType::FLOAT}}}),
                                       OpDefinition::Attributes({{"pattern", {"*"}},
                                                                 {"text_len", {"*"}},
                                                                 {"rows", {"*"}},
                                                                 {"columns", {"*"}},
                                                                 {"kernel_size", {"*"}},
                                                                 {"dilation", {"*"}},
                                                                 {"window", {"*"}},
                                                                 {"block_size", {"*"}},
                                                                 {"drawn_blocks", {"*"}},
                                                                 {"scale", {"*"}},
                                                                 {"chunks", {"*"}},
                                                                 {"available_memory", {"*"}},
                                                                 {"partials_type", {"*"}}}));

const popart::OpCreator<AttentionOp> creator(
    popart::OpDefinitions({{attentionId, attentionDefinition}}),
    [](const popart::OpCreatorInfo &info) -> std::unique_ptr<popart::Op> {
      return std::make_unique<AttentionOp>(info.opid, readOptions(info.opid, info.attributes), info.settings);
    },
    true);
const popart::popx::OpxCreator<AttentionOpx> lowering(attentionId);
const popart::popx::OpxCreator<AttentionGradientOpx> gradientLowering(attentionGradientId);

const popart::RegisterShapeInferenceFunction shapeInference(attentionId, [](popart::ShapeInferenceContext &context) {
  context.outInfo(0) = context.inInfo(0);
  context.outInfo(1) = logSumExpInfo(context.inInfo(0));
});

} // namespace
