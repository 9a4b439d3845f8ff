#include <popops/Loop.hpp>

#include <poputil/TileMapping.hpp>

#include "poplibs.hpp"
#include "program.hpp"

namespace popops {

using host::Access;
using host::Memory;
using host::Word;
using poplar::program::Sequence;

Sequence countedLoop(poplar::Graph &graph, std::size_t count, const CountedLoopBodyType &body,
                     const poplar::DebugContext &debugContext) {
  const poplar::Tensor counter = host::makeResult(graph, poplar::UNSIGNED_INT, {1}, debugContext, "counter");
  const Access access(counter);
  Sequence loop, round;
  host::record(loop, debugContext, "begin of loop", [=](Memory &memory) {
    const Word first{};
    access.store(memory, &first);
  });
  round.add(body(counter));
  host::record(round, debugContext, "end of loop's round", [=](Memory &memory) {
    std::vector<Word> value = access.words(memory);
    ++value[0].natural;
    access.store(memory, value.data());
  });
  loop.add(poplar::program::Repeat(static_cast<unsigned>(count), round, debugContext));
  return loop;
}

} // namespace popops
