/// Operators of the intermediate representation.
#ifndef POPART_OP_HPP
#define POPART_OP_HPP

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <popart/attributes.hpp>
#include <popart/error.hpp>
#include <popart/names.hpp>
#include <popart/operatoridentifier.hpp>
#include <popart/tensorinfo.hpp>

namespace popart {

class OpSerialiserBase;

/// What an input of a gradient operator is to the forward operator.
enum class GradOpInType { In = 0, Out, GradOut };

/// The gradient operator's input `iGrad` is the forward operator's input, output or output's gradient `iNonGrad`.
class GradInOutMapper {
public:
  GradInOutMapper(InIndex iGrad, int iNonGrad, GradOpInType type);

  InIndex iGrad;
  int iNonGrad;
  GradOpInType type;

  bool operator==(const GradInOutMapper &other) const;
};

/// Shapes, attributes and gradient of an operator; what it computes is its `popx::Opx`.
class Op {
public:
  struct Settings {
    Settings(Graph &graph, const std::string &name) : graph(graph), name(name) {}
    virtual ~Settings() = default;
    Settings(const Settings &) = default;

    std::reference_wrapper<Graph> graph;
    std::string name;
  };

  Op(const OperatorIdentifier &opid, const Op::Settings &settings);
  /// Inputs and outputs are not copied: a copy is connected anew.
  Op(const Op &other);
  Op &operator=(const Op &) = delete;
  virtual ~Op();

  /// Throws unless overridden.
  virtual void setup();
  /// A copy of the operator, unconnected.
  virtual std::unique_ptr<Op> clone() const = 0;
  /// None unless overridden: without a gradient.
  virtual std::vector<std::unique_ptr<Op>> getGradOps();
  /// Both throw unless overridden: only gradient operators have them.
  virtual const std::vector<GradInOutMapper> &gradInputInfo() const;
  virtual const std::map<int, int> &gradOutToNonGradIn() const;
  virtual std::set<InIndex> optionalInputs() const { return {}; }
  /// What makes two operators compute the same; an override calls this one first.
  virtual void appendOutlineAttributes(OpSerialiserBase &serialiser) const;
  virtual float getSubgraphValue() const = 0;
  float getHighSubgraphValue() const { return 1000.0f; }
  float getLowSubgraphValue() const { return 0.1f; }

  Settings &getSettings() { return settings; }
  const Settings &getSettings() const { return settings; }

  /// Number, domain, type and version.
  std::string str() const;
  template <typename T> bool isConvertibleTo() const { return dynamic_cast<const T *>(this) != nullptr; }

  bool hasInput(InIndex index) const;
  bool hasOutput(OutIndex index) const;
  size_t inTensorCount() const;
  size_t outTensorCount() const;
  /// All throw on an index that nothing is connected to.
  TensorInfo &inInfo(InIndex index);
  const TensorInfo &inInfo(InIndex index) const;
  TensorInfo &outInfo(OutIndex index);
  const TensorInfo &outInfo(OutIndex index) const;
  const Shape &inShape(InIndex index) const;
  const Shape &outShape(OutIndex index) const;
  Rank inRank(InIndex index) const;
  Rank outRank(OutIndex index) const;

  std::unique_ptr<TensorIndexMap> input, output;
  OpId id;
  OperatorIdentifier opid;
  Settings settings;
};

} // namespace popart

#endif
