#include <popops/Cast.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Zero.hpp>

#include <array>
#include <cmath>

#include "half.hpp"
#include "poplibs.hpp"
#include "program.hpp"

namespace host {

constexpr std::size_t blockSize = 1024;

/// Elements of an expression that are computed together, in a core's cache.
struct Block {
  const std::vector<std::vector<float>> &operands;
  std::size_t begin, count;
  bool half;

  template <typename Compute> void finish(float *result, Compute compute) const {
    for (std::size_t i = 0; i < count; ++i)
      result[i] = compute(i);
    if (half)
      for (std::size_t i = 0; i < count; ++i)
        result[i] = roundToHalf(result[i]);
  }
};

} // namespace host

namespace popops {

using host::Access;
using host::Block;
using host::Memory;
using host::Shape;
using poplar::Tensor;

namespace expr {

std::unique_ptr<Expr> PlaceHolder::clone() const { return std::unique_ptr<Expr>(new PlaceHolder(*this)); }

void PlaceHolder::evaluate(const Block &block, float *result) const {
  const float *operand = block.operands[index - 1].data() + block.begin;
  std::copy(operand, operand + block.count, result);
}

std::unique_ptr<Expr> Const::clone() const { return std::unique_ptr<Expr>(new Const(*this)); }

void Const::evaluate(const Block &block, float *result) const {
  block.finish(result, [&](std::size_t) { return value; });
}

void Exp::evaluate(const Block &block, float *result) const {
  argument->evaluate(block, result);
  block.finish(result, [&](std::size_t i) { return std::exp(result[i]); });
}

void Log::evaluate(const Block &block, float *result) const {
  argument->evaluate(block, result);
  block.finish(result, [&](std::size_t i) { return std::log(result[i]); });
}

namespace {

template <typename Compute>
void evaluateBoth(const Expr &left, const Expr &right, const Block &block, float *result, Compute compute) {
  std::array<float, host::blockSize> other;
  left.evaluate(block, result);
  right.evaluate(block, other.data());
  block.finish(result, [&](std::size_t i) { return compute(result[i], other[i]); });
}

} // namespace

void Add::evaluate(const Block &block, float *result) const {
  evaluateBoth(*left, *right, block, result, [](float a, float b) { return a + b; });
}

void Sub::evaluate(const Block &block, float *result) const {
  evaluateBoth(*left, *right, block, result, [](float a, float b) { return a - b; });
}

void Mul::evaluate(const Block &block, float *result) const {
  evaluateBoth(*left, *right, block, result, [](float a, float b) { return a * b; });
}

void Divide::evaluate(const Block &block, float *result) const {
  evaluateBoth(*left, *right, block, result, [](float a, float b) { return a / b; });
}

} // namespace expr

namespace {

/// The shape that numpy gives an operation of tensors of these shapes.
Shape commonShape(const std::vector<Tensor> &tensors, const std::string &what) {
  Shape result;
  for (const Tensor &tensor : tensors) {
    const Shape shape = tensor.shape();
    if (shape.size() > result.size())
      result.insert(result.begin(), shape.size() - result.size(), 1);
    for (std::size_t i = 0; i < shape.size(); ++i) {
      std::size_t &extent = result[result.size() - shape.size() + i];
      host::require(extent == shape[i] || extent == 1 || shape[i] == 1,
                    what + " of " + host::text(tensors[0]) + " and " + host::text(tensor) + ", which do not broadcast");
      extent = std::max(extent, shape[i]);
    }
  }
  return result;
}

Tensor broadcastTo(Tensor tensor, const Shape &shape) {
  tensor = tensor.expand(Shape(shape.size() - tensor.rank(), 0));
  for (unsigned i = 0; i < shape.size(); ++i)
    if (tensor.dim(i) != shape[i])
      tensor = tensor.broadcast(static_cast<unsigned>(shape[i]), i);
  return tensor;
}

void checkOperands(const expr::Expr &expr, const std::vector<Tensor> &tensors, const std::string &what) {
  host::require(expr.operands() > 0 && expr.operands() <= tensors.size(),
                what + " of an expression of " + std::to_string(expr.operands()) + " operands, given " +
                    std::to_string(tensors.size()));
  for (const Tensor &tensor : tensors) {
    host::requireNumbers(tensor, what);
    host::require(tensor.elementType() == tensors[0].elementType(),
                  what + " of " + host::text(tensors[0]) + " and " + host::text(tensor) + "; cast one of them");
  }
}

void recordMap(const expr::Expr &expr, const std::vector<Tensor> &tensors, const Tensor &target,
               poplar::program::Sequence &prog, const poplar::DebugContext &debugContext, const std::string &what) {
  std::vector<Access> sources;
  for (const Tensor &tensor : tensors)
    sources.emplace_back(broadcastTo(tensor, target.shape()));
  const std::shared_ptr<const expr::Expr> kept = expr.clone();
  const Access result(target);
  const bool half = target.elementType() == poplar::HALF;
  host::record(prog, debugContext, what, [=](Memory &memory) {
    std::vector<std::vector<float>> operands;
    for (const Access &source : sources)
      operands.push_back(source.floats(memory));
    std::vector<float> values(result.size());
    for (std::size_t begin = 0; begin < values.size(); begin += host::blockSize)
      kept->evaluate({operands, begin, std::min(host::blockSize, values.size() - begin), half}, &values[begin]);
    result.store(memory, values);
  });
}

} // namespace

Tensor map(poplar::Graph &graph, const expr::Expr &expr, const std::vector<Tensor> &ts, poplar::program::Sequence &prog,
           const poplar::DebugContext &debugContext, const poplar::OptionFlags &options) {
  host::requireOptions(options, {}, "map");
  checkOperands(expr, ts, "map");
  const Tensor result = host::makeResult(graph, ts[0].elementType(), commonShape(ts, "map"), debugContext, "map");
  recordMap(expr, ts, result, prog, debugContext, "map");
  return result;
}

void mapInPlace(poplar::Graph &, const expr::Expr &expr, const std::vector<Tensor> &ts, poplar::program::Sequence &prog,
                const poplar::DebugContext &debugContext, const poplar::OptionFlags &options) {
  host::requireOptions(options, {}, "mapInPlace");
  checkOperands(expr, ts, "mapInPlace");
  host::requireWriteable(ts[0], "mapInPlace");
  host::require(commonShape(ts, "mapInPlace") == ts[0].shape(),
                "mapInPlace to " + host::text(ts[0]) + ", which another operand is larger than");
  recordMap(expr, ts, ts[0], prog, debugContext, "mapInPlace");
}

void addInPlace(poplar::Graph &graph, const Tensor &A, const Tensor &B, poplar::program::Sequence &prog,
                const poplar::DebugContext &debugContext, const poplar::OptionFlags &options) {
  mapInPlace(graph, expr::_1 + expr::_2, {A, B}, prog, debugContext, options);
}

void mulInPlace(poplar::Graph &graph, const Tensor &A, const Tensor &B, poplar::program::Sequence &prog,
                const poplar::DebugContext &debugContext, const poplar::OptionFlags &options) {
  mapInPlace(graph, expr::_1 * expr::_2, {A, B}, prog, debugContext, options);
}

void subInPlace(poplar::Graph &, const Tensor &A, const Tensor &B, poplar::program::Sequence &prog,
                const poplar::DebugContext &debugContext, const poplar::OptionFlags &options) {
  host::requireOptions(options, {}, "subInPlace");
  host::require(A.elementType() == poplar::INT && B.elementType() == poplar::INT,
                "subInPlace of " + host::text(A) + " and " + host::text(B) + "; here it is for int alone");
  host::requireWriteable(A, "subInPlace");
  host::require(commonShape({A, B}, "subInPlace") == A.shape(), "subInPlace to " + host::text(A) + " of a larger one");
  const Access target(A), subtracted(broadcastTo(B, A.shape()));
  host::record(prog, debugContext, "subInPlace", [=](Memory &memory) {
    std::vector<host::Word> values = target.words(memory);
    const std::vector<host::Word> others = subtracted.words(memory);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i].whole -= others[i].whole;
    target.store(memory, values.data());
  });
}

Tensor cast(poplar::Graph &graph, const Tensor &src, const poplar::Type &dstType, poplar::program::Sequence &prog,
            const poplar::DebugContext &debugContext) {
  host::requireNumbers(src, "cast");
  const Tensor result = host::makeResult(graph, dstType, src.shape(), debugContext, "cast");
  host::requireNumbers(result, "cast");
  const Access from(src), to(result);
  host::record(prog, debugContext, "cast", [=](Memory &memory) { to.store(memory, from.floats(memory)); });
  return result;
}

void zero(poplar::Graph &, Tensor t, poplar::program::Sequence &prog, const poplar::DebugContext &debugContext) {
  host::requireWriteable(t, "zero");
  const Access target(t);
  host::record(prog, debugContext, "zero",
               [=](Memory &memory) { target.store(memory, std::vector<float>(target.size(), 0.0F)); });
}

} // namespace popops
