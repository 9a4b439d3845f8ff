/// Which operator an operator is.
#ifndef POPART_OPERATORIDENTIFIER_HPP
#define POPART_OPERATORIDENTIFIER_HPP

#include <iosfwd>

#include <popart/names.hpp>

namespace popart {

struct NumInputs {
  int min, max;

  NumInputs() : min(0), max(0) {}
  NumInputs(int count) : min(count), max(count) {}
  NumInputs(int min, int max) : min(min), max(max) {}
};

/// The numbers of inputs and outputs are no part of the identity. No domain means ONNX's own.
struct OperatorIdentifier {
  OperatorIdentifier(const OpDomain &domain, const OpType &type, OpVersion version, NumInputs inputs = {},
                     int outputs = 0);

  OpDomain domain;
  OpType type;
  OpVersion version;
  NumInputs numInputs;
  int numOutputs;

  bool operator==(const OperatorIdentifier &other) const;
  bool operator!=(const OperatorIdentifier &other) const;
  bool operator<(const OperatorIdentifier &other) const;
};

struct OperatorIdentifierLess {
  bool operator()(const OperatorIdentifier &left, const OperatorIdentifier &right) const;
};

std::ostream &operator<<(std::ostream &stream, const OperatorIdentifier &opid);

} // namespace popart

#endif
