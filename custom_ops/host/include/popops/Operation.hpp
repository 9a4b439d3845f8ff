/// What a reduction does with two elements.
#ifndef POPOPS_OPERATION_HPP
#define POPOPS_OPERATION_HPP

namespace popops {

enum class Operation { ADD, MAX };

} // namespace popops

#endif
