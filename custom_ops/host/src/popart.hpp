/// What lies behind PopART's headers, for the driver.
#ifndef HOST_POPART_HPP
#define HOST_POPART_HPP

#include <map>
#include <memory>
#include <set>
#include <string>

#include <poplar/Graph.hpp>
#include <poplar/Tensor.hpp>

#include <popart/attributes.hpp>
#include <popart/op.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/popx/opx.hpp>
#include <popart/shapeinference.hpp>
#include <popart/tensorinfo.hpp>

namespace popart {

class Graph {};

class Tensor {
public:
  TensorId id;
  TensorInfo info;
};

/// The tensors that an operator is connected to.
class TensorIndexMap {
public:
  void insert(int index, Tensor *tensor) { tensors[index] = tensor; }
  bool hasIndex(int index) const { return tensors.count(index) != 0; }
  /// Throws where nothing is connected.
  Tensor *tensor(int index) const;
  const std::map<int, Tensor *> &tensorMap() const { return tensors; }

private:
  std::map<int, Tensor *> tensors;
};

namespace popx {

/// Where lowerings find the graph, and the Poplar tensors of what they are connected to.
class Devicex {
public:
  poplar::Graph &graph;
  std::map<TensorId, poplar::Tensor> tensors;
};

} // namespace popx
} // namespace popart

namespace host {

/// What only a builder may do with attributes.
class AttributesAccess {
public:
  using Attributes = popart::Attributes;

  /// Throw where the key is taken.
  static void set(Attributes &attributes, const std::string &key, Attributes::Ints value);
  static void set(Attributes &attributes, const std::string &key, Attributes::Int value);
  static void set(Attributes &attributes, const std::string &key, Attributes::Float value);
  static void set(Attributes &attributes, const std::string &key, Attributes::String value);
  /// The keys that nobody asked for.
  static std::set<std::string> unread(const Attributes &attributes);
  /// Every value by its key, exactly.
  static std::map<std::string, std::string> texts(const Attributes &attributes);
};

/// What an operator appends to tell itself from others: as PopART does, the values alone, without their names.
class Outline : public popart::OpSerialiserBase {
public:
  explicit Outline(const popart::Op &op);
  const std::string &text() const { return appended; }
  /// Whether `Op::appendOutlineAttributes` came first.
  bool startsWithBase() const;

private:
  void appendStrAttr(const std::string &name, const std::string &value) override;

  std::string first, appended;
};

/// The registered operators, their lowerings and shape inferences. All throw on an operator that is not registered.
const popart::OpManager::OpInfo &registeredOp(const popart::OperatorIdentifier &opid);
std::unique_ptr<popart::popx::Opx> createOpx(popart::Op &op, popart::popx::Devicex &devicex);
popart::ShapeInferenceFunction shapeInference(const popart::OperatorIdentifier &opid);

/// "FLOAT16 [2, 80, 64]"
std::string text(const popart::TensorInfo &info);

} // namespace host

#endif
