/// Fused embedding for PopART: rows of a table, with the position's row added; and its gradient.
///
/// Inputs: table [V, W], FLOAT or FLOAT16; indices [B, N] INT32; and optionally position [N, W] of the table's type.
/// Output: [B, N, W] of the table's type. The table comes first because PopTorch takes the output's type from the first
/// input.

#include <limits>
#include <map>
#include <memory>
#include <set>
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
#include "lowering/embedding.hpp"

namespace {

using minidalle::require;
using popart::Attributes;
using popart::GradOpInType;
using popart::OpDefinition;

constexpr int tableIn = 0, indicesIn = 1, positionIn = 2;

const popart::OperatorIdentifier embeddingId("minidalle.ops", "FusedEmbedding", 1, {2, 3}, 1);
const popart::OperatorIdentifier embeddingGradientId("minidalle.ops", "FusedEmbeddingGrad", 1, 2, 2);

popart::TensorInfo embeddedInfo(const popart::TensorInfo &table, const popart::TensorInfo &indices) {
  popart::Shape shape = indices.shape();
  shape.push_back(table.shape().back());
  return {table.dataType(), shape};
}

/// What the embedding and its gradient have in common: all that they are made with.
class EmbeddingBase : public popart::Op {
public:
  EmbeddingBase(const popart::OperatorIdentifier &id, const minidalle::EmbeddingOptions &options,
                const popart::Op::Settings &settings)
      : popart::Op(id, settings), options(options) {}

  float getSubgraphValue() const override { return getLowSubgraphValue(); }

  void appendOutlineAttributes(popart::OpSerialiserBase &serialiser) const override {
    popart::Op::appendOutlineAttributes(serialiser);
    serialiser.appendAttribute("splits", options.splits);
    serialiser.appendAttribute("padding_idx", options.paddingRow);
    serialiser.appendAttribute("available_memory", minidalle::exact(options.availableMemory));
  }

  const minidalle::EmbeddingOptions options;
};

/// Inputs: gradient of the output, indices. Outputs: gradients of the table and, if there was one, of the position.
class EmbeddingGradientOp : public EmbeddingBase {
public:
  explicit EmbeddingGradientOp(const EmbeddingBase &forward)
      : EmbeddingBase(embeddingGradientId, forward.options, forward.getSettings()), table(forward.inInfo(tableIn)),
        hasPosition(forward.hasInput(positionIn)) {
    if (hasPosition)
      position = forward.inInfo(positionIn);
  }

  std::unique_ptr<popart::Op> clone() const override { return std::make_unique<EmbeddingGradientOp>(*this); }

  void setup() override {
    outInfo(0) = table;
    if (hasPosition)
      outInfo(1) = position;
  }

  const std::vector<popart::GradInOutMapper> &gradInputInfo() const override {
    static const std::vector<popart::GradInOutMapper> inputs = {{0, 0, GradOpInType::GradOut},
                                                                {1, indicesIn, GradOpInType::In}};
    return inputs;
  }

  const std::map<int, int> &gradOutToNonGradIn() const override {
    static const std::map<int, int> alone = {{0, tableIn}};
    static const std::map<int, int> both = {{0, tableIn}, {1, positionIn}};
    return hasPosition ? both : alone;
  }

private:
  popart::TensorInfo table, position;
  bool hasPosition;
};

class EmbeddingOp : public EmbeddingBase {
public:
  using EmbeddingBase::EmbeddingBase;

  std::unique_ptr<popart::Op> clone() const override { return std::make_unique<EmbeddingOp>(*this); }

  std::vector<std::unique_ptr<popart::Op>> getGradOps() override {
    std::vector<std::unique_ptr<popart::Op>> gradients;
    gradients.push_back(std::make_unique<EmbeddingGradientOp>(*this));
    return gradients;
  }

  std::set<popart::InIndex> optionalInputs() const override { return {positionIn}; }

  void setup() override {
    checkInputs();
    checkOptions();
    outInfo(0) = embeddedInfo(inInfo(tableIn), inInfo(indicesIn));
  }

private:
  void checkInputs() const {
    require(opid, inTensorCount() == 2 || inTensorCount() == 3,
            "it has {} inputs; give it 2 or 3: table, indices and, if wanted, position", inTensorCount());
    const popart::TensorInfo &table = inInfo(tableIn), &indices = inInfo(indicesIn);
    minidalle::requireFloating(opid, "table", table);
    require(opid, table.rank() == 2 && table.nelms() > 0,
            "table has the shape {}; give it 2 dimensions, [rows, width], none empty", minidalle::text(table.shape()));
    require(opid, indices.dataType() == popart::DataType::INT32, "indices is of type {}; make it INT32",
            indices.data_type());
    require(opid, indices.rank() == 2 && indices.nelms() > 0,
            "indices has the shape {}; give it 2 dimensions, [batch, positions], none empty",
            minidalle::text(indices.shape()));
    if (hasInput(positionIn))
      checkPosition(table, indices);
  }

  void checkPosition(const popart::TensorInfo &table, const popart::TensorInfo &indices) const {
    const popart::TensorInfo &position = inInfo(positionIn);
    const popart::TensorInfo expected(table.dataType(), {indices.dim(1), table.dim(1)});
    require(opid, position == expected,
            "position is {} {}, and indices of {} positions into a {} table of width {} take {} {}",
            position.data_type(), minidalle::text(position.shape()), indices.dim(1), table.data_type(), table.dim(1),
            expected.data_type(), minidalle::text(expected.shape()));
  }

  void checkOptions() const {
    const int64_t rows = inInfo(tableIn).dim(0);
    require(opid, options.splits > 0 && rows % options.splits == 0,
            "splits={} does not divide a table of {} rows; take one of its divisors", options.splits, rows);
    require(opid, options.paddingRow < rows, "padding_idx={} is no row of a table of {}; take 0 to {}, or -1 for none",
            options.paddingRow, rows, rows - 1);
    minidalle::requireAvailableMemory(opid, options.availableMemory);
  }
};

class EmbeddingOpx : public popart::popx::Opx {
public:
  EmbeddingOpx(popart::Op *op, popart::popx::Devicex *devicex) : popart::popx::Opx(op, devicex) {
    verifyOp<EmbeddingOp>(op, embeddingId);
    // no other consumer's layout of the table spreads the rows that are looked up as evenly
    inputCreatorPriority = std::numeric_limits<double>::max();
  }

  void grow(poplar::program::Sequence &program) const override {
    const poplar::Tensor *position = hasInput(positionIn) ? &getInTensor(positionIn) : nullptr;
    setOutTensor(0, minidalle::embedding(graph(), getInTensor(tableIn), getInTensor(indicesIn), position,
                                         getOp<EmbeddingOp>().options, program, debugContext("embedding")));
  }

  popart::popx::InputCreatorType getInputCreatorType(popart::InIndex index) const override {
    return index == tableIn || index == indicesIn ? popart::popx::InputCreatorType::CanCreate
                                                  : popart::popx::InputCreatorType::Deadend;
  }

  poplar::Tensor createInput(popart::InIndex index, const poplar::DebugNameAndId &dnai) const override {
    const minidalle::EmbeddingOptions &options = getOp<EmbeddingOp>().options;
    const minidalle::EmbeddingShape shape = lookupShape();
    if (index == tableIn)
      return minidalle::createTable(graph(), shape, options, dnai);
    return minidalle::createIndices(graph(), shape, options, dnai).reshape(inInfo(indicesIn).shape_szt());
  }

  std::set<popart::TensorId> mustExistBeforeCreate(int) const override { return {}; }

private:
  minidalle::EmbeddingShape lookupShape() const {
    const std::vector<size_t> table = inInfo(tableIn).shape_szt();
    const bool half = inInfo(tableIn).dataType() == popart::DataType::FLOAT16;
    minidalle::EmbeddingShape shape;
    shape.type = half ? poplar::HALF : poplar::FLOAT;
    shape.rows = table[0];
    shape.width = table[1];
    shape.lookups = static_cast<size_t>(inInfo(indicesIn).nelms());
    return shape;
  }
};

class EmbeddingGradientOpx : public popart::popx::Opx {
public:
  EmbeddingGradientOpx(popart::Op *op, popart::popx::Devicex *devicex) : popart::popx::Opx(op, devicex) {
    verifyOp<EmbeddingGradientOp>(op, embeddingGradientId);
  }

  void grow(poplar::program::Sequence &program) const override {
    const poplar::Tensor &outGradient = getInTensor(0);
    setOutTensor(0, minidalle::tableGradient(graph(), outGradient, getInTensor(1), outInfo(0).shape_szt()[0],
                                             getOp<EmbeddingGradientOp>().options, program,
                                             debugContext("tableGradient")));
    if (hasOutput(1))
      setOutTensor(1, minidalle::positionGradient(graph(), outGradient, program, debugContext("positionGradient")));
  }
};

minidalle::EmbeddingOptions readOptions(const popart::OperatorIdentifier &opid, const Attributes &attributes) {
  minidalle::EmbeddingOptions options;
  options.splits = minidalle::natural(opid, attributes, "splits");
  options.paddingRow = minidalle::integer(opid, attributes, "padding_idx", -1);
  options.availableMemory = attributes.getAttribute<Attributes::Float>("available_memory");
  return options;
}

const OpDefinition::DataTypes floating = {popart::DataType::FLOAT, popart::DataType::FLOAT16};

const OpDefinition embeddingDefinition(
    OpDefinition::Inputs({{"table", floating}, {"indices", {popart::DataType::INT32}}, {"position", floating}}),
    OpDefinition::Outputs({{"out", floating}}),
    OpDefinition::Attributes({{"splits", {"*"}}, {"padding_idx", {"*"}}, {"available_memory", {"*"}}}));

const popart::OpCreator<EmbeddingOp> creator(
    popart::OpDefinitions({{embeddingId, embeddingDefinition}}),
    [](const popart::OpCreatorInfo &info) -> std::unique_ptr<popart::Op> {
      return std::make_unique<EmbeddingOp>(info.opid, readOptions(info.opid, info.attributes), info.settings);
    },
    true);
const popart::popx::OpxCreator<EmbeddingOpx> lowering(embeddingId);
const popart::popx::OpxCreator<EmbeddingGradientOpx> gradientLowering(embeddingGradientId);

const popart::RegisterShapeInferenceFunction shapeInference(embeddingId, [](popart::ShapeInferenceContext &context) {
  context.outInfo(0) = embeddedInfo(context.inInfo(0), context.inInfo(1));
});

} // namespace
