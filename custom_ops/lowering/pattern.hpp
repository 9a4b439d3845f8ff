/// Attention patterns: which earlier positions a position may look at. The rules are those of `models/patterns.py`.
#ifndef MINIDALLE_LOWERING_PATTERN_HPP
#define MINIDALLE_LOWERING_PATTERN_HPP

#include <cstdint>
#include <string>
#include <vector>

namespace minidalle {

/// One kind of attention over one layout of text and picture.
struct AttentionPattern {
  std::string kind;               // full, axial_row, axial_col, conv_like or sparse
  unsigned textLen = 0;           // positions of <bos> and text
  unsigned rows = 0, columns = 0; // the grid of image tokens
  // of conv_like: the window's side, the step between its pixels, and where it lies: causal or centered
  unsigned kernelSize = 0, dilation = 0;
  std::string window;
  // of sparse: positions of a block, and for each block of queries whether each block of keys was drawn
  unsigned blockSize = 0;
  std::vector<std::int64_t> drawnBlocks;
};

/// What forbidden scores are lowered by: HALF holds it, and `exp` of it is zero.
constexpr float forbidden = -10000.0F;

/// Throws `std::invalid_argument` that names the attribute, its value and the rule it breaks.
void checkPattern(const AttentionPattern &pattern);

/// Positions that are fed: all of text and picture but the last pixel, which is only predicted.
std::uint64_t fedPositions(const AttentionPattern &pattern);

/// Whether position `query` may look at position `key`.
bool allowed(const AttentionPattern &pattern, unsigned query, unsigned key);

/// What is added to the scores of the first `length` positions, at most those that are fed: [length, length] of 0 and
/// `forbidden`, row by row.
std::vector<float> additiveMask(const AttentionPattern &pattern, unsigned length);

} // namespace minidalle

#endif
