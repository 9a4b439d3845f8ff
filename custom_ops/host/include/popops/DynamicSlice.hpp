/// Slices at places that are known only when a program runs, one or many of them.
#ifndef POPOPS_DYNAMICSLICE_HPP
#define POPOPS_DYNAMICSLICE_HPP

#include <memory>
#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>

namespace popops {

class SlicePlanInternal;

/// How many slices or updates of one table are done.
class SlicePlan {
public:
  SlicePlan();
  explicit SlicePlan(std::shared_ptr<const SlicePlanInternal> internal);
  ~SlicePlan();
  const SlicePlanInternal &getImpl() const { return *internal; }

private:
  std::shared_ptr<const SlicePlanInternal> internal;
};

/// A tensor laid out to be sliced: `sizes` entries of the dimensions `dims` at a time.
poplar::Tensor createSliceableTensor(poplar::Graph &graph, const poplar::Type &type,
                                     const std::vector<std::size_t> &shape, const std::vector<std::size_t> &dims,
                                     const std::vector<std::size_t> &sizes, std::size_t minGrainSize = 0,
                                     const poplar::DebugContext &debugContext = {});

/// A table that a plan takes rows of.
poplar::Tensor createSliceableTensor(poplar::Graph &graph, const poplar::Type &type,
                                     const std::vector<std::size_t> &shape, const std::vector<std::size_t> &dims,
                                     const std::vector<std::size_t> &sizes, const SlicePlan &plan,
                                     const poplar::OptionFlags &options, const poplar::DebugContext &debugContext = {});

/// Indices of such rows: UNSIGNED_INT [numIndices, 1].
poplar::Tensor createIndicesTensor(poplar::Graph &graph, const std::vector<std::size_t> &dims, std::size_t numIndices,
                                   const SlicePlan &plan, const poplar::OptionFlags &options,
                                   const poplar::DebugContext &debugContext = {});

/// `sizes` entries of the dimensions `dims` from `offset` on, UNSIGNED_INT of one number a dimension.
poplar::Tensor dynamicSlice(poplar::Graph &graph, const poplar::Tensor &t, const poplar::Tensor &offset,
                            const std::vector<std::size_t> &dims, const std::vector<std::size_t> &sizes,
                            poplar::program::Sequence &prog, const poplar::DebugContext &debugContext = {});

/// Write `s` there.
void dynamicUpdate(poplar::Graph &graph, const poplar::Tensor &t, const poplar::Tensor &s, const poplar::Tensor &offset,
                   const std::vector<std::size_t> &dims, const std::vector<std::size_t> &sizes,
                   poplar::program::Sequence &prog, const poplar::DebugContext &debugContext = {});

/// Rows of a table [V, W] by indices UNSIGNED_INT [n, 1]: [n, 1, W]. An index beyond the table is an error here, and
/// undefined on the device.
poplar::Tensor multiSlice(poplar::Graph &graph, const poplar::Tensor &t, const poplar::Tensor &offsets,
                          const std::vector<std::size_t> &dims, const std::vector<std::size_t> &sizes,
                          poplar::program::Sequence &prog, const SlicePlan &plan, const poplar::OptionFlags &options,
                          const poplar::DebugContext &debugContext = {});

/// Add scale (no dimensions) times s [n, 1, W] to rows of a table [V, W]; indices beyond the table are left out.
void multiUpdateAdd(poplar::Graph &graph, const poplar::Tensor &t, const poplar::Tensor &s,
                    const poplar::Tensor &offsets, const poplar::Tensor &scale, const std::vector<std::size_t> &dims,
                    const std::vector<std::size_t> &sizes, poplar::program::Sequence &prog, const SlicePlan &plan,
                    const poplar::OptionFlags &options, const poplar::DebugContext &debugContext = {});

namespace embedding {

/// A plan for `numLookups` rows of `outputSize` numbers out of `numEntries` at a time.
SlicePlan plan(const poplar::Graph &graph, const poplar::Type &dataType, const std::size_t numEntries,
               const std::size_t outputSize, const std::vector<std::size_t> &numLookups,
               const poplar::OptionFlags &options);

} // namespace embedding
} // namespace popops

#endif
