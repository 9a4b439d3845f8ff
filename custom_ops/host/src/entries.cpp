/// The lowering called directly, for tests and measurements: arrays in, arrays out. HALF travels as float.
#include <cstdint>
#include <vector>

#include "lowering/attention.hpp"
#include "lowering/embedding.hpp"
#include <poputil/TileMapping.hpp>

#include "engine.hpp"
#include "graph.hpp"
#include "guard.hpp"

using poplar::Graph;
using poplar::Tensor;
using poplar::program::Sequence;

extern "C" {

struct PatternArguments {
  const char *kind;
  std::int32_t textLen, rows, columns, kernelSize, dilation;
  const char *window;
  std::int32_t blockSize, drawnCount;
  const std::int64_t *drawnBlocks;
};

struct AttentionArguments {
  PatternArguments pattern;
  std::int32_t half, groups, positions, width, chunks;
  float scale;
  const char *partialsType;
};

struct EmbeddingArguments {
  std::int32_t half, rows, width, batch, positions, splits, paddingRow;
};

/// Of the variables of a graph.
struct Memories {
  std::int64_t totalBytes, largestBytes, largestElements;
};
}

namespace {

constexpr unsigned tiles = 1472; // of an IPU
constexpr float availableMemory = 0.6F;

minidalle::AttentionPattern patternOf(const PatternArguments &given) {
  minidalle::AttentionPattern pattern;
  pattern.kind = given.kind;
  pattern.textLen = given.textLen;
  pattern.rows = given.rows;
  pattern.columns = given.columns;
  pattern.kernelSize = given.kernelSize;
  pattern.dilation = given.dilation;
  pattern.window = given.window;
  pattern.blockSize = given.blockSize;
  pattern.drawnBlocks.assign(given.drawnBlocks, given.drawnBlocks + given.drawnCount);
  return pattern;
}

minidalle::AttentionOptions optionsOf(const AttentionArguments &given) {
  return {patternOf(given.pattern), given.scale, static_cast<unsigned>(given.chunks), availableMemory,
          given.partialsType};
}

/// A program of one lowering: its inputs, and the run.
class Call {
public:
  explicit Call(bool half) : graph(poplar::Target(tiles)), type(half ? poplar::HALF : poplar::FLOAT) {}

  Tensor input(const poplar::Type &type, const std::vector<std::size_t> &shape, const char *name) {
    const Tensor tensor = graph.addVariable(type, shape, {name});
    poputil::mapTensorLinearly(graph, tensor);
    return tensor;
  }

  /// Call `fill(engine)`, run, and call `take(engine)`.
  template <typename Fill, typename Take> void run(Memories *memories, Fill fill, Take take) {
    host::Engine engine(graph, program);
    fill(engine);
    engine.run();
    take(engine);
    const host::Budget budget = host::budget(graph);
    *memories = {static_cast<std::int64_t>(budget.total), static_cast<std::int64_t>(budget.largest),
                 static_cast<std::int64_t>(budget.largestElements)};
  }

  Graph graph;
  Sequence program;
  poplar::Type type;
};

} // namespace

/// result[query * length + key]: whether the query may look at the key.
HOST_VISIBLE int host_allowed(const PatternArguments *given, std::int32_t length, std::uint8_t *result) {
  return host::guarded([&] {
    const minidalle::AttentionPattern pattern = patternOf(*given);
    minidalle::checkPattern(pattern);
    for (std::int32_t query = 0; query < length; ++query)
      for (std::int32_t key = 0; key < length; ++key)
        *result++ = minidalle::allowed(pattern, query, key);
  });
}

HOST_VISIBLE int host_attention(const AttentionArguments *given, const float *q, const float *k, const float *v,
                                float *out, float *logSumExp, Memories *memories) {
  return host::guarded([&] {
    Call call(given->half);
    const std::vector<std::size_t> shape{std::size_t(given->groups), std::size_t(given->positions),
                                         std::size_t(given->width)};
    const Tensor queries = call.input(call.type, shape, "q"), keys = call.input(call.type, shape, "k"),
                 values = call.input(call.type, shape, "v");
    const auto result =
        minidalle::attention(call.graph, queries, keys, values, optionsOf(*given), call.program, {"attention"});
    call.run(
        memories,
        [&](host::Engine &engine) {
          engine.write(queries, q);
          engine.write(keys, k);
          engine.write(values, v);
        },
        [&](host::Engine &engine) {
          engine.read(result.out, out);
          engine.read(result.logSumExp, logSumExp);
        });
  });
}

HOST_VISIBLE int host_attention_gradient(const AttentionArguments *given, const float *outGradient, const float *q,
                                         const float *k, const float *v, const float *logSumExp, float *dq, float *dk,
                                         float *dv, Memories *memories) {
  return host::guarded([&] {
    Call call(given->half);
    const std::vector<std::size_t> shape{std::size_t(given->groups), std::size_t(given->positions),
                                         std::size_t(given->width)};
    const Tensor gradient = call.input(call.type, shape, "outGradient"), queries = call.input(call.type, shape, "q"),
                 keys = call.input(call.type, shape, "k"), values = call.input(call.type, shape, "v"),
                 logSums = call.input(poplar::FLOAT, {shape[0], shape[1]}, "logSumExp");
    const auto result = minidalle::attentionGradient(call.graph, gradient, queries, keys, values, logSums,
                                                     optionsOf(*given), call.program, {"attentionGradient"});
    call.run(
        memories,
        [&](host::Engine &engine) {
          engine.write(gradient, outGradient);
          engine.write(queries, q);
          engine.write(keys, k);
          engine.write(values, v);
          engine.write(logSums, logSumExp);
        },
        [&](host::Engine &engine) {
          engine.read(result.q, dq);
          engine.read(result.k, dk);
          engine.read(result.v, dv);
        });
  });
}

/// position may be null.
HOST_VISIBLE int host_embedding(const EmbeddingArguments *given, const float *table, const std::int32_t *indices,
                                const float *position, float *out, Memories *memories) {
  return host::guarded([&] {
    Call call(given->half);
    const std::size_t rows = given->rows, width = given->width, batch = given->batch, positions = given->positions;
    const minidalle::EmbeddingOptions options{static_cast<unsigned>(given->splits), given->paddingRow, availableMemory};
    const minidalle::EmbeddingShape shape{call.type, rows, width, batch * positions};
    const Tensor entries = minidalle::createTable(call.graph, shape, options, {"table"});
    const Tensor ids = minidalle::createIndices(call.graph, shape, options, {"indices"}).reshape({batch, positions});
    const Tensor places = call.input(call.type, {positions, width}, "position");
    const Tensor result = minidalle::embedding(call.graph, entries, ids, position ? &places : nullptr, options,
                                               call.program, {"embedding"});
    call.run(
        memories,
        [&](host::Engine &engine) {
          engine.write(entries, table);
          engine.write(ids, indices);
          if (position != nullptr)
            engine.write(places, position);
        },
        [&](host::Engine &engine) { engine.read(result, out); });
  });
}

HOST_VISIBLE int host_embedding_gradient(const EmbeddingArguments *given, const float *outGradient,
                                         const std::int32_t *indices, float *tableGradient, float *positionGradient,
                                         Memories *memories) {
  return host::guarded([&] {
    Call call(given->half);
    const std::size_t rows = given->rows, width = given->width, batch = given->batch, positions = given->positions;
    const minidalle::EmbeddingOptions options{static_cast<unsigned>(given->splits), given->paddingRow, availableMemory};
    const Tensor gradient = call.input(call.type, {batch, positions, width}, "outGradient");
    const Tensor ids = call.input(poplar::INT, {batch, positions}, "indices");
    const Tensor ofTable =
        minidalle::tableGradient(call.graph, gradient, ids, rows, options, call.program, {"tableGradient"});
    const Tensor ofPosition = minidalle::positionGradient(call.graph, gradient, call.program, {"positionGradient"});
    call.run(
        memories,
        [&](host::Engine &engine) {
          engine.write(gradient, outGradient);
          engine.write(ids, indices);
        },
        [&](host::Engine &engine) {
          engine.read(ofTable, tableGradient);
          engine.read(ofPosition, positionGradient);
        });
  });
}
