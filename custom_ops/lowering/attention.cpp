#include "lowering/attention.hpp"

#include <poplin/MatMul.hpp>
#include <popops/Cast.hpp>
#include <popops/DynamicSlice.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Loop.hpp>
#include <popops/Reduce.hpp>
#include <popops/Zero.hpp>
#include <poputil/TileMapping.hpp>

namespace minidalle {

using poplar::DebugContext;
using poplar::FLOAT;
using poplar::Graph;
using poplar::Tensor;
using poplar::program::Sequence;

namespace pe = popops::expr;

namespace {

/// [G, N, ...] as its chunks of queries, [C, G, R, ...].
Tensor inChunks(const Tensor &t, unsigned chunks) {
  return t.reshapePartial(1, 2, {chunks, t.dim(1) / chunks}).dimRoll(1, 0);
}

/// The reverse of `inChunks`.
Tensor joined(const Tensor &chunks) { return chunks.dimRoll(0, 1).flatten(1, 3); }

Tensor transposed(const Tensor &t) { return t.dimShuffle({0, 2, 1}); }

/// The chunks of attention: what each step of the loop over them reads, computes with and writes.
class Chunks {
public:
  Chunks(Graph &graph, const Tensor &q, const Tensor &k, const AttentionOptions &options, Sequence &program,
         const DebugContext &debugContext)
      : graph(graph), options(options), debugContext(debugContext), k(k),
        products{{"availableMemoryProportion", std::to_string(options.availableMemory)},
                 {"partialsType", options.partialsType}},
        queries(sliceable(q, "queries", program)), mask(makeMask(static_cast<unsigned>(q.dim(1)))) {}

  /// Run the body for every chunk: `body(number of the chunk, program)`.
  template <typename Body> void forEach(Sequence &program, Body body) {
    program.add(popops::countedLoop(graph, options.chunks,
                                    [&](const Tensor &chunk) {
                                      Sequence step({}, {debugContext, "chunk"});
                                      body(chunk, step);
                                      return step;
                                    },
                                    {debugContext, "chunks"}));
  }

  /// A copy of [G, N, ...], in chunks that are spread over all tiles: sliced where it lies, a chunk would be on few.
  Tensor sliceable(const Tensor &t, const char *name, Sequence &program) {
    const Tensor chunks = emptyChunks(t.elementType(), inChunks(t, options.chunks).shape(), name);
    program.add(poplar::program::Copy(inChunks(t, options.chunks), chunks, false, {debugContext, name}));
    return chunks;
  }

  /// Memory for chunks that are written one after the other.
  Tensor emptyChunks(const poplar::Type &type, const std::vector<std::size_t> &shape, const char *name) {
    return popops::createSliceableTensor(graph, type, shape, {0}, {1}, 0, {debugContext, name});
  }

  Tensor take(const Tensor &chunks, const Tensor &chunk, Sequence &program) {
    return popops::dynamicSlice(graph, chunks, chunk, {0}, {1}, program, {debugContext, "take"}).squeeze({0});
  }

  void put(const Tensor &chunks, const Tensor &chunk, const Tensor &values, Sequence &program) {
    popops::dynamicUpdate(graph, chunks, values.expand({0}), chunk, {0}, {1}, program, {debugContext, "put"});
  }

  Tensor product(const Tensor &a, const Tensor &b, const poplar::Type &type, Sequence &program, const char *name) {
    return poplin::matMulGrouped(graph, a, b, program, type, {debugContext, name}, products);
  }

  void addProduct(const Tensor &sum, const Tensor &a, const Tensor &b, Sequence &program, const char *name) {
    poplin::matMulGroupedAcc(graph, sum, 1.0F, a, b, program, {debugContext, name}, products);
  }

  Tensor rowSums(const Tensor &t, Sequence &program, const char *name) {
    return popops::reduce(graph, t, FLOAT, {2}, popops::Operation::ADD, program, {debugContext, name});
  }

  /// The type of the operands, from FLOAT.
  Tensor narrowed(const Tensor &t, const poplar::Type &type, Sequence &program, const char *name) {
    return type == FLOAT ? t : popops::cast(graph, t, type, program, {debugContext, name});
  }

  /// Products of a chunk's queries and all keys, neither scaled nor masked: [G, R, N] FLOAT.
  Tensor rawScores(const Tensor &query, Sequence &program) {
    return product(query, transposed(k), FLOAT, program, "scores");
  }

  /// What is added to a chunk's scores, [R, N].
  Tensor maskOf(const Tensor &chunk, Sequence &program) { return take(mask, chunk, program); }

  pe::Const scale() const { return pe::Const(options.scale); }

  Graph &graph;
  const AttentionOptions &options;
  const DebugContext debugContext;
  const Tensor k;
  const poplar::OptionFlags products;
  const Tensor queries; // [C, G, R, d]

private:
  /// [C, R, N] FLOAT; each chunk of it on all tiles.
  Tensor makeMask(unsigned length) {
    const std::vector<float> values = additiveMask(options.pattern, length);
    const Tensor whole = graph.addConstant(FLOAT, {length, length}, values.data(), {debugContext, "mask"});
    const Tensor chunks = whole.reshapePartial(0, 1, {options.chunks, length / options.chunks});
    poputil::mapTensorLinearly(graph, chunks.dimShuffle({1, 0, 2}));
    return chunks;
  }

  const Tensor mask;
};

} // namespace

AttentionResult attention(Graph &graph, const Tensor &q, const Tensor &k, const Tensor &v,
                          const AttentionOptions &options, Sequence &program, const DebugContext &debugContext) {
  const poplar::Type type = q.elementType();
  Chunks chunks(graph, q, k, options, program, debugContext);
  const std::vector<std::size_t> shape = chunks.queries.shape();
  const Tensor out = chunks.emptyChunks(type, shape, "out");
  const Tensor logSumExp = chunks.emptyChunks(FLOAT, {shape[0], shape[1], shape[2]}, "logSumExp");
  chunks.forEach(program, [&](const Tensor &chunk, Sequence &step) {
    const Tensor scores = chunks.rawScores(chunks.take(chunks.queries, chunk, step), step);
    popops::mapInPlace(graph, pe::_1 * chunks.scale() + pe::_2, {scores, chunks.maskOf(chunk, step)}, step,
                       {debugContext, "mask"});
    const Tensor maximum =
        popops::reduce(graph, scores, FLOAT, {2}, popops::Operation::MAX, step, {debugContext, "maximum"});
    popops::mapInPlace(graph, pe::Exp(pe::_1 - pe::_2), {scores, maximum.expand({2})}, step, {debugContext, "exp"});
    const Tensor sum = chunks.rowSums(scores, step, "sum");
    // divided by their sum after the product: that is narrower than the scores
    const Tensor weighted = chunks.product(chunks.narrowed(scores, type, step, "weights"), v, FLOAT, step, "weighted");
    popops::mapInPlace(graph, pe::_1 / pe::_2, {weighted, sum.expand({2})}, step, {debugContext, "normalise"});
    chunks.put(out, chunk, chunks.narrowed(weighted, type, step, "out"), step);
    popops::mapInPlace(graph, pe::_1 + pe::Log(pe::_2), {maximum, sum}, step, {debugContext, "logSumExp"});
    chunks.put(logSumExp, chunk, maximum, step);
  });
  return {joined(out), joined(logSumExp)};
}

AttentionGradients attentionGradient(Graph &graph, const Tensor &outGradient, const Tensor &q, const Tensor &k,
                                     const Tensor &v, const Tensor &logSumExp, const AttentionOptions &options,
                                     Sequence &program, const DebugContext &debugContext) {
  const poplar::Type type = q.elementType();
  Chunks chunks(graph, q, k, options, program, debugContext);
  const Tensor outGradients = chunks.sliceable(outGradient, "outGradients", program);
  const Tensor logSums = chunks.sliceable(logSumExp, "logSums", program);
  const Tensor dq = chunks.emptyChunks(type, chunks.queries.shape(), "dq");
  // summed over the chunks in FLOAT
  const Tensor dk = graph.clone(FLOAT, k, {debugContext, "dk"}), dv = graph.clone(FLOAT, v, {debugContext, "dv"});
  popops::zero(graph, dk, program, {debugContext, "dk"});
  popops::zero(graph, dv, program, {debugContext, "dv"});
  chunks.forEach(program, [&](const Tensor &chunk, Sequence &step) {
    const Tensor query = chunks.take(chunks.queries, chunk, step);
    const Tensor gradient = chunks.take(outGradients, chunk, step);
    const Tensor weights = chunks.rawScores(query, step);
    popops::mapInPlace(graph, pe::Exp(pe::_1 * chunks.scale() + pe::_2 - pe::_3),
                       {weights, chunks.maskOf(chunk, step), chunks.take(logSums, chunk, step).expand({2})}, step,
                       {debugContext, "weights"});
    chunks.addProduct(dv, transposed(chunks.narrowed(weights, type, step, "weights")), gradient, step, "dv");
    // (dP - rowSums(P dP)) P, as P dP - P rowSums(P dP): in place in two tensors of the scores' size, where the first
    // form needs a third
    const Tensor scores = chunks.product(gradient, transposed(v), FLOAT, step, "weightGradients");
    popops::mulInPlace(graph, scores, weights, step, {debugContext, "weighted"});
    const Tensor sums = chunks.rowSums(scores, step, "sums");
    popops::mulInPlace(graph, weights, sums.expand({2}), step, {debugContext, "weightedSums"});
    popops::mapInPlace(graph, (pe::_1 - pe::_2) * chunks.scale(), {scores, weights}, step, {debugContext, "scores"});
    const Tensor scoreGradient = chunks.narrowed(scores, type, step, "scoreGradients");
    chunks.put(dq, chunk, chunks.product(scoreGradient, k, type, step, "dq"), step);
    chunks.addProduct(dk, transposed(scoreGradient), query, step, "dk");
  });
  return {joined(dq), chunks.narrowed(dk, type, program, "dk"), chunks.narrowed(dv, type, program, "dv")};
}

} // namespace minidalle
