#include "lowering/pattern.hpp"

#include <stdexcept>

namespace minidalle {

namespace {

constexpr unsigned localBlocks = 4; // blocks of a local window of sparse attention

void require(bool holds, const std::string &message) {
  if (!holds)
    throw std::invalid_argument(message);
}

/// Blocks that cover the positions that are fed.
std::uint64_t blocks(const AttentionPattern &pattern) {
  return (fedPositions(pattern) + pattern.blockSize - 1) / pattern.blockSize;
}

/// Whether a distance between two lines of the picture is one of the window's.
bool insideWindow(const AttentionPattern &pattern, int distance) {
  const int dilation = static_cast<int>(pattern.dilation);
  const int reach = (static_cast<int>(pattern.kernelSize) - 1) * dilation;
  const int first = pattern.window == "causal" ? 0 : -(reach / 2),
            last = pattern.window == "causal" ? reach : reach / 2;
  return distance >= first && distance <= last && (distance - first) % dilation == 0;
}

bool sparseAllowed(const AttentionPattern &pattern, unsigned query, unsigned key) {
  const unsigned block = query / pattern.blockSize, other = key / pattern.blockSize;
  const bool local = block / localBlocks == other / localBlocks;
  const bool text = other * pattern.blockSize < pattern.textLen;
  return local || text || pattern.drawnBlocks[block * blocks(pattern) + other] != 0;
}

bool pixelAllowed(const AttentionPattern &pattern, unsigned query, unsigned key) {
  const int row = static_cast<int>(query / pattern.columns), otherRow = static_cast<int>(key / pattern.columns);
  const int column = static_cast<int>(query % pattern.columns), otherColumn = static_cast<int>(key % pattern.columns);
  if (pattern.kind == "axial_row")
    return row == otherRow;
  if (pattern.kind == "axial_col")
    return column == otherColumn;
  if (pattern.kind == "conv_like")
    return insideWindow(pattern, row - otherRow) && insideWindow(pattern, column - otherColumn);
  return true;
}

void checkConvolution(const AttentionPattern &pattern) {
  require(pattern.kernelSize % 2 == 1, "kernel_size=" + std::to_string(pattern.kernelSize) + " is even; make it odd");
  require(pattern.dilation > 0, "dilation=0 has no pixels in its window; make it 1 or more");
  require(pattern.window == "causal" || pattern.window == "centered",
          "window=" + pattern.window + " is neither causal nor centered; take one of them");
}

void checkSparse(const AttentionPattern &pattern) {
  require(pattern.blockSize > 0, "block_size=0 holds no position; make it 1 or more");
  const std::uint64_t expected = blocks(pattern) * blocks(pattern);
  require(pattern.drawnBlocks.size() == expected,
          "drawn_blocks has " + std::to_string(pattern.drawnBlocks.size()) + " entries for " +
              std::to_string(blocks(pattern)) + " blocks of queries and of keys; give " + std::to_string(expected));
  for (std::int64_t drawn : pattern.drawnBlocks)
    require(drawn == 0 || drawn == 1, "drawn_blocks has a " + std::to_string(drawn) + "; give 0 and 1 only");
}

} // namespace

void checkPattern(const AttentionPattern &pattern) {
  bool known = false;
  for (const char *kind : {"full", "axial_row", "axial_col", "conv_like", "sparse"})
    known = known || pattern.kind == kind;
  require(known,
          "pattern=" + pattern.kind + " is none of full, axial_row, axial_col, conv_like, sparse; take one of them");
  require(pattern.textLen > 0, "text_len=0 leaves no place for <bos>; make it 1 or more");
  require(pattern.rows > 0 && pattern.columns > 0, "rows=" + std::to_string(pattern.rows) +
                                                       ", columns=" + std::to_string(pattern.columns) +
                                                       " is no grid; make both 1 or more");
  if (pattern.kind == "conv_like")
    checkConvolution(pattern);
  if (pattern.kind == "sparse")
    checkSparse(pattern);
}

std::uint64_t fedPositions(const AttentionPattern &pattern) {
  return pattern.textLen + std::uint64_t(pattern.rows) * pattern.columns - 1;
}

bool allowed(const AttentionPattern &pattern, unsigned query, unsigned key) {
  if (key > query)
    return false;
  if (key < pattern.textLen) // and so everything that a text position may see
    return true;
  if (pattern.kind == "sparse")
    return sparseAllowed(pattern, query, key);
  return pixelAllowed(pattern, query - pattern.textLen, key - pattern.textLen);
}

std::vector<float> additiveMask(const AttentionPattern &pattern, unsigned length) {
  checkPattern(pattern);
  require(length <= fedPositions(pattern), "a sequence of " + std::to_string(length) + " positions, and " +
                                               std::to_string(fedPositions(pattern)) + " are fed; give no more");
  std::vector<float> mask;
  mask.reserve(std::size_t(length) * length);
  for (unsigned query = 0; query < length; ++query)
    for (unsigned key = 0; key < length; ++key)
      mask.push_back(allowed(pattern, query, key) ? 0.0F : forbidden);
  return mask;
}

} // namespace minidalle
