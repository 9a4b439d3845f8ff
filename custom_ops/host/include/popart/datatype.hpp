/// The types of elements of the intermediate representation.
#ifndef POPART_DATATYPE_HPP
#define POPART_DATATYPE_HPP

namespace popart {

/// Of PopART's those that custom operators of ours meet.
enum class DataType { INT32, FLOAT, FLOAT16, UNDEFINED };

} // namespace popart

#endif
