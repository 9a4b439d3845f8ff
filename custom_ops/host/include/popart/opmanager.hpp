/// Registration of operators.
#ifndef POPART_OPMANAGER_HPP
#define POPART_OPMANAGER_HPP

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <popart/attributes.hpp>
#include <popart/names.hpp>
#include <popart/op.hpp>

namespace popart {

/// What an operator takes and gives. PopART lists it and checks nothing by it.
class OpDefinition {
public:
  struct Input {
    std::string name;
    std::vector<DataType> supportedTensors;
    bool constant;

    Input(std::string name, std::vector<DataType> types, bool constant = false)
        : name(name), supportedTensors(types), constant(constant) {}
  };
  struct Output {
    std::string name;
    std::vector<DataType> supportedTensors;

    Output(std::string name, std::vector<DataType> types) : name(name), supportedTensors(types) {}
  };
  struct Attribute {
    std::string supportedValuesRegex;

    Attribute(std::string regex) : supportedValuesRegex(regex) {}
  };

  using DataTypes = std::vector<DataType>;
  using Inputs = std::vector<Input>;
  using Outputs = std::vector<Output>;
  using Attributes = std::map<std::string, Attribute>;

  Inputs inputs;
  Outputs outputs;
  Attributes attributes;

  OpDefinition() {}
  OpDefinition(Inputs inputs, Outputs outputs, Attributes attributes)
      : inputs(inputs), outputs(outputs), attributes(attributes) {}
};

using OpDefinitions = std::map<OperatorIdentifier, OpDefinition, OperatorIdentifierLess>;

/// What an operator is created from.
class OpCreatorInfo {
public:
  OpCreatorInfo(const OperatorIdentifier &opid, const Op::Settings &settings, const Attributes &attributes,
                const std::vector<TensorId> &inputIds, const std::vector<TensorId> &outputIds);

  const OperatorIdentifier &opid;
  const Op::Settings &settings;
  const Attributes &attributes;
};

class OpManager {
public:
  using OpFactoryFunc = std::function<std::unique_ptr<Op>(const OpCreatorInfo &)>;

  struct OpInfo {
    OpInfo(const OperatorIdentifier &id, bool isPublic, const OpDefinition &details, OpFactoryFunc factory)
        : isPublic(isPublic), id(id), details(details), factory(factory) {}

    bool isPublic;
    OperatorIdentifier id;
    OpDefinition details;
    OpFactoryFunc factory;
  };

  /// Throws where the operator is registered already.
  static void registerOp(const OpInfo &opInfo);
};

/// A file-scope object of this class registers an operator.
template <class OP> class OpCreator {
public:
  OpCreator(const OpDefinitions &opDefinitions, bool isPublic = true)
      : OpCreator(
            opDefinitions,
            [](const OpCreatorInfo &info) -> std::unique_ptr<Op> {
              return std::unique_ptr<OP>(new OP(info.opid, info.settings));
            },
            isPublic) {}

  OpCreator(const OpDefinitions &opDefinitions, OpManager::OpFactoryFunc factory, bool isPublic = true) {
    for (const auto &definition : opDefinitions)
      OpManager::registerOp({definition.first, isPublic, definition.second, factory});
  }
};

} // namespace popart

#endif
