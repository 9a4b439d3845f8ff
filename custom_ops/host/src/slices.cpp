#include <popops/DynamicSlice.hpp>

#include <algorithm>

#include <poputil/TileMapping.hpp>

#include "half.hpp"
#include "poplibs.hpp"
#include "program.hpp"

namespace popops {

using host::Access;
using host::Memory;
using host::Shape;
using host::Word;
using poplar::Tensor;

/// What a plan was made for.
class SlicePlanInternal {
public:
  poplar::Type type;
  std::size_t rows, width;
  Shape lookups;
  bool slices, updates, floatPartials;
};

SlicePlan::SlicePlan() = default;
SlicePlan::SlicePlan(std::shared_ptr<const SlicePlanInternal> internal) : internal(std::move(internal)) {}
SlicePlan::~SlicePlan() = default;

namespace {

Shape checkedExtents(const Shape &shape, const Shape &dims, const Shape &sizes, const std::string &what) {
  host::require(!dims.empty() && dims.size() == sizes.size(), what + " takes a size for each of its dimensions");
  Shape result = shape;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    host::require(dims[i] < shape.size() && std::count(dims.begin(), dims.end(), dims[i]) == 1 && sizes[i] > 0 &&
                      sizes[i] <= shape[dims[i]],
                  what + " over dimensions or sizes that the tensor has not");
    result[dims[i]] = sizes[i];
  }
  return result;
}

void checkOffset(const Tensor &offset, const Shape &dims, const std::string &what) {
  host::require(offset.elementType() == poplar::UNSIGNED_INT && offset.shape() == Shape{dims.size()},
                what + " takes its offset as one unsigned int a dimension, not as " + host::text(offset));
}

/// The part of a tensor at an offset that a running program has found.
Access window(const Tensor &tensor, const std::vector<Word> &offset, const Shape &dims, const Shape &sizes) {
  Shape begin(tensor.rank(), 0), end = tensor.shape();
  for (std::size_t i = 0; i < dims.size(); ++i) {
    const std::size_t first = offset[i].natural, extent = end[dims[i]];
    host::require(first + sizes[i] <= extent, "a slice of " + std::to_string(sizes[i]) + " from " +
                                                  std::to_string(first) + " on, of " + std::to_string(extent));
    begin[dims[i]] = first;
    end[dims[i]] = first + sizes[i];
  }
  return Access(tensor.slice(begin, end));
}

} // namespace

// ------------------------------------------------------------------------------------------------ one slice at a time

Tensor createSliceableTensor(poplar::Graph &graph, const poplar::Type &type, const Shape &shape, const Shape &dims,
                             const Shape &sizes, std::size_t, const poplar::DebugContext &debugContext) {
  checkedExtents(shape, dims, sizes, "createSliceableTensor");
  return host::makeResult(graph, type, shape, debugContext, "sliceable");
}

Tensor dynamicSlice(poplar::Graph &graph, const Tensor &t, const Tensor &offset, const Shape &dims, const Shape &sizes,
                    poplar::program::Sequence &prog, const poplar::DebugContext &debugContext) {
  const Shape part = checkedExtents(t.shape(), dims, sizes, "dynamicSlice");
  checkOffset(offset, dims, "dynamicSlice");
  const Tensor result = host::makeResult(graph, t.elementType(), part, debugContext, "slice");
  const Access to(result), at(offset);
  host::record(prog, debugContext, "dynamicSlice", [=](Memory &memory) {
    to.store(memory, window(t, at.words(memory), dims, sizes).words(memory).data());
  });
  return result;
}

void dynamicUpdate(poplar::Graph &, const Tensor &t, const Tensor &s, const Tensor &offset, const Shape &dims,
                   const Shape &sizes, poplar::program::Sequence &prog, const poplar::DebugContext &debugContext) {
  const Shape part = checkedExtents(t.shape(), dims, sizes, "dynamicUpdate");
  checkOffset(offset, dims, "dynamicUpdate");
  host::requireWriteable(t, "dynamicUpdate");
  host::require(s.shape() == part && s.elementType() == t.elementType(),
                "dynamicUpdate of " + host::text(t) + " by " + host::text(s) + "; it has to be the slice's own shape");
  const Access from(s), at(offset);
  host::record(prog, debugContext, "dynamicUpdate", [=](Memory &memory) {
    window(t, at.words(memory), dims, sizes).store(memory, from.words(memory).data());
  });
}

// --------------------------------------------------------------------------------------------------------- many rows

namespace embedding {

namespace {

bool flag(const poplar::OptionFlags &options, const std::string &name, bool otherwise) {
  const std::string value = host::option(options, name, otherwise ? "true" : "false");
  host::require(value == "true" || value == "false", "embedding::plan: " + name + " is '" + value + "'");
  return value == "true";
}

} // namespace

SlicePlan plan(const poplar::Graph &, const poplar::Type &dataType, const std::size_t numEntries,
               const std::size_t outputSize, const std::vector<std::size_t> &numLookups,
               const poplar::OptionFlags &options) {
  host::requireOptions(options,
                       {"usedForSlice", "usedForUpdate", "operationForUpdate", "availableMemoryProportion",
                        "indicesDistribution", "indicesAreSorted", "validateIndices", "partialType"},
                       "embedding::plan");
  SlicePlanInternal internal;
  internal.type = dataType;
  internal.rows = numEntries;
  internal.width = outputSize;
  internal.lookups = numLookups;
  internal.slices = flag(options, "usedForSlice", true);
  internal.updates =
      flag(options, "usedForUpdate", true) && host::option(options, "operationForUpdate", "add") == "add";
  internal.floatPartials = host::option(options, "partialType", dataType.toString()) == "float";
  host::require(internal.slices || internal.updates, "embedding::plan for neither slices nor additions");
  return SlicePlan(std::make_shared<const SlicePlanInternal>(internal));
}

} // namespace embedding

namespace {

void checkTable(const Shape &shape, const poplar::Type &type, const Shape &dims, const Shape &sizes,
                const SlicePlan &plan, const std::string &what) {
  host::require(shape.size() == 2 && dims == Shape{0} && sizes == Shape{1},
                what + " takes rows of a table of two dimensions: dims {0}, sizes {1}");
  const SlicePlanInternal &internal = plan.getImpl();
  host::require(internal.type == type && internal.rows == shape[0] && internal.width == shape[1],
                what + " with the plan of another table");
}

void checkIndices(const Tensor &offsets, const SlicePlan &plan, const std::string &what) {
  host::require(offsets.elementType() == poplar::UNSIGNED_INT && offsets.rank() == 2 && offsets.dim(1) == 1,
                what + " takes indices as unsigned int [n, 1], not as " + host::text(offsets));
  const Shape &lookups = plan.getImpl().lookups;
  host::require(std::count(lookups.begin(), lookups.end(), offsets.dim(0)) > 0,
                what + " of " + std::to_string(offsets.dim(0)) + " rows, which its plan was not made for");
}

} // namespace

Tensor createSliceableTensor(poplar::Graph &graph, const poplar::Type &type, const Shape &shape, const Shape &dims,
                             const Shape &sizes, const SlicePlan &plan, const poplar::OptionFlags &options,
                             const poplar::DebugContext &debugContext) {
  host::requireOptions(options, {}, "createSliceableTensor");
  checkTable(shape, type, dims, sizes, plan, "createSliceableTensor");
  return host::makeResult(graph, type, shape, debugContext, "table");
}

Tensor createIndicesTensor(poplar::Graph &graph, const Shape &dims, std::size_t numIndices, const SlicePlan &plan,
                           const poplar::OptionFlags &options, const poplar::DebugContext &debugContext) {
  host::requireOptions(options, {}, "createIndicesTensor");
  host::require(dims == Shape{0}, "createIndicesTensor for rows of a table: dims {0}");
  const Tensor result = host::makeResult(graph, poplar::UNSIGNED_INT, {numIndices, 1}, debugContext, "indices");
  checkIndices(result, plan, "createIndicesTensor");
  return result;
}

Tensor multiSlice(poplar::Graph &graph, const Tensor &t, const Tensor &offsets, const Shape &dims, const Shape &sizes,
                  poplar::program::Sequence &prog, const SlicePlan &plan, const poplar::OptionFlags &options,
                  const poplar::DebugContext &debugContext) {
  host::requireOptions(options, {}, "multiSlice");
  checkTable(t.shape(), t.elementType(), dims, sizes, plan, "multiSlice");
  checkIndices(offsets, plan, "multiSlice");
  host::require(plan.getImpl().slices, "multiSlice with a plan for updates alone");
  const Tensor result = host::makeResult(graph, t.elementType(), {offsets.dim(0), 1, t.dim(1)}, debugContext, "rows");
  const Access indices(offsets);
  std::vector<Access> rows;
  for (std::size_t i = 0; i < offsets.dim(0); ++i)
    rows.emplace_back(result[i]);
  host::record(prog, debugContext, "multiSlice", [=](Memory &memory) {
    const std::vector<Word> found = indices.words(memory);
    for (std::size_t i = 0; i < found.size(); ++i) {
      host::require(found[i].natural < t.dim(0), "row " + std::to_string(found[i].natural) + " of a table of " +
                                                     std::to_string(t.dim(0)) + "; on IPUs it would be anything");
      rows[i].store(memory, Access(t[found[i].natural]).words(memory).data());
    }
  });
  return result;
}

void multiUpdateAdd(poplar::Graph &, const Tensor &t, const Tensor &s, const Tensor &offsets, const Tensor &scale,
                    const Shape &dims, const Shape &sizes, poplar::program::Sequence &prog, const SlicePlan &plan,
                    const poplar::OptionFlags &options, const poplar::DebugContext &debugContext) {
  host::requireOptions(options, {}, "multiUpdateAdd");
  checkTable(t.shape(), t.elementType(), dims, sizes, plan, "multiUpdateAdd");
  checkIndices(offsets, plan, "multiUpdateAdd");
  host::require(plan.getImpl().updates, "multiUpdateAdd with a plan for slices alone");
  host::requireWriteable(t, "multiUpdateAdd");
  host::require(s.shape() == Shape{offsets.dim(0), 1, t.dim(1)} && s.elementType() == t.elementType(),
                "multiUpdateAdd to " + host::text(t) + " of " + host::text(s));
  host::require(scale.rank() == 0 && (scale.elementType() == t.elementType() ||
                                      (t.elementType() == poplar::HALF && scale.elementType() == poplar::FLOAT)),
                "multiUpdateAdd takes a scale of no dimensions of the table's type, or float");
  const Access table(t), added(s), indices(offsets), factor(scale);
  const std::size_t width = t.dim(1), count = t.dim(0);
  const bool rounds = t.elementType() == poplar::HALF && !plan.getImpl().floatPartials; // after every row
  host::record(prog, debugContext, "multiUpdateAdd", [=](Memory &memory) {
    std::vector<float> sums = table.floats(memory);
    const std::vector<float> rows = added.floats(memory);
    const std::vector<Word> at = indices.words(memory);
    const float times = factor.floats(memory)[0];
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t row = at[i / width].natural;
      if (row >= count)
        continue;
      float &sum = sums[row * width + i % width];
      sum += times * rows[i];
      if (rounds)
        sum = host::roundToHalf(sum);
    }
    table.store(memory, sums);
  });
}

} // namespace popops
