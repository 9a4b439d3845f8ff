/// Expressions of elements, evaluated by `popops::map`.
#ifndef POPOPS_EXPR_HPP
#define POPOPS_EXPR_HPP

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>

#include <poplar/Tensor.hpp>

namespace host {
struct Block;
}

namespace popops {
namespace expr {

class Expr {
public:
  virtual ~Expr() = default;
  virtual std::unique_ptr<Expr> clone() const = 0;
  /// The highest number of a place holder in it.
  virtual unsigned operands() const = 0;
  virtual void evaluate(const host::Block &block, float *result) const = 0;

protected:
  Expr() = default;
};

/// The operand of a number, from 1.
class PlaceHolder : public Expr {
public:
  explicit PlaceHolder(unsigned index) : index(index) {}
  std::unique_ptr<Expr> clone() const override;
  unsigned operands() const override { return index; }
  void evaluate(const host::Block &block, float *result) const override;

private:
  unsigned index;
};

const PlaceHolder _1(1), _2(2), _3(3), _4(4);

/// A number, which takes the type of what it is combined with.
class Const : public Expr {
public:
  explicit Const(float value) : value(value) {}
  std::unique_ptr<Expr> clone() const override;
  unsigned operands() const override { return 0; }
  void evaluate(const host::Block &block, float *result) const override;

private:
  float value;
};

class UnaryOp : public Expr {
public:
  unsigned operands() const override { return argument->operands(); }

protected:
  explicit UnaryOp(const Expr &argument) : argument(argument.clone()) {}
  UnaryOp(const UnaryOp &other) : Expr(), argument(other.argument->clone()) {}
  std::unique_ptr<Expr> argument;
};

class BinaryOp : public Expr {
public:
  unsigned operands() const override { return std::max(left->operands(), right->operands()); }

protected:
  BinaryOp(const Expr &left, const Expr &right) : left(left.clone()), right(right.clone()) {}
  BinaryOp(const BinaryOp &other) : Expr(), left(other.left->clone()), right(other.right->clone()) {}
  std::unique_ptr<Expr> left, right;
};

#define POPOPS_UNARY(NAME)                                                                                             \
  class NAME : public UnaryOp {                                                                                        \
  public:                                                                                                              \
    explicit NAME(const Expr &argument) : UnaryOp(argument) {}                                                         \
    std::unique_ptr<Expr> clone() const override { return std::unique_ptr<Expr>(new NAME(*this)); }                    \
    void evaluate(const host::Block &block, float *result) const override;                                             \
  };
#define POPOPS_BINARY(NAME, SIGN)                                                                                      \
  class NAME : public BinaryOp {                                                                                       \
  public:                                                                                                              \
    NAME(const Expr &left, const Expr &right) : BinaryOp(left, right) {}                                               \
    std::unique_ptr<Expr> clone() const override { return std::unique_ptr<Expr>(new NAME(*this)); }                    \
    void evaluate(const host::Block &block, float *result) const override;                                             \
  };                                                                                                                   \
  inline NAME operator SIGN(const Expr &left, const Expr &right) { return NAME(left, right); }

POPOPS_UNARY(Exp)
POPOPS_UNARY(Log)
POPOPS_BINARY(Add, +)
POPOPS_BINARY(Sub, -)
POPOPS_BINARY(Mul, *)
POPOPS_BINARY(Divide, /)
#undef POPOPS_UNARY
#undef POPOPS_BINARY

} // namespace expr
} // namespace popops

#endif
