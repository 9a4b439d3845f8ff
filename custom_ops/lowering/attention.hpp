/// Attention that never holds its scores whole: the queries are taken in chunks, one after the other.
///
/// Legend: G batch times heads, N positions, d width of a head, C chunks, R = N / C queries of a chunk.
#ifndef MINIDALLE_LOWERING_ATTENTION_HPP
#define MINIDALLE_LOWERING_ATTENTION_HPP

#include <string>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

#include "lowering/pattern.hpp"

namespace minidalle {

struct AttentionOptions {
  AttentionPattern pattern;
  float scale;              // of the scores
  unsigned chunks;          // C; divides N
  float availableMemory;    // share of each tile's memory that a matrix product may take
  std::string partialsType; // of matrix products: float or half
};

struct AttentionResult {
  poplar::Tensor out; // [G, N, d], of the operands' type
  poplar::Tensor
      logSumExp; // [G, N] FLOAT, over the scores of each query: all that the gradient needs beside the operands
};

struct AttentionGradients {
  poplar::Tensor q, k, v; // [G, N, d] each, of the operands' type
};

/// softmax(scale q k^T + mask) v.
///
/// Scores, their maximum, sum and exponential are FLOAT whatever the operands are. A chunk has whole rows of scores, so
/// that no running maximum is needed.
///
/// q, k, v: [G, N, d], all FLOAT or all HALF.
AttentionResult attention(poplar::Graph &graph, const poplar::Tensor &q, const poplar::Tensor &k,
                          const poplar::Tensor &v, const AttentionOptions &options, poplar::program::Sequence &program,
                          const poplar::DebugContext &debugContext);

/// The gradients of the operands, from the probabilities that the log-sum-exp gives back.
///
/// FlashAttention (Dao et al. 2022) takes the row sums that a softmax's gradient subtracts from outGradient * out. Here
/// they are those of probabilities times their gradients, in FLOAT: a HALF `out` has lost what is left of values that
/// have much in common (3e-2 of the queries' gradient against 3e-4), and whole rows make the exact sums cheap.
///
/// outGradient: [G, N, d]; logSumExp: [G, N] FLOAT.
AttentionGradients attentionGradient(poplar::Graph &graph, const poplar::Tensor &outGradient, const poplar::Tensor &q,
                                     const poplar::Tensor &k, const poplar::Tensor &v, const poplar::Tensor &logSumExp,
                                     const AttentionOptions &options, poplar::program::Sequence &program,
                                     const poplar::DebugContext &debugContext);

} // namespace minidalle

#endif
