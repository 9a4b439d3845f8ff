#include <poplin/MatMul.hpp>

#include <algorithm>
#include <cstdlib>

#include "half.hpp"
#include "poplibs.hpp"
#include "program.hpp"

namespace poplin {

using host::Access;
using host::Memory;
using poplar::Tensor;

namespace {

struct Extents {
  std::size_t groups, m, k, n;
};

/// Products that are summed in single precision before a partial sum in half precision is rounded; on IPUs a product's
/// plan decides.
constexpr std::size_t partialLength = 128;

// Instructions for 8 numbers at a time are taken where a machine has them; neither form fuses multiplication and
// addition, so that results are the same everywhere.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx2", "default")))
#endif
void addProduct(const float *a, const float *b, float *c, std::size_t begin, std::size_t end, std::size_t n) {
  for (std::size_t k = begin; k < end; ++k) {
    const float factor = a[k];
    const float *row = b + k * n;
    for (std::size_t j = 0; j < n; ++j)
      c[j] += factor * row[j];
  }
}

std::vector<float> product(const std::vector<float> &a, const std::vector<float> &b, const Extents &e,
                           bool halfPartials) {
  std::vector<float> c(e.groups * e.m * e.n, 0.0F);
  const std::size_t step = halfPartials ? partialLength : std::max<std::size_t>(e.k, 1);
  for (std::size_t row = 0; row < e.groups * e.m; ++row) {
    const float *right = &b[row / e.m * e.k * e.n];
    float *sums = &c[row * e.n];
    for (std::size_t begin = 0; begin < e.k; begin += step) {
      addProduct(&a[row * e.k], right, sums, begin, std::min(begin + step, e.k), e.n);
      if (halfPartials)
        std::transform(sums, sums + e.n, sums, host::roundToHalf);
    }
  }
  return c;
}

bool checkOptions(const poplar::OptionFlags &options) {
  host::requireOptions(options, {"availableMemoryProportion", "partialsType"}, "matMulGrouped");
  const std::string partials = host::option(options, "partialsType", "float");
  host::require(partials == "float" || partials == "half",
                "matMulGrouped: partialsType is '" + partials + "'; it is float or half");
  const double share = std::atof(host::option(options, "availableMemoryProportion", "0.6").c_str());
  host::require(share > 0, "matMulGrouped: availableMemoryProportion is not above 0");
  return partials == "half";
}

Extents checkOperands(const Tensor &a, const Tensor &b) {
  host::requireNumbers(a, "matMulGrouped");
  host::require(a.rank() == 3 && b.rank() == 3 && a.elementType() == b.elementType() && a.dim(0) == b.dim(0) &&
                    a.dim(2) == b.dim(1),
                "matMulGrouped of " + host::text(a) + " and " + host::text(b) +
                    "; it takes [g, m, k] and [g, k, n] of one type");
  return {a.dim(0), a.dim(1), a.dim(2), b.dim(2)};
}

} // namespace

Tensor matMulGrouped(poplar::Graph &graph, const Tensor &A, const Tensor &B, poplar::program::Sequence &prog,
                     const poplar::Type &outputType, const poplar::DebugContext &debugContext,
                     const poplar::OptionFlags &options, PlanningCache *) {
  const bool halfPartials = checkOptions(options);
  const Extents extents = checkOperands(A, B);
  const Tensor result =
      host::makeResult(graph, outputType, {extents.groups, extents.m, extents.n}, debugContext, "product");
  host::requireNumbers(result, "matMulGrouped");
  const Access a(A), b(B), c(result);
  host::record(prog, debugContext, "matMulGrouped", [=](Memory &memory) {
    c.store(memory, product(a.floats(memory), b.floats(memory), extents, halfPartials));
  });
  return result;
}

void matMulGroupedAcc(poplar::Graph &graph, const Tensor &C, float k, const Tensor &A, const Tensor &B,
                      poplar::program::Sequence &prog, const poplar::DebugContext &debugContext,
                      const poplar::OptionFlags &options, PlanningCache *cache) {
  const Tensor added = matMulGrouped(graph, A, B, prog, C.elementType(), debugContext, options, cache);
  host::require(C.shape() == added.shape(), "matMulGroupedAcc to " + host::text(C) + " of a " + host::text(added));
  host::requireWriteable(C, "matMulGroupedAcc");
  const Access from(added), to(C);
  host::record(prog, debugContext, "matMulGroupedAcc", [=](Memory &memory) {
    std::vector<float> sums = to.floats(memory);
    const std::vector<float> terms = from.floats(memory);
    for (std::size_t i = 0; i < sums.size(); ++i)
      sums[i] += k * terms[i];
    to.store(memory, sums);
  });
}

} // namespace poplin
