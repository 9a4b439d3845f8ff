#include "engine.hpp"

#include <algorithm>

#include <poplar/exceptions.hpp>

#include "graph.hpp"
#include "half.hpp"
#include "program.hpp"

namespace host {

using poplar::poplar_error;
using poplar::Tensor;

namespace {

void requireNumbers(const Tensor &tensor, bool numbers) {
  const bool floating = tensor.elementType() == poplar::FLOAT || tensor.elementType() == poplar::HALF;
  if (floating != numbers)
    throw poplar_error("a tensor of type " + tensor.elementType().toString() + " is given or read as " +
                       (numbers ? "float" : "int32"));
}

} // namespace

Engine::Engine(const poplar::Graph &graph, const poplar::program::Program &program)
    : graph(GraphAccess::state(graph)), memory(*this->graph), program(ProgramAccess::node(program)) {
  checkMapping(graph);
  ProgramAccess::node(program)->frozen = true;
}

void Engine::write(const Tensor &tensor, const float *values) {
  requireNumbers(tensor, true);
  const bool half = tensor.elementType() == poplar::HALF;
  std::vector<Word> words(tensor.numElements());
  for (std::size_t i = 0; i < words.size(); ++i)
    words[i].number = half ? roundToHalf(values[i]) : values[i];
  Access(tensor).give(memory, words.data());
}

void Engine::write(const Tensor &tensor, const std::int32_t *values) {
  requireNumbers(tensor, false);
  std::vector<Word> words(tensor.numElements());
  for (std::size_t i = 0; i < words.size(); ++i)
    words[i].whole = values[i];
  Access(tensor).give(memory, words.data());
}

void Engine::run() {
  memory.reset();
  program->run(memory);
}

void Engine::read(const Tensor &tensor, float *values) const {
  requireNumbers(tensor, true);
  const std::vector<float> found = Access(tensor).floats(memory);
  std::copy(found.begin(), found.end(), values);
}

void Engine::read(const Tensor &tensor, std::int32_t *values) const {
  requireNumbers(tensor, false);
  const std::vector<Word> found = Access(tensor).words(memory);
  std::transform(found.begin(), found.end(), values, [](Word word) { return word.whole; });
}

} // namespace host
