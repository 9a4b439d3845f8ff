#include "pass.hpp"

#include <vector>

#include <poputil/TileMapping.hpp>

namespace host {

using popart::error;
using popart::popx::InputCreatorType;

namespace {

constexpr unsigned tiles = 1472; // of an IPU

poplar::Type poplarType(popart::DataType type) {
  if (type == popart::DataType::INT32)
    return poplar::INT;
  return type == popart::DataType::FLOAT16 ? poplar::HALF : poplar::FLOAT;
}

bool agrees(const poplar::Tensor &tensor, const popart::TensorInfo &info) {
  return tensor.valid() && tensor.shape() == info.shape_szt() && tensor.elementType() == poplarType(info.dataType());
}

std::string text(const poplar::Tensor &tensor) {
  if (!tensor.valid())
    return "no tensor";
  std::string extents;
  for (std::size_t extent : tensor.shape())
    extents += (extents.empty() ? "" : ", ") + std::to_string(extent);
  return tensor.elementType().toString() + " [" + extents + "]";
}

} // namespace

Pass::Pass() : graph(poplar::Target(tiles)), device{graph, {}} {}

void Pass::grow(popart::Op &op) {
  const std::unique_ptr<popart::popx::Opx> opx = createOpx(op, device);
  for (const auto &input : op.input->tensorMap())
    if (!has(input.second->id))
      addInput(*opx, input.first, *input.second);
  opx->grow(program);
  for (const auto &output : op.output->tensorMap())
    checkOutput(op, output.first, *output.second);
}

void Pass::addInput(const popart::popx::Opx &opx, popart::InIndex index, const popart::Tensor &tensor) {
  const InputCreatorType creator = opx.getInputCreatorType(index);
  if (creator == InputCreatorType::CanCreate) {
    device.tensors[tensor.id] = createdInput(opx, index, tensor);
  } else if (creator == InputCreatorType::Deadend) {
    const poplar::Tensor added =
        graph.addVariable(poplarType(tensor.info.dataType()), tensor.info.shape_szt(), tensor.id);
    poputil::mapTensorLinearly(graph, added);
    device.tensors[tensor.id] = added;
  } else {
    throw error("{} lays out input {} by unwinding or delegating, which the host cannot; say "
                "CanCreate or Deadend",
                opx.op_p->opid, index);
  }
}

poplar::Tensor Pass::createdInput(const popart::popx::Opx &opx, popart::InIndex index, const popart::Tensor &tensor) {
  for (const popart::TensorId &needed : opx.mustExistBeforeCreate(index))
    if (!has(needed))
      throw error("{} lays out input {} from {}, which is not there yet", opx.op_p->opid, index, needed);
  const poplar::Tensor created = opx.createInput(index, poplar::DebugNameAndId(tensor.id));
  if (!agrees(created, tensor.info))
    throw error("{} creates input {} as {}; make it {}", opx.op_p->opid, index, text(created), host::text(tensor.info));
  if (!created.isParallelWriteable())
    throw error("{} creates input {} of repeated or constant elements, which nothing can be written "
                "to; make it of variables",
                opx.op_p->opid, index);
  return created;
}

void Pass::checkOutput(const popart::Op &op, popart::OutIndex index, const popart::Tensor &tensor) const {
  if (!has(tensor.id))
    throw error("grow() of {} does not set output {}", op.opid, index);
  const poplar::Tensor &grown = device.tensors.at(tensor.id);
  if (!agrees(grown, tensor.info))
    throw error("grow() of {} sets output {} to {}, and setup() says {}; make them the same", op.opid, index,
                text(grown), host::text(tensor.info));
  if (!grown.isParallelWriteable())
    throw error("grow() of {} sets output {} to repeated or constant elements; copy them", op.opid, index);
  for (const auto &other : device.tensors)
    if (other.first != tensor.id && grown.intersectsWith(other.second))
      throw error("output {} of {} has elements of {}, which another operator may still read or "
                  "overwrite; copy them",
                  index, op.opid, other.first);
}

void Pass::finish() { engine = std::make_unique<Engine>(graph, program); }

void Pass::write(const popart::TensorId &id, const void *values) {
  if (values == nullptr)
    throw error("{} is needed and not given", id);
  const poplar::Tensor &tensor = device.tensors.at(id);
  if (tensor.elementType() == poplar::INT)
    engine->write(tensor, static_cast<const std::int32_t *>(values));
  else
    engine->write(tensor, static_cast<const float *>(values));
}

void Pass::read(const popart::TensorId &id, void *values) const {
  const poplar::Tensor &tensor = device.tensors.at(id);
  std::vector<float> unwanted(values == nullptr ? tensor.numElements() : 0); // as wide as int32
  void *const target = values == nullptr ? unwanted.data() : values;
  if (tensor.elementType() == poplar::INT)
    engine->read(tensor, static_cast<std::int32_t *>(target));
  else
    engine->read(tensor, static_cast<float *>(target));
}

} // namespace host
