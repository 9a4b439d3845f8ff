#include "memory.hpp"

#include <algorithm>

#include <poplar/exceptions.hpp>

#include "half.hpp"

namespace host {

using poplar::poplar_error;

std::size_t Variable::bytes() const {
  const std::size_t each = type == poplar::HALF ? 2 : type == poplar::BOOL ? 1 : 4;
  return size * each;
}

const std::vector<Element> &TensorAccess::elements(const poplar::Tensor &tensor) {
  if (!tensor.valid())
    throw poplar_error("a tensor that was never assigned is used");
  return *tensor.elements;
}

poplar::Tensor TensorAccess::make(std::shared_ptr<const GraphState> graph, poplar::Type type,
                                  std::vector<std::size_t> shape, std::vector<Element> elements) {
  poplar::Tensor tensor;
  tensor.graph = std::move(graph);
  tensor.type = type;
  tensor.extents = std::move(shape);
  tensor.elements = std::make_shared<const std::vector<Element>>(std::move(elements));
  return tensor;
}

poplar::Tensor TensorAccess::joined(poplar::ArrayRef<poplar::Tensor> tensors, unsigned dimension,
                                    std::vector<std::size_t> shape) {
  std::size_t blocks = 1; // what each tensor has before the dimension is taken in turn
  for (unsigned i = 0; i < dimension; ++i)
    blocks *= shape[i];
  std::vector<Element> result;
  for (std::size_t block = 0; block < blocks; ++block) {
    for (const poplar::Tensor &tensor : tensors) {
      if (tensor.graph != tensors[0].graph)
        throw poplar_error("tensors of different graphs are joined");
      const std::size_t each = elements(tensor).size() / blocks;
      const auto begin = elements(tensor).begin() + static_cast<std::ptrdiff_t>(block * each);
      result.insert(result.end(), begin, begin + static_cast<std::ptrdiff_t>(each));
    }
  }
  return make(tensors[0].graph, tensors[0].type, std::move(shape), std::move(result));
}

Memory::Memory(const GraphState &graph) {
  for (const Variable &variable : graph.variables) {
    const bool constant = !variable.constant.empty();
    cells.push_back({&variable, constant ? variable.constant : std::vector<Word>(variable.size),
                     std::vector<std::uint8_t>(variable.size, constant), constant});
  }
}

void Memory::reset() {
  for (Cell &cell : cells)
    if (!cell.given)
      std::fill(cell.written.begin(), cell.written.end(), 0);
}

Access::Access(const poplar::Tensor &tensor) : elementType(tensor.elementType()), count(tensor.numElements()) {
  for (const Element &element : TensorAccess::elements(tensor)) {
    if (!stretches.empty() && stretches.back().variable == element.variable) {
      Stretch &last = stretches.back();
      const std::int64_t step = static_cast<std::int64_t>(element.index) - last.first;
      if (last.count == 1)
        last.step = static_cast<std::int32_t>(step);
      if (step == static_cast<std::int64_t>(last.step) * last.count) {
        ++last.count;
        continue;
      }
    }
    stretches.push_back({element.variable, element.index, 1, 0});
  }
}

namespace {

[[noreturn]] void failUnwritten(const Memory::Cell &cell, std::uint32_t index) {
  throw poplar_error("reads element " + std::to_string(index) + " of " + cell.variable->name +
                     ", which nothing has written");
}

[[noreturn]] void failReadOnly(const Memory::Cell &cell) {
  throw poplar_error("writes to " + cell.variable->name + ", which is " +
                     (cell.variable->constant.empty() ? "an input" : "a constant") + " and has to stay as it is");
}

} // namespace

std::vector<Word> Access::words(const Memory &memory) const {
  std::vector<Word> result(count);
  Word *target = result.data();
  for (const Stretch &stretch : stretches) {
    const Memory::Cell &cell = memory.cells[stretch.variable];
    std::uint32_t index = stretch.first;
    for (std::uint32_t i = 0; i < stretch.count; ++i, index += stretch.step) {
      if (!cell.written[index])
        failUnwritten(cell, index);
      *target++ = cell.words[index];
    }
  }
  return result;
}

std::vector<float> Access::floats(const Memory &memory) const {
  static_assert(sizeof(Word) == sizeof(float), "a word is one number");
  const std::vector<Word> found = words(memory);
  std::vector<float> result(count);
  std::transform(found.begin(), found.end(), result.begin(), [](Word word) { return word.number; });
  return result;
}

std::int32_t Access::whole(const Memory &memory) const { return words(memory).at(0).whole; }

void Access::store(Memory &memory, const Word *words) const { write(memory, words, false); }

void Access::give(Memory &memory, const Word *words) const { write(memory, words, true); }

void Access::forget(Memory &memory) const {
  for (const Stretch &stretch : stretches) {
    Memory::Cell &cell = memory.cells[stretch.variable];
    if (cell.given)
      failReadOnly(cell);
    for (std::uint32_t i = 0; i < stretch.count; ++i)
      cell.written[stretch.first + static_cast<std::int64_t>(i) * stretch.step] = 0;
  }
}

void Access::store(Memory &memory, const std::vector<float> &values) const {
  std::vector<Word> result(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (elementType == poplar::FLOAT) {
      result[i].number = values[i];
    } else if (elementType == poplar::HALF) {
      result[i].number = roundToHalf(values[i]);
    } else if (elementType == poplar::BOOL) {
      result[i].natural = values[i] != 0;
    } else {
      result[i].whole = static_cast<std::int32_t>(values[i]);
    }
  }
  write(memory, result.data(), false);
}

void Access::write(Memory &memory, const Word *words, bool given) const {
  const bool half = elementType == poplar::HALF;
  for (const Stretch &stretch : stretches) {
    Memory::Cell &cell = memory.cells[stretch.variable];
    if (cell.given && !given)
      failReadOnly(cell);
    cell.given |= given;
    std::uint32_t index = stretch.first;
    for (std::uint32_t i = 0; i < stretch.count; ++i, index += stretch.step) {
      Word word = *words++;
      if (half && !(std::fabs(word.number) <= largestHalf)) {
        if (!memory.saturates)
          throw poplar_error("writes " + std::to_string(word.number) + " to " + cell.variable->name +
                             ", a HALF, which ends at 65504");
        if (!std::isnan(word.number))
          word.number = std::copysign(largestHalf, word.number);
      }
      cell.words[index] = word;
      cell.written[index] = 1;
    }
  }
}

} // namespace host
