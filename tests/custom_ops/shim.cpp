/// What the tests of the host's Poplar call: chains of views, roundings, small programs, and every way to misuse it.
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <poplin/MatMul.hpp>
#include <popops/Cast.hpp>
#include <popops/DynamicSlice.hpp>
#include <popops/ElementWise.hpp>
#include <popops/Loop.hpp>
#include <popops/Reduce.hpp>
#include <popops/Zero.hpp>
#include <poputil/TileMapping.hpp>

#include "engine.hpp"
#include "graph.hpp"
#include "guard.hpp"
#include "half.hpp"

using namespace poplar;
using poplar::program::Copy;
using poplar::program::If;
using poplar::program::Repeat;
using poplar::program::Sequence;
using poplar::program::WriteUndef;
namespace pe = popops::expr;

namespace {

/// A graph of 4 tiles with a program.
struct Bench {
  Graph graph{Target(4)};
  Sequence program;

  Tensor variable(const Type &type, const std::vector<std::size_t> &shape, const char *name = "x") {
    const Tensor tensor = graph.addVariable(type, shape, {name});
    poputil::mapTensorLinearly(graph, tensor);
    return tensor;
  }
  /// Run with these tensors given, all as ones.
  void run(const std::vector<Tensor> &given = {}) {
    host::Engine engine(graph, program);
    give(engine, given);
    engine.run();
  }
  static void give(host::Engine &engine, const std::vector<Tensor> &given) {
    for (const Tensor &tensor : given) {
      const std::size_t size = tensor.numElements();
      if (tensor.elementType() == FLOAT || tensor.elementType() == HALF)
        engine.write(tensor, std::vector<float>(size, 1.0F).data());
      else
        engine.write(tensor, std::vector<std::int32_t>(size, 1).data());
    }
  }
};

// ------------------------------------------------------------------------------------------------------------ views

enum Step : std::int64_t { slice, reshape, shuffle, broadcast, expand, squeeze, index, flatten, roll, twice, partial };

std::vector<std::size_t> sizes(const std::int64_t *&code, std::int64_t count) {
  std::vector<std::size_t> result(code, code + count);
  code += count;
  return result;
}

Tensor apply(const Tensor &t, const std::int64_t *&code) {
  const std::int64_t step = *code++;
  const auto next = [&] { return static_cast<unsigned>(*code++); };
  switch (step) {
  case slice: {
    const unsigned dimension = next(), begin = next(), end = next();
    return t.slice(begin, end, dimension);
  }
  case reshape: {
    const unsigned rank = next();
    return t.reshape(sizes(code, rank));
  }
  case shuffle: {
    const std::vector<std::size_t> order = sizes(code, t.rank());
    return t.dimShuffle(std::vector<unsigned>(order.begin(), order.end()));
  }
  case broadcast: {
    const unsigned n = next(), dimension = next();
    return t.broadcast(n, dimension);
  }
  case expand:
    return t.expand({next()});
  case squeeze:
    return t.squeeze({next()});
  case index:
    return t[next()];
  case flatten: {
    const unsigned begin = next(), end = next();
    return t.flatten(begin, end);
  }
  case roll: {
    const unsigned from = next(), to = next();
    return t.dimRoll(from, to);
  }
  case twice: {
    const unsigned dimension = next();
    return concat({t, t}, dimension);
  }
  case partial: {
    const unsigned begin = next(), end = next(), rank = next();
    return t.reshapePartial(begin, end, sizes(code, rank));
  }
  default:
    throw poplar_error("no such step");
  }
}

Tensor chain(Tensor t, const std::int64_t *code, std::int64_t steps) {
  for (std::int64_t i = 0; i < steps; ++i)
    t = apply(t, code);
  return t;
}

// ---------------------------------------------------------------------------------------------------------- misuse

using Misuse = std::function<void(Bench &)>;

const std::map<std::string, Misuse> &views() {
  static const std::map<std::string, Misuse> cases{
      {"slice beyond the end", [](Bench &b) { b.variable(FLOAT, {4}).slice(2, 5); }},
      {"slice of a missing dimension", [](Bench &b) { b.variable(FLOAT, {4}).slice(0, 1, 1); }},
      {"reshape to another size", [](Bench &b) { b.variable(FLOAT, {4}).reshape({3}); }},
      {"permutation with a repeat", [](Bench &b) { b.variable(FLOAT, {2, 2}).dimShuffle({0, 0}); }},
      {"squeeze of a longer dimension", [](Bench &b) { b.variable(FLOAT, {2, 2}).squeeze({0}); }},
      {"expand beyond the end", [](Bench &b) { b.variable(FLOAT, {2}).expand({2}); }},
      {"transpose of three dimensions", [](Bench &b) { b.variable(FLOAT, {2, 2, 2}).transpose(); }},
      {"reinterpret of another size", [](Bench &b) { b.variable(HALF, {2}).reinterpret(UNSIGNED_INT); }},
      {"concat of different shapes", [](Bench &b) { concat({b.variable(FLOAT, {2}), b.variable(FLOAT, {2, 1})}); }},
      {"concat of different types", [](Bench &b) { concat({b.variable(FLOAT, {2}), b.variable(HALF, {2})}); }},
      {"tensor that was never assigned", [](Bench &) { Tensor().numElements(); }},
      {"half constant from floats", [](Bench &b) { b.graph.addConstant(HALF, {1}, 1.0F); }},
      {"tile that is not there", [](Bench &b) { b.graph.setTileMapping(b.variable(FLOAT, {1}), 4); }},
      {"mapping of an unmapped tensor",
       [](Bench &b) { b.graph.getTileMapping(b.graph.addVariable(FLOAT, {2}, {"x"})); }},
  };
  return cases;
}

const std::map<std::string, Misuse> &programs() {
  static const std::map<std::string, Misuse> cases{
      {"unmapped variable",
       [](Bench &b) {
         b.graph.addVariable(FLOAT, {2}, {"lost"});
         b.run();
       }},
      {"large variable on one tile",
       [](Bench &b) {
         b.graph.setTileMapping(b.graph.addVariable(FLOAT, {8192}, {"crowd"}), 0);
         b.run();
       }},
      {"read before written",
       [](Bench &b) {
         popops::cast(b.graph, b.variable(FLOAT, {2}), HALF, b.program);
         b.run();
       }},
      {"read after it was forgotten",
       [](Bench &b) {
         const Tensor x = b.variable(FLOAT, {2});
         popops::zero(b.graph, x, b.program);
         b.program.add(WriteUndef(x));
         popops::cast(b.graph, x, HALF, b.program);
         b.run();
       }},
      {"input written",
       [](Bench &b) {
         const Tensor x = b.variable(FLOAT, {2});
         popops::zero(b.graph, x, b.program, {"wipe"});
         b.run({x});
       }},
      {"input forgotten",
       [](Bench &b) {
         const Tensor x = b.variable(FLOAT, {2});
         b.program.add(WriteUndef(x));
         b.run({x});
       }},
      {"half overflow",
       [](Bench &b) {
         const Tensor x = b.variable(HALF, {1}), y = b.variable(HALF, {1}, "y");
         b.program.add(Copy(x, y));
         for (int i = 0; i < 16; ++i)
           popops::addInPlace(b.graph, y, y, b.program);
         b.run({x});
       }},
      {"append to a part of another program",
       [](Bench &b) {
         Sequence part;
         b.program.add(part);
         popops::zero(b.graph, b.variable(FLOAT, {1}), part);
       }},
      {"append to a loop's body after the loop was made",
       [](Bench &b) {
         Sequence body;
         b.program.add(Repeat(2, body));
         popops::zero(b.graph, b.variable(FLOAT, {1}), body);
       }},
      {"append to a branch after If was made",
       [](Bench &b) {
         Sequence branch;
         b.program.add(If(b.variable(BOOL, {}), branch, Sequence()));
         popops::zero(b.graph, b.variable(FLOAT, {1}), branch);
       }},
      {"append to a program that an engine has",
       [](Bench &b) {
         host::Engine engine(b.graph, b.program);
         popops::zero(b.graph, b.variable(FLOAT, {1}), b.program);
       }},
      {"sequence added to itself", [](Bench &b) { b.program.add(b.program); }},
      {"If of a tensor", [](Bench &b) { If(b.variable(BOOL, {1}), Sequence(), Sequence()); }},
      {"If of a number", [](Bench &b) { If(b.variable(INT, {}), Sequence(), Sequence()); }},
      {"copy of another shape", [](Bench &b) { Copy(b.variable(FLOAT, {2}), b.variable(FLOAT, {2, 1})); }},
      {"copy of another type", [](Bench &b) { Copy(b.variable(FLOAT, {2}), b.variable(HALF, {2})); }},
      {"copy to a broadcast", [](Bench &b) { Copy(b.variable(FLOAT, {2}), b.variable(FLOAT, {1}).broadcast(2, 0)); }},
  };
  return cases;
}

popops::SlicePlan planOf(Bench &b, const OptionFlags &options = {}) {
  return popops::embedding::plan(b.graph, FLOAT, 4, 2, {3}, options);
}

const std::map<std::string, Misuse> &operations() {
  const auto product = [](Bench &b, const std::vector<std::size_t> &left, const std::vector<std::size_t> &right,
                          const OptionFlags &options = {}) {
    poplin::matMulGrouped(b.graph, b.variable(FLOAT, left), b.variable(FLOAT, right), b.program, FLOAT, {}, options);
  };
  static const std::map<std::string, Misuse> cases{
      {"product of matrices without groups", [=](Bench &b) { product(b, {2, 3}, {3, 2}); }},
      {"product of unequal widths", [=](Bench &b) { product(b, {1, 2, 3}, {1, 2, 2}); }},
      {"product of two types",
       [](Bench &b) {
         poplin::matMulGrouped(b.graph, b.variable(FLOAT, {1, 1, 1}), b.variable(HALF, {1, 1, 1}), b.program, FLOAT);
       }},
      {"product with a misspelt option",
       [=](Bench &b) { product(b, {1, 1, 1}, {1, 1, 1}, {{"partialType", "half"}}); }},
      {"product with an unknown partials type",
       [=](Bench &b) { product(b, {1, 1, 1}, {1, 1, 1}, {{"partialsType", "double"}}); }},
      {"sum of products of another shape",
       [](Bench &b) {
         const Tensor one = b.variable(FLOAT, {1, 1, 1});
         poplin::matMulGroupedAcc(b.graph, b.variable(FLOAT, {1, 1, 2}), 1.0F, one, one, b.program);
       }},
      {"expression of two types",
       [](Bench &b) {
         popops::map(b.graph, pe::_1 + pe::_2, {b.variable(FLOAT, {1}), b.variable(HALF, {1})}, b.program);
       }},
      {"expression of shapes that do not broadcast",
       [](Bench &b) {
         popops::map(b.graph, pe::_1 + pe::_2, {b.variable(FLOAT, {2}), b.variable(FLOAT, {3})}, b.program);
       }},
      {"expression of an operand that is not given",
       [](Bench &b) { popops::map(b.graph, pe::_1 + pe::_2, {b.variable(FLOAT, {2})}, b.program); }},
      {"expression in place of a broadcast",
       [](Bench &b) {
         popops::mapInPlace(b.graph, pe::Exp(pe::_1), {b.variable(FLOAT, {1}).broadcast(2, 0)}, b.program);
       }},
      {"expression in place of a constant",
       [](Bench &b) {
         popops::mapInPlace(b.graph, pe::Exp(pe::_1), {b.graph.addConstant(FLOAT, {1}, 1.0F)}, b.program);
       }},
      {"expression in place of what is smaller",
       [](Bench &b) { popops::addInPlace(b.graph, b.variable(FLOAT, {1}), b.variable(FLOAT, {2}), b.program); }},
      {"expression of whole numbers",
       [](Bench &b) { popops::map(b.graph, pe::Exp(pe::_1), {b.variable(INT, {1})}, b.program); }},
      {"subtraction of floats",
       [](Bench &b) { popops::subInPlace(b.graph, b.variable(FLOAT, {1}), b.variable(FLOAT, {1}), b.program); }},
      {"maximum to another type",
       [](Bench &b) { popops::reduce(b.graph, b.variable(HALF, {2}), FLOAT, {0}, popops::Operation::MAX, b.program); }},
      {"reduction over a missing dimension",
       [](Bench &b) {
         popops::reduce(b.graph, b.variable(FLOAT, {2}), FLOAT, {1}, popops::Operation::ADD, b.program);
       }},
      {"reduction over a dimension twice",
       [](Bench &b) {
         popops::reduce(b.graph, b.variable(FLOAT, {2}), FLOAT, {0, 0}, popops::Operation::ADD, b.program);
       }},
      {"cast to whole numbers", [](Bench &b) { popops::cast(b.graph, b.variable(FLOAT, {1}), INT, b.program); }},
      {"offset as signed numbers",
       [](Bench &b) {
         popops::dynamicSlice(b.graph, b.variable(FLOAT, {2}), b.variable(INT, {1}), {0}, {1}, b.program);
       }},
      {"slice that does not fit when it runs",
       [](Bench &b) {
         const Tensor offset = b.variable(UNSIGNED_INT, {1}), x = b.variable(FLOAT, {2});
         popops::dynamicSlice(b.graph, x, offset, {0}, {2}, b.program);
         b.run({x, offset});
       }},
      {"slice of more than there is",
       [](Bench &b) {
         popops::dynamicSlice(b.graph, b.variable(FLOAT, {2}), b.variable(UNSIGNED_INT, {1}), {0}, {3}, b.program);
       }},
      {"update of another shape",
       [](Bench &b) {
         popops::dynamicUpdate(b.graph, b.variable(FLOAT, {2, 2}), b.variable(FLOAT, {2}),
                               b.variable(UNSIGNED_INT, {1}), {0}, {1}, b.program);
       }},
      {"plan with a misspelt option", [](Bench &b) { planOf(b, {{"partialsType", "float"}}); }},
      {"plan of another table",
       [](Bench &b) {
         popops::multiSlice(b.graph, b.variable(FLOAT, {5, 2}), b.variable(UNSIGNED_INT, {3, 1}), {0}, {1}, b.program,
                            planOf(b), {});
       }},
      {"lookups that the plan was not made for",
       [](Bench &b) {
         popops::multiSlice(b.graph, b.variable(FLOAT, {4, 2}), b.variable(UNSIGNED_INT, {2, 1}), {0}, {1}, b.program,
                            planOf(b), {});
       }},
      {"lookup by a plan for updates",
       [](Bench &b) {
         popops::multiSlice(b.graph, b.variable(FLOAT, {4, 2}), b.variable(UNSIGNED_INT, {3, 1}), {0}, {1}, b.program,
                            planOf(b, {{"usedForSlice", "false"}}), {});
       }},
      {"update by a plan for lookups",
       [](Bench &b) {
         popops::multiUpdateAdd(b.graph, b.variable(FLOAT, {4, 2}), b.variable(FLOAT, {3, 1, 2}),
                                b.variable(UNSIGNED_INT, {3, 1}), b.variable(FLOAT, {}), {0}, {1}, b.program,
                                planOf(b, {{"usedForUpdate", "false"}}), {});
       }},
      {"indices as signed numbers",
       [](Bench &b) {
         popops::multiSlice(b.graph, b.variable(FLOAT, {4, 2}), b.variable(INT, {3, 1}), {0}, {1}, b.program, planOf(b),
                            {});
       }},
      {"scale with a dimension",
       [](Bench &b) {
         popops::multiUpdateAdd(b.graph, b.variable(FLOAT, {4, 2}), b.variable(FLOAT, {3, 1, 2}),
                                b.variable(UNSIGNED_INT, {3, 1}), b.variable(FLOAT, {1}), {0}, {1}, b.program,
                                planOf(b), {});
       }},
      {"lookup beyond the table when it runs",
       [](Bench &b) {
         const Tensor table = b.variable(FLOAT, {1, 2}), indices = b.variable(UNSIGNED_INT, {1, 1});
         popops::multiSlice(b.graph, table, indices, {0}, {1}, b.program,
                            popops::embedding::plan(b.graph, FLOAT, 1, 2, {1}, {}), {});
         b.run({table, indices});
       }},
  };
  return cases;
}

const std::map<std::string, Misuse> &cases() {
  static const std::map<std::string, Misuse> all = [] {
    std::map<std::string, Misuse> joined = views();
    joined.insert(programs().begin(), programs().end());
    joined.insert(operations().begin(), operations().end());
    return joined;
  }();
  return all;
}

} // namespace

/// The names of all misuses, a line each.
HOST_VISIBLE const char *shim_misuses(void) {
  static const std::string names = [] {
    std::string joined;
    for (const auto &one : cases())
      joined += (joined.empty() ? "" : "\n") + one.first;
    return joined;
  }();
  return names.c_str();
}

/// Misuse it in this way; nonzero, as it has to be, if that is an error.
HOST_VISIBLE int shim_misuse(const char *name) {
  return host::guarded([&] {
    Bench bench;
    cases().at(name)(bench);
  });
}

/// The elements of a variable of a shape that a chain of views sees, and the view's shape.
HOST_VISIBLE int shim_view(std::int64_t rank, const std::int64_t *shape, const std::int64_t *code, std::int64_t steps,
                           std::int64_t *elements, std::int64_t *viewRank, std::int64_t *viewShape) {
  return host::guarded([&] {
    Bench bench;
    const Tensor view = chain(bench.variable(INT, {shape, shape + rank}), code, steps);
    for (const host::Element &element : host::TensorAccess::elements(view))
      *elements++ = element.index;
    *viewRank = view.rank();
    for (std::size_t extent : view.shape())
      *viewShape++ = static_cast<std::int64_t>(extent);
  });
}

/// Zeros, with the numbers 1, 2, ... copied through such a view.
HOST_VISIBLE int shim_write(std::int64_t rank, const std::int64_t *shape, const std::int64_t *code, std::int64_t steps,
                            float *result) {
  return host::guarded([&] {
    Bench bench;
    const Tensor whole = bench.variable(FLOAT, {shape, shape + rank}), view = chain(whole, code, steps);
    const Tensor given = bench.variable(FLOAT, view.shape(), "given");
    popops::zero(bench.graph, whole, bench.program);
    bench.program.add(Copy(given, view));
    host::Engine engine(bench.graph, bench.program);
    std::vector<float> numbers(given.numElements());
    for (std::size_t i = 0; i < numbers.size(); ++i)
      numbers[i] = static_cast<float>(i + 1);
    engine.write(given, numbers.data());
    engine.run();
    engine.read(whole, result);
  });
}

HOST_VISIBLE void shim_round(const float *values, float *result, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i)
    result[i] = host::roundToHalf(values[i]);
}

/// 1 doubled `outer` times `inner` times in nested Repeats.
HOST_VISIBLE int shim_repeat(unsigned outer, unsigned inner, float *result) {
  return host::guarded([&] {
    Bench bench;
    const Tensor x = bench.variable(FLOAT, {1}), one = bench.variable(FLOAT, {1}, "one");
    Sequence body, middle;
    popops::addInPlace(bench.graph, x, x, body);
    middle.add(Repeat(inner, body));
    bench.program.add(Copy(one, x));
    bench.program.add(Repeat(outer, middle));
    host::Engine engine(bench.graph, bench.program);
    Bench::give(engine, {one});
    engine.run();
    engine.run(); // begins afresh
    engine.read(x, result);
  });
}

/// The counter of each round of a countedLoop, read through slices of 0, 1, 2, ...
HOST_VISIBLE int shim_counted(unsigned count, float *result) {
  return host::guarded([&] {
    Bench bench;
    const Tensor numbers = bench.variable(FLOAT, {count}, "numbers"), seen = bench.variable(FLOAT, {count}, "seen");
    bench.program.add(popops::countedLoop(bench.graph, count, [&](const Tensor &i) {
      Sequence body;
      const Tensor number = popops::dynamicSlice(bench.graph, numbers, i, {0}, {1}, body);
      popops::dynamicUpdate(bench.graph, seen, number, i, {0}, {1}, body);
      return body;
    }));
    host::Engine engine(bench.graph, bench.program);
    std::vector<float> values(count);
    for (unsigned i = 0; i < count; ++i)
      values[i] = static_cast<float>(i);
    engine.write(numbers, values.data());
    engine.run();
    engine.read(seen, result);
  });
}

/// 1 where the predicate holds, 2 elsewhere.
HOST_VISIBLE int shim_if(std::int32_t predicate, float *result) {
  return host::guarded([&] {
    Bench bench;
    const Tensor x = bench.variable(FLOAT, {1}), one = bench.variable(FLOAT, {1}, "one");
    const Tensor condition = bench.variable(BOOL, {}, "condition");
    Sequence then, otherwise;
    then.add(Copy(one, x));
    otherwise.add(Copy(one, x));
    popops::addInPlace(bench.graph, x, one, otherwise);
    bench.program.add(If(condition, then, otherwise));
    host::Engine engine(bench.graph, bench.program);
    Bench::give(engine, {one});
    engine.write(condition, &predicate);
    engine.run();
    engine.read(x, result);
  });
}

/// The rows that `count` additions of `value` to row 0 of a table of halves give.
HOST_VISIBLE int shim_update_add(const char *partialType, std::int64_t count, float value, float *result) {
  return host::guarded([&] {
    Bench bench;
    const auto lookups = static_cast<std::size_t>(count);
    const Tensor table = bench.variable(HALF, {1, 1}, "table"), added = bench.variable(HALF, {lookups, 1, 1}, "added");
    const Tensor indices = bench.variable(UNSIGNED_INT, {lookups, 1}, "indices"),
                 scale = bench.variable(FLOAT, {}, "scale");
    popops::zero(bench.graph, table, bench.program);
    popops::multiUpdateAdd(bench.graph, table, added, indices, scale, {0}, {1}, bench.program,
                           popops::embedding::plan(bench.graph, HALF, 1, 1, {lookups}, {{"partialType", partialType}}),
                           {});
    host::Engine engine(bench.graph, bench.program);
    engine.write(added, std::vector<float>(lookups, value).data());
    engine.write(indices, std::vector<std::int32_t>(lookups, 0).data());
    Bench::give(engine, {scale});
    engine.run();
    engine.read(table, result);
  });
}

/// A [1, 1, k] times B [1, k, 1] of halves.
HOST_VISIBLE int shim_product(const char *partialsType, std::int64_t k, const float *a, const float *b, float *result) {
  return host::guarded([&] {
    Bench bench;
    const auto length = static_cast<std::size_t>(k);
    const Tensor left = bench.variable(HALF, {1, 1, length}, "a"), right = bench.variable(HALF, {1, length, 1}, "b");
    const Tensor product =
        poplin::matMulGrouped(bench.graph, left, right, bench.program, FLOAT, {}, {{"partialsType", partialsType}});
    host::Engine engine(bench.graph, bench.program);
    engine.write(left, a);
    engine.write(right, b);
    engine.run();
    engine.read(product, result);
  });
}
