/// Token embedding: the rows of a table, and to each the row of its position.
///
/// Legend: V rows of the table, W their width, B batch, N positions.
#ifndef MINIDALLE_LOWERING_EMBEDDING_HPP
#define MINIDALLE_LOWERING_EMBEDDING_HPP

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

namespace minidalle {

struct EmbeddingShape {
  poplar::Type type;                // of the table
  std::size_t rows, width, lookups; // V, W, B times N
};

struct EmbeddingOptions {
  unsigned splits;       // parts of the table whose gradient is computed one after the other; divides V
  int paddingRow;        // the row that gets no gradient; below 0: none
  float availableMemory; // share of each tile's memory that lookups and updates may take
};

/// A table laid out for its lookups: [V, W].
poplar::Tensor createTable(poplar::Graph &graph, const EmbeddingShape &shape, const EmbeddingOptions &options,
                           const poplar::DebugContext &debugContext);

/// Indices laid out for them: INT [B * N].
poplar::Tensor createIndices(poplar::Graph &graph, const EmbeddingShape &shape, const EmbeddingOptions &options,
                             const poplar::DebugContext &debugContext);

/// table[indices] + position: [B, N, W] of the table's type.
///
/// table: [V, W], FLOAT or HALF; indices: INT [B, N] in 0..V-1; position: [N, W], or null.
poplar::Tensor embedding(poplar::Graph &graph, const poplar::Tensor &table, const poplar::Tensor &indices,
                         const poplar::Tensor *position, const EmbeddingOptions &options,
                         poplar::program::Sequence &program, const poplar::DebugContext &debugContext);

/// The table's gradient, [rows, W] of the type of outGradient, [B, N, W].
///
/// The rows of one part of the vocabulary at a time are summed, in FLOAT: the additions of all of it at once would need
/// partial sums as large as the table.
poplar::Tensor tableGradient(poplar::Graph &graph, const poplar::Tensor &outGradient, const poplar::Tensor &indices,
                             std::size_t rows, const EmbeddingOptions &options, poplar::program::Sequence &program,
                             const poplar::DebugContext &debugContext);

/// The positions' gradient: outGradient [B, N, W] summed over the batch in FLOAT, [N, W] of its type.
poplar::Tensor positionGradient(poplar::Graph &graph, const poplar::Tensor &outGradient,
                                poplar::program::Sequence &program, const poplar::DebugContext &debugContext);

} // namespace minidalle

#endif
