#include "driver.hpp"

#include <typeinfo>

namespace host {

using popart::error;
using popart::GradOpInType;
using popart::TensorId;
using popart::TensorInfo;

namespace {

using Infos = std::map<int, TensorInfo>;

TensorId inputId(int index) { return "input " + std::to_string(index); }
TensorId outputId(int index) { return "output " + std::to_string(index); }
TensorId gradientId(const TensorId &id) { return "gradient of " + id; }

Infos infos(const popart::TensorIndexMap &tensors) {
  Infos result;
  for (const auto &entry : tensors.tensorMap())
    result[entry.first] = entry.second->info;
  return result;
}

void requireEqual(const Infos &left, const Infos &right, const std::string &difference) {
  for (const auto &entry : left) {
    const auto other = right.find(entry.first);
    const std::string found = other == right.end() ? "nothing" : text(other->second);
    if (found != text(entry.second))
      throw error("{} output {}: {} and {}; make them the same", difference, entry.first, text(entry.second), found);
  }
}

/// Outputs by `setup()`, which is asked twice.
Infos setUp(popart::Op &op) {
  for (const auto &output : op.output->tensorMap())
    output.second->info = TensorInfo();
  op.setup();
  const Infos first = infos(*op.output);
  for (const auto &output : first)
    if (!output.second.isSet())
      throw error("setup() of {} does not set output {}", op.opid, output.first);
  op.setup();
  requireEqual(first, infos(*op.output), "setup() of " + op.opid.type + ", which may be called at any time, changes");
  return first;
}

/// The outline attributes of an operator, unlike those of all that were made with other attributes.
std::string uniqueOutline(const popart::Op &op, const std::map<std::string, std::string> &made) {
  static std::map<std::string, std::map<std::string, std::string>> seen;
  const Outline outline(op);
  if (!outline.startsWithBase())
    throw error("appendOutlineAttributes() of {} does not begin with that of popart::Op; call it first", op.opid);
  const std::string key = op.opid.domain + "." + op.opid.type + " " + outline.text();
  const std::map<std::string, std::string> &other = seen.emplace(key, made).first->second;
  std::string differing;
  for (const auto &attribute : made)
    if (other.count(attribute.first) == 0 || other.at(attribute.first) != attribute.second)
      differing += " " + attribute.first + "=" + attribute.second;
  if (!differing.empty() || other.size() != made.size())
    throw error("appendOutlineAttributes() of {} appends the same for operators of other attributes, "
                "of which one would run in place of the other; append every attribute. This one has:{}",
                op.opid, differing);
  return outline.text();
}

/// The operator's copy, set up and connected as the operator is.
std::unique_ptr<popart::Op> cloned(popart::Op &op, const Infos &outputs) {
  std::unique_ptr<popart::Op> clone = op.clone();
  if (typeid(*clone.get()) != typeid(op) || clone->opid != op.opid)
    throw error("clone() of {} gives {}, or another class", op.opid, clone->opid);
  if (Outline(*clone).text() != Outline(op).text())
    throw error("clone() of {} has other attributes; copy all of them", op.opid);
  *clone->input = *op.input;
  *clone->output = *op.output;
  requireEqual(outputs, setUp(*clone), "clone() of " + op.opid.type + " has another");
  return clone;
}

} // namespace

Operator::Operator(const std::string &domain, const std::string &name, int version)
    : info(registeredOp({domain, name, static_cast<popart::OpVersion>(version)})) {}

void Operator::requireCompiled() const {
  if (op == nullptr)
    throw error("{} is not compiled yet", info.id);
}

void Operator::requireNotCompiled() const {
  if (op != nullptr)
    throw error("{} is compiled already; make another operator", info.id);
}

popart::Tensor *Operator::tensor(const TensorId &id) {
  popart::Tensor &found = tensors[id];
  found.id = id;
  return &found;
}

void Operator::addInput(const TensorInfo &input) {
  requireNotCompiled();
  tensor(inputId(inputs++))->info = input;
}

std::unique_ptr<popart::Op> Operator::create() {
  const popart::OperatorIdentifier opid(info.id.domain, info.id.type, info.id.version, inputs);
  const popart::Op::Settings settings(graph, info.id.type);
  std::vector<TensorId> inputIds, outputIds;
  for (int index = 0; index < inputs; ++index)
    inputIds.push_back(inputId(index));
  for (std::size_t index = 0; index < info.details.outputs.size(); ++index)
    outputIds.push_back(outputId(static_cast<int>(index)));
  std::unique_ptr<popart::Op> created =
      info.factory(popart::OpCreatorInfo(opid, settings, attributes, inputIds, outputIds));
  for (std::size_t index = 0; index < inputIds.size(); ++index)
    created->input->insert(static_cast<int>(index), tensor(inputIds[index]));
  for (std::size_t index = 0; index < outputIds.size(); ++index)
    created->output->insert(static_cast<int>(index), tensor(outputIds[index]));
  return created;
}

void Operator::infer(const popart::Op &created) const {
  const Infos outputs = infos(*created.output);
  popart::ShapeInferenceContext context(infos(*created.input), attributes, static_cast<int>(outputs.size()));
  shapeInference(info.id)(context);
  const std::string difference = "setup() and the shape inference of " + info.id.type + " differ in";
  requireEqual(outputs, context.getOutputInfos(), difference);
  requireEqual(context.getOutputInfos(), outputs, difference);
}

void Operator::compile() {
  requireNotCompiled();
  std::unique_ptr<popart::Op> created = create();
  const Infos outputs = setUp(*created);
  for (const std::string &key : AttributesAccess::unread(attributes))
    throw error("{} never reads the attribute {}; leave it out, or read it", info.id, key);
  infer(*created);
  const std::map<std::string, std::string> made = AttributesAccess::texts(attributes);
  outlined = uniqueOutline(*created, made);
  std::unique_ptr<popart::Op> ready = cloned(*created, outputs);
  forwardPass.grow(*ready);
  forwardPass.finish();
  for (const std::unique_ptr<popart::Op> &gradient : ready->getGradOps()) {
    connectInputs(*gradient);
    connectOutputs(*gradient);
    const Infos inGradients = setUp(*gradient);
    checkGradient(*gradient);
    uniqueOutline(*gradient, made);
    gradients.push_back(cloned(*gradient, inGradients));
    backwardPass.grow(*gradients.back());
  }
  backwardPass.finish();
  op = std::move(ready);
}

void Operator::connectInputs(popart::Op &gradient) {
  for (const popart::GradInOutMapper &mapper : gradient.gradInputInfo()) {
    const bool isInput = mapper.type == GradOpInType::In;
    const TensorId id = isInput ? inputId(mapper.iNonGrad) : outputId(mapper.iNonGrad);
    if (tensors.count(id) == 0)
      throw error("gradInputInfo() of {} takes {}, and {} has none", gradient.opid, id, info.id);
    if (gradient.hasInput(mapper.iGrad))
      throw error("gradInputInfo() of {} gives input {} twice", gradient.opid, mapper.iGrad);
    popart::Tensor *connected = tensor(id);
    if (mapper.type == GradOpInType::GradOut) {
      const TensorInfo output = connected->info;
      connected = tensor(gradientId(id));
      connected->info = output;
    }
    gradient.input->insert(mapper.iGrad, connected);
  }
}

void Operator::connectOutputs(popart::Op &gradient) {
  for (const auto &entry : gradient.gradOutToNonGradIn()) {
    const TensorId id = inputId(entry.second);
    if (tensors.count(id) == 0)
      throw error("gradOutToNonGradIn() of {} gives the gradient of {}, and {} has none", gradient.opid, id, info.id);
    if (tensors.count(gradientId(id)) != 0)
      throw error("gradOutToNonGradIn() of {} gives the gradient of {} a second time", gradient.opid, id);
    gradient.output->insert(entry.first, tensor(gradientId(id)));
  }
}

void Operator::checkGradient(const popart::Op &gradient) {
  for (const auto &entry : gradient.gradOutToNonGradIn()) {
    const TensorInfo &expected = tensor(inputId(entry.second))->info;
    const TensorInfo &found = gradient.outInfo(entry.first);
    if (found != expected)
      throw error("setup() of {} makes the gradient of input {} {}, and the input is {}; make them the same",
                  gradient.opid, entry.second, text(found), text(expected));
  }
}

int Operator::outputCount() const {
  requireCompiled();
  return static_cast<int>(op->outTensorCount());
}

const TensorInfo &Operator::output(int index) const {
  requireCompiled();
  return const_cast<const popart::Op &>(*op).outInfo(index);
}

bool Operator::hasGradient(int input) const {
  requireCompiled();
  return backwardPass.has(gradientId(inputId(input)));
}

const std::string &Operator::outline() const {
  requireCompiled();
  return outlined;
}

void Operator::saturate(bool saturates) {
  requireCompiled();
  forwardPass.saturate(saturates);
  backwardPass.saturate(saturates);
}

void Operator::forward(const void *const *given, void *const *outputs) {
  requireCompiled();
  for (int index = 0; index < inputs; ++index)
    forwardPass.write(inputId(index), given[index]);
  forwardPass.run();
  for (int index = 0; index < outputCount(); ++index)
    forwardPass.read(outputId(index), outputs[index]);
}

void Operator::backward(const void *const *given, const void *const *outputs, const void *const *outGradients,
                        void *const *inGradients) {
  requireCompiled();
  if (gradients.empty())
    throw error("{} has no gradient", info.id);
  const auto writeIfTaken = [&](const TensorId &id, const void *values) {
    if (backwardPass.has(id))
      backwardPass.write(id, values);
    return backwardPass.has(id);
  };
  for (int index = 0; index < inputs; ++index)
    writeIfTaken(inputId(index), given[index]);
  for (int index = 0; index < outputCount(); ++index) {
    writeIfTaken(outputId(index), outputs[index]);
    const TensorId id = gradientId(outputId(index));
    if (!writeIfTaken(id, outGradients[index]) && outGradients[index] != nullptr)
      throw error("the gradient operators of {} do not take the {}; leave it out", info.id, id);
  }
  backwardPass.run();
  for (int index = 0; index < inputs; ++index)
    if (hasGradient(index))
      backwardPass.read(gradientId(inputId(index)), inGradients[index]);
}

} // namespace host
