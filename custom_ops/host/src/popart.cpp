#include "popart.hpp"

#include <ostream>
#include <sstream>

#include <poplar/Program.hpp>

#include <popart/popx/opxmanager.hpp>

namespace popart {

namespace {

/// Whether a format's next two characters stand for a brace.
bool doubled(const std::string &format, std::size_t position) {
  return position + 1 < format.size() && format[position + 1] == format[position];
}

} // namespace

std::string error::format(const std::string &format, const std::vector<std::string> &arguments) {
  std::string result;
  std::size_t used = 0;
  for (std::size_t i = 0; i < format.size(); ++i) {
    const bool brace = format[i] == '{' || format[i] == '}';
    if (!brace) {
      result += format[i];
    } else if (doubled(format, i)) {
      result += format[i++];
    } else {
      if (format.compare(i++, 2, "{}") != 0 || used == arguments.size())
        throw std::runtime_error("the format of an error has another place than its arguments: " + format);
      result += arguments[used++];
    }
  }
  if (used != arguments.size())
    throw std::runtime_error("the format of an error leaves arguments out: " + format);
  return result;
}

// Shapes and types

TensorInfo::TensorInfo(DataType type, const Shape &shape) { set(type, shape); }

void TensorInfo::set(DataType newType, const Shape &shape) {
  type = newType;
  extents = shape;
}

const Shape &TensorInfo::shape() const { return extents; }

std::vector<size_t> TensorInfo::shape_szt() const { return {extents.begin(), extents.end()}; }

Rank TensorInfo::rank() const { return static_cast<Rank>(extents.size()); }

int64_t TensorInfo::nelms() const {
  int64_t product = 1;
  for (int64_t extent : extents)
    product *= extent;
  return product;
}

int64_t TensorInfo::dim(int i) const {
  if (i < 0 || i >= rank())
    throw error("there is no dimension {} in a shape of rank {}", i, rank());
  return extents[static_cast<size_t>(i)];
}

DataType TensorInfo::dataType() const { return type; }

const std::string &TensorInfo::data_type() const {
  static const std::map<DataType, std::string> names = {{DataType::INT32, "INT32"},
                                                        {DataType::FLOAT, "FLOAT"},
                                                        {DataType::FLOAT16, "FLOAT16"},
                                                        {DataType::UNDEFINED, "UNDEFINED"}};
  return names.at(type);
}

bool TensorInfo::isSet() const { return type != DataType::UNDEFINED; }

bool TensorInfo::operator==(const TensorInfo &other) const { return type == other.type && extents == other.extents; }

bool TensorInfo::operator!=(const TensorInfo &other) const { return !(*this == other); }

// Identity

OperatorIdentifier::OperatorIdentifier(const OpDomain &domain, const OpType &type, OpVersion version, NumInputs inputs,
                                       int outputs)
    : domain(domain.empty() ? "ai.onnx" : domain), type(type), version(version), numInputs(inputs),
      numOutputs(outputs) {}

bool OperatorIdentifier::operator==(const OperatorIdentifier &other) const {
  return domain == other.domain && type == other.type && version == other.version;
}

bool OperatorIdentifier::operator!=(const OperatorIdentifier &other) const { return !(*this == other); }

bool OperatorIdentifier::operator<(const OperatorIdentifier &other) const {
  if (domain != other.domain)
    return domain < other.domain;
  return type != other.type ? type < other.type : version < other.version;
}

bool OperatorIdentifierLess::operator()(const OperatorIdentifier &left, const OperatorIdentifier &right) const {
  return left < right;
}

std::ostream &operator<<(std::ostream &stream, const OperatorIdentifier &opid) {
  return stream << opid.domain << "." << opid.type << ":" << opid.version;
}

// Attributes

namespace {

template <typename T>
T attribute(const std::map<std::string, T> &values, const std::string &key, bool otherwiseTyped, const char *type) {
  const auto found = values.find(key);
  if (found != values.end())
    return found->second;
  if (otherwiseTyped)
    throw error("the attribute {} is not of type {}, as which it is read; pass it as one", key, type);
  throw error("the attribute {} is missing; pass it, of type {}", key, type);
}

} // namespace

bool Attributes::hasAttribute(const std::string &key) const {
  return lists.count(key) + wholes.count(key) + numbers.count(key) + texts.count(key) != 0;
}

template <> Attributes::Ints Attributes::getAttribute(const std::string &key) const {
  read.insert(key);
  return attribute(lists, key, hasAttribute(key), "ints");
}

template <> Attributes::Int Attributes::getAttribute(const std::string &key) const {
  read.insert(key);
  return attribute(wholes, key, hasAttribute(key), "int");
}

template <> Attributes::Float Attributes::getAttribute(const std::string &key) const {
  read.insert(key);
  return attribute(numbers, key, hasAttribute(key), "float");
}

template <> Attributes::String Attributes::getAttribute(const std::string &key) const {
  read.insert(key);
  return attribute(texts, key, hasAttribute(key), "string");
}

void OpSerialiserBase::appendAttribute(const std::string &name, float value) {
  appendStrAttr(name, std::to_string(value));
}

void OpSerialiserBase::appendAttribute(const std::string &name, double value) {
  appendStrAttr(name, std::to_string(value));
}

void OpSerialiserBase::appendAttribute(const std::string &name, int value) {
  appendStrAttr(name, std::to_string(value));
}

void OpSerialiserBase::appendAttribute(const std::string &name, int64_t value) {
  appendStrAttr(name, std::to_string(value));
}

void OpSerialiserBase::appendAttribute(const std::string &name, uint32_t value) {
  appendStrAttr(name, std::to_string(value));
}

void OpSerialiserBase::appendAttribute(const std::string &name, uint64_t value) {
  appendStrAttr(name, std::to_string(value));
}

void OpSerialiserBase::appendAttribute(const std::string &name, bool value) {
  appendStrAttr(name, value ? "true" : "false");
}

void OpSerialiserBase::appendAttribute(const std::string &name, const std::string &value) {
  appendStrAttr(name, value);
}

void OpSerialiserBase::appendAttribute(const std::string &name, const std::vector<int64_t> &value) {
  std::string text;
  for (int64_t entry : value)
    text += (text.empty() ? "" : " ") + std::to_string(entry);
  appendStrAttr(name, "[" + text + "]");
}

// Operators

namespace {

constexpr const char *baseAttribute = "__ipu_number"; // what Op itself appends

OpId nextId() {
  static OpId last = 0;
  return ++last;
}

} // namespace

GradInOutMapper::GradInOutMapper(InIndex iGrad, int iNonGrad, GradOpInType type)
    : iGrad(iGrad), iNonGrad(iNonGrad), type(type) {}

bool GradInOutMapper::operator==(const GradInOutMapper &other) const {
  return iGrad == other.iGrad && iNonGrad == other.iNonGrad && type == other.type;
}

Op::Op(const OperatorIdentifier &opid, const Op::Settings &settings)
    : input(new TensorIndexMap), output(new TensorIndexMap), id(nextId()), opid(opid), settings(settings) {}

Op::Op(const Op &other)
    : input(new TensorIndexMap), output(new TensorIndexMap), id(nextId()), opid(other.opid), settings(other.settings) {}

Op::~Op() = default;

void Op::setup() { throw error("{} has no setup()", opid); }

std::vector<std::unique_ptr<Op>> Op::getGradOps() { return {}; }

const std::vector<GradInOutMapper> &Op::gradInputInfo() const {
  throw error("{} has no gradInputInfo(): it is no gradient operator", opid);
}

const std::map<int, int> &Op::gradOutToNonGradIn() const {
  throw error("{} has no gradOutToNonGradIn(): it is no gradient operator", opid);
}

void Op::appendOutlineAttributes(OpSerialiserBase &serialiser) const { serialiser.appendAttribute(baseAttribute, 0); }

std::string Op::str() const {
  std::ostringstream stream;
  stream << id << " (" << opid << ")";
  return stream.str();
}

Tensor *TensorIndexMap::tensor(int index) const {
  const auto found = tensors.find(index);
  if (found == tensors.end())
    throw error("nothing is connected at index {}", index);
  return found->second;
}

bool Op::hasInput(InIndex index) const { return input->hasIndex(index); }
bool Op::hasOutput(OutIndex index) const { return output->hasIndex(index); }
size_t Op::inTensorCount() const { return input->tensorMap().size(); }
size_t Op::outTensorCount() const { return output->tensorMap().size(); }
TensorInfo &Op::inInfo(InIndex index) { return input->tensor(index)->info; }
const TensorInfo &Op::inInfo(InIndex index) const { return input->tensor(index)->info; }
TensorInfo &Op::outInfo(OutIndex index) { return output->tensor(index)->info; }
const TensorInfo &Op::outInfo(OutIndex index) const { return output->tensor(index)->info; }
const Shape &Op::inShape(InIndex index) const { return inInfo(index).shape(); }
const Shape &Op::outShape(OutIndex index) const { return outInfo(index).shape(); }
Rank Op::inRank(InIndex index) const { return inInfo(index).rank(); }
Rank Op::outRank(OutIndex index) const { return outInfo(index).rank(); }

// Shape inference

ShapeInferenceContext::ShapeInferenceContext(const std::map<int, TensorInfo> &inputInfos, const Attributes &attributes,
                                             int outputSize)
    : inputInfos(inputInfos), attributes(attributes), outputSize(outputSize) {}

const TensorInfo &ShapeInferenceContext::inInfo(int index) const { return inputInfos.at(index); }
const Shape &ShapeInferenceContext::inShape(int index) const { return inInfo(index).shape(); }
DataType ShapeInferenceContext::inType(int index) const { return inInfo(index).dataType(); }
TensorInfo &ShapeInferenceContext::outInfo(int index) { return outputInfos[index]; }
const std::map<int, TensorInfo> &ShapeInferenceContext::getOutputInfos() { return outputInfos; }
const Attributes &ShapeInferenceContext::getAttributes() const { return attributes; }
int ShapeInferenceContext::getNumInputs() const { return static_cast<int>(inputInfos.size()); }
int ShapeInferenceContext::getNumOutputs() const { return outputSize; }

// Lowerings

namespace popx {

Opx::Opx(Op *op, Devicex *devicex) : op_p(op), dv_p(devicex) {}

Opx::~Opx() = default;

void Opx::grow(poplar::program::Sequence &) const { throw error("the lowering of {} has no grow()", op_p->opid); }

poplar::Tensor Opx::createInput(InIndex index, const poplar::DebugNameAndId &) const {
  throw error("the lowering of {} has no createInput() for input {}", op_p->opid, index);
}

InputCreatorType Opx::getInputCreatorType(InIndex) const { return InputCreatorType::Deadend; }

std::set<TensorId> Opx::mustExistBeforeCreate(int index0) const {
  throw error("the lowering of {} has no mustExistBeforeCreate() for input {}", op_p->opid, index0);
}

poplar::Graph &Opx::graph() const { return dv_p->graph; }

const poplar::Tensor &Opx::getInTensor(InIndex index) const { return dv_p->tensors.at(op_p->input->tensor(index)->id); }

void Opx::setOutTensor(OutIndex index, const poplar::Tensor &tensor) const {
  const TensorId &id = op_p->output->tensor(index)->id;
  if (!dv_p->tensors.emplace(id, tensor).second)
    throw error("the lowering of {} sets output {} twice", op_p->opid, index);
}

bool Opx::hasInput(InIndex index) const { return op_p->hasInput(index); }
bool Opx::hasOutput(OutIndex index) const { return op_p->hasOutput(index); }
const TensorInfo &Opx::inInfo(InIndex index) const { return op_p->inInfo(index); }
const Shape &Opx::inShape(InIndex index) const { return op_p->inShape(index); }
const TensorInfo &Opx::outInfo(OutIndex index) const { return op_p->outInfo(index); }
const Shape &Opx::outShape(OutIndex index) const { return op_p->outShape(index); }

poplar::DebugContext Opx::debugContext(const std::string name) const {
  return {poplar::DebugNameAndId(op_p->settings.name), name};
}

} // namespace popx

// Registries: filled by file-scope objects, and so made when the first of those asks for one

namespace {

template <typename T> using Registry = std::map<OperatorIdentifier, T>;

Registry<OpManager::OpInfo> &ops() {
  static Registry<OpManager::OpInfo> registered;
  return registered;
}

Registry<popx::OpxManager::OpxFactoryFunc> &opxs() {
  static Registry<popx::OpxManager::OpxFactoryFunc> registered;
  return registered;
}

Registry<ShapeInferenceFunction> &shapeInferences() {
  static Registry<ShapeInferenceFunction> registered;
  return registered;
}

template <typename T>
void add(Registry<T> &registry, const OperatorIdentifier &opid, const T &entry, const char *what) {
  if (!registry.emplace(opid, entry).second)
    throw error("{} of {} is registered already; load the library once", what, opid);
}

template <typename T> const T &find(const Registry<T> &registry, const OperatorIdentifier &opid, const char *what) {
  const auto found = registry.find(opid);
  if (found != registry.end())
    return found->second;
  std::ostringstream known;
  for (const auto &entry : registry)
    known << " " << entry.first;
  throw error("no {} of {} is registered; these are:{}", what, opid, known.str());
}

} // namespace

OpCreatorInfo::OpCreatorInfo(const OperatorIdentifier &opid, const Op::Settings &settings, const Attributes &attributes,
                             const std::vector<TensorId> &, const std::vector<TensorId> &)
    : opid(opid), settings(settings), attributes(attributes) {}

void OpManager::registerOp(const OpInfo &opInfo) { add(ops(), opInfo.id, opInfo, "an operator"); }

void popx::OpxManager::registerOpx(const OperatorIdentifier &opid, OpxFactoryFunc factory) {
  add(opxs(), opid, factory, "a lowering");
}

RegisterShapeInferenceFunction::RegisterShapeInferenceFunction(const OperatorIdentifier &opid,
                                                               ShapeInferenceFunction function) {
  add(shapeInferences(), opid, function, "a shape inference");
}

} // namespace popart

namespace host {

using popart::Attributes;

namespace {

void requireNew(const Attributes &attributes, const std::string &key) {
  if (attributes.hasAttribute(key))
    throw popart::error("the attribute {} is passed twice", key);
}

} // namespace

void AttributesAccess::set(Attributes &attributes, const std::string &key, Attributes::Ints value) {
  requireNew(attributes, key);
  attributes.lists[key] = value;
}

void AttributesAccess::set(Attributes &attributes, const std::string &key, Attributes::Int value) {
  requireNew(attributes, key);
  attributes.wholes[key] = value;
}

void AttributesAccess::set(Attributes &attributes, const std::string &key, Attributes::Float value) {
  requireNew(attributes, key);
  attributes.numbers[key] = value;
}

void AttributesAccess::set(Attributes &attributes, const std::string &key, Attributes::String value) {
  requireNew(attributes, key);
  attributes.texts[key] = value;
}

std::set<std::string> AttributesAccess::unread(const Attributes &attributes) {
  std::set<std::string> keys;
  for (const auto &entry : texts(attributes))
    if (attributes.read.count(entry.first) == 0)
      keys.insert(entry.first);
  return keys;
}

std::map<std::string, std::string> AttributesAccess::texts(const Attributes &attributes) {
  std::map<std::string, std::string> result;
  for (const auto &entry : attributes.lists) {
    std::string &text = result[entry.first];
    for (int64_t value : entry.second)
      text += std::to_string(value) + " ";
  }
  for (const auto &entry : attributes.wholes)
    result[entry.first] = std::to_string(entry.second);
  for (const auto &entry : attributes.numbers) {
    std::ostringstream stream;
    stream.precision(9); // tells any two floats apart
    stream << entry.second;
    result[entry.first] = stream.str();
  }
  for (const auto &entry : attributes.texts)
    result[entry.first] = entry.second;
  return result;
}

Outline::Outline(const popart::Op &op) { op.appendOutlineAttributes(*this); }

bool Outline::startsWithBase() const { return first == popart::baseAttribute; }

void Outline::appendStrAttr(const std::string &name, const std::string &value) {
  if (first.empty())
    first = name;
  appended += (appended.empty() ? "" : "_") + value;
}

const popart::OpManager::OpInfo &registeredOp(const popart::OperatorIdentifier &opid) {
  return popart::find(popart::ops(), opid, "operator");
}

std::unique_ptr<popart::popx::Opx> createOpx(popart::Op &op, popart::popx::Devicex &devicex) {
  return popart::find(popart::opxs(), op.opid, "lowering")(&op, &devicex);
}

popart::ShapeInferenceFunction shapeInference(const popart::OperatorIdentifier &opid) {
  return popart::find(popart::shapeInferences(), opid, "shape inference");
}

std::string text(const popart::TensorInfo &info) {
  std::string extents;
  for (int64_t extent : info.shape())
    extents += (extents.empty() ? "" : ", ") + std::to_string(extent);
  return info.data_type() + " [" + extents + "]";
}

} // namespace host
