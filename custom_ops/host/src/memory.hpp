/// What lies under tensors: variables of a graph, their memory in a run, and how a view reads and writes it.
#ifndef HOST_MEMORY_HPP
#define HOST_MEMORY_HPP

#include <cstdint>
#include <string>
#include <vector>

#include <poplar/Target.hpp>
#include <poplar/Tensor.hpp>

namespace host {

/// A reference to one element of a variable.
struct Element {
  std::uint32_t variable, index;
  bool operator==(const Element &other) const { return variable == other.variable && index == other.index; }
  bool operator<(const Element &other) const {
    return variable != other.variable ? variable < other.variable : index < other.index;
  }
};

/// 32 bits: FLOAT, and HALF as a float of its grid; whole numbers; BOOL as 0 and 1.
union Word {
  float number;
  std::int32_t whole;
  std::uint32_t natural;
};

struct Variable {
  std::string name;
  poplar::Type type;
  std::size_t size;               // in elements
  std::vector<Word> constant;     // its values, if it is one
  std::vector<std::int16_t> tile; // of each element; unmapped: below 0
  std::size_t bytes() const;
};

struct GraphState {
  poplar::Target target;
  std::vector<Variable> variables;
};

/// What a tensor is made of, for those who implement Poplar.
class TensorAccess {
public:
  static const std::vector<Element> &elements(const poplar::Tensor &tensor);
  static const GraphState &graph(const poplar::Tensor &tensor) { return *tensor.graph; }
  static poplar::Tensor make(std::shared_ptr<const GraphState> graph, poplar::Type type, std::vector<std::size_t> shape,
                             std::vector<Element> elements);
  /// Tensors of one graph in a tensor of this shape, side by side along a dimension.
  static poplar::Tensor joined(poplar::ArrayRef<poplar::Tensor> tensors, unsigned dimension,
                               std::vector<std::size_t> shape);
};

/// The memory of one run. Reading what nothing has written, and writing what was given from outside, is an error.
struct Memory {
  struct Cell {
    const Variable *variable;
    std::vector<Word> words;
    std::vector<std::uint8_t> written;
    bool given = false; // from outside: read-only
  };

  explicit Memory(const GraphState &graph);
  /// Forget what was computed.
  void reset();

  std::vector<Cell> cells;
  bool saturates = false; // whether numbers too large for HALF become the largest one, in place of an error
};

/// A tensor's elements, as stretches that lie at one distance from each other: what a program keeps of it.
class Access {
public:
  explicit Access(const poplar::Tensor &tensor);

  std::size_t size() const { return count; }
  const poplar::Type &type() const { return elementType; }

  std::vector<Word> words(const Memory &memory) const;
  std::vector<float> floats(const Memory &memory) const; // of FLOAT and HALF
  std::int32_t whole(const Memory &memory) const;        // of one element

  void store(Memory &memory, const Word *words) const; // as they are
  /// FLOAT and HALF, rounded to the latter's grid; whole types and BOOL from the numbers that they hold.
  void store(Memory &memory, const std::vector<float> &values) const;
  /// Overwrite even what is read-only: for what comes from outside.
  void give(Memory &memory, const Word *words) const;
  /// As if nothing had been written.
  void forget(Memory &memory) const;

private:
  struct Stretch {
    std::uint32_t variable, first, count;
    std::int32_t step;
  };
  void write(Memory &memory, const Word *words, bool given) const;

  poplar::Type elementType;
  std::size_t count;
  std::vector<Stretch> stretches;
};

} // namespace host

#endif
